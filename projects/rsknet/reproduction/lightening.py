"""A light network that begins with what a trained full one factorises into, beside one that begins at random (section 2.4)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from projects.rsknet.judging import fit_scorer, judge
from projects.rsknet.lightening import lighten
from projects.rsknet.model import RSKNet
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.reproduction import worlds
from projects.rsknet.reproduction.worlds import LIGHT, RSKNET, Trained, World
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed
from shared.tables import Job, Rows, Table

TUNED = 4
"""Epochs of fine-tuning, a quarter of a training."""
FACTORISED, SCRATCH = "factorised", "random"


def measure(kept: Path, world: World, tuned: int, seed: int) -> Rows:
    """Return a row for the full network, for light ones after a whole training, and after a short one from both beginnings."""
    full = worlds.trained(kept, RSKNET, world, seed)
    found = [("full", "random", world.epochs, full), ("light", SCRATCH, world.epochs, worlds.trained(kept, LIGHT, world, seed))]
    beginnings = ((FACTORISED, 0), (FACTORISED, tuned), (SCRATCH, tuned))
    found += [("light", start, epochs, _tuned(full, start, epochs, seed)) for start, epochs in beginnings]
    return [
        {
            "net": net,
            "begins": start,
            "epochs": str(epochs),
            "seed": seed,
            "k parameters": one.thousands,
            "EER %": 100 * judge(one.scorer, "cosine", one.heard(), one.data.trials[0]).measures["eer"],
        }
        for net, start, epochs, one in found
    ]


def _tuned(full: Trained, start: str, epochs: int, seed: int) -> Trained:
    """Train a light network for some epochs from one of the beginnings, with the settings of the full one."""
    given, data = dict(full.module.hparams), full.data
    name, options = worlds.NETS[LIGHT]
    module = SpeakerVerification(**(given | {"net": name, "options": options or None}))
    if start == FACTORISED:
        crops = torch.stack([data.crops[index]["waveform"] for index in range(0, len(data.crops), max(1, len(data.crops) // 64))])
        lighten(cast(RSKNet, full.module.net), cast(RSKNet, module.net), full.module.features(crops)[0])
    with silence(), torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "fine-tuning"))
        if epochs:
            quiet_trainer(epochs, limit_val_batches=0).fit(module, datamodule=data)
        scorer = fit_scorer(quiet_trainer(1), module.cpu().eval(), data)
    return Trained(module, scorer, data)


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    sizes = (worlds.QUICK, 1) if quick else (worlds.FULL, TUNED)
    return [Job("light", seed, measure, (kept, *sizes)) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether it pays to begin with a trained network."""
    rate = {(row["net"], row["begins"], row["epochs"]): row["EER %"]["mean"] for row in summary}
    tuned, scratch = rate["light", FACTORISED, str(TUNED)], rate["light", SCRATCH, str(TUNED)]
    return {
        "after a short training, the factorised beginning is below the random one": tuned < scratch,
        "it is as good as a whole training from random weights, within half a point": tuned < rate["light", SCRATCH, str(worlds.FULL.epochs)] + 0.5,
    }


TABLE = Table(
    "lightening",
    "A light network needs little training where it begins with the factors of a trained full one.",
    ("net", "begins", "epochs"),
    jobs,
    expectations,
    seeds=5,
)
