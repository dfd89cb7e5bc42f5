"""The command line: what verbs leave, how trainings go on, and what is said when something is wrong."""

import csv
import json

import pytest
import torch
import yaml
from helpers.commands import check_help, failing
from helpers.manipulation_sets import save_mask, save_picture, write_casia_v1, write_casia_v2, write_coverage, write_folder
from helpers.processes import run_together, run_until_killed
from helpers.runs import copied, made_once
from helpers.workers import command_line, fit_until_killed

from projects.tripinet.cli import main
from projects.tripinet.data import ManipulationData
from projects.tripinet.module import ManipulationLocalisation
from shared.checkpoints import load_checkpoint
from shared.dashboards import validate
from shared.runs import REPOSITORY

PROJECT = REPOSITORY / "projects" / "tripinet"
QUIET = ["--trainer.max_epochs=1", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
SMALL = [*QUIET, "--model.channels=8", "--model.width=8", "--data.size=32", "--data.length=16", "--data.test_length=6", "--data.batch_size=8"]
SMALL += ["--data.test_sets=[noise,control]"]
MEASURES = {"pixel_f1", "pixel_f1_best", "pixel_f1_dataset", "pixel_threshold_dataset", "pixel_auc", "pixel_iou", "pixel_mcc", "pixel_accuracy"}
MEASURES |= {"pooled_f1", "pooled_auc", "image_auc", "image_f1", "image_accuracy", "image_sensitivity", "image_specificity", "image_f1_mvss"}
MEASURES |= {"combined_f1", "combined_f1_mvss", "detected", "false_alarms", "pixel_ece", "undefined_auc", "images"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training; tests copy it."""
    return made_once(tmp_path_factory, main, ["fit", "--run", "short", *SMALL])


@pytest.fixture
def run(trained, run_folder):
    """The short training as this test's latest run."""
    return copied(trained, run_folder)


def rows_of(path):
    return list(csv.DictReader(path.open()))


def decision_of(path):
    return {name: value for name, value in load_checkpoint(path)["state_dict"].items() if name.startswith("decision.")}


fails = failing(main)


# ---- what verbs leave


def test_fit_leaves_weights_with_a_decision_and_a_table_of_every_measure(trained):
    rows = rows_of(trained / "artefacts" / "fit" / "sets.csv")
    assert [row["set"] for row in rows] == ["noise", "control"]
    assert set(rows[0]) >= MEASURES
    headline = json.loads((trained / "manifest.json").read_text())["stages"][-1]["summary"]
    assert headline["test/pixel_auc"] == pytest.approx(float(rows[0]["pixel_auc"]), abs=1e-4), "the control is not what is claimed"
    assert {"by_kind.csv", "examples-000001.png", "examples_noise.png", "sets.json"} <= {
        file.name for file in (trained / "artefacts" / "fit").iterdir()
    }
    best, last = (decision_of(trained / "checkpoints" / f"{name}.ckpt") for name in ("best", "last"))
    assert int(best["decision.counts"][0]) == 1, "one authentic picture of six"
    assert all(torch.equal(value.nan_to_num(), last[name].nan_to_num()) for name, value in best.items()), "of the same epoch"
    assert (trained / "report.html").is_file()


def test_test_repeats_what_fit_measured_and_adds_trufors_measure(run):
    result = main(["test", "--trufor"]).result
    before = rows_of(run / "artefacts" / "fit" / "sets.csv")
    for row, old in zip(result.rows, before, strict=True):
        assert {name: str(row[name]) for name in ("pixel_f1", "pixel_auc", "image_auc")} == {
            name: old[name] for name in ("pixel_f1", "pixel_auc", "image_auc")
        }
        assert {"trufor_f1", "trufor_f1_best"} <= row.keys() - old.keys()


def test_what_is_logged_is_on_the_dashboard(trained):
    header = next(csv.reader((trained / "fit" / "metrics.csv").open()))
    artefacts = {path.stem for path in (trained / "artefacts" / "fit").iterdir()}
    summary = set(json.loads((trained / "manifest.json").read_text())["stages"][-1]["summary"])
    of_others = {"robustness", "overview", "predictions", "by_size"}  # tested with their verbs; where there are regions of several sizes
    assert validate(PROJECT / "dashboard.yaml").metrics <= {*header} | artefacts | summary | of_others | {"examples"}


@pytest.mark.parametrize("verb", ["fit", pytest.param("predict", marks=pytest.mark.slow), pytest.param("reproduce", marks=pytest.mark.slow)])
def test_help_explains_every_option(verb, capsys):
    check_help(main, verb, ManipulationLocalisation, ManipulationData, capsys)


# ---- the user's own pictures


def test_fit_test_and_predict_work_on_pictures_of_ones_own(run_folder, tmp_path):
    write_folder(tmp_path / "mine", 0, 8, authentic=4)
    write_folder(tmp_path / "others", 40, 2)
    save_picture(tmp_path / "tiny.bmp", 60, (20, 24))
    save_mask(tmp_path / "tiny_mask.png", (20, 24))
    save_picture(tmp_path / "real.gif", 61)
    entries = [["tiny.bmp", "tiny_mask.png"], ["real.gif", "Negative"], ["others/Tp/41.png", "others/Gt/41_gt.png"]]
    (tmp_path / "check.json").write_text(json.dumps(entries))
    options = ["--data.source=lists", f"--data.root={tmp_path}", "--data.train=mine", "--data.val=others", "--data.test_sets=[check.json]"]
    main(["fit", "--run", "own", *SMALL[:-1], *options, "--data.augmentation=benco", "--data.batch_size=4"])
    folder = run_folder / "tripinet" / "own"
    [row] = rows_of(folder / "artefacts" / "fit" / "sets.csv")
    assert (row["set"], row["images"]) == ("check", "3.0")
    formats = {row["format"]: row for row in rows_of(folder / "artefacts" / "fit" / "by_format.csv")}
    assert set(formats) == {"bmp", "gif", "png"}
    assert formats["gif"]["pixel_f1"] == "", "nothing of it is manipulated"
    assert 0 <= float(formats["bmp"]["pixel_f1"]) <= 1, "smaller than the network's least size"
    assert main(["test"]).result.rows[0]["images"] == 3
    assert len(main(["predict", str(tmp_path / "others" / "Tp")]).result.rows) == 2


# ---- the paper's setting


def write_sets(root):
    write_casia_v2(root / "casia_v2")
    write_casia_v1(root / "casia_v1")
    write_coverage(root / "coverage")
    return [f"--data.root={root}", "--data.test_sets=[casia_v1,coverage]"]


def paper_step(root, *options):
    """Take a step under the paper's settings."""
    short = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_model_summary=false"]
    return main(["fit", "--config", "paper", *short, *write_sets(root), "--data.size=64", "--data.batch_size=2", "--data.num_workers=0", *options])


def test_the_papers_setting_takes_a_step_with_a_tiny_encoder(tmp_path):
    cli = paper_step(tmp_path, "--model.encoder=tiny", "--model.channels=8", "--model.width=8")
    assert cli.trainer.global_step == 1
    assert [row["set"] for row in cli.result.rows] == ["casia_v1", "coverage"]


@pytest.mark.slow
def test_the_papers_setting_takes_a_step_and_has_its_size(tmp_path, capsys):
    cli = paper_step(tmp_path, "--trainer.limit_test_batches=1")
    assert cli.trainer.global_step == 1
    assert "the resnet50 encoders start from random weights" in capsys.readouterr().out
    parameters = sum(parameter.numel() for parameter in cli.model.net.parameters())
    of_resnet = 23_508_032  # without its classifier
    encoders = 3 * of_resnet + (9 - 3) * 64 * 49  # the first convolution of the noise stream sees nine maps
    assert sum(parameter.numel() for stream in cli.model.net.streams for parameter in stream.encoder.parameters()) == encoders
    assert parameters == PARAMETERS


PARAMETERS = 72_296_248
"""Of the full-size network."""


def test_the_papers_setting_is_the_groups():
    given = yaml.safe_load((PROJECT / "configs" / "paper.yaml").read_text())
    assert (given["model"]["lr"], given["model"]["weight_decay"], given["model"]["gamma"], given["model"]["schedule"]) == (1e-4, 1e-4, 0.95, "step")
    assert (given["trainer"]["max_epochs"], given["trainer"]["gradient_clip_val"], given["data"]["size"]) == (100, 1.0, 256)
    assert given["model"]["streams"] == ["rgb", "srm", "dct_corner"]
    assert (given["model"]["fusion"], given["model"]["decoder"], given["seed_everything"]) == ("gcmda", "pise", 42)


# ---- going on, and several processes


@pytest.mark.parametrize(
    ("workers", "step"),
    [(0, 3), pytest.param(2, 3, marks=pytest.mark.slow), pytest.param(0, 2, marks=pytest.mark.slow)],
    ids=["in an epoch", "with workers", "between epochs"],
)
def test_a_killed_training_resumes_to_the_same_weights(run_folder, workers, step):
    options = ["--trainer.max_epochs=2", "--data.test_sets=[noise]", "--data.augmentation=benco", "--data.per_set=8", "--data.batch_size=4"]
    common = ["fit", *SMALL, *options, f"--data.num_workers={workers}", "--save_every=1"]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken"], "tripinet", step)
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 4
    last = [load_checkpoint(run_folder / "tripinet" / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("broken", "whole")]
    for name, weight in last[1].items():
        torch.testing.assert_close(last[0][name], weight, atol=1e-5, rtol=1e-4, equal_nan=True)  # rounding differs between the processes


@pytest.mark.slow
def test_a_finished_training_goes_on_to_more_epochs(run_folder):
    main(["fit", "--run", "two", *SMALL, "--model.schedule=step"])
    longer = main(["fit", "--resume", "--run", "two", "--trainer.max_epochs=2"])
    whole = main(["fit", "--run", "whole", *SMALL, "--model.schedule=step", "--trainer.max_epochs=2"])
    assert longer.trainer.global_step == whole.trainer.global_step == 4
    for name, weight in whole.model.state_dict().items():
        torch.testing.assert_close(longer.model.state_dict()[name], weight, atol=1e-5, rtol=1e-4, equal_nan=True)


def test_a_new_training_begins_with_a_trained_network(run, capsys):
    best = run / "checkpoints" / "best.ckpt"
    tuned = main(["fit", "--run", "tuned", *SMALL, f"--begin_with={best}", "--model.lr=1e-9"])
    assert tuned.trainer.global_step == 2, "unlike a training that goes on, whose epochs were over"
    assert ("val/pixel_f1 was 0 in every epoch" in capsys.readouterr().out) == (float(tuned.trainer.checkpoint_callback.best_model_score) == 0)
    before, after = (load_checkpoint(path)["state_dict"] for path in (best, tuned.run.checkpoints / "best.ckpt"))
    for name, weight in before.items():
        if name.endswith("weight"):
            torch.testing.assert_close(after[name], weight, atol=1e-6, rtol=0)


@pytest.mark.slow
def test_two_processes_learn_and_decide_as_one(run_folder):
    """In double precision: Adam makes as much of the rounding of a gradient that is nearly nothing as of any other."""
    options = ["fit", *SMALL, "--model.norm=group", "--trainer.max_epochs=2", "--data.test_length=7", "--trainer.precision=64-true"]
    run_together(command_line, [*options, "--run", "two"], "tripinet")
    main([*options, "--run", "one"])
    one, two = (load_checkpoint(run_folder / "tripinet" / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=1e-5, rtol=1e-5, equal_nan=True)
    tables = [rows_of(run_folder / "tripinet" / name / "artefacts" / "fit" / "sets.csv") for name in ("one", "two")]
    for row, other in zip(*tables, strict=True):
        assert row["images"] == other["images"] == "7.0"
        assert all(float(other[name]) == pytest.approx(float(row[name]), abs=1e-6) for name in ("pixel_f1", "pixel_auc", "image_auc"))


# ---- what can go wrong


OWN = ["--data.source=lists", "--data.root=.", "--data.test_sets=[others]"]


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """A folder of sets and lists in which something is wrong, as the current one."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "mine", 0, 6)
    write_folder(tmp_path / "others", 40, 2)
    (tmp_path / "empty").mkdir()
    for name in ("unequal", "sizes", "damaged"):
        write_folder(tmp_path / name, 50, 3)
    (tmp_path / "unequal" / "Gt" / "51_gt.png").unlink()
    save_mask(tmp_path / "sizes" / "Gt" / "51_gt.png", (20, 25))
    (tmp_path / "damaged" / "Tp" / "51.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "missing.json").write_text('[["mine/Tp/0.png", "mine/Gt/0_gt.png"], ["mine/Tp/99.png", "Negative"]]')
    (tmp_path / "fields.txt").write_text("mine/Tp/0.png mine/Gt/0_gt.png\n")
    (tmp_path / "real.json").write_text(json.dumps([[f"mine/Tp/{number}.png", "Negative"] for number in range(6)]))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "others.json").write_text('[["../others/Tp/40.png", "Negative"]]')
    (tmp_path / "damaged.pth").write_bytes(b"PK damaged")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model.streams=[rgb,prayer]"], 1, "no stream 'prayer': choose among rgb, srm"),
        (["--model.fusion=prayer"], 2, "model.fusion"),
        slow(["--model.decoder=prayer"], 2, "model.decoder"),
        slow(["--model.encoder=prayer"], 2, "model.encoder"),
        slow(["--model.loss=prayer"], 2, "model.loss"),
        slow(["--model.prayer=1"], 2, "prayer"),
        slow(["--model.norm=frozen", "--model.encoder=resnet18"], 1, "give weights, or choose the norm group"),
        slow(["--model.encoder=resnet18", "--model.weights=nowhere.safetensors"], 1, "nowhere.safetensors"),
        (["--model.encoder=resnet18", "--model.weights=damaged.pth"], 1, "damaged.pth is damaged or no checkpoint"),
        slow(["--data.size=36", "--data.align=true"], 1, "data.size must be at least 32, and a multiple of 8 with data.align, got 36"),
        slow(["--data.size=200"], 1, "size must be from 16 to 150 pixels, got 200"),
        slow(["--data.kinds=[prayer]"], 1, "data.kinds holds prayer"),
        slow(["--data.test_sets=[prayer]"], 1, "no forgery 'prayer'"),
        slow(["--data.per_set=0"], 1, "data.per_set must be at least 1, got 0"),
        (["--data.per_set=4"], 1, "data.batch_size 8 is larger than an epoch of 4 pictures"),
        slow(["--data.source=mvss"], 1, "say where they lie with --data.root FOLDER"),
        slow(["--data.source=mvss", "--data.root=nowhere"], 1, "nowhere"),
        slow([*OWN, "--data.train=nowhere"], 1, "nowhere does not exist"),
        (["--data.source=lists", "--data.root=.", "--data.train=mine"], 1, "data.test_sets"),
        (["--data.train=mine"], 1, "procedural has its own"),
        slow([*OWN, "--data.train=empty"], 1, "expected empty/Tp/<name>.*"),
        slow([*OWN, "--data.train=unequal"], 1, "3 images in unequal/Tp, but 2 masks in unequal/Gt"),
        (["--data.train=sizes", *OWN], 1, "resize it with data.mask_fix: true"),
        (["--data.train=damaged", *OWN], 1, "damaged/Tp/51.png"),
        slow(["--data.train=missing.json", *OWN], 1, "1 files that missing.json names are missing:"),
        slow(["--data.train=fields.txt", *OWN], 1, "fields.txt, line 1:"),
        (["--data.train=real.json", *OWN], 1, "validation pictures is manipulated; by them the best epoch and the threshold are chosen"),
        slow(["--data.train=real.json", "--data.val=mine", "--data.on_leak=keep", *OWN], 1, "training pictures is manipulated; add some"),
        slow(["--data.train=mine", *OWN, "--data.test_sets=[others,lists/others.json]"], 1, "are called others: rename one"),
        slow(["--data.train=mine", *OWN, "--data.test_sets=[mine]"], 1, "share something with test pictures"),
        slow(["--data.train=mine", *OWN, "--data.batch_size=64"], 1, "data.batch_size 64 is larger than an epoch of"),
        slow(["--data.source=prayer"], 1, "data.source 'prayer' is not known; choose one of: procedural"),
    ],
)
def test_what_is_wrong_is_named_before_any_training(wrong, run_folder, capsys, options, code, message):
    assert message in fails(["fit", "--run", "bad", *SMALL[:-1], *options], capsys, code)
    assert not (run_folder / "tripinet" / "bad").exists()


def test_a_training_that_diverges_says_so(run_folder, capsys):
    assert "the training diverged before step 2: lower model.lr" in fails(["fit", "--run", "bad", *SMALL, "--model.lr=1e30"], capsys)
    assert not (run_folder / "tripinet" / "bad" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["test", "--ckpt_path=/nowhere.ckpt"], 1, "/nowhere.ckpt"),
        (["test", "--model.alpha=0.2"], 1, "was trained with model.alpha 0.1, not 0.2"),
        (["test", "--model.channels=16"], 1, "does not fit the model that the settings describe"),
        slow(["predict"], 2, "path"),
        slow(["predict", "/nowhere"], 1, "/nowhere"),
        slow(["robustness", "--degradations=[prayer]"], 1, "prayer"),
        slow(["test", "--run=other"], 1, "other"),
    ],
)
def test_what_does_not_fit_a_run_is_named(run, capsys, arguments, code, message):
    assert message in fails(arguments, capsys, code)


@pytest.mark.slow
def test_masks_of_another_size_can_be_mended_or_left_out(wrong):
    for option in ("--data.mask_fix=true", "--data.on_bad_file=skip"):
        cli = main(["fit", "--run", option[7:11], *SMALL[:-1], *OWN, "--data.train=sizes", "--data.batch_size=1", option])
        assert len(cli.datamodule.train_set) + len(cli.datamodule.val_set) == (3 if "fix" in option else 2)
