"""From how many images on full fine-tuning catches up with experts in a frozen backbone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from projects.moe_ffd.reproduction.adaptations import rows
from projects.moe_ffd.reproduction.worlds import FULL, MOE, MOE_SMALL, PROBE
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COUNTS = (80, 160, 320, 800, 1600)
NAMES = (FULL, PROBE, MOE_SMALL, MOE)


def epochs_for(images: int) -> int:
    """Return epochs of some 120 steps of 32 images, at least 8."""
    return max(8, round(3840 / images))


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each number of images, adaptation and seed."""
    if quick:
        return [Job("probe", seeds[0], rows, (PROBE, 64, 1))]
    each = [(name, images) for images in COUNTS for name in NAMES]
    return [Job(f"{name} {images}", seed, rows, (name, images, epochs_for(images))) for seed in seeds for name, images in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the advantage is there with few images and shrinks with many."""
    found = {(row["training images"], row["adaptation"]): row["unseen"]["mean"] for row in summary}
    ahead = [found[images, MOE_SMALL] - found[images, FULL] for images in COUNTS]
    return {
        f"{MOE_SMALL} is ahead of {FULL} with {COUNTS[0]} and {COUNTS[1]} images": min(ahead[:2]) > 0,
        f"its advantage is smaller with {COUNTS[-1]} images": ahead[-1] < min(ahead[:2]),
    }


def figures(summary: Rows) -> dict[str, Figure]:
    """Draw the AUC of unseen manipulations over the number of training images, with the spread over seeds."""
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.4, 4))
    for number, name in enumerate(NAMES):
        of_name = [row for row in summary if row["adaptation"] == name]
        aside = 1.04 ** (number - (len(NAMES) - 1) / 2)  # so that the spreads do not hide each other
        counts, means = [row["training images"] * aside for row in of_name], [row["unseen"]["mean"] for row in of_name]
        spreads = [row["unseen"]["std"] for row in of_name]
        axis.errorbar(counts, means, yerr=spreads, marker="o", capsize=3, label=name)
    axis.set(xscale="log", xlabel="training images", ylabel="AUC of unseen manipulations", title="mean and spread over seeds")
    axis.set_xticks(COUNTS, [str(count) for count in COUNTS])
    axis.minorticks_off()
    axis.legend()
    return {"crossover": figure}


TABLE = Table(
    "crossover", "With more forgeries full fine-tuning catches up.", ("training images", "adaptation"), jobs, expectations, seeds=5, figures=figures
)
