"""From scores to log-likelihood ratios, and thresholds that carry over.

calibration = Calibration.fit(scores, is_target, quality(enrol_seconds, test_seconds))      # on speakers that are neither trained nor tested on
llrs = calibration.llr(new_scores, quality(...))
accepted = llrs >= calibration.threshold(0.01, quality(...))
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.rsknet.metrics import far_threshold
from shared.metrics.curves import checked

IMPOSTORS = 20_000
"""Most log-likelihood ratios of impostors that a calibration keeps of a group of trials."""

_RIDGE = 1e-6  # on weights of standardised columns: keeps them finite where scores separate the trials
_STEPS = 100


def quality(enrol_seconds: Tensor, test_seconds: Tensor) -> Tensor:
    """Quality measures of pairs: logarithms of the durations of the shorter and the longer side; the sides may change places.

    Args:
        enrol_seconds: (N,) speech in the enrolment, positive.
        test_seconds: (N,) speech in the test, positive.

    Returns:
        (N, 2) float64.

    Raises:
        ValueError: if a duration is not positive.
    """
    pairs = torch.stack([enrol_seconds, test_seconds], dim=1).detach().cpu().double()
    if not bool((pairs > 0).all()):
        raise ValueError(f"durations must be positive seconds, got {float(pairs.min()):g}")
    return pairs.sort(dim=1).values.log()


def probability(llrs: Tensor, p_target: float = 0.5) -> Tensor:
    """Posterior probability of a target, by Bayes' rule.

    Args:
        llrs: (N,) natural logarithms of likelihood ratios.
        p_target: prior probability, in (0, 1): how often claims are true where the system works.

    Returns:
        (N,) in [0, 1].

    Raises:
        ValueError: if the prior is out of its range.
    """
    return torch.sigmoid(llrs + _log_odds(p_target))


@dataclass(frozen=True, eq=False)
class Calibration:
    """A rising map llr = scale s + offset + weights . q, and how impostors score after it.

    A measure q beyond those of the fit counts as the nearest of the fit, since the weights hold no further. The spread of impostors depends on the
    quality too, so that they are kept by groups of like trials, and a trial takes the threshold of the group that is nearest to it.

    Attributes:
        scale: a > 0.
        offset: b.
        weights: (Q,) of quality measures; Q may be 0.
        span: (2, Q) least and largest quality measures that it was fitted on.
        centres: (G, Q) mean quality of the impostors of each group.
        impostors: of each of G groups the rising log-likelihood ratios of the impostors it was fitted on; of more than `IMPOSTORS`, the highest one
            of each of so many equal parts.
    """

    scale: float
    offset: float
    weights: Tensor
    span: Tensor
    centres: Tensor
    impostors: tuple[Tensor, ...]

    @classmethod
    def fit(
        cls, scores: Tensor, is_target: Tensor, quality: Tensor | None = None, p_target: float = 0.5, groups: Tensor | None = None
    ) -> Calibration:
        """Fit by logistic regression in which targets weigh `p_target` and nontargets the rest.

        Args:
            scores: (N,) finite numbers, higher for targets.
            is_target: (N,) bool.
            quality: (N, Q) quality measures of the trials.
            p_target: prior at which ratios should be best.
            groups: (N,) int64, equal for trials of like quality; None makes one group of all.

        Raises:
            ValueError: if there are no targets or no nontargets, shapes differ, a number is not finite, or scores do not rise towards targets.
        """
        scores, labels = checked(scores, is_target)
        if not 0 < int(labels.sum()) < len(labels):
            raise ValueError(f"{int(labels.sum())} of {len(labels)} trials are targets: calibration needs both targets and nontargets")
        columns = _columns(scores, quality)
        if not bool(columns.isfinite().all()):
            raise ValueError("scores and quality measures must be finite")
        weights, offset = _regression(columns, labels, p_target)
        if not weights[0] > 0:
            raise ValueError(f"scores do not rise towards targets (slope {float(weights[0]):g}): are they distances, or labels swapped?")
        span = torch.stack([columns[:, 1:].amin(0), columns[:, 1:].amax(0)])
        llrs, own = columns @ weights + offset, torch.zeros(len(labels), dtype=torch.long) if groups is None else groups.cpu()
        masks = [(own == group) & (labels == 0) for group in own[labels == 0].unique()]
        centres = torch.stack([columns[mask, 1:].mean(0) for mask in masks])
        return cls(float(weights[0]), float(offset), weights[1:].clone(), span, centres, tuple(_thinned(llrs[mask].sort().values) for mask in masks))

    def llr(self, scores: Tensor, quality: Tensor | None = None) -> Tensor:
        """Map scores to natural logarithms of likelihood ratios.

        Args:
            scores: (N,).
            quality: (N, Q) measures, as many as the calibration was fitted with.

        Returns:
            (N,) float64.

        Raises:
            ValueError: if the quality measures are not those of the fit.
        """
        columns = _columns(scores.detach().cpu().double(), quality)
        return columns[:, 0] * self.scale + self._within(columns[:, 1:]) @ self.weights + self.offset

    @property
    def fewest(self) -> int:
        """Impostors that are kept of the smallest group."""
        return min(map(len, self.impostors))

    def nearest(self, quality: Tensor) -> Tensor:
        """Return the (N,) numbers of the groups whose mean quality is nearest to trials' (N, Q)."""
        return torch.cdist(self._within(quality), self.centres).argmin(1)

    def excess(self, quality: Tensor) -> Tensor:
        """Return how far (N,) the worst of trials' (N, Q) quality measures lies outside what the calibration was fitted on; 0 if inside."""
        quality = quality.double()
        return (quality - self._within(quality)).abs().amax(1)

    @overload
    def threshold(self, far: float) -> float: ...

    @overload
    def threshold(self, far: float, quality: Tensor) -> Tensor: ...

    def threshold(self, far: float, quality: Tensor | None = None) -> float | Tensor:
        """Log-likelihood ratio that at most a part `far` of the impostors it was fitted on reach.

        Args:
            far: false-accept rate, in (0, 1).
            quality: (N, Q) measures of trials, whose thresholds are those of the nearest groups; None takes the impostors of all groups together.

        Returns:
            (N,) float64, or a number without `quality`.

        Raises:
            ValueError: if there were fewer than 1 / `far` impostors in a group that is needed, or `far` is not in (0, 1).
        """
        if quality is None:
            return far_threshold(torch.cat(self.impostors), far)
        group = self.nearest(quality)
        levels = torch.zeros(len(self.impostors), dtype=torch.float64)
        for number in group.unique().tolist():
            levels[number] = far_threshold(self.impostors[number], far)
        return levels[group]

    def _within(self, quality: Tensor) -> Tensor:
        if quality.shape[1] != len(self.weights):
            raise ValueError(f"this calibration takes {len(self.weights)} quality measures a trial, got {quality.shape[1]}")
        return quality.cpu().double().clamp(self.span[0], self.span[1])

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` takes."""
        map_ = torch.tensor([self.scale, self.offset], dtype=torch.float64)
        sizes = torch.tensor([len(part) for part in self.impostors], dtype=torch.float64)
        parts = {"span": self.span, "centres": self.centres, "impostors": torch.cat(self.impostors), "sizes": sizes}
        return {"map": torch.cat([map_, self.weights])} | parts

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Calibration:
        """Make the calibration that gave these `tensors`.

        Raises:
            KeyError: if one is missing.
            ValueError: if their shapes or values are not those of a calibration.
        """
        map_, impostors, span, centres, sizes = (tensors[name] for name in ("map", "impostors", "span", "centres", "sizes"))
        if map_.ndim != 1 or len(map_) < 2 or impostors.ndim != 1 or not bool(map_[0] > 0):
            raise ValueError(f"a calibration has a rising map (2 + Q,) and impostors (I,), got {tuple(map_.shape)} and {tuple(impostors.shape)}")
        if not all(bool(part.isfinite().all()) for part in (map_, impostors, span, centres, sizes)):
            raise ValueError("a calibration has values that are not finite")
        measures, counts = len(map_) - 2, sizes.long().flatten().tolist()
        is_whole = span.shape == (2, measures) and centres.shape == (len(counts), measures)
        if not is_whole or min(counts, default=0) < 1 or sum(counts) != len(impostors):
            raise ValueError(f"the span {tuple(span.shape)}, centres {tuple(centres.shape)} and sizes {counts} of a calibration do not fit")
        return cls(float(map_[0]), float(map_[1]), map_[2:], span, centres, impostors.split(counts))


def _columns(scores: Tensor, quality: Tensor | None) -> Tensor:
    """Return (N, 1 + Q) float64."""
    if quality is None:
        return scores[:, None]
    if quality.ndim != 2 or len(quality) != len(scores):
        raise ValueError(f"{len(scores)} scores with quality measures {tuple(quality.shape)}: they must be (N, Q)")
    return torch.cat([scores[:, None], quality.detach().cpu().double()], dim=1)


def _regression(columns: Tensor, labels: Tensor, p_target: float) -> tuple[Tensor, Tensor]:
    """Return weights (Q + 1,) and offset of the ratio: Newton's method on standardised columns, with halved steps where it overshoots."""
    mean, deviation = columns.mean(0), columns.std(0, unbiased=False)
    deviation = torch.where(deviation > 1e-9 * mean.abs(), deviation, torch.inf)  # a constant column gets no weight
    design = torch.cat([(columns - mean) / deviation, torch.ones(len(columns), 1, dtype=torch.float64)], dim=1)
    sign = 2.0 * labels - 1
    mass = torch.where(labels == 1, p_target / labels.sum(), (1 - p_target) / (1 - labels).sum())
    ridge = torch.full((design.shape[1],), _RIDGE, dtype=torch.float64)
    ridge[-1] = 0

    def loss(values: Tensor) -> Tensor:
        return (mass * F.softplus(-sign * (design @ values + prior))).sum() + (ridge * values.square()).sum() / 2

    prior, values = _log_odds(p_target), torch.zeros(design.shape[1], dtype=torch.float64)
    for _ in range(_STEPS):
        wrong = torch.sigmoid(-sign * (design @ values + prior))  # probability that the model gives to the other label
        gradient = ridge * values - design.T @ (mass * sign * wrong)
        hessian = design.T @ (design * (mass * wrong * (1 - wrong))[:, None]) + torch.diag(ridge + 1e-15)
        step = torch.linalg.solve(hessian, gradient)
        before = loss(values)
        while loss(values - step) > before and float(step.abs().max()) > 1e-12:
            step = step / 2
        values = values - step
        if float(step.abs().max()) < 1e-10:
            break
    weights = values[:-1] / deviation
    return weights, values[-1] - weights @ mean


def _thinned(rising: Tensor) -> Tensor:
    """Keep the highest one of each of `IMPOSTORS` equal parts, so that a threshold on them accepts no larger part of all."""
    count = len(rising)
    if count <= IMPOSTORS:
        return rising
    return rising[(torch.arange(1, IMPOSTORS + 1) * count + IMPOSTORS - 1) // IMPOSTORS - 1]


def _log_odds(p_target: float) -> float:
    if not 0 < p_target < 1:
        raise ValueError(f"p_target must lie between 0 and 1, got {p_target}")
    return math.log(p_target / (1 - p_target))
