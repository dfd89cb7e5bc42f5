"""A world of sparse parity so small that students and teachers of the project rco are trained in a blink, and what tests watch of a training."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from helpers.rco_reference import batches_of
from torch import Tensor, nn
from torch.nn import functional as F

from projects.rco.anchors import AnchorRecorder, Route
from projects.rco.data import DistillationData
from projects.rco.module import RouteDistillation
from projects.rco.networks import build_network
from projects.rco.objectives import Loss
from projects.rco.recipes import Recipe
from projects.rco.teaching import Teacher
from projects.rco.walking import Leg, Walk
from shared.quiet import quiet_trainer, silence

WORLD = {"bits": 10, "secret": 2, "length": 256, "test_length": 64, "held_out": 64, "batch_size": 64}
STEPS = 4  # of an epoch
EPOCHS = 6
RECIPE = Recipe(lr=0.1, weight_decay=1e-4, schedule="cosine")
KD = Walk(anchors=1)
PURE = Loss("kd", tau=1.0, ce=0.0, weights={"kd": 1.0})

QUIET = ["--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1", "--trainer.accelerator=cpu"]
SMALL = [*QUIET, *(f"--data.{name}={value}" for name, value in WORLD.items()), "--model.teacher=mlp_32", "--model.student=mlp_6"]
SHORT = [*SMALL, "--trainer.max_epochs=4", "--model.teacher_epochs=4", "--model.walk.anchors=2"]


def world(**options: Any) -> DistillationData:
    """Return the data of the small world."""
    return DistillationData(**(WORLD | options))


def record(folder: Path, data: DistillationData, network: str, epochs: int = EPOCHS, embedding: int | None = None) -> Route:
    """Train a teacher whose states are all stored."""
    teacher = Teacher(network, data.shape, data.classes, embedding, Recipe(lr=0.1 if embedding is None else 1e-3, weight_decay=1e-4))
    with silence():
        quiet_trainer(epochs, callbacks=[AnchorRecorder(folder, about=teacher.about)]).fit(teacher, datamodule=data)
    return Route.load(folder)


def student(route: Route | None, data: DistillationData, **options: Any) -> RouteDistillation:
    """Return a student on its way along a route."""
    made = RouteDistillation(data.shape, data.classes, **({"student": "mlp_6", "walk": KD, "loss": PURE, "learning": RECIPE} | options))
    made.route = route
    return made


def fit(
    module: L.LightningModule, data: DistillationData, *callbacks: L.Callback, epochs: int = EPOCHS, resume: Any = None, **options: Any
) -> L.Trainer:
    """Train without a word."""
    with silence():
        trainer = quiet_trainer(epochs, callbacks=list(callbacks), **options)
        trainer.fit(module, datamodule=data, ckpt_path=resume)
    return trainer


class Watch(L.Callback):
    """Keeps what tests ask of each step and each epoch of a student's training."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.students: list[nn.Module] = []  # after each epoch
        self.guide: Any = None
        self.legs: list[Leg] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: RouteDistillation, batch: Any, batch_idx: int) -> None:  # type: ignore[override]
        self.guide, optimizer = module.lessons.guide, trainer.optimizers[0]
        self.rows.append(
            {
                "epoch": trainer.current_epoch,
                "anchor": self.guide.epoch,
                "lr": optimizer.param_groups[0]["lr"],
                "momenta": len(optimizer.state),
                "is_training": any(part.training for part in self.guide.net.modules()),
                "is_cached": module.cached is not None,
            }
        )

    def on_train_epoch_end(self, trainer: L.Trainer, module: RouteDistillation) -> None:  # type: ignore[override]
        self.students.append(copy.deepcopy(module.student))

    def on_train_end(self, trainer: L.Trainer, module: RouteDistillation) -> None:  # type: ignore[override]
        self.legs = list(module.lessons.scheduler.legs)

    def by_epoch(self, name: str) -> list[Any]:
        """Return one value an epoch, which all of its steps must have."""
        epochs = [{row[name] for row in self.rows if row["epoch"] == epoch} for epoch in range(self.rows[-1]["epoch"] + 1)]
        assert all(len(values) == 1 for values in epochs), epochs
        return [values.pop() for values in epochs]


def network_of(route: Route, epoch: int) -> nn.Module:
    """Return the teacher after an epoch, as a network of its own."""
    net = build_network(route.about["network"], route.about["shape"], route.about["outputs"])
    net.load_state_dict(route.tensors(epoch))
    return net.eval()


def by_hand(net: nn.Module, route: Route, data: DistillationData, legs: Iterable[Leg], recipe: Recipe, restarts: bool, tau: float = 1.0) -> None:
    """Train a student by nothing but its teachers' soft classes, as one writes it down; in place.

    Args:
        net: the student's network.
        route: its teacher's.
        data: set up.
        legs: in which it is trained.
        recipe: of cosine schedule.
        restarts: whether each leg has an optimiser and a schedule of its own.
        tau: temperature.
    """
    legs, step = list(legs), 0
    for leg in legs:
        teacher = network_of(route, leg.anchor)
        if restarts or leg.number == 1:
            optimizer = torch.optim.SGD(net.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay)
            first, length = leg.start, (leg.stop if restarts else legs[-1].stop) - leg.start
        for epoch in range(leg.start, leg.stop):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * (1 + torch.cos(torch.tensor((epoch - first) / length * torch.pi, dtype=torch.float64))).item() / 2
            for inputs, _ in batches_of(data, epoch, step):
                wanted = F.softmax(teacher(inputs) / tau, 1).detach()
                loss = (wanted * (wanted.log() - F.log_softmax(net(inputs) / tau, 1))).sum(1).mean() * tau**2
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                step += 1


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """Require that two dictionaries hold nearly the same tensors."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=tolerance, msg=lambda text, name=name: f"{name}: {text}")
