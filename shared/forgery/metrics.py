"""How well scores tell fakes (1) from reals (0), pooled over all frames of a set.

curve = roc(scored.scores, scored.labels)          # sorts once
print(auroc(curve), eer(curve), tpr_at(curve, 0.01))
print(auroc(roc(*video_scores(scored).columns)))   # of videos, whose score is the mean over their frames

A set of one class has no curve: what is measured along it (`shared.metrics.curves`) is NaN, and what needs no curve is still given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.metrics.curves import auroc, average_precision, checked, eer, roc, tpr_at


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
        scores, labels = checked(self.scores, self.labels)
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


def accuracy(scores: Tensor, labels: Tensor, threshold: float = 0.5) -> float:
    """Part of the (N,) scores on the right side of the threshold; a score above it is called fake."""
    scores, labels = checked(scores, labels)
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
    scores, labels = checked(scores, labels)
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
