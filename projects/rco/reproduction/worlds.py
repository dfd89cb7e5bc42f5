"""A seed's teacher with its route, and students that follow it, for the tables of `reproduce`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import LambdaCallback

from projects.rco.anchors import ROUTE, AnchorRecorder, Route, store_state, write_route
from projects.rco.data import DistillationData
from projects.rco.module import RouteDistillation
from projects.rco.objectives import Loss
from projects.rco.recipes import Recipe
from projects.rco.teaching import Teacher
from projects.rco.walking import Leg, Walk
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed
from shared.tables import Rows

PURE = Loss("kd", tau=1.0, ce=0.0, weights={"kd": 1.0})
"""Nothing but the teacher's word, so that labels cannot make up for it."""
RECIPE = Recipe(lr=0.02, weight_decay=1e-4)
KD = Walk(anchors=1)
"""The converged teacher alone."""
LABELS, PLAIN = "labels only", "KD"
JUMP = (0.55, 0.95)
"""Accuracies on samples held out between which a state of the teacher is inside its jump."""


@dataclass(frozen=True)
class World:
    """What is learnt, by whom and for how long.

    Attributes:
        data: options of `DistillationData`.
        teacher: name of its network.
        student: name of its network.
        epochs: of the teacher and of the student.
        recipe: how both are trained.
    """

    data: Mapping[str, Any] = field(default_factory=dict)
    teacher: str = "mlp_800"
    student: str = "mlp_16"
    epochs: int = 20
    recipe: Recipe = RECIPE

    @property
    def key(self) -> str:
        """A name of its own for the files of its teachers."""
        return f"{derive_seed(repr(self)):016x}"


SLOW = World()
FAST = World(student="mlp_12", epochs=18, recipe=Recipe(lr=0.05, weight_decay=1e-4))
NO_GAP = World(data={"bits": 30, "secret": 4}, epochs=12)
"""Three settings: teachers that jump late and early, and a task that the student can learn without help."""
QUICK = World({"bits": 12, "secret": 2, "length": 640, "test_length": 200, "held_out": 100}, "mlp_32", "mlp_8", 3)
"""So small that only the way is tried."""


@dataclass(frozen=True)
class Line:
    """A student of a table.

    Attributes:
        walk: how it follows the route; None learns from labels alone.
        loss: what is asked of it.
        assistant: network that learns from the converged teacher first, and then teaches the student (TAKD).
        epochs: of the student, of each leg with walk.budget restart; None is as many as the world has.
        half: whether the states are stored in half precision.
    """

    walk: Walk | None = KD
    loss: Loss = PURE
    assistant: str | None = None
    epochs: int | None = None
    half: bool = False


@dataclass(frozen=True)
class Taught:
    """A seed's data, its teacher's route, and the accuracy of the converged teacher on the test set."""

    data: DistillationData
    route: Route
    accuracy: float


def teach(world: World, folder: Path, seed: int) -> Taught:
    """Train the teacher of a seed, or read what was kept of it."""
    data = DistillationData(seed=seed, **{"source": "parity", **world.data})
    place = folder / f"route-{world.key}-{seed}"
    if not ((place / ROUTE).is_file() and Route.load(place).is_complete):
        teacher = Teacher(world.teacher, data.shape, data.classes, recipe=world.recipe, seed=seed)
        with silence():
            quiet_trainer(world.epochs, callbacks=[AnchorRecorder(place, about=teacher.about)]).fit(teacher, datamodule=data)
    else:
        data.setup()
    route = Route.load(place)
    return Taught(data, route, judged(route, data))


@torch.no_grad()
def judged(route: Route, data: DistillationData) -> float:
    """Return the test accuracy of a route's final state."""
    from projects.rco.networks import build_network

    net = build_network(route.about["network"], route.about["shape"], route.about["outputs"])
    net.load_state_dict(route.tensors(route.final))
    net.eval()
    found = [(net(done["input"]).argmax(1) == done["label"]).float() for batch in data.ordered("test") for done in [data.finish(batch, False)]]
    return float(torch.cat(found).mean())


def row_of(world: World, line: Line, taught: Taught, folder: Path, seed: int) -> dict[str, float | None]:
    """Train the student of a line; returns its accuracy and congruence losses, and what it took (updates, passes, time, disk)."""
    if line.walk is None:
        return _by_labels(world, taught, seed)
    route = taught.route if line.assistant is None else _assistant(world, line.assistant, taught, folder, seed)
    if line.half:
        route = _halved(route)
    data, began = taught.data, time.monotonic()
    options: dict[str, Any] = {"student": world.student, "walk": line.walk, "loss": line.loss, "learning": world.recipe, "seed": seed}
    module = RouteDistillation(data.shape, data.classes, **options)
    module.route, module.reports_training = route, True
    with silence():
        trainer = quiet_trainer(line.epochs or world.epochs, limit_val_batches=0)
        legs: list[Leg] = []
        trainer.callbacks.append(LambdaCallback(on_train_end=lambda *_: legs.extend(module.lessons.scheduler.legs)))  # type: ignore[attr-defined]
        trainer.fit(module, datamodule=data)
        seconds, updates = time.monotonic() - began, trainer.global_step
        module.route = taught.route
        trainer.test(module, datamodule=data, verbose=False)
    found = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    accuracy = taught.route.accuracy()
    inside = 0 if line.assistant else sum(JUMP[0] < accuracy[leg.anchor] < JUMP[1] for leg in legs)
    megabytes = sum((route.folder / state.file).stat().st_size for state in route.states if state.epoch in {leg.anchor for leg in legs}) / 1e6
    return {
        "accuracy": found["accuracy"],
        "congruence": found["congruence"],
        "on training set": found["train_congruence"],
        "anchors": float(len(legs)),
        "in the jump": float(inside),
        "updates": float(updates),
        "passes": float(module.taught),
        "MB": megabytes,
        "seconds": seconds,
    }


def _by_labels(world: World, taught: Taught, seed: int) -> dict[str, float | None]:
    """Train the student without a teacher, by the recipe that it has with one."""
    data, began = taught.data, time.monotonic()
    module = Teacher(world.student, data.shape, data.classes, recipe=world.recipe, seed=seed)
    module.net.load_state_dict(RouteDistillation(data.shape, data.classes, student=world.student, seed=seed).student.state_dict())
    with silence():
        trainer = quiet_trainer(world.epochs, limit_val_batches=0)
        trainer.fit(module, datamodule=data)
        updates, seconds = trainer.global_step, time.monotonic() - began
        trainer.test(module, datamodule=data, verbose=False)
    row = dict.fromkeys(("congruence", "on training set", "anchors", "in the jump", "updates", "passes", "MB", "seconds"))
    return {"accuracy": float(trainer.callback_metrics["test/accuracy"])} | row | {"updates": float(updates), "seconds": seconds}


def _assistant(world: World, name: str, taught: Taught, folder: Path, seed: int) -> Route:
    """Distil a network between teacher and student from the converged teacher; returns it as a route of one state."""
    place, data = folder / f"assistant-{name}-{world.key}-{seed}", taught.data
    if not (place / ROUTE).is_file():
        module = RouteDistillation(data.shape, data.classes, student=name, walk=KD, loss=PURE, learning=world.recipe, seed=seed)
        module.route = taught.route
        about = {**taught.route.about, "network": name}
        with silence():
            recorder = AnchorRecorder(place, every=None, network="student", about=about)
            quiet_trainer(world.epochs, limit_val_batches=0, callbacks=[recorder]).fit(module, datamodule=data)
    return Route.load(place)


def _halved(route: Route) -> Route:
    """Store a route again, beside it, in half precision."""
    place = route.folder.with_name(f"{route.folder.name}-half")
    if not (place / ROUTE).is_file():
        place.mkdir(parents=True, exist_ok=True)
        for epoch in route.epochs:
            store_state(place, epoch, route.tensors(epoch), half=True)
        write_route(replace(route, folder=place, half=True))
    return Route.load(place)


def rows_of(world: World, lines: Mapping[str, Line], folder: Path, seed: int) -> Rows:
    """Return a row for each line of a seed: one teacher, and a student a line that begins with the same weights and sees the same batches.

    A line's gain is over `base`, the line named KD or the first one.
    """
    taught = teach(world, folder, seed)
    rows = {name: row_of(world, line, taught, folder, seed) for name, line in lines.items()}
    base = rows[PLAIN]["accuracy"] if PLAIN in rows else None
    return [
        {"line": name, "seed": seed, "teacher": taught.accuracy, "accuracy": row["accuracy"]}
        | {"gain over KD": None if name == PLAIN or base is None or row["accuracy"] is None else row["accuracy"] - base}
        | {column: value for column, value in row.items() if column != "accuracy"}
        for name, row in rows.items()
    ]
