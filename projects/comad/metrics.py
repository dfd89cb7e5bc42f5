"""How well scores and maps tell damaged pictures from good ones, and how well found components match drawn ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from shared.forgery.metrics import auroc, roc

GOOD = "good"
"""Kind of the pictures without a defect."""


def image_aurocs(scores: Tensor, kinds: Sequence[str]) -> dict[str, float]:
    """Areas under the ROC curves of the good pictures against every other kind.

    Args:
        scores: (N,) larger for anomalies.
        kinds: (N,) `good`, or what is wrong: `logical` and `structural` for LA and SA, or finer kinds.

    Returns:
        By kind, each against the same good pictures; `mean` of these, which follow-ups of the paper call total; `all`, of the kinds pooled into one,
        as in the reference's code. NaN for what has no pictures.

    Raises:
        ValueError: if there are no scores, their number is not that of kinds, or one is NaN.
    """
    if len(scores) != len(kinds):
        raise ValueError(f"{len(scores)} scores of {len(kinds)} pictures: there must be one a picture")
    is_bad = torch.tensor([kind != GOOD for kind in kinds], dtype=torch.long)
    pooled = auroc(roc(scores, is_bad))
    found = {}
    for wanted in dict.fromkeys(kind for kind in kinds if kind != GOOD):
        rows = torch.tensor([kind in (GOOD, wanted) for kind in kinds])
        found[wanted] = auroc(roc(scores[rows.to(scores.device)], is_bad[rows]))
    return found | {"mean": sum(found.values()) / len(found) if found else math.nan, "all": pooled}


def alarms(scores: Tensor, is_bad: Tensor, validation: Tensor, quantile: float = 0.95) -> dict[str, float]:
    """What happens on the line if a picture alarms whose score exceeds a quantile of the good validation pictures' scores.

    Args:
        scores: (N,) of test pictures, larger for anomalies.
        is_bad: (N,) bool, whether a picture has a defect.
        validation: (V,) scores of good validation pictures.
        quantile: in [0, 1], linear between two scores.

    Returns:
        `threshold`; `false_alarm_rate`, the part of the good pictures that alarm; `recall`, the part of the others; `f1` of the alarms, 0 if none is
        right. NaN for rates of no pictures.

    Raises:
        ValueError: if there are no validation scores, some scores are NaN, the quantile is out of its range or shapes differ.
    """
    if not 0 <= quantile <= 1:
        raise ValueError(f"quantile must be in [0, 1], got {quantile}")
    if len(validation) == 0 or bool(validation.isnan().any()):
        raise ValueError("the threshold needs scores of validation pictures: there are none, or some are NaN")
    if scores.shape != is_bad.shape or bool(scores.isnan().any()):
        raise ValueError(f"{len(scores)} scores of {len(is_bad)} pictures, {int(scores.isnan().sum())} NaN: there must be one number a picture")
    threshold = float(torch.quantile(validation.double(), quantile))
    return {"threshold": threshold} | alarm_rates(scores.double() > threshold, is_bad.bool().to(scores.device))


def alarm_rates(is_called: Tensor, is_bad: Tensor) -> dict[str, float]:
    """Count right and wrong alarms.

    Args:
        is_called: (N,) bool, whether a picture alarms.
        is_bad: (N,) bool, whether it has a defect.

    Returns:
        `false_alarm_rate`, `recall` and `f1`, see `alarms`.
    """
    true, false, defects = int((is_called & is_bad).sum()), int((is_called & ~is_bad).sum()), int(is_bad.sum())
    return {
        "false_alarm_rate": _part(false, len(is_bad) - defects),
        "recall": _part(true, defects),
        "f1": 2 * true / (true + false + defects) if defects else math.nan,
    }


def category_means(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average what was measured of each category; categories count alike, whatever their number of pictures.

    With rows of `image_aurocs`, `mean` is the mean of the mean LA and the mean SA, and `all` the mean of the pooled areas: the literature has both.

    Args:
        rows: measures by category.

    Returns:
        Means by measure; NaN where a category lacks the measure or has NaN, since a mean over fewer categories does not compare with the paper's.

    Raises:
        ValueError: if there are no categories.
    """
    if not rows:
        raise ValueError("there are no categories to average")
    names = dict.fromkeys(name for row in rows.values() for name in row)
    return {name: math.fsum(row.get(name, math.nan) for row in rows.values()) / len(rows) for name in names}


class ComponentOverlap:
    """Intersection over union of found components with drawn ones, matched one to one so that its mean is largest.

    Args:
        components: K, found ones.
        classes: T, drawn ones.
    """

    def __init__(self, components: int, classes: int) -> None:
        self.pixels = torch.zeros(components, classes, dtype=torch.int64)
        """(K, T) pixels of each component in each class."""

    def update(self, labels: Tensor, truth: Tensor) -> None:
        """Count pixels.

        Args:
            labels: (B, H, W) component of each pixel, in [0, K).
            truth: (B, H, W) class of each pixel, in [0, T).

        Raises:
            ValueError: if shapes differ or a value is out of its range.
        """
        if labels.shape != truth.shape:
            raise ValueError(f"component maps {tuple(labels.shape)} and drawn ones {tuple(truth.shape)} differ in shape")
        components, classes = self.pixels.shape
        for name, values, count in (("component", labels, components), ("class", truth, classes)):
            if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < count:
                raise ValueError(f"a {name} must be in 0 to {count - 1}, got {int(values.min())} to {int(values.max())}")
        pairs = labels.long() * classes + truth.long()
        self.pixels += torch.bincount(pairs.flatten(), minlength=components * classes).view(components, classes).cpu()

    def compute(self) -> tuple[dict[int, int], Tensor]:
        """Return the component that is matched with each class that has one, and (T,) overlaps in [0, 1].

        A class without a component has 0, one without pixels NaN: leave it out of the mean.
        """
        from scipy.optimize import linear_sum_assignment

        union = self.pixels.sum(1, keepdim=True) + self.pixels.sum(0) - self.pixels
        overlap = self.pixels / union.clamp(min=1)
        rows, columns = linear_sum_assignment(overlap.numpy(), maximize=True)
        found = torch.zeros(overlap.shape[1], dtype=torch.float64)
        found[columns] = overlap[rows, columns].double()
        found[self.pixels.sum(0) == 0] = math.nan
        return {int(column): int(row) for row, column in zip(rows, columns, strict=True)}, found


def count_errors(counted: Tensor, drawn: Tensor) -> Tensor:
    """Return the (T,) mean absolute differences of counted and drawn pieces, both (N, T)."""
    return (counted.double() - drawn.double()).abs().mean(0)


def _part(count: int, whole: int) -> float:
    return count / whole if whole else math.nan
