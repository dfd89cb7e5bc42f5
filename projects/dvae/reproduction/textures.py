"""The final product beside JPEG on the larger pictures, and how it grows with training (claim 5)."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from projects.dvae.purification import psnr
from projects.dvae.reproduction import worlds
from projects.dvae.workshop import Workshop
from shared.tables import Job, Rows, Table

ATTACKS = ("lsp", "ops", "ar")
EPOCHS = (10, 30)


def rows(workshop: Workshop, attack: str, epochs: int, seed: int) -> Rows:
    """Purify with so many epochs a stage, and compare x1 and x3 with JPEG and no defence; after a short training x3 alone."""
    settings = workshop.settings if workshop.is_quick else replace(workshop.settings, epochs=(epochs, epochs))
    images, made = workshop.poisoned(attack, seed), workshop.purified(attack, seed, settings=settings, name=f"dvae{epochs}")
    assert images.clean is not None
    accuracies: dict[str, float | None] = dict.fromkeys(("clean", "poisoned", "JPEG-10", "x1"))
    if epochs == EPOCHS[-1]:
        accuracies["clean"] = workshop.train(images.clean, seed).last
        accuracies["poisoned"] = workshop.train(images.images, seed).last
        accuracies["JPEG-10"] = workshop.train(images.images, seed, "jpeg:10").last
        accuracies["x1"] = workshop.train(made["x1"], seed).last
    accuracies["x3"] = workshop.train(made["x3"], seed).last
    distance = float(psnr(made["x3"].float() / 255, images.clean.float() / 255).mean())
    return [{"poison": attack, "epochs a stage": str(epochs), "seed": seed} | accuracies | {"psnr x3": distance}]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each attack and seed, and for LSP one with shorter training."""
    workshop = worlds.textures(folder, quick)
    if quick:
        return [Job("lsp", seeds[0], rows, (workshop, "lsp", EPOCHS[-1]))]
    settings = [(attack, EPOCHS[-1]) for attack in ATTACKS] + [("lsp", epochs) for epochs in EPOCHS[:-1]]
    return [Job(f"{attack}{epochs}", seed, rows, (workshop, attack, epochs)) for seed in seeds for attack, epochs in settings]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say for which poisons the paper's product beats JPEG."""
    full = [row for row in summary if row["JPEG-10"] is not None]
    held = {
        f"{row['poison']} lowers clean-test accuracy by at least 30 points": row["clean"]["mean"] - row["poisoned"]["mean"] >= 0.3 for row in full
    }
    held |= {f"{row['poison']}: x3 beats JPEG-10": row["x3"]["mean"] > row["JPEG-10"]["mean"] for row in full}
    grown = sorted((int(row["epochs a stage"]), row["x3"]["mean"]) for row in summary if row["poison"] == "lsp")
    return held | {"x3 grows with training": all(shorter[1] < longer[1] for shorter, longer in pairwise(grown))}


TABLE = Table("textures", "The final product beats JPEG-10 for every poison.", ("poison", "epochs a stage"), jobs, expectations)
