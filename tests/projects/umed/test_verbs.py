import csv
import json
import shlex

import numpy as np
import pytest
import torch
from helpers.processes import run_together, run_until_killed
from helpers.runs import copied, made_once
from helpers.segmentation import write_masked_folder
from helpers.workers import command_line, fit_until_killed
from PIL import Image

from projects.umed.cli import main
from projects.umed.data import ProtectionData
from projects.umed.exploiting import Outcome
from projects.umed.protected import read_manifest, read_protected
from projects.umed.tasks import verdict
from shared.dashboards import validate
from shared.runs import REPOSITORY

SMALL = ["--trainer.max_epochs=2", "--data.length=48", "--data.test_length=16", "--trainer.enable_model_summary=false"]
SMALL += ["--trainer.log_every_n_steps=1", "--data.size=32"]
SMALL += ["--model.generator_widths=[4,8]", "--model.surrogate_widths=[4,8]"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training with its protected set; tests copy it."""
    return made_once(tmp_path_factory, main, ["fit", "--run", "short", *SMALL], ["protect"])


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)


def drawn():
    data = ProtectionData(length=48, test_length=16)
    data.setup()
    return data


def test_protect_writes_what_the_generators_make_of_every_image(run):
    data, stored = drawn(), read_protected(run / "artefacts" / "protect" / "set")
    assert len(stored) == len(data.train_set) + len(data.val_set) + len(data.test_set)
    count = len(data.train_set)
    assert [name.partition("/")[0] for name in stored.names[:count]] == ["train"] * count
    change = (stored.images[:count].int() - data.train_set.images.int()).abs()
    assert 0 < change.max() <= 4
    assert torch.equal(stored.mask_bytes[:count], data.train_set.mask_bytes)
    manifest = read_manifest(run / "artefacts" / "protect" / "set")
    assert manifest["mean"]["max_change"] == change.max()
    rows = list(csv.DictReader((run / "artefacts" / "protect" / "quality.csv").open()))
    assert len(rows) == len(stored)


def test_test_says_what_it_measured(run, capsys):
    metrics = main(["test"]).trainer.callback_metrics
    assert f"protected test images: psnr {float(metrics['test/psnr']):.4g}, " in capsys.readouterr().out


def test_verify_reads_the_files_and_compares_with_clean_training(run, capsys):
    result = main(["verify", "--epochs=1"]).result
    assert result.exit_code == int(result.summary["verdict"] != "protected")
    assert result.protected.signature_dice is not None
    assert result.clean.signature_dice is None
    assert len(result.clean.curve) == 1
    assert "DSC on clean test images" in capsys.readouterr().out
    rows = list(csv.DictReader((run / "artefacts" / "verify" / "verification.csv").open()))
    assert [row["set"] for row in rows] == ["clean", "protected"]


@pytest.mark.parametrize(
    ("clean", "protected", "learnt", "expected"),
    [
        (0.9, 0.1, 0.95, "protected"),
        (0.9, 0.5, 0.95, "not protected"),
        (0.9, 0.1, 0.4, "undecided, as the training failed"),
        (0.2, 0.1, 0.95, "undecided, as training on clean images fails as well"),
    ],
)
def test_only_what_clean_images_teach_can_be_protected(clean, protected, learnt, expected):
    def outcome(last):
        return Outcome(last, last, 1, learnt, learnt, last, 1.0, [last], 1.0)

    assert verdict(outcome(clean), outcome(protected), 30) == expected


def test_attack_writes_the_exploiter_and_its_scores(run):
    result = main(["attack", "--defence=blur:1", "--exploiter=attention_unet", "--epochs=1"]).result
    found = json.loads((run / "artefacts" / "attack" / "attention_unet-blur1-0.json").read_text())
    assert found["defence"] == "blur:1"
    assert result.summary["attack/dsc"] == pytest.approx(100 * found["last"], abs=0.01)
    assert (run / "artefacts" / "attack" / "exploiter" / "exploiter.pt").is_file()


def test_a_users_folder_is_protected_at_its_own_size_under_its_names(run, tmp_path):
    root = write_masked_folder(tmp_path / "mine", count=4)
    main(["protect", str(root), "--out", str(tmp_path / "out")])
    for path in sorted((root / "images").rglob("*.png")):
        stored = tmp_path / "out" / "images" / path.relative_to(root / "images")
        before, after = (np.asarray(Image.open(file)).astype(int) for file in (path, stored))
        assert before.shape == after.shape
        assert 0 < abs(before - after).max() <= 4
    assert len(read_manifest(tmp_path / "out")["images"]) == 4


def test_what_is_suggested_goes_on_with_the_users_own_folder(run, tmp_path, capsys):
    def suggested():
        (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
        return shlex.split(line.removeprefix("next: lightning run projects/umed/cli.py "))

    root, out = write_masked_folder(tmp_path / "of mine", count=12), tmp_path / "out"
    main(["protect", str(root), "--out", str(out), "--data.source=folder", '--data.mask_values=["255"]', "--data.on_bad_file=skip"])
    command = suggested()
    given = ["--data.source", "folder", "--data.root", str(root), "--data.mask_values", '["255"]', "--data.on_bad_file", "skip"]
    assert command == ["verify", str(out), *given]
    result = main([*command, "--recipe=quick", "--epochs=1"]).result
    assert result.protected.signature_dice is not None
    assert suggested() == ["attack", *command[1:]]
    main(["protect", "--force"])
    assert suggested() == ["verify"]


def test_a_folder_without_foreground_is_not_published(run, tmp_path, capsys):
    root = write_masked_folder(tmp_path / "mine", count=2)
    for path in (root / "masks").rglob("*.png"):
        Image.new("L", Image.open(path).size).save(path)
    with pytest.raises(SystemExit) as stop:
        main(["protect", str(root), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "the masks of all 2 images are empty" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_red_masks_are_protected_once_their_colour_is_named(run, tmp_path, capsys):
    root = write_masked_folder(tmp_path / "mine", count=2)
    for path in (root / "masks").rglob("*.png"):
        grey = Image.open(path).convert("L")
        Image.merge("RGB", [grey, *[Image.new("L", grey.size)] * 2]).save(path)
    with pytest.raises(SystemExit) as stop:
        main(["protect", str(root), "--out", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert "holds #ff0000 and nothing above half of the scale" in capsys.readouterr().err
    main(["protect", str(root), "--out", str(tmp_path / "out"), "--data.source=folder", '--data.mask_values=["#ff0000"]'])
    assert all(record["max_change"] > 0 for record in read_manifest(tmp_path / "out")["images"])


def test_a_small_bench_is_kept(run_folder):
    options = ["--methods=[umed]", "--exploiters=[unet]", "--defences=[none]", "--seeds=1", "--jobs=1", *SMALL]
    main(["bench", *options, "--trainer.max_epochs=1", "--data.length=16", "--run", "bench"])
    rows = list(csv.DictReader((run_folder / "umed" / "bench" / "artefacts" / "bench" / "bench.csv").open()))
    assert [row["method"] for row in rows] == ["umed"]
    assert all(0 <= float(row["dsc"]) <= float(row["best"]) <= 100 for row in rows)
    main(["bench", "--resume", "--run", "bench", *options[:5]])
    again = list(csv.DictReader((run_folder / "umed" / "bench" / "artefacts" / "bench" / "bench.csv").open()))
    assert again == rows, "the same settings go on"


@pytest.mark.slow
def test_reproduce_makes_every_table(run_folder):
    from projects.umed.reproduction import TABLES

    main(["reproduce", "--quick", "--run", "quick"])
    for name in TABLES:
        assert json.loads((run_folder / "umed" / "quick" / f"results-{name}.json").read_text())["rows"]


def test_what_is_logged_is_on_the_dashboard(run):
    header = next(csv.reader((run / "fit" / "metrics.csv").open()))
    pictures = {path.stem for path in (run / "artefacts" / "fit").iterdir()} | {path.stem for path in (run / "artefacts" / "protect").iterdir()}
    of_verbs = {"verification", "dice", "curve"}  # tested with their verbs
    assert validate(REPOSITORY / "projects" / "umed" / "dashboard.yaml").metrics <= {*header} | pictures | of_verbs


def test_two_processes_follow_one(run_folder):
    options = ["fit", *SMALL, "--model.exchange=0", "--trainer.limit_val_batches=0", "--trainer.limit_test_batches=0"]
    run_together(command_line, [*options, "--run", "two"], "umed")
    main([*options, "--run", "one"])
    losses = []
    for name in ("one", "two"):
        rows = list(csv.DictReader((run_folder / "umed" / name / "fit" / "metrics.csv").open()))
        losses.append([float(row["train/generator_loss"]) for row in rows if row["train/generator_loss"]])
    assert len(losses[0]) == len(losses[1]) > 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_killed_training_resumes_to_the_same_weights(run_folder):
    common = ["fit", *SMALL, "--save_every=1", "--model.augmentations=[blur,flip]"]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken"], "umed", 4)
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    assert resumed.model.iterations == whole.model.iterations == 6
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "/nowhere/at/all"], "no protected set in /nowhere/at/all"),
        (["attack", "--defence=prayer"], "no defence 'prayer'"),
        (["attack", "--exploiter=perceptron"], "exploiter must be one of unet"),
        (["bench", "--methods=[magic]"], "--methods magic: choose among clean"),
        (["bench", "--exploiters=[magic]"], "--exploiters magic: choose among unet"),
        (["protect", "/nowhere/at/all"], "/nowhere/at/all"),
        (["verify", "--data.seed=5"], "protect the same source"),
        (["protect", "/nowhere", '--data.mask_values=["#ff0000"]'], "not ellipses: give --data.source folder too"),
    ],
)
def test_what_is_wrong_is_named_before_any_work(run, capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 1
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
