"""UMed beside other protections at the same bound (claim 4)."""

from __future__ import annotations

from pathlib import Path

from projects.umed.reproduction import worlds
from projects.umed.workshop import UMED, Workshop
from shared.tables import Job, Rows, Table

METHODS = ("random", "random_whole", "checkerboard", "lsp_roi", "ar_roi", "em", "em_whole", "tap", "sep", UMED)


def rows(workshop: Workshop, method: str, seed: int) -> Rows:
    """Train the U-Net on what a method publishes; scores in %, PSNR in dB, change in grey levels."""
    outcome = workshop.exploit(method, seed)
    row = {"method": method, "seed": seed} | workshop.quality(method, seed, worlds.RADIUS)
    signature = None if outcome.signature_dice is None else 100 * outcome.signature_dice
    return [row | {"U-Net": 100 * outcome.last, "best epoch": 100 * outcome.best, "training": 100 * outcome.train_dice, "signature": signature}]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each method and seed."""
    workshop = worlds.ellipses(folder, quick)
    return [Job(method, seed, rows, (workshop, method)) for seed in seeds for method in (METHODS[4:6] if quick else METHODS)]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether shortcuts protect and adversarial or random noise does not."""
    found = {row["method"]: row["U-Net"]["mean"] for row in summary}
    held = {f"umed protects more than {name}": found[UMED] < found[name] for name in found if name != UMED}
    return held | {
        "random noise hardly protects": found["random"] > 70,
        "tap and sep protect less than em": min(found["tap"], found["sep"]) > found["em"],
    }


TABLE = Table("baselines", "Learned shortcuts protect; random and adversarial noise hardly does.", ("method",), jobs, expectations)
