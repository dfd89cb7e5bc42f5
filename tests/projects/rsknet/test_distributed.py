"""Two processes validate, calibrate and test as one does."""

import csv
import json

import pytest
from helpers.processes import run_together
from helpers.workers import command_line

from projects.rsknet.cli import main


def lists(folder, verb):
    return json.loads((folder / "artefacts" / verb / "lists.json").read_text())


def agree(rows, others):
    for row, other in zip(rows, others, strict=True):
        assert row == {name: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for name, value in other.items()}


@pytest.mark.slow
def test_two_processes_calibrate_and_test_as_one(run):
    """Recordings enough for one batch, of which each process gets a part."""
    run_together(command_line, ["calibrate", "--data.batch_size=50"], "rsknet")
    run_together(command_line, ["test", "--durations=[0.5]"], "rsknet")
    two = lists(run, "test")
    agree(lists(run, "calibrate"), two[:4])
    main(["test", "--durations=[0.5]", "--force"])
    agree(lists(run, "test"), two)
    for row, other in zip(lists(run, "fit"), two[:4], strict=True):
        assert other["eer"] == pytest.approx(row["eer"], abs=1e-4)


@pytest.mark.slow
def test_two_processes_learn_and_validate_the_same_numbers(run_folder, small):
    """One step at a learning rate of almost 0: batch norms see half of the batch each, and everything else is equal."""
    options = [*small, "--trainer.max_epochs=1", "--model.lr=1e-12", "--model.spec_augment=true"]
    run_together(command_line, ["fit", *options, "--run", "two"], "rsknet")
    main(["fit", *options, "--run", "one"])
    for name in ("one", "two"):
        rows = list(csv.DictReader((run_folder / "rsknet" / name / "fit" / "metrics.csv").open()))
        errors = [float(row["val/eer"]) for row in rows if row["val/eer"]]
        assert len(errors) == 1
        assert 0 < errors[0] < 1
    tables = [lists(run_folder / "rsknet" / name, "fit") for name in ("one", "two")]
    assert [row["trials"] for row in tables[0]] == [row["trials"] for row in tables[1]]
