"""The command line: what verbs leave, how trainings go on, and what is said when something is wrong."""

import csv
import errno
import json
import shutil

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from helpers.commands import check_help, failing
from helpers.processes import run_together, run_until_killed
from helpers.workers import command_line, fit_until_killed
from PIL import Image

from projects.hodinet.cli import main
from projects.hodinet.data import SaliencyData
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.tables import HEADINGS
from shared.checkpoints import load_checkpoint
from shared.dashboards import validate
from shared.runs import REPOSITORY

PROJECT = REPOSITORY / "projects" / "hodinet"
QUIET = ["--trainer.max_epochs=1", "--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]
NET = ["--model.widths=[8,12,16,20]", "--model.size=32"]
SMALL = [*QUIET, *NET, "--data.size=32", "--data.length=16", "--data.test_length=6", "--data.batch_size=8"]
FILES = [*QUIET, *NET, "--data.size=32", "--data.batch_size=4"]


def rows_of(path):
    return list(csv.DictReader(path.open()))


def last_of(run_folder, name):
    return load_checkpoint(run_folder / "hodinet" / name / "checkpoints" / "last.ckpt")["state_dict"]


fails = failing(main)


# ---- what verbs leave


def test_fit_leaves_weights_tables_and_pictures(trained):
    artefacts = {path.name for path in (trained / "artefacts" / "fit").iterdir()}
    tables = {f"{name}.{ending}" for name in ("sets", "pictures", "curves_default") for ending in ("csv", "json")}
    assert tables | {"tables.tex", "curves.png", "examples-000001.png", "examples_default.png", "failures_default.png"} == artefacts
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (trained / "report.html").is_file()
    assert set(rows_of(trained / "artefacts" / "fit" / "sets.csv")[0]) == {"set", "protocol", "pictures", *HEADINGS}
    assert json.loads((trained / "manifest.json").read_text())["stages"][-1]["summary"]["trained_on"] == "default"


def test_test_repeats_what_fit_measured(run):
    result = main(["test"]).result
    before = rows_of(run / "artefacts" / "fit" / "sets.csv")
    assert [{name: str(value) for name, value in row.items()} for row in result.rows] == before


def test_what_is_logged_is_on_the_dashboard(trained):
    header = next(csv.reader((trained / "fit" / "metrics.csv").open()))
    artefacts = {path.stem for path in (trained / "artefacts" / "fit").iterdir()}
    summary = set(json.loads((trained / "manifest.json").read_text())["stages"][-1]["summary"])
    of_others = {"robustness", "polarity", "overview", "predictions"}  # tested with their verbs
    assert validate(PROJECT / "dashboard.yaml").metrics <= {*header} | artefacts | summary | of_others | {"examples"}


@pytest.mark.parametrize("verb", ["fit", *(pytest.param(verb, marks=pytest.mark.slow) for verb in ("test", "predict", "robustness", "export"))])
def test_help_explains_every_option(verb, capsys):
    check_help(main, verb, SaliencyDetection, SaliencyData, capsys)


# ---- learning


@pytest.mark.slow
def test_it_learns_more_than_chance(run_folder):
    options = ["--trainer.max_epochs=5", "--data.length=48", "--data.test_length=16", "--data.batch_size=4", "--trainer.enable_model_summary=false"]
    cli = main(["fit", *options])
    measures = {row["protocol"]: row for row in cli.result.rows}["pysod"]
    marked = np.mean([float(one["mask"].float().mean()) for one in cli.datamodule.test_pictures[0]])
    everything = 1.3 * marked / (0.3 * marked + 1)  # F of a map that marks everything
    assert measures["f_max"] > 2 * everything
    logged = [float(row["val/s_measure"]) for row in rows_of(cli.run.path / "fit" / "metrics.csv") if row["val/s_measure"]]
    assert logged[-1] > logged[0] + 0.05


@pytest.mark.slow
def test_one_seed_gives_the_same_numbers(trained, run_folder):
    options = ["--data.length", "48", "--data.test_length", "8", "--trainer.enable_model_summary", "false"]
    main(["fit", "--run", "again", "--trainer.max_epochs", "1", *options])
    before = load_checkpoint(trained / "checkpoints" / "last.ckpt")["state_dict"]
    assert all(torch.equal(value, before[name]) for name, value in last_of(run_folder, "again").items())
    tables = [rows_of(folder / "artefacts" / "fit" / "sets.csv") for folder in (trained, run_folder / "hodinet" / "again")]
    assert tables[0] == tables[1]


# ---- files


def test_pictures_of_several_sizes_are_learnt_and_tested(run_folder, spnet):
    cli = main(["fit", "--run", "files", *FILES, "--data.source=spnet", f"--data.root={spnet}", "--data.augmentation=group"])
    rows = rows_of(run_folder / "hodinet" / "files" / "artefacts" / "fit" / "sets.csv")
    assert [(row["set"], row["pictures"]) for row in rows] == [("NJU2K", "3"), ("NJU2K", "3"), ("my_set", "2"), ("my_set", "2")]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in HEADINGS)
    assert cli.result.summary["trained_on"] == "NJU2K, NLPR"
    assert "trained on NJU2K, NLPR." in (run_folder / "hodinet" / "files" / "artefacts" / "fit" / "tables.tex").read_text()


def test_thermal_pictures_alone_are_learnt(tmp_path, write):
    for split, first in (("Train", 0), ("Test", 20)):
        write(tmp_path / "VT5000" / split, range(1, 7), ("RGB", "T", "GT"), first=first, endings=(".jpg", ".jpg", ".png"))
    options = ["--data.source=auto", f"--data.root={tmp_path}", "--data.modality=thermal", "--model.streams=[depth]"]
    cli = main(["fit", "--run", "thermal", *FILES, *options])
    assert list(cli.model.net.encoders) == ["depth"]
    assert [(row["set"], row["pictures"]) for row in cli.result.rows] == [("VT5000", 6)] * 2


def test_training_pictures_alone_are_enough_to_learn(tmp_path, write, run_folder, capsys):
    write(tmp_path / "TrainDataset", [f"{number:06}_left" for number in range(6)])
    cli = main(["fit", "--run", "alone", *FILES, "--data.source=spnet", f"--data.root={tmp_path}"])
    assert cli.result.rows == []
    assert f"there are no test pictures in {tmp_path}: put some there, as TrainDataset/" in capsys.readouterr().out
    assert (run_folder / "hodinet" / "alone" / "checkpoints" / "best.ckpt").is_file()
    assert "there are no test pictures in" in fails(["test", "--run", "alone"], capsys)


# ---- the paper's setting


def paper_step(write, root, *options):
    """Take a step under the paper's settings on a miniature of the group's own files."""
    names = ("train_images", "train_depth", "train_masks")
    endings = (".jpg", ".png", ".png")
    for first, stem in ((0, "{:06}_left"), (10, "9_03-44-{:02}"), (20, "{:04}")):
        write(root, [stem.format(number) for number in range(4)], names, (64, 64), first, endings)
    tested = ("test_images", "test_depth", "test_masks")
    for first, name in ((30, "DES-RGBD135"), (40, "NJUD"), (50, "STERE-797")):
        write(root / name, ("1", "2"), tested, (64, 64), first, endings)
    short = ["--trainer.max_steps=1", "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.enable_model_summary=false"]
    return main(["fit", "--config", "paper", *short, f"--data.root={root}", "--data.num_workers=0", *options])


def test_the_papers_setting_takes_a_step_with_tiny_encoders(tmp_path, write):
    cli = paper_step(write, tmp_path, "--model.rgb=tiny_transformer", "--model.depth=tiny_cnn", "--model.size=64")
    assert cli.trainer.global_step == 1
    assert [row["set"] for row in cli.result.rows if row["protocol"] == "group256"] == ["NJU2K", "STERE-797", "DES"]
    assert cli.datamodule.size == 64
    assert cli.result.summary["trained_on"] == "NJU2K, NLPR, DUT-RGBD"


@pytest.mark.slow
def test_the_papers_setting_takes_a_step_and_has_its_size(tmp_path, write, capsys):
    cli = paper_step(write, tmp_path, "--model.size=64", "--trainer.limit_test_batches=1")
    assert cli.trainer.global_step == 1
    assert "the pvt_v2_b3 encoder of rgb starts from random weights" in capsys.readouterr().out
    assert sum(parameter.numel() for parameter in cli.model.net.parameters()) == 90_128_776


def test_the_papers_setting_is_the_groups():
    given = yaml.safe_load((PROJECT / "configs" / "paper.yaml").read_text())
    model = given["model"]
    assert (model["lr"], model["weight_decay"], model["gamma"], model["schedule"], model["optimiser"]) == (5e-5, 1e-4, 0.95, "step", "adam")
    assert (model["rgb"], model["depth"], model["fusion"], model["placement"], model["decoder"]) == (
        *("pvt_v2_b3", "resnet101", "high_order", "SSCC", "cascaded"),
    )
    assert (model["loss"], model["size"], given["trainer"]["max_epochs"], given["trainer"]["gradient_clip_val"]) == ("hybrid", 256, 100, 1.0)
    assert (given["data"]["batch_size"], given["data"]["train_sets"], given["data"]["augmentation"]) == (4, "2985", "group")


# ---- going on, and several processes


class StopAt(L.Callback):
    """Stops the training as Ctrl-C does."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 3:
            raise KeyboardInterrupt


def test_a_stopped_training_resumes_to_the_same_weights(run_folder, capsys, monkeypatch):
    common = ["fit", *SMALL, "--trainer.max_epochs=2", "--save_every=1"]
    whole = main([*common, "--run", "whole"])
    fit = L.Trainer.fit
    with monkeypatch.context() as patch:
        patch.setattr(L.Trainer, "fit", lambda trainer, *args, **kwargs: (trainer.callbacks.append(StopAt()), fit(trainer, *args, **kwargs))[1])
        assert "fit --resume --run broken" in fails([*common, "--run", "broken"], capsys, 130)
    resumed = main(["fit", "--resume", "--run", "broken"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 4
    weights = last_of(run_folder, "broken")
    assert all(torch.equal(value, weights[name]) for name, value in last_of(run_folder, "whole").items())
    assert resumed.result.rows == whole.result.rows


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "step"), [(0, 3), (2, 3), (0, 2)], ids=["in an epoch", "with workers", "between epochs"])
def test_a_killed_training_resumes_to_the_same_weights(run_folder, workers, step):
    common = ["fit", *SMALL, "--trainer.max_epochs=2", "--data.augmentation=group", f"--data.num_workers={workers}", "--save_every=1"]
    run_until_killed(run_folder, fit_until_killed, [*common, "--run", "broken"], "hodinet", step)
    resumed = main(["fit", "--resume", "--run", "broken"])
    whole = main([*common, "--run", "whole"])
    assert resumed.trainer.global_step == whole.trainer.global_step == 4
    weights = last_of(run_folder, "broken")
    for name, value in last_of(run_folder, "whole").items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4)  # rounding differs between the processes


@pytest.mark.slow
def test_a_finished_training_goes_on_to_more_epochs(run_folder):
    options = [*SMALL, "--model.schedule=step"]
    main(["fit", "--run", "two", *options])
    longer = main(["fit", "--resume", "--run", "two", "--trainer.max_epochs=2"])
    whole = main(["fit", "--run", "whole", *options, "--trainer.max_epochs=2"])
    assert longer.trainer.global_step == whole.trainer.global_step == 4
    weights = last_of(run_folder, "two")
    for name, value in last_of(run_folder, "whole").items():
        torch.testing.assert_close(weights[name], value, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_measure_what_one_measures(run, spnet):
    """Five pictures of several sizes, so that one process has more of them than the other."""
    options = ["test", "--data.source=spnet", f"--data.root={spnet}"]
    main(options)
    names = ("sets", "pictures", "curves_NJU2K")
    before = [json.loads((run / "artefacts" / "test" / f"{name}.json").read_text()) for name in names]
    shutil.rmtree(run / "artefacts" / "test")
    run_together(command_line, [*options, "--force"], "hodinet")
    for name, rows in zip(names, before, strict=True):
        for row, other in zip(rows, json.loads((run / "artefacts" / "test" / f"{name}.json").read_text()), strict=True):
            assert other == {key: pytest.approx(value, abs=1e-6) for key, value in row.items()}


@pytest.mark.slow
@pytest.mark.parametrize("is_files", [False, True], ids=["scenes", "files"])
def test_two_processes_learn(run_folder, spnet, is_files):
    """Three validation pictures in files, so that one process has more of them than the other."""
    options = [*SMALL, "--data.test_length=7"]
    if is_files:
        files = ["--data.source=spnet", f"--data.root={spnet}", "--data.train_sets=[NJU2K]", "--data.val_fraction=0.5", "--data.batch_size=2"]
        options = [*FILES, *files, "--data.size=64", "--model.size=64"]
    run_together(command_line, ["fit", *options, "--run", "two", "--trainer.max_epochs=2"], "hodinet")
    folder = run_folder / "hodinet" / "two"
    logged = [row for row in rows_of(folder / "fit" / "metrics.csv") if row["val/s_measure"]]
    assert len(logged) == 2
    assert all(0 < float(row["val/s_measure"]) < 1 for row in logged)
    counts = [row["pictures"] for row in rows_of(folder / "artefacts" / "fit" / "sets.csv")]
    assert counts == (["3", "3", "2", "2"] if is_files else ["7", "7"])
    assert all(value.isfinite().all() for value in last_of(run_folder, "two").values())


# ---- what can go wrong


@pytest.fixture
def wrong(tmp_path, write, monkeypatch):
    """Folders of files in which something is wrong, in the current one."""
    monkeypatch.chdir(tmp_path)
    stems = [f"{number:06}_left" for number in range(4)]
    for name in ("good", "damaged", "sizes", "stems", "coloured"):
        write(tmp_path / name / "TrainDataset", stems)
        write(tmp_path / name / "TestDataset" / "SIP", ("1",), first=20)
    (tmp_path / "damaged" / "TrainDataset" / "RGB" / f"{stems[1]}.png").write_bytes(b"\x89PNG\r\n\x1a\n damaged")
    Image.new("L", (20, 30)).save(tmp_path / "sizes" / "TrainDataset" / "GT" / f"{stems[2]}.png")
    (tmp_path / "stems" / "TrainDataset" / "depth" / f"{stems[0]}.png").rename(tmp_path / "stems" / "TrainDataset" / "depth" / "other.png")
    (tmp_path / "empty" / "TrainDataset").mkdir(parents=True)
    for name in ("RGB", "depth", "GT"):
        (tmp_path / "hollow" / "TrainDataset" / name).mkdir(parents=True)
    write(tmp_path / "tests" / "TestDataset" / "SIP", ("1", "2"))
    write(tmp_path / "one" / "TrainDataset", stems[:1])
    (tmp_path / "damaged.pth").write_bytes(b"PK damaged")


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def files(root, *options):
    return ["--data.source=spnet", f"--data.root={root}", "--data.batch_size=2", *options]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model.fusion=prayer"], 2, "model.fusion"),
        slow(["--model.rgb=prayer"], 2, "model.rgb"),
        slow(["--model.decoder=prayer"], 2, "model.decoder"),
        slow(["--model.loss=prayer"], 2, "model.loss"),
        slow(["--model.optimiser=prayer"], 2, "model.optimiser"),
        slow(["--model.streams=[prayer]"], 2, "model.streams"),
        slow(["--model.prayer=1"], 2, "prayer"),
        slow(["--data.variant=prayer"], 2, "data.variant"),
        (["--model.placement=SSX"], 1, "such as SSCC, not 'SSX'"),
        slow(["--model.chunk=-1"], 1, "model.chunk has 1 place at least"),
        slow(["--model.widths=[8,12]"], 1, "width"),
        slow(["--model.size=16"], 1, "model.size must be at least 32 pixels, got 16"),
        (["--data.size=16"], 1, "data.size must be at least 32 pixels, got 16"),
        slow(["--data.batch_size=64"], 1, "data.batch_size 64 is larger than the training set of 16 samples"),
        slow(["--data.test_sets=[prayer]"], 1, "name variants with data.source scenes"),
        slow(["--data.source=prayer"], 1, "data.source 'prayer' is not known; choose one of: scenes"),
        slow(["--model.rgb=pvt_v2_b0", "--model.rgb_weights=nowhere.safetensors"], 1, "nowhere.safetensors"),
        (["--model.rgb=pvt_v2_b0", "--model.rgb_weights=damaged.pth"], 1, "damaged.pth is damaged or no checkpoint"),
        slow(["--model.rgb=pvt_v2_b0", "--model.rgb_weights=pretrained"], 1, "never from the network: give the path of a"),
        slow(["--data.source=spnet"], 1, "say where they lie with --data.root FOLDER"),
        (files("nowhere"), 1, "no folder nowhere: correct data.root"),
        slow(files("empty"), 1, "no pictures with depth and masks in empty (there: TrainDataset); expected"),
        slow(files("hollow"), 1, "hollow"),
        slow(files("good", "--data.source=vst"), 1, "(it holds spnet); expected"),
        (files("tests"), 1, "tests holds test pictures only: put training pictures there"),
        slow(files("one"), 1, "NJU2K has only one picture, so that none can be held out"),
        (files("damaged"), 1, "damaged/TrainDataset/RGB/000001_left.png"),
        slow(files("sizes"), 1, "has 30 x 20 pixels (height x width), its picture"),
        slow(files("stems"), 1, "000000_left.png has no depth map of its stem"),
        slow(files("good", "--data.train_sets=2985"), 1, "data.train_sets names NLPR, DUT-RGBD, but these have training pictures: NJU2K"),
        slow(files("good", "--data.invert=[LFSD]"), 1, "data.invert names LFSD, but the sets are"),
        slow(files("good", "--data.batch_size=16"), 1, "data.batch_size 16 is larger than the training set of 3 samples"),
        slow(["--trainer.max_epochs=-1"], 1, "model.schedule onecycle falls to its end"),
    ],
)
def test_what_is_wrong_is_named_before_any_training(wrong, run_folder, capsys, options, code, message):
    assert message in fails(["fit", "--run", "bad", *SMALL, *options], capsys, code)
    assert not (run_folder / "hodinet" / "bad").exists()


def test_a_training_that_diverges_says_so(run_folder, capsys):
    assert "the training diverged before step 2: lower model.lr" in fails(["fit", "--run", "bad", *SMALL, "--model.lr=1e30"], capsys)
    assert not (run_folder / "hodinet" / "bad" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["test", "--ckpt_path=/nowhere.ckpt"], 1, "/nowhere.ckpt"),
        (["test", "--model.fusion=add"], 1, "does not fit the model that the settings describe"),
        slow(["test", "--model.placement=CCSS"], 1, "does not fit the model that the settings describe"),
        slow(["test", "--run=other"], 1, "other"),
        slow(["test", "--data.test_sets=[prayer]"], 1, "name variants with data.source scenes"),
    ],
)
def test_what_does_not_fit_a_run_is_named(run, capsys, arguments, code, message):
    assert message in fails(arguments, capsys, code)
    assert not (run / "artefacts" / "test").exists()


def test_a_full_disk_is_named_and_leaves_no_half_of_a_table(run, capsys, monkeypatch):
    def fill(writer, *_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(csv.DictWriter, "writerows", fill)
    assert "No space left on device" in fails(["test"], capsys)
    assert not list((run / "artefacts").glob("test/*.csv*"))


@pytest.mark.slow
def test_pictures_that_do_not_go_together_can_be_left_out(wrong):
    for name in ("sizes", "stems", "damaged"):
        cli = main(["fit", "--run", name, *FILES, *files(name, "--data.on_bad_file=skip")])
        assert len(cli.datamodule.train_set) + len(cli.datamodule.val_set) == 3
