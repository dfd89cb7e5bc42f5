"""Poisons that are found by descent through a surrogate network: EM, REM, TAP and SEP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from projects.dvae.poisons.surrogate import Surrogate, cross_entropy, endless, fixed_batches, train_clean
from projects.dvae.poisons.training_set import TrainingSet
from shared.poisons import (
    Alternation,
    Loss,
    NoiseTable,
    View,
    ascend,
    descend,
    mean_over_views,
    minimise_errors,
    to_levels,
    uniform_start,
    worst_within,
)
from shared.seeding import generator


class TablePattern:
    """Perturbations kept in a table, for each image of the training set or for each class.

    Args:
        table: the perturbations.
    """

    def __init__(self, table: NoiseTable) -> None:
        self.table = table

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        return self.table.apply(to_levels(images), indices).float() / 255


@dataclass(frozen=True)
class Search:
    """What an attack is given.

    Attributes:
        training_set: the clean set.
        radius: bound in the linf norm, in pixels of 255.
        seed: seed of weights, orders and starts.
        build: makes a surrogate network from a seed.
        device: where it is trained.
        progress: is called with the work done and all the work, in units of the attack's own.
    """

    training_set: TrainingSet
    radius: float
    seed: int
    build: Callable[[int], nn.Module]
    device: str | torch.device
    progress: Callable[[int, int], None]

    @property
    def epsilon(self) -> float:
        """The bound in units of [0, 1] images; a fraction of a pixel could not be stored."""
        return int(self.radius) / 255

    def images(self, indices: Tensor) -> Tensor:
        """Return the clean images at (B,) indices, (B, C, H, W) in [0, 1], on the device."""
        return self.training_set.levels[indices].to(self.device).float() / 255

    def labels(self, indices: Tensor) -> Tensor:
        """Return the labels at (B,) indices, on the device."""
        return self.training_set.labels[indices].to(self.device)

    def table(self) -> NoiseTable:
        """Return a table of zeros with a row for each image."""
        return NoiseTable.of_images(self.training_set.count, self.training_set.shape, self.radius)

    def view(self, count: int, flip: bool, random: torch.Generator) -> View:
        """Draw the customary augmentation: crops after padding by an eighth of the side, and flips."""
        return View.draw(count, max(1, min(self.training_set.shape[1:]) // 8), flip, random)


@dataclass(frozen=True)
class Minimising:
    """Effort of error-minimising noise; the published one by default.

    Attributes:
        batch_size: images of a step.
        lr: learning rate of the surrogate.
        train_steps: M, its training steps in a round.
        steps: T, steps of descent for every image in a round.
        step: length of such a step, as a part of the radius.
        rounds: rounds after which to stop in any case.
        stop_error: training error below which to stop.
    """

    batch_size: int = 512
    lr: float = 0.1
    train_steps: int = 10
    steps: int = 20
    step: float = 0.1
    rounds: int = 100
    stop_error: float = 0.01


def minimise(search: Search, effort: Minimising, class_wise: bool) -> TablePattern:
    """EM (Huang et al. 2021): noise with which the set looks learnt already, for each image or for each class."""
    data = search.training_set
    surrogate = Surrogate(search.build(search.seed), effort.lr, search.device)
    table = NoiseTable.of_groups(data.labels, data.classes, data.shape, search.radius) if class_wise else search.table()
    batches = fixed_batches(data.count, effort.batch_size, search.seed)
    stream = endless(batches)

    def poisoned(indices: Tensor) -> Tensor:
        return table.apply(data.levels[indices], indices).float() / 255

    def train() -> None:
        for _ in range(effort.train_steps):
            indices = next(stream)
            surrogate.step(poisoned(indices), data.labels[indices])

    def error() -> float:
        return sum(surrogate.errors(poisoned(indices), data.labels[indices]) for indices in batches) / data.count

    def loss_of(indices: Tensor) -> Loss:
        return surrogate.loss(search.labels(indices))

    how = Alternation(search.epsilon, effort.step * search.epsilon, effort.steps, effort.rounds, effort.stop_error)
    minimise_errors(data.levels, table, batches, train, loss_of, error, how, search.device, search.progress)
    return TablePattern(table)


@dataclass(frozen=True)
class Robust:
    """Effort of robust error-minimising noise; the published one by default.

    Attributes:
        batch_size: images of a step.
        lr: learning rate of the surrogate; a tenth of it after two fifths of the training, a hundredth after four fifths.
        train_steps: training steps of the surrogate.
        steps: steps of descent in the noise, for a training step and at the end.
        step: length of such a step, as a part of the radius.
        views: random crops and flips over which a step's gradient is averaged.
        inner_radius: radius of the adversary, as a part of the noise's.
        inner_steps: its steps of ascent.
        inner_step: length of such a step, as a part of its radius.
        flip: whether half of the views are mirrored.
    """

    batch_size: int = 128
    lr: float = 0.1
    train_steps: int = 5000
    steps: int = 10
    step: float = 0.2
    views: int = 5
    inner_radius: float = 0.5
    inner_steps: int = 10
    inner_step: float = 0.2
    flip: bool = True


def minimise_robustly(search: Search, effort: Robust) -> TablePattern:
    """REM (Fu et al. 2022): noise that lowers the loss even of images that an adversary has moved, as adversarial training sees them."""
    data = search.training_set
    surrogate = Surrogate(search.build(search.seed), effort.lr, search.device)
    batches = fixed_batches(data.count, effort.batch_size, search.seed)
    stream, total = endless(batches), effort.train_steps + len(batches)
    random = generator(search.seed, "robust noise")
    inner_radius = effort.inner_radius * search.epsilon
    inner = (inner_radius, effort.inner_step * inner_radius, effort.inner_steps, random)

    def lower(clean: Tensor, loss: Loss) -> Tensor:
        robust = mean_over_views(worst_within(loss, *inner), partial(search.view, len(clean), effort.flip, random), effort.views)
        start = uniform_start(clean, search.epsilon, random)
        return descend(clean, robust, search.epsilon, effort.step * search.epsilon, effort.steps, start)

    for number in range(effort.train_steps):
        indices = next(stream)
        clean, loss = search.images(indices), surrogate.loss(search.labels(indices))
        seen = search.view(len(clean), effort.flip, random)(clean + lower(clean, loss))
        surrogate.step(ascend(seen, loss, *inner), data.labels[indices], 0.1 ** (5 * number // (2 * effort.train_steps)))
        search.progress(number + 1, total)
    table = search.table()
    for number, indices in enumerate(batches, effort.train_steps + 1):
        table.write(indices, lower(search.images(indices), surrogate.loss(search.labels(indices))))
        search.progress(number, total)
    return TablePattern(table)


@dataclass(frozen=True)
class Targeted:
    """Effort of targeted adversarial noise; that of TAP by default.

    Attributes:
        batch_size: images of a step.
        lr: learning rate of the surrogate, which falls along a cosine.
        epochs: epochs of its training on clean images.
        steps: steps of descent.
        step: length of such a step, as a part of the radius.
        is_augmented: whether the gradient is that of a random crop and flip, drawn anew for each step.
        checkpoints: evenly spaced snapshots of the training whose gradients are averaged.
        flip: whether half of the crops are mirrored, in training, too.
    """

    batch_size: int = 128
    lr: float = 0.1
    epochs: int = 40
    steps: int = 250
    step: float = 0.008
    is_augmented: bool = True
    checkpoints: int = 1
    flip: bool = True


def shifted_targets(labels: Tensor, classes: int, shift: int) -> Tensor:
    """Return the classes that targeted noise pretends, (y + shift) mod K."""
    return (labels + shift) % classes


def mislead(search: Search, effort: Targeted, shift: int) -> TablePattern:
    """TAP (Fowl et al. 2021) and SEP (Chen et al. 2023): adversarial noise towards class (y + shift) mod K, with the label left at y.

    TAP descends through one trained network and SEP along the mean gradient over snapshots of its training. TAP's eight restarts are left out.
    """
    data = search.training_set
    batches = fixed_batches(data.count, effort.batch_size, search.seed)
    total = effort.epochs + len(batches)
    augment = generator(search.seed, "augmentation")

    def read(indices: Tensor) -> tuple[Tensor, Tensor]:
        return search.view(len(indices), effort.flip, augment)(search.images(indices)), data.labels[indices]

    surrogate = Surrogate(search.build(search.seed), effort.lr, search.device)
    nets = train_clean(
        surrogate, read, data.count, effort.batch_size, effort.epochs, search.seed, lambda done: search.progress(done, total), effort.checkpoints
    )
    table, random = search.table(), generator(search.seed, "targeted noise")
    for number, indices in enumerate(batches, effort.epochs + 1):
        losses = [cross_entropy(net, shifted_targets(search.labels(indices), data.classes, shift)) for net in nets]
        if effort.is_augmented:
            view = partial(search.view, len(indices), effort.flip, random)
            losses = [mean_over_views(loss, view, 1) for loss in losses]
        table.write(indices, descend(search.images(indices), losses, search.epsilon, effort.step * search.epsilon, effort.steps))
        search.progress(number, total)
    return TablePattern(table)
