"""A protected set teaches nothing, to other networks too, and what is left of that under blur (claims 1 and 2)."""

from __future__ import annotations

from pathlib import Path

from projects.umed.reproduction import worlds
from projects.umed.workshop import CLEAN, UMED, Workshop
from shared.tables import Job, Rows, Table

PUBLISHED, BLURRED = "umed, published objective", "umed, blur in training"
METHODS = (CLEAN, "checkerboard", PUBLISHED, UMED, BLURRED)
VARIANTS = {
    PUBLISHED: worlds.varied(exchange=0.0, high_pass=0),
    BLURRED: worlds.varied(60, high_pass=7, augmentations=["blur"], augmentation_probability=1.0, blur_sigma=[0.9, 1.1]),
}
TRANSFER = "attention_unet"
BLUR = "blur:1+test"


def rows(workshop: Workshop, method: str, seed: int) -> Rows:
    """Train exploiters on what a method publishes; scores in %, PSNR in dB."""
    outcome = workshop.exploit(method, seed)
    row = {"method": method, "seed": seed} | (workshop.quality(method, seed, worlds.RADIUS) if method != CLEAN else {"psnr": None, "psnr_roi": None})
    row.pop("max_change", None)
    row |= {"U-Net": 100 * outcome.last, "best epoch": 100 * outcome.best, "training": 100 * outcome.train_dice}
    row["signature"] = None if outcome.signature_dice is None else 100 * outcome.signature_dice
    row["attention U-Net"] = 100 * workshop.exploit(method, seed, TRANSFER).last
    row["U-Net, all blurred"] = 100 * workshop.exploit(method, seed, defence=BLUR).last
    return [row]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each method and seed."""
    workshop = worlds.ellipses(folder, quick, VARIANTS)
    return [Job(method, seed, rows, (workshop, method)) for seed in seeds for method in (METHODS[1:4] if quick else METHODS)]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say which of the claims hold for the means."""
    found = {row["method"]: {name: value["mean"] for name, value in row.items() if isinstance(value, dict)} for row in summary}
    clean, board, blurred = (found[name] for name in (CLEAN, "checkerboard", BLURRED))
    kept = {name: clean["U-Net, all blurred"] - row["U-Net, all blurred"] for name, row in (("board", board), ("blurred", blurred))}
    held = {"clean training reaches a DSC of 85": clean["U-Net"] >= 85}
    for name in (UMED, PUBLISHED):
        ours = found[name]
        held |= {
            f"{name}: at most 30 on clean test images": ours["U-Net"] <= 30,
            f"{name}: a PSNR of at least 46 dB": ours["psnr"] >= 46,
            f"{name}: training and signature DSC at least 90": min(ours["training"], ours["signature"]) >= 90,
            f"{name}: within 15 points on a second architecture": abs(ours["attention U-Net"] - ours["U-Net"]) <= 15,
        }
    return held | {
        f"with blur in training twice the checkerboard's protection under blur ({kept['blurred']:.1f} against {kept['board']:.1f} points)": (
            kept["blurred"] >= 2 * max(kept["board"], 1.0)
        ),
    }


TABLE = Table("protection", "A segmentation network trained on the protected set fails on clean images.", ("method",), jobs, expectations)
