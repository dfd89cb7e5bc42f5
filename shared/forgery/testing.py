"""Test sets judged, and what is left of it after perturbations: what the verbs `test` and `robustness` write and print."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from shared.forgery import pictures
from shared.forgery.data import ForgeryData
from shared.forgery.detection import ForgeryDetection, score
from shared.forgery.evaluation import score_shift
from shared.forgery.metrics import auroc, roc, video_scores
from shared.forgery.perturbations import LEVELS, PERTURBATIONS, perturb
from shared.loggers import log_figure, log_image, log_table
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

SHOWN = 6
"""Frames whose explanation is drawn, or two of each test set if those are more."""
COLUMNS = (
    "set",
    "videos",
    "frame_auroc",
    "video_auroc",
    "video_auroc_low",
    "video_auroc_high",
    "video_eer",
    "video_ap",
    "video_acc",
    "video_tpr_at_5",
)


@dataclass(frozen=True)
class Measured:
    """What `robustness` returns: a row a perturbation and level, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def report_test(trainer: ProjectTrainer, module: ForgeryDetection, data: ForgeryData) -> dict[str, Any]:
    """Write and print what was measured on the test sets; to be called by all processes.

    Returns:
        The figures that head the run's page; none but in the first process.
    """
    sets, rows = module.tested(), module.test_rows
    if not trainer.is_global_zero:
        return {}
    log_table(trainer, "sets", rows)
    log_table(trainer, "shift", score_shift(sets, next(iter(sets))))
    log_figure(trainer, "curves", pictures.curves({name: video_scores(scored) for name, scored in sets.items()}))
    module.eval()
    chosen = torch.cat([images.__getitems__(images.examples(max(2, SHOWN // len(sets))))["image"] for images in data.test_sets])
    if (sheet := module.explanation(chosen)) is not None:
        log_image(trainer, "maps", sheet)
    print(markdown([{name: row.get(name) for name in COLUMNS} for row in rows]))
    return {f"test/{name}": round(rows[-1][name], 4) for name in ("frame_auroc", "video_auroc", "video_eer")}


def robustness(
    trainer: ProjectTrainer, module: ForgeryDetection, data: ForgeryData, perturbations: list[str] | None, levels: list[int] | None
) -> Measured:
    """Measure the AUC of every test set after perturbations, and write a table and a plot of their means.

    Raises:
        ValueError: for an unknown perturbation or level.
    """
    names, steps = perturbations or list(PERTURBATIONS), levels or list(LEVELS)
    if unknown := [name for name in names if name not in PERTURBATIONS]:
        raise ValueError(f"--perturbations {', '.join(unknown)}: choose among {', '.join(PERTURBATIONS)}")
    if not set(steps) <= set(LEVELS):
        raise ValueError(f"--levels {steps}: choose among {', '.join(map(str, LEVELS))}")
    data.prepare_data()
    module.to(trainer.strategy.root_device).eval()
    rows: list[dict[str, Any]] = [{"perturbation": "none", "level": 0, "strength": None, **_aucs(trainer, module, data, None, 0)}]
    for name in names:
        for level in steps:
            strength = PERTURBATIONS[name].strengths[level - 1]
            rows.append({"perturbation": name, "level": level, "strength": strength, **_aucs(trainer, module, data, name, level)})
        print(f"{name}: " + ", ".join(f"{row['frame_auroc']:.3f}" for row in rows[-len(steps) :]), flush=True)
    log_table(trainer, "robustness", rows)
    if steps == list(LEVELS):
        measured = {name: [row["frame_auroc"] for row in rows if row["perturbation"] == name] for name in names}
        log_figure(trainer, "robustness", pictures.robustness(measured, rows[0]["frame_auroc"], "AUC of frames, mean over test sets"))
    clean = rows[0]["frame_auroc"]
    drop = clean - sum(row["frame_auroc"] for row in rows[1:]) / (len(rows) - 1)
    print(f"AUC of frames {clean:.3f} without perturbation, in the mean {drop:.3f} less with one")
    return Measured(rows, {"robustness/clean": round(clean, 4), "robustness/mean_drop": round(drop, 4)})


def _aucs(trainer: ProjectTrainer, module: ForgeryDetection, data: ForgeryData, name: str | None, level: int) -> dict[str, float]:
    """Return the mean AUC over test sets, of frames and of videos."""
    frames, videos = [], []
    for images in data.test_sets:
        with trainer.precision_plugin.forward_context():
            scored = score(module, images, change=lambda batch, index: batch if name is None else perturb(batch, name, level, index))
        frames.append(auroc(roc(*scored.columns)))
        videos.append(auroc(roc(*video_scores(scored).columns)))
    return {"frame_auroc": sum(frames) / len(frames), "video_auroc": sum(videos) / len(videos)}
