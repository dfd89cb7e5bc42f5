"""The DataModule that every project's data begins with, and loaders that continue in the middle of an epoch.

Batch sizes are passed to loaders by keyword: Lightning leaves `DataLoader` patched once a loader could not be made, and then refuses others.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import lightning as L
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch.utils.data import DataLoader, Dataset

from shared.distributed import EpochSampler, UnpaddedSampler, world_size

GRACE = 60
"""Seconds that a loader's worker has after a SIGTERM of which it is not known who sent it."""


class Loader(DataLoader):
    """A `DataLoader` whose workers are born with SIGTERM blocked, which threads inherit that libraries (W&B's telemetry) begin anew in each process.

    Its `worker_init_fn` is `begin_worker`, which says why. No signal to the training process is lost meanwhile.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        if not self.num_workers or not hasattr(signal, "pthread_sigmask"):
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class ResumableDataLoader(Loader):
    """A `DataLoader` whose position Lightning writes into checkpoints, so that training goes on with the very next batch of the epoch.

    The sampler must be an `EpochSampler`: its order is a function of the epoch, so epoch and number of batches are the whole state.
    """

    sampler: EpochSampler
    _batches = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._batches = self.sampler.skip // (self.batch_size or 1)
        for batch in super().__iter__():
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and the number of its batches that were given out."""
        return {"epoch": self.sampler.epoch, "batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after `state["batches"]` batches of epoch `state["epoch"]`; a finished epoch is followed by the next one from its beginning."""
        finished = state["batches"] >= len(self)
        self.sampler.set_epoch(state["epoch"] + finished)
        self.sampler.skip = 0 if finished else state["batches"] * (self.batch_size or 1)


def begin_worker(number: int) -> None:
    """Seed a loader's worker as Lightning does, and let it outlive a SIGTERM that goes to all processes of a job.

    So the training process, which ends its step and saves it, still gets its batches. A SIGTERM of that process's own ends the worker, as does its
    death.
    """
    pl_worker_init_function(number)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(GRACE))  # for threads that are not born of a `Loader`, and do not block it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        Thread(target=_end_if_asked_by, args=(parent.pid,), daemon=True).start()


def _end_if_asked_by(process: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != process:
        pass
    os._exit(0)


def training_loader(dataset: Dataset, batch_size: int, seed: int, sampler: EpochSampler | None = None, **options: Any) -> ResumableDataLoader:
    """Return a shuffled loader of whole batches; each process gets its share of `batch_size`.

    Args:
        dataset: the training set.
        batch_size: samples of one training step over all processes together.
        seed: seed of the order of samples.
        sampler: deals the samples; None is an `EpochSampler` with this seed.
        **options: further arguments of `DataLoader`.

    Raises:
        ValueError: if `batch_size` does not divide by the number of processes, or `dataset` is smaller than one batch.
    """
    share, rest = divmod(batch_size, world_size())
    if rest:
        raise ValueError(f"data.batch_size {batch_size} does not divide by {world_size()} processes: it counts the samples of all of them together")
    if (size := len(dataset)) < batch_size:  # type: ignore[arg-type]
        raise ValueError(f"data.batch_size {batch_size} is larger than the training set of {size} samples: pass --data.batch_size {size} or less")
    order = EpochSampler(dataset, seed) if sampler is None else sampler  # type: ignore[arg-type]
    return ResumableDataLoader(dataset, batch_size=share, sampler=order, drop_last=True, **options)


class DataModule(L.LightningDataModule):
    """Base of all projects' data.

    Args:
        source: a named offline world, or a named layout of files under `root`.
        root: folder of the files; not used by offline worlds.
        batch_size: samples of one training step over all processes together.
        num_workers: processes that read data for each training process; 0 reads in the training process itself.
        seed: seed of the order of samples and of every random choice in the data.
    """

    sources: ClassVar[dict[str, str]] = {}
    """Names that `source` may take, with what each is."""

    def __init__(self, source: str, root: str | None = None, batch_size: int = 64, num_workers: int = 0, seed: int = 0) -> None:
        super().__init__()
        if source not in self.sources:
            known = "; ".join(f"{name}: {what}" for name, what in self.sources.items())
            raise ValueError(f"data.source {source!r} is not known; choose one of: {known}")
        if batch_size < 1:
            raise ValueError(f"data.batch_size must be at least 1, got {batch_size}")
        if num_workers < 0:
            raise ValueError(f"data.num_workers must be 0 or more, got {num_workers}")
        self.source, self.batch_size, self.num_workers, self.seed = source, batch_size, num_workers, seed
        self._root = root

    @property
    def root(self) -> Path:
        """Folder of the files.

        Raises:
            ValueError: if the source needs one and none was given.
        """
        if self._root is None:
            raise ValueError(f"data.source {self.source!r} reads files: say where they lie with --data.root FOLDER (or a file)")
        return Path(self._root).expanduser()

    def training_loader(self, dataset: Dataset, collate: Callable | None = None, sampler: EpochSampler | None = None) -> ResumableDataLoader:
        """Return a shuffled loader of whole batches; each process gets its share of `batch_size`.

        Args:
            dataset: the training set.
            collate: makes a batch of samples; None stacks them.
            sampler: deals the samples; None is an `EpochSampler`.

        Raises:
            ValueError: if `batch_size` does not divide by the number of processes, or `dataset` is smaller than one batch.
        """
        return training_loader(dataset, self.batch_size, self.seed, sampler, collate_fn=collate, **self._workers())

    def evaluation_loader(self, dataset: Dataset, collate: Callable | None = None, batch_size: int | None = None) -> Loader:
        """Return a loader that gives every sample once, in order, dealt over the processes without padding.

        Args:
            dataset: the samples.
            collate: makes a batch of samples; None stacks them.
            batch_size: samples of one step over all processes together; None is `data.batch_size`.

        Raises:
            ValueError: if some process would have none, for which Lightning stops that process alone.
        """
        if 0 < len(dataset) < world_size():  # type: ignore[arg-type]
            raise ValueError(f"{world_size()} processes share {len(dataset)} samples, and each needs one: start fewer processes")  # type: ignore[arg-type]
        share = max(1, (self.batch_size if batch_size is None else batch_size) // world_size())
        return Loader(dataset, batch_size=share, sampler=UnpaddedSampler(dataset), collate_fn=collate, **self._workers())  # type: ignore[arg-type]

    def _workers(self) -> dict[str, Any]:
        begun = {"persistent_workers": True, "worker_init_fn": begin_worker} if self.num_workers else {}
        return {"num_workers": self.num_workers, "pin_memory": self._on_gpu()} | begun

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
