"""Which records make the batch of each round, and what a schedule gives away."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from shared.seeding import generator

TOLERANCE = 1e-8
"""Least part of a record that must be determined by the schedule's rows, short of one, for it to count as recoverable."""
BLOCK = 64
"""Rounds that are set against all earlier ones at once."""
SHRUNK = 1e-2
"""A round of which less than this part is left, after those of its block, is set against all earlier ones once more."""


def uniform(records: int, batch: int, rounds: int, seed: int) -> Tensor:
    """Draw each batch uniformly from all records.

    Each round has a generator of its own, seeded by the round's number, so that whoever knows the seed can replay any round.

    Args:
        records: N.
        batch: K, records in a batch.
        rounds: T.
        seed: seed of all rounds.

    Returns:
        (T, N) bool, row t holding the members of round t.

    Raises:
        ValueError: if the batch is not between 1 and N, or there is no round.
    """
    _check(records, batch, rounds)
    return _rows([torch.randperm(records, generator=generator(seed, "round", number))[:batch] for number in range(rounds)], records)


def epochs(records: int, batch: int, rounds: int, seed: int) -> Tensor:
    """Go through the records in shuffled passes, as training usually does; arguments, result and errors are those of `uniform`.

    Batches are all of the same size, since the gradients are means: the N mod K records that are left at the end of a pass sit it out.
    """
    _check(records, batch, rounds)
    a_pass = records // batch
    passes = [torch.randperm(records, generator=generator(seed, "pass", number)) for number in range(-(-rounds // a_pass))]
    members = [order[: a_pass * batch].reshape(a_pass, batch) for order in passes]
    return _rows(list(torch.cat(members)[:rounds]), records)


def malicious(records: int, batch: int) -> Tensor:
    """Choose the batches, as a malicious server can, that give the records away in the fewest rounds.

    Records are taken in groups of K + 1, and each batch leaves one of its group out. Consecutive batches of a group differ in one record, so the
    difference of their gradients is one record's minus another's. Where K + 1 divides N, the singular values are K and 1.

    Args:
        records: N.
        batch: K, records in a batch.

    Returns:
        (N, N) bool of rank N, one round a record.

    Raises:
        ValueError: if the batch is not between 1 and N - 1: batches of all records never tell them apart.
    """
    if not 0 < batch < records:
        raise ValueError(f"batches of {batch} of {records} records cannot tell them apart: take between 1 and {records - 1}")
    group = batch + 1
    rest = records % group
    starts = (torch.arange(records) // group * group).clamp_max(records - group)  # the last group is filled up with records of the one before
    left_out = torch.arange(records)
    if rest == 1:
        left_out[-1] = records - group  # a batch without the only new record would tell nothing
    schedule = _rows(list(starts[:, None] + torch.arange(group)), records)
    schedule[torch.arange(records), left_out] = False
    return schedule


@dataclass(frozen=True)
class Condition:
    """How much a schedule gives away, whatever the nets.

    Attributes:
        rank: of the (T, N) schedule; all records can be recovered if it is N.
        condition: ratio of the schedule's largest to its smallest singular value; infinite if the rank is below N.
        recoverable: (N,) bool, the records whose gradient follows from the batches' gradients.
        amplification: (N,) standard deviation of the error of a record's gradient when the batches' gradients have noise of one; infinite where
            the record is not recoverable.
    """

    rank: int
    condition: float
    recoverable: Tensor
    amplification: Tensor


def condition(schedule: Tensor) -> Condition:
    """Judge the linear system of step I, in float64.

    Args:
        schedule: (T, N) bool.

    Returns:
        Its rank, condition number and what it means for each record.
    """
    _, values, rows = torch.linalg.svd(schedule.double(), full_matrices=False)
    kept = values > values[0] * max(schedule.shape) * torch.finfo(torch.float64).eps
    basis = rows[kept]
    recoverable = basis.square().sum(0) > 1 - TOLERANCE
    error = (basis / values[kept, None]).square().sum(0).sqrt()
    rank = int(kept.sum())
    ratio = float(values[0] / values[-1]) if rank == schedule.shape[1] else float("inf")
    return Condition(rank, ratio, recoverable, torch.where(recoverable, error, torch.inf))


def rounds_until_known(schedule: Tensor) -> Tensor:
    """Count the rounds after which each record's gradient follows from those so far.

    A record is known when its unit vector is in the span of the rounds; an orthonormal basis of that grows by blocks of rounds. Time: T N^2.

    Args:
        schedule: (T, N) bool.

    Returns:
        (N,) numbers of rounds; 0 for the records that no round settles.
    """
    rounds, records = schedule.shape
    basis = torch.zeros(min(rounds, records), records, dtype=torch.float64)
    known, determined = torch.zeros(records, dtype=torch.long), torch.zeros(records, dtype=torch.float64)
    rank = number = 0
    for rows in schedule.double().split(BLOCK):
        if rank == records:
            break
        earlier = rank
        for row, rest in zip(rows, _without(rows, basis[:earlier]), strict=True):
            number += 1
            new = _without(rest, basis[earlier:rank])
            if new.norm() < SHRUNK * row.norm():
                new = _without(new, basis[:rank])
            if rank == records or new.norm() <= TOLERANCE * row.norm():
                continue
            basis[rank] = new / new.norm()
            determined += basis[rank].square()
            rank += 1
            known[(known == 0) & (determined > 1 - TOLERANCE)] = number
    return known


def _without(rows: Tensor, basis: Tensor) -> Tensor:
    """Return what of rows, (..., N), is orthogonal to an orthonormal basis, (R, N)."""
    for _ in range(2):  # the second time removes what rounding left
        rows = rows - (rows @ basis.T) @ basis
    return rows


def second_moment(records: int, batch: int) -> Tensor:
    """Return E[s s^T] of uniform batches, (N, N) in float64: K(N - K) / (N(N - 1)) I + K(K - 1) / (N(N - 1)) 1 1^T."""
    pairs = records * (records - 1)
    both = torch.full((records, records), batch * (batch - 1) / pairs, dtype=torch.float64)
    return both + batch * (records - batch) / pairs * torch.eye(records, dtype=torch.float64)


def _check(records: int, batch: int, rounds: int) -> None:
    if not 0 < batch <= records:
        raise ValueError(f"batches of {batch} cannot be drawn from {records} records: take between 1 and {records}")
    if rounds < 1:
        raise ValueError(f"there must be at least one round, got {rounds}")


def _rows(members: list[Tensor], records: int) -> Tensor:
    """Turn the members of each round, all of the same number, into a (T, N) bool schedule."""
    return torch.zeros(len(members), records, dtype=torch.bool).scatter_(1, torch.stack(members), True)
