"""What this project's verbs do besides those of every detector: weights that come and go, and the experts that are used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.moe_ffd.model import MoEViT
from projects.moe_ffd.module import FaceForgeryDetection
from projects.moe_ffd.weights import is_delta, load_delta, load_released, save_delta
from shared.data.selection import evenly_spaced
from shared.forgery.data import ForgeryData
from shared.forgery.pictures import usage
from shared.forgery.sets import ForgerySet
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.runs import Run, atomic

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

USED = 256
"""Frames of a manipulation whose experts are counted."""


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
    if is_delta(path):
        load_delta(module.net, path)
    elif isinstance(module.net, MoEViT):
        load_released(module.net, path)
    else:
        raise ValueError(f"{path} is to be of the authors' detector: set model.adaptation moe (--config released)")
    with atomic(run.checkpoints / "last.ckpt") as temporary:
        torch.save({"state_dict": module.state_dict(), "global_step": 0}, temporary)
    print(f"judge with it: lightning run projects/moe_ffd/cli.py predict FILE --run {run.name}")


# ---- test


def report_usage(trainer: ProjectTrainer, module: FaceForgeryDetection, data: ForgeryData) -> None:
    """Write and draw which experts each kind of frame of the test sets uses."""
    if trainer.is_global_zero:
        for name, layers in usage_by_kind(module.eval(), data.test_sets).items():
            log_table(trainer, f"usage_{name}", usage_rows(layers))
            for kind, shares in layers.items():
                log_figure(trainer, f"usage_{name}_{kind}", usage(shares, [str(number) for number in range(shares.shape[1])], f"{name}, {kind}"))


@torch.inference_mode()
def usage_by_kind(module: FaceForgeryDetection, sets: list[ForgerySet]) -> dict[str, dict[str, Tensor]]:
    """Return for each mixture and each kind of frame, real or a manipulation, the experts' shares in every block, (L, E).

    Frames are taken evenly over a set's videos; of a kind that several sets have, those of the first.
    """
    if not isinstance(module.net, MoEViT):
        return {}
    found: dict[str, dict[str, Tensor]] = {}
    for images in sets:
        kinds = images.manipulations
        for kind in dict.fromkeys(kinds):
            if any(kind in layers for layers in found.values()):
                continue
            of_kind = [place for place, other in enumerate(kinds) if other == kind]
            places = [of_kind[place] for place in evenly_spaced(len(of_kind), USED)]
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
