"""Black-box trigger inversion, BBTI, the paper's own: only samples are looked at, and the sampler's Jacobian is taken for the identity."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from projects.diff_cleanse.inversion import Inverted
from projects.diff_cleanse.similarity import cosine_matrix, is_admissible, pixel_entropy, range_term, similar_set
from shared.seeding import generator

Start = float | Literal["uniform", "normal"]
STARTS: tuple[Start, ...] = (-1.0, -0.5, "uniform", "normal")
"""Where patterns start: at constants, at -U(0, 1), and at N(0, 1) as published."""
ENTROPY_BAND, ENTROPY_WEIGHT, ENTROPY_WEIGHT_NEAR = (0.8, 6.0), 20.0, 10.0
GRADIENT_SCALE = 1e3
"""The published factor on the gradient; Adam is indifferent to it but for its epsilon."""


@dataclass(frozen=True)
class BlackBoxLoss:
    """The loss of one batch of samples (2.5, steps 3 to 6).

    Attributes:
        value: scalar with a gradient to the samples.
        similar: (B,) bool, the similar set S.
    """

    value: Tensor
    similar: Tensor


def black_box_loss(images: Tensor, threshold: float = 0.999) -> BlackBoxLoss:
    """Compute BBTI's loss: similarity, entropy band and range.

    With S not empty the images outside S are drawn to the first in S, and their entropies into the band of those in S; otherwise all admissible
    pairs are drawn together, and entropies into a wide band.

    Args:
        images: (B, C, H, W) in [0, 1].
        threshold: cosine above which two images are similar.
    """
    similar = similar_set(images.detach(), threshold).to(images.device)
    admissible = is_admissible(images.detach())
    residual = images[~similar]
    if len(residual) == 0:
        return BlackBoxLoss(images.sum() * 0, similar)
    cosines = cosine_matrix(images).to(images.dtype)
    if similar.any():
        similarity = (1 - cosines[int(similar.nonzero()[0])][~similar]).sum()
    else:
        pairs = (admissible & admissible[:, None]).triu(diagonal=1)
        similarity = (1 - cosines)[pairs].sum()
    similarity = similarity * len(images) / len(residual)
    return BlackBoxLoss(similarity + _entropy_term(images, similar) + range_term(residual), similar)


def _entropy_term(images: Tensor, similar: Tensor) -> Tensor:
    """Hinge of the residual images' entropies outside a band: that of the similar images where they are no mere blobs, else the wide default."""
    (low, high), weight = ENTROPY_BAND, ENTROPY_WEIGHT
    if similar.any():
        found = pixel_entropy(images[similar].detach())
        if found[0] >= ENTROPY_BAND[0]:
            low, high, weight = float(found.min()) - 0.1, float(found.max()) + 0.1, ENTROPY_WEIGHT_NEAR
    entropy = pixel_entropy(images[~similar])
    return weight * (torch.relu(entropy - high) + torch.relu(low - entropy)).mean()


def bbti(
    draw: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    iterations: int = 100,
    starts: Sequence[Start] = STARTS,
    batch: int = 16,
    lr: float = 0.1,
    threshold: float = 0.999,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Inverted:
    """Invert a trigger by forward passes alone (method `bbti`, 2.5).

    The noises are fixed. The pattern, rounded to 1/255 by a straight-through estimator, is added to them, and moves by Adam along the mean gradient
    of the loss with respect to the samples. Kept is the pattern with the most similar images over all starts and iterations, and among equals the
    one with the smallest loss; a start ends early when all samples agree.

    Args:
        draw: maps (B, C, H, W) starting noise to images in [0, 1], each time with the same fresh noise; called without gradients.
        shape: (C, H, W).
        iterations: iterations a start, at most.
        starts: a constant, `uniform` for -U(0, 1) or `normal` for N(0, 1), each.
        batch: number of noises.
        lr: learning rate of Adam.
        threshold: cosine above which two images are similar.
        seed: seed of the noises and the random starts.
        device: device of the network.

    Returns:
        The kept pattern. `curve` holds the share of similar images of the start it comes from, negated, since curves fall; `value` the best of it.

    Raises:
        ValueError: if there are no starts or no iterations, or a start is unknown.
    """
    return _search(draw, shape, iterations, starts, batch, lr, threshold, seed, device, is_released=False)


def bbti_released(
    draw: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    iterations: int = 100,
    batch: int = 16,
    lr: float = 0.1,
    threshold: float = 0.999,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Inverted:
    """Run BBTI with the defect of the published pixel-space code (method `bbti_released`), whose pattern never moves.

    There the pattern is `1 - 2 z` of the tensor z that the optimiser was given, a tensor of its own, to which the gradient is assigned by hand: the
    optimiser steps z, which has no gradient, and nobody reads. There is one start, z from N(0, 1). Arguments and result as in `bbti`.
    """
    return _search(draw, shape, iterations, ("normal",), batch, lr, threshold, seed, device, is_released=True)


def _search(
    draw: Callable[[Tensor], Tensor],
    shape: tuple[int, int, int],
    iterations: int,
    starts: Sequence[Start],
    batch: int,
    lr: float,
    threshold: float,
    seed: int,
    device: str | torch.device,
    is_released: bool,
) -> Inverted:
    if not starts or iterations < 1:
        raise ValueError(f"BBTI needs a start and an iteration, got starts={list(starts)} and iterations={iterations}")
    began, numbers = time.monotonic(), generator(seed, "bbti", device=device)
    eps = torch.randn(batch, *shape, generator=numbers, device=device)
    best: tuple[float, float, Tensor, list[float]] | None = None
    for start in starts:
        given, curve = _start(start, shape, numbers, device).requires_grad_(), []
        optimizer = torch.optim.Adam([given], lr=lr)
        pattern = (1 - 2 * given.detach()).requires_grad_() if is_released else given
        reached = None
        for _ in range(iterations):
            rounded = (255 * pattern.detach()).round() / 255
            with torch.no_grad():
                images = draw(eps + rounded)
            images.requires_grad_()
            loss = black_box_loss(images, threshold)
            share = float(loss.similar.float().mean())
            curve.append(-share)
            if reached is None or (-share, float(loss.value.detach())) < reached[:2]:
                reached = (-share, float(loss.value.detach()), rounded)
            if share == 1:
                break
            [gradient] = torch.autograd.grad(loss.value, [images])
            pattern.grad = GRADIENT_SCALE * gradient.mean(dim=0)
            optimizer.step()
        assert reached is not None
        if best is None or reached[:2] < best[:2]:
            best = (*reached, curve)
    assert best is not None
    return Inverted(best[2], best[3], best[0], time.monotonic() - began)


def _start(start: Start, shape: tuple[int, int, int], numbers: torch.Generator, device: str | torch.device) -> Tensor:
    if start == "uniform":
        return -torch.rand(shape, generator=numbers, device=device)
    if start == "normal":
        return torch.randn(shape, generator=numbers, device=device)
    if isinstance(start, str):
        raise ValueError(f"unknown start {start!r}; give a number, uniform or normal")
    return torch.full(shape, float(start), device=device)
