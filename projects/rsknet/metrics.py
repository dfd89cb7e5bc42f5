"""Error rates and costs of verification, over all trials of a list.

measured = summarise(scores, trials.is_target)                                    # EER as a fraction, normalised minimal costs
spread = bootstrap_eer(scores, trials.is_target, enrol_speaker, test_speaker)     # of speakers, not of trials
threshold = far_threshold(scores[~trials.is_target], far=0.01)

A trial is accepted if its score reaches the threshold; equal scores are accepted or rejected together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from shared.metrics import curves
from shared.metrics.curves import Roc
from shared.seeding import derive_seed

Speakers = Sequence[str] | np.ndarray | Tensor
"""(N,) names or numbers of speakers."""

_CHUNK = 500_000  # weights of trials that the bootstrap holds at a time


def eer(scores: Tensor, is_target: Tensor) -> float:
    """Equal error rate: where as many nontargets are accepted as targets are rejected, on the straight line between two points of the curve.

    Args:
        scores: (N,) finite numbers, higher for targets.
        is_target: (N,) bool, true where both sides are of one speaker.

    Returns:
        A fraction in [0, 1], not percent.

    Raises:
        ValueError: if there are no targets or no nontargets, or a score is NaN.
    """
    return curves.eer(_curve(scores, is_target))


def min_dcf(scores: Tensor, is_target: Tensor, p_target: float = 0.01, c_miss: float = 1, c_fa: float = 1) -> float:
    """Least detection cost over all thresholds, including those that accept and reject all, as a multiple of what knowing only the prior costs.

    Args:
        scores: (N,) finite numbers, higher for targets.
        is_target: (N,) bool.
        p_target: prior probability of a target, in (0, 1).
        c_miss: cost of rejecting a target.
        c_fa: cost of accepting a nontarget.

    Returns:
        min of [p c_miss P_miss + (1 - p) c_fa P_fa] / min(p c_miss, (1 - p) c_fa), in [0, 1].

    Raises:
        ValueError: as `eer`, or if the prior or a cost is out of its range.
    """
    curve = _curve(scores, is_target)
    return float(_dcf(1 - curve.tpr, curve.fpr, p_target, c_miss, c_fa).min())


def actual_dcf(llrs: Tensor, is_target: Tensor, p_target: float = 0.01, c_miss: float = 1, c_fa: float = 1) -> float:
    """Detection cost at the threshold that is best if `llrs` are what they claim to be, log(c_fa (1 - p) / (c_miss p)); normalised as `min_dcf`.

    Args:
        llrs: (N,) logarithms (natural) of likelihood ratios.
        is_target: (N,) bool.
        p_target: prior probability of a target, in (0, 1).
        c_miss: cost of rejecting a target.
        c_fa: cost of accepting a nontarget.

    Raises:
        ValueError: as `min_dcf`.
    """
    llrs, labels = _checked(llrs, is_target)
    _check_costs(p_target, c_miss, c_fa)
    accepted = (llrs >= math.log(c_fa * (1 - p_target) / (c_miss * p_target))).double()
    return float(_dcf(1 - accepted[labels == 1].mean(), accepted[labels == 0].mean(), p_target, c_miss, c_fa))


def cllr(llrs: Tensor, is_target: Tensor) -> float:
    """Cost of log-likelihood ratios in bits (Brummer & du Preez 2006): 0 if all are right and sure, 1 if they say nothing; without an upper bound.

    Args:
        llrs: (N,) natural logarithms of likelihood ratios.
        is_target: (N,) bool.

    Raises:
        ValueError: as `eer`.
    """
    llrs, labels = _checked(llrs, is_target)
    return float((F.softplus(-llrs[labels == 1]).mean() + F.softplus(llrs[labels == 0]).mean()) / (2 * math.log(2)))


def min_cllr(scores: Tensor, is_target: Tensor) -> float:
    """`cllr` after the best rising map of the scores, which pooling adjacent violators finds: what no calibration of them can undercut.

    Args and errors as in `eer`.
    """
    from sklearn.isotonic import isotonic_regression

    curve = _curve(scores, is_target)
    targets, nontargets = curve.positives.diff().flip(0), curve.negatives.diff().flip(0)  # (T,) at each distinct score, the lowest one first
    rates = isotonic_regression((targets / (targets + nontargets)).numpy(), sample_weight=(targets + nontargets).numpy())
    llrs = torch.logit(torch.from_numpy(rates)) - torch.log(targets.sum() / nontargets.sum())
    misses, alarms = F.softplus(-llrs[targets > 0]), F.softplus(llrs[nontargets > 0])
    costs = (targets[targets > 0] * misses).sum() / targets.sum() + (nontargets[nontargets > 0] * alarms).sum() / nontargets.sum()
    return float(costs / (2 * math.log(2)))


def det_points(scores: Tensor, is_target: Tensor, per_decade: int = 50) -> tuple[Tensor, Tensor]:
    """Points of the detection error trade-off on probit axes, thinned for plots.

    Args:
        scores: (N,) finite numbers, higher for targets.
        is_target: (N,) bool.
        per_decade: about how many points are kept for a tenfold growth of either rate.

    Returns:
        Normal quantiles of the false-accept and the miss rates, both (P,) float64; P is 0 if no threshold makes errors of both kinds.

    Raises:
        ValueError: as `eer`.
    """
    curve = _curve(scores, is_target)
    alarms, misses = curve.negatives, curve.positives[-1] - curve.positives
    inner = (alarms > 0) & (alarms < alarms[-1]) & (misses > 0) & (misses < misses[0])
    steps = [(per_decade * counts[inner].log10()).floor() for counts in (alarms, misses)]
    kept = torch.ones(int(inner.sum()), dtype=torch.bool)
    kept[1:] = (steps[0].diff() != 0) | (steps[1].diff() != 0)
    return torch.special.ndtri(curve.fpr[inner][kept]), torch.special.ndtri((1 - curve.tpr)[inner][kept])


def summarise(scores: Tensor, is_target: Tensor) -> dict[str, float]:
    """Measure a list: `eer` (a fraction), `min_dcf_01` and `min_dcf_001` (normalised, priors 0.01 and 0.001). Args and errors as in `eer`."""
    curve = _curve(scores, is_target)
    costs = {name: float(_dcf(1 - curve.tpr, curve.fpr, prior, 1, 1).min()) for name, prior in (("min_dcf_01", 0.01), ("min_dcf_001", 0.001))}
    return {"eer": curves.eer(curve)} | costs


def far_threshold(impostor_scores: Tensor, far: float) -> float:
    """Smallest threshold that at most a part `far` of the impostors reach.

    Args:
        impostor_scores: (I,) scores of nontargets, on which the threshold has to hold.
        far: false-accept rate, in (0, 1).

    Raises:
        ValueError: if there are fewer than 1 / `far` impostors, a score is NaN or `far` is out of its range.
    """
    if not 0 < far < 1:
        raise ValueError(f"far must lie between 0 and 1, got {far}")
    count = len(impostor_scores)
    accepted = math.floor(far * count + 1e-9)  # 0.29 x 100 is 28.999...
    if accepted < 1:
        raise ValueError(f"a false-accept rate of {far:g} needs at least {math.ceil(1 / far - 1e-9)} impostor trials, got {count}: give more of them")
    if bool(impostor_scores.isnan().any()):
        raise ValueError(f"{int(impostor_scores.isnan().sum())} of {count} impostor scores are NaN")
    rejected = impostor_scores.detach().cpu().double().sort(descending=True).values[accepted]  # the highest one that must not be reached
    return math.nextafter(float(rejected), math.inf)


def far_upper_bound(impostor_scores: Tensor, threshold: float, alpha: float = 0.05) -> float:
    """Upper confidence bound of the rate at which new impostors reach a threshold that was fixed beforehand (Clopper & Pearson 1934).

    It takes trials as independent, which trials of few speakers are not: then it is too low.

    Args:
        impostor_scores: (I,) scores of nontargets.
        threshold: a score that reaches it is accepted.
        alpha: probability that the bound lies below the rate; 0.05 for a confidence of 95 %.

    Raises:
        ValueError: if there are no impostors or `alpha` is outside (0, 1).
    """
    from scipy.stats import beta

    if len(impostor_scores) == 0 or not 0 < alpha < 1:
        raise ValueError(f"a bound needs impostor trials and an alpha in (0, 1), got {len(impostor_scores)} and {alpha}")
    count, accepted = len(impostor_scores), int((impostor_scores >= threshold).sum())
    return float(beta.ppf(1 - alpha, accepted + 1, count - accepted)) if accepted < count else 1.0


def bootstrap_eer(scores: Tensor, is_target: Tensor, enrol_speaker: Speakers, test_speaker: Speakers, replicates: int = 500, seed: int = 0) -> Tensor:
    """Equal error rates of lists whose speakers are drawn anew, with replacement: their spread is that over speakers, which trials share.

    A speaker is drawn w times. Target trials of speaker a then count w_a times, nontarget trials of a and b w_a w_b times. Draws depend on `seed`,
    `replicates` and the number of speakers, who are numbered in sorted order: rates of two systems on the same trials can be subtracted.

    Args:
        scores: (N,) finite numbers, higher for targets.
        is_target: (N,) bool.
        enrol_speaker: (N,) speakers of the models.
        test_speaker: (N,) speakers of the test files.
        replicates: R, number of draws.
        seed: of the draws.

    Returns:
        (R,) float64 fractions; NaN for a draw without targets or nontargets.

    Raises:
        ValueError: as `eer`, or if the speakers are not one a trial or contradict `is_target`.
    """
    if replicates < 1:
        raise ValueError(f"replicates must be at least 1, got {replicates}")
    scores, labels = _checked(scores, is_target)
    first, second, count = _numbered(enrol_speaker, test_speaker, labels)
    draws = np.random.default_rng(derive_seed(seed, "speakers", replicates)).multinomial(count, np.full(count, 1 / count), size=replicates)
    return _weighted_eer(scores, first, second, torch.from_numpy(draws).double())


def _weighted_eer(scores: Tensor, first: Tensor, second: Tensor, times: Tensor) -> Tensor:
    """Return (R,) equal error rates of trials of speakers `first` and `second` (both (N,)) that count `times` (R, S) as in `bootstrap_eer`."""
    order = scores.argsort(descending=True)
    numbers, pair, counts = (first * times.shape[1] + second)[order].unique(return_inverse=True, return_counts=True)  # trials of a pair weigh alike
    pairs = torch.stack([numbers // times.shape[1], numbers % times.shape[1], counts])
    lengths = scores[order].unique_consecutive(return_counts=True)[1]
    ends = lengths.cumsum(0).repeat_interleave(lengths)  # (N,) number of trials that score at least as much
    points = torch.stack([ends - lengths.repeat_interleave(lengths), ends])
    return torch.cat([_equal_errors(part, pairs, pair, points) for part in times.split(max(1, _CHUNK // len(scores)))])


def _equal_errors(times: Tensor, pairs: Tensor, pair: Tensor, points: Tensor) -> Tensor:
    """Return (R,) equal error rates; all sums but the last line's are of whole numbers, and so exact.

    Args:
        times: (R, S) how often speakers count.
        pairs: (3, P) two speakers and the number of their trials.
        pair: (N,) index into `pairs` of the trials in falling order of their scores.
        points: (2, N) numbers of the trials that score more, and at least as much.
    """
    is_same = pairs[0] == pairs[1]
    weights = times[:, pairs[0]] * torch.where(is_same, 1, times[:, pairs[1]])  # (R, P)
    targets, nontargets = ((weights * pairs[2] * chosen).sum(1, keepdim=True) for chosen in (is_same, ~is_same))
    whole = targets * nontargets
    sums = (weights * torch.where(is_same, nontargets, targets))[:, pair].cumsum(1)  # (R, N) (P_fa + 1 - P_miss) x targets x nontargets
    crossing = torch.searchsorted(sums, whole).clamp_max(len(pair) - 1)[:, 0]
    around = points[:, crossing].T  # (R, 2) before and after
    reached = F.pad(sums, (1, 0)).gather(1, around)
    is_target = is_same[pair]
    hits = F.pad(weights[:, pair[is_target]].cumsum(1), (1, 0)).gather(1, F.pad(is_target.cumsum(0), (1, 0))[around])
    alarms = (reached - hits * nontargets) / targets  # (R, 2)
    part = (whole - reached[:, :1]) / reached.diff(dim=1)
    return ((alarms[:, :1] + part * alarms.diff(dim=1)) / nontargets)[:, 0]


def _numbered(enrol_speaker: Speakers, test_speaker: Speakers, labels: Tensor) -> tuple[Tensor, Tensor, int]:
    """Return the numbers of both sides' speakers in sorted order, and how many speakers there are."""
    sides = [np.asarray(side) for side in (enrol_speaker, test_speaker)]
    if any(side.shape != (len(labels),) for side in sides):
        raise ValueError(f"{len(labels)} trials with {len(sides[0])} and {len(sides[1])} speakers: there must be one of each a trial")
    names, places = np.unique(np.concatenate(sides), return_inverse=True)
    first, second = torch.from_numpy(places.reshape(2, -1))
    if bool((wrong := (first == second) != (labels == 1)).any()):
        row = int(wrong.nonzero()[0])
        label = "target" if labels[row] else "nontarget"
        raise ValueError(f"trial {row} of {sides[0][row]} and {sides[1][row]} is labelled {label}: correct the list")
    return first, second, len(names)


def _checked(scores: Tensor, is_target: Tensor) -> tuple[Tensor, Tensor]:
    scores, labels = curves.checked(scores, is_target)
    if not 0 < (targets := int(labels.sum())) < len(labels):
        raise ValueError(f"{targets} of {len(labels)} trials are targets: error rates need both targets and nontargets")
    return scores, labels


def _curve(scores: Tensor, is_target: Tensor) -> Roc:
    return curves.roc(*_checked(scores, is_target))


def _check_costs(p_target: float, c_miss: float, c_fa: float) -> None:
    if not (0 < p_target < 1 and c_miss > 0 and c_fa > 0):
        raise ValueError(f"p_target must lie between 0 and 1 and costs be positive, got {p_target}, {c_miss} and {c_fa}")


def _dcf(miss: Tensor, alarm: Tensor, p_target: float, c_miss: float, c_fa: float) -> Tensor:
    _check_costs(p_target, c_miss, c_fa)
    weights = p_target * c_miss, (1 - p_target) * c_fa
    return (weights[0] * miss + weights[1] * alarm) / min(weights)
