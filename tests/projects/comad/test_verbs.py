"""The command line: what fit leaves, how it goes on, and what is said when something is wrong."""

import errno
import json
import shutil
from dataclasses import replace

import pytest
import safetensors.torch
import torch
import yaml
from helpers.commands import failing
from helpers.processes import run_together, run_until_killed
from helpers.workers import comad_until_killed, command_line
from PIL import Image

from projects.comad import learning
from projects.comad.cli import main
from projects.comad.data import InspectionData
from projects.comad.features import build_features
from projects.comad.inspector import Inspector, Recipe
from projects.comad.metrology import MetrologySettings
from projects.comad.store import load_state
from projects.comad.traysim import draw_tray, write_loco
from shared.dashboards import validate
from shared.runs import REPOSITORY

PROJECT = REPOSITORY / "projects" / "comad"
SMALL = ["--data.length=12", "--data.val_length=6", "--data.test_length=2", "--data.batch_size=4", "--model.patches=100", "--model.restarts=1"]


fails = failing(main)


def same(one, other):
    """Compare two states, numbers up to rounding."""
    if isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            same(left, right)
    else:
        assert other == pytest.approx(one, rel=1e-5) if isinstance(one, float) else other == one


def model_of(run_folder, name):
    return load_state(run_folder / "comad" / name / "model.safetensors")


# ---- what fit leaves


def test_fit_leaves_one_file_that_inspects(run):
    inspector = Inspector.load(run / "model.safetensors", build_features("offline"))
    assert inspector.about["training"] == 40
    assert not (run / "artefacts" / "fit" / "kept").exists()


@pytest.mark.slow
def test_fit_in_passes_learns_what_fit_in_one_go_learns(run_folder):
    cli = main(["fit", *SMALL, "--run", "passes"])
    module, data = cli.model, cli.datamodule
    again = Inspector(build_features("offline"), module.inspector.recipe, module.inspector.judgement)
    again.fit([batch["image"] for batch in data.train_dataloader()], [batch["image"] for batch in data.val_dataloader()])
    again.about = module.inspector.about
    same(model_of(run_folder, "passes"), again.state() | {"structural": None})


def test_good_pictures_alone_are_enough_to_fit(run_folder, tmp_path):
    category = write_loco(tmp_path, length=8, val_length=2, test_length=1)
    cli = main(["fit", *SMALL, "--data.source=folder", f"--data.root={category / 'train'}", "--data.size=64", "--run", "good"])
    assert cli.result is None
    assert load_state(run_folder / "comad" / "good" / "model.safetensors")["about"]["validation"] == 1


@pytest.mark.slow
def test_another_fit_keeps_the_numbers_of_components(run, run_folder):
    """Of the same trays with other beginnings of the k-means, so that clusters come in another order."""
    earlier = run / "model.safetensors"
    main(["fit", *SMALL, "--data.length=40", "--model.seed=3", "--model.restarts=4", f"--model.like={earlier}", "--run", "again"])
    centres = [load_state(path)["centres"] for path in (earlier, run_folder / "comad" / "again" / "model.safetensors")]
    nearest = torch.cdist(*centres).argmin(1)
    assert (nearest == torch.arange(len(nearest))).sum() >= len(nearest) - 2


def test_the_dashboard_shows_what_is_logged(run):
    assert validate(PROJECT / "dashboard.yaml").metrics
    summary = json.loads((run / "manifest.json").read_text())["stages"][-1]["summary"]
    wanted = {name for name in validate(PROJECT / "dashboard.yaml").metrics if name.startswith("test/")}
    assert wanted <= {name if name.startswith("test/") else f"test/{name}" for name in summary}


# ---- what a user should know


def test_few_pictures_are_told():
    inspector = Inspector(build_features("offline"))
    for given, expected in (({"length": 6, "val_length": 3}, 2), ({"length": 12, "val_length": 19}, 1), ({"length": 10, "val_length": 20}, 0)):
        data = InspectionData(**given)
        data.setup()
        said = learning.remarks(inspector, data)
        assert len(said) == expected
    data = InspectionData(length=6, val_length=3)
    data.setup()
    said = learning.remarks(inspector, data)
    assert "6 training pictures are few" in said[0]
    assert "the quantile 0.95 of the scores needs 20 good pictures of validation, and there are 3" in said[1]


def test_rules_about_what_is_no_component_end_a_fit_before_anything_is_left(run_folder, capsys):
    """Cluster 0 is the floor of the trays, which the filter leaves out."""
    options = ["fit", *SMALL, "--run", "ruled", "--model.rules", "[0:number:1:1, 1:number:1:1]"]
    message = fails(options, capsys)
    assert "rule about component 0" in message or "rule about component 1" in message
    assert not (run_folder / "comad" / "ruled" / "model.safetensors").exists()


def test_a_fit_that_is_stopped_before_its_threshold_is_known_leaves_no_model(run_folder, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(learning.Calibration, "predict_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert "fit --resume" not in fails(["fit", *SMALL, "--run", "broken"], capsys, 130).partition("go on with")[0]
    assert not (run_folder / "comad" / "broken" / "model.safetensors").exists()
    monkeypatch.setattr(learning.Segmentation, "predict_step", lambda *_: None)
    monkeypatch.setattr(Inspector, "sample", lambda *_: pytest.fail("features were computed again"))
    main(["fit", "--resume", "--run", "broken"])
    assert (run_folder / "comad" / "broken" / "model.safetensors").exists()


# ---- the paper's setting


def test_the_papers_setting_is_the_published_one():
    given = yaml.safe_load((PROJECT / "configs" / "paper.yaml").read_text())
    model = given["model"]
    assert (model["features"], model["size"], given["data"]["size"], given["data"]["source"]) == ("vit_small_patch8_224.dino", 224, 224, "loco")
    assert (model["k"], model["fraction"], model["restarts"], model["crf"], model["filter"]) == (5, 0.01, 10, True, "first")


def paper(root, *options):
    cpu = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--data.num_workers=0"]
    return main(["fit", "--config", "paper", f"--data.root={root}", "--model.restarts=1", "--model.patches=50", *cpu, *options])


def test_the_papers_setting_fits_a_miniature_with_a_small_transformer(tmp_path):
    """Random weights give components that cover corners, or none that is certain: all that matters here is that everything runs."""
    write_loco(tmp_path, length=6, val_length=3, test_length=1, kinds=["missing", "scratch"])
    small = ["--model.features=vit_tiny_patch16_224", "--model.size=64", "--data.size=64", "--model.k=4", "--model.fraction=0.5"]
    cli = paper(tmp_path, *small, "--model.filter=vote", "--model.certainty=0.1")
    assert cli.datamodule.name == "traysim"
    assert cli.model.inspector.crf is not None
    assert len(cli.model.judged) == 3
    assert sorted(key for key in cli.model.overlaps if key[0] == "fused") == [("fused", group) for group in ("good", "logical", "structural")]


@pytest.mark.slow
def test_the_papers_setting_has_the_papers_size(tmp_path):
    write_loco(tmp_path, length=4, val_length=2, test_length=1, kinds=["missing", "scratch"])
    cli = paper(tmp_path, "--model.certainty=0.1", "--model.filter=vote")
    assert cli.model.features.channels == 384
    assert sum(parameter.numel() for parameter in cli.model.features.net.parameters()) == 21_670_272


# ---- going on, and several processes


@pytest.mark.slow
def test_a_killed_fit_goes_on_and_learns_the_same(run_folder, monkeypatch):
    run_until_killed(run_folder, comad_until_killed, ["fit", *SMALL, "--run", "broken"], 2)
    assert not (run_folder / "comad" / "broken" / "model.safetensors").exists()
    observed = []
    sample = Inspector.sample
    monkeypatch.setattr(Inspector, "sample", lambda *arguments: (observed.append(1), sample(*arguments))[1])
    main(["fit", "--resume", "--run", "broken"])
    assert not observed  # what was kept is not made again
    main(["fit", *SMALL, "--run", "whole"])
    same(model_of(run_folder, "broken"), model_of(run_folder, "whole"))


@pytest.mark.slow
def test_what_was_kept_under_other_settings_is_not_taken(run_folder, monkeypatch, capsys):
    monkeypatch.setattr(learning.Segmentation, "predict_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert "fit --resume --run broken" in fails(["fit", *SMALL, "--run", "broken"], capsys, 130).replace(" ".join(SMALL) + " ", "")
    monkeypatch.undo()
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(run_folder))
    main(["fit", "--resume", "--run", "broken", "--model.fraction=0.02"])
    main(["fit", *SMALL, "--run", "whole", "--model.fraction=0.02"])
    same(model_of(run_folder, "broken"), model_of(run_folder, "whole"))


@pytest.mark.slow
def test_two_processes_learn_and_measure_what_one_does(run_folder):
    """Seven pictures of validation, so that one process has more of them than the other."""
    options = ["fit", *SMALL, "--data.val_length=7"]
    run_together(command_line, [*options, "--run", "two"], "comad")
    main([*options, "--run", "one"])
    same(model_of(run_folder, "two"), model_of(run_folder, "one"))
    for name in ("scores", "pictures", "overlap"):
        one, two = (json.loads((run_folder / "comad" / which / "artefacts" / "fit" / f"{name}.json").read_text()) for which in ("one", "two"))
        same(two, one)


# ---- what can go wrong


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """Folders of files in which something is wrong, in the current one."""
    monkeypatch.chdir(tmp_path)
    category = write_loco(tmp_path / "good", length=4, val_length=2, test_length=1, kinds=["missing", "scratch"])
    for name in ("damaged", "sizes", "config", "empty"):
        shutil.copytree(category, tmp_path / name / "traysim")
    (tmp_path / "damaged" / "traysim" / "train" / "good" / "001.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    mask = next((tmp_path / "sizes" / "traysim" / "ground_truth" / "logical_anomalies").rglob("*.png"))
    Image.new("L", (20, 30), 255).save(mask)
    (tmp_path / "config" / "traysim" / "defects_config.json").unlink()
    shutil.rmtree(tmp_path / "empty" / "traysim" / "train")
    (tmp_path / "empty" / "traysim" / "train" / "good").mkdir(parents=True)
    (tmp_path / "hollow").mkdir()
    (tmp_path / "damaged.pth").write_bytes(b"PK damaged")
    (tmp_path / "one" / "train" / "good").mkdir(parents=True)
    shutil.copy(category / "train" / "good" / "000.png", tmp_path / "one" / "train" / "good" / "000.png")
    return tmp_path


def loco(root, *options):
    return ["--data.source=loco", f"--data.root={root}", *options]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model.fusion=prayer"], 2, "model.fusion"),
        (["--model.prayer=1"], 2, "prayer"),
        (["--model.features=prayer"], 1, "prayer"),
        (["--model.features=vit_tiny_patch16_224", "--model.weights=nowhere.pth"], 1, "nowhere.pth"),
        (["--model.features=vit_tiny_patch16_224", "--model.weights=damaged.pth"], 1, "damaged.pth is damaged or no checkpoint"),
        (["--model.weights=damaged.pth"], 1, "offline features have neither weights nor keys"),
        (["--model.features=vit_tiny_patch16_224", "--model.size=100"], 1, "patches of 16 pixels: take a size that is a multiple"),
        (["--model.parts=[logical,prayer]"], 1, "no score 'prayer' to fuse: there are global"),
        (["--model.extensions=[prayer]"], 1, "extensions prayer are not known"),
        (["--model.structural=none", "--model.parts=[patches]"], 1, "no score 'patches' to fuse"),
        (["--model.k=1"], 1, "at least 2 clusters"),
        (["--model.quantile=2"], 1, r"quantile must be in [0, 1], got 2"),
        (["--model.rules=[prayer]"], 1, "rule 'prayer' will not do: write component:measure:low:high"),
        (["--model.component_weights={1: -1}"], 1, "not negative, got {1: -1.0}"),
        (["--model.component_weights={99: 0}"], 1, "there is no component 99: clusters are numbered from 0 to 7"),
        (["--model.rules=[99:number:1:1]"], 1, "there is no component 99"),
        (["--data.root=good"], 1, "data.root is not used with data.source traysim"),
        (["--data.length=1"], 1, "there is one training picture"),
        (["--model.structural=none"], 1, "leave it out of model.parts"),
        (["--model.like=nowhere.safetensors"], 1, "no inspector nowhere.safetensors"),
        (["--model.filter=first", "--model.certainty=1"], 1, "none of 8 clusters is a component: all are without contrast"),
        (["--data.source=prayer"], 1, "data.source 'prayer' is not known; choose one of: traysim"),
        (["--data.source=loco"], 1, "say where they lie with --data.root FOLDER"),
        (loco("nowhere"), 1, "nowhere"),
        (loco("hollow"), 1, "hollow"),
        (loco("empty"), 1, "train/good"),
        (loco("config"), 1, "defects_config.json"),
        (loco("damaged"), 1, "001.png"),
        (loco("sizes"), 1, "has 30 x 20 pixels"),
        (loco("good", "--data.category=screw_bag"), 1, "screw_bag"),
        (["--data.source=folder", "--data.root=one"], 1, "only one training picture"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(wrong, run_folder, capsys, options, code, message):
    assert message in fails(["fit", "--run", "bad", *SMALL, *options], capsys, code)
    assert not (run_folder / "comad" / "bad" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "--inspector=/nowhere.safetensors"], "no inspector /nowhere.safetensors"),
        (["test", "--run=other"], "other"),
        (["inspect", "--inspector=damaged.pth"], "cannot use damaged.pth: it is damaged"),
        (["predict", "nowhere"], "nowhere"),
    ],
)
def test_what_does_not_fit_a_run_is_named(wrong, run, capsys, arguments, message):
    assert message in fails(arguments, capsys)


def test_options_that_a_fitted_model_does_not_take_are_said(run, capsys):
    few = ["--data.test_length=1", "--data.kinds=[fill]"]
    assert main(["test", "--model.fusion=max", "--model.component_weights={3: 0}", *few]).model.inspector.judgement.fusion == "trimmed-z"
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: model.")]
    assert [line.partition(" does not count, for the model was fitted with ")[::2] for line in said] == [
        ("note: model.fusion max", "trimmed-z: fit again, or change how it judges by inspect --set"),
        ("note: model.component_weights {3: 0.0}", "None: fit again, or change how it judges by inspect --set"),
    ]


def test_components_are_not_numbered_like_those_of_other_features(run_folder, tmp_path, capsys):
    """Keys and tokens of a transformer have as many channels, so that their centres could be matched, and mean nothing to each other."""
    trays, recipe = [draw_tray("train", number).image for number in range(4)], Recipe(k=3, fraction=0.5, restarts=1, crf=False, structural=False)
    earlier = Inspector(build_features("vit_tiny_patch16_224", 64, output="keys"), replace(recipe, metrology=MetrologySettings("vote", ())))
    earlier.fit([torch.stack(trays[:3])], [trays[3][None]]).save(tmp_path / "earlier.safetensors")
    like = ["--model.features=vit_tiny_patch16_224", "--model.size=64", "--model.k=3", f"--model.like={tmp_path / 'earlier.safetensors'}"]
    said = fails(["fit", *SMALL, "--run", "again", *like], capsys)
    assert "fitted to features vit_tiny_patch16_224 keys, here they are vit_tiny_patch16_224 tokens: give the same" in said


def test_precisions_in_which_measures_are_others_are_refused(run, capsys):
    """Under 64-true the defects of drawn trays were those of other trays than the pictures."""
    assert "trainer.precision 64-true" in fails(["test", "--trainer.precision=64-true"], capsys)
    assert "trainer.precision bf16-true" in fails(["fit", *SMALL, "--run", "half", "--trainer.precision=bf16-true"], capsys)


def test_a_run_that_was_never_fitted_says_so(run, capsys):
    (run / "model.safetensors").unlink()
    assert "no inspector" in fails(["test"], capsys)


@pytest.mark.slow
def test_an_inspector_of_a_transformer_asks_for_its_weights(run_folder, tmp_path, capsys):
    """The file does not hold them: others are told by their digest."""
    options = ["--model.features=vit_tiny_patch16_224", "--model.size=64", "--model.fraction=0.1", "--model.filter=vote"]
    main(["fit", *SMALL, *options, "--run", "transformer"])
    message = fails(["test", "--inspector", str(run_folder / "comad" / "transformer" / "model.safetensors"), "--model.seed=1"], capsys)
    assert "fitted to other features: digest" in message
    assert "give --model.weights it was fitted with" in message


def test_a_full_disk_is_named_and_leaves_no_half_of_a_model(run_folder, capsys, monkeypatch):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", fill)
    assert "no room left to write" in fails(["fit", *SMALL, "--run", "full"], capsys)
    assert not list((run_folder / "comad").rglob("model.safetensors"))


@pytest.mark.slow
def test_pictures_that_cannot_be_read_can_be_left_out(wrong):
    cli = main(["fit", "--run", "skip", *SMALL, *loco("damaged", "--data.on_bad_file=skip")])
    assert cli.model.inspector.about["training"] == 3
