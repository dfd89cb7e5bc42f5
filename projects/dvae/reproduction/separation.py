"""Poisons bite, the D-VAE finds them, and what it finds is a poison itself (claims 1 and 2)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.dvae.purification import cosine
from projects.dvae.reproduction import worlds
from projects.dvae.workshop import Workshop
from shared.seeding import generator
from shared.tables import Job, Rows, Table

ATTACKS = ("lsp", "ops", "ar")


def rows(workshop: Workshop, attack: str, seed: int) -> Rows:
    """Compare a victim's accuracy on the clean, poisoned and purified sets, and on clean images with p̂ added."""
    images = workshop.poisoned(attack, seed)
    clean, made = workshop.poisoned("clean", seed).images, workshop.purified(attack, seed)
    true, found = (images.images.float() - clean.float()) / 255, made["p1"]
    shuffled = torch.randperm(len(images), generator=generator(seed, "permuted"))
    foreign = images.labels != images.labels[shuffled]
    row: dict[str, Any] = {"poison": attack, "seed": seed}
    sets = {"clean": clean, "poisoned": images.images, "x1": made["x1"], "x2": made["x2"], "x3": made["x3"]}
    sets |= {"clean + p̂": added(clean, found), "clean + p̂ permuted": added(clean, found[shuffled])}
    row |= {name: workshop.train(each, seed).last for name, each in sets.items()}
    row["cosine"] = float(cosine(found, true).mean())
    row["cosine other"] = float(cosine(found[foreign], true[shuffled][foreign]).mean())
    return [row]


def added(images: Tensor, perturbation: Tensor) -> Tensor:
    """Add (N, C, H, W) perturbations, in units of [0, 1] images, to uint8 images."""
    return (images.float() + 255 * perturbation).round().clamp(0, 255).byte()


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each attack and seed."""
    workshop = worlds.digits(folder, quick)
    return [Job(attack, seed, rows, (workshop, attack)) for seed in seeds for attack in (ATTACKS[:1] if quick else ATTACKS)]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say which of the claims hold for the means."""
    found = {row["poison"]: {name: value["mean"] for name, value in row.items() if isinstance(value, dict)} for row in summary}
    held: dict[str, bool] = {}
    for name, row in found.items():
        held[f"{name} lowers clean-test accuracy by at least 30 points"] = row["clean"] - row["poisoned"] >= 0.30
        held[f"{name}: x1 is within 8 points of clean"] = row["clean"] - row["x1"] <= 0.08
        held[f"{name}: x2 is within 8 points of clean"] = row["clean"] - row["x2"] <= 0.08
        held[f"{name}: clean + p̂ loses at least 25 points"] = row["clean"] - row["clean + p̂"] >= 0.25
        held[f"{name}: with permuted labels it does not"] = row["clean"] - row["clean + p̂ permuted"] < 0.25
        held[f"{name}: cosine of p̂ and p at least 0.5"] = row["cosine"] >= 0.5
        held[f"{name}: with other classes' p at most 0.1"] = row["cosine other"] <= 0.1
    return held


TABLE = Table("separation", "p̂ removes the poison, and p̂ is a poison.", ("poison",), jobs, expectations)
