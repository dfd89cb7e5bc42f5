"""Stages, embedding, normalisation and the poisoned share (claim 4): the table, whatever comes out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from projects.dvae.fitting import Settings
from projects.dvae.purification import cosine
from projects.dvae.reproduction import worlds
from projects.dvae.workshop import Workshop
from shared.tables import Job, Rows, Table

ATTACK = "lsp"
RATES = (0.2, 0.4, 0.6, 0.8)


def variants(base: Settings) -> dict[str, tuple[Settings, str]]:
    """Return the purifiers and the product of each that a victim is trained on, less the perturbations of all its stages."""
    first, second = (replace(base, rates=(rate,), epochs=(count,)) for rate, count in zip(base.rates, base.epochs, strict=True))

    def changed(**options: Any) -> Settings:
        return replace(first, options=base.options | options)

    return {
        "two stages": (base, "x2"),
        "stage one alone": (first, "x1"),
        "stage two alone": (second, "x1"),
        "stage one, no embedding": (changed(embedding="none"), "x1"),
        "stage one, class-wise": (changed(perturbation="class"), "x1"),
        "stage one, BatchNorm": (changed(norm="batch"), "x1"),
        "stage one, no energy hinge": (changed(energy_floor=None), "x1"),
    }


def variant_rows(workshop: Workshop, variant: str, seed: int) -> Rows:
    """Purify by a variant, and train a victim on what it leaves."""
    settings, product = variants(workshop.settings)[variant]
    name = "dvae" if variant == "two stages" else variant.replace(" ", "-").replace(",", "")
    images, made = workshop.poisoned(ATTACK, seed), workshop.purified(ATTACK, seed, settings=settings, name=name)
    assert images.clean is not None
    true = (images.images.float() - images.clean.float()) / 255
    row = {"variant": variant, "poisoned share": "1", "seed": seed, "cosine": float(cosine(made["p1"], true).mean())}
    return [row | {"undefended": None, "jpeg:50": None, "clean part": None, "purified": workshop.train(made[product], seed).last}]


def share_rows(workshop: Workshop, share: float, seed: int) -> Rows:
    """Poison a share of the set, purify the mixture, and compare with no defence, JPEG and training on the clean part alone."""
    images = workshop.poisoned(ATTACK, seed, share)
    assert images.clean is not None
    poisoned = (images.images != images.clean).flatten(1).any(1)
    made = workshop.purified(ATTACK, seed, share)
    true = (images.images.float() - images.clean.float()) / 255
    row = {"variant": "two stages", "poisoned share": f"{share:g}", "seed": seed}
    row["cosine"] = float(cosine(made["p1"][poisoned], true[poisoned]).mean())
    row |= {"undefended": workshop.train(images.images, seed).last, "jpeg:50": workshop.train(images.images, seed, "jpeg:50").last}
    row["clean part"] = workshop.train(images.images[~poisoned], seed, labels=images.labels[~poisoned]).last
    return [row | {"purified": workshop.train(made["x2"], seed).last}]


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each variant, share and seed."""
    workshop = worlds.digits(folder, quick)
    names = list(variants(workshop.settings))
    made = [
        Job(name.replace(" ", "-").replace(",", ""), seed, variant_rows, (workshop, name))
        for seed in seeds
        for name in (names[1:2] if quick else names)
    ]
    return made + [Job(f"share{share:g}", seed, share_rows, (workshop, share)) for seed in seeds for share in (RATES[1:2] if quick else RATES)]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say which of the paper's ablations come out its way."""
    purified = {row["variant"]: row["purified"]["mean"] for row in reversed(summary) if row["poisoned share"] == "1"}
    cosines = {row["variant"]: row["cosine"]["mean"] for row in summary if row["poisoned share"] == "1"}
    shares = [row for row in summary if row["poisoned share"] != "1"]
    return {
        "two stages restore more than the first alone": purified["two stages"] > purified["stage one alone"],
        "two stages restore more than the second alone": purified["two stages"] > purified["stage two alone"],
        "the embedding helps": purified["stage one alone"] > purified["stage one, no embedding"],
        "InstanceNorm separates better than BatchNorm": cosines["stage one alone"] > cosines["stage one, BatchNorm"],
        "at every share, purification restores more than JPEG": all(row["purified"]["mean"] > row["jpeg:50"]["mean"] for row in shares),
    }


TABLE = Table("ablation", "Two stages, the embedding and InstanceNorm are needed.", ("variant", "poisoned share"), jobs, expectations)
