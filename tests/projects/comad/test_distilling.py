"""The verb `distil`: what the network learns, what the light inspector finds beside the full one, its file, and what is refused."""

import pytest
import torch
from helpers.runs import copied, runs_in

from projects.comad.cli import main
from projects.comad.distilling import Kept, Lessons, check_target, check_teacher, learn_components, lightened, train
from projects.comad.features import NoFeatures, build_features
from projects.comad.inspector import Inspector
from projects.comad.light import LightSegmenter
from projects.comad.metrics import image_aurocs
from projects.comad.store import load_state
from projects.comad.traysim import draw_tray
from shared.quiet import quiet_trainer

KINDS = ("good", "missing", "extra")

pytestmark = pytest.mark.slow  # a training and the runs around it take half a minute; the network itself is tested in test_light.py


@pytest.fixture(scope="module")
def distilled(fitted, tmp_path_factory):
    """The run folder of an inspector of few trays that was distilled."""
    folder = tmp_path_factory.mktemp("distilled")
    run = copied(fitted, folder)
    with runs_in(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("shared.report.build_report", lambda run: None)
        main(["distil", "--epochs", "8"])
    return run


@pytest.fixture
def run(distilled, run_folder):
    """The run of the distilled inspector as this test's latest run; its folder."""
    return copied(distilled, run_folder)


@pytest.fixture
def full(run):
    return Inspector.load(run / "model.safetensors", build_features("offline"))


@pytest.fixture
def light(run):
    return Inspector.load(run / "light.safetensors")


def trays(kind, split="test", count=12):
    return torch.stack([draw_tray(split, number, kind).image for number in range(count)])


def lessons(inspector, folder, images, side=128):
    kept = Kept(folder)
    kept.put("image", range(len(images)), images[..., :side, :side])
    kept.put("levels", range(len(images)), inspector.segment(images)[..., :side, :side])
    return Lessons(kept, len(images))


def fails(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 1
    assert "Traceback" not in message
    return message


def test_the_network_learns_a_few_trays_by_heart(full, tmp_path):
    """Of their upper left quarters, which hold the fruit; a component whose pixels the quarters lack does not count."""
    few = lessons(full, tmp_path / "few", trays("good", "train", 4), 64)
    task = train(quiet_trainer(250, accelerator="cpu", check_val_every_n_epoch=250), full, few, few, 250, 0)
    assert task.overlaps[list(full.metrology.components)].nanmean() > 0.9


def test_the_same_seed_gives_the_same_network(full, tmp_path):
    few = lessons(full, tmp_path / "few", trays("good", "train", 4))
    one, same = (train(quiet_trainer(2, accelerator="cpu"), full, few, few, 2, 0).light.state_dict() for _ in range(2))
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_the_light_inspector_finds_what_the_full_one_finds(full, light):
    areas = []
    for inspector in (full, light):
        found = torch.cat([inspector.examine(trays(kind)).scores["logical"] for kind in KINDS])
        areas.append(image_aurocs(found, [kind for kind in KINDS for _ in range(12)]))
    for kind in KINDS[1:]:
        assert areas[1][kind] > areas[0][kind] - 0.05, kind


def test_components_keep_their_numbers_and_nothing_is_left_of_features_and_patches(full, light):
    assert light.metrology.components == full.metrology.components
    assert isinstance(light.features, NoFeatures)
    assert light.memory is None
    assert light.judgement.parts == ("logical", "position")
    assert "patches" not in light.recipe.parts
    assert not light.uses_features
    overlap = light.metrology.masks(light.segment(trays("good", count=4))) & full.metrology.masks(full.segment(trays("good", count=4)))
    assert overlap.flatten(2).any(2).all()


def test_measures_are_those_of_the_networks_maps(light):
    again = Inspector(NoFeatures(), light.recipe, light.judgement)
    images = trays("good", "train", 40)
    again.centres, again.light = light.centres, light.light
    again.learn_components(light.segment(images), images, light.metrology.keep)
    for name, group in again.scorer.training.groups.items():
        torch.testing.assert_close(group.raw, light.scorer.training.groups[name].raw, equal_nan=True)
    assert torch.equal(again.metrology.offsets, light.metrology.offsets)


def test_scales_and_threshold_are_those_of_validation(light):
    found = light.fuse(light.examine(trays("good", "validation", 16)).scores)
    assert light.threshold == pytest.approx(float(torch.quantile(found, 0.95)), rel=1e-6)


def test_what_is_loaded_judges_as_what_was_saved(light, tmp_path):
    light.save(tmp_path / "again.safetensors")
    again = Inspector.load(tmp_path / "again.safetensors")
    one, other = (inspector.judge(inspector.examine(trays("missing", count=3))) for inspector in (light, again))
    assert torch.equal(one.scores, other.scores)
    assert one.texts == other.texts


def test_a_light_inspector_predicts_and_is_adjusted_as_others_are(run, run_folder, tmp_path):
    from torchvision.io import write_png

    write_png(trays("missing", count=1)[0], str(tmp_path / "missing.png"))
    options = ["--inspector", str(run / "light.safetensors")]
    (row,) = main(["predict", str(tmp_path / "missing.png"), *options, "--run", "one"]).result.rows
    assert row["verdict"] == "alarm"
    result = main(["inspect", *options, "--set", "quantile=0.5", "--run", "two"]).result
    assert Inspector.load(result.adjusted).light is not None


def test_a_patch_memory_may_be_kept(full, light, tmp_path):
    lighter = lightened(full, light.light, True)
    learn_components(quiet_trainer(1, accelerator="cpu"), lighter, lessons(full, tmp_path / "few", trays("good", "train", 6)), full.metrology.keep)
    lighter.calibrate([lighter.examine(trays("good", "validation", 6))])
    lighter.save(tmp_path / "light.safetensors")
    again = Inspector.load(tmp_path / "light.safetensors", build_features("offline"))
    scratched = trays("scratch", count=3)
    assert again.judgement.parts == full.judgement.parts
    torch.testing.assert_close(again.examine(scratched).scores["patches"], full.examine(scratched).scores["patches"])
    with pytest.raises(ValueError, match="other features than a light inspector's: give those of 'offline' with it"):
        Inspector.load(tmp_path / "light.safetensors")


def test_a_component_that_the_network_does_not_show_is_said(full, tmp_path):
    blind = LightSegmenter(8).eval()
    torch.nn.init.zeros_(blind.head.weight)
    few = lessons(full, tmp_path / "few", trays("good", "train", 2))
    with pytest.raises(ValueError, match=r"has not learnt every component .*: train it longer, by --epochs"):
        learn_components(quiet_trainer(1, accelerator="cpu"), lightened(full, blind, False), few, full.metrology.keep)


def test_what_cannot_be_distilled_is_refused(full, light):
    with pytest.raises(ValueError, match="is a light one already"):
        check_teacher(light, 1, False)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        check_teacher(full, 0, False)
    full.judged_by(full.judgement.changed(["parts=patches"]))
    with pytest.raises(ValueError, match="by the patch memory alone"):
        check_teacher(full, 1, False)
    check_teacher(full, 1, True)
    full.memory = None
    with pytest.raises(ValueError, match="no patch memory that --patches could keep"):
        check_teacher(full, 1, True)


def test_only_a_light_inspector_is_replaced(run, tmp_path):
    assert check_target(run / "light.safetensors") == run / "light.safetensors"
    with pytest.raises(ValueError, match="that is not light, which is not replaced"):
        check_target(run / "model.safetensors")
    with pytest.raises(ValueError, match="is no inspector, so it is not replaced"):
        check_target(run / "config.yaml")
    with pytest.raises(ValueError, match="is a folder"):
        check_target(tmp_path)


def test_other_pictures_and_light_inspectors_are_refused_before_any_work(run, capsys):
    assert "the data are 12 of traysim" in fails(["distil", "--data.length", "12"], capsys)
    assert "is a light one already" in fails(["distil", "--inspector", str(run / "light.safetensors"), "--run", "again"], capsys)


def test_no_training_pictures_are_refused(run, capsys, monkeypatch):
    monkeypatch.setattr("projects.comad.data.DrawnTrays.__len__", lambda self: 0)
    assert "there are no training pictures of traysim" in fails(["distil", "--force"], capsys)


def test_the_run_keeps_a_table_a_figure_and_curves(run):
    folder = run / "artefacts" / "distil"
    assert {file.name for file in folder.iterdir()} == {"light.csv", "light.json", "light.png"}
    assert {"train/loss", "val/miou"} <= set((run / "distil" / "metrics.csv").read_text().splitlines()[0].split(","))
    assert load_state(run / "light.safetensors")["about"]["distilled"]["features"] == "offline"
