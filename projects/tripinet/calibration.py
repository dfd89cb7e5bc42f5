"""What validation decides for those who use a detector: how sure maps are, where they are cut, and how often authentic pictures raise an alarm.

The paper says nothing of this. Temperature scaling is of Guo et al. 2017, the scaling of scores of Platt 1999.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.optimize import minimize, minimize_scalar
from scipy.special import expit
from scipy.stats import beta
from torch import Tensor, nn

from shared.distributed import gather_objects

RANGE, BINS = 64.0, 4096
"""Logits are counted from -64 to 64 in steps of 1/32, whose middle stands for all of it: sigmoid(logit / T) is off by at most 1 / (256 T)."""

TEMPERATURES = (0.05, 50.0)
"""Least and greatest temperature."""

SURE = 15.0
"""Largest logit, after temperature, at which pixels are cut: from 17 on, probabilities round to 1 and could not be told from the threshold's."""

QUANTILES = 257
"""Scores of authentic pictures that are kept at most: all of them, or some, evenly spread over their ranks."""


class LogitHistogram:
    """Counts logits of manipulated and authentic pixels, in memory that does not grow with their number."""

    def __init__(self) -> None:
        self.counts = np.zeros((2, BINS), dtype=np.int64)

    def update(self, logits: Tensor, masks: Tensor) -> None:
        """Count logits; masks of the same shape are 1 where a pixel was manipulated."""
        places = ((logits.detach().float().cpu() + RANGE) * (BINS / (2 * RANGE))).long().clamp(0, BINS - 1)
        manipulated = masks.cpu().bool()
        for label in (0, 1):
            self.counts[label] += torch.bincount(places[manipulated == bool(label)], minlength=BINS).numpy()

    def gathered(self) -> np.ndarray:
        """Return the counts of all processes, (2, BINS): authentic pixels first."""
        return np.sum(gather_objects([self.counts]), axis=0)


def bin_logits() -> np.ndarray:
    """Return the logits in the middle of the bins."""
    return (np.arange(BINS) + 0.5) * (2 * RANGE / BINS) - RANGE


def best_temperature(counts: np.ndarray) -> float:
    """Return the T that minimises the cross-entropy of sigmoid(logit / T), from `TEMPERATURES`; 1 where either label is missing.

    Args:
        counts: (2, BINS), see `LogitHistogram`.
    """
    if not counts.sum(1).all():
        return 1.0
    logits = bin_logits()

    def entropy(log_temperature: float) -> float:
        scaled = logits / math.exp(log_temperature)
        return float(counts[0] @ np.logaddexp(0, scaled) + counts[1] @ np.logaddexp(0, -scaled)) / counts.sum()

    bounds = (math.log(TEMPERATURES[0]), math.log(TEMPERATURES[1]))
    return math.exp(minimize_scalar(entropy, bounds=bounds, method="bounded").x)


def calibration_error(counts: np.ndarray, temperature: float = 1.0, bins: int = 15) -> float:
    """Return the expected calibration error of sigmoid(logit / T) as the probability of being manipulated, in [0, 1]; NaN without pixels.

    It is the mean over pixels of how far, within each of `bins` equal intervals, the mean probability is from the part that is manipulated.
    """
    total = counts.sum()
    if not total:
        return math.nan
    probability = expit(bin_logits() / temperature)
    places = np.minimum((probability * bins).astype(int), bins - 1)
    sums = [np.bincount(places, weights, bins) for weights in (counts.sum(0) * probability, counts[1])]
    return float(np.abs(sums[0] - sums[1]).sum() / total)


def scale_scores(raw: Sequence[float], labels: Sequence[int]) -> tuple[float, float]:
    """Return a and b of sigmoid(a s + b), the probability that a picture of score s is manipulated where both kinds are equally frequent.

    The slope a is never negative; (0, 0), which is a half for all, where either label is missing or the scores say nothing. Labels are smoothed as
    Platt's are, to 1 - 1 / (n + 2) and 1 / (n + 2), so that the slope stays finite where scores separate the pictures. Here n is the harmonic mean of
    the numbers of pictures of either label, not each label's own: those would raise more false alarms the fewer authentic pictures there are.

    Args:
        raw: scores of pictures.
        labels: 1 for manipulated pictures, 0 for authentic ones.
    """
    scores, is_manipulated = np.asarray(raw, dtype=np.float64), np.asarray(labels, dtype=bool)
    counts = np.array([(~is_manipulated).sum(), is_manipulated.sum()])
    if not counts.all() or np.ptp(scores) == 0:
        return 0.0, 0.0
    mean, spread = scores.mean(), scores.std()
    standard, weights = (scores - mean) / spread, 1 / counts[is_manipulated.astype(int)]
    smoothed = np.abs(is_manipulated - 1 / (2 / (1 / counts).sum() + 2))

    def entropy(line: np.ndarray) -> tuple[float, np.ndarray]:
        logits = line[0] * standard + line[1]
        excess = weights * (expit(logits) - smoothed)
        return float(weights @ (np.logaddexp(0, logits) - smoothed * logits)), np.array([excess @ standard, excess.sum()])

    slope, intercept = minimize(entropy, np.zeros(2), jac=True, options={"gtol": 1e-8}).x
    return (float(slope / spread), float(intercept - slope * mean / spread)) if slope > 0 else (0.0, 0.0)


def interval(part: int, of: int, level: float = 0.95) -> tuple[float, float]:
    """Return Clopper's and Pearson's confidence interval of a proportion; (0, 1) of nothing."""
    tail = (1 - level) / 2
    low = float(beta.ppf(tail, part, of - part + 1)) if part else 0.0
    return low, float(beta.ppf(1 - tail, part + 1, of - part)) if part < of else 1.0


class Decision(nn.Module):
    """What a validation decided; kept with the weights.

    Attributes:
        temperature: () by which logits of pixels are divided.
        threshold: () logit above which a pixel is called manipulated: that of the largest mean F1 on validation.
        slope, intercept: () of the picture's score, see `scale_scores`.
        authentic: (QUANTILES,) scores before that scaling of authentic validation pictures, ascending, see `QUANTILES`; NaN after the last one.
        counts: (2,) authentic validation pictures, and how many of them are called manipulated.
    """

    temperature: Tensor
    threshold: Tensor
    slope: Tensor
    intercept: Tensor
    authentic: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        numbers = {"temperature": 1.0, "threshold": 0.0, "slope": 0.0, "intercept": 0.0}
        for name, value in numbers.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("authentic", torch.full((QUANTILES,), torch.nan))
        self.register_buffer("counts", torch.zeros(2, dtype=torch.int64))

    def decide(self, counts: np.ndarray, threshold: float, raw: Sequence[float], labels: Sequence[int]) -> None:
        """Decide.

        Args:
            counts: of the validation pixels' logits, see `LogitHistogram`.
            threshold: probability, before temperature, of the largest mean F1; NaN, where no picture is manipulated, stands for a half.
            raw: scores of the validation pictures.
            labels: 1 for manipulated ones, 0 for authentic ones.
        """
        threshold = 0.5 if math.isnan(threshold) else min(max(threshold, 2**-10), 1 - 2**-10)
        temperature, logit = best_temperature(counts), math.log(threshold / (1 - threshold))
        slope, intercept = scale_scores(raw, labels)
        limit = SURE * temperature
        numbers = {"temperature": temperature, "threshold": min(max(logit, -limit), limit), "slope": slope, "intercept": intercept}
        for name, value in numbers.items():
            getattr(self, name).fill_(value)
        scores = np.sort([score for score, label in zip(raw, labels, strict=True) if not label])
        self.counts.copy_(torch.tensor([len(scores), sum(self.score(score) > 0.5 for score in scores)]))
        kept = np.pad(scores[_kept_ranks(len(scores))], (0, QUANTILES), constant_values=np.nan)[:QUANTILES]
        self.authentic.copy_(torch.from_numpy(kept))

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return the calibrated probabilities of logits of pixels."""
        return (logits / self.temperature).sigmoid()

    @property
    def pixel_threshold(self) -> float:
        """The threshold as a calibrated probability."""
        return float((self.threshold / self.temperature).sigmoid())

    def score(self, raw: float) -> float:
        """Return the calibrated probability that a picture is manipulated, both kinds being equally frequent; above a half it is called so."""
        return float(expit(float(self.slope) * raw + float(self.intercept)))

    def alarms_above(self, raw: float) -> float:
        """Return the part of authentic pictures that score as high, by a rank that counts this picture among them; NaN without authentic ones.

        It is (1 + n) / (1 + N) for n of N authentic validation pictures: a p-value under the hypothesis that the picture is as authentic as they are.
        Beyond `QUANTILES` of them, n is the largest number that the kept scores allow. Scores are compared as float32, in which they are kept.
        """
        count = int(self.counts[0])
        if not count:
            return math.nan
        ranks = _kept_ranks(count)
        scores = self.authentic[: len(ranks)].float().cpu().numpy()
        below = int(np.searchsorted(scores, np.float32(raw)))  # kept scores that are lower
        lower = ranks[below - 1] + 1 if below else 0
        return float(1 + count - lower) / (1 + count)

    def false_alarms(self) -> str:
        """Say how often authentic validation pictures are called manipulated."""
        count, alarms = self.counts.tolist()
        if not count:
            return "no authentic picture was in validation: how often this calls one manipulated is not known"
        low, high = interval(alarms, count)
        share = f"{alarms / count:.1%}; 95 % interval {low:.1%} to {high:.1%}"
        return f"{alarms} of {count} authentic validation pictures are called manipulated ({share})"


def _kept_ranks(count: int) -> np.ndarray:
    """Return the ranks, from 0, of the authentic pictures whose scores are kept."""
    return np.unique(np.linspace(0, count - 1, min(count, QUANTILES)).round().astype(int))
