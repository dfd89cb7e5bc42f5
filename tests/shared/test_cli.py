import csv
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.toy import write_toy

from shared.arguments import named
from shared.checkpoints import load_checkpoint


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    return write_toy(tmp_path)


def failed(toy, capsys, *args, code=1):
    with pytest.raises(SystemExit) as stop:
        toy.main(list(args))
    assert stop.value.code == code
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


@pytest.mark.reports
def test_fit_makes_the_run_folder(toy, run_folder):
    cli = toy.main(["fit", "--run", "first"])
    run = run_folder / "toy_paper" / "first"
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    assert (run_folder / "toy_paper" / "latest").read_text() == "first\n"
    assert (run / "report.html").is_file()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"] == {"lr": 0.2, "width": 1}  # the number of points is told anew by the data
    assert settings["data"]["seed"] == 0  # interpolated, and stored as the value it had
    [stage] = json.loads((run / "manifest.json").read_text())["stages"]
    assert stage["status"] == "done"
    assert stage["summary"]["val/loss"] == pytest.approx(cli.trainer.callback_metrics["val/loss"].item(), abs=1e-6)
    assert "checkpoints/last.ckpt" in stage["outputs"]
    rows = list(csv.DictReader((run / "fit" / "metrics.csv").open()))
    assert any(row["val/loss"] for row in rows)


def test_every_verb_works_on_what_fit_left(toy, run_folder, capsys):
    toy.main(["fit", "--model.width=1", "--model.lr=0.3"])
    assert toy.main(["test"]).model.hparams["lr"] == 0.3  # the run's settings, not those of tiny.yaml
    assert toy.main(["slope", "--digits", "1"]).result == pytest.approx(2.0, abs=0.3)
    last = str(run_folder / "toy_paper" / (run_folder / "toy_paper" / "latest").read_text().strip() / "checkpoints" / "last.ckpt")
    assert toy.main(["slope", last]).result == pytest.approx(2.0, abs=0.3)  # a bare value is the verb's first own option


def test_flags_win_over_configurations_left_to_right(toy):
    cli = toy.main(["fit", "--config", "slow", "--model.lr", "0.15", "--trainer.max_epochs=1"])
    assert cli.model.hparams["lr"] == 0.15
    assert cli.trainer.max_epochs == 1


def test_interpolation_sees_the_flags(toy):
    assert toy.main(["fit", "--seed_everything", "5", "--trainer.max_epochs=1"]).datamodule.seed == 5


def test_seeds_reproduce(toy):
    weights = [toy.main(["fit", "--run", name]).model.state_dict() for name in ("a", "b")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_finished_verb_is_not_done_again(toy, capsys):
    toy.main(["fit"])
    toy.main(["test"])
    capsys.readouterr()
    toy.main(["test"])
    assert "was done already" in capsys.readouterr().out
    toy.main(["fit", "--resume", "--trainer.max_epochs=5"])
    capsys.readouterr()
    toy.main(["test"])  # the weights are others
    assert "test is done" in capsys.readouterr().out
    toy.main(["test", "--force"])
    assert "test is done" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["test"], "toy_paper has no run .* `lightning run projects/toy_paper/cli.py fit`"),
        (["fit", "--config", "absent"], "no configuration 'absent'.*slow, tiny"),
        (["fit", "--data.source", "moon"], "data.source 'moon' is not known; choose one of: line: points on"),
        (["fit", "--data.source", "file"], "--data.root FOLDER"),
        (["fit", "--data.source", "file", "--data.root", "nowhere"], "no points in nowhere: expected nowhere/points.pt"),
        (["fit", "--data.batch_size", "64"], "batch_size 64 is larger than the training set of 40 samples"),
        (["fit", "--data.batch_size", "0"], "batch_size must be at least 1"),
        (["fit", "--run", "../x"], "run name '../x' will not do"),
        (["fit", "--resume"], "has no run"),
        (["fit", "--wandb", "sometimes"], "wandb mode 'sometimes' is not known"),
    ],
)
def test_messages(toy, capsys, args, message, tmp_path, monkeypatch, run_folder):
    import re

    monkeypatch.chdir(tmp_path)
    assert re.search(message, failed(toy, capsys, *args), re.DOTALL)
    assert not [path for path in run_folder.rglob("*") if path.is_file()]


def test_wrong_usage_exits_with_2(toy, capsys):
    assert "lrr" in failed(toy, capsys, "fit", "--model.lrr", "1", code=2)
    assert "fast" in failed(toy, capsys, "fit", "--model.lr", "fast", code=2)


def test_a_used_run_name_is_refused_or_replaced(toy, capsys):
    toy.main(["fit", "--run", "mine", "--trainer.max_epochs=1"])
    assert "the run toy_paper/mine exists" in failed(toy, capsys, "fit", "--run", "mine")
    assert toy.main(["fit", "--run", "mine", "--force"]).trainer.current_epoch == 4
    assert "no run 'other'" in failed(toy, capsys, "test", "--run", "other")


def test_a_checkpoint_of_another_shape_is_described(toy, capsys, tmp_path):
    toy.main(["fit"])
    text = failed(toy, capsys, "test", "--model.width", "3")
    assert "layer.weight: the network has (1, 3), the file (1, 1)" in text
    assert "no checkpoint gone.ckpt: the run toy_paper/" in failed(toy, capsys, "test", "--ckpt_path", "gone.ckpt")


def test_weights_of_another_project_are_named_and_those_elsewhere_are_taken(toy, run_folder, capsys, tmp_path):
    run = toy.main(["fit", "--run", "first"]).run.path
    other = run_folder / "other_paper" / "first"
    shutil.copytree(run, other)
    (other / "manifest.json").write_text((run / "manifest.json").read_text().replace("toy_paper", "other_paper"))
    (other / "config.yaml").write_text("model: {depth: 3}\n")
    text = failed(toy, capsys, "test", "--ckpt_path", str(other / "checkpoints" / "last.ckpt"))
    assert "last.ckpt is of a run of other_paper: give --ckpt_path the weights of a run of toy_paper" in text

    shutil.copytree(run / "checkpoints", tmp_path / "loose" / "checkpoints")
    assert toy.main(["test", "--ckpt_path", str(tmp_path / "loose" / "checkpoints" / "last.ckpt")]).run.path == run
    moved = shutil.copytree(run, tmp_path / "archive" / "copy")
    assert toy.main(["test", "--ckpt_path", str(moved / "checkpoints" / "last.ckpt")]).run.path == moved


def test_a_damaged_checkpoint_is_named(toy, capsys):
    cli = toy.main(["fit"])
    (cli.run.checkpoints / "best.ckpt").write_bytes(b"not a checkpoint")
    assert "best.ckpt is damaged" in failed(toy, capsys, "test")


def test_a_run_that_fails_at_once_leaves_no_trace(toy, capsys, run_folder):
    first = toy.main(["fit"]).run.name
    failed(toy, capsys, "fit", "--data.batch_size", "64")
    assert (run_folder / "toy_paper" / "latest").read_text().strip() == first
    assert sorted(path.name for path in (run_folder / "toy_paper").iterdir()) == sorted([first, "latest"])


def test_bugs_are_told_from_mistakes(toy, capsys):
    toy.main(["fit"])
    text = failed(toy, capsys, "explode")
    assert "RuntimeError: a bug" in text
    assert "--debug" in text
    with pytest.raises(RuntimeError, match="a bug"):
        toy.main(["explode", "--debug"])


def test_help_explains_the_options(toy, capsys):
    with pytest.raises(SystemExit) as stop:
        toy.main(["slope", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "digits after the point" in text
    assert "learning rate." in text
    with pytest.raises(SystemExit):
        toy.main(["--help"])
    assert "Print the slope of a trained line." in capsys.readouterr().out


def test_resuming_keeps_the_curve_and_ends_the_same(toy, run_folder):
    whole = toy.main(["fit", "--run", "whole", "--trainer.log_every_n_steps=1"])
    toy.main(["fit", "--run", "parts", "--trainer.max_steps=7", "--trainer.log_every_n_steps=1", "--save_every=3"])
    parts = toy.main(["fit", "--run", "parts", "--resume", "--trainer.max_steps=-1"])
    assert all(torch.equal(value, parts.model.state_dict()[key]) for key, value in whole.model.state_dict().items())
    curves = [(run_folder / "toy_paper" / name / "fit" / "metrics.csv").open() for name in ("whole", "parts")]
    steps = [[(row["step"], row["train/loss"]) for row in csv.DictReader(curve) if row["train/loss"]] for curve in curves]
    assert len(steps[0]) == 20
    assert steps[0] == steps[1]


def test_a_finished_training_goes_on_and_knows_its_best_epoch(toy):
    whole = toy.main(["fit", "--run", "whole", "--trainer.max_epochs=4"])
    short = toy.main(["fit", "--run", "parts", "--trainer.max_epochs=2"])
    states = load_checkpoint(short.run.checkpoints / "last.ckpt")["callbacks"]
    (known,) = (state["best_model_score"] for name, state in states.items() if name.startswith("ModelCheckpoint"))
    assert known == short.trainer.checkpoint_callback.best_model_score
    parts = toy.main(["fit", "--run", "parts", "--resume", "--trainer.max_epochs=4"])
    assert all(torch.equal(value, parts.model.state_dict()[key]) for key, value in whole.model.state_dict().items())
    assert parts.trainer.checkpoint_callback.best_model_score == whole.trainer.checkpoint_callback.best_model_score


def as_script(toy, monkeypatch, *args):
    """Run the command as a process does, and return the exit code."""
    monkeypatch.setattr(sys, "argv", ["cli.py", *args])
    try:
        toy.main()
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.mark.reports
def test_the_result_of_a_verb_decides_the_exit_code(toy, monkeypatch, capsys, run_folder):
    toy.main(["fit", "--run", "line"])
    for code in (0, 2):
        assert as_script(toy, monkeypatch, "judge", "--code", str(code)) == code
        assert "judge is done" in capsys.readouterr().out
    assert as_script(toy, monkeypatch, "judge", "--code", "2") == 2  # as the first time
    assert "judge was done already with these settings and weights, with exit code 2: " in capsys.readouterr().out
    assert as_script(toy, monkeypatch, "judge", "--code", "2", "--force") == 2
    assert as_script(toy, monkeypatch, "slope", "--digits", "1") == 0
    cli = toy.main(["judge", "--code", "1"])
    assert (cli.exit_code, cli.result.exit_code) == (1, 1)  # who calls main with arguments looks for himself
    stage = json.loads((run_folder / "toy_paper" / "line" / "manifest.json").read_text())["stages"][-1]
    assert (stage["status"], stage["exit_code"], stage["summary"]["verdict"]) == ("done", 1, "crooked")
    assert "crooked" in (run_folder / "toy_paper" / "line" / "report.html").read_text()


def test_a_launcher_is_told_the_exit_code_by_one_process(toy, monkeypatch, tmp_path):
    told = tmp_path / "exit_code"
    monkeypatch.setenv("TOUCHSTONE_EXIT_CODE_FILE", str(told))
    toy.main(["fit"])
    for local_rank, expected in (("1", None), ("0", "2")):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        assert as_script(toy, monkeypatch, "judge", "--code", "2") == 0  # a failing process would have the others stopped
        assert (told.read_text() if told.exists() else None) == expected


def test_settings_beside_a_model_from_outside_are_not_read_by_an_independent_verb(toy, capsys, tmp_path, run_folder):
    (tmp_path / "line.pt").touch()
    (tmp_path / "config.yaml").write_text("trainer: {max_epochs: 1}\nmodel: {lr: 7}\n")
    judged = toy.main(["judge", str(tmp_path / "line.pt"), "--run", "judged"])
    assert judged.model.hparams["lr"] == 0.2
    assert yaml.safe_load((run_folder / "toy_paper" / "judged" / "config.yaml").read_text())["model"]["lr"] == 0.2  # the new run's own
    assert "--resume with a model from outside goes on in a run of its own" in failed(toy, capsys, "judge", str(tmp_path / "line.pt"), "--resume")


def test_an_interrupted_verb_says_how_to_go_on(toy, capsys, tmp_path, run_folder):
    (tmp_path / "line.pt").touch()
    text = failed(toy, capsys, "judge", str(tmp_path / "line.pt"), "--code", "130", "--run", "stopped", code=130)
    assert f"go on with: lightning run projects/toy_paper/cli.py judge {tmp_path}/line.pt --code 130 --resume --run stopped" in text
    [stage] = json.loads((run_folder / "toy_paper" / "stopped" / "manifest.json").read_text())["stages"]
    assert stage["status"] == "interrupted"


def test_files_are_named_or_matched_by_a_pattern(tmp_path, monkeypatch):
    for name in ("b/1.jpg", "a/2.jpg", "a/1.jpg", "a/3.png", "[x].jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert named(f"{tmp_path}/*/*.jpg") == [tmp_path / name for name in ("a/1.jpg", "a/2.jpg", "b/1.jpg")]
    assert named("~/a") == [tmp_path / "a"]
    assert named(tmp_path / "[x].jpg") == [tmp_path / "[x].jpg"]  # what is there is meant
    assert named("nowhere/*.jpg") == [Path("nowhere/*.jpg")]


def test_the_data_tell_the_model_what_it_needs_to_know(toy, run_folder):
    assert toy.main(["fit", "--run", "first"]).model.hparams["points"] == 40
    assert toy.main(["test"]).model.hparams["points"] == 40


def test_a_verb_that_begins_a_run_works_in_the_one_that_is_there(toy, run_folder):
    first = toy.main(["measure", "--model.lr", "0.3"])
    assert first.result == 40.0
    assert (run_folder / "toy_paper" / "latest").read_text().strip() == first.run.name
    again = toy.main(["measure", "--scale", "2"])
    assert (again.result, again.run.path, again.model.hparams["lr"]) == (80.0, first.run.path, 0.3)
    fitted = toy.main(["fit"])
    assert toy.main(["measure"]).run.path == fitted.run.path


def test_a_configuration_or_a_new_name_begins_another_run(toy, run_folder, capsys):
    first = toy.main(["measure", "--run", "one"])
    assert first.run.name == "one"
    assert toy.main(["measure", "--run", "two", "--model.lr", "0.3"]).run.name == "two"
    slow = toy.main(["measure", "--config", "slow", "--run", "three"])
    assert (slow.run.name, slow.model.hparams["lr"]) == ("three", 0.01)
    assert toy.main(["measure", "--run", "two"]).model.hparams["lr"] == 0.3
    assert "the run toy_paper/one exists" in failed(toy, capsys, "measure", "--config", "slow", "--run", "one")


def test_a_verb_is_done_again_when_a_file_of_the_run_that_it_reads_has_changed(toy):
    run = toy.main(["measure"]).run
    assert toy.main(["measure"]).result is None
    for text in ("one", "two"):
        (run.path / "notes.txt").write_text(text)
        assert [toy.main(["measure"]).result for _ in range(2)] == [40.0, None]


def test_a_verb_that_changes_what_it_finds_is_done_whenever_it_is_asked_for(toy):
    toy.main(["fit"])
    first, second = (toy.main(["slope"]).result for _ in range(2))
    assert second == first is not None


def test_a_run_that_failed_as_it_began_leaves_nothing(toy, run_folder, capsys):
    assert "is not known" in failed(toy, capsys, "measure", "--data.source", "circle")
    assert not (run_folder / "toy_paper" / "latest").exists()


def test_another_word_in_place_of_a_file_is_another_task(toy, run_folder, capsys, tmp_path):
    toy.main(["measure"])
    assert toy.main(["measure", "--how", "slowly"]).result == 40.0
    assert toy.main(["measure", "--how", "slowly"]).result is None
    assert "was done already" in capsys.readouterr().out
    file = tmp_path / "how.txt"
    file.write_text("slowly")
    assert toy.main(["measure", "--how", str(file)]).result == 40.0
    assert toy.main(["measure", "--how", str(file)]).result is None
    file.write_text("quickly")
    assert toy.main(["measure", "--how", str(file)]).result == 40.0


def test_a_file_that_a_setting_names_counts_with_what_it_holds(toy, run_folder, tmp_path):
    file = tmp_path / "net.py"
    file.write_text("one")
    for root in (str(file), f"{file}:build"):
        assert toy.main(["measure", "--data.root", root]).result == 40.0
        assert toy.main(["measure", "--data.root", root]).result is None
        file.write_text(file.read_text() + " more")
        assert toy.main(["measure", "--data.root", root]).result == 40.0


def test_a_training_that_is_over_is_not_gone_on_with(toy, run_folder, capsys):
    toy.main(["fit", "--run", "first"])
    weights = str(run_folder / "toy_paper" / "first" / "checkpoints" / "last.ckpt")
    assert "is over: to train on, set trainer.max_epochs" in failed(toy, capsys, "fit", "--ckpt_path", weights)
    epochs = toy.main(["fit", "--ckpt_path", weights, "--trainer.max_epochs", "5"]).trainer.current_epoch
    assert epochs == 5
