"""Where numbers and pictures go: a CSV file always, and Weights & Biases, offline inside the run folder when there is no key."""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor

from shared.distributed import rank
from shared.runs import Run, atomic
from shared.wandb_key import wandb_key_source

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WANDB_MODES = ("auto", "online", "offline", "disabled")


class ContinuedCSVLogger(CSVLogger):
    """Lightning's CSV logger at a fixed place, which on resuming keeps the rows up to the step that training goes on from."""

    def __init__(self, folder: Path, flush_every: int = 50) -> None:
        super().__init__(folder.parent, name=folder.name, version="", flush_logs_every_n_steps=flush_every)
        self.file = folder / "metrics.csv"
        self._kept: list[dict[str, str]] = []

    def keep_until(self, step: int) -> None:
        """Keep the rows of the interrupted run that were logged before `step`; without this call the file is begun anew."""
        if self.file.is_file():
            with self.file.open(newline="", encoding="utf-8") as file:
                self._kept = [row for row in csv.DictReader(file) if (row.get("step") or "").isdigit() and int(row["step"]) < step]

    @property
    def experiment(self) -> Any:
        if self._experiment is None and rank() == 0:
            self.file.unlink(missing_ok=True)  # read already by `keep_until` if it is to go on
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Experiment logs directory .* exists and is not empty")
                writer = super().experiment
            for row in self._kept:
                writer.metrics.append({key: value for key, value in row.items() if value})
        return super().experiment


def wandb_mode(requested: str) -> str:
    """Decide how W&B runs: `$WANDB_MODE` wins, then `requested`; "auto" means online with an API key, else offline. Never asks for a key.

    Raises:
        ValueError: if `requested` is not one of auto, online, offline, disabled.
    """
    if requested not in WANDB_MODES:
        raise ValueError(f"wandb mode {requested!r} is not known: use one of {', '.join(WANDB_MODES)}")
    mode = os.environ.get("WANDB_MODE") or requested
    if mode == "auto":
        return "online" if wandb_key_source() else "offline"
    return mode


class RunWandbLogger(WandbLogger):
    """W&B logger of one verb of one run: everything inside the run folder, nothing asked on the terminal, no network when offline."""

    def __init__(self, run: Run, verb: str, mode: str) -> None:
        if rank() == 0:  # the others must not make a folder that the first process takes for an earlier run
            run.path.mkdir(parents=True, exist_ok=True)
        super().__init__(
            name=run.name,
            id=run.name,
            project=f"touchstone-{run.project}",
            save_dir=run.path,
            offline=mode == "offline",
            log_model=False,
            job_type=verb,
            mode=mode,
            resume=None if mode == "offline" else "allow",
            settings=_quiet_settings(),
        )
        self._wandb_init.pop("anonymous")  # lightning 2.6 passes it always, and wandb 0.31 warns that it has no effect

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Close the W&B run of this process with the verb's headline numbers, so that the next verb begins its own."""
        if self._experiment is not None:
            self._experiment.summary.update(summary)
            self._experiment.finish()
            self._experiment = None


def _quiet_settings() -> Any:
    import wandb

    return wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True)


def make_loggers(run: Run, verb: str, wandb: str) -> list[Logger]:
    """Return the CSV logger of `<run>/<verb>/metrics.csv` and, unless disabled, the W&B logger."""
    loggers: list[Logger] = [ContinuedCSVLogger(run.path / verb)]
    mode = wandb_mode(wandb)
    if mode != "disabled":
        loggers.append(RunWandbLogger(run, verb, mode))
    return loggers


def continue_logs(trainer: L.Trainer, step: int) -> None:
    """Keep in the trainer's CSV files what an interrupted run logged before the step that training goes on from."""
    for logger in trainer.loggers:
        if isinstance(logger, ContinuedCSVLogger):
            logger.keep_until(step)


def finish_loggers(trainer: L.Trainer, summary: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Close what the verb's loggers hold open, W&B's with the verb's headline numbers, which dashboards show."""
    for logger in trainer.loggers:
        if isinstance(logger, RunWandbLogger):
            logger.finish(summary)


def artefact_folder(trainer: L.Trainer) -> Path:
    """Return the folder for what the current verb makes; under a plain Lightning trainer, `artefacts/fit` in its root folder."""
    return Path(trainer.default_root_dir) / "artefacts" / getattr(trainer, "verb", "fit")


def log_image(trainer: L.Trainer, name: str, image: Tensor, step: int | None = None) -> Path | None:
    """Write a picture as PNG among the verb's artefacts and to W&B; only the first process writes.

    Args:
        trainer: the running trainer.
        name: name of the picture, such as `samples_clean`.
        image: (C, H, W) or (H, W) values in [0, 1]; one or three channels; values outside are clipped.
        step: training step, for pictures of a series.

    Returns:
        The file, or None on other processes.
    """
    if rank() != 0:
        return None
    from torchvision.transforms.functional import to_pil_image

    path = _artefact(trainer, name, step, ".png")
    picture = to_pil_image(image.detach().float().clamp(0, 1).cpu())
    with atomic(path) as temporary:
        picture.save(temporary)
    _to_wandb(trainer, name, path, step)
    return path


def log_figure(trainer: L.Trainer, name: str, figure: Figure, step: int | None = None) -> Path | None:
    """Write a matplotlib figure as PNG among the verb's artefacts and to W&B, and close it; only the first process writes."""
    if rank() != 0:
        return None
    import matplotlib.pyplot as plt

    path = _artefact(trainer, name, step, ".png")
    with atomic(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight")
    plt.close(figure)
    _to_wandb(trainer, name, path, step)
    return path


def log_table(trainer: L.Trainer, name: str, rows: Sequence[dict[str, Any]]) -> Path | None:
    """Write rows as `<name>.csv` and `<name>.json` among the verb's artefacts and as a W&B table; only the first process writes.

    Args:
        trainer: the running trainer.
        name: name of the table.
        rows: at least one row; the keys of the first are the columns.
    """
    if rank() != 0:
        return None
    from shared.runs import write_json

    columns = list(rows[0])
    path = _artefact(trainer, name, None, ".csv")
    with atomic(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    write_json(path.with_suffix(".json"), list(rows))
    for logger in trainer.loggers:
        if isinstance(logger, RunWandbLogger):
            logger.log_table(key=name, columns=columns, data=_of_one_type(rows, columns))
    return path


def _of_one_type(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[list[Any]]:
    """Return the cells of rows; W&B takes no columns of words and numbers, so that those become words."""
    cells = {column: [row.get(column) for row in rows] for column in columns}
    for column, values in cells.items():
        if len({isinstance(value, str) for value in values if value is not None}) > 1:
            cells[column] = [None if value is None else str(value) for value in values]
    return [list(row) for row in zip(*cells.values(), strict=True)]


def _artefact(trainer: L.Trainer, name: str, step: int | None, suffix: str) -> Path:
    return artefact_folder(trainer) / (name + ("" if step is None else f"-{step:06d}") + suffix)


def _to_wandb(trainer: L.Trainer, name: str, path: Path, step: int | None) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, RunWandbLogger):
            logger.log_image(key=name, images=[str(path)], step=step)
