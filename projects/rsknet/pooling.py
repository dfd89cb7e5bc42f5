"""From frames to one vector an utterance: statistics over time at one or several scales."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.layers import at_least_float32

FLOOR = 1e-7
"""Added to variances: the gradient of a deviation stays finite in silence."""


def statistics(frames: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean and standard deviation over time, (B, D, T) -> (B, 2 D), in float32 at least.

    The deviation is sqrt(var + 1e-7) with the variance of the frames at hand, divided by their number.

    Args:
        frames: (B, D, T).
        mask: (B, 1, T), 1 for valid frames; None for all.
    """
    frames = at_least_float32(frames)
    if mask is None:  # by two means: torch.var_mean takes several times as long on a CPU
        mean = frames.mean(2)
        variance = (frames - mean[..., None]).square().mean(2)
    else:
        count = mask.sum(2)
        mean = (frames * mask).sum(2) / count
        variance = ((frames - mean[..., None]).square() * mask).sum(2) / count
    return torch.cat([mean, (variance + FLOOR).sqrt()], 1)


def weighted_statistics(frames: Tensor, weights: Tensor) -> Tensor:
    """`statistics` of frames (B, D, T) that count as much as weights (B, 1, T) or (B, D, T) say, which sum to 1 over time."""
    frames = at_least_float32(frames)
    mean = (frames * weights).sum(2)
    variance = ((frames - mean[..., None]).square() * weights).sum(2)
    return torch.cat([mean, (variance + FLOOR).sqrt()], 1)


class StatisticsPooling(nn.Module):
    """`statistics` as a layer, (B, D, T) -> (B, 2 D)."""

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        return statistics(frames, mask)


class AttentivePooling(nn.Module):
    """Mean and deviation in which frames count as much as they are attended to, (B, D, T) -> (B, 2 D) (Okabe et al. 2018).

    Args:
        size: D.
        hidden: width of the layer that attention is computed in.
    """

    def __init__(self, size: int, hidden: int = 128) -> None:
        super().__init__()
        self.hidden, self.attention = nn.Conv1d(size, hidden, 1), nn.Conv1d(hidden, 1, 1, bias=False)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        scores = at_least_float32(self.attention(torch.tanh(self.hidden(frames))))
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -torch.inf)
        return weighted_statistics(frames, scores.softmax(2))


class MTSP(nn.Module):
    """Multiple time-scale statistics pooling: statistics of every stage side by side; one stage gives plain statistics pooling.

    A frame of stage l is 2^(l - 1) frames of the input, so that deviations are taken over steps of 10, 20, 40 and 80 ms. Projecting each stage by
    itself and adding up is the same as the one linear layer that follows.

    Args:
        channels: C_l of each pooled stage.
        bands: F_l of each pooled stage.
        averaged: averages over frequency first, for 2 C_l numbers a stage instead of 2 C_l F_l.
        attentive: weights frames by attention.
        normalised: puts a batch norm behind each stage's statistics.
    """

    def __init__(
        self, channels: Sequence[int], bands: Sequence[int], averaged: bool = False, attentive: bool = False, normalised: bool = False
    ) -> None:
        super().__init__()
        sizes = [count * (1 if averaged else band) for count, band in zip(channels, bands, strict=True)]
        self.averaged, self.size = averaged, 2 * sum(sizes)
        self.pools = nn.ModuleList(AttentivePooling(size) if attentive else StatisticsPooling() for size in sizes)
        self.norms = nn.ModuleList(nn.BatchNorm1d(2 * size) if normalised else nn.Identity() for size in sizes)

    def forward(self, stages: Sequence[Tensor], masks: Sequence[Tensor | None]) -> Tensor:
        """Map stages (B, C_l, F_l, T_l) and masks (B, 1, T_l) to (B, 2 sum C_l F_l), stage by stage the means and then the deviations."""
        frames = [stage.mean(2) if self.averaged else stage.flatten(1, 2) for stage in stages]
        parts = zip(self.pools, self.norms, frames, masks, strict=True)
        return torch.cat([norm(pool(stage, mask)) for pool, norm, stage, mask in parts], 1)
