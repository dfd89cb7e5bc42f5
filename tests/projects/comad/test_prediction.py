import csv
import errno
import json
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from projects.comad import prediction, results
from projects.comad.cli import main
from projects.comad.data import InspectionData, resized
from projects.comad.examples import find_examples, kind_vectors
from projects.comad.module import ComponentInspection
from projects.comad.prediction import describe, grouped, headline, legend, look, predict, proportions_note, row, sentence, strengths
from projects.comad.results import fingerprint, painted_components
from projects.comad.segmentation import hard_maps, palette
from projects.comad.store import load_state, save_state
from projects.comad.traysim import draw_tray
from shared.data.files import BadFileError, read_levels
from shared.data.inputs import find_pictures
from shared.results import LEFT_OUT

KINDS = ("good", "missing", "scratch")


class Plain:
    """What `predict` needs of a trainer."""

    precision, is_forced, verb, loggers = "32-true", False, "predict", ()

    def __init__(self, folder):
        self.default_root_dir = folder
        self.precision_plugin = SimpleNamespace(forward_context=nullcontext)


def tray(kind, number=0, split="test"):
    return draw_tray(split, number, kind, seed=0, size=128).image


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return path


@pytest.fixture
def module(fitted):
    """The inspector of few trays."""
    return ComponentInspection().load(fitted / "model.safetensors").eval()


@pytest.fixture
def trays(tmp_path):
    """A folder of trays: `line/<kind>.png`, and one of another size."""
    for kind in KINDS:
        save(tray(kind), tmp_path / "in" / "line" / f"{kind}.png")
    large = Image.fromarray(tray("extra").permute(1, 2, 0).numpy()).resize((300, 200), Image.Resampling.BILINEAR)
    large.save(tmp_path / "in" / "extra.jpg", quality=95)
    return tmp_path / "in"


# ---- files


def test_every_picture_has_its_files_and_its_row(module, trays, tmp_path, capsys):
    found = predict(Plain(tmp_path), module, str(trays))
    folder = tmp_path / "artefacts" / "predict"
    names = ["extra.jpg", *(f"line/{kind}.png" for kind in KINDS)]
    files = sorted(path.relative_to(folder / "pictures").as_posix() for path in (folder / "pictures").rglob("*") if path.is_file())
    assert files == sorted(name + ending for name in names for ending in ("-components.png", "-heat.png", ".json"))
    assert (
        [one["file"] for one in found.rows] == [one["file"] for one in csv.DictReader((folder / "predictions.csv").open(encoding="utf-8"))] == names
    )
    assert json.loads((folder / "predictions.json").read_text()) == found.rows
    assert all((folder / one[name]).is_file() for one in found.rows for name in ("components", "heat", "json"))
    assert (folder / "overview.png").is_file()
    assert [one["verdict"] for one in found.rows] == ["alarm", "good", "alarm", "alarm"]
    assert found.summary == {"pictures": 4, "alarms": 3, "rules broken": 0}
    said = {one["file"]: json.loads((folder / one["json"]).read_text()) for one in found.rows}
    assert (said["extra.jpg"]["height"], said["extra.jpg"]["width"]) == (200, 300)
    assert all(said[one["file"]][name] == one[name] for one in found.rows for name in ("verdict", "score", "threshold", "text", "milliseconds"))
    printed = capsys.readouterr().out
    assert all(f"  {sentence(content)}\n" in printed for content in said.values())
    assert "3 of 4 pictures alarm\n" in printed
    for name, size in (("extra.jpg", (200, 300)), ("line/good.png", (128, 128))):
        painted = read_levels(folder / "pictures" / f"{name}-components.png")
        assert painted.shape[2] > size[1]  # the legend beside it
        image = read_levels(trays / name)
        labels = hard_maps(module.inspector.segment(resized(image, (128, 128))[None]))[0]
        assert torch.equal(painted[:, : size[0], : size[1]], painted_components(image, labels, legend(module.inspector)))
        assert read_levels(folder / "pictures" / f"{name}-heat.png").shape[1:] == size


def test_a_file_is_judged_as_test_judges_its_picture(run, module, tmp_path):
    data = InspectionData(test_length=2, kinds=["missing", "swap", "paint"])
    L.Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu").test(module, datamodule=data, verbose=False)
    pictures, judged = data.test_set, module.judged
    for one in judged:
        save(pictures[one.place]["image"], tmp_path / "line" / f"{pictures.name(one.place)}.png")
    found = {one["file"]: one for one in main(["predict", str(tmp_path / "line")]).result.rows}
    assert len(found) == len(judged) == 8
    for one in judged:
        predicted = found[f"{pictures.name(one.place)}.png"]
        assert (predicted["verdict"] == "alarm", predicted["text"]) == (one.alarm, one.text)
        assert predicted["score"] == pytest.approx(one.scores["fused"], rel=1e-5, abs=1e-4)


def test_what_lies_finished_is_not_done_again(module, trays, tmp_path, capsys, monkeypatch):
    looked, write = [], results.write_json
    monkeypatch.setattr(prediction, "TOGETHER", 1)
    monkeypatch.setattr(prediction, "log_figure", lambda *given: None)
    monkeypatch.setattr(prediction, "look", lambda *given: looked.append(1) or look(*given))

    def fill(path, content):
        if path.name == "scratch.png.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    def again(**given):
        looked.clear()
        trainer = Plain(tmp_path)
        vars(trainer).update(given)
        return predict(trainer, module, str(trays)).rows, len(looked)

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_json", fill)
        with pytest.raises(OSError, match="No space left"):
            again()
    rows, done = again()
    assert (len(rows), done) == (4, 1)
    assert "3 of 4 pictures were done already" in capsys.readouterr().out
    assert again() == (rows, 0)
    save(tray("fill"), trays / "line" / "good.png")
    folder = tmp_path / "artefacts" / "predict" / "pictures"
    (folder / "line" / "scratch.png-heat.png").unlink()
    (folder / "extra.jpg.json").write_text("{")
    changed, done = again()
    assert done == 3
    assert [one["verdict"] for one in changed] == ["alarm"] * 4
    assert again(is_forced=True)[1] == 4
    module.inspector.judged_by(module.inspector.judgement.changed(["quantile=1"]))
    assert again()[1] == 4  # another inspector


def test_large_pictures_are_inspected_in_smaller_groups(tmp_path, monkeypatch):
    monkeypatch.setattr(prediction, "PIXELS", 3 * 40 * 40)
    for number in range(11):
        side = 80 if number == 1 else 40 if number < 6 else 8
        save(torch.zeros(3, side, side, dtype=torch.uint8), tmp_path / f"{number:02}.png")
    groups = [[int(given.name[:2]) for given in group] for group in grouped(find_pictures(tmp_path)[0])]
    assert groups == [[0], [1], [2, 3, 4], [5, 6, 7, 8, 9, 10]]


# ---- pictures


def test_components_have_their_colours_and_all_else_is_dim():
    labels, image = torch.tensor([[0, 1], [2, 2]]), torch.full((3, 4, 6), 200, dtype=torch.uint8)
    entries = [results.Entry(0, True, "0"), results.Entry(1, False, "1"), results.Entry(2, True, "2")]
    painted = painted_components(image, labels, entries)
    assert painted.shape == image.shape
    for rows, columns, k in ((slice(0, 2), slice(0, 3), 0), (slice(2, 4), slice(0, 6), 2)):
        expected = (0.6 * palette(3)[k] + 0.4 * 200).round().byte()
        assert (painted[:, rows, columns] == expected[:, None, None]).all()
    assert (painted[:, :2, 3:] == 90).all()
    whole = np.asarray(results.with_legend(painted, entries, ["good 1.0 (alarm over 2.0)"]))
    np.testing.assert_array_equal(whole[:4, :6], painted.permute(1, 2, 0))
    found = {tuple(colour) for colour in whole[:, 6:].reshape(-1, 3).tolist()}
    assert {tuple(palette(3)[0].tolist()), results.BACKGROUND, tuple(palette(3)[2].tolist()), (0, 0, 0)} <= found


def test_heat_maps_of_all_pictures_have_one_scale_on_which_good_ones_are_calm(module):
    inspector = module.inspector
    good, wrong = (torch.stack([tray(kind, number) for kind in kinds for number in range(4)]) for kinds in (["good"], ["extra", "fill", "paint"]))
    peaks = []
    for images in (good, wrong):
        fused = inspector.maps(inspector.examine(images))["fused"]
        strength = strengths(inspector, fused)
        torch.testing.assert_close(strength, (fused / (2 * inspector.map_level)).clamp(max=1))
        peaks.append(strength.flatten(1).max(1).values)
    assert peaks[0].max() < 0.5
    assert peaks[1].min() > peaks[0].max()
    assert peaks[1].median() > 0.5


def test_the_level_of_maps_is_that_of_scores_at_the_threshold(module):
    inspector = module.inspector
    examined = inspector.examine(torch.stack([tray("good", number, "validation") for number in range(8)]))
    for parts, fusion in ((("logical", "patches"), "trimmed-z"), (("logical", "position"), "sum"), (("number",), "max")):
        inspector.judged_by(inspector.judgement.changed([f"parts={','.join(parts)}", f"fusion={fusion}"])).calibrate([examined])
        shown = ["logical" if part == "number" else part for part in parts]
        heights = sum(examined.scores[name] / inspector.fusion.scales()[part] for name, part in zip(shown, parts, strict=True))
        assert inspector.map_level == pytest.approx(np.quantile(heights.numpy(), inspector.judgement.quantile))
        if parts[0] != "number":  # scores are the same but for the middle that the fusion subtracts
            offset = float((heights - inspector.fuse(examined.scores))[0])
            assert inspector.map_level == pytest.approx(inspector.threshold + offset)


# ---- what is said


def test_measures_stand_beside_those_of_training(module):
    inspector = module.inspector
    k = inspector.metrology.components[0]
    examined = inspector.examine(tray("missing")[None])
    [said] = describe(inspector, examined)
    entry = next(one for one in said["components"] if one["component"] == k)
    known = np.array([inspector.scorer.training.table(place)[0]["area"] for place in range(40)])
    value, relative = examined.measures.table(0)[0]["area"], known / known.mean()
    area = next(one for one in entry["measures"] if one["measure"] == "area")
    assert (area["value"], area["usual"]) == (value, pytest.approx(np.sort(known)[19]))
    assert area["deviation"] == pytest.approx((value / known.mean() - 1) / max(relative.std(), 0.01), rel=1e-3)
    assert (entry["name"], entry["weight"]) == (f"component {k}", 1.0)
    worst = said["findings"][0]
    assert (said["measure"], said["component"]) == (worst["measure"], f"component {worst['components'][0]}")
    fused = {part: one["normalised"] for part, one in said["scores"].items() if one["normalised"] is not None}
    assert set(fused) == set(said["parts"]) == set(inspector.judgement.parts)
    assert sum(fused.values()) == pytest.approx(said["score"])
    assert said["part"] == max(fused, key=fused.get)
    assert len(said["relations"]) == sum(len(column.components) == 2 for column in inspector.scorer.training.groups["pair"].columns)
    assert said["inspector"]["product"] == "traysim"
    json.dumps(said, allow_nan=False)


def test_what_a_user_has_set_is_shown(module, trays, tmp_path, capsys):
    inspector = module.inspector
    first, second = inspector.metrology.components[:2]
    changes = [f"component.{first}.name=nuts", f"component.{second}.weight=0.5", "background.weight=0", f"rule={first}:number:90:99"]
    inspector.judged_by(inspector.judgement.changed(changes))
    texts = [entry.text for entry in legend(inspector)]
    assert (texts[first], texts[second]) == (f"{first}  nuts", f"{second}  component, weight 0.5")
    assert sum("background, weight 0" in text for text in texts) == inspector.recipe.k - len(inspector.metrology.components)
    found = predict(Plain(tmp_path), module, str(trays / "line" / "good.png"))
    assert found.summary == {"pictures": 1, "alarms": 0, "rules broken": 1}
    said = json.loads((tmp_path / "artefacts" / "predict" / found.rows[0]["json"]).read_text())
    assert said["rules"][0]["text"] == found.rows[0]["rules"]
    assert (said["rules"][0]["low"], said["inspector"]["changes"]) == (90, changes)
    assert [one["weight"] for one in said["components"]][:2] == [1.0, 0.5]
    assert found.rows[0]["text"].endswith("is below 90")
    assert "0 of 1 pictures alarm; rules are broken in 1" in capsys.readouterr().out


def test_verdicts_read_well():
    content = {
        "file": "line/017.png",
        "verdict": "alarm",
        "score": 14.21,
        "threshold": 8.1,
        "text": "nuts: number 1 instead of 2",
        "parts": ["logical"],
    }
    content |= {"part": "logical", "component": "nuts", "measure": "number", "rules": [{"text": "a"}, {"text": "b"}], "milliseconds": 9.0}
    content |= {"files": {"components": "017.png-components.png", "heat": "017.png-heat.png"}}
    assert sentence(content) == "line/017.png: ALARM 14.2 over 8.1: nuts: number 1 instead of 2"
    assert headline(content | {"parts": ["logical", "patches"], "part": "patches"}) == "ALARM 14.2 over 8.1, mostly patches"
    assert headline(content | {"kind": "lost"}) == "ALARM 14.2 over 8.1, kind lost"
    assert headline(content | {"verdict": "good", "score": -1.0, "kind": None}) == "good -1.0 (alarm over 8.1)"
    one = row(content)
    assert (one["rules"], one["heat"], one["json"]) == ("a; b", "pictures/line/017.png-heat.png", "pictures/line/017.png.json")


def test_other_proportions_are_noted_once(module):
    sizes = [{"height": 100, "width": width} for width in (100, 104, 106, 150)]
    module.inspector.about.pop("original_size", None)
    assert proportions_note(module.inspector, sizes) == ""
    module.inspector.about["original_size"] = [200, 200]
    assert proportions_note(module.inspector, sizes[:2]) == ""
    assert proportions_note(module.inspector, sizes).startswith(
        "2 of 4 pictures have other proportions (width by height 1.06, those that were learnt 1.00)"
    )


def test_a_fingerprint_changes_with_everything():
    state = {"a": torch.arange(4.0), "b": [1, "x"], "c": {"d": None}}
    assert fingerprint(state) == fingerprint({"c": {"d": None}, "b": (1, "x"), "a": torch.arange(4.0)})
    others = ({"a": torch.arange(4)}, {"a": torch.arange(4.0).view(2, 2)}, {"b": [1, "y"]}, {"b": [1], "x": 0}, {"c": {"e": None}})
    assert len({fingerprint(state | other) for other in ({}, *others)}) == 6


# ---- kinds by labelled pictures


@pytest.fixture
def labelled(tmp_path):
    """A folder of labelled trays, two a kind."""
    for kind in ("swap", "scratch", "fill"):
        for number in (2, 3):  # filled too high, and too low
            save(tray(kind, number), tmp_path / "labelled" / kind / f"{number}.png")
    return tmp_path / "labelled"


def test_alarms_have_the_kind_of_the_nearest_example(run, labelled, tmp_path, capsys):
    for kind in ("good", "swap", "fill"):
        save(tray(kind, 5), tmp_path / "in" / f"{kind}.png")
    found = main(["predict", str(tmp_path / "in"), "--examples", str(labelled)]).result.rows
    assert {one["file"]: one["kind"] for one in found} == {"fill.png": "fill", "good.png": None, "swap.png": "swap"}
    printed, folder = capsys.readouterr().out, run / "artefacts" / "predict"
    assert all(f", kind {kind}: " in printed for kind in ("swap", "fill"))
    assert [one["kind"] for one in csv.DictReader((folder / "predictions.csv").open(encoding="utf-8"))] == ["fill", "", "swap"]
    assert json.loads((folder / "pictures" / "swap.png.json").read_text())["kind"] == "swap"


@pytest.mark.slow
def test_a_changed_folder_of_examples_counts_and_none_gives_no_kinds(run, labelled, tmp_path, capsys):
    picture = str(save(tray("fill", 5), tmp_path / "in" / "fill.png"))
    assert main(["predict", picture, "--examples", str(labelled)]).result.rows[0]["kind"] == "fill"
    (labelled / "fill").rename(labelled / "level")
    assert main(["predict", picture, "--examples", str(labelled)]).result.rows[0]["kind"] == "level"
    capsys.readouterr()
    assert "kind" not in main(["predict", picture]).result.rows[0]
    assert "kind" not in json.loads((run / "artefacts" / "predict" / "pictures" / "fill.png.json").read_text())
    assert ", kind " not in capsys.readouterr().out


def test_kinds_decide_whether_a_picture_was_done(module, labelled, trays, tmp_path, monkeypatch):
    looked, measured = [], []
    examine = prediction.examine_examples
    monkeypatch.setattr(prediction, "log_figure", lambda *given: None)
    monkeypatch.setattr(prediction, "look", lambda *given: looked.append(1) or look(*given))
    monkeypatch.setattr(prediction, "examine_examples", lambda *given: measured.append(1) or examine(*given))

    def done(examples=labelled):
        looked.clear()
        measured.clear()
        predict(Plain(tmp_path), module, str(trays / "extra.jpg"), examples and str(examples))
        return len(looked), len(measured)

    assert [done(), done()] == [(1, 1), (0, 0)]
    (labelled / "swap").rename(labelled / "exchange")
    assert [done(), done()] == [(1, 1), (0, 0)]
    save(tray("swap", 4), labelled / "exchange" / "2.png")
    assert [done(), done(None), done(None)] == [(1, 1), (1, 0), (0, 0)]


def test_kinds_are_told_apart_by_deviations_of_g_and_of_what_is_fused(module):
    inspector = module.inspector
    measures = inspector.examine(tray("swap")[None]).measures
    k, training = inspector.metrology.components[0], inspector.scorer.training
    known, position = training.groups["global"].normalised.numpy(), measures.groups["position"].normalised
    g = measures.groups["global"].normalised.numpy() / np.maximum(known.std(0), 0.01)
    np.testing.assert_allclose(kind_vectors(inspector, measures), np.concatenate([g, position], 1))
    inspector.judged_by(inspector.judgement.changed(["parts=logical", f"component.{k}.weight=0"]))
    own = np.array([k not in column.components for column in measures.groups["global"].columns])
    np.testing.assert_allclose(kind_vectors(inspector, measures), g * own)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ([], FileNotFoundError, "no sub-folders: expected"),
        (["a/1.png"], ValueError, "one kind only, a: give at least 2"),
        (["a/1.png", "b/notes.txt"], FileNotFoundError, "no images in .*b: expected"),
        (["a/1.png", "b/torn.png"], BadFileError, "1 of 2 images cannot be read"),
        (None, FileNotFoundError, "does not exist: expected"),
    ],
)
def test_examples_that_will_not_do_are_named(tmp_path, files, error, message):
    folder = tmp_path / "labelled"
    if files is not None:
        folder.mkdir()
    for name in files or []:
        save(tray("swap"), folder / name) if name.endswith("1.png") else save_text(folder / name)
    with pytest.raises(error, match=message):
        find_examples(folder)


def save_text(path):
    path.parent.mkdir(exist_ok=True)
    path.write_text("no picture")


# ---- what a user may give


def test_grey_deep_and_transparent_pictures_are_inspected(module, tmp_path):
    pixels, folder = tray("good").permute(1, 2, 0).numpy(), tmp_path / "in"
    folder.mkdir()
    Image.fromarray(pixels).convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(pixels).save(folder / "colour.png")
    grey = np.asarray(Image.fromarray(pixels).convert("L"))
    Image.fromarray(grey).save(folder / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "grey16.png")
    alpha, colour, level, deep = (one["score"] for one in predict(Plain(tmp_path), module, str(folder)).rows)
    assert (alpha, level) == (pytest.approx(colour), pytest.approx(deep))
    assert level > colour


def test_errors_are_messages(run, module, tmp_path, capsys):
    picture = save(tray("good"), tmp_path / "good" / "1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    shutil.copy(picture, tmp_path / "bad" / "fine.png")
    (tmp_path / "bad" / "torn.png").write_bytes(picture.read_bytes()[:500])
    (tmp_path / "torn.safetensors").write_bytes((run / "model.safetensors").read_bytes()[:900])
    state = load_state(run / "model.safetensors")
    state["features"] |= {"name": "no_such_network"}
    save_state(state, tmp_path / "other.safetensors")
    cases = (
        ("nowhere", FileNotFoundError, "nowhere"),
        ("empty", FileNotFoundError, "no images in"),
        ("bad", BadFileError, "torn.png"),
    )
    for name, error, message in cases:
        with pytest.raises(error, match=message):
            predict(Plain(tmp_path), module, str(tmp_path / name))
    found = predict(Plain(tmp_path), module, str(tmp_path / "bad"), on_bad_file="skip")
    assert ([one["file"] for one in found.rows], found.exit_code, found.summary["left out"]) == (["fine.png"], LEFT_OUT, 1)
    for name, error, message in (("none", FileNotFoundError, "no inspector"), ("other", ValueError, "no_such_network")):
        with pytest.raises(error, match=message):
            module.load(tmp_path / f"{name}.safetensors")
    for arguments, message in (([str(tmp_path / "bad")], "torn.png"), ([str(picture), f"--inspector={tmp_path}/torn.safetensors"], "is damaged")):
        with pytest.raises(SystemExit) as stop:
            main(["predict", *arguments])
        assert stop.value.code == 1
        assert message in capsys.readouterr().err
    assert not list(run.rglob("fine.png*"))
