"""What the convergence statements need of a run, and the step sizes that they then allow (Theorems 1 to 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.vafl.steps import Decay, Root

SMALLEST_RHO = 1e-6
"""Rho of ages that never exceed 1: A5 needs one above 0, and c_m hardly depends on it there."""
QUICK = 10**9
"""Multiplications of `logistic_smoothness` that are no matter."""


def activation_shares(gaps: Sequence[float]) -> list[float]:
    """Return q_m = (1 / lambda_m) / sum_j (1 / lambda_j) (A3): the chance that the next client to become active is m.

    Args:
        gaps: mean times between activations of each client, lambda_m, in one unit. The paper's "parameter" of Poisson activations is this mean.

    Raises:
        ValueError: if a gap is not positive.
    """
    if not gaps or not all(gap > 0 for gap in gaps):
        raise ValueError(f"mean gaps must be positive, got {list(gaps)}")
    rates = [1 / gap for gap in gaps]
    return [rate / sum(rates) for rate in rates]


@dataclass(frozen=True)
class Tail:
    """A geometric bound on the ages of a client's embeddings: P(tau = d) <= pbar rho^d (A5).

    Attributes:
        rho: in (0, 1).
        pbar: factor.
        oldest: largest age D, in updates of the server; infinite where ages have no bound.
    """

    rho: float
    pbar: float
    oldest: float

    @property
    def constant(self) -> float:
        """c_m = pbar (rho / (1 - rho)^2 + 2 rho^2 / (1 - rho)^3) of Theorems 3 and 4: the sum of d^2 pbar rho^d, a bound on the mean square age."""
        return self.pbar * (self.rho / (1 - self.rho) ** 2 + 2 * self.rho**2 / (1 - self.rho) ** 3)


def poisson_tail(share: float) -> Tail:
    """Return the exact tail of independent activations: P(tau = d) = q (1 - q)^(d - 1) from d = 1, whose mean square is (2 - q) / q^2.

    Args:
        share: chance q, in (0, 1], that an update of the server renews the embedding: q_m times the share of its records that the client uploads.

    Raises:
        ValueError: if the share is out of its range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share of updates that renew an embedding must be in (0, 1], got {share}")
    rho = max(1 - share, SMALLEST_RHO)
    return Tail(rho, share / rho, math.inf)


def fit_tail(counts: Tensor | np.ndarray, ages: Tensor | np.ndarray | None = None) -> Tail:
    """Fit A5 to observed ages: for a rho the least pbar that holds at each age, and of all rho the one with the least c_m.

    The least c_m is chosen as that is the number through which A5 enters the theorems; it is never less than the observed mean square age. What is
    bounded is the sample: ages that were too rare to be seen may lie above.

    Args:
        counts: (J,) how often each age was seen.
        ages: (J,) those ages, in updates of the server; of a bin of several ages its largest, to be on the safe side.
            None stands for 0 to J - 1.

    Raises:
        ValueError: if no age was seen, or one is negative.
    """
    from scipy.optimize import minimize_scalar

    weights = np.asarray(counts, dtype=np.float64)
    values = np.arange(len(weights), dtype=np.float64) if ages is None else np.asarray(ages, dtype=np.float64)
    seen = weights > 0
    if values.shape != weights.shape or not seen.any() or (weights < 0).any() or (values < 0).any():
        raise ValueError("a tail is fitted to counts of ages: as many ages as counts, none negative, and one count above 0")
    values, logs = values[seen], np.log(weights[seen] / weights.sum())

    def loss(log_rho: float) -> float:
        """Log c_m: convex in log rho, as a maximum of lines plus the logarithm of a sum of exponentials."""
        rho = math.exp(log_rho)
        return float((logs - values * log_rho).max() + log_rho + math.log1p(rho) - 3 * math.log(-math.expm1(log_rho)))

    bounds = (math.log(SMALLEST_RHO), math.log1p(-1 / (2 + values.max())))  # above the upper one c_m only rises
    log_rho = float(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-10}).x)
    return Tail(math.exp(log_rho), math.exp((logs - values * log_rho).max()), float(values.max()))


def largest_step(smooth: float, staleness: float) -> float:
    """Return the largest step size of Theorems 1 and 3, 1 / (4 (1 + staleness) L).

    Args:
        smooth: L.
        staleness: largest age D for Theorem 1; the root of the largest c_m for Theorem 3, whose statement prints the least and whose proof uses
            the largest.

    Raises:
        ValueError: if `smooth` is not positive, or `staleness` negative.
    """
    if not (smooth > 0 and staleness >= 0):
        raise ValueError(f"smooth must be positive and staleness 0 or more, got {smooth} and {staleness}")
    return 1 / (4 * (1 + staleness) * smooth)


def theorem2_steps(strong: float, smooth: float, share: float, oldest: float, rooted: bool = False) -> Decay:
    """Return the step sizes of Theorem 2, 4 / (mu q (k + K0)) with K0 = 4 (4 (D + 1) L + 2 mu q D) / (mu q), q the least share.

    So the proof has it. The first step is then just below the largest of Theorem 1.

    Args:
        strong: mu, strong convexity of F.
        smooth: L.
        share: least q_m.
        oldest: D.
        rooted: whether the factor is 4 / (mu sqrt(q)), as the statement has it; K0 stays.

    Raises:
        ValueError: if an argument is out of its range, or D infinite.
    """
    if not (strong > 0 and smooth > 0 and 0 < share <= 1 and 0 <= oldest < math.inf):
        raise ValueError(
            "strong and smooth must be positive, share in (0, 1] and oldest finite and 0 or more, "
            f"got strong {strong}, smooth {smooth}, share {share}, oldest {oldest}"
        )
    offset = 4 * (4 * (oldest + 1) * smooth + 2 * strong * share * oldest) / (strong * share)
    return Decay(4 / (strong * (math.sqrt(share) if rooted else share) * offset), offset)


def theorem4_steps(nu: float, offset: float) -> Decay:
    """Return the step sizes of Theorem 4, 2 / (nu (k + K0)).

    Args:
        nu: the rate at which the theorem's Lyapunov function falls.
        offset: K0.

    Raises:
        ValueError: if an argument is not positive.
    """
    if not (nu > 0 and offset > 0):
        raise ValueError(f"nu and offset must be positive, got {nu} and {offset}")
    return Decay(2 / (nu * offset), offset)


def is_quickly_smooth(blocks: Sequence[Tensor]) -> bool:
    """Tell whether `logistic_smoothness` of these blocks takes a fraction of a second."""
    records, features = len(blocks[0]), sum(block[0].numel() for block in blocks)
    return records * features * min(records, features) <= QUICK


def logistic_smoothness(blocks: Sequence[Tensor], l2: float = 0.0, bias: bool = True) -> float:
    """Return L of federated logistic regression, lambda_max(X' X) / (2 N) + l2, where X holds all clients' features.

    The Hessian of softmax cross-entropy for the logits is at most (I - 1 1' / K) / 2 (Böhning 1992), and that has no eigenvalue above 1/2.

    Args:
        blocks: (N, ...) features of each client; one client's alone give its own L_m.
        l2: coefficient of the regulariser l2 / 2 ||theta||^2.
        bias: whether the server adds a bias to the sum of embeddings, which is one more feature of value 1.

    Raises:
        ValueError: if there is no block, or they differ in N.
    """
    if not blocks or any(len(block) != len(blocks[0]) for block in blocks):
        raise ValueError(f"blocks must have the same records, got {[len(block) for block in blocks]}")
    parts = [block.flatten(1).double() for block in blocks]
    features = torch.cat([*parts, torch.ones_like(parts[0][:, :1])] if bias else parts, dim=1)  # (N, P)
    gram = features.T @ features if features.shape[1] <= features.shape[0] else features @ features.T
    return 0.5 * torch.linalg.eigvalsh(gram)[-1].item() / len(features) + l2


def theory_rows(
    gaps: Sequence[float], tails: Sequence[Tail], smooth: float | None, strong: float = 0.0, scale: float = 1.0, total: int = 1
) -> list[dict[str, Any]]:
    """Return what the theorems say of a run: a row for each client as if all were as rare and as late as it, and one for all, which the worst decide.

    Args:
        gaps: mean gap of each client, in seconds.
        tails: ages of each client's embeddings; see `fit_tail` and `poisson_tail`.
        smooth: L of the whole objective; None where it is not known, and there are no columns of steps then.
        strong: mu; 0 if F is not strongly convex, and Theorem 2 then says nothing.
        scale: c_eta of Theorems 1 and 3.
        total: K of Theorems 1 and 3, updates of the server.

    Returns:
        Rows of client (number, or "all"), gap, q, oldest (D), rho, pbar, c, step_t1, step_t2 (of the first update, as the proof has it),
        step_t2_printed (as the statement has it), offset_t2 (K0) and step_t3. A step is None where its theorem needs what is not there.
        Theorem 4's is left out: its nu and K0 do not follow from these numbers; see `theorem4_steps`.

    Raises:
        ValueError: if there are not as many tails as gaps, or an argument is out of its range.
    """
    shares = activation_shares(gaps)
    rows = [
        {"client": number, "gap": gap, "q": share, "oldest": tail.oldest, "rho": tail.rho, "pbar": tail.pbar, "c": tail.constant}
        for number, (gap, share, tail) in enumerate(zip(gaps, shares, tails, strict=True))
    ]
    worst: dict[str, Any] = {name: max(row[name] for row in rows) for name in rows[0]} | {"client": "all", "q": min(shares)}
    return [row if smooth is None else row | _bounds(row, smooth, strong, scale, total) for row in [*rows, worst]]


def observed_tail(ages: np.ndarray, oldest: int) -> Tail:
    """Fit A5 to a server's histogram of the ages that it met, of all clients together.

    Args:
        ages: `Server.ages`: counts of the ages 0, 1, 2 to 3, 4 to 7, and so on.
        oldest: largest of these ages, D.

    Raises:
        ValueError: if no age was seen.
    """
    return fit_tail(ages, np.minimum(2 ** np.arange(len(ages)) - 1, oldest))


def _bounds(row: dict[str, Any], smooth: float, strong: float, scale: float, total: int) -> dict[str, float | None]:
    """Return the step sizes that Theorems 1 to 3 allow a row."""
    is_bounded = math.isfinite(row["oldest"])
    known = (strong, smooth, row["q"], row["oldest"]) if is_bounded and strong > 0 else None
    proof = theorem2_steps(*known) if known else None
    return {
        "step_t1": Root(scale, total, largest_step(smooth, row["oldest"])).at(0) if is_bounded else None,
        "step_t2": proof.lr if proof else None,
        "step_t2_printed": theorem2_steps(*known, rooted=True).lr if known else None,
        "offset_t2": proof.offset if proof else None,
        "step_t3": Root(scale, total, largest_step(smooth, math.sqrt(row["c"]))).at(0),
    }
