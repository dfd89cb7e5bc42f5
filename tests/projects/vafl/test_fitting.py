"""The verb fit: what it leaves, and that it goes on exactly where it stopped."""

import csv
from itertools import pairwise

import pytest
import torch

from projects.vafl import fitting
from projects.vafl.cli import main
from projects.vafl.recording import Recorder
from shared.checkpoints import load_checkpoint

SMALL = ["--data.source=breast_cancer"]
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
    arguments = ["fit", "--model.seconds=3", "--model.every=1", "--save_every=1", *options]
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


def test_a_training_goes_on_under_its_own_promise_only(run_folder, capsys):
    short = ["fit", *SMALL, "--model.seconds=1", "--model.every=1", "--run=part"]
    made = main([*short, "--model.protection.std=2", "--model.protection.clip=1"])
    kept = load_checkpoint(made.run.checkpoints / "last.ckpt")["federation"]
    assert (kept["batch"], kept["protection"]["std"], kept["maps_zero_to_zero"]) == (14, 2.0, [True] * 3)
    leftover = made.run.checkpoints / ".last.4711.ckpt"
    leftover.write_bytes(b"half")
    changes = {"model.protection.std": 3, "model.protection.clip": 2, "model.protection.adjacency": "replace", "model.protocol.uploads": "all"}
    changes |= {"model.protection.hidden": "[0.5]", "model.l2": 0.5, "data.batch_size": 9}
    with pytest.raises(SystemExit):
        main([*short, "--resume", *(f"--{name}={value}" for name, value in changes.items())])
    said = " ".join(capsys.readouterr().err.split())
    assert "model.protection.std was 2.0 and is 3.0 now" in said
    assert all(f"{name} was" in said for name in changes)
    assert "or begin anew with another --run" in said
    assert not leftover.exists()
    longer = main([*short, "--resume", "--model.seconds=2", "--model.protection.std=2", "--model.protection.clip=1"])
    assert [float(row["seconds"]) for row in csv.DictReader(left(longer.run)["curve"].splitlines())] == [0, 1, 2]


def test_a_training_that_diverges_says_so_and_leaves_its_curve(run_folder, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *SMALL, "--model.lr=1e30", "--model.seconds=9", "--model.every=1", "--run=wild"])
    told = capsys.readouterr()
    assert stop.value.code == 1
    assert "the training diverged at second 1: lower model.lr, which is 1e+30" in " ".join(told.err.split())
    assert "3 clients, 455 training records: simulating 9 seconds" in told.out
    run = run_folder / "vafl" / "wild"
    assert len(next(run.rglob("curve.csv")).read_text().splitlines()) == 3
    assert not (run / "checkpoints" / "last.ckpt").exists()


def test_checkpoints_are_as_many_updates_apart_as_the_user_says(run_folder, monkeypatch):
    made, plain = [], fitting.save
    monkeypatch.setattr(fitting, "SAVES_EVERY", 0)
    monkeypatch.setattr(fitting, "save", lambda *given: (made.append(given[2]["updates"]), plain(*given)))
    main(["fit", *SMALL, "--model.seconds=8", "--model.every=0.25", "--save_every=12"])
    assert len(made) > 2
    assert all(after - before >= 12 for before, after in pairwise(made[:-1]))


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
