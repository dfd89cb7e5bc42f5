"""What is learnt of one manipulation and holds for others, by adaptation, from few images and from many (claims 1 to 3)."""

from __future__ import annotations

from pathlib import Path

from projects.moe_ffd.reproduction import worlds
from projects.moe_ffd.reproduction.worlds import AMPLE, FULL, MOE, MOE_SMALL, PROBE, SCARCE, SEEN
from shared.tables import Job, Rows, Table


def rows(adaptation: str, images: int, epochs: int, seed: int) -> Rows:
    """Train a detector, and judge it on what it saw and what it did not; AUC of frames."""
    module = worlds.train(worlds.ADAPTATIONS[adaptation], images, epochs, seed)
    row = {"training images": images, "adaptation": adaptation, "seed": seed, "trained (%)": worlds.trainable_share(module)}
    return [row | worlds.judge(module, seed)]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each number of images, adaptation and seed."""
    if quick:
        return [Job("probe", seeds[0], rows, (PROBE, 64, 1)), Job("moe", seeds[0], rows, (MOE_SMALL, 64, 1))]
    each = [(name, images) for images in (SCARCE, AMPLE) for name in worlds.ADAPTATIONS]
    return [Job(f"{name} {images}", seed, rows, (name, images, worlds.EPOCHS[images])) for seed in seeds for name, images in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say which of the claims hold."""
    found = {(row["training images"], row["adaptation"]): row for row in summary}

    def mean(images: int, name: str, column: str) -> float:
        return found[images, name][column]["mean"]

    small, large = found[SCARCE, MOE_SMALL], found[SCARCE, FULL]
    held = {f"{MOE_SMALL} trains at most 10 % of the parameters": small["trained (%)"]["mean"] <= 10}
    for images in (SCARCE, AMPLE):
        near = abs(mean(images, MOE_SMALL, SEEN) - mean(images, FULL, SEEN)) <= 0.01
        held[f"{images} images: at least .98 on the seen manipulation, within .01 of {FULL}"] = mean(images, MOE_SMALL, SEEN) >= 0.98 and near
    return held | {
        f"{SCARCE} images: {MOE_SMALL} at least .04 above {FULL} on unseen ones": small["unseen"]["mean"] >= large["unseen"]["mean"] + 0.04,
        f"{SCARCE} images: with a smaller spread over seeds": small["unseen"]["std"] < large["unseen"]["std"],
        f"{AMPLE} images: {MOE} at most .02 below {FULL} on unseen ones": mean(AMPLE, MOE, "unseen") >= mean(AMPLE, FULL, "unseen") - 0.02,
        f"{AMPLE} images: {MOE} at least .02 above the {PROBE}": mean(AMPLE, MOE, "unseen") >= mean(AMPLE, PROBE, "unseen") + 0.02,
    }


CLAIM = "Experts in a frozen backbone generalise better than full fine-tuning where forgeries are scarce."
TABLE = Table("adaptations", CLAIM, ("training images", "adaptation"), jobs, expectations, seeds=5)
