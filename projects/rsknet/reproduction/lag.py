"""What the branches of a selective kernel see: the far one distant frames, the near one neighbours (claim of the modules)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from projects.rsknet.lag import BANDS, FAR, NEAR, lag_examples
from projects.rsknet.model import RSKNet
from projects.rsknet.readout import stage_weights
from shared.seeding import derive_seed, generator
from shared.tables import Job, Rows, Table

DILATED = (1, 4)
BOTH = {"dilations": ((1, 1), DILATED)}
NETS: dict[str, dict[str, Any]] = {
    "plain": {"block": "basic"},
    "plain + SE": {"block": "excited"},
    "near + near": {"dilations": ((1, 1), (1, 1))},
    "fixed weights": BOTH | {"block": "fixed"},
    "dilated only": {"dilations": (DILATED,)},
    "RSK": BOTH,
}
"""One block of twelve channels behind the stem, single-scale pooling and a linear classifier."""
SIDES: dict[str, tuple[tuple[int, int], bool, tuple[str, ...]]] = {
    "8 or 11": (FAR, True, tuple(NETS)),
    "1 or 2": (NEAR, False, ("dilated only", "RSK")),
}
"""What is told apart: its lags, whether the convolutions before the kernel are near ones, and the networks."""
EXAMPLES, EPOCHS, BATCH, LR = (1500, 500), 6, 50, 3e-3


def build(options: dict[str, Any], neighbours: bool = True) -> RSKNet:
    """Return a network with random weights from the global generator.

    Args:
        options: of `RSKNet`.
        neighbours: False dilates the stem and the block's first convolution too: neighbours meet in a near branch, or nowhere.
    """
    net = RSKNet(BANDS, 2, (1,), (12,), scales=(1,), **options)
    if not neighbours:
        for part in (net.stem, net.stages[0][0].first):  # type: ignore[index]
            part[0].dilation = part[0].padding = DILATED
    return net


def train(net: nn.Module, seed: int, lags: tuple[int, int], count: int, epochs: int) -> None:
    """Train a classifier of lags with Adam; the order of the examples depends on the seed alone."""
    features, labels = lag_examples(seed, "train", count, lags)
    optimiser = torch.optim.Adam(net.parameters(), LR)
    for epoch in range(epochs):
        for rows in torch.randperm(count, generator=generator(seed, "lag order", epoch)).split(BATCH):
            optimiser.zero_grad()
            F.cross_entropy(net(features[rows]), labels[rows]).backward()
            optimiser.step()


def rows(side: str, name: str, sizes: tuple[int, int], epochs: int, seed: int) -> Rows:
    """Return the row of a network: how many of the test examples it tells, and what its dilated branch weighs."""
    lags, neighbours, _ = SIDES[side]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lag weights"))
        net = build(NETS[name], neighbours)
    train(net, seed, lags, sizes[0], epochs)
    features, labels = lag_examples(seed, "test", sizes[1], lags)
    with torch.no_grad():
        accuracy = (net.eval()(features).argmax(1) == labels).double().mean()
    weight = float(stage_weights(net, features)[0, 1]) if name == "RSK" else None
    return [{"lag": side, "net": name, "seed": seed, "accuracy": float(accuracy), "dilated branch": weight}]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each network and seed."""
    if quick:
        return [Job("RSK", seeds[0], rows, ("8 or 11", "RSK", (500, 100), 2))]
    each = [(side, name) for side, (_, _, names) in SIDES.items() for name in names]
    return [Job(f"{name}, lag {side}", seed, rows, (side, name, EXAMPLES, EPOCHS)) for seed in seeds for side, name in each]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether each branch sees what it should, and only it."""
    found = {(row["lag"], row["net"]): row for row in summary}
    accuracy = {key: row["accuracy"]["mean"] for key, row in found.items()}
    return {
        "a plain block does not see lags of 8 and 11 (at most 0.60)": accuracy["8 or 11", "plain"] <= 0.6,
        "nor do two near branches (at most 0.70)": accuracy["8 or 11", "near + near"] <= 0.7,
        "RSK does (at least 0.90)": accuracy["8 or 11", "RSK"] >= 0.9,
        "its dilated branch weighs more than 0.5": found["8 or 11", "RSK"]["dilated branch"]["mean"] > 0.5,
        "lags of 1 and 2: RSK sees them (at least 0.90)": accuracy["1 or 2", "RSK"] >= 0.9,
        "dilated convolutions alone do not (at most 0.60)": accuracy["1 or 2", "dilated only"] <= 0.6,
    }


TABLE = Table(
    "Near and far",
    "A selective kernel sees distant frames and neighbours, where plain blocks and dilated ones see only one of both.",
    ("lag", "net"),
    jobs,
    expectations,
    seeds=5,
)
