"""Steps I and II in closed form, with what the recorded rounds can and cannot tell of each record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 1e-10
"""Ridge of step II, relative to the mean diagonal of its system."""
ROW_SPACE = 1e-8
"""How far a record may be from the row space of the schedule, as a squared sine, to count as told apart."""
DEAD = 1e-6
"""Norm of v_n, relative to the largest one, below which it is float32's rounding and h_n cannot be read from it."""
STALE = 1e-2
"""Relative residual of step I above which the rounds do not fit one static model."""
CHUNK_BYTES = 64 * 2**20
"""Memory of the rounds that step II holds in float64 at once."""


@dataclass(frozen=True)
class Solved:
    """What a step recovered, and why the rest is missing.

    Attributes:
        values: (N, D) float64; rows that are not recoverable are NaN.
        rank: rank of the system that was solved.
        condition: its condition number (of S in step I, of M with a unit diagonal in step II); infinite where the rank is short.
        recoverable: (N,) bool.
        residual: (N,) what the rounds of each record leave unexplained in step I, relative and per degree of freedom; NaN where T is the rank, so
            that everything fits.
        reasons: what is wrong with a record, in words; a stale record keeps its values, all others in here are not recoverable.
    """

    values: Tensor
    rank: int
    condition: float
    recoverable: Tensor
    residual: Tensor
    reasons: dict[int, str]

    def complete(self) -> Tensor:
        """Return the values, (N, D).

        Raises:
            ValueError: if a record is not recoverable, with the rank and the reason of the first one.
        """
        missing = (~self.recoverable).nonzero().flatten().tolist()
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.recoverable)} records are not recoverable (rank {self.rank}); "
                f"record {missing[0]}: {self.reasons[missing[0]]}"
            )
        return self.values


@dataclass(frozen=True)
class Factors:
    """The singular value decomposition of a schedule, which all parties share: left (T, R), singular (R,), right (R, N), with rank R in float64.

    Attributes:
        weights: (T, N) float64, see `membership`.
        condition: largest over smallest singular value, infinite where R < N.
        distinct: (N,) bool, true where the unit vector of a record is in the row space: its part of a sum can be told from the others'.
    """

    weights: Tensor
    left: Tensor
    singular: Tensor
    right: Tensor
    condition: float
    distinct: Tensor

    @property
    def rank(self) -> int:
        """The rank R of the schedule."""
        return len(self.singular)


def membership(schedule: Tensor) -> Tensor:
    """Return S, the (T, N) schedule as 0 and 1 in float64.

    Raises:
        ValueError: if there is no round, or one without members.
    """
    members = schedule.to(torch.float64)
    if not len(schedule) or bool((members.sum(dim=1) == 0).any()):
        raise ValueError(f"a schedule of shape {tuple(schedule.shape)} has a round without members: leave such rounds out, and record at least one")
    return members


def factorise(schedule: Tensor) -> Factors:
    """Decompose a (T, N) bool schedule in float64; it takes 8 (2 T N + N^2) bytes.

    Raises:
        ValueError: if a round has no members.
    """
    weights = membership(schedule)
    left, singular, right = torch.linalg.svd(weights, full_matrices=False)
    rank = int((singular > singular[0] * max(weights.shape) * torch.finfo(torch.float64).eps).sum())
    condition = float(singular[0] / singular[-1]) if rank == weights.shape[1] else float("inf")
    distinct = 1 - right[:rank].square().sum(dim=0) < ROW_SPACE
    return Factors(weights, left[:, :rank], singular[:rank], right[:rank], condition, distinct)


def solve_outputs(bias_gradients: Tensor, schedule: Tensor, factors: Factors | None = None) -> Solved:
    """Step I: recover V, the gradients of the loss with respect to each record's u, by least squares of S V = B.

    Where batches differ in size, both steps want gradients brought to one size, times K_t / mean K, as `AttackerView` gives them.

    Args:
        bias_gradients: (T, d2) gradients B of the first FC layer's bias.
        schedule: (T, N) bool, the members of each round.
        factors: what `factorise` returned for this schedule, where several parties share it.

    Returns:
        V of (N, d2), which includes the factor 1 / K of the batch mean. With T < N some records, as a rule all, are not recoverable.

    Raises:
        ValueError: if the rounds are not as many as those of the schedule, or a gradient is not finite.
    """
    _check_rounds(bias_gradients, schedule, "bias")
    factors = factors or factorise(schedule)
    gradients = bias_gradients.to(factors.weights)
    values = factors.right.T @ ((factors.left.T @ gradients) / factors.singular[:, None])
    residual = _residual(gradients, factors)
    reasons = rank_reasons(factors)
    stale = (residual > STALE) & factors.distinct
    reasons |= {n: f"stale: {residual[n]:.1e} of its rounds do not fit one model; it moved, or the uploads carry noise" for n in _numbers(stale)}
    return Solved(_blank(values, factors.distinct), factors.rank, factors.condition, factors.distinct, residual, reasons)


def solve_inputs(weight_gradients: Sequence[Tensor] | Tensor, schedule: Tensor, outputs: Solved) -> Solved:
    """Step II: recover H, the inputs of the first FC layer, from M H = R with M = (S^T S) o (V V^T) and R = sum_t diag(s_t) V G_t.

    Rows of S and V are brought to unit length first, so that records of small loss do not spoil the condition. Records that step I could not tell
    apart are projected out of the rounds, so that the others stay exact. Memory: 24 N^2 bytes for M and its eigenvectors, 8 N d1 for R, and
    `CHUNK_BYTES` for the rounds in float64, whatever T is; the rounds themselves are read one chunk after another and may lie on a disk.

    Args:
        weight_gradients: T gradients G_t of the first FC layer's weight, (d2, d1) each as torch stores them, or one tensor of (T, d2, d1).
        schedule: (T, N) bool, the members of each round.
        outputs: what `solve_outputs` returned.

    Returns:
        H of (N, d1). A record without a loss gradient of its own, v_n = 0, is not recoverable.

    Raises:
        ValueError: if the rounds are not as many as those of the schedule, or a gradient is not finite.
    """
    if len(weight_gradients) != len(schedule):
        raise ValueError(f"{len(weight_gradients)} weight gradients for a schedule of {len(schedule)} rounds: there must be one a round")
    norms = outputs.values.norm(dim=1)
    alive = outputs.recoverable & (norms > DEAD * norms.nan_to_num().max())
    dead = outputs.recoverable & ~alive
    reasons = outputs.reasons | dict.fromkeys(_numbers(dead), "v_n is zero: its output units are dead or its loss is about 0; record earlier rounds")
    values = torch.full((len(norms), weight_gradients[0].shape[1]), torch.nan, dtype=torch.float64, device=norms.device)
    if not alive.any():
        return Solved(values, 0, float("inf"), alive, outputs.residual, reasons)
    weights = _separated(membership(schedule), alive, ~outputs.recoverable)
    lengths = weights.norm(dim=0)  # (A,) of the columns of S that are alive
    unit_outputs = outputs.values[alive] / norms[alive, None]
    unit_weights = weights / lengths
    eigenvalues, vectors = torch.linalg.eigh((unit_weights.T @ unit_weights) * (unit_outputs @ unit_outputs.T))  # a unit diagonal
    right = _right_side(weight_gradients, weights, unit_outputs) / lengths[:, None]
    solution = vectors @ ((vectors.T @ right) / (eigenvalues + RIDGE).clamp_min(RIDGE)[:, None])
    values[alive] = solution / (lengths * norms[alive])[:, None]
    rank = int((eigenvalues > eigenvalues[-1] * len(eigenvalues) * torch.finfo(torch.float64).eps).sum())
    condition = float(eigenvalues[-1] / eigenvalues[0]) if rank == len(eigenvalues) else float("inf")
    return Solved(values, rank, condition, alive, outputs.residual, reasons)


def _separated(weights: Tensor, kept: Tensor, hidden: Tensor) -> Tensor:
    """Return the columns of `kept` in the rounds' space that the columns of `hidden` do not reach: (T, A)."""
    hidden = hidden & (weights.norm(dim=0) > 0)
    if not hidden.any():
        return weights[:, kept]
    left, singular, _ = torch.linalg.svd(weights[:, hidden], full_matrices=False)
    basis = left[:, singular > singular[0] * max(weights.shape) * torch.finfo(torch.float64).eps]
    return weights[:, kept] - basis @ (basis.T @ weights[:, kept])


def _right_side(weight_gradients: Sequence[Tensor] | Tensor, weights: Tensor, outputs: Tensor) -> Tensor:
    """Return R = sum_t diag(s_t) V G_t of (A, d1) in float64, from the members of each round only."""
    size = int((weights != 0).sum(dim=1).max())
    _, members = (weights != 0).to(torch.uint8).topk(size, dim=1)  # (T, K); rounds of fewer members are filled with weights of 0
    result = outputs.new_zeros(len(outputs), weight_gradients[0].shape[1])
    for rounds, gradients in _chunks(weight_gradients, size, outputs):
        chosen = members[rounds]
        scaled = outputs[chosen] * weights[rounds].gather(1, chosen)[:, :, None]  # (c, K, d2)
        result.index_add_(0, chosen.flatten(), (scaled @ gradients).flatten(end_dim=1))
    return result


def _chunks(weight_gradients: Sequence[Tensor] | Tensor, size: int, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rounds, their gradients of (c, d2, d1) in float64), as many at once as `CHUNK_BYTES` holds with their products."""
    d2, d1 = weight_gradients[0].shape
    count = max(1, CHUNK_BYTES // (8 * d1 * (d2 + size)))
    for start in range(0, len(weight_gradients), count):
        rounds = slice(start, min(start + count, len(weight_gradients)))
        gradients = torch.stack([weight_gradients[t] for t in range(rounds.start, rounds.stop)])
        if not gradients.isfinite().all():
            raise ValueError(f"a weight gradient of rounds {rounds.start} to {rounds.stop - 1} is not finite: leave such rounds out")
        yield rounds, gradients.to(like)


def _residual(gradients: Tensor, factors: Factors) -> Tensor:
    """Return (N,) root of the squared residual over the squared gradients in the rounds of each record, corrected for the degrees of freedom."""
    rounds = len(gradients)
    if rounds == factors.rank:
        return torch.full_like(factors.weights[0], torch.nan)
    error = (gradients - factors.left @ (factors.left.T @ gradients)).square().sum(dim=1)
    members = (factors.weights > 0).to(gradients)
    share = (error @ members) / (gradients.square().sum(dim=1) @ members)
    return (share * rounds / (rounds - factors.rank)).sqrt()


def rank_reasons(factors: Factors) -> dict[int, str]:
    """Say of each record that the rounds do not tell apart why, and what would help."""
    rounds, records = factors.weights.shape
    told = f"{rounds} rounds of rank {factors.rank} do not tell it from the rest of {records} records"
    repeats = "some repeat what others say, so batches must differ more: other members, fewer than all records, other sizes"
    mend = f"record at least {records - factors.rank} more" if rounds == factors.rank else repeats
    seen = factors.weights.any(dim=0)
    missing = (~factors.distinct).nonzero().flatten().tolist()
    return {record: f"{told}: {mend}" if seen[record] else "it is in no recorded round" for record in missing}


def _check_rounds(gradients: Tensor, schedule: Tensor, name: str) -> None:
    if len(gradients) != len(schedule):
        raise ValueError(f"{len(gradients)} {name} gradients for a schedule of {len(schedule)} rounds: there must be one a round")
    bad = (~gradients.flatten(1).isfinite()).any(dim=1).nonzero().flatten().tolist()
    if bad:
        raise ValueError(f"the {name} gradient of round {bad[0]} is not finite ({len(bad)} such rounds): leave such rounds out")


def _blank(values: Tensor, kept: Tensor) -> Tensor:
    return values.masked_fill(~kept[:, None], torch.nan)


def _numbers(chosen: Tensor) -> list[int]:
    return chosen.nonzero().flatten().tolist()
