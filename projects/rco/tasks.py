"""What the verbs teach, fit and test do around the loops of the Trainer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from projects.rco.anchors import DROP, ROUTE, AnchorRecorder, Route, State
from projects.rco.choosing import choose
from projects.rco.figures import WalkFigure
from projects.rco.module import CACHED
from projects.rco.networks import build_network
from projects.rco.objectives import build_objective
from projects.rco.teaching import Teacher
from shared.callbacks import ResumePoint
from shared.checkpoints import describe_mismatch, load_checkpoint
from shared.loggers import ContinuedCSVLogger, continue_logs, log_table
from shared.results import markdown
from shared.runs import Run, remove, runs_root, write_text

if TYPE_CHECKING:
    from projects.rco.data import DistillationData
    from projects.rco.module import RouteDistillation
    from shared.cli import ProjectTrainer

MAKERS = ("fit", "teach", "collect")
"""Verbs that leave a route in a run."""
FOLLOWED = "route.txt"
"""File in which a run keeps where the route lies that its student followed."""
NAMES = {"teacher_accuracy": "teacher's accuracy", "congruence": "congruence loss", "train_congruence": "congruence loss, training set"}
"""Headings of measures."""


@dataclass(frozen=True)
class Tested:
    """What `fit` and `test` return: the row that they print, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


# ---- routes in runs


def anchors_of(run: Run, verb: str) -> Path:
    """Return the folder where a verb keeps the route that it makes."""
    return run.artefacts(verb) / "anchors"


def own_route(run: Run) -> Path | None:
    """Return the folder of the route that was made in a run, if there is one: a complete one before one that was begun."""
    found = [folder for verb in MAKERS if ((folder := anchors_of(run, verb)) / ROUTE).is_file()]
    return min(found, key=lambda folder: not is_complete(folder), default=None)


def is_complete(folder: Path) -> bool:
    """Tell whether the teacher of a route that can be read was trained to its end."""
    try:
        return Route.load(folder).is_complete
    except (OSError, ValueError):
        return False


def find_route(text: str | None, run: Run) -> Path | None:
    """Find the route that a user names.

    Args:
        text: a folder with a route, the name of a run of this project that has one, latest for the newest of these, or None for the run's own.
        run: in which the verb works.

    Raises:
        FileNotFoundError: if what is named has none.
    """
    if text is None:
        return own_route(run)
    followed = run.artefacts("fit") / FOLLOWED
    if text == "latest" and followed.is_file():  # what was the newest one when the student began
        return Path(followed.read_text(encoding="utf-8").strip())
    if (Path(text).expanduser() / ROUTE).is_file():
        return Path(text).expanduser().resolve()
    runs = runs_root() / run.project
    others = [Run(path) for path in runs.glob("*/") if path.name != run.name]
    having = {other.name: folder for other in others if (folder := own_route(other)) is not None}
    complete = [folder for folder in having.values() if is_complete(folder)]
    if text == "latest" and complete:
        return max(complete, key=lambda folder: (folder / ROUTE).stat().st_mtime)
    if text in having:
        return having[text]
    known = ", ".join(list(having)[-8:]) or "none"
    raise FileNotFoundError(f"no route {text!r}: give a folder with {ROUTE}, or a run that has a route (there are: {known}); `teach` makes one")


# ---- the teacher


def teach(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData) -> Route:
    """Train a teacher and record its route in the run, or go on with the one that was begun there."""
    given, folder = module.hparams, anchors_of(trainer.run, trainer.verb)
    if any(folder.glob("*.safetensors")) and (route := Route.load(folder)).is_complete:
        return route
    teacher = Teacher(given.teacher, given.shape, given.classes, given.embedding, module.teaching, seed=given.seed)
    data.setup()
    about = teacher.about | {"task": data.task, "division": data.division} | ({} if module.embeds else {"class_names": list(data.class_names)})
    point = folder.parent / "resume" / "last.ckpt"
    loop, callbacks, loggers = trainer.fit_loop, trainer.callbacks, trainer.loggers  # type: ignore[attr-defined]
    trainer.fit_loop = type(loop)(trainer, max_epochs=given_epochs(trainer, module))
    kept = [callback for callback in callbacks if not isinstance(callback, ResumePoint | ModelCheckpoint)]
    recorder = AnchorRecorder(folder, about=about, **asdict(module.recording))
    trainer.callbacks = [*kept, recorder, ResumePoint(point.parent, trainer.save_every)]  # type: ignore[attr-defined]
    if trainer.verb != "teach":  # curves of a file of their own
        trainer.loggers = [ContinuedCSVLogger(trainer.run.path / "teach")]
    try:
        if point.is_file():
            continue_logs(trainer, step_of(point))
        L.Trainer.fit(trainer, teacher, datamodule=data, ckpt_path=point if point.is_file() else None)
        if data.test_set is not None:
            L.Trainer.test(trainer, teacher, datamodule=data, verbose=False)
    finally:
        trainer.fit_loop, trainer.callbacks, trainer.loggers = loop, callbacks, loggers  # type: ignore[attr-defined]
    if trainer.is_global_zero:
        remove(point.parent)
    return Route.load(folder)


def given_epochs(trainer: ProjectTrainer, module: RouteDistillation) -> int:
    """Return the epochs that the options give a teacher."""
    return int(module.hparams.teacher_epochs or trainer.max_epochs or 0)


def rehearse(module: RouteDistillation, epochs: int) -> None:
    """Refuse, before a teacher is trained for so many epochs, a walk or a loss that would fail once it is there.

    Raises:
        ValueError: if its states will not be those that the walk takes, or its layers not those that the loss compares.
    """
    given, recording = module.hparams, module.recording
    rates = [module.teaching.lr * module.teaching.factor(epoch, epochs) for epoch in range(epochs)]
    falls = {epoch for epoch in range(1, epochs) if rates[epoch] <= DROP * rates[epoch - 1]} if recording.at_drops else set()
    by_interval = set(range(recording.every, epochs + 1, recording.every)) if recording.every else set()
    stored = {epochs} | by_interval | falls | {epoch for epoch in recording.epochs or [] if epoch <= epochs}
    history = tuple(State(epoch, "", rates[epoch - 1], {}) for epoch in range(1, epochs + 1))
    route = Route(Path("the route to come"), {}, tuple(state for state in history if state.epoch in stored), history, False)
    if module.walk.choice not in ("greedy", "phase"):  # which need a teacher
        choose(module.walk, route, given.seed)
    with torch.random.fork_rng(devices=[]):
        build_objective(module.loss, module.student, build_network(given.teacher, given.shape, module.width), torch.zeros(1, *given.shape))


def step_of(checkpoint: Path) -> int:
    """Return the step that a checkpoint was written after."""
    return int(load_checkpoint(checkpoint)["global_step"])


# ---- the student


def distil(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData) -> Tested:
    """Let the student follow the route, go on where that was interrupted, and test it after its last epoch."""
    data.setup()
    module.check_walk(data, int(trainer.max_epochs or 0))
    folder = find_route(module.hparams.route, trainer.run)
    is_own = folder in (None, anchors_of(trainer.run, trainer.verb))  # perhaps begun, and not yet complete
    if is_own:
        rehearse(module, given_epochs(trainer, module))
    module.route = route = teach(trainer, module, data) if is_own else Route.load(cast(Path, folder))
    if not route.is_complete:
        verb, run = route.folder.parent.name, route.folder.parents[2].name
        mend = f"by `{verb} --resume --run {run}`" if verb in MAKERS else "where it was trained"
        raise ValueError(f"the teacher of {route.folder} was stopped after epoch {route.final}: go on with it {mend}")
    if trainer.is_global_zero:
        write_text(trainer.run.artefacts("fit") / FOLLOWED, f"{route.folder}\n")
    own = [callback for callback in trainer.callbacks if not isinstance(callback, ModelCheckpoint)]  # type: ignore[attr-defined]
    trainer.callbacks = [*own, WalkFigure()]  # type: ignore[attr-defined]  # the last epoch counts, which ResumePoint keeps
    last = trainer.run.checkpoints / "last.ckpt"
    if last.is_file():
        if differences := describe_mismatch(module.state_dict(), load_checkpoint(last)["state_dict"]):
            raise ValueError(f"the checkpoint {last} does not fit the model that the settings describe:\n{differences}")
        continue_logs(trainer, step_of(last))
    L.Trainer.fit(trainer, module, datamodule=data, ckpt_path=last if last.is_file() else None)
    return test(trainer, module, data)


def test(trainer: ProjectTrainer, module: RouteDistillation, data: DistillationData) -> Tested:
    """Test the student as it is, print a line, and say how far it is from the converged teacher where the route is at hand."""
    if module.route is None:
        module.route = _route_at_hand(trainer, module)
    data.setup()
    module.reports_training = not data.is_augmented and len(data.train_set) * module.width <= CACHED  # type: ignore[arg-type]
    L.Trainer.test(trainer, module, datamodule=data, verbose=False)
    found = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    rows = [{"student": module.hparams.student} | {NAMES.get(name, name): value for name, value in found.items()}]
    if trainer.is_global_zero:
        print(markdown(rows))
        log_table(trainer, "student", rows)
    return Tested(rows, {f"test/{name}": round(value, 4) for name, value in found.items()})


def _route_at_hand(trainer: ProjectTrainer, module: RouteDistillation) -> Route | None:
    """Find the route again that the student followed; without it a test tells of the student alone."""
    try:
        folder = find_route(module.hparams.route, trainer.run)
        return None if folder is None else Route.load(folder)
    except (FileNotFoundError, ValueError) as error:
        if trainer.is_global_zero:
            print(f"not compared with its teacher: {error}")
        return None


@dataclass(frozen=True)
class Taught:
    """What `teach` returns: the route, and the figures that head the run's page."""

    route: Route
    summary: dict[str, Any]


def report_teacher(trainer: ProjectTrainer, route: Route) -> Taught:
    """Print and write the states of a route that was made in this run."""
    blank = dict.fromkeys(name for state in route.states for name in state.metrics)  # some epochs may end without validation
    rows: list[dict[str, Any]] = [{"epoch": state.epoch, "learning rate": state.lr, **blank, **state.metrics} for state in route.states]
    found = {name: round(float(value), 4) for name, value in trainer.callback_metrics.items() if name.startswith("test/")}
    if trainer.is_global_zero:
        print(markdown(rows))
        log_table(trainer, "states", rows)
    return Taught(route, found | {"states": len(rows), "megabytes": round(route.bytes / 1e6, 3)})
