"""From scores to log-likelihood ratios, and thresholds that carry over (section 2.5).

calibration = Calibration.fit(scores, is_target, quality(enrol_seconds, test_seconds))      # on speakers that are neither trained nor tested on
llrs = calibration.llr(new_scores, quality(...))
accepted = llrs >= calibration.threshold(far=0.01)
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.rsknet.metrics import far_threshold
from shared.metrics.curves import checked

IMPOSTORS = 20_000
"""Most log-likelihood ratios of impostors that a calibration keeps."""

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

    Attributes:
        scale: a > 0.
        offset: b.
        weights: (Q,) of quality measures; Q may be 0.
        impostors: (I,) rising log-likelihood ratios of the impostors it was fitted on; of more than `IMPOSTORS`, the highest one of each of so many
            equal parts.
    """

    scale: float
    offset: float
    weights: Tensor
    impostors: Tensor

    @classmethod
    def fit(cls, scores: Tensor, is_target: Tensor, quality: Tensor | None = None, p_target: float = 0.5) -> Calibration:
        """Fit by logistic regression in which targets weigh `p_target` and nontargets the rest.

        Args:
            scores: (N,) finite numbers, higher for targets.
            is_target: (N,) bool.
            quality: (N, Q) quality measures of the trials.
            p_target: prior at which ratios should be best.

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
        llrs = columns @ weights + offset
        return cls(float(weights[0]), float(offset), weights[1:].clone(), _thinned(llrs[labels == 0].sort().values))

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
        if columns.shape[1] != 1 + len(self.weights):
            raise ValueError(f"this calibration takes {len(self.weights)} quality measures a trial, got {columns.shape[1] - 1}")
        return columns[:, 0] * self.scale + columns[:, 1:] @ self.weights + self.offset

    def threshold(self, far: float) -> float:
        """Log-likelihood ratio that at most a part `far` of the impostors it was fitted on reach.

        Raises:
            ValueError: if there were fewer than 1 / `far` impostors, or `far` is not in (0, 1).
        """
        return far_threshold(self.impostors, far)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` takes."""
        map_ = torch.tensor([self.scale, self.offset], dtype=torch.float64)
        return {"map": torch.cat([map_, self.weights]), "impostors": self.impostors}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Calibration:
        """Make the calibration that gave these `tensors`.

        Raises:
            KeyError: if one is missing.
            ValueError: if their shapes or values are not those of a calibration.
        """
        map_, impostors = tensors["map"], tensors["impostors"]
        if map_.ndim != 1 or len(map_) < 2 or impostors.ndim != 1 or not bool(map_[0] > 0):
            raise ValueError(f"a calibration has a rising map (2 + Q,) and impostors (I,), got {tuple(map_.shape)} and {tuple(impostors.shape)}")
        return cls(float(map_[0]), float(map_[1]), map_[2:], impostors)


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
