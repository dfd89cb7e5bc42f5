"""The verb `scan`: a scan of a pipeline folder under a Lightning Trainer, which deals the findings over the processes."""

from __future__ import annotations

import shlex
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.utils.data import DataLoader

from projects.diff_cleanse.module import find_pipeline
from projects.diff_cleanse.scan import Scan
from projects.diff_cleanse.scan_report import Finding, ScanReport, prepare, write_report
from shared.backbones.unets import load_pipeline
from shared.cli import ProjectTrainer
from shared.distributed import UnpaddedSampler, gather_objects
from shared.loggers import artefact_folder, log_image, log_table
from shared.messages import shown_path
from shared.runs import remove


class Scanning(L.LightningModule):
    """Makes the findings of a scan, each process its share of them.

    Args:
        job: the scan.
    """

    def __init__(self, job: Scan) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # there may be fewer findings than processes
        self.unet, self.job = job.unet, job
        self.findings: list[Finding] = []

    def predict_dataloader(self) -> DataLoader:
        numbers = range(len(self.job.pairs))
        return DataLoader(numbers, batch_size=len(numbers), sampler=UnpaddedSampler(numbers), collate_fn=list)  # type: ignore[arg-type]

    def predict_step(self, numbers: list[int], batch_idx: int) -> None:
        with _ordinary_torch():
            self.findings += self.job.find([self.job.pairs[number] for number in numbers])

    def gathered(self) -> list[Finding]:
        """Return the findings of all processes."""
        return gather_objects(self.findings)


def scan_pipeline(trainer: ProjectTrainer, pipeline: str | Path, out: str | None, **options: Any) -> ScanReport:
    """Scan a pipeline folder, write the report among the trainer's artefacts and into `out`, and print the verdict.

    Nothing but the folder's U-Net and scheduler settings is read.

    Args:
        trainer: the trainer, with its device, processes and precision.
        pipeline: folder written by `save_pretrained`, or a run's name.
        out: a further folder for the report.
        **options: settings of `scan`.

    Raises:
        FileNotFoundError, ValueError: if the pipeline cannot be read or scanned, or for wrong settings.
        OSError: if `out` cannot be written into.
    """
    folder = artefact_folder(trainer)
    folders = [folder, *([Path(out).expanduser()] if out else [])]
    job = Scan(*load_pipeline(find_pipeline(pipeline)), parts=folder / "parts", progress=lambda line: print(line, flush=True), **options)
    if trainer.is_global_zero:
        for each in folders:
            prepare(each)
        if trainer.is_forced:
            remove(folder / "parts")
        pairs = ", ".join(f"{method} under {sampler}" for method, sampler in job.pairs)
        print(f"scanning {shown_path(Path(pipeline))} by {pairs}; what is found is kept in {shown_path(folder / 'parts')}", flush=True)
    task = Scanning(job)
    L.Trainer.predict(trainer, task, return_predictions=False)
    report = job.report(task.gathered())
    if trainer.is_global_zero:
        for each in folders:
            write_report(report, each)
        _log(trainer, report)
        print(f"\n{report.describe(shown_path(folders[-1]))}\n{_advice(report, pipeline, folders[-1])}\n")
    return report


def _advice(report: ScanReport, pipeline: str | Path, folder: Path) -> str:
    """Say what to run next."""
    command = f"lightning run projects/diff_cleanse/cli.py %s {shlex.quote(shown_path(Path(pipeline)))}"
    if report.verdict == "backdoored":
        recipe = " --recipe full" if report.recipe == "full" else ""  # what a fast scan did not find, it does not miss either
        return f"next: {command % 'cleanse'} --trigger {shlex.quote(shown_path(folder / 'trigger.safetensors'))}{recipe}"
    tried = {finding.method for finding in report.findings}
    harder = [*(["--recipe full"] if report.recipe != "full" else []), *(["--methods '[gradient,bbti]'"] if "bbti" not in tried else [])]
    return f"to look harder: {command % 'scan'} {' '.join(harder)}" if harder else "nothing looks harder than this scan did: judge by the pictures"


def _log(trainer: ProjectTrainer, report: ScanReport) -> None:
    """Write the table of findings and, for the page and W&B, pictures and curves."""
    log_table(trainer, "findings", [finding.to_row() for finding in report.findings])
    for name, picture in report.pictures().items():
        log_image(trainer, name, picture)
    curves = {f"{finding.sampler}/{finding.method}_loss": finding.tensors["curve"].tolist() for finding in report.findings}
    for step, losses in enumerate(zip_longest(*curves.values())):
        logged = {name: loss for name, loss in zip(curves, losses, strict=True) if loss is not None}
        for logger in trainer.loggers:
            logger.log_metrics(logged, step)
    for logger in trainer.loggers:
        logger.save()


@contextmanager
def _ordinary_torch() -> Iterator[None]:
    """Put aside what Lightning sets for prediction: no gradients, half-precision numbers by default, and SIGTERM noted but not obeyed."""
    kept = torch.get_default_dtype()
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGTERM, _stop) if is_main else None
    torch.set_default_dtype(torch.float32)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(kept)
        if is_main:
            signal.signal(signal.SIGTERM, handler or signal.SIG_DFL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise SIGTERMException
