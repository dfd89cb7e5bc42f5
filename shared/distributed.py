"""What several processes need: who they are, samplers that agree, and gathering of tensors of different lengths and of rows.

Gloo's threads abort a process, now and then, that exits before they have ended. So the group ends with the process; and what would keep the
group alive, torch.distributed.nn (its functions keep the group that stands when it is first imported, as torch.compile's tracer does), is
imported here, before any group stands.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator, Sequence, Sized
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor
from torch.utils.data import DistributedSampler

from shared.cluster import is_step_of_slurm
from shared.seeding import generator

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

_Row = TypeVar("_Row")


@atexit.register
def _end_group() -> None:
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def world_size() -> int:
    """Return the number of processes of the group, or 1 when there is none."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number in the group; before the group exists, the number that a launcher gave it, or 0."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID" if is_step_of_slurm(os.environ) else "LOCAL_RANK", "0")))


def own_rows(drawn: Tensor) -> Tensor:
    """Return this process's rows of a tensor drawn for the global batch, (B_global, ...) -> (B_global / world, ...).

    Process r of W holds rows r, r + W, r + 2W, ..., as `EpochSampler` deals them; so numbers drawn for the global batch from one seed
    are the same whatever the number of processes.
    """
    return drawn[rank() :: world_size()]


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate tensors of shape (N_r, ...) with differing N_r from all processes in order of rank; all processes get the result.

    It lies where `rows` do: those on the CPU, as after a trainer's end, are taken to the GPU for NCCL, which exchanges nothing else.
    """
    if world_size() == 1:
        return rows
    home = rows.device
    if dist.get_backend() == "nccl" and not rows.is_cuda:
        rows = rows.cuda()
    lengths = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(rows)], device=rows.device))
    longest = int(max(length.item() for length in lengths))
    padded = torch.cat([rows, rows.new_zeros((longest - len(rows), *rows.shape[1:]))])
    parts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: int(length.item())] for part, length in zip(parts, lengths, strict=True)]).to(home)


def gather_objects(rows: Sequence[_Row]) -> list[_Row]:
    """Join the picklable rows of all processes, in order of rank; all processes get the result."""
    parts: list[Sequence[_Row]] = [rows]
    if world_size() > 1:
        parts = [()] * world_size()
        dist.all_gather_object(parts, rows)
    return [row for part in parts for row in part]


class EpochSampler(DistributedSampler):
    """Deals a permutation that is a function of (seed, epoch) to the processes in turn: row i goes to process i modulo W.

    It is a `DistributedSampler` also for one process, so that Lightning calls `set_epoch` and leaves it in place. What does not divide by
    the number of processes is left out, as the incomplete last batch is.

    Args:
        dataset: anything with a length.
        seed: seed of the permutations.
        shuffle: False deals the samples in order.

    Attributes:
        skip: samples of this process to leave out at the beginning of the next pass, to go on in the middle of an epoch.
    """

    skip = 0

    def __init__(self, dataset: Sized, seed: int, shuffle: bool = True) -> None:
        super().__init__(dataset, world_size(), rank() if world_size() > 1 else 0, shuffle=shuffle, seed=seed, drop_last=True)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[int]:
        count = len(self.dataset)  # type: ignore[arg-type]
        order = torch.randperm(count, generator=generator(self.seed, "order", self.epoch)) if self.shuffle else torch.arange(count)
        own = order[: self.total_size][self.rank :: self.num_replicas].tolist()
        skip, self.skip = self.skip, 0
        return iter(own[skip:])


class EpochKeys(EpochSampler):
    """Deals index + epoch N, so that readers in other processes know the epoch."""

    def __iter__(self) -> Iterator[int]:
        first = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        return (first + index for index in super().__iter__())


class UnpaddedSampler(DistributedSampler):
    """Deals the samples in order, each to exactly one process, repeating none to make the shares equal: evaluation counts every sample once."""

    def __init__(self, dataset: Sized) -> None:
        super().__init__(dataset, world_size(), rank() if world_size() > 1 else 0, shuffle=False)  # type: ignore[arg-type]
        self.num_samples = len(range(self.rank, len(dataset), self.num_replicas))
        self.total_size = len(dataset)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))


def in_one_process(trainer: ProjectTrainer) -> None:
    """Refuse several processes, for verbs whose work is not dealt out, so that each of them would do all of it.

    Raises:
        ValueError: if there are several.
    """
    if trainer.world_size > 1:
        raise ValueError(f"{trainer.verb} runs in one process: start it without --devices and --num-nodes")
