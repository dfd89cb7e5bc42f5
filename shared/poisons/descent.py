"""Sign descent on images: the step that every attack through a network shares, and what such attacks differentiate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) to the scalar sum of their losses; the caller has closed over targets and network."""


def project(delta: Tensor, images: Tensor, epsilon: float) -> Tensor:
    """Return the nearest perturbation of at most `epsilon` in every value, with which the images stay in [0, 1]."""
    return (images + delta.clamp(-epsilon, epsilon)).clamp(0, 1) - images


def mean_gradient(images: Tensor, losses: Sequence[Loss]) -> Tensor:
    """Mean of the losses' gradients with respect to the images; one graph at a time is held, so that many networks fit (SEP, Chen et al. 2023)."""
    total = torch.zeros_like(images)
    with torch.enable_grad():
        for loss in losses:
            leaf = images.detach().requires_grad_()
            total += torch.autograd.grad(loss(leaf), leaf)[0]
    return total / len(losses)


def descend(images: Tensor, losses: Loss | Sequence[Loss], epsilon: float, step: float, steps: int, start: Tensor | None = None) -> Tensor:
    """Lower a loss, or the mean of several, by projected sign descent: δ ← clip(δ - step · sign ∇ L(x + δ)), with x + δ in [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        losses: what to lower; targeted attacks lower the loss of a wrong target, ascent lowers the negative.
        epsilon: bound on every value, in units of [0, 1] images.
        step: length of a step, in the same units.
        steps: number of steps.
        start: (B, C, H, W) perturbation to start from; None starts from 0.

    Returns:
        (B, C, H, W) perturbations.
    """
    each = [losses] if callable(losses) else losses
    delta = torch.zeros_like(images) if start is None else project(start, images, epsilon)
    for _ in range(steps):
        delta = project(delta - step * mean_gradient(images + delta, each).sign(), images, epsilon)
    return delta


def uniform_start(images: Tensor, epsilon: float, random: torch.Generator) -> Tensor:
    """Draw perturbations uniformly from the ball of `epsilon`, on the CPU, so that every device sees the same."""
    drawn = torch.rand(images.shape, generator=random, dtype=images.dtype)
    return ((2 * drawn - 1) * epsilon).to(images.device)


@dataclass(frozen=True)
class View:
    """A crop and a flip for each image of a batch, through which gradients flow back.

    Attributes:
        rows: (B,) first row of the crop in the padded image.
        columns: (B,) first column.
        flips: (B,) whether the crop is mirrored.
        padding: pixels of zeros around the image.
    """

    rows: Tensor
    columns: Tensor
    flips: Tensor
    padding: int

    @classmethod
    def draw(cls, count: int, padding: int, flip: bool, random: torch.Generator) -> View:
        """Draw a view for each of `count` images: any crop as probable as another, half of them mirrored if `flip`."""
        corners = torch.randint(0, 2 * padding + 1, (2, count), generator=random)
        flips = torch.rand(count, generator=random) < 0.5 if flip else torch.zeros(count, dtype=torch.bool)
        return cls(corners[0], corners[1], flips, padding)

    def __call__(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) images to their views of the same shape."""
        channels, height, width = images.shape[1:]
        padded = F.pad(images, [self.padding] * 4)
        across = torch.arange(width)
        columns = self.columns[:, None] + torch.where(self.flips[:, None], across.flip(0), across)  # (B, W)
        rows = self.rows[:, None] + torch.arange(height)  # (B, H)
        lines = rows.to(images.device)[:, None, :, None].expand(-1, channels, -1, padded.shape[3])
        cropped = padded.gather(2, lines)
        return cropped.gather(3, columns.to(images.device)[:, None, None, :].expand(-1, channels, height, -1))


def mean_over_views(loss: Loss, draw: Callable[[], View], count: int) -> Loss:
    """Return the mean of a loss over `count` views drawn anew at every call."""

    def averaged(images: Tensor) -> Tensor:
        return torch.stack([loss(draw()(images)) for _ in range(count)]).mean()

    return averaged


def worst_within(loss: Loss, radius: float, step: float, steps: int, random: torch.Generator) -> Loss:
    """Return max over ‖δ'‖∞ ≤ radius of loss(x + δ'), as robust error-minimising noise lowers it (REM, Fu et al. 2022).

    The inner maximum is sought by sign ascent from a random start. Its gradient is that of the loss at the point found, handed straight through to
    the images.
    """

    def worst(images: Tensor) -> Tensor:
        found = ascend(images.detach(), loss, radius, step, steps, random)
        return loss(images + (found - images).detach())

    return worst


def ascend(images: Tensor, loss: Loss, radius: float, step: float, steps: int, random: torch.Generator) -> Tensor:
    """Return images within `radius` of the given ones, and in [0, 1], at which sign ascent from a random start found the loss high."""
    return images + descend(images, lambda at: -loss(at), radius, step, steps, uniform_start(images, radius, random))
