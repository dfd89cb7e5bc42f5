"""How well scores tell fakes (1) from reals (0), pooled over all frames of a set (section 5 of the MoE-FFD sheet).

curve = roc(scored.scores, scored.labels)          # sorts once
print(auroc(curve), eer(curve), tpr_at(curve, 0.01))
print(auroc(roc(*video_scores(scored).columns)))   # of videos, whose score is the mean over their frames

A set of one class has no curve: what is measured along it is NaN, and what needs no curve is still given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

EqualErrorRule = Literal["interpolated", "nearest"]
"""Where the rates of errors are equal: on the straight line between two points of the curve, or at the point where they differ least."""


@dataclass(frozen=True)
class Scored:
    """Scored frames, or scored videos.

    Attributes:
        scores: (N,) probabilities of being fake, in [0, 1]; kept as float64.
        labels: (N,) 0 real, 1 fake.
        videos: (N,) number of the video that the frame belongs to; one video is one data set's, one manipulation's and one clip's.

    Raises:
        ValueError: if there are no rows, their numbers differ, a score is no probability or a label is neither 0 nor 1.
    """

    scores: Tensor
    labels: Tensor
    videos: Tensor

    def __post_init__(self) -> None:
        scores, labels = _checked(self.scores, self.labels)
        if self.videos.shape != scores.shape:
            raise ValueError(f"{len(scores)} scores with numbers of videos of shape {tuple(self.videos.shape)}: there must be one a score")
        if not bool(((scores >= 0) & (scores <= 1)).all()):
            raise ValueError(
                f"scores must be probabilities in [0, 1] (softmax(logits)[:, 1]), got {float(scores.min()):g} to {float(scores.max()):g}"
            )
        for name, value in (("scores", scores), ("labels", labels), ("videos", self.videos.detach().cpu().long())):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def columns(self) -> tuple[Tensor, Tensor]:
        """Scores and labels."""
        return self.scores, self.labels


def _checked(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    if scores.ndim != 1 or scores.shape != labels.shape:
        raise ValueError(f"scores and labels must be (N,) of one length, got {tuple(scores.shape)} and {tuple(labels.shape)}")
    if len(scores) == 0:
        raise ValueError("there are no scores to judge: the test set is empty")
    scores, labels = scores.detach().cpu().double(), labels.detach().cpu().long()
    if bool(scores.isnan().any()):
        raise ValueError(f"{int(scores.isnan().sum())} of {len(scores)} scores are NaN, the first one in row {int(scores.isnan().nonzero()[0])}")
    if not bool(((labels == 0) | (labels == 1)).all()):
        raise ValueError(f"labels must be 0 (real) or 1 (fake), got {sorted(set(labels.tolist()) - {0, 1})[:4]}")
    return scores, labels


def video_scores(scored: Scored) -> Scored:
    """Give every video the mean of its frames' scores; rows are in the order of the videos' numbers.

    Raises:
        ValueError: if a video has frames of both labels.
    """
    numbers, place = scored.videos.unique(return_inverse=True)
    frames = torch.bincount(place)
    fakes = torch.bincount(place, scored.labels.double())
    if bool((mixed := (fakes > 0) & (fakes < frames)).any()):
        raise ValueError(f"video {int(numbers[mixed][0])} has real and fake frames: number videos by data set, manipulation and clip")
    return Scored((torch.bincount(place, scored.scores) / frames).clamp(0, 1), (fakes > 0).long(), numbers)  # sums of ones may round past 1


@dataclass(frozen=True)
class Roc:
    """The receiver operating characteristic in counts: how many are called fake at each threshold.

    Attributes:
        thresholds: (T,) distinct scores, the highest one first.
        reals: (T + 1,) float64, reals with at least that score; 0 in front.
        fakes: (T + 1,) float64, fakes with at least that score; 0 in front.
    """

    thresholds: Tensor
    reals: Tensor
    fakes: Tensor

    @property
    def fpr(self) -> Tensor:
        """(T + 1,) part of the reals that is called fake; NaN if there are none."""
        return self.reals / self.reals[-1]

    @property
    def tpr(self) -> Tensor:
        """(T + 1,) part of the fakes that is called fake; NaN if there are none."""
        return self.fakes / self.fakes[-1]

    @property
    def has_both(self) -> bool:
        """Whether there are reals and fakes."""
        return bool(self.reals[-1] > 0) and bool(self.fakes[-1] > 0)


def roc(scores: Tensor, labels: Tensor) -> Roc:
    """Count reals and fakes above each distinct score; equal scores are one threshold.

    Args:
        scores: (N,) finite numbers, higher for fakes.
        labels: (N,) 0 real, 1 fake.

    Raises:
        ValueError: if there are no scores, shapes differ, a score is NaN or a label is neither 0 nor 1.
    """
    scores, labels = _checked(scores, labels)
    thresholds, place = scores.unique(return_inverse=True)
    reals, fakes = (torch.bincount(place[labels == label], minlength=len(thresholds)).double().flip(0) for label in (0, 1))
    zero = reals.new_zeros(1)
    return Roc(thresholds.flip(0), torch.cat([zero, reals.cumsum(0)]), torch.cat([zero, fakes.cumsum(0)]))


def auroc(curve: Roc) -> float:
    """Area under the curve: the chance that a fake scores higher than a real, ties counting one half; NaN for one class."""
    return float(torch.trapezoid(curve.tpr, curve.fpr))


def weighted_auroc(scored: Scored, weights: Iterable[Tensor]) -> Tensor:
    """Areas under the curves of sets in which videos count several times, or not at all: the part of the pairs in which a fake scores higher.

    Args:
        scored: N frames.
        weights: one part of the sets after the other, (V, R) float64: how often each video, in the order of their numbers, counts in each of R sets.
            Memory is that of 4 N R numbers.

    Returns:
        (sum of R,) float64, ties counting one half; NaN for sets of one class.
    """
    scores, order = scored.scores.sort()
    video, is_fake = scored.videos.unique(return_inverse=True)[1][order], scored.labels[order] == 1
    first, last = (torch.searchsorted(scores[~is_fake], scores[is_fake], right=right) for right in (False, True))
    areas = []
    for times in weights:
        lower = F.pad(times[video[~is_fake]].cumsum(0), (0, 0, 1, 0))  # (reals + 1, R) weight of so many of the lowest reals
        fakes = times[video[is_fake]]
        areas.append((fakes * (lower[first] + lower[last])).sum(0) / (2 * lower[-1] * fakes.sum(0)))
    return torch.cat(areas)


def average_precision(curve: Roc) -> float:
    """Mean precision over the fakes, in steps: sum of (R_i - R_{i-1}) P_i; NaN for one class."""
    if not curve.has_both:
        return math.nan
    precision = curve.fakes[1:] / (curve.fakes[1:] + curve.reals[1:])
    return float((curve.tpr.diff() * precision).sum())


def eer(curve: Roc, rule: EqualErrorRule = "interpolated") -> float:
    """Equal error rate: where as large a part of the reals is called fake as of the fakes is called real; NaN for one class.

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
    """Return the score at or above which to call a face fake for (interpolated) equal error rates; NaN for one class."""
    return float(curve.thresholds[int(_equal_errors(curve)[1]) - 1]) if curve.has_both else math.nan


def _equal_errors(curve: Roc) -> tuple[Tensor, Tensor]:
    """Return the equal error rate and the first point at or beyond it."""
    reals, fakes = curve.reals[-1], curve.fakes[-1]
    excess = curve.reals * fakes + curve.fakes * reals - reals * fakes  # FPR + TPR - 1 in whole numbers; rises strictly
    after = (excess >= 0).int().argmax()
    part = -excess[after - 1] / (excess[after] - excess[after - 1])
    return curve.fpr[after - 1] + part * (curve.fpr[after] - curve.fpr[after - 1]), after


def _corners(curve: Roc) -> Tensor:
    """Return (T + 1,) bool: False in the middle of straight runs of equal steps, which scikit-learn's curve leaves out."""
    kept = torch.ones_like(curve.reals, dtype=torch.bool)
    kept[2:-1] = (curve.reals[1:].diff(n=2) != 0) | (curve.fakes[1:].diff(n=2) != 0)
    return kept


def tpr_at(curve: Roc, fpr: float) -> float:
    """Largest part of the fakes that is found while at most `fpr` of the reals is called fake; NaN for one class.

    Nothing is interpolated: with fewer than 1 / `fpr` reals, none of them may be called fake.

    Raises:
        ValueError: if `fpr` is outside [0, 1].
    """
    if not 0 <= fpr <= 1:
        raise ValueError(f"fpr must be in [0, 1], got {fpr}")
    return float(curve.tpr[curve.fpr <= fpr].max()) if curve.has_both else math.nan


def accuracy(scores: Tensor, labels: Tensor, threshold: float = 0.5) -> float:
    """Part of the (N,) scores on the right side of the threshold; a score above it is called fake."""
    scores, labels = _checked(scores, labels)
    return float(((scores > threshold) == (labels == 1)).double().mean())


def presentation_errors(scores: Tensor, labels: Tensor, attacks: Sequence[str] | None = None, threshold: float = 0.5) -> dict[str, float]:
    """Errors of presentation attack detection, after ISO/IEC 30107-3: fakes are the attacks, reals are bona fide.

    Args:
        scores: (N,) probabilities of being fake.
        labels: (N,) 0 real, 1 fake.
        attacks: manipulation of every row; those of reals do not matter. None takes all fakes as one kind.
        threshold: a score above it is called fake.

    Returns:
        `apcer`, the part of the fakes that is called real, of the worst manipulation; `bpcer`, the part of the reals that is called fake;
        `acer`, their mean. NaN where a class is missing.

    Raises:
        ValueError: if shapes differ, or a score or label is out of range.
    """
    scores, labels = _checked(scores, labels)
    if attacks is not None and len(attacks) != len(scores):
        raise ValueError(f"{len(scores)} scores with {len(attacks)} manipulations: there must be one a score")
    called_real = (scores <= threshold).double()
    kinds = ["fake"] * len(scores) if attacks is None else attacks
    rows: dict[str, list[int]] = {}
    for row in (labels == 1).nonzero()[:, 0].tolist():
        rows.setdefault(kinds[row], []).append(row)
    apcer = max((float(called_real[of_kind].mean()) for of_kind in rows.values()), default=math.nan)
    bpcer = float(1 - called_real[labels == 0].mean())
    return {"apcer": apcer, "bpcer": bpcer, "acer": (apcer + bpcer) / 2}


def summarise(scored: Scored) -> dict[str, float]:
    """Measure frames and videos of one set; keys are `frame_` and `video_` with auroc, eer, eer_nearest, ap, acc, tpr_at_1, tpr_at_5, acer, ..."""
    levels = {"frame": scored, "video": video_scores(scored)}
    return {f"{level}_{name}": value for level, rows in levels.items() for name, value in _measures(rows).items()}


def _measures(rows: Scored) -> dict[str, float]:
    curve = roc(*rows.columns)
    return {
        "auroc": auroc(curve),
        "eer": eer(curve),
        "eer_nearest": eer(curve, "nearest"),
        "ap": average_precision(curve),
        "acc": accuracy(*rows.columns),
        "tpr_at_1": tpr_at(curve, 0.01),
        "tpr_at_5": tpr_at(curve, 0.05),
        **presentation_errors(*rows.columns),
    }
