"""A toy world that shows what a selective kernel is for: clicks in pairs, whose distance in time is the class."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from shared.seeding import generator

BANDS, FRAMES = 8, 100
PAIRS, CLICK, NOISE = 4, 1.5, 0.3
"""Pairs of clicks an example, what a click adds to all bands of its frame, and the deviation of the noise."""
FAR, NEAR = (8, 11), (1, 2)
"""Lags in frames that a plain block does not see, and those that a block of nothing but dilated convolutions does not."""


def lag_examples(seed: int, split: Literal["train", "test"], count: int, lags: tuple[int, int] = FAR) -> tuple[Tensor, Tensor]:
    """Draw examples with four pairs of clicks each; first clicks fall on the same frames whatever the class, so that only the lag tells.

    Args:
        seed: of the world.
        split: train or test, whose noise and places differ.
        count: N.
        lags: frames from the first to the second click of a pair, for class 0 and class 1.

    Returns:
        (N, 8, 100) features, and (N,) int64 classes.

    Raises:
        ValueError: if a lag is not from 1 to 99.
    """
    if not 1 <= min(lags) <= max(lags) < FRAMES:
        raise ValueError(f"lags lie from 1 to {FRAMES - 1} frames, got {lags}")
    rng = generator(seed, "lag", split)
    labels = torch.randint(2, (count,), generator=rng)
    features = NOISE * torch.randn(count, BANDS, FRAMES, generator=rng)
    first = torch.randint(FRAMES - max(lags), (count, PAIRS), generator=rng)
    frames = torch.cat([first, first + torch.tensor(lags)[labels][:, None]], 1)  # (N, 8)
    clicks = torch.zeros(count, FRAMES).scatter_add_(1, frames, torch.full(frames.shape, CLICK))
    return features + clicks[:, None], labels
