"""What a schedule of batches gives away by itself: which records it settles, after which round, and how exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from projects.cafe.schedules import condition, rounds_until_known


@dataclass(frozen=True)
class Leaks:
    """When the rounds of a schedule settle each record's v, if the model stands still and uploads are exact.

    Attributes:
        schedule: (T, N) bool.
        after: (N,) rounds after which a record is settled; 0 where none settles it.
        amplification: (N,) standard deviation of the error of v_n when the batches' gradients have noise of one; infinite where it is not settled.
        rank: rank of the schedule.
        condition: its condition number, infinite where the rank is below N.
        reasons: why a record is not settled, by its number.
    """

    schedule: Tensor
    after: Tensor
    amplification: Tensor
    rank: int
    condition: float
    reasons: dict[int, str]

    @property
    def rounds(self) -> int:
        """T."""
        return len(self.schedule)

    @property
    def settled(self) -> Tensor:
        """(N,) bool, the records that the rounds settle."""
        return self.after > 0

    @property
    def first(self) -> int | None:
        """Rounds after which the first record is settled; None if none is."""
        return int(self.after[self.settled].min()) if self.settled.any() else None

    @property
    def last(self) -> int | None:
        """Rounds after which all records are settled that ever are; None if none is."""
        return int(self.after.max()) if self.settled.any() else None


def schedule_leaks(schedule: Tensor) -> Leaks:
    """Judge a schedule in float64, whatever the nets.

    It takes time of T N^2: seconds of a core for 1000 records, a quarter of a minute for 2000, two minutes for 4000. Some of the records cannot be
    judged without the others, which are in the same sums.

    Args:
        schedule: (T, N) bool, row t holding the members of round t.
    """
    judged, after = condition(schedule), rounds_until_known(schedule)
    missing = (after == 0).nonzero().flatten().tolist()
    reasons = dict(zip(missing, _reasons(schedule, missing, judged.rank), strict=True))
    return Leaks(schedule, after, judged.amplification, judged.rank, judged.condition, reasons)


def last_rounds_needed(schedule: Tensor) -> int:
    """Return the least number of last rounds that settle all records which all rounds settle; 0 where these settle none."""
    return int(rounds_until_known(schedule.flip(0)).max())


def settled_share(after: Tensor, rounds: int) -> Tensor:
    """Return the part of the records that are settled after 0, 1, ..., T rounds, (T + 1,) float64.

    Args:
        after: (N,), see `Leaks`.
        rounds: T.
    """
    return torch.bincount(after[after > 0], minlength=rounds + 1).cumsum(0).double() / len(after)


def pass_length(schedule: Tensor) -> int | None:
    """Return the rounds P of a pass, if the schedule goes through the records in two passes or more and each has a record once at most; else None.

    The rounds of a pass that has all records add up to the same sum as those of any other: each pass but the first adds P - 1 to the rank at most.
    """
    length = next((number for number, most in enumerate(schedule.long().cumsum(0).amax(1).tolist()) if most > 1), len(schedule))
    passes = len(schedule) // length
    if length == 1 or passes < 2:
        return None
    seen = schedule[: passes * length].reshape(passes, length, -1).sum(1)
    return length if int(seen.max()) == 1 else None


def _reasons(schedule: Tensor, missing: list[int], rank: int) -> Iterator[str]:
    """Say why no round settles a record, for each that is missing."""
    rounds, records = schedule.shape
    columns = [column.numpy().tobytes() for column in schedule.T.contiguous()]
    fellows: dict[bytes, list[int]] = {}
    for record, column in enumerate(columns):
        fellows.setdefault(column, []).append(record)
    for record in missing:
        others = [other for other in fellows[columns[record]] if other != record]
        if not schedule[:, record].any():
            yield "it is in no round"
        elif others:
            yield f"it is always in one batch with record {others[0]}" + (f" and {len(others) - 1} more" if len(others) > 1 else "")
        else:
            yield f"{rounds} rounds of rank {rank} do not tell it from the rest of {records} records"
