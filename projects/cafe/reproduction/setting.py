"""The setting of the tables: digits of 16 x 16 pixels in quarters, small nets, and a line of figures of an attack."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import torch

from projects.cafe.campaign import Campaign
from projects.cafe.closed import factorise
from projects.cafe.data import FederatedRecords
from projects.cafe.judging import judge
from projects.cafe.metrics import relative_error
from projects.cafe.module import FederatedClassifier
from projects.cafe.nets import BottomNet
from projects.cafe.protection import Protection
from projects.cafe.recovery import Recovery
from projects.cafe.schedule_files import make_schedule
from projects.cafe.watching import Watched
from shared.tables import Rows

FEW: dict[str, Any] = {"count": 24, "batch_size": 4}
"""Records and batch of quick runs."""
ERROR = "log10 error of h"
SHOWN = ("recovered", "psnr", "psnr_median", "psnr_min", "above_30_db", "ssim", "label_accuracy")


def build(seed: int, model: dict[str, Any] | None = None, **data: Any) -> tuple[FederatedClassifier, FederatedRecords]:
    """Return a model as training begins, and its data, from options as the command line has them."""
    records = FederatedRecords(seed=seed, **data)
    records.setup()
    module = FederatedClassifier([list(shape) for shape in records.shapes], records.classes, seed=seed, **(model or {}))
    module.settle(records)
    return module, records


def measure(campaign: Campaign, module: FederatedClassifier, data: FederatedRecords, defence: str = "none") -> dict[str, Any]:
    """Run an attack and return its figures.

    Returns:
        `records`, the rank of the recorded rounds, what `Outcome.report` gives, the relative errors `error_v` and `error_h` of steps I and II over
        the records that were recovered, and `mean_record`, the trivial guess. An attack that refuses gives None in place of what it lacks.
    """
    watch = replace(campaign.watch, batch=data.batch_size, seed=data.seed)
    campaign = replace(campaign, watch=watch, seed=data.seed, cafe=replace(campaign.cafe, seed=data.seed))
    row: dict[str, Any] = {"records": len(data.attacked), "rank": _rank(campaign, data)}
    try:
        found = campaign.recoveries(module.federation, data, Protection.parse(defence, data.seed))
    except ValueError as refused:
        if "rank" not in str(refused):
            raise
        return row | {"recovered": 0}
    report = judge(found, data).report()
    return row | report | _middle_errors(found, data) | {"mean_record": report["baseline_mean"]}


def shown(row: dict[str, Any], columns: tuple[str, ...] = SHOWN) -> dict[str, Any]:
    """Return some columns of a row, None where it lacks one or holds no number."""
    values = {name: row.get(name) for name in columns}
    return {name: None if value is None or value != value else float(value) for name, value in values.items()}


def readable(found: Rows) -> Rows:
    """Write `error_h`, which is 1e-8 or 1, by its logarithm, in column order."""
    return [{ERROR if name == "error_h" else name: _logarithm(value) if name == "error_h" else value for name, value in row.items()} for row in found]


def _logarithm(value: float | None) -> float | None:
    return None if value is None else math.log10(value)


def _rank(campaign: Campaign, data: FederatedRecords) -> int | None:
    """Return the rank of the recorded rounds, if one schedule has all records."""
    watch = campaign.watch
    if watch.workers > 1:
        return None
    return factorise(make_schedule(watch.schedule, len(data.attacked), watch.batch, watch.rounds, watch.seed)).rank


@torch.no_grad()
def _middle_errors(found: list[tuple[Watched, Recovery]], data: FederatedRecords) -> dict[str, float]:
    """Compare H with the truth under the last recorded model, over views and parties."""
    errors = []
    for (view, places), recovery in found:
        blocks = data.blocks(data.attacked.values()[places])
        for middle, bottom, block in zip(recovery.middle, view.federation().bottoms, blocks, strict=False):
            known = middle.inputs.isfinite().all(1)
            if known.any():
                errors.append(relative_error(middle.inputs[known], cast("BottomNet", bottom).middle(block)[0][known]))
    return {"error_h": sum(errors) / len(errors)} if errors else {}
