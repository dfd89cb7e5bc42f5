"""Networks that are trained alike on drawn scenes, in which what is salient differs in colour and stands nearer."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from projects.hodinet.data import SaliencyData
from projects.hodinet.metrics import SaliencyMetrics
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.samples import DrawnScenes
from projects.hodinet.scenes import Variant
from shared.kept_networks import kept_network, key_of, thousands
from shared.quiet import quiet_trainer
from shared.tables import Rows

COMMON: dict[str, Any] = {"size": None, "optimiser": "adamw", "lr": 2e-3, "schedule": "onecycle"}
"""Options of all networks."""
SIDE, LENGTH, EPOCHS, BATCH, TESTED = 64, 400, 16, 16, 150
FULL, QUICK = (LENGTH, EPOCHS, TESTED), (48, 1, 10)
"""Training scenes, epochs, and test scenes; and those of a quick run."""
CLIP = 1.0
"""Norm that gradients are cut down to."""

Corruption = Callable[[Tensor], Tensor]
"""What is done to (N, 1, H, W) depth maps in [0, 1]."""


def train(
    kept: Path, options: dict[str, Any], seed: int, length: int = LENGTH, epochs: int = EPOCHS, variant: Variant = "default"
) -> SaliencyDetection:
    """Train a network; its last epoch is taken, in evaluation mode.

    Args:
        kept: folder of trained weights: no network is trained twice.
        options: of the module, besides `COMMON`.
        seed: of scenes and weights.
        length: number of training scenes.
        epochs: passes over them.
        variant: of the training scenes.
    """
    module = SaliencyDetection(seed=seed, **(COMMON | options))
    key = key_of([COMMON | options, seed, length, epochs, variant, SIDE, BATCH, CLIP])

    def fit() -> None:
        data = SaliencyData(length=length, test_length=1, batch_size=BATCH, size=SIDE, seed=seed, variant=variant)
        data.setup()
        quiet_trainer(epochs, CLIP, limit_val_batches=0).fit(module, data.train_dataloader(), data.val_dataloader())

    return kept_network(module, kept / f"{key}.npz", seed, fit)


@lru_cache(maxsize=1)
def tested(seed: int, scenes: int) -> DrawnScenes:
    """Return test scenes; kept for the next network."""
    return DrawnScenes("test", scenes, seed, SIDE, "default")


def judge(module: SaliencyDetection, seed: int, scenes: int = TESTED, corruption: Corruption | None = None) -> dict[str, float]:
    """Return S, max F, max E, weighted F and MAE on test scenes, whose depth may be corrupted."""
    pictures, metrics = tested(seed, scenes), SaliencyMetrics()
    depths = pictures.depths if corruption is None else corruption(pictures.depths)
    for images, depth, masks in zip(*(layers.split(BATCH) for layers in (pictures.images, depths, pictures.masks)), strict=True):
        metrics.update_batch(zip(module(images, depth), masks, strict=True), threads=1)
    found = metrics.compute()
    return {"S": found["s_measure"], "max F": found["f_max"], "max E": found["e_max"], "weighted F": found["f_weighted"], "MAE": found["mae"]}


def compare(kept: Path, column: str, name: str, options: dict[str, Any], length: int, epochs: int, scenes: int, seed: int) -> Rows:
    """Return the row of a setting, named in a column: a network is trained and judged, see `train` and `judge`."""
    module = train(kept, options, seed, length, epochs)
    return [{column: name, "seed": seed, "k parameters": thousands(module.net), **judge(module, seed, scenes)}]
