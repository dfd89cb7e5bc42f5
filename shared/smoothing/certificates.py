"""From counts of votes to certified radii: one function a certificate, each with its split of alpha, none above what is proven.

Notation: k_i hits of the top class in n draws of branch i, p_i a lower bound of its probability, a_i = Phi^-1(p_i). The class is chosen from other
draws than those that are counted here. Certificates of several branches: Xia et al. 2024 (arXiv 2404.09586), by the Neyman-Pearson argument of
Cohen et al. 2019 in every branch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.smoothing.alpha import AlphaPlan, corrected_lower
from shared.smoothing.anytime import lower_sequence
from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile, randomised_lower, round_down
from shared.smoothing.joint import fisher_sum, martingale_glance, martingale_sum
from shared.smoothing.runner_up import gaussian_radius, mean_fusion_radius, probit_fusion_radius, runner_up_bounds

ABSTAIN = -1
Rule = Literal["main", "pooled", "joint", "selected", "shared", "runner_up", "l1"]
Norm = Literal["l1", "l2", "ellipsoid"]
RULES: tuple[Rule, ...] = ("main", "pooled", "joint", "selected", "shared", "runner_up", "l1")


@dataclass(frozen=True)
class Certificate:
    """A class and the radius within which it stays, or an abstention.

    Attributes:
        predicted: class, or -1 for an abstention.
        radius: certified radius, rounded down; 0 where `predicted` is -1.
        rule: which certificate it is.
        alpha: how the failure probability is split.
        norm: norm of the ball; "ellipsoid" for |delta / theta|_2 with the deviations theta of the branches.
        coins: coins that randomised bounds were drawn with, one a branch.
    """

    predicted: int
    radius: float
    rule: str
    alpha: AlphaPlan
    norm: Norm = "l2"
    coins: tuple[float, ...] = ()

    @property
    def is_abstention(self) -> bool:
        """Whether nothing is claimed."""
        return self.predicted == ABSTAIN


@dataclass(frozen=True)
class Smoothing:
    """What the votes were drawn with, and which certificate was fixed before they were drawn.

    Two branches are fused by the mean of their probabilities, more by the sum of their normal quantiles; that is the classifier that is certified.

    Args:
        sigmas: standard deviation of each branch's Gaussian noise; for rule "l1" the half-width of its uniform noise.
        rule: "main" bounds each branch; "pooled" the mean over two branches; "joint" the sum of two branches' quantiles at once; "selected" is pooled
            or joint, whichever the draws that choose the class promise more of; "shared" is for branches that see one noise; "runner_up" also bounds
            the other classes; "l1" is for uniform noise. With one branch main, pooled, joint, selected and shared are Cohen's certificate.
        alpha: failure probability of a certificate.
        anytime: bounds hold at every number of draws, so that the engine may stop early; for rules "main", "joint" and "shared".
        sidak: split alpha over branches by 1 - (1 - alpha)^(1/k) instead of alpha / k; needs independent noise in the branches.
        randomised: bounds are those of Voracek 2024, at least Clopper-Pearson's: the certificate holds over the draws and a coin for each image and
            branch; for rules "main", "pooled" and "l1" with a fixed number of draws. No coin counts as less than 2 alpha, so that luck alone
            certifies nothing without bound.
        anisotropic: branches have deviations theta of their own, and radii are those of the ellipsoid |delta / theta|_2; the engine sets it.
        tail: mass that the sampler's tails lack in a branch, which is taken off every lower bound; see `alpha.tail_mass`.

    Raises:
        ValueError: if the certificate is not proven for these branches.
    """

    sigmas: tuple[float, ...]
    rule: Rule = "joint"
    alpha: float = 0.001
    anytime: bool = False
    sidak: bool = False
    randomised: bool = False
    anisotropic: bool = False
    tail: float = 0.0

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"rule {self.rule!r} is none of {', '.join(RULES)}")
        if not self.sigmas or min(self.sigmas) <= 0:
            raise ValueError(f"sigmas must be positive, one a branch, got {self.sigmas}")
        branches, is_even = len(self.sigmas), len(set(self.sigmas)) == 1
        if self.rule in ("pooled", "joint", "selected") and branches > 2:
            raise ValueError(f"the certificate {self.rule!r} is derived for one or two branches, not for {branches}: take 'main'")
        if self.rule in ("pooled", "selected", "shared", "runner_up") and not is_even:
            raise ValueError(f"the certificate {self.rule!r} needs one sigma for all branches, got {self.sigmas}: take 'main' or 'joint'")
        if self.rule == "l1" and branches > 1:
            raise ValueError("the l1 certificate has one branch")
        if self.rule in ("pooled", "selected") and branches == 2 and self.alpha >= 0.25:
            raise ValueError(f"pooling is proven for alpha below 1/4 (Hoeffding 1956), got {self.alpha}")
        if self.anytime and branches > 1 and self.rule not in ("main", "joint", "shared"):
            raise ValueError(f"the certificate {self.rule!r} of two branches needs a fixed number of draws; anytime ones are main, joint and shared")
        if self.anytime and self.rule == "runner_up":
            raise ValueError("the certificate 'runner_up' needs a fixed number of draws")
        if self.sidak and self.rule == "shared":
            raise ValueError("branches that share their noise are not independent: alpha is split by Bonferroni, not Sidak")
        if self.sidak and self.rule != "main":
            raise ValueError(f"the certificate {self.rule!r} does not split alpha over branches: Sidak is for 'main'")
        if self.randomised and (self.anytime or self.rule not in ("main", "pooled", "l1")):
            raise ValueError(f"randomised bounds are for a fixed number of draws and the certificates main, pooled and l1, not for {self.rule!r}")
        if self.anisotropic and self.rule in ("l1", "shared"):
            raise ValueError(f"deviations theta of single elements are for independent Gaussian noise, not for the certificate {self.rule!r}")

    @property
    def plan(self) -> AlphaPlan:
        """The split of alpha."""
        names = [f"branch {branch}" for branch in range(len(self.sigmas))]
        if self.rule in ("main", "shared") and len(names) > 1:
            return AlphaPlan.equal(self.alpha, names, self.sidak)
        return AlphaPlan.whole(self.alpha)

    @property
    def scale(self) -> float:
        """What the sum of the branches' a_i is multiplied with: 1 / sqrt(sum 1 / sigma_i^2), or sigma / k if they share their noise."""
        if self.rule == "shared":
            return self.sigmas[0] / len(self.sigmas)
        return 1 / math.sqrt(math.fsum(sigma**-2 for sigma in self.sigmas))

    def lower_bounds(self, hits: Tensor, draws: int, alpha: float, coins: Tensor | None = None) -> Tensor:
        """Bound each branch's probability from below, (k,) hits -> (k,), each at failure probability `alpha`."""
        if self.randomised:
            return corrected_lower(randomised_lower(hits, draws, alpha, _floored(coins, alpha)), self.tail)
        bound = lower_sequence if self.anytime else clopper_pearson_lower
        return corrected_lower(bound(hits, draws, alpha), self.tail)

    def _pooled(self, hits: Tensor, draws: int, coins: Tensor | None) -> Tensor:
        """Bound the mean of two branches' probabilities from below by the sum k of their hits.

        Hoeffding 1956: P(sum >= k) is at most that of a binomial with the mean probability p where k >= 2 n p + 1, or k = 2 n. Clopper-Pearson
        uses the tail from k + 1 on at the truth, where alpha < 1/4 implies this; a coin also uses that from k on, so that its bound is taken
        where it is implied.
        """
        hit, total = hits.sum(), 2 * draws
        bound = clopper_pearson_lower(hit, total, self.alpha)
        if self.randomised:
            lucky = randomised_lower(hit, total, self.alpha, _floored(coins, self.alpha)[0])
            bound = torch.where((hit == total) | (hit >= total * lucky + 1), torch.maximum(lucky, bound), bound)
        return corrected_lower(bound, self.tail)

    def decided(self, selection: Tensor, draws: int, top: int) -> Smoothing:
        """Choose between pooled and joint, if the rule is "selected", by the votes of the selection draws: those that are counted stay unseen.

        Args:
            selection: (branches, K) votes that chose the class `top`.
            draws: draws of each branch that are counted, of which as large a share is expected to hit.
            top: the class.
        """
        if self.rule != "selected":
            return self
        if len(self.sigmas) == 1:
            return dataclasses.replace(self, rule="main")
        made = selection.sum(1, keepdim=True).clamp_min(1)
        expected = (selection * draws / made).round().to(torch.int64)
        forms = [dataclasses.replace(self, rule=rule) for rule in ("joint", "pooled")]
        return max(forms, key=lambda form: form.radius(expected, draws, top))

    def radius(self, counts: Tensor, draws: int, top: int, coins: Tensor | None = None) -> float:
        """Radius of the class `top`, before rounding; not positive where nothing is certified.

        Args:
            counts: (branches, K) votes of the estimation draws.
            draws: draws of each branch.
            top: class chosen by other draws.
            coins: (branches,) uniform on (0, 1], drawn for this image alone; for randomised bounds.
        """
        hits = counts[:, top].cpu()
        if self.rule == "l1":
            return 2 * self.sigmas[0] * (float(self.lower_bounds(hits, draws, self.alpha, coins)[0]) - 0.5)
        if self.rule == "runner_up":
            return self._runner_up(counts.cpu(), draws, top)
        if len(hits) == 2 and self.rule == "pooled":
            return self.scale * 2 * float(normal_quantile(self._pooled(hits, draws, coins)))
        if len(hits) == 2 and self.rule == "joint":
            total = martingale_sum if self.anytime else fisher_sum
            return self.scale * total(hits, draws, self.alpha, self.tail)
        share = next(iter(self.plan.parts.values()))
        return self.scale * float(normal_quantile(self.lower_bounds(hits, draws, share, coins)).sum())

    def at_most(self, counts: Tensor, draws: int, top: int) -> float:
        """Return a number that `radius` does not exceed, in less time than that takes: infinity where it takes little; arguments as there."""
        if len(counts) == 2 and self.rule == "joint" and self.anytime:
            return self.scale * martingale_glance(counts[:, top].cpu(), draws, self.alpha)
        return math.inf

    def _runner_up(self, counts: Tensor, draws: int, top: int) -> float:
        lower, upper = runner_up_bounds(counts, draws, top, self.alpha, self.tail)
        by_branches: dict[int, Callable[[Tensor, Tensor, float], float]] = {1: gaussian_radius, 2: mean_fusion_radius}
        return by_branches.get(len(lower), probit_fusion_radius)(lower, upper, self.sigmas[0])

    def certify(self, counts: Tensor, draws: int, top: int, coins: Tensor | None = None) -> Certificate:
        """Turn the votes of the estimation draws into a certificate of the class `top`.

        Args:
            counts: (branches, K) votes; the votes for no valid class are left out and count against `top`.
            draws: draws of each branch.
            top: class chosen by other draws.
            coins: see `radius`.

        Returns:
            The certificate, its radius rounded down; an abstention where the radius is not positive.
        """
        radius = float(round_down(torch.tensor(self.radius(counts, draws, top, coins), dtype=torch.float64)))
        return self.claim(top, radius, counts.shape[1], () if coins is None else tuple(coins.tolist()))

    def claim(self, top: int, radius: float, classes: int, coins: tuple[float, ...] = ()) -> Certificate:
        """Write down a radius of the class `top` that was certified and rounded before, an abstention if it is 0, of K classes."""
        plan = AlphaPlan.with_runner_ups(self.alpha, len(self.sigmas), classes) if self.rule == "runner_up" else self.plan
        norm: Norm = "l1" if self.rule == "l1" else "ellipsoid" if self.anisotropic else "l2"
        return Certificate(top if radius > 0 else ABSTAIN, radius, self.rule, plan, norm, coins)


def choose_class(counts: Tensor) -> int:
    """Return the class with most votes over all branches, (branches, K) -> class, the lowest of those with as many."""
    total = counts.sum(0)
    return int((total == total.max()).to(torch.int64).argmax())


def _floored(coins: Tensor | None, alpha: float) -> Tensor:
    """Raise coins to 2 alpha: a higher coin gives a lower bound, so this is sound whatever the threshold."""
    if coins is None:
        raise ValueError("randomised bounds need a coin for each branch")
    return coins.clamp(min=min(1.0, 2 * alpha))


@dataclass(frozen=True)
class AnisotropicRadii:
    """What anisotropic Gaussian noise certifies (Eiras et al. 2022, ANCER), all rounded down.

    Attributes:
        ellipsoid: R with |delta / theta|_2 <= R certified.
        l2: radius of the ball inside, min(theta) R.
        proxy: radius of the ball of the same volume, (prod theta)^(1/d) R: for comparisons, not a certificate.
        scope: "classifier" if theta is the same for all inputs; "point" if it was fitted to this one: the claim is then about the classifier that is
            smoothed with this very theta everywhere, not about one that fits it anew at each input.
    """

    ellipsoid: float
    l2: float
    proxy: float
    scope: Literal["classifier", "point"]


def anisotropic_radii(radius: float, theta: Tensor, fitted_to_input: bool) -> AnisotropicRadii:
    """Radii of noise N(0, sigma^2 diag(theta^2)).

    Args:
        radius: certified radius R of the ellipsoid |delta / theta|_2 <= R, sigma Phi^-1(p) of one branch: that of a `Certificate`.
        theta: standard deviations of all elements in units of sigma, positive.
        fitted_to_input: theta depends on the input; then neighbours would get another theta, and the claim is labelled per point.

    Raises:
        ValueError: if a standard deviation is not positive.
    """
    spread = theta.to(torch.float64)
    if float(spread.min()) <= 0:
        raise ValueError("standard deviations theta must be positive")
    radii = round_down(radius * torch.stack([torch.ones((), dtype=torch.float64), spread.min(), spread.log().mean().exp()]))
    ellipsoid, ball, proxy = radii.tolist()
    return AnisotropicRadii(ellipsoid, ball, proxy, "point" if fitted_to_input else "classifier")
