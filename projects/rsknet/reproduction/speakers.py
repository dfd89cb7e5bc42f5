"""Networks beside each other on new speakers: equal error rates with intervals over speakers and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from projects.rsknet.judging import judge
from projects.rsknet.metrics import bootstrap_eer
from projects.rsknet.reproduction import worlds
from projects.rsknet.reproduction.worlds import LIGHT, RESNET, RSKNET, XVECTOR, World
from shared.seeding import derive_seed
from shared.tables import Job, Rows, Table

REPLICATES = 400
"""Draws of speakers, and of seeds, for an interval of 95 %."""
FEWER = 0.4
"""Part of the x-vector's parameters that the light network has at most."""


def measure(kept: Path, name: str, world: World, seed: int) -> Rows:
    """Return the row of a network and seed, with the equal error rates of lists whose speakers are drawn anew."""
    found = worlds.trained(kept, name, world, seed)
    trials = found.data.trials[0]
    heard = found.heard()
    cosine, plda = (judge(found.scorer, backend, heard, trials) if backend in found.scorer.backends else None for backend in ("cosine", "plda"))
    assert cosine is not None
    speakers = [np.array([file.partition("/")[0] for file in files]) for files in ([model[0] for model in trials.models], trials.tests)]
    drawn = bootstrap_eer(cosine.scores, trials.is_target, speakers[0][trials.enrol.numpy()], speakers[1][trials.test.numpy()], REPLICATES, seed)
    return [
        {
            "net": name,
            "seed": seed,
            "k parameters": found.thousands,
            "EER %": 100 * cosine.measures["eer"],
            "minDCF .01": cosine.measures["min_dcf_01"],
            "PLDA EER %": None if plda is None else 100 * plda.measures["eer"],
            "drawn": (100 * drawn).tolist(),
        }
    ]


def tabulate(rows: Rows, reference: str = XVECTOR) -> Rows:
    """Add intervals over speakers and seeds of each network's mean error rate, and of how it differs from the reference's, pair by pair."""
    seeds = sorted({row["seed"] for row in rows})
    drawn = {(row["net"], row["seed"]): torch.tensor(row.pop("drawn")) for row in rows}
    chosen = torch.from_numpy(np.random.default_rng(derive_seed(0, "seeds")).integers(len(seeds), size=(REPLICATES, len(seeds))))
    nets = list(dict.fromkeys(row["net"] for row in rows))
    means = {net: torch.stack([drawn[net, seed] for seed in seeds], 1).gather(1, chosen).nanmean(1) for net in nets}
    rates = {net: float(np.mean([row["EER %"] for row in rows if row["net"] == net])) for net in nets}
    for row in rows:
        is_first, net = row["seed"] == seeds[0], row["net"]
        row |= dict(zip(("EER from", "EER to"), _interval(means[net]) if is_first else (None, None), strict=True))
        beside = is_first and reference in means and net != reference
        row[f"minus {reference}"] = rates[net] - rates[reference] if beside else None
        row |= dict(zip(("from", "to"), _interval(means[net] - means[reference]) if beside else (None, None), strict=True))
    return rows


def _interval(values: torch.Tensor) -> tuple[float, float]:
    low, high = np.nanquantile(values.numpy(), (0.025, 0.975))
    return float(low), float(high)


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each network and seed."""
    if quick:
        return [Job(RSKNET, seeds[0], measure, (kept, RSKNET, worlds.QUICK))]
    return [Job(name, seed, measure, (kept, name, worlds.FULL)) for seed in seeds for name in worlds.NETS]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the networks compare as expected."""
    rows = {row["net"]: row for row in summary}
    rate, size = ({net: row[column]["mean"] for net, row in rows.items()} for column in ("EER %", "k parameters"))
    return {
        "RSKNet-MTSP is below the x-vector in EER, with fewer parameters": rate[RSKNET] < rate[XVECTOR] and size[RSKNET] < size[XVECTOR],
        "the interval of that difference lies below 0": rows[RSKNET]["to"]["mean"] < 0,
        "RSKNet-MTSP-L is within one point of the x-vector, with 60 % fewer parameters": rate[LIGHT] < rate[XVECTOR] + 1
        and size[LIGHT] <= FEWER * size[XVECTOR],
    }


def jobs_powered(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for ResNet and RSKNet-MTSP, which differ little with fewer speakers, and seed."""
    world = worlds.QUICK if quick else worlds.POWERED
    names = [RESNET] if quick else [RESNET, RSKNET]
    return [Job(name, seed, measure, (kept, name, world)) for seed in seeds for name in names]


def expectations_powered(summary: Rows) -> dict[str, bool]:
    """Say whether the two modules lower the error rate."""
    rows: dict[str, dict[str, Any]] = {row["net"]: row for row in summary}
    rate = {net: row["EER %"]["mean"] for net, row in rows.items()}
    return {
        "RSKNet-MTSP is below ResNet": rate[RSKNET] < rate[RESNET],
        "the interval of that difference lies below 0": rows[RSKNET]["to"]["mean"] < 0,
    }


TABLE = Table(
    "speakers",
    "RSKNet-MTSP verifies new speakers better than the x-vector with fewer parameters, and its light version about as well with far fewer.",
    ("net",),
    jobs,
    expectations,
    seeds=5,
    tabulate=tabulate,
)
POWERED = Table(
    "powered",
    "With 400 speakers to learn from, selective kernels and MTSP lower the error rate.",
    ("net",),
    jobs_powered,
    expectations_powered,
    seeds=5,
    tabulate=lambda rows: tabulate(rows, RESNET),
)
