"""The verb `route`: the states that a teacher passed through, how hard they are for a student, and what each does alone."""

from __future__ import annotations

import copy
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, ModelSummary
from torch.utils.data import Dataset

from projects.rco.anchors import ROUTE, Route
from projects.rco.choosing import choose, listed
from projects.rco.figures import draw_gap, draw_hardness, draw_route
from projects.rco.greedy import hardness, next_anchor
from projects.rco.judging import Answers, congruence, measures
from projects.rco.sets import labels_of
from projects.rco.tasks import find_route, own_route
from projects.rco.walking import Walk
from shared.callbacks import ResumePoint
from shared.data.selection import evenly_spaced
from shared.jobs import kept
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.quiet import silence
from shared.results import markdown
from shared.runs import digest, remove
from shared.seeding import derive_seed

if TYPE_CHECKING:
    from projects.rco.data import DistillationData
    from projects.rco.module import RouteDistillation
    from shared.cli import ProjectTrainer

Rows = list[dict[str, Any]]
Ratios = dict[int, dict[int, float]]
"""r_ij by teacher epochs i and j."""

SHOWN = 20
"""Most states that are printed; the table on the disk has all."""
COMPARED = ("eei", "interval", "lr_drop", "phase", "random")
"""Choices that need no student."""
GAP_NAMES = {
    "state": "taught by state",
    "teacher_accuracy": "its accuracy",
    "accuracy": "student's accuracy",
    "congruence": "congruence loss to it",
    "final_congruence": "to the final state",
}
"""Headings of the gap table."""


@dataclass(frozen=True)
class Diagnosed:
    """What `route` found.

    Attributes:
        states: a row a stored state.
        ratios: r_ij of the states compared, but for the final i.
        choices: teacher epochs that each choice picks, where it applies.
        gaps: a row a state that taught a student alone, if that was asked for.
    """

    states: Rows
    ratios: Ratios
    choices: dict[str, list[int]]
    gaps: Rows = field(default_factory=list)

    @property
    def summary(self) -> dict[str, Any]:
        """What heads the run's page."""
        chosen = {f"route/{name}": listed(epochs) for name, epochs in self.choices.items() if name in ("greedy", "eei", "phase")}
        return {"route/states": len(self.states)} | chosen


def diagnose(
    trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, candidates: int = 8, gap: bool = False, epochs: int | None = None
) -> Diagnosed:
    """Print and write a route, what each choice of anchors picks of it, and how hard its states are for a student as the model options describe it.

    Args:
        trainer: the trainer, with its run.
        module: a student that is not trained yet; copies of it are trained.
        data: with samples held out of training, on which students are judged.
        candidates: states compared, at least 2: fewer where fewer are stored, or a student has fewer epochs.
        gap: whether to train a student on each of them alone, too.
        epochs: of each student; None takes the trainer's.

    Raises:
        FileNotFoundError: if there is no route.
        ValueError: if there are no two states to compare, or no samples are held out and students are to be trained on each.
    """
    route = module.route = _route(trainer, module)
    length = epochs or trainer.max_epochs or 0
    compared = compared_states(route.epochs, candidates, length)
    data.prepare_data()
    data.setup()
    if data.held_set is None and gap:
        raise ValueError("route --gap judges students on samples held out of training, and there are none: set data.held_out, such as 0.1")
    states = describe(route)
    _say(trainer, markdown([states[place] for place in evenly_spaced(len(states), SHOWN)]))
    if data.held_set is None:
        return _described(trainer, module, states)
    students = _Students(trainer, module, data, length)
    ratios = students.hardness(compared)
    path = walk_greedily(ratios, module.walk.delta)
    choices, remarks = choices_of(route, module.walk, module.hparams.seed)
    choices["greedy"] = path
    gaps = students.gap(compared) if gap else []
    found = Diagnosed(states, ratios, choices, gaps)
    _report(trainer, module, found, remarks)
    students.forget()
    return found


def _described(trainer: ProjectTrainer, module: RouteDistillation, states: Rows) -> Diagnosed:
    """Print and write what a route tells without any student."""
    route = module.route
    assert route is not None
    choices, remarks = choices_of(route, module.walk, module.hparams.seed)
    if trainer.is_global_zero:
        rows = [{"choice": name, "anchors": listed(choices.get(name, [])), "note": remarks.get(name, "")} for name in COMPARED]
        print(markdown(rows))
        log_table(trainer, "states", states)
        log_table(trainer, "choices", rows)
        log_figure(trainer, "route", draw_route(route, choices.get("eei", [])))
        print("hardness is judged on samples held out of training, and there are none: train teacher and student with data.held_out, such as 0.1")
    return Diagnosed(states, {}, choices)


def _route(trainer: ProjectTrainer, module: RouteDistillation) -> Route:
    folder = find_route(module.hparams.route, trainer.run)
    if folder is None:
        raise FileNotFoundError(f"the run {trainer.run.name} has no route: name a run or a folder with one by --model.route, or make one with teach")
    return Route.load(folder)


def compared_states(stored: Sequence[int], candidates: int, epochs: int) -> list[int]:
    """Choose stored states at equal distances, from the first to the final one.

    Args:
        stored: rising teacher epochs of the stored states.
        candidates: states to choose, at least 2; fewer where fewer are stored.
        epochs: of the student, of which each state must teach one.

    Raises:
        ValueError: if two cannot be chosen.
    """
    count = min(candidates, len(stored), epochs)
    if count < 2:
        given = f"candidates {candidates}, {len(stored)} stored, {epochs} student epochs"
        raise ValueError(f"route compares at least 2 states, each of which teaches a student for an epoch or more: got {given}")
    return [stored[place * (len(stored) - 1) // (count - 1)] for place in range(count)]


def describe(route: Route) -> Rows:
    """Return a row a stored state: epoch, learning rate, accuracy and size in megabytes."""
    accuracy, sizes = route.accuracy(), [(route.folder / state.file).stat().st_size for state in route.states]
    return [
        {"epoch": state.epoch, "learning rate": state.lr, "accuracy": accuracy.get(state.epoch), "MB": size / 1e6}
        for state, size in zip(route.states, sizes, strict=True)
    ]


def choices_of(route: Route, walk: Walk, seed: int) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Return the anchors of each choice that applies to a route, and of the others why they do not, in a few words."""
    found: dict[str, list[int]] = {}
    remarks: dict[str, str] = {}
    for name in COMPARED:
        try:
            found[name] = choose(Walk(name, anchors=walk.anchors, interval=walk.interval), route, seed)  # type: ignore[arg-type]
        except ValueError as error:
            remarks[name] = re.split(r"[;:] ", str(error).removeprefix(f"walk.choice {name}: "))[0]
    return found, remarks


def walk_greedily(ratios: Mapping[int, Mapping[int, float]], delta: float) -> list[int]:
    """Walk a matrix of r_ij as the greedy search does: the anchors that it picks, from the first state to the final one."""
    final = max(next(iter(ratios.values())))
    path = [next(iter(ratios))]
    while path[-1] != final:
        path.append(next_anchor(ratios[path[-1]], path[-1], delta))
    return path


# ---- students


class Hardness(L.Callback):
    """Notes, when an anchor has done teaching, the student's congruence losses to it and to all later ones.

    Attributes:
        losses: see `RouteDistillation.congruences`, by teacher epochs i and j.
    """

    def __init__(self) -> None:
        self.losses: Ratios = {}

    def state_dict(self) -> dict[str, Any]:
        return {"losses": self.losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.losses = {i: dict(row) for i, row in state_dict["losses"].items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(trainer.current_epoch, cast("RouteDistillation", pl_module))  # a run that goes on after a leg's last step has no other start

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(trainer.current_epoch, cast("RouteDistillation", pl_module))

    def _note(self, epoch: int, module: RouteDistillation) -> None:
        """Judge the student as the leg before this epoch left it; the module then puts the guide to its anchor, as callbacks come first."""
        legs = module.lessons.scheduler.legs
        if not (done := [leg for leg in legs if leg.stop <= epoch]) or done[-1].anchor in self.losses:
            return
        self.losses[done[-1].anchor] = module.congruences([leg.anchor for leg in legs[len(done) - 1 :]])


class Gap(L.Callback):
    """Judges a student, when it has been trained, beside the state that taught it and beside the final one.

    Attributes:
        row: see `projects.rco.figures.draw_gap`.
    """

    def __init__(self) -> None:
        self.row: dict[str, Any] = {}

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        module = cast("RouteDistillation", pl_module)
        lessons, outputs = module.lessons, module.outputs_on("held", module.student)
        own = Answers(labels_of(cast(Dataset, module.data.held_set)).to(outputs.device), outputs)
        anchor, final = lessons.scheduler.legs[-1].anchor, lessons.route.final
        outputs_of = {epoch: module.outputs_on("held", lessons.guide.at(epoch)) for epoch in (anchor, final)}
        beside = {epoch: congruence(own, found, module.embeds, module.loss.normalise) for epoch, found in outputs_of.items()}
        accuracies = {} if module.embeds else {"teacher_accuracy": beside[anchor]["teacher_accuracy"], "accuracy": measures(own)["accuracy"]}
        losses = {"congruence": beside[anchor]["congruence"], "final_congruence": beside[final]["congruence"]}
        self.row = {"state": anchor} | accuracies | losses


class _Students:
    """Trains students of one route, all from the same weights, and keeps what was found until the verb is done.

    Args:
        trainer: what it was set to train does not count.
        module: the student as it begins, with its route.
        data: set up.
        epochs: of each student.
    """

    def __init__(self, trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData, epochs: int) -> None:
        self.trainer, self.module, self.data, self.epochs = trainer, module, data, epochs
        assert module.route is not None
        said = (dict(module.hparams), module.loss, module.learning, dict(data.hparams), epochs, digest(module.route.folder / ROUTE))
        self.folder = artefact_folder(trainer) / "kept" / f"{derive_seed(repr(said)):016x}"
        if trainer.is_forced and trainer.is_global_zero:
            remove(self.folder)

    def hardness(self, states: Sequence[int]) -> Ratios:
        """Train a student along states under one learning-rate schedule; returns r_ij of all but the final i."""

        def make() -> Ratios:
            judge = Hardness()
            self._train(Walk("explicit", epochs=list(states)), judge, f"along-{_joined(states)}")
            return judge.losses

        _say(self.trainer, f"\na student learns from {len(states)} states in {self.epochs} epochs, to see how hard the later ones are from each")
        found = kept(self.folder / f"hardness-{_joined(states)}.json", make).value
        return {int(i): hardness({int(j): loss for j, loss in row.items()}, int(i), self.module.walk.floor) for i, row in found.items()}

    def gap(self, states: Sequence[int]) -> Rows:
        """Train a student on each state alone; returns a row each, see `projects.rco.figures.draw_gap`."""
        return [self._alone(state) for state in states]

    def _alone(self, state: int) -> dict[str, Any]:
        def make() -> dict[str, Any]:
            judge = Gap()
            self._train(Walk("single", epochs=[state]), judge, f"alone-{state}")
            return judge.row

        _say(self.trainer, f"a student learns from state {state} alone")
        return kept(self.folder / f"gap-{state}.json", make).value

    def _train(self, walk: Walk, judge: L.Callback, name: str) -> None:
        """Train a copy of the student along a walk, from where an interrupted call left it."""
        trainer: Any = self.trainer
        student = copy.deepcopy(self.module)
        student.walk = walk
        before = {key: getattr(trainer, key) for key in ("fit_loop", "callbacks", "loggers", "limit_val_batches")}
        others = [callback for callback in trainer.callbacks if not isinstance(callback, ModelCheckpoint | ModelSummary)]
        trainer.fit_loop = type(trainer.fit_loop)(trainer, max_epochs=self.epochs)
        trainer.callbacks = [*others, judge, ResumePoint(self.folder / name, trainer.save_every)]
        trainer.loggers, trainer.limit_val_batches = [], 0
        point = self.folder / name / "last.ckpt"
        try:
            with silence():
                L.Trainer.fit(trainer, student, datamodule=self.data, ckpt_path=point if point.is_file() else None)
        finally:
            for key, value in before.items():
                setattr(trainer, key, value)

    def forget(self) -> None:
        """Remove what was kept for a call that is interrupted."""
        self.trainer.strategy.barrier()
        if self.trainer.is_global_zero:
            remove(self.folder.parent)


def _joined(states: Sequence[int]) -> str:
    """Return a short name for a list of states."""
    return f"{len(states)}-{derive_seed(repr(list(states))):016x}"


# ---- the report


def _report(trainer: ProjectTrainer, module: RouteDistillation, found: Diagnosed, remarks: Mapping[str, str]) -> None:
    """Print and write the tables, draw the figures, and say how to use the anchors that the greedy search would take."""
    if not trainer.is_global_zero:
        return
    assert module.route is not None
    delta, path = module.walk.delta, found.choices["greedy"]
    print(f"\nhardness r_ij of state j for a student that has just learnt from i; * is beyond {1 + delta:g} for the first time")
    print(markdown(hardness_rows(found.ratios, delta, marked=True)))
    if (hardest := max(max(row.values()) for row in found.ratios.values())) <= 1 + delta:
        print(f"no state is too hard, as the largest r is {hardest:.2f}: a smaller walk.delta gives more anchors")
    print("the search itself trains other legs, and may pick others\n")
    notes = {
        "eei": f"walk.anchors {module.walk.anchors}",
        "interval": f"walk.interval {module.walk.interval}",
        "greedy": f"walk.delta {delta:g}, walk.floor {module.walk.floor:g}",
    }
    notes |= {"random": notes["eei"]} | {name: f"does not apply: {remark}" for name, remark in remarks.items()}
    rows = [{"choice": name, "anchors": listed(found.choices.get(name, [])), "note": notes.get(name, "")} for name in (*COMPARED, "greedy")]
    print(markdown(rows))
    log_table(trainer, "states", found.states)
    log_table(trainer, "choices", rows)
    log_table(trainer, "hardness", hardness_rows(found.ratios, delta))
    log_figure(trainer, "route", draw_route(module.route, path))
    log_figure(trainer, "hardness", draw_hardness(found.ratios, delta, path))
    if found.gaps:
        _report_gap(trainer, found.gaps)
    print(f"\nto follow these: {command(trainer, module.route, path)}")


def hardness_rows(ratios: Mapping[int, Mapping[int, float]], delta: float, marked: bool = False) -> Rows:
    """Return the matrix of r_ij as rows with a column a state, and the state that the greedy search goes on to from each.

    Args:
        ratios: r_ij.
        delta: of the search.
        marked: writes cells as text, with a star at the first state that is too hard.
    """
    states = list(next(iter(ratios.values())))
    rows = []
    for i, row in ratios.items():
        boundary = next((j for j, ratio in row.items() if ratio > 1 + delta), None)
        cells: dict[str, Any] = {str(j): row.get(j) for j in states}
        if marked:
            cells = {str(j): "" if j not in row else f"{row[j]:.2f}{'*' * (j == boundary)}" for j in states}
        rows.append({"learnt from": i} | cells | {"next": next_anchor(row, i, delta)})
    return rows


def _report_gap(trainer: ProjectTrainer, gaps: Rows) -> None:
    print("\nstudents taught by one state alone, on the samples held out")
    print(markdown([{GAP_NAMES[name]: value for name, value in row.items()} for row in gaps]))
    falls = [f"{before['state']} to {after['state']}" for before, after in pairwise(gaps) if after["congruence"] < before["congruence"]]
    print("the congruence loss to the state that taught rises from each to the next" + (f", but for {', '.join(falls)}" if falls else ""))
    log_table(trainer, "gap", gaps)
    log_figure(trainer, "gap", draw_gap(gaps))


def command(trainer: ProjectTrainer, route: Route, anchors: Sequence[int]) -> str:
    """Return the command that trains a student along some states of a route, under the settings of the run."""
    run = trainer.run
    own = own_route(run)
    name = run.name if own is not None and own.resolve() == route.folder.resolve() else str(route.folder)
    options = ["fit", "-c", str(shown_path(run.config_file)), "--model.route", name, "--model.walk.choice", "explicit"]
    return f"lightning run projects/{run.project}/cli.py {shlex.join(options)} --model.walk.epochs {shlex.quote(json.dumps(list(anchors)))}"


def _say(trainer: ProjectTrainer, text: str) -> None:
    if trainer.is_global_zero:
        print(text, flush=True)
