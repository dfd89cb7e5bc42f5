"""The rounds that the server records: which batches, under which model and defence, vertical or horizontal."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from projects.cafe.federation import AttackerView, Federation, adam, observe
from projects.cafe.horizontal import observe_horizontal
from projects.cafe.protection import Protection
from projects.cafe.schedule_files import make_schedule
from shared.seeding import derive_seed
from shared.vertical.records import Records

FIRST = frozenset({"first.bias", "first.weight"})
"""Gradients that steps I and II read."""


@dataclass(frozen=True)
class Watch:
    """What the server records, and how.

    Args:
        schedule: who makes each batch: uniform, epochs, malicious, or a file, see `read_schedule`.
        rounds: T; None is a fifth more than there are records (malicious: one a record).
        batch: K, records of a round, at each worker of horizontal learning.
        lr: learning rate of Adam, which trains the model meanwhile; 0 leaves it as it is.
        window: number of last rounds that are used; None uses all.
        known_labels: whether the attacker is told the labels.
        workers: of horizontal learning, each with its own records; 1 is vertical learning.
        secure_sum: whether the server sees only the sum of the workers' gradients.
        seed: of the batches.

    Raises:
        ValueError: if an argument is out of its range.
    """

    schedule: str = "uniform"
    rounds: int | None = None
    batch: int = 40
    lr: float = 0.0
    window: int | None = None
    known_labels: bool = False
    workers: int = 1
    secure_sum: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("rounds", "window", "batch", "workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.lr < 0:
            raise ValueError(f"the learning rate while recording must be 0 (a static model) or more, got {self.lr}")
        if self.secure_sum and self.workers == 1:
            raise ValueError("a secure sum is of the workers of horizontal learning: give their number with workers")


class Watched(NamedTuple):
    """A view of the server, and which of the records under attack its records are: (N_m,) places."""

    view: AttackerView
    places: Tensor


def watch(
    federation: Federation,
    records: Records,
    split: Callable[[Tensor], Sequence[Tensor]],
    how: Watch,
    protection: Protection | None = None,
    names: Collection[str] | None = FIRST,
) -> list[Watched]:
    """Play the rounds and return what the server sees: one view, or one a worker of horizontal learning.

    Args:
        federation: model at the first round; it is not changed. With workers it has a single net, which they share.
        records: those under attack.
        split: splits features into one block a party.
        how: what is recorded.
        protection: what the parties do to their gradients.
        names: see `observe`.

    Raises:
        ValueError: see `observe` and `make_schedule`, or if there are fewer records than workers.
    """
    protection = protection or Protection()
    federation = deepcopy(federation)
    device = next(federation.parameters()).device
    blocks, labels = [block.to(device) for block in split(records.values())], records.labels.to(device)
    optimiser = adam(federation, how.lr) if how.lr else None
    if how.workers == 1:
        schedule = make_schedule(how.schedule, len(records), how.batch, how.rounds, how.seed)
        view = observe(federation, blocks, labels, schedule, optimiser, protection.defence, how.known_labels, protection.local, how.window, names)
        return [Watched(view, torch.arange(len(records)))]
    if len(blocks) != 1:
        raise ValueError(
            f"the workers of horizontal learning hold whole records, not {len(blocks)} blocks each: set data.parties=1 and data.split=rows"
        )
    if protection.local is not None:
        raise ValueError("private gradients are for vertical learning: take another defence, or workers=1")
    if len(records) < how.workers * 2:
        raise ValueError(f"{len(records)} records are too few for {how.workers} workers: each needs two at least")
    shares = torch.arange(len(records)).tensor_split(how.workers)
    schedules = [make_schedule(how.schedule, len(share), how.batch, _rounds(how, shares), derive_seed(how.seed, m)) for m, share in enumerate(shares)]
    views = observe_horizontal(
        federation,
        [blocks[0][share] for share in shares],
        [labels[share] for share in shares],
        schedules,
        optimiser,
        protection.defence,
        how.known_labels,
        how.secure_sum,
        how.window,
        names,
    )
    return [Watched(view, share) for view, share in zip(views, [torch.cat(shares)] if how.secure_sum else shares, strict=True)]


def _rounds(how: Watch, shares: tuple[Tensor, ...]) -> int:
    """Return the rounds that all workers take: enough for the one with the most records, or for the sum of all."""
    if how.rounds is not None:
        return how.rounds
    sizes = [(sum(map(len, shares)), how.batch * how.workers)] if how.secure_sum else [(len(share), how.batch) for share in shares]
    return max(len(make_schedule(how.schedule, *size)) for size in sizes)
