"""What a client uploads in a cycle: its batch, and which other embeddings go along.

Everything here is a function of the seed, the client and the number of the cycle, so that a run goes on, or is replayed, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from shared.seeding import derive_seed

Kind = Literal["batch", "extra", "all", "oldest"]
_FORMS = "batch, extra:fraction=0.1, extra:count=100, all, or oldest:bytes=65536"
ROW_BYTES = 4
"""Bytes of a record's number in a message."""


@dataclass(frozen=True)
class UploadPolicy:
    """Which embeddings go along with those of the batch.

    Attributes:
        kind: batch (none), extra (some, in turn), all, or oldest (those that were uploaded longest ago).
        amount: of extra, a part of the records (below 1) or their number; of oldest, the bytes of an upload.
    """

    kind: Kind
    amount: float = 0.0

    @classmethod
    def parse(cls, text: str) -> UploadPolicy:
        """Read a policy as `protocol.uploads` has it.

        Raises:
            ValueError: if it cannot be read.
        """
        kind, _, option = text.partition(":")
        name, _, value = option.partition("=")
        expected = {"batch": ("",), "all": ("",), "extra": ("fraction", "count"), "oldest": ("bytes",)}
        try:
            if kind not in expected or name not in expected[kind]:
                raise ValueError
            amount = float(value) if name else 0.0
            if name and not (0 < amount <= 1 if name == "fraction" else amount >= 1 and amount == int(amount)):
                raise ValueError
        except ValueError:
            raise ValueError(f"protocol.uploads {text!r} is not known: give {_FORMS}") from None
        if kind == "extra" and name == "fraction" and amount == 1:
            return cls("all")
        return cls(kind, amount)  # type: ignore[arg-type]

    def count(self, records: int, batch: int, row_bytes: int) -> int:
        """Return how many embeddings go along at most, where each takes `row_bytes`.

        Raises:
            ValueError: if the budget of bytes is too small for the batch.
        """
        if self.kind in ("batch", "all"):
            return 0 if self.kind == "batch" else records - batch
        if self.kind == "extra":
            return min(records - batch, round(self.amount * records) if self.amount < 1 else int(self.amount))
        rows = int(self.amount) // row_bytes
        if rows < batch:
            raise ValueError(
                f"protocol.uploads allows {int(self.amount)} bytes, but a batch of {batch} embeddings takes {batch * row_bytes}: raise it"
            )
        return min(records, rows) - batch


class Passes:
    """Shuffled passes over numbers, of which part n is a function of n: what is left over at the end of a pass is dropped.

    Args:
        total: numbers from 0.
        size: numbers of a part.
        key: seed of the passes.
    """

    def __init__(self, total: int, size: int, *key: int | str) -> None:
        self.total, self.size, self.key = total, size, key
        self.parts = max(1, total // size)
        self._pass, self._order = -1, np.empty(0, np.int64)

    def part(self, number: int) -> np.ndarray:
        """Return part `number`, from 0, as (size,) int64."""
        turn, place = divmod(number, self.parts)
        if turn != self._pass:
            self._pass, self._order = turn, np.random.default_rng(derive_seed(*self.key, turn)).permutation(self.total)
        return self._order[place * self.size : (place + 1) * self.size]


class Selection:
    """The rows that one client uploads, cycle by cycle.

    Args:
        policy: which embeddings go along.
        records: N.
        batch: records of a batch, N_m.
        row_bytes: bytes of an uploaded embedding and its number.
        seed: of the passes.
        client: m; with `is_shared` the batches are the same for all clients.
        is_shared: see `Protocol.sampling`.

    Raises:
        ValueError: if the batch is larger than the set, or the policy does not fit.
    """

    def __init__(self, policy: UploadPolicy, records: int, batch: int, row_bytes: int, seed: int, client: int, is_shared: bool) -> None:
        if not 1 <= batch <= records:
            raise ValueError(f"data.batch_size is {batch}, but there are {records} training records: take 1 to {records}")
        self.policy, self.batch = policy, batch
        self._extra = policy.count(records, batch, row_bytes)
        self._batches = Passes(records, batch, seed, "batch", "shared" if is_shared else client)
        self._turns = np.random.default_rng(derive_seed(seed, "refresh", client)).permutation(records)
        self._is_chosen = np.zeros(records, bool)
        self.last = np.full(records, -1, np.int64)
        """Cycle in which each record was uploaded last, for the policy oldest."""

    def rows(self, cycle: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows of a cycle's batch, and the other rows that go along, none of them twice."""
        batch = self._batches.part(cycle)
        if self._extra == 0:
            return batch, batch[:0]
        self._is_chosen[batch] = True
        if self.policy.kind == "all":
            others = np.flatnonzero(~self._is_chosen)
        elif self.policy.kind == "extra":
            turn = self._turns.take(np.arange(cycle * self._extra, (cycle + 1) * self._extra), mode="wrap")
            others = turn[~self._is_chosen[turn]]
        else:
            ages = np.where(self._is_chosen, np.iinfo(np.int64).max, self.last)
            others = np.argpartition(ages, self._extra - 1)[: self._extra]
        self._is_chosen[batch] = False
        return batch, others

    def note(self, rows: np.ndarray, cycle: int) -> None:
        """Keep in mind what was uploaded."""
        if self.policy.kind == "oldest":
            self.last[rows] = cycle
