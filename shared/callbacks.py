"""Callbacks that every project's training has: a point to resume from, and a progress bar that suits where it is shown."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, cast

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loops.evaluation_loop import RestartStage

from shared.data.base import ResumableDataLoader
from shared.messages import Interval
from shared.seeding import rng_state, set_rng_state


class ResumePoint(Callback):
    """Keeps `last.ckpt`: every `every` steps, after the last step and its validation, and after the step in which SIGTERM arrives.

    It is written where the position in the data is certain: at the end of a step, before the validation and the end of the epoch that may follow,
    which come first when training goes on, and at the very end. The states of the global random generators travel with it. With the position of
    the `ResumableDataLoader`, continuing from it gives the same weights and validations, bit for bit, as never having stopped (one process,
    deterministic kernels).

    Args:
        folder: where `last.ckpt` is kept.
        every: steps between two saves.
    """

    def __init__(self, folder: str | Path, every: int) -> None:
        self.path = Path(folder) / "last.ckpt"
        self.every = every
        self._restored: dict[str, Any] | None = None
        self._positions: list[dict[str, int]] = []
        self._ahead: str | None = None  # what follows the step of the checkpoint before the next: a validation, or the end of the epoch

    def state_dict(self) -> dict[str, Any]:
        return {"rng": rng_state(), "ahead": self._ahead}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored, self._ahead = state_dict["rng"], state_dict.get("ahead")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._ahead is None:
            return
        loops = checkpoint["loops"]["fit_loop"]
        for counts in (loops["epoch_loop.batch_progress"][name] for name in ("total", "current")):
            counts["completed"] = counts["processed"]  # else Lightning takes the epoch for ended, and leaves out what is ahead
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] += self._ahead == "end"

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._positions = checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader") or []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loaders: Any = trainer.train_dataloader
        resumable = [one for one in (loaders.values() if isinstance(loaders, dict) else [loaders]) if isinstance(one, ResumableDataLoader)]
        for loader, position in zip(resumable, self._positions, strict=False):
            loader.load_state_dict(position)  # Lightning forgets it where the number of steps was asked for before
        self._positions = []
        loop = trainer.fit_loop.epoch_loop
        if self._restored is not None:
            set_rng_state(self._restored)
            if trainer.is_last_batch:
                self._restored = None
        if self._ahead == "validation":
            loop.val_loop.restarting, loop.val_loop._restart_stage = False, RestartStage.RESTARTED_MID_EVALUATION
        elif self._ahead == "end":
            loop.val_loop._has_run = True
        self._ahead = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._restored is not None:
            self._restored = rng_state()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if self._restored is not None:
            set_rng_state(self._restored)  # once more: in the middle of an epoch, the loader has drawn a number to begin with
            self._restored = None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step, loop = trainer.global_step, trainer.fit_loop.epoch_loop
        if step % self.every and step < trainer.estimated_stepping_batches and not trainer.received_sigterm:
            return
        if not 0 <= trainer.max_steps <= step:
            self._ahead = (
                "validation" if loop._should_check_val_fx(cast(Any, trainer.fit_loop._data_fetcher)) else "end" if trainer.is_last_batch else None
            )
        elif trainer.is_last_batch:
            return  # from here Lightning would not go on, not even to the validation: `on_train_end` saves after it
        trainer.save_checkpoint(self.path)
        self._ahead = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.fit_loop.epoch_loop.restarting = False  # also after an epoch of which only the end was left

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_last_batch:
            trainer.save_checkpoint(self.path)  # with what the last validation told, such as the best value so far


def best_checkpoint(folder: str | Path, monitor: str, mode: str) -> ModelCheckpoint:
    """Keep `best.ckpt`: the weights with the best value of the logged metric `monitor`, where `mode` is "min" or "max"."""
    return ModelCheckpoint(
        dirpath=folder, filename="best", monitor=monitor, mode=mode, save_top_k=1, auto_insert_metric_name=False, enable_version_counter=False
    )


class Sizes(Callback):
    """Says before training how many parameters a model has, and how many of them train."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            counts = [(weight.numel(), weight.requires_grad) for weight in pl_module.parameters()]
            every, trained = sum(count for count, _ in counts), sum(count for count, trains in counts if trains)
            print(f"{type(pl_module).__name__}: {every:,} parameters" + (f", of which {trained:,} train" if trained < every else ""), flush=True)


def progress_bar() -> Callback:
    """Return a live bar on a terminal, and a line now and then where the output goes to a file."""
    return _Bar(leave=False) if sys.stdout.isatty() else ProgressLines()


class _Bar(RichProgressBar):
    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}


class ProgressLines(Callback):
    """Prints where training and evaluation are, at most every `seconds`."""

    def __init__(self, seconds: float = 10.0) -> None:
        self._interval = Interval(seconds)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        steps = trainer.estimated_stepping_batches
        self._print(trainer, f"step {trainer.global_step}/{steps:g}")

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._print(trainer, f"test batch {batch_idx + 1}/{trainer.num_test_batches[dataloader_idx]:g}")

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._print(trainer, f"predict batch {batch_idx + 1}/{trainer.num_predict_batches[dataloader_idx]:g}")

    def _print(self, trainer: L.Trainer, where: str) -> None:
        if trainer.is_global_zero and self._interval.is_over():
            metrics = "".join(f"  {name} {float(value):.4g}" for name, value in trainer.progress_bar_metrics.items())
            print(where + metrics, flush=True)
