"""How well scores tell positives (1) from negatives (0): the curve of both rates over all thresholds, and what is measured along it.

curve = roc(scores, labels)                        # sorts once
print(auroc(curve), eer(curve), tpr_at(curve, 0.01))

Labels of one class make no curve: what is measured along it is NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

EqualErrorRule = Literal["interpolated", "nearest"]
"""Where the rates of errors are equal: on the straight line between two points of the curve, or at the point where they differ least."""


def checked(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return (N,) scores as float64 and (N,) labels as int64, on the CPU.

    Raises:
        ValueError: if there are no scores, shapes differ, a score is NaN or a label is neither 0 nor 1.
    """
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels must be (N,) of one length, got {tuple(scores.shape)} and {tuple(labels.shape)}")
    if len(scores) == 0:
        raise ValueError("there are no scores to judge: the test set is empty")
    scores, labels = scores.detach().cpu().double(), labels.detach().cpu().long()
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN, the first one in row {int(scores.isnan().nonzero()[0])}")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels must be 0 or 1, got {sorted(set(labels.tolist()) - {0, 1})[:4]}")
    return scores, labels


@dataclass(frozen=True)
class Roc:
    """The receiver operating characteristic in counts: how many are called positive at each threshold.

    Attributes:
        thresholds: (T,) distinct scores, the highest one first.
        negatives: (T + 1,) float64, negatives with at least that score; 0 in front.
        positives: (T + 1,) float64, positives with at least that score; 0 in front.
    """

    thresholds: Tensor
    negatives: Tensor
    positives: Tensor

    @property
    def fpr(self) -> Tensor:
        """(T + 1,) part of the negatives that is called positive; NaN if there are none."""
        return self.negatives / self.negatives[-1]

    @property
    def tpr(self) -> Tensor:
        """(T + 1,) part of the positives that is called positive; NaN if there are none."""
        return self.positives / self.positives[-1]

    @property
    def has_both(self) -> bool:
        """Whether there are negatives and positives."""
        return bool(self.negatives[-1] > 0) and bool(self.positives[-1] > 0)


def roc(scores: Tensor, labels: Tensor) -> Roc:
    """Count negatives and positives above each distinct score; equal scores are one threshold.

    Args:
        scores: (N,) finite numbers, higher for positives.
        labels: (N,) 0 negative, 1 positive.

    Raises:
        ValueError: if there are no scores, shapes differ, a score is NaN or a label is neither 0 nor 1.
    """
    scores, labels = checked(scores, labels)
    thresholds, place = scores.unique(return_inverse=True)
    negatives, positives = (torch.bincount(place[labels == label], minlength=len(thresholds)).double().flip(0) for label in (0, 1))
    zero = negatives.new_zeros(1)
    return Roc(thresholds.flip(0), torch.cat([zero, negatives.cumsum(0)]), torch.cat([zero, positives.cumsum(0)]))


def auroc(curve: Roc) -> float:
    """Area under the curve: the chance that a positive scores higher than a negative, ties counting one half; NaN for one class."""
    return float(torch.trapezoid(curve.tpr, curve.fpr))


def average_precision(curve: Roc) -> float:
    """Mean precision over the positives, in steps: sum of (R_i - R_{i-1}) P_i; NaN for one class."""
    if not curve.has_both:
        return math.nan
    precision = curve.positives[1:] / (curve.positives[1:] + curve.negatives[1:])
    return float((curve.tpr.diff() * precision).sum())


def eer(curve: Roc, rule: EqualErrorRule = "interpolated") -> float:
    """Equal error rate: where the part of the negatives called positive is that of the positives called negative; NaN for one class.

    Args:
        curve: the curve.
        rule: `interpolated` is the root of 1 - x - TPR(x) with TPR linear between points. `nearest` is the FPR at the first point of least
            |FNR - FPR|, the points being the corners of the curve, as in DeepfakeBench; on small sets it is off by up to a few points.

    Raises:
        ValueError: if there is no such rule.
    """
    if rule not in get_args(EqualErrorRule):
        raise ValueError(f"rule must be one of {', '.join(get_args(EqualErrorRule))}, got {rule!r}")
    if not curve.has_both:
        return math.nan
    if rule == "nearest":
        corners = _corners(curve)
        return float(curve.fpr[corners][(1 - curve.tpr[corners] - curve.fpr[corners]).abs().argmin()])
    return float(_equal_errors(curve)[0])


def eer_threshold(curve: Roc) -> float:
    """Return the score at or above which to call a row positive for (interpolated) equal error rates; NaN for one class."""
    return float(curve.thresholds[int(_equal_errors(curve)[1]) - 1]) if curve.has_both else math.nan


def _equal_errors(curve: Roc) -> tuple[Tensor, Tensor]:
    """Return the equal error rate and the first point at or beyond it."""
    negatives, positives = curve.negatives[-1], curve.positives[-1]
    excess = curve.negatives * positives + curve.positives * negatives - negatives * positives  # FPR + TPR - 1 in whole numbers; rises strictly
    after = (excess >= 0).int().argmax()
    part = -excess[after - 1] / (excess[after] - excess[after - 1])
    return curve.fpr[after - 1] + part * (curve.fpr[after] - curve.fpr[after - 1]), after


def _corners(curve: Roc) -> Tensor:
    """Return (T + 1,) bool: False in the middle of straight runs of equal steps, which scikit-learn's curve leaves out."""
    kept = torch.ones_like(curve.negatives, dtype=torch.bool)
    kept[2:-1] = (curve.negatives[1:].diff(n=2) != 0) | (curve.positives[1:].diff(n=2) != 0)
    return kept


def tpr_at(curve: Roc, fpr: float) -> float:
    """Largest part of the positives that is found while at most `fpr` of the negatives is called positive; NaN for one class.

    Nothing is interpolated: with fewer than 1 / `fpr` negatives, none of them may be called positive.

    Raises:
        ValueError: if `fpr` is outside [0, 1].
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must be in [0, 1], got {fpr}")
    return float(curve.tpr[curve.fpr <= fpr].max()) if curve.has_both else math.nan
