"""The configurations of the published sets, run on miniatures of their files, and what the command line refuses."""

import json

import pytest
from helpers.layouts import write_cifar10
from helpers.party_sets import write_linnaeus, write_mnist

from projects.cafe.cli import main

QUIET = ["--trainer.enable_model_summary", "false"]
PARAMETERS = 2_993_346
"""Of the authors' nets with four parties, see test_module."""
WRITERS = {
    "paper": lambda root: write_mnist(root / "MNIST" / "raw", 10),
    "cifar10": write_cifar10,
    "linnaeus": lambda root: write_linnaeus(root, (64, 64)),
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_a_published_setting_runs_on_a_miniature_of_its_files(name, tmp_path, run_folder):
    WRITERS[name](tmp_path)
    few = ["--data.root", str(tmp_path), "--data.count", "3", "--data.batch_size", "2"]
    cli = main(["attack", "--config", name, *few, "--steps", "1", *QUIET])
    model = cli.model
    assert [bottom.first.in_features for bottom in model.federation.bottoms] == [2048] * 4
    if name == "paper":
        assert sum(parameter.numel() for parameter in model.federation.parameters()) == PARAMETERS
    report = json.loads((cli.run.artefacts("attack") / "report.json").read_text())
    assert report["figures"]["records"] == 3
    assert {"threat_model", "settings", "schedule", "baselines"} <= report.keys()


def test_the_papers_training_takes_a_step(tmp_path, run_folder):
    WRITERS["paper"](tmp_path)
    few = ["--data.root", str(tmp_path), "--data.count", "3", "--data.batch_size", "2", "--trainer.max_steps", "1"]
    assert main(["fit", "--config", "paper", *few, *QUIET]).trainer.global_step == 1


def test_the_authors_loop_runs_from_the_command_line(run_folder):
    few = ["--data.count", "6", "--data.batch_size", "2", "--model.widths", "[4, 8]", "--model.first", "8"]
    loop = ["--solver", "sgd_adam_single", "--inversion", "reference", "--lr", "1e-6", "--steps", "20", "--model.reference_loss", "true"]
    cli = main(["attack", *few, *loop, *QUIET])
    rows = json.loads((cli.run.artefacts("attack") / "attack.json").read_text())
    assert rows[0]["recovered"] == 6


@pytest.fixture
def table(tmp_path):
    def write(text):
        file = tmp_path / "table.csv"
        file.write_text(text)
        return ["--data.source", "table", "--data.root", str(file), "--data.parties", "2", "--data.count", "null"]

    return write


def failed(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([*args, *QUIET])
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said
    return stop.value.code, said


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["test"], 1, "cafe has no run"),
        (["attack", "--method", "magic"], 2, "magic"),
        (["attack", "--magic", "1"], 2, "magic"),
        (["attack", "--rounds", "0"], 1, "rounds must be at least 1"),
        (["attack", "--schedule", "log.csv"], 1, "no schedule 'log.csv'"),
        (["attack", "--state", "last"], 1, "run fit first"),
        (["attack", "--adaptive"], 1, "undoes fake gradients"),
        (["attack", "--workers", "2"], 1, "set data.parties=1"),
        (["attack", "--method", "batch_norm", "--data.count", "8", "--data.batch_size", "2"], 1, "model.batch_norm=true"),
        (["defend", "--defences", "magic"], 1, "unknown defence 'magic'"),
        (["audit", "--model.bottom", "absent.py:build"], 1, "there is no file absent.py"),
    ],
    ids=["no run", "method", "option", "rounds", "schedule", "state", "adaptive", "workers", "norms", "defence", "net"],
)
def test_wrong_usage_is_told_with_the_mend(args, code, message, run_folder, capsys):
    found, said = failed(capsys, *args)
    assert (found, message in said) == (code, True), said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,x\n3,nan,y\n", "nan"),
        ("a,b,c\n1,2,x\n", "record"),
        ("", "empty"),
        ("a,b,c\n" + "1,2,x\n3,4,x\n" * 4, "has the label x only"),
    ],
    ids=["nan", "one record", "empty", "one label"],
)
def test_tables_that_cannot_be_attacked_are_refused(text, message, table, run_folder, capsys):
    code, said = failed(capsys, "attack", *table(text))
    assert code == 1
    assert message in said


def test_a_checkpoint_of_other_nets_is_refused(run_folder, capsys):
    few = ["--data.count", "6", "--data.batch_size", "2", "--trainer.max_steps", "1"]
    first = main(["fit", "--model.widths", "[4, 8]", "--model.first", "8", *few, *QUIET])
    path = str(first.run.checkpoint("last"))
    code, said = failed(capsys, "attack", "--config", "tiny", "--state", path, "--data.count", "6", "--data.batch_size", "2")
    assert code == 1
    assert "does not fit the model" in said


def test_the_same_seed_gives_the_same_records(run_folder):
    few = ["--data.count", "6", "--data.batch_size", "2", "--steps", "3", "--model.widths", "[4, 8]", "--model.first", "8"]
    one, other = (main(["attack", "--config", "tiny", "--run", name, *few, *QUIET]).run.artefacts("attack") for name in ("one", "other"))
    assert (one / "records.csv").read_text() == (other / "records.csv").read_text()


def test_several_processes_are_refused(run_folder, capsys, monkeypatch):
    monkeypatch.setattr("lightning.pytorch.Trainer.world_size", 2)
    code, said = failed(capsys, "attack")
    assert code == 1
    assert "attack runs in one process" in said
