"""Networks that are trained alike on traces inside of masks, and what they find in test pictures of other photographs."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from projects.tripinet.data import ForgedPictures, ManipulationData
from projects.tripinet.forging import FORGERIES, IN_PLACE
from projects.tripinet.metrics import LocalisationMetrics
from projects.tripinet.module import ManipulationLocalisation
from shared.kept_networks import kept_network, key_of, thousands
from shared.quiet import quiet_trainer
from shared.tables import Rows

COMMON: dict[str, Any] = {"channels": 16, "width": 16, "lr": 3e-3, "schedule": "onecycle"}
"""Options of all networks."""
LENGTH, EPOCHS, BATCH, TESTED = 400, 10, 16, 120
FULL, QUICK = (LENGTH, EPOCHS, TESTED), (48, 1, 10)
"""Training pictures, epochs, and test pictures of each kind; and those of a quick run."""
CLIP = 1.0
"""Norm that gradients are cut down to."""
TESTS = (*FORGERIES, "control")
ALL = "rgb + srm + dct_corner"


def train(kept: Path, options: dict[str, Any], seed: int, length: int = LENGTH, epochs: int = EPOCHS) -> ManipulationLocalisation:
    """Train a network on pictures of which a fifth is authentic, and the others have traces of one of three kinds; evaluation mode.

    Args:
        kept: folder of trained weights: no network is trained twice.
        options: of the module, besides `COMMON`.
        seed: of pictures and weights.
        length: number of training pictures.
        epochs: passes over them.
    """
    module = ManipulationLocalisation(seed=seed, **(COMMON | options))
    key = key_of([options, seed, length, epochs])

    def fit() -> None:
        data = ManipulationData(length=length, test_length=2, test_sets=["control"], batch_size=BATCH, seed=seed)
        data.setup()
        quiet_trainer(epochs, CLIP, limit_val_batches=0).fit(module, data.train_dataloader(), data.val_dataloader())

    return kept_network(module, kept / f"{key}.npz", seed, fit)


@lru_cache(maxsize=len(TESTS))
def tested(kind: str, seed: int, pictures: int) -> ForgedPictures:
    """Return the test pictures of a kind, a fifth of them authentic; kept for the next network."""
    return ForgedPictures("test", pictures, [kind], 0.2, 96, seed)


def probabilities(module: ManipulationLocalisation, images: Tensor) -> Tensor:
    """Return maps, (N, 1, H, W), of (N, 3, H, W) uint8 pictures."""
    return torch.cat([module.judge(part).logits.sigmoid() for part in images.split(BATCH)])


def measure(maps: Tensor, pictures: ForgedPictures) -> dict[str, float]:
    """Measure maps of pictures; see `LocalisationMetrics`."""
    metrics = LocalisationMetrics()
    for one, mask, kind in zip(maps, pictures.masks, pictures.kinds, strict=True):
        metrics.update(one, mask, kind)
    return metrics.compute()


def judge(module: ManipulationLocalisation, seed: int, pictures: int = TESTED) -> dict[str, float]:
    """Return the F1 at a half and the AUC of pixels, by kind of traces, and the means over learnt and over unlearnt kinds."""
    tests = {kind: tested(kind, seed, pictures) for kind in TESTS}
    found = {kind: measure(probabilities(module, one.images), one) for kind, one in tests.items()}
    return columns({kind: values["pixel_f1"] for kind, values in found.items()}, {kind: values["pixel_auc"] for kind, values in found.items()})


def compare(kept: Path, column: str, name: str, options: dict[str, Any], length: int, epochs: int, pictures: int, seed: int) -> Rows:
    """Return the row of a setting, named in a column: a network is trained and judged, see `train` and `judge`."""
    module = train(kept, options, seed, length, epochs)
    return [{column: name, "seed": seed, "k parameters": thousands(module.net), **judge(module, seed, pictures)}]


def columns(f1: dict[str, float], auc: dict[str, float]) -> dict[str, Any]:
    """Arrange measures by kind as a table's columns; without F1 its columns are empty."""
    unlearnt = [kind for kind in FORGERIES if kind not in IN_PLACE]
    row: dict[str, Any] = {}
    for name, values in (("F1", f1), ("AUC", auc)):
        row[name] = fmean(values[kind] for kind in IN_PLACE) if values else None
        row |= {f"{name} {kind}": values.get(kind) for kind in IN_PLACE}
        row[f"{name} unlearnt"] = fmean(values[kind] for kind in unlearnt) if values else None
    return row | {"AUC control": auc["control"]}
