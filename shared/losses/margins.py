"""Softmax heads with a margin on the cosine between an embedding and its class's weight, for verification of speakers and faces."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.layers import at_least_float32

SINE_FLOOR = 1e-7
"""The least squared sine: keeps the gradient of the square root finite where an embedding lies on its class's weight."""


def aam_logits(cosines: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Return s cos(theta_y + m) for the true class and s cos(theta_j) for the others (additive angular margin, Deng et al. 2019).

    Where theta_y + m would pass pi, cos(theta_y + m) would rise again; there cos(theta_y) - m sin(m) stands in its place,
    which falls with theta_y too and lies below -1.

    Args:
        cosines: (B, K) cosines of B embeddings with K classes, in [-1, 1].
        labels: (B,) integer classes in [0, K).
        margin: m in radians, in [0, pi).
        scale: s, above 0.

    Returns:
        (B, K) logits, in the precision of the cosines.

    Raises:
        ValueError: if a label, the margin or the scale is out of its range.
    """
    _check_margin(margin)
    true = _true_cosines(cosines, labels, scale)
    sines = (1 - true * true).clamp_min(SINE_FLOOR).sqrt()
    shifted = true * math.cos(margin) - sines * math.sin(margin)  # cos(theta + m) without the arc cosine, whose gradient is infinite at +-1
    guarded = torch.where(true > math.cos(math.pi - margin), shifted, true - margin * math.sin(margin))
    return _with_true(cosines, labels, guarded if margin else true) * scale


def am_logits(cosines: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Return s (cos(theta_y) - m) for the true class and s cos(theta_j) for the others (additive margin, Wang et al. 2018); see `aam_logits`."""
    _check_margin(margin)
    return _with_true(cosines, labels, _true_cosines(cosines, labels, scale) - margin) * scale


def margin_ramp(step: int, start: int, end: int, final: float) -> float:
    """Return the margin of a step: 0 up to `start`, final (1 - 0.001^x) with x from 0 to 1 on the way to `end`, `final` from there on.

    It depends on the step alone, so training that resumes finds the same margin.

    Raises:
        ValueError: if `end` lies before `start`.
    """
    if end < start:
        raise ValueError(f"the margin's ramp ends at step {end}, before its start at {start}")
    if step >= end:
        return final
    return 0.0 if step <= start else final * (1 - 1e-3 ** ((step - start) / (end - start)))


class MarginSoftmax(nn.Module):
    """Classification layer that training puts on an embedding: (B, E) and labels to (B, K) logits for the cross-entropy.

    A schedule may set the attribute `margin`, a plain number, at any step (see `margin_ramp`).

    Args:
        features: E, the length of an embedding.
        classes: K.
        kind: "aam" and "am" put the margin on the angle or on the cosine; "softmax" is a linear layer on the raw embedding, without margin or scale.
        margin: m, in radians for "aam", in cosine for "am".
        scale: s, what cosines are multiplied by.
        subcentres: weights per class, of which the nearest counts (Deng et al. 2020): robust to wrong labels; 1 is the plain head.

    Raises:
        ValueError: if the kind is unknown or a number out of its range.
    """

    def __init__(
        self,
        features: int,
        classes: int,
        kind: Literal["aam", "am", "softmax"] = "aam",
        margin: float = 0.2,
        scale: float = 32.0,
        subcentres: int = 1,
    ) -> None:
        super().__init__()
        if kind not in ("aam", "am", "softmax"):
            raise ValueError(f"unknown margin softmax {kind!r}: choose aam, am or softmax")
        if min(features, classes, subcentres) < 1:
            raise ValueError(f"features, classes and subcentres must be at least 1, got {features}, {classes} and {subcentres}")
        if kind == "softmax" and subcentres > 1:
            raise ValueError(f"plain softmax has one centre a class, got subcentres={subcentres}: choose aam or am")
        _check_margin(margin)
        _check_scale(scale)
        self.kind, self.margin, self.scale, self.subcentres = kind, margin, scale, subcentres
        self.weight = nn.Parameter(torch.empty(classes * subcentres, features))
        self.bias = nn.Parameter(torch.zeros(classes)) if kind == "softmax" else None
        nn.init.xavier_uniform_(self.weight)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Map (B, E) to (B, K) cosines with the nearest centre of each class, in float32 at least also under autocast."""
        with torch.autocast(embeddings.device.type, enabled=False):
            directions = F.normalize(at_least_float32(embeddings))
            cosines = F.linear(directions, F.normalize(at_least_float32(self.weight)))  # (B, K S)
        return cosines.unflatten(1, (-1, self.subcentres)).amax(2) if self.subcentres > 1 else cosines

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Map (B, E) embeddings and their (B,) labels in [0, K) to (B, K) logits, in float32 at least also under autocast."""
        if self.bias is not None:
            _check_labels(labels, len(embeddings), len(self.bias))
            with torch.autocast(embeddings.device.type, enabled=False):
                return F.linear(at_least_float32(embeddings), at_least_float32(self.weight), at_least_float32(self.bias))
        return (aam_logits if self.kind == "aam" else am_logits)(self.cosines(embeddings), labels, self.margin, self.scale)


def _true_cosines(cosines: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return (B,) cosines with the true classes, once labels and scale are known to be right."""
    _check_scale(scale)
    _check_labels(labels, *cosines.shape)
    return cosines.gather(1, labels[:, None]).squeeze(1)


def _with_true(cosines: Tensor, labels: Tensor, true: Tensor) -> Tensor:
    return cosines.scatter(1, labels[:, None], true[:, None])


def _check_labels(labels: Tensor, batch: int, classes: int) -> None:
    if labels.shape != (batch,):
        raise ValueError(f"{batch} embeddings need ({batch},) labels, got {tuple(labels.shape)}")
    if labels.device.type != "cpu":  # looking at them would wait for the device; there they fail in the gathering
        return
    low, high = (int(bound) for bound in labels.aminmax()) if batch else (0, 0)
    if low < 0 or high >= classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}, got {low}..{high}: does the head have as many classes as the data?")


def _check_margin(margin: float) -> None:
    if not 0 <= margin < math.pi:
        raise ValueError(f"margin must lie in [0, pi), got {margin}")


def _check_scale(scale: float) -> None:
    if not scale > 0:
        raise ValueError(f"scale must be positive, got {scale}")
