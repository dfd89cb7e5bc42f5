"""What routers learn from the task, and how evenly they use the experts (claim 4)."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch

from projects.moe_ffd.losses import detection_loss
from projects.moe_ffd.model import MoEViT
from projects.moe_ffd.module import FaceForgeryDetection
from projects.moe_ffd.reproduction import worlds
from projects.moe_ffd.reproduction.worlds import EPOCHS, LARGE, SCARCE
from shared.forgery.data import ForgeryData
from shared.seeding import derive_seed
from shared.tables import Job, Rows, Table

ROUTERS = ("reference", "weighted", "soft", "uniform")
LAYERS = ("lora", "adapter")


def rows(router: str, images: int, epochs: int, seed: int) -> Rows:
    """Train a detector with a router and measure its gates on training images."""
    module = worlds.train(LARGE | {"lora_router": router, "adapter_router": router}, images, epochs, seed)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(seed, "routing"))  # of the gates' noise
        gradients, used = task_gradients(module, seed), shares(module, seed)
    row = {"router": router, "seed": seed} | {f"task gradient of the gates, {name}": value for name, value in gradients.items()}
    row |= {f"{end} use of a share, {name}": value for name, ends in used.items() for end, value in ends.items()}
    return [row | {"unseen": worlds.judge(module, seed)["unseen"]}]


def _batch(seed: int, count: int = 160) -> tuple[torch.Tensor, torch.Tensor]:
    data = ForgeryData(length=count, seed=seed, test_sets=[worlds.SEEN], test_length=2)
    data.setup()
    batch = data.train_set.__getitems__(range(count))
    return batch["image"], batch["label"]


def task_gradients(module: FaceForgeryDetection, seed: int) -> dict[str, float]:
    """Return the norm of the gradient that the cross-entropy alone gives the gates of each mixture, averaged over blocks; 0 without gates."""
    images, labels = _batch(seed)
    net = cast(MoEViT, module.net)
    net.train()
    net.zero_grad()
    detection_loss(net(images), labels)["loss"].backward()
    norms = {}
    for name in LAYERS:
        gates = [parameter for mixture in net.mixtures(name) for key, parameter in mixture.router.named_parameters() if key == "w_gate"]
        norms[name] = sum(0.0 if gate.grad is None else float(gate.grad.norm()) for gate in gates) / max(1, len(gates))
    module.eval()
    return norms


@torch.no_grad()
def shares(module: FaceForgeryDetection, seed: int) -> dict[str, dict[str, float]]:
    """Return how much, in training mode, the least and the most used expert of any block is used, in units of an equal share of all weights."""
    net = cast(MoEViT, module.net)
    net.train()
    net(_batch(seed)[0])
    used = {name: usage.mean(1) / usage.mean((1, 2))[:, None] for name, usage in net.usage().items()}  # (L, E)
    module.eval()
    return {name: {"least": float(values.min()), "most": float(values.max())} for name, values in used.items()}


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each router and seed."""
    if quick:
        return [Job("reference", seeds[0], rows, ("reference", 64, 1))]
    return [Job(router, seed, rows, (router, SCARCE, EPOCHS[SCARCE])) for seed in seeds for router in ROUTERS]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the task teaches a router, and whether the reference's spreads rows evenly."""
    found = {row["router"]: {name: value["mean"] for name, value in row.items() if isinstance(value, dict)} for row in summary}
    reference, weighted = found["reference"], found["weighted"]
    gradients = [f"task gradient of the gates, {name}" for name in LAYERS]
    return {
        "the task's gradient of the reference's gates is exactly 0": all(reference[name] == 0 for name in gradients),
        "that of weighted ones is not": all(weighted[name] > 0 for name in gradients),
        "the reference uses every expert between half and twice its share": all(
            reference[f"least use of a share, {name}"] >= 0.5 and reference[f"most use of a share, {name}"] <= 2 for name in LAYERS
        ),
    }


TABLE = Table("routing", "The task does not teach the published router.", ("router",), jobs, expectations, seeds=5)
