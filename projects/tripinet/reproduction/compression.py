"""How much is left when test pictures were compressed as a whole."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import torch

from projects.tripinet.reproduction import worlds
from projects.tripinet.reproduction.worlds import ALL, IN_PLACE
from projects.tripinet.robustness import DEGRADATIONS, degrade
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STREAMS = ("srm", "dct_corner", ALL)
QUALITIES = DEGRADATIONS["jpeg"].strengths
UNTOUCHED = "untouched"


def rows(kept: Path, streams: str, length: int, epochs: int, pictures: int, seed: int) -> Rows:
    """Train a network and measure the F1, mean over learnt kinds of traces, at each quality."""
    module = worlds.train(kept, {"streams": streams.split(" + ")}, seed, length, epochs)
    row: dict[str, object] = {"streams": streams, "seed": seed, UNTOUCHED: _f1(module, seed, pictures, None)}
    return [row | {f"quality {quality:g}": _f1(module, seed, pictures, quality) for quality in QUALITIES}]


def _f1(module: worlds.ManipulationLocalisation, seed: int, count: int, quality: float | None) -> float:
    found = []
    for kind in IN_PLACE:
        pictures = worlds.tested(kind, seed, count)
        images = pictures.images
        if quality is not None:
            images = torch.stack([degrade(image, "jpeg", quality, number, seed) for number, image in enumerate(images)])
        found.append(worlds.measure(worlds.probabilities(module, images), pictures)["pixel_f1"])
    return fmean(found)


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each set of streams and seed."""
    if quick:
        return [Job("srm", seeds[0], rows, (kept, "srm", *worlds.QUICK))]
    return [Job(name, seed, rows, (kept, name, *worlds.FULL)) for seed in seeds for name in STREAMS]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether compression costs every network, and the noise stream most."""
    costs = {row["streams"]: row[UNTOUCHED]["mean"] - row["quality 70"]["mean"] for row in summary}
    return {
        "quality 70 costs every network": min(costs.values()) > 0,
        "and the noise stream most": costs["srm"] == max(costs.values()),
    }


def figures(summary: Rows) -> dict[str, Figure]:
    """Draw the F1 over the quality, with the spread over seeds."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 3.6))
    names = [UNTOUCHED, *(f"quality {quality:g}" for quality in QUALITIES)]
    for row in summary:
        axis.errorbar(
            range(len(names)),
            [row[name]["mean"] for name in names],
            yerr=[row[name]["std"] for name in names],
            marker="o",
            capsize=3,
            label=row["streams"],
        )
    axis.set_xticks(range(len(names)), [UNTOUCHED, *(f"{quality:g}" for quality in QUALITIES)])
    axis.set(xlabel="JPEG quality of test pictures", ylabel="F1 at 0.5", ylim=(0, 1), title="mean and spread over seeds")
    axis.legend()
    return {"jpeg": figure}


TABLE = Table("jpeg", "Compression of test pictures wears the traces away.", ("streams",), jobs, expectations, figures=figures)
