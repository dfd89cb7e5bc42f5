"""Baselines that look through a U-Net: EM, TAP and SEP, with the segmentation loss in the place of the classifier's."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from projects.umed.exploiting import predict_masks
from projects.umed.losses import segmentation_losses
from projects.umed.metrics import dice, mean_score
from projects.umed.model import UNet
from projects.umed.perturb import regions
from projects.umed.sets import SegmentationSet
from shared.data.memory import to_unit
from shared.poisons import Alternation, Loss, NoiseTable, descend, minimise_errors
from shared.seeding import derive_seed, generator


@dataclass(frozen=True)
class Budget:
    """Effort of the baselines; the published one by default.

    Attributes:
        widths: channels of the surrogate U-Net's levels.
        batch_size: images of a step.
        lr: learning rate of the surrogate's Adam.
        rounds: rounds of EM after which to stop in any case.
        train_steps: the surrogate's training steps in a round of EM.
        steps: steps of descent for every image in a round of EM, each a tenth of ε.
        stop_error: 1 - training DSC on x + δ, below which EM stops.
        epochs: epochs of the training on clean images for TAP and SEP.
        target_steps: steps of descent of TAP.
        checkpoints: networks over which SEP averages.
        checkpoint_steps: steps of descent of SEP.
        patch: side of LSP's patches in pixels.
    """

    widths: Sequence[int] = (32, 64, 128, 256, 512)
    batch_size: int = 8
    lr: float = 1e-4
    rounds: int = 100
    train_steps: int = 10
    steps: int = 20
    stop_error: float = 0.01
    epochs: int = 100
    target_steps: int = 250
    checkpoints: int = 15
    checkpoint_steps: int = 30
    patch: int = 8

    def __post_init__(self) -> None:
        """Refuse budgets with which nothing can be done."""
        counts = (self.batch_size, self.rounds, self.train_steps, self.steps, self.epochs, self.target_steps, self.checkpoints, self.checkpoint_steps)
        if min(counts) < 1 or self.patch < 1 or self.lr <= 0 or not self.widths:
            raise ValueError(f"counts, lr and widths of a budget must be positive, got {self}")
        if self.checkpoints > self.epochs:
            raise ValueError(f"{self.checkpoints} checkpoints need as many epochs, got {self.epochs}")

    @classmethod
    def quick(cls) -> Budget:
        """Return a budget for the offline sets on a CPU."""
        return cls(
            (8, 16, 32),
            batch_size=16,
            lr=2e-3,
            rounds=15,
            steps=10,
            epochs=15,
            target_steps=40,
            checkpoints=8,
            checkpoint_steps=20,
            patch=4,
        )


@dataclass(frozen=True)
class Search:
    """What a baseline is given.

    Attributes:
        images: the clean set.
        levels: bound ε in levels of 255, a whole number.
        seed: seed of weights, orders and draws.
        budget: the effort.
        is_whole: perturb all pixels, instead of the contour band and the interior only.
        device: where the surrogate is.
        progress: is called with the work done and all the work, in units of the baseline's own.
    """

    images: SegmentationSet
    levels: int
    seed: int
    budget: Budget
    is_whole: bool
    device: str | torch.device
    progress: Callable[[int, int], None]

    @property
    def epsilon(self) -> float:
        """The bound in units of [0, 1] images."""
        return self.levels / 255

    def table(self) -> NoiseTable:
        """Return a table of zeros with a row for each image."""
        return NoiseTable.of_images(len(self.images), self.images.image_shape, self.levels)

    def batches(self) -> list[Tensor]:
        """Cut a permutation of all indices into batches, none of them much smaller than the others."""
        return list(self.order("batches").tensor_split(math.ceil(len(self.images) / self.budget.batch_size)))

    def order(self, *key: int | str) -> Tensor:
        """Return a permutation of all indices that is a function of the seed and a key."""
        return torch.randperm(len(self.images), generator=generator(self.seed, "baseline", *key))

    def masks(self, indices: Tensor) -> Tensor:
        """Return masks, (B, H, W) int64, on the device."""
        return self.images.mask_bytes[indices].long().to(self.device)

    def clean(self, indices: Tensor) -> Tensor:
        """Return images, (B, C, H, W) in [0, 1], on the device."""
        return to_unit(self.images.images[indices].to(self.device))

    def support(self, indices: Tensor) -> Tensor | None:
        """Return where images may be perturbed, (B, 1, H, W) bool: band and interior; None is everywhere."""
        if self.is_whole:
            return None
        band, interior = regions(self.masks(indices), None, self.images.classes)
        return band | interior


def masked_loss(network: nn.Module, masks: Tensor, support: Tensor | None) -> Loss:
    """Return the frozen network's summed segmentation loss, in evaluation mode, as a function of images.

    Its gradient is 0 where there is no support, so that sign descent leaves those pixels as they are.

    Args:
        network: (B, C, H, W) -> (B, K + 1, H, W) logits.
        masks: (B, H, W) int64, what the network is to see.
        support: (B, 1, H, W) bool; None is everywhere.
    """

    def loss(images: Tensor) -> Tensor:
        seen = images if support is None else torch.where(support, images, images.detach())
        return segmentation_losses(network.eval()(seen), masks).sum()

    return loss


class Surrogate:
    """A U-Net with instance normalisation and its optimiser, Adam.

    Args:
        search: gives the shape, the seed and the budget.
    """

    def __init__(self, search: Search) -> None:
        images, budget = search.images, search.budget
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(search.seed, "baseline surrogate"))
            self.net: nn.Module = UNet(images.image_shape[0], images.classes + 1, budget.widths).to(search.device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), budget.lr, weight_decay=5e-4)

    def step(self, images: Tensor, masks: Tensor) -> None:
        """Take a training step on (B, C, H, W) images in [0, 1] and their masks."""
        self.net.train()
        self.optimizer.zero_grad()
        segmentation_losses(self.net(images), masks).mean().backward()
        self.optimizer.step()


def minimise(search: Search) -> Tensor:
    """EM (Huang et al. 2021): a U-Net and the noise of every image take turns in lowering the segmentation loss.

    Returns:
        (N, C, H, W) uint8, the set with its noise.
    """
    budget, images = search.budget, search.images
    surrogate, table, batches = Surrogate(search), search.table(), search.batches()
    stream = itertools.cycle(batches)

    def train() -> None:
        for _ in range(budget.train_steps):
            indices = next(stream)
            surrogate.step(to_unit(table.apply(images.images[indices], indices).to(search.device)), search.masks(indices))

    def loss_of(indices: Tensor) -> Loss:
        return masked_loss(surrogate.net, search.masks(indices), search.support(indices))

    def error() -> float:
        predicted = [predict_masks(surrogate.net, table.apply(images.images[part], part), budget.batch_size, search.device) for part in batches]
        return 1 - mean_score(dice(torch.cat(predicted), images.mask_bytes[torch.cat(batches)], images.classes))

    how = Alternation(search.epsilon, search.epsilon / 10, budget.steps, budget.rounds, budget.stop_error)
    minimise_errors(images.images, table, batches, train, loss_of, error, how, search.device, search.progress)
    return _apply(table, search)


def mislead(search: Search, is_averaged: bool) -> Tensor:
    """TAP (Fowl et al. 2021) and SEP (Chen et al. 2023): noise that shows a network, trained on clean images, another mask than the true one.

    The other mask is the true one rolled by half the height and half the width. TAP descends through the trained network, SEP along the mean gradient
    over checkpoints of its training; steps are 2 ε over their number.

    Args:
        search: the set and the bound.
        is_averaged: whether it is SEP.

    Returns:
        (N, C, H, W) uint8, the set with its noise.
    """
    budget = search.budget
    count, steps = (budget.checkpoints, budget.checkpoint_steps) if is_averaged else (1, budget.target_steps)
    batches = search.batches()
    total = budget.epochs + len(batches)
    networks = _train_clean(search, count, lambda done: search.progress(done, total))
    table = search.table()
    for number, indices in enumerate(batches, budget.epochs + 1):
        other, support = rolled_masks(search.masks(indices)), search.support(indices)
        losses = [masked_loss(network, other, support) for network in networks]
        table.write(indices, descend(search.clean(indices), losses, search.epsilon, 2 * search.epsilon / steps, steps))
        search.progress(number, total)
    return _apply(table, search)


def rolled_masks(masks: Tensor) -> Tensor:
    """Roll (B, H, W) masks by half the height and half the width."""
    return masks.roll((masks.shape[1] // 2, masks.shape[2] // 2), (1, 2))


def _train_clean(search: Search, keep: int, progress: Callable[[int], None]) -> list[nn.Module]:
    """Train on the clean set and return evenly spaced snapshots; the last one is the trained network."""
    budget, surrogate = search.budget, Surrogate(search)
    kept = {round((number + 1) * budget.epochs / keep) for number in range(keep)}
    snapshots: list[nn.Module] = []
    for epoch in range(1, budget.epochs + 1):
        for indices in search.order("epoch", epoch).tensor_split(math.ceil(len(search.images) / budget.batch_size)):
            surrogate.step(search.clean(indices), search.masks(indices))
        if epoch in kept:
            snapshots.append(copy.deepcopy(surrogate.net))
        progress(epoch)
    return snapshots


def _apply(table: NoiseTable, search: Search) -> Tensor:
    indices = torch.arange(len(search.images)).split(256)
    return torch.cat([table.apply(search.images.images[part], part) for part in indices])
