"""The verbs `test` and `robustness`: test sets judged, and what is left of it after perturbations; and weights that come and go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.moe_ffd.fitting import score
from projects.moe_ffd.maps import map_sheet
from projects.moe_ffd.model import MoEViT, count_parameters
from projects.moe_ffd.module import FaceForgeryDetection
from projects.moe_ffd.weights import load_delta, load_released, save_delta
from shared.forgery import pictures
from shared.forgery.data import ForgeryData
from shared.forgery.evaluation import score_shift
from shared.forgery.metrics import auroc, roc, video_scores
from shared.forgery.perturbations import LEVELS, PERTURBATIONS, perturb
from shared.forgery.sets import REAL, ForgerySet
from shared.loggers import artefact_folder, log_figure, log_image, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.runs import Run, atomic

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

SHOWN = 6
USED = 256
"""Frames of a manipulation whose experts are counted."""
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


def say_what_trains(module: FaceForgeryDetection) -> None:
    """Print how many parameters train."""
    counts = count_parameters(module.net)
    print(f"{counts['trainable']:,} of {counts['total']:,} parameters train ({100 * counts['trainable'] / counts['total']:.1f} %)", flush=True)


def keep_delta(trainer: ProjectTrainer, module: FaceForgeryDetection) -> None:
    """Write what was trained, without the frozen backbone, beside the run's other artefacts."""
    if trainer.is_global_zero:
        path = artefact_folder(trainer) / "delta.safetensors"
        save_delta(module.net, path)
        print(f"what was trained, without the backbone ({path.stat().st_size / 2**20:.2f} MB): {shown_path(path)}")


def convert(run: Run, module: FaceForgeryDetection, file: str) -> None:
    """Leave a delta checkpoint, or the weights that the authors released, as the checkpoint of a run.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it does not fit the model.
    """
    path = Path(file).expanduser()
    if path.suffix == ".safetensors":
        load_delta(module.net, path)
    elif isinstance(module.net, MoEViT):
        load_released(module.net, path)
    else:
        raise ValueError(f"{path} is to be of the authors' detector: set model.adaptation moe (--config released)")
    with atomic(run.checkpoints / "last.ckpt") as temporary:
        torch.save({"state_dict": module.state_dict(), "global_step": 0}, temporary)
    print(f"judge with it: lightning run projects/moe_ffd/cli.py predict FILE --run {run.name}")


# ---- test


def report_test(trainer: ProjectTrainer, module: FaceForgeryDetection, data: ForgeryData) -> dict[str, Any]:
    """Write and print what was measured on the test sets; to be called by all processes."""
    sets, rows = module.tested(), module.test_rows
    if not trainer.is_global_zero:
        return {}
    log_table(trainer, "sets", rows)
    log_table(trainer, "shift", score_shift(sets, next(iter(sets))))
    log_figure(trainer, "curves", pictures.curves({name: video_scores(scored) for name, scored in sets.items()}))
    module.eval()
    for name, layers in usage_by_kind(module, data.test_sets).items():
        log_table(trainer, f"usage_{name}", usage_rows(layers))
        for kind, shares in layers.items():
            log_figure(trainer, f"usage_{name}_{kind}", pictures.usage(shares, [str(number) for number in range(shares.shape[1])], f"{name}, {kind}"))
    chosen = torch.cat([images.__getitems__(range(min(SHOWN // len(sets) + 1, len(images))))["image"] for images in data.test_sets])
    log_image(trainer, "maps", map_sheet(module.net, chosen[:SHOWN]))
    print(markdown([{name: row.get(name) for name in COLUMNS} for row in rows]))
    return {f"test/{name}": round(rows[-1][name], 4) for name in ("frame_auroc", "video_auroc", "video_eer")}


@torch.inference_mode()
def usage_by_kind(module: FaceForgeryDetection, sets: list[ForgerySet]) -> dict[str, dict[str, Tensor]]:
    """Return for each mixture and each kind of frame, real or a manipulation, the experts' shares in every block, (L, E)."""
    if not isinstance(module.net, MoEViT):
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for images in sets:
        kinds = images.manipulations
        for kind in dict.fromkeys(kinds):
            if kind == REAL and any(REAL in layers for layers in found.values()):
                continue
            places = [place for place, other in enumerate(kinds) if other == kind][:USED]
            module.net(images.__getitems__(places)["image"].to(module.device))
            for name, shares in module.net.usage().items():
                found.setdefault(name, {})[kind] = shares.mean(1).cpu()
    return found


def usage_rows(layers: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Return a row a kind and block with every expert's share."""
    return [
        {"kind": kind, "block": block, **{f"expert {number}": float(share) for number, share in enumerate(row)}}
        for kind, shares in layers.items()
        for block, row in enumerate(shares)
    ]


# ---- robustness


def robustness(
    trainer: ProjectTrainer, module: FaceForgeryDetection, data: ForgeryData, perturbations: list[str] | None, levels: list[int] | None
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


def _aucs(trainer: ProjectTrainer, module: FaceForgeryDetection, data: ForgeryData, name: str | None, level: int) -> dict[str, float]:
    """Return the mean AUC over test sets, of frames and of videos."""
    frames, videos = [], []
    for images in data.test_sets:
        with trainer.precision_plugin.forward_context():
            scored = score(module, images, change=lambda batch, index: batch if name is None else perturb(batch, name, level, index))
        frames.append(auroc(roc(*scored.columns)))
        videos.append(auroc(roc(*video_scores(scored).columns)))
    return {"frame_auroc": sum(frames) / len(frames), "video_auroc": sum(videos) / len(videos)}
