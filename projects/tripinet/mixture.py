"""How sets are mixed in training: equally many pictures of each one an epoch, as in the CAT protocol."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from shared.distributed import EpochSampler
from shared.seeding import generator


class MixtureSampler(EpochSampler):
    """Deals as many pictures of each set an epoch, in an order that is a function of (seed, epoch).

    A set goes on where it ended in the epoch before and begins again, in a new order, when all its pictures had their turn: so none is left out of a
    large set for long, and a small one is repeated. An index i stands for picture i modulo N in epoch i // N (integer division), N being the number
    of all pictures: so that readers in other processes know the epoch.

    Args:
        sizes: number of pictures of each set; the sets lie one after the other.
        per_set: pictures of each set an epoch; None takes every picture of every set once.
        seed: seed of the order.

    Raises:
        ValueError: if a set is empty, or `per_set` is below 1.
    """

    def __init__(self, sizes: Sequence[int], per_set: int | None, seed: int) -> None:
        if not sizes or min(sizes) < 1:
            raise ValueError(f"sets to mix must hold pictures, got sets of {list(sizes)}: leave the empty ones out")
        if per_set is not None and per_set < 1:
            raise ValueError(f"data.per_set must be at least 1, got {per_set}")
        self.sizes = list(sizes)
        self.counts = [per_set or size for size in sizes]
        super().__init__(range(sum(self.counts)), seed)

    def __iter__(self) -> Iterator[int]:
        starts = torch.tensor([0, *self.sizes]).cumsum(0).tolist()
        drawn = torch.cat([starts[number] + self._turn(number) for number in range(len(self.sizes))])
        order = torch.randperm(len(drawn), generator=generator(self.seed, "mixture", self.epoch))
        first = self.epoch * sum(self.sizes)
        own = (first + drawn[order])[: self.total_size][self.rank :: self.num_replicas].tolist()
        skip, self.skip = self.skip, 0
        return iter(own[skip:])

    def _turn(self, number: int) -> Tensor:
        """Return the pictures, numbered within their set, that are drawn of a set in this epoch."""
        size, count = self.sizes[number], self.counts[number]
        begin = self.epoch * count
        passes = range(begin // size, (begin + count - 1) // size + 1)
        orders = [torch.randperm(size, generator=generator(self.seed, "turn", number, one)) for one in passes]
        return torch.cat(orders)[begin % size :][:count]
