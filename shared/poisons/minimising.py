"""Error-minimising noise (EM, Huang et al. 2021): a network and the noise take turns in lowering the same loss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shared.poisons.bounds import add_on_grid
from shared.poisons.descent import Loss, descend


class NoiseTable:
    """Perturbations of a whole set, in pixels of 255: one for each image, or one for each group of images.

    Args:
        groups: (N,) the row of each image.
        rows: number of rows.
        shape: (C, H, W).
        radius: bound on every value in pixels, from 1 to 127.
        dtype: int8 holds what will be stored; float32 also the means of groups, between whole pixels.
    """

    def __init__(self, groups: Tensor, rows: int, shape: tuple[int, int, int], radius: float, dtype: torch.dtype = torch.int8) -> None:
        self.groups, self.radius = groups, radius
        self.levels = torch.zeros(rows, *shape, dtype=dtype)

    @classmethod
    def of_images(cls, count: int, shape: tuple[int, int, int], radius: float) -> NoiseTable:
        """Return a table of zeros with a row for each of `count` images."""
        return cls(torch.arange(count), count, shape, radius)

    @classmethod
    def of_groups(cls, groups: Tensor, rows: int, shape: tuple[int, int, int], radius: float) -> NoiseTable:
        """Return a table of zeros with a row for each group, such as a class."""
        return cls(groups, rows, shape, radius, torch.float32)

    def read(self, indices: Tensor) -> Tensor:
        """Return the perturbations of the images at (B,) indices, (B, C, H, W) in units of [0, 1] images."""
        return self.levels[self.groups[indices]].float() / 255

    def write(self, indices: Tensor, delta: Tensor) -> None:
        """Store perturbations, each group's being the mean over its images at hand; integers are rounded and never exceed the radius."""
        rows, places = self.groups[indices].unique(return_inverse=True)
        pixels = 255 * delta.cpu().float()
        means = torch.zeros(len(rows), *pixels.shape[1:]).index_add_(0, places, pixels) / torch.bincount(places)[:, None, None, None]
        if not self.levels.is_floating_point():
            self.levels[rows] = means.round().clamp(-int(self.radius), int(self.radius)).to(self.levels.dtype)
        else:
            self.levels[rows] = means.clamp(-self.radius, self.radius)

    def apply(self, images: Tensor, indices: Tensor) -> Tensor:
        """Add the perturbations to (B, C, H, W) uint8 images at (B,) indices."""
        limit = int(self.radius)  # a mean between whole pixels may be rounded beyond a bound between them
        pixels = (255 * self.read(indices)).round().clamp(-limit, limit)
        return add_on_grid(images, pixels / 255)


@dataclass(frozen=True)
class Alternation:
    """How noise is minimised.

    Attributes:
        epsilon: bound on every value, in units of [0, 1] images.
        step: length of a step of descent, in the same units; published: a tenth of the bound.
        steps: T, steps of descent for each image in a round; published: 20, and 1 for class-wise noise.
        rounds: rounds after which to stop in any case.
        stop_error: the network's error, in [0, 1], below which to stop; published: 0.01, and 0.1 for class-wise noise.
    """

    epsilon: float
    step: float
    steps: int
    rounds: int
    stop_error: float


def minimise_errors(
    images: Tensor,
    table: NoiseTable,
    batches: Sequence[Tensor],
    train: Callable[[], None],
    loss_of: Callable[[Tensor], Loss],
    error: Callable[[], float],
    how: Alternation,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[float]:
    """Lower the loss by turns: train the network on x + δ, then descend in δ for every image, until the error on x + δ is low.

    What the loss is, and of what target, the caller says: a classifier's cross-entropy, or the overlap of a segmentation.

    Args:
        images: (N, C, H, W) uint8.
        table: the noise, which is changed in place.
        batches: indices of the images that are perturbed together; each image is in one of them.
        train: takes some training steps of the network on x + δ.
        loss_of: returns the frozen network's loss for the images at given indices.
        error: measures the network's error on x + δ, in [0, 1].
        how: steps and the rule for stopping.
        device: where the losses are computed.
        progress: is called after every round with the rounds done and their greatest number.

    Returns:
        The error after each round.
    """
    errors = []
    for number in range(how.rounds):
        train()
        for indices in batches:
            clean = images[indices].to(device).float() / 255
            start = table.read(indices).to(device)
            table.write(indices, descend(clean, loss_of(indices), how.epsilon, how.step, how.steps, start))
        errors.append(error())
        if progress:
            progress(number + 1, how.rounds)
        if errors[-1] < how.stop_error:
            break
    return errors
