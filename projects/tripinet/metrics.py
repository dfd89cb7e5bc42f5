"""How well maps mark what was manipulated, and scores tell manipulated pictures from authentic ones, each measure under its own name.

Measures of pixels are means over manipulated pictures, each at its mask's own size; authentic pictures count for measures of pictures only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.distributed import gather_objects
from shared.metrics.curves import Roc, auroc, roc

THRESHOLDS = 256
"""Steps of the one threshold for a whole set: k / 256."""

LEVELS = 2**16
"""Levels to which maps are rounded for the area under the curve of all pixels together: exact for maps that were written with 16 bits."""

SIZES = (0.05, 0.15)
"""Parts of the picture up to which a region counts as small, and as medium."""

_ERODE, _DILATE = 15, 11  # TruFor's kernels, in pixels


class Counts(NamedTuple):
    """Pixels, or pictures, that are rightly and wrongly called manipulated, and wrongly and rightly called authentic."""

    tp: int
    fp: int
    fn: int
    tn: int

    @property
    def f1(self) -> float:
        """2 TP / (2 TP + FP + FN); NaN if nothing is manipulated or called so."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    @property
    def iou(self) -> float:
        """TP / (TP + FP + FN); NaN if nothing is manipulated or called so."""
        return _ratio(self.tp, self.tp + self.fp + self.fn)

    @property
    def accuracy(self) -> float:
        """Part that is called rightly."""
        return _ratio(self.tp + self.tn, sum(self))

    @property
    def sensitivity(self) -> float:
        """Part of what is manipulated that is called so; NaN if there is none."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Part of what is authentic that is called so; NaN if there is none."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def mcc(self) -> float:
        """Matthews' correlation; 0 where all have one label or are called one thing, as scikit-learn has it."""
        product = math.prod([self.tp + self.fp, self.tp + self.fn, self.tn + self.fp, self.tn + self.fn])
        return (self.tp * self.tn - self.fp * self.fn) / math.sqrt(product) if product else 0.0


def count(probability: Tensor, mask: Tensor, threshold: float = 0.5) -> Counts:
    """Count what a threshold makes of probabilities in [0, 1] of any shape, against a mask of the same one; above it is called manipulated."""
    called, marked = probability > threshold, mask.bool()
    tp, calls, marks = int((called & marked).sum()), int(called.sum()), int(marked.sum())
    return Counts(tp, calls - tp, marks - tp, mask.numel() - calls - marks + tp)


def f1_best(curve: Roc) -> float:
    """Largest F1 over all thresholds: an upper bound, which no threshold chosen beforehand reaches; NaN if nothing is manipulated."""
    if curve.positives[-1] == 0:
        return math.nan
    return float((2 * curve.positives / (curve.positives + curve.negatives + curve.positives[-1])).max())


def trufor_f1(probability: Tensor, mask: Tensor) -> tuple[float, float]:
    """F1 as TruFor measures it: a band about the border is left out, and the map or its inverse counts, whichever is better. It flatters.

    Args:
        probability: (1, H, W) in [0, 1].
        mask: (1, H, W), 1 where manipulated.

    Returns:
        F1 at a half, and the largest one over all thresholds; NaN if nothing is left of the manipulated region.
    """
    marked = mask[None].float()
    inner = -F.max_pool2d(-marked, _ERODE, 1, _ERODE // 2)
    outer = F.max_pool2d(marked, _DILATE, 1, _DILATE // 2)
    judged = ((inner == 1) | (outer == 0))[0]
    p, y = probability[judged], mask[judged]
    if not bool(y.any()):
        return math.nan, math.nan
    both = (p, 1 - p)
    return max(count(one, y).f1 for one in both), max(f1_best(roc(one, y)) for one in both)


@dataclass(frozen=True)
class Row:
    """What is kept of a picture: measures of its pixels, NaN for an authentic one, and its score.

    Attributes:
        label: 0 authentic, 1 manipulated.
        score: probability that the picture is manipulated.
        kind: what was done to it.
        format: format of its file.
        area: part of the picture that was manipulated.
        pixels: measures by name.
    """

    label: int
    score: float
    kind: str
    format: str
    area: float
    pixels: dict[str, float]

    @property
    def size(self) -> str:
        """Size of the region: small, medium or large."""
        return ("small", "medium", "large")[sum(self.area > bound for bound in SIZES)]


class LocalisationMetrics:
    """Measures pictures one by one; what is kept grows by a few numbers a picture, not by its pixels.

    Args:
        trufor: measures TruFor's variant too.
    """

    def __init__(self, trufor: bool = False) -> None:
        self.trufor = trufor
        self.rows: list[Row] = []
        self.f1_sums = np.zeros(THRESHOLDS)
        self.pooled = np.zeros((2, LEVELS), dtype=np.int64)  # pixels of each label and level
        self.pooled_counts = np.zeros(4, dtype=np.int64)

    def update(self, probability: Tensor, mask: Tensor, kind: str, file_format: str = "", score: float | None = None) -> Row:
        """Measure a picture.

        Args:
            probability: (1, H, W) in [0, 1], at the mask's size.
            mask: (1, H, W), 1 where manipulated.
            kind: what was done to the picture.
            file_format: format of its file.
            score: probability that the picture is manipulated; None takes the largest of the map, as MVSS does.

        Raises:
            ValueError: if shapes differ, or a probability is outside [0, 1] or NaN.
        """
        if probability.shape != mask.shape or mask.ndim != 3 or mask.shape[0] != 1:
            raise ValueError(f"map and mask must be (1, H, W) of one size, got {tuple(probability.shape)} and {tuple(mask.shape)}")
        p, y = probability.detach().float().cpu(), mask.cpu().bool()
        if not bool(((p >= 0) & (p <= 1)).all()):
            if not bool(p.isfinite().all()):
                raise ValueError("a map is not finite: use --trainer.precision 32, or another checkpoint")
            raise ValueError(f"a map must hold probabilities in [0, 1], got {float(p.min()):g} to {float(p.max()):g} (sigmoid of the logits)")
        label = int(y.any())
        counts = count(p, y)
        self.pooled_counts += counts
        self._pool(p, y)
        pixels = self._measure(p, y, counts) if label else {}
        row = Row(label, float(p.max()) if score is None else score, kind, file_format, float(y.double().mean()), pixels)
        self.rows.append(row)
        return row

    def _pool(self, p: Tensor, y: Tensor) -> None:
        levels = (p.double() * (LEVELS - 1)).round().long()
        for label in (0, 1):
            self.pooled[label] += torch.bincount(levels[y == label], minlength=LEVELS).numpy()

    def _measure(self, p: Tensor, y: Tensor, counts: Counts) -> dict[str, float]:
        self.f1_sums += _f1_at_thresholds(p, y)
        curve = roc(p.flatten(), y.flatten())
        measures = {
            "pixel_f1": counts.f1,
            "pixel_f1_best": f1_best(curve),
            "pixel_auc": auroc(curve),
            "pixel_iou": counts.iou,
            "pixel_mcc": counts.mcc,
            "pixel_accuracy": counts.accuracy,
        }
        return measures | dict(zip(("trufor_f1", "trufor_f1_best"), trufor_f1(p, y), strict=True)) if self.trufor else measures

    def gathered_rows(self) -> list[Row]:
        """Return the rows of the pictures of all processes."""
        return gather_objects(self.rows)

    def compute(self) -> dict[str, float]:
        """Return all measures of all pictures of all processes by their names; NaN for those that need what was not there.

        `undefined_auc` counts manipulated pictures without a curve, all of whose pixels are manipulated; they are left out of `pixel_auc`.
        """
        rows = self.gathered_rows()
        sums, pooled, counts = (sum(gather_objects([one])) for one in (self.f1_sums, self.pooled, self.pooled_counts))
        measures = summarise(rows)
        forged = sum(row.label for row in rows)
        return measures | {
            "pixel_f1_dataset": float(np.max(sums)) / forged if forged else math.nan,
            "pixel_threshold_dataset": int(np.argmax(sums)) / THRESHOLDS if forged else math.nan,
            "pooled_f1": Counts(*(int(number) for number in np.asarray(counts))).f1,
            "pooled_auc": _pooled_auc(np.asarray(pooled)),
        }

    def compute_by(self, what: str) -> dict[str, dict[str, float]]:
        """Return the measures of each `kind`, `size` of the region or `format`, authentic pictures being among all but the formats of others."""
        rows = self.gathered_rows()
        names = sorted({getattr(row, what) for row in rows if row.label or what == "format"})
        is_among = lambda row, name: getattr(row, what) == name or (what != "format" and not row.label)  # noqa: E731
        return {name: summarise([row for row in rows if is_among(row, name)]) for name in names}


def summarise(rows: Sequence[Row]) -> dict[str, float]:
    """Measure pictures from their rows: means over manipulated ones of what was measured of pixels, and how well scores tell the two apart."""
    forged = [row for row in rows if row.label]
    names = list(forged[0].pixels) if forged else []
    measures = {name: mean_of_known([row.pixels[name] for row in forged]) for name in names}
    measures["undefined_auc"] = float(sum(math.isnan(row.pixels["pixel_auc"]) for row in forged))
    measures["images"] = float(len(rows))
    return measures | image_measures(rows, measures.get("pixel_f1", math.nan))


def image_measures(rows: Sequence[Row], pixel_f1: float) -> dict[str, float]:
    """Measure how well scores tell manipulated pictures from authentic ones; above a half is called manipulated.

    `image_f1` is the harmonic mean of precision and recall, `image_f1_mvss` that of sensitivity and specificity, as MVSS has it; `combined_f1` and
    `combined_f1_mvss` are the harmonic means of either with the F1 of pixels.
    """
    if not rows:
        return {}
    scores, labels = torch.tensor([row.score for row in rows], dtype=torch.float64), torch.tensor([row.label for row in rows])
    counts = count(scores, labels)
    mvss = harmonic_mean(counts.sensitivity, counts.specificity)
    return {
        "image_auc": auroc(roc(scores, labels)),
        "image_f1": counts.f1,
        "image_accuracy": counts.accuracy,
        "image_sensitivity": counts.sensitivity,
        "image_specificity": counts.specificity,
        "image_f1_mvss": mvss,
        "combined_f1": harmonic_mean(pixel_f1, counts.f1),
        "combined_f1_mvss": harmonic_mean(pixel_f1, mvss),
    }


def harmonic_mean(one: float, other: float) -> float:
    """Return 2 a b / (a + b), 0 where both are, and NaN if one is."""
    return 0.0 if one == other == 0 else 2 * one * other / (one + other)


def _f1_at_thresholds(p: Tensor, y: Tensor) -> np.ndarray:
    """Return (THRESHOLDS,) F1 at k / THRESHOLDS, counting pixels above; the mask must not be empty."""
    level = torch.ceil(p.double() * THRESHOLDS).long()  # p exceeds k / THRESHOLDS just where k < level
    above = [torch.bincount(level[chosen], minlength=THRESHOLDS + 1).flip(0).cumsum(0).flip(0)[1:] for chosen in (y, ~y)]
    tp, fp = above[0].double(), above[1].double()
    return (2 * tp / (tp + fp + y.sum())).numpy()


def _pooled_auc(pooled: np.ndarray) -> float:
    """Return the part of pairs of pixels in which the manipulated one has the higher level, ties counting one half."""
    real, fake = pooled.astype(np.float64)
    if not real.sum() or not fake.sum():
        return math.nan
    return float((fake * (real.cumsum() - real / 2)).sum() / (real.sum() * fake.sum()))


def mean_of_known(values: Sequence[float]) -> float:
    """Return the mean of those that are no NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
