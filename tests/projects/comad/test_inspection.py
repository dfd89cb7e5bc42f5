"""The verb `inspect`: its pages, what they say of measures, and inspectors that judge otherwise."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from helpers.runs import copied, runs_in
from PIL import Image

from projects.comad.cli import main
from projects.comad.data import InspectionData
from projects.comad.distributions import HEIGHT, WIDTH, distributions
from projects.comad.features import build_features
from projects.comad.figures import component_rows, draw_components, take_examples
from projects.comad.inspector import Inspector
from projects.comad.naming import name_anomalies
from projects.comad.traysim import draw_tray

IMAGE = re.compile(r'<img src="data:image/png;base64,([^"]+)"')


@pytest.fixture
def without_pages(monkeypatch):
    """Pages are not what the test is about."""
    monkeypatch.setattr("projects.comad.inspection.write_pages", lambda folder, content: folder.mkdir(parents=True, exist_ok=True))


def load(path):
    return Inspector.load(path, build_features("offline"))


def inspect(*options):
    return main(["inspect", *options]).result


def change(*changes):
    return "--set=[" + ", ".join(f"'{one}'" for one in changes) + "]"


def fails(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert "Traceback" not in message
    return message


def judged(inspector, kind, count=8):
    trays = torch.stack([draw_tray("test", number, kind).image for number in range(count)])
    return inspector.judge(inspector.examine(trays))


def largest(inspector):
    """The component of the grain, which covers most."""
    return max(inspector.metrology.report(), key=lambda row: row["area"])["component"]


# ---- the pages


@pytest.fixture(scope="module")
def pages(fitted, tmp_path_factory):
    """The fitted run with its pages; read it only."""
    folder = tmp_path_factory.mktemp("pages")
    run = copied(fitted, folder)
    with runs_in(folder):
        inspect()
    return run


def test_each_component_has_a_page_that_the_index_links_and_pages_need_no_other_file(pages):
    folder, components = pages / "artefacts" / "inspect", load(pages / "model.safetensors").metrology.components
    names = [f"component_{k}.html" for k in components]
    assert sorted(file.name for file in folder.glob("*.html")) == sorted([*names, "index.html"])
    assert re.findall(r'href="(component_[^"]+)"', (folder / "index.html").read_text()) == names
    for file in folder.glob("*.html"):
        page = file.read_text()
        assert "<script" not in page
        assert all((folder / link).is_file() for link in re.findall(r'href="([^"]+)"', page))
        assert len(IMAGE.findall(page)) == page.count("<img ")


def test_cut_outs_show_the_component_and_dim_the_rest(pages):
    inspector = load(pages / "model.safetensors")
    data = InspectionData(length=40)
    data.setup()
    for place, k in enumerate(inspector.metrology.components):
        sources = IMAGE.findall((pages / "artefacts" / "inspect" / f"component_{k}.html").read_text())
        *cut_outs, presence = (np.asarray(Image.open(io.BytesIO(base64.b64decode(source)))) for source in sources)
        masks = inspector.scorer.training.unpacked()[:, place].numpy()
        for number, shown in zip((0, 10, 20, 30), cut_outs, strict=True):
            image = data.train_set[number]["image"].permute(1, 2, 0).numpy()
            assert (shown[masks[number]] == image[masks[number]]).all()
            assert (shown[~masks[number]] <= 0.4 * image[~masks[number]].max(axis=-1, keepdims=True)).all()
        always = masks.mean(0)
        assert np.corrcoef(presence.sum(-1).ravel(), always.ravel())[0, 1] > 0.9
        assert (presence[always == 0] == presence[always == 0][0]).all()


def test_measures_are_those_of_the_training_pictures_and_bounds_those_of_naming(pages):
    inspector = load(pages / "model.safetensors")
    training = inspector.scorer.training
    rows = {(row["component"], row["measure"]): row for row in json.loads((pages / "artefacts" / "inspect" / "measures.json").read_text())}
    counted = {(k, "number"): histogram.sum(1) for k, histogram in zip(training.components, training.histograms, strict=True)}
    raw = {(column.components[0], column.measure): values for name in ("global", "position", "shape")
           for column, values in zip(training.groups[name].columns, training.groups[name].raw.T, strict=True)}  # fmt: skip
    for (k, measure), values in (raw | counted).items():
        values = values.double().numpy()
        known, floor = values[~np.isnan(values)], {"area": 0.01, "colour": 0.01, "number": 0.25}.get(measure, 0.01)
        known = known / known.mean() if measure in ("area", "colour") else known
        deviation, undefined = known.std() * (len(known) / len(values)) ** 0.5, len(values) - len(known)  # what is undefined stands at the mean
        reach, row = 3 * max(deviation, floor), rows[k, measure]
        expected = [known.mean(), deviation, known.min(), known.max(), known.mean() - reach, known.mean() + reach, undefined]
        assert [row[name] for name in ("mean", "sd", "min", "max", "low", "high", "undefined")] == pytest.approx(expected, rel=1e-4, abs=1e-5), (
            k,
            measure,
        )
    own = {
        (finding.components[0], finding.measure) for found in name_anomalies(training, training) for finding in found if len(finding.components) == 1
    }
    beyond = {key for key, row in rows.items() if row["min"] < row["low"] or row["max"] > row["high"]}
    assert own == beyond


def test_charts_count_every_value_and_keep_bounds_inside(pages):
    inspector = load(pages / "model.safetensors")
    for one in distributions(inspector.metrology, inspector.scorer.training):
        chart = one.chart()
        assert max(height for _, _, height in chart.bars) == HEIGHT
        assert 0 <= chart.low < chart.mean < chart.high <= WIDTH
        if one.unit == "pieces":
            assert len(chart.bars) == len(one.defined.unique())


def test_the_picture_of_components_names_every_cluster_in_its_colour(pages):
    inspector = load(pages / "model.safetensors")
    k = inspector.metrology.components[1]
    inspector.judged_by(inspector.judgement.changed([f"component.{k}.name=rings"]))
    data = InspectionData(length=40)
    data.setup()
    figure = draw_components(inspector, take_examples(inspector, data.train_set, torch.device("cpu")))
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    kept = inspector.metrology.keep.tolist()
    assert labels == [f"{number}{'' if is_kept else ' background'}{' rings' if number == k else ''}" for number, is_kept in enumerate(kept)]
    colours = {patch.get_facecolor() for patch in figure.legends[0].get_patches()}
    assert len(colours) == len(kept)


def test_fit_leaves_the_picture_and_the_table_of_components(pages):
    assert Image.open(pages / "artefacts" / "fit" / "components.png").width > 800
    rows = json.loads((pages / "artefacts" / "fit" / "components.json").read_text())
    assert rows == component_rows(load(pages / "model.safetensors"))
    assert 'alt="components' in (pages / "report.html").read_text()


# ---- judging otherwise


def test_what_only_a_silenced_component_shows_does_not_alarm(run, capsys):
    fitted = load(run / "model.safetensors")
    k = largest(fitted)
    before = (run / "model.safetensors").read_bytes()
    result = inspect(change(f"component.{k}.weight=0"))
    adjusted = load(result.adjusted)
    assert result.adjusted == run / "adjusted.safetensors"
    assert (run / "model.safetensors").read_bytes() == before
    assert judged(fitted, "fill").alarms.all()
    good, fill = judged(adjusted, "good"), judged(adjusted, "fill")
    assert fill.alarms.sum() <= good.alarms.sum() + 1
    assert fill.scores.median() < adjusted.threshold
    assert judged(adjusted, "missing").alarms.all()
    assert all(f"component {k}:" not in text for text in fill.texts)
    said = capsys.readouterr().out
    assert f"{k}: weight 0" in said
    assert "predict PICTURES --inspector" in said
    assert "It is silenced" in (run / "artefacts" / "inspect" / f"component_{k}.html").read_text()
    assert f"component.{k}.weight=0</code>" in (run / "artefacts" / "inspect" / "index.html").read_text()


@pytest.mark.slow
def test_scales_and_threshold_are_set_anew_by_the_pictures_of_validation(run, without_pages):
    result = inspect(change("background.weight=0", "quantile=0.8"))
    adjusted, other = load(result.adjusted), load(run / "model.safetensors")
    other.judged_by(other.judgement.changed(["background.weight=0", "quantile=0.8"]))
    trays = torch.stack([draw_tray("validation", number, "good").image for number in range(16)])
    other.calibrate([other.examine(trays)])
    assert adjusted.threshold == pytest.approx(other.threshold, rel=1e-6)
    compared = {row["what"]: (row["before"], row["after"]) for row in result.compared}
    assert compared["threshold"] == (load(run / "model.safetensors").threshold, adjusted.threshold)
    alarms = int((other.fuse(other.examine(trays).scores) > other.threshold).sum())
    assert compared["false alarms of validation"][1] == f"{alarms} of 16"
    assert compared["weight of the background"] == (1.0, 0.0)
    assert compared["quantile"] == (0.95, 0.8)


@pytest.mark.slow
def test_names_stand_in_texts_and_rules_are_reported_beside(run):
    fitted = load(run / "model.safetensors")
    k = largest(fitted)
    adjusted = load(inspect(change(f"component.{k}.name=grain", f"rule={k}:area:0.8:1.2")).adjusted)
    fill = judged(adjusted, "fill")
    assert torch.equal(fill.scores, judged(fitted, "fill").scores)
    assert all(text.startswith("grain: area") for text in fill.texts)
    assert all(len(broken) == 1 and broken[0].text in text for broken, text in zip(fill.broken, fill.texts, strict=True))
    assert not any(judged(adjusted, "good").broken)
    index = (run / "artefacts" / "inspect" / "index.html").read_text()
    assert "grain" in index
    assert "training pictures that break it" in index


def test_changes_add_up_over_files(run, tmp_path, without_pages):
    k = largest(load(run / "model.safetensors"))
    first = inspect(change(f"component.{k}.weight=0"), "--out", str(tmp_path / "first.safetensors"), "--data.val_length=4")
    trays = ("--data.length=40", "--data.val_length=4")  # the settings of the run do not lie beside that file
    second = inspect(change(f"component.{k}.name=grain"), "--inspector", str(first.adjusted), *trays, "--run=second")
    judgement = load(second.adjusted).judgement
    assert second.adjusted.parent.name == "second"
    assert judgement.changes == (f"component.{k}.weight=0", f"component.{k}.name=grain")
    assert (judgement.weights, judgement.names) == ({k: 0.0}, {k: "grain"})
    assert load(second.adjusted).threshold == pytest.approx(load(first.adjusted).threshold)
    assert load(first.adjusted).judgement.names == {}


@pytest.mark.slow
def test_the_file_holds_the_last_changes_also_if_they_were_made_before(run, capsys, without_pages):
    for quantile in (0.9, 0.8, 0.9):
        inspect(change(f"quantile={quantile}"), "--data.val_length=4")
        assert load(run / "adjusted.safetensors").judgement.quantile == quantile
    assert len(list((run / "artefacts" / "inspect").glob("judgement-*.json"))) == 1
    main(["inspect", change("quantile=0.9"), "--data.val_length=4"])
    assert "was done already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["component.99.weight=0"], "there is no component 99"),
        (["component.{background}.name=belt"], "there is no component {background} to name: components are"),
        (["quantile=0.9", "parts=logical,shape,colours"], "there is no score 'colours' to fuse: there are global, number, logical"),
        (["rule={component}:weight:1:2"], "measures are number, area"),
        (["rule={background}:number:1:2"], "components are"),
        (["fusion=mean"], "fusion must be one of"),
    ],
)
def test_a_change_that_does_not_fit_the_product_is_named_before_any_work(run, capsys, changes, message):
    keep = load(run / "model.safetensors").metrology.keep
    numbers = {"background": int((~keep).nonzero()[0]), "component": int(keep.nonzero()[0])}
    written = [one.format(**numbers) for one in changes]
    said = fails(["inspect", change(*written)], capsys)
    assert f"cannot set {written[-1]!r}" in said
    assert message.format(**numbers) in said
    assert not (run / "adjusted.safetensors").exists()
    assert not (run / "artefacts" / "inspect").exists()


def test_changes_that_an_adjusted_file_holds_no_more_are_said(run, capsys, without_pages):
    for changes in (["quantile=0.9", "fusion=max"], ["fusion=max", "background.weight=0"]):
        inspect(change(*changes), "--data.val_length=4")
    assert "adjusted.safetensors was adjusted before, and holds no more: --set quantile=0.9 (" in capsys.readouterr().out
    again = ("--inspector", str(run / "adjusted.safetensors"), "--out", str(run / "adjusted.safetensors"), "--data.length=40", "--data.val_length=4")
    inspect(change("quantile=0.8"), *again, "--run=second")
    assert "holds no more" not in capsys.readouterr().out
    assert load(run / "adjusted.safetensors").judgement.changes == ("fusion=max", "background.weight=0", "quantile=0.8")


def test_something_must_count(run, capsys):
    components = load(run / "model.safetensors").metrology.components
    silent = [f"component.{k}.weight=0" for k in components]
    assert "nothing could alarm" in fails(["inspect", change(*silent, "background.weight=0")], capsys)


def test_only_an_adjusted_inspector_is_replaced(run, tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("dear diary")
    for path, message in (
        (run / "model.safetensors", "as it was fitted, which is not replaced"),
        (tmp_path / "notes.txt", "is no inspector, so it is not replaced"),
        (tmp_path, "is a folder: name a file"),
    ):
        assert message in fails(["inspect", change("quantile=0.9"), "--out", str(path)], capsys)
    assert (tmp_path / "notes.txt").read_text() == "dear diary"
    assert "say by --set what is changed" in fails(["inspect", "--out", str(tmp_path / "new.safetensors")], capsys)


def test_other_pictures_than_those_that_were_learnt_are_refused(run, capsys):
    for option, message in (
        ("--data.length=39", "the inspector learnt 40 pictures of traysim, and the data are 39"),
        ("--data.seed=5", "are not those of traysim that the inspector learnt"),
    ):
        assert message in fails(["inspect", change("quantile=0.9"), option], capsys)
    assert not (run / "adjusted.safetensors").exists()


def test_pictures_that_are_gone_are_named_before_anything_is_written(run, tmp_path, capsys):
    message = fails(["inspect", "--set=quantile=0.9", "--data.source=loco", f"--data.root={tmp_path / 'gone'}"], capsys)
    assert f"no folder {tmp_path / 'gone'}" in message
    assert "data.root" in message
    assert not (run / "adjusted.safetensors").exists()
