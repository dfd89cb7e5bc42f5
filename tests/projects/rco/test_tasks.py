"""Where routes are found, and what teach, fit and test leave behind and go on with."""

import csv
import json
import os
import shutil

import lightning as L
import pytest
import torch
from helpers.commands import failing
from helpers.distilling import EPOCHS, SHORT, SMALL, network_of, record, world
from scipy.special import rel_entr, softmax
from sklearn.metrics import accuracy_score

from projects.rco.anchors import ROUTE, Route
from projects.rco.cli import main
from projects.rco.module import RouteDistillation
from projects.rco.tasks import find_route, own_route
from projects.rco.teaching import Teacher
from shared.checkpoints import load_checkpoint
from shared.runs import Run

fails = failing(main)


# ---- finding a route


@pytest.fixture
def some(run_folder, teacher):
    """Return a function that makes a run with a route of a verb, the newest one."""
    times = iter(range(10**9, 2 * 10**9))

    def make(name, verb=None):
        run = Run(run_folder / "rco" / name)
        run.path.mkdir(parents=True)
        if verb:
            shutil.copytree(teacher.folder, run.artefacts(verb) / "anchors")
            os.utime(run.artefacts(verb) / "anchors" / "route.json", (now := next(times), now))
        return run

    return make


@pytest.mark.parametrize("verb", ["fit", "teach", "collect"])
def test_a_run_has_the_route_that_a_verb_left_in_it(some, verb):
    run, other = some("one", verb), some("other")
    assert own_route(run) == find_route(None, run) == run.artefacts(verb) / "anchors"
    assert find_route(None, other) is None
    assert find_route("one", other) == run.artefacts(verb) / "anchors"


def test_latest_is_the_newest_run_with_a_route_but_for_the_own_one(some):
    old, new = some("b", "teach"), some("a", "fit")
    own, _ = some("c", "fit"), some("d")
    assert find_route("latest", own) == new.artefacts("fit") / "anchors"
    assert find_route("latest", new) == own.artefacts("fit") / "anchors"
    shutil.rmtree(own.path)
    assert find_route("latest", new) == old.artefacts("teach") / "anchors"


def test_latest_stays_what_it_was_when_the_student_began(some):
    old, own, _ = some("old", "teach"), some("own"), some("new", "teach")
    followed = own.artefacts("fit") / "route.txt"
    followed.parent.mkdir(parents=True)
    followed.write_text(f"{own_route(old)}\n")
    assert find_route("latest", own) == own_route(old)
    assert find_route("new", own).parents[2].name == "new", "another one that is named is taken"


def test_a_folder_is_a_route(some, teacher, monkeypatch):
    run = some("run", "teach")
    assert find_route(str(teacher.folder), run) == teacher.folder.resolve()
    monkeypatch.chdir(teacher.folder.parent)
    assert find_route(teacher.folder.name, run) == teacher.folder.resolve()


def test_where_there_is_no_route_those_that_there_are_are_named(some):
    one, own = some("one", "teach"), some("own", "teach")
    for text in ("prayer", "own"):
        with pytest.raises(FileNotFoundError, match=rf"no route '{text}': .*\(there are: one\); `teach` makes one"):
            find_route(text, own)
    with pytest.raises(FileNotFoundError, match=r"\(there are: none\)"):
        find_route("latest", some("x") if not shutil.rmtree(own.path) and not shutil.rmtree(one.path) else None)


# ---- what is left


def test_teach_leaves_every_state_and_a_table_of_them(runs):
    route = Route.load(runs / "teacher" / "artefacts" / "teach" / "anchors")
    assert route.is_complete
    assert route.epochs == [1, 2, 3, 4]
    assert (route.about["class_names"], route.about["division"]) == (["even", "odd"], None)
    rows = json.loads((runs / "teacher" / "artefacts" / "teach" / "states.json").read_text())
    assert [row["epoch"] for row in rows] == route.epochs
    assert [row["val/accuracy"] for row in rows] == pytest.approx([route.accuracy()[epoch] for epoch in route.epochs])
    stage = json.loads((runs / "teacher" / "manifest.json").read_text())["stages"][-1]
    assert stage["summary"]["states"] == 4
    assert stage["summary"]["megabytes"] == pytest.approx(4 * (10 * 32 + 32 + 32 * 2 + 2) * 4 / 1e6, abs=0.002)
    assert not (runs / "teacher" / "checkpoints").exists(), "a teacher is not taken for a student"
    assert not (runs / "teacher" / "artefacts" / "teach" / "resume").exists()


def test_fit_leaves_the_student_its_figures_and_the_way_it_went(runs):
    run = runs / "student"
    route = Route.load(runs / "teacher" / "artefacts" / "teach" / "anchors")
    assert (run / "artefacts" / "fit" / "route.txt").read_text().strip().endswith("teacher/artefacts/teach/anchors")
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"last.ckpt"}
    rows = list(csv.DictReader((run / "fit" / "metrics.csv").open()))
    assert [float(row["train/anchor"]) for row in rows if row["train/anchor"]] == [2, 2, 4, 4]
    module = RouteDistillation.load_from_checkpoint(run / "checkpoints" / "last.ckpt", weights_only=True).eval()
    data = world()
    data.setup()
    batch = next(iter(data.ordered("test")))
    own, final = module(batch["input"]).detach().double(), network_of(route, 4)(batch["input"]).detach().double()
    [row] = json.loads((run / "artefacts" / "fit" / "student.json").read_text())
    assert row["accuracy"] == pytest.approx(accuracy_score(batch["label"], own.argmax(1)), abs=1e-6)
    assert row["teacher's accuracy"] == pytest.approx(accuracy_score(batch["label"], final.argmax(1)), abs=1e-6)
    assert row["congruence loss"] == pytest.approx(rel_entr(softmax(final.numpy(), 1), softmax(own.numpy(), 1)).sum(1).mean(), abs=1e-6)
    summary = json.loads((run / "manifest.json").read_text())["stages"][-1]["summary"]
    assert summary["test/accuracy"] == pytest.approx(row["accuracy"], abs=1e-4)


def test_test_repeats_what_fit_measured(runs, capsys):
    [before] = json.loads((runs / "student" / "artefacts" / "fit" / "student.json").read_text())
    [row] = main(["test"]).result.rows
    assert row == {name: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value for name, value in before.items()}
    assert "| student | accuracy | congruence loss |" in capsys.readouterr().out


def test_a_student_is_tested_without_its_route(runs, capsys):
    shutil.rmtree(runs / "teacher")
    followed = runs / "student" / "artefacts" / "fit" / "route.txt"
    followed.write_text("/gone\n")
    [row] = main(["test"]).result.rows
    assert set(row) == {"student", "accuracy"}
    assert "not compared with its teacher: no route in /gone" in capsys.readouterr().out


# ---- going on


class StopAt(L.Callback):
    """Stops a training as Ctrl-C does, after a step of a module."""

    def __init__(self, kind, step):
        self.kind, self.step = kind, step

    def on_train_batch_end(self, trainer, module, *_):
        if isinstance(module, self.kind) and trainer.global_step == self.step:
            raise KeyboardInterrupt


def broken(arguments, capsys, kind, step):
    """Run a command that is stopped; returns what it says."""
    fit = L.Trainer.fit
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            L.Trainer, "fit", lambda trainer, *args, **kwargs: (trainer.callbacks.append(StopAt(kind, step)), fit(trainer, *args, **kwargs))[1]
        )
        return fails(arguments, capsys, 130)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The last checkpoint and the route of a training of both, in one run, that was not stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_RUNS", str(tmp_path_factory.mktemp("whole")))
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr("shared.report.build_report", lambda folder: None)
        cli = main(["fit", "--run=whole", *SHORT])
    return load_checkpoint(cli.run.checkpoints / "last.ckpt"), Route.load(cli.run.artefacts("fit") / "anchors"), cli.result.rows, cli.run.path


def rows_of(path):
    return list(csv.DictReader(path.open()))


@pytest.mark.parametrize(
    ("kind", "step", "every"),
    [
        pytest.param(Teacher, 6, 1, id="teacher, in an epoch"),
        pytest.param(Teacher, 8, 1, id="teacher, at an epoch's end", marks=pytest.mark.slow),
        pytest.param(Teacher, 2, 3, id="teacher, before its first state", marks=pytest.mark.slow),
        pytest.param(RouteDistillation, 10, 1, id="student, in an epoch"),
        pytest.param(RouteDistillation, 12, 5, id="student, steps after its checkpoint", marks=pytest.mark.slow),
        pytest.param(RouteDistillation, 2, 3, id="student, before its checkpoint", marks=pytest.mark.slow),
    ],
)
def test_fit_goes_on_in_the_phase_in_which_it_was_stopped(whole, run_folder, capsys, kind, step, every):
    said = broken(["fit", "--run=broken", f"--save_every={every}", *SHORT], capsys, kind, step)
    assert "--resume --run broken" in said
    run = run_folder / "rco" / "broken"
    assert (run / "checkpoints" / "last.ckpt").exists() == (kind is RouteDistillation and step > every)
    cli = main(["fit", "--resume", "--run=broken"])
    last, route, rows, folder = whole
    again = load_checkpoint(run / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in last["state_dict"].items())
    assert cli.result.rows == rows
    found = Route.load(run / "artefacts" / "fit" / "anchors")
    assert found.is_complete
    assert [state.epoch for state in found.history] == [1, 2, 3, 4]
    assert all(torch.equal(value, found.tensors(epoch)[name]) for epoch in route.epochs for name, value in route.tensors(epoch).items())
    for phase, column in (("teach", "val/accuracy"), ("fit", "val/congruence"), ("fit", "train/anchor")):
        curves = [[float(row[column]) for row in rows_of(one / phase / "metrics.csv") if row.get(column)] for one in (run, folder)]
        assert len(curves[1]) == 4
        assert curves[0] == pytest.approx(curves[1], rel=1e-6)
    assert not (run / "artefacts" / "fit" / "resume").exists()


def test_teach_goes_on_where_it_was_stopped(runs, capsys):
    said = broken(["teach", "--run=broken", "--save_every=1", *SHORT], capsys, Teacher, 9)
    assert "--resume --run broken" in said
    folder = runs / "broken" / "artefacts" / "teach" / "anchors"
    assert Route.load(folder).epochs == [1, 2]
    assert not Route.load(folder).is_complete
    assert "was stopped after epoch 2: go on with it by `teach --resume --run broken`" in fails(["fit", "--model.route=broken", *SHORT], capsys)
    main(["teach", "--resume", "--run=broken"])
    found, route = Route.load(folder), Route.load(runs / "teacher" / "artefacts" / "teach" / "anchors")
    assert found.is_complete
    assert all(torch.equal(value, found.tensors(epoch)[name]) for epoch in route.epochs for name, value in route.tensors(epoch).items())


@pytest.mark.slow
def test_a_finished_fit_is_not_trained_again(runs, monkeypatch):
    last = load_checkpoint(runs / "student" / "checkpoints" / "last.ckpt")
    monkeypatch.setattr(RouteDistillation, "training_step", lambda *_: pytest.fail("it was trained again"))
    cli = main(["fit", "--resume", "--run=student"])
    again = load_checkpoint(runs / "student" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, again["state_dict"][name]) for name, value in last["state_dict"].items())
    assert cli.result.rows


def test_a_diverged_teacher_leaves_no_complete_route(run_folder, capsys):
    said = fails(["teach", "--run=bad", *SHORT, "--model.teaching.lr=1e20"], capsys)
    assert "the training diverged" in said
    place = run_folder / "rco" / "bad" / "artefacts" / "teach" / "anchors"
    assert not (place / ROUTE).exists() or not json.loads((place / ROUTE).read_text())["complete"]


@pytest.mark.slow
def test_a_teacher_of_another_program_teaches_through_fit(run_folder, tmp_path):
    route = record(tmp_path / "route", world(), "mlp_32")
    cli = main(["fit", "--run=it", f"--model.route={route.folder}", *SMALL, "--trainer.max_epochs=2", "--model.walk={choice: explicit, epochs: [3]}"])
    assert load_checkpoint(cli.run.checkpoints / "last.ckpt")["walk"]["anchors"] == [3, EPOCHS]


# ---- before a teacher is trained


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.walk.anchors=9"], "store more states, or take them all by walk.choice one_by_one"),
        (["--model.walk.choice=explicit", "--model.walk.epochs=[30]"], "walk.epochs names 30"),
        (["--model.walk.choice=lr_drop"], "the teacher's learning rate never fell"),
        (
            ["--model.recording.every=4", "--model.walk.anchors=3"],
            "store more states, or take them all by walk.choice one_by_one",
        ),
        (["--model.loss.kind=kd+hint", "--model.loss.hint_stage=5"], "loss.hint_stage is 5"),
    ],
    ids=["anchors", "explicit", "lr_drop", "recording", "hint"],
)
def test_what_would_fail_after_the_teacher_fails_before_it(run_folder, capsys, options, message):
    assert message in fails(["fit", "--run=early", *SHORT, *options], capsys)
    assert not list((run_folder / "rco").glob("early/artefacts/fit/anchors/*"))
