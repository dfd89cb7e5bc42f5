"""The verb fit: what it leaves, and that it goes on exactly where it stopped."""

import csv

import pytest
import torch

from projects.vafl import fitting
from projects.vafl.cli import main
from projects.vafl.recording import Recorder

PRIVATE = ["--model.protection.std=2", "--model.protection.clip=1", "--model.protection.epsilon=20"]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Figures and pages have their own tests."""
    monkeypatch.setattr("projects.vafl.reporting.draw_training", lambda *_: None)
    monkeypatch.setattr("projects.vafl.reporting.log_figure", lambda *_: None)


def left(run):
    """Return the files of numbers that a fit left."""
    return {name: (run.artefacts("fit") / f"{name}.csv").read_text() for name in ("curve", "trace", "clients")}


def stopped(monkeypatch, arguments, evaluations):
    """Run a command that is interrupted at an evaluation; a checkpoint is written at each before it."""
    plain, seen = Recorder.evaluate, []

    def evaluate(self, *given):
        seen.append(given[0])
        if len(seen) > evaluations:
            raise KeyboardInterrupt
        return plain(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "SAVES_EVERY", 0)
        patch.setattr(Recorder, "evaluate", evaluate)
        with pytest.raises(SystemExit):
            main(arguments)


@pytest.mark.parametrize(
    "options",
    [[], ["--model.protocol.algorithm=t_sync", "--model.protocol.max_age=9", "--model.protocol.order=query_first", *PRIVATE]],
    ids=["async", "private"],
)
def test_a_fit_that_was_stopped_ends_as_one_that_was_not(options, monkeypatch, run_folder):
    arguments = ["fit", "--model.seconds=3", "--model.every=1", *options]
    whole = main([*arguments, "--run=whole"])
    stopped(monkeypatch, [*arguments, "--run=part"], 3)
    part = main([*arguments, "--run=part", "--resume"])
    assert left(part.run) == left(whole.run)
    for one, other in zip(part.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_a_fit_that_has_ended_is_lengthened_or_left_as_it_is(run_folder):
    short = main(["fit", "--model.seconds=2", "--model.every=1", "--run=part"])
    before = left(short.run)
    assert left(main(["fit", "--model.seconds=2", "--model.every=1", "--run=part", "--resume"]).run) == before
    longer = main(["fit", "--model.seconds=3.5", "--model.every=1", "--run=part", "--resume"])
    rows = list(csv.DictReader(left(longer.run)["curve"].splitlines()))
    assert [float(row["seconds"]) for row in rows] == [0, 1, 2, 3, 3.5]


def test_a_number_of_updates_may_end_it_instead_of_seconds(run_folder):
    cli = main(["fit", "--model.seconds=null", "--trainer.max_steps=30", "--model.every=1"])
    rows = list(csv.DictReader(left(cli.run)["curve"].splitlines()))
    assert int(rows[-1]["updates"]) == 30
    assert len(left(cli.run)["trace"].splitlines()) == 31


def test_the_budget_may_end_it(run_folder):
    cli = main(["fit", "--model.seconds=100", "--model.protocol.uploads=all", *PRIVATE])
    rows = list(csv.DictReader(left(cli.run)["curve"].splitlines()))
    assert 0 < float(rows[-1]["seconds"]) < 100
    clients = list(csv.DictReader(left(cli.run)["clients"].splitlines()))
    assert all(19 < float(row["epsilon"]) <= 20 for row in clients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.seconds=null"], "nothing ends the training: set model.seconds, or trainer.max_steps"),
        (["--data.batch_size=2000"], "data.batch_size is 2000, but there are 1437 training records"),
        (["--model.protocol.algorithm=t_sync", "--model.protocol.wait_for=9"], "protocol.wait_for is 9, but there are only 8 clients"),
        (["--model.delays.compute=trace:nowhere.csv"], "no file nowhere.csv: expected a CSV file of delays"),
    ],
    ids=lambda value: value[-1].partition("=")[0].strip("-") if isinstance(value, list) else None,
)
def test_what_users_get_wrong_is_said_without_a_traceback(options, message, run_folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *options])
    said = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert message in " ".join(said.split())
    assert "Traceback" not in said
