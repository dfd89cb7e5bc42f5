"""How well saliency maps mark the salient objects: MAE, S, E, F and weighted F under two protocols, and the curves behind them.

Maps are first rounded to 256 levels, so that the measures of a map in memory are those of its 8-bit file. One count of pixels by quarter of the
picture, mask and level then gives all measures and all thresholds, but for the weighted F, which needs distances.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.distributed import gather_objects

LEVELS = 256
"""Levels of a map, and thresholds of a curve, from the highest to the lowest."""

BETA2 = 0.3
"""Weight of precision in F; the weighted F weighs both alike."""

CURVES = ("precision", "recall", "e", "f")
"""Curves over thresholds, in the order of `Measures.curves`."""

ProtocolName = Literal["pysod", "group256"]
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Protocol:
    """Where published tools differ.

    Attributes:
        side: maps and masks are resized to this square, in pixels; None measures at the mask's own size.
        thresholds: of the curves; 255 begin at the second highest level.
        epsilon: added to denominators of S and E.
        f_epsilon: added to denominators of precision and F.
        weighted_epsilon: added to denominators of the weighted F.
        ddof: taken from the number of pixels in variances.
        is_groups: takes F of the averaged precision and recall instead of the average F, stretches whole levels, and lets S be negative.
    """

    side: int | None
    thresholds: int
    epsilon: float
    f_epsilon: float
    weighted_epsilon: float
    ddof: int
    is_groups: bool


_EPSILON = float(np.spacing(1))

PROTOCOLS: dict[str, Protocol] = {
    "pysod": Protocol(None, LEVELS, _EPSILON, 0.0, _EPSILON, ddof=1, is_groups=False),
    "group256": Protocol(256, LEVELS - 1, 1e-8, 1e-8, 1e-6, ddof=0, is_groups=True),
}
"""`pysod` equals the library pysodmetrics; `group256` is the tool of the authors' group, whose numbers differ from others' in the third digit."""


class Measures(NamedTuple):
    """Measures of one picture: numbers by name, and its curves (4, thresholds) in the order of `CURVES`."""

    numbers: dict[str, float]
    curves: Array


def precision_recall(tp: Array, fp: Array, positives: Array | int, epsilon: float = 0.0) -> tuple[Array, Array]:
    """Return precision and recall.

    Args:
        tp: (...) salient pixels that are called so.
        fp: (...) other pixels that are called salient.
        positives: salient pixels, of a shape that goes with the others'.
        epsilon: added to the denominator of precision.

    Returns:
        Two arrays (...) in [0, 1]; 0 where nothing is called salient, or nothing is.
    """
    called = tp + fp
    return tp / np.where(called > 0, called + epsilon, 1), tp / np.maximum(positives, 1)


def f_measure(precision: Array, recall: Array, epsilon: float = 0.0) -> Array:
    """Return (1 + beta^2) P R / (beta^2 P + R) with beta^2 = 0.3, 0 where both are 0; arrays of one shape (Achanta et al. 2009)."""
    whole = BETA2 * precision + recall + epsilon
    return (1 + BETA2) * precision * recall / np.where(whole > 0, whole, 1)


def e_measure(tp: Array, fp: Array, positives: int, size: int, epsilon: float) -> Array:
    """Return the enhanced alignment of binary maps with a mask (Fan et al. 2018).

    Args:
        tp: (...) salient pixels that a map calls so.
        fp: (...) other pixels that it calls salient.
        positives: salient pixels.
        size: pixels.
        epsilon: added to denominators.

    Returns:
        (...) sum of (phi + 1)^2 / 4 over pixels by their number less one, phi = 2 a b / (a^2 + b^2) of the maps less their means.
    """
    called = tp + fp
    if positives in (0, size):
        return (called if positives else size - called) / (size - 1 + epsilon)
    p, g, missed = called / size, positives / size, positives - tp
    parts = ((tp, 1 - p, 1 - g), (fp, 1 - p, -g), (missed, -p, 1 - g), (size - called - missed, -p, -g))
    return np.sum([count * (2 * a * b / (a * a + b * b + epsilon) + 1) ** 2 / 4 for count, a, b in parts], axis=0) / (size - 1 + epsilon)


def s_measure(saliency: Array, counts: Array, values: Array, quarters: Sequence[tuple[slice, slice]], protocol: Protocol) -> float:
    """Return the structure measure, half of objects and half of regions (Fan et al. 2017).

    Args:
        saliency: (H, W) map in [0, 1].
        counts: (4, 2, L) its pixels in each quarter, outside and inside the mask, of each level.
        values: (L,) value of each level.
        quarters: rows and columns of the quarters, which meet one past the mask's rounded centroid.
        protocol: decides on variances and epsilon.

    Returns:
        S; 1 less the mean of the map for an empty mask, its mean for a full one. A quarter without pixels counts nothing: there pysodmetrics has NaN.
    """
    by_mask = counts.sum(0)
    size, positives = saliency.size, int(by_mask[1].sum())
    if positives in (0, size):
        return float(saliency.mean() if positives else 1 - saliency.mean())
    g = positives / size
    score = 0.5 * (g * _object_score(by_mask[1], values, protocol) + (1 - g) * _object_score(by_mask[0], 1 - values, protocol))
    for quarter, count in zip((saliency[quarter] for quarter in quarters), counts, strict=True):
        if quarter.size:  # its mean is that of pixels, not of counts: whether the variance of a flat quarter is exactly 0 hangs on rounding
            score += 0.5 * quarter.size / size * _region_score(count, values, float(quarter.mean()), protocol)
    return score if protocol.is_groups else max(0.0, score)


def _object_score(counts: Array, values: Array, protocol: Protocol) -> float:
    pixels = int(counts.sum())
    mean = float(counts @ values) / pixels
    deviation = math.sqrt(float(counts @ (values - mean) ** 2) / (pixels - protocol.ddof)) if pixels > 1 else 0.0
    return 2 * mean / (mean * mean + 1 + deviation + protocol.epsilon)


def _region_score(counts: Array, values: Array, x: float, protocol: Protocol) -> float:
    """Return the similarity of a quarter's (2, L) levels outside and inside the mask, of mean `x`, with the mask."""
    others, marked = (int(number) for number in counts.sum(1))
    pixels = others + marked
    y = marked / pixels
    deviations = values - x
    of_map = float(counts.sum(0) @ deviations**2) / max(pixels - protocol.ddof, 1)
    of_mask = (marked * (1 - y) ** 2 + others * y * y) / max(pixels - protocol.ddof, 1)
    of_both = (float(counts[1] @ deviations) * (1 - y) - float(counts[0] @ deviations) * y) / max(pixels - 1, 1)
    above, below = 4 * x * y * of_both, (x * x + y * y) * (of_map + of_mask)
    return above / (below + protocol.epsilon) if above else float(below == 0)


_RADIUS = 3  # of the 7 x 7 Gaussian of sigma 5, which is the product of two of 7
_GAUSSIAN = np.exp(-(np.arange(-_RADIUS, _RADIUS + 1) ** 2) / 50)
_GAUSSIAN /= _GAUSSIAN.sum()


def weighted_f(errors: Array, mask: Array, scale: int, epsilon: float) -> float:
    """Return the weighted F, for which errors count less near others and more far from the object (Margolin et al. 2014).

    Args:
        errors: (H, W) uint8 absolute difference of map and mask, times `scale`.
        mask: (H, W) true where salient.
        scale: difference of the map's values 1 and 0, in levels.
        epsilon: added to denominators.

    Returns:
        2 P R / (P + R) of weighted precision and recall; 0 for an empty mask.
    """
    from scipy.ndimage import correlate1d, distance_transform_edt

    if not mask.any():
        return 0.0
    inner = _box(mask, _RADIUS)
    outer = tuple(slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(inner, _box(errors, 0), strict=True))
    inner = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(inner, outer, strict=True))
    errors, mask = np.ascontiguousarray(errors[outer]), mask[outer]  # what is right elsewhere adds nothing
    nearest = distance_transform_edt(~mask, return_distances=False, return_indices=True)
    moved = errors.take(nearest[0][inner] * mask.shape[1] + nearest[1][inner])  # the background has the errors of the nearest salient pixel
    smooth = correlate1d(correlate1d(moved, _GAUSSIAN, 0, np.float64, "constant"), _GAUSSIAN, 1, np.float64, "constant")
    missed = float(np.vdot(np.minimum(smooth, errors[inner]), mask[inner].astype(np.float64))) / scale
    false = float(np.vdot((errors * ~mask).astype(np.float64), _background_weights(nearest))) / scale
    positives = np.count_nonzero(mask)
    recall, precision = 1 - missed / positives, (positives - missed) / (positives - missed + false + epsilon)
    return 2 * recall * precision / (recall + precision + epsilon)


def _background_weights(nearest: Array) -> Array:
    """Return (H, W) weights 2 - exp(ln(1/2) d / 5) of the distance d to the nearest pixel, (2, H, W) rows and columns, which are overwritten."""
    nearest[0] -= np.arange(nearest.shape[1], dtype=np.int32)[:, None]
    nearest[1] -= np.arange(nearest.shape[2], dtype=np.int32)
    nearest *= nearest
    nearest[0] += nearest[1]
    weights = np.sqrt(nearest[0], dtype=np.float64)
    weights *= math.log(0.5) / 5
    return np.subtract(2, np.exp(weights, out=weights), out=weights)


def _box(marked: Array, margin: int) -> tuple[slice, ...]:
    """Return the smallest box of all that is not 0, with a margin inside the picture; without any, an empty one as far from the corner as can be."""
    lines = [np.flatnonzero(marked.any(axis)) for axis in (1, 0)]
    if not len(lines[0]):
        return tuple(slice(side, 0) for side in marked.shape)
    return tuple(slice(max(int(line[0]) - margin, 0), min(int(line[-1]) + 1 + margin, side)) for line, side in zip(lines, marked.shape, strict=True))


def measure(levels: Array, mask: Array, protocol: Protocol) -> Measures:
    """Measure one map of 8-bit levels.

    Args:
        levels: (H, W) uint8.
        mask: (H, W) bool, true where salient.
        protocol: decides where tools differ.
    """
    low, high = int(levels.min()), int(levels.max())
    low, high = (low, high) if low < high else (0, LEVELS - 1)  # a map of one level keeps it
    values = _stretched(low, high, protocol)
    saliency, quarters = values.take(levels), _quarters(mask)
    counts = _counts(levels, mask, quarters)
    by_mask = counts.sum(0)
    positives, size = int(by_mask[1].sum()), mask.size

    is_above = values >= min(2 * saliency.mean(), 1)
    called = [np.append(_at_thresholds(part, values)[-protocol.thresholds :], part[is_above].sum()) for part in by_mask]  # adaptive last
    precision, recall = precision_recall(called[1], called[0], positives, protocol.f_epsilon)
    f, e = f_measure(precision, recall, protocol.f_epsilon), e_measure(called[1], called[0], positives, size, protocol.epsilon)
    errors = levels - np.uint8(low)
    np.subtract(np.uint8(high), levels, out=errors, where=mask)
    numbers = {
        "mae": float(by_mask[0] @ values + by_mask[1] @ (1 - values)) / size,
        "s_measure": s_measure(saliency, counts, values, quarters, protocol),
        "e_adaptive": float(e[-1]),
        "f_adaptive": float(f[-1]),
        "f_weighted": weighted_f(errors, mask, high - low, protocol.weighted_epsilon),
    }
    return Measures(numbers, np.stack([precision, recall, e, f])[:, :-1])


def _stretched(low: int, high: int, protocol: Protocol) -> Array:
    """Return the (LEVELS,) values of levels, 0 of the lowest and 1 of the highest one that occurs, in the order in which the tool rounds."""
    levels = np.arange(LEVELS) if protocol.is_groups else np.arange(LEVELS) / 255
    return ((levels - levels[low]) / (levels[high] - levels[low])).clip(0, 1)


def _counts(levels: Array, mask: Array, quarters: Sequence[tuple[slice, slice]]) -> Array:
    """Return the (4, 2, LEVELS) pixels in each quarter, outside and inside the mask, of each level."""
    rows, columns = quarters[-1]
    cells = np.multiply(mask, LEVELS, dtype=np.uint16)
    cells += levels
    cells[rows] += np.uint16(4 * LEVELS)
    cells[:, columns] += np.uint16(2 * LEVELS)
    return np.bincount(cells.ravel(), minlength=8 * LEVELS).reshape(4, 2, LEVELS)


def _quarters(mask: Array) -> list[tuple[slice, slice]]:
    """Return the rows and columns of the four parts of a mask that meet one past its rounded centroid."""
    sums = [mask.view(np.uint8).sum(axis, dtype=np.uint32) for axis in (1, 0)]
    row, column = (round(float(line @ np.arange(len(line))) / max(int(line.sum()), 1)) + 1 for line in sums)
    return [(rows, columns) for rows in (slice(row), slice(row, None)) for columns in (slice(column), slice(column, None))]


def _at_thresholds(counts: Array, values: Array) -> Array:
    """Return the (LEVELS,) pixels at or above each threshold, from the highest, of (LEVELS,) pixels with each value."""
    stretched = np.bincount((values * 255).astype(np.uint8), counts, LEVELS)
    return stretched[::-1].cumsum()


class SaliencyMetrics:
    """Measures pictures one by one; what is kept grows by a few numbers a picture, not by its pixels.

    Args:
        protocol: `pysod` at the mask's size, equal to the library pysodmetrics; `group256` as the authors' group measures.

    Raises:
        ValueError: if there is no such protocol.
    """

    def __init__(self, protocol: ProtocolName = "pysod") -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol {protocol!r} is not known: use one of {', '.join(PROTOCOLS)}")
        self.protocol = PROTOCOLS[protocol]
        self.rows: list[dict[str, float]] = []
        self.sums = np.zeros((len(CURVES), self.protocol.thresholds))

    def update(self, probability: Tensor, mask: Tensor) -> dict[str, float]:
        """Measure a picture and return its measures without those of curves.

        Args:
            probability: (1, H, W) in [0, 1], or uint8 levels, at the mask's or the protocol's size; rounded to 8 bits, and stretched to [0, 1].
            mask: (1, H, W), 1 where salient, 0 elsewhere.

        Raises:
            ValueError: if shapes differ, a probability is outside [0, 1] or NaN, or a mask is not of zeros and ones.
        """
        return self._keep(self._measure(probability, mask))

    def update_batch(self, pictures: Iterable[tuple[Tensor, Tensor]], threads: int = 2) -> list[dict[str, float]]:
        """Measure the pictures of a batch, each a map and a mask as for `update`, side by side in threads; the results are the same."""
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda picture: self._measure(*picture), pictures))
        return [self._keep(measures) for measures in found]

    def _measure(self, probability: Tensor, mask: Tensor) -> Measures:
        side = self.protocol.side
        size = None if side is None else (side, side)
        is_fitting = tuple(probability.shape[1:]) in (tuple(mask.shape[1:]), size)
        if mask.ndim != 3 or mask.shape[0] != 1 or not mask.numel() or probability.shape[:-2] != (1,) or not is_fitting:
            raise ValueError(f"map and mask must be (1, H, W) of one size, got {tuple(probability.shape)} and {tuple(mask.shape)}")
        return measure(_to_levels(probability.detach().cpu(), _target(probability, size)), _to_bool(mask.cpu(), _target(mask, size)), self.protocol)

    def _keep(self, measures: Measures) -> dict[str, float]:
        self.rows.append(measures.numbers)
        self.sums += measures.curves
        return measures.numbers

    def compute(self) -> dict[str, float]:
        """Return the means over the pictures of all processes, and `max` and `mean` of the curves of F and E; all processes must call it.

        Raises:
            ValueError: if no picture was measured.
        """
        rows, curves = gather_objects(self.rows), self.curves()
        measures = {name: math.fsum(row[name] for row in rows) / len(rows) for name in rows[0]}
        return measures | {f"{name}_{kind}": float(getattr(curves[name], kind)()) for name in ("e", "f") for kind in ("max", "mean")}

    def curves(self) -> dict[str, Array]:
        """Return `threshold`, `precision`, `recall`, `e` and `f`, each (thresholds,) from the highest threshold; all processes must call it.

        Raises:
            ValueError: if no picture was measured.
        """
        count, sums = sum(gather_objects([len(self.rows)])), np.sum(gather_objects([self.sums]), axis=0)
        if not count:
            raise ValueError("no picture was measured: call update before compute")
        curves: dict[str, Array] = dict(zip(CURVES, sums / count, strict=True))
        if self.protocol.is_groups:
            curves["f"] = f_measure(curves["precision"], curves["recall"], self.protocol.f_epsilon)
        return {"threshold": np.arange(self.protocol.thresholds)[::-1] / 255} | curves


def _target(layer: Tensor, size: tuple[int, int] | None) -> tuple[int, int] | None:
    """Return the size that a layer (1, H, W) has to be resized to, or None if it has it."""
    return None if tuple(layer.shape[1:]) == size else size


def _to_levels(probability: Tensor, size: tuple[int, int] | None) -> Array:
    """Return (H, W) uint8 levels of a (1, H, W) map, resized first."""
    if probability.dtype == torch.uint8:
        if size is None:
            return probability[0].numpy()
        probability = probability.float() / 255
    p = probability.float()
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise ValueError(f"a map must hold probabilities in [0, 1], got {float(p.min()):g} to {float(p.max()):g} (sigmoid of the logits)")
    return (_resized(p, size).clamp(0, 1) * 255).round().to(torch.uint8)[0].numpy()


def _to_bool(mask: Tensor, size: tuple[int, int] | None) -> Array:
    if mask.dtype != torch.bool and not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(f"a mask must hold zeros and ones, got {float(mask.min()):g} to {float(mask.max()):g} (salient is above 128 of 255)")
    return mask.bool()[0].numpy() if size is None else (_resized(mask.float(), size) > 0.5)[0].numpy()


def _resized(picture: Tensor, size: tuple[int, int] | None) -> Tensor:
    return picture if size is None else F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
