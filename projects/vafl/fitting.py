"""The verb `fit`: a federation trained in simulated time, kept so that it goes on exactly where it stopped."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from projects.vafl.data import VerticalRecords
from projects.vafl.module import VerticalFederation
from projects.vafl.recording import Recorder, Trace, client_rows
from projects.vafl.reporting import keep_curve, report
from projects.vafl.simulator import Simulator
from shared.checkpoints import SafeCheckpointIO, load_checkpoint
from shared.runs import remove

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

SAVES_EVERY = 10.0
"""Least seconds between two checkpoints, which hold all embeddings: the updates of --save_every alone may be a few milliseconds."""
FIXED = ("clip", "std", "hidden", "adjacency")
"""What of the protection a training goes on with: its ledger counts all releases under one noise."""


@dataclass(frozen=True)
class Trained:
    """What a training returns: the figures that head the run's page."""

    summary: dict[str, Any]


def simulate(trainer: ProjectTrainer, module: VerticalFederation, data: VerticalRecords, ckpt_path: str | None) -> Trained:
    """Train in simulated time, evaluate now and then, and write what came of it; `ckpt_path` goes on with an earlier training.

    A checkpoint is written at the end, and at evaluations: where both `--save_every` updates and `SAVES_EVERY` seconds have passed since the last.

    Raises:
        ValueError: if nothing ends the training, the checkpoint is of other settings, or the training diverges: its curve is written then.
    """
    seconds, updates = limits(trainer, module)
    data.setup()
    device = trainer.strategy.root_device
    module.to(device)
    blocks, labels = placed(data.train.blocks, device), data.train.labels.to(device)
    simulator = Simulator(module.model, blocks, labels, module.setting(data.batch_size))
    recorder, trace = Recorder(trainer, module.classes, seconds, updates), Trace(trainer)
    if ckpt_path is not None:
        _restore(simulator, recorder, trace, trainer, module, data.batch_size, ckpt_path)
    print(_begun(simulator, len(labels), seconds, updates), flush=True)
    test, truth = placed(data.test.blocks, device), data.test.labels.to(device)

    def evaluate(moment: float) -> None:
        if recorder.curve and recorder.curve[-1]["seconds"] >= round(moment, 6):
            return  # a training that had ended is gone on with
        with torch.no_grad():
            row = recorder.evaluate(moment, simulator.server, module.model.embed(test), truth, simulator.costs.up, simulator.costs.down)
        if not math.isfinite(row["loss"]):
            keep_curve(trainer, recorder)
            raise ValueError(f"the training diverged at second {row['seconds']:g}: lower model.lr, which is {module.hparams.lr:g}")

    def watch(event: Any) -> None:
        recorder.watch(event)
        trace.watch(event, simulator.server.updates)

    with recorder.shown():
        saved, at = time.monotonic(), simulator.server.updates
        if not recorder.curve:
            simulator.begin()
            evaluate(0.0)
        number = math.floor(recorder.curve[-1]["seconds"] / module.hparams.every)
        while True:
            moment = min((number + 1) * module.hparams.every, math.inf if seconds is None else seconds)
            simulator.run(moment, math.inf if updates is None else updates, watch)
            is_last = simulator.is_over or moment == seconds or simulator.server.updates == updates
            evaluate(simulator.time if is_last and moment != seconds else moment)
            number += 1
            if is_last:
                break
            if time.monotonic() - saved >= SAVES_EVERY and simulator.server.updates - at >= trainer.save_every:
                saved, at = time.monotonic(), simulator.server.updates
                save(trainer, module, _kept(simulator, recorder, trace), data.batch_size)
    module.keep_absent(blocks)
    save(trainer, module, _kept(simulator, recorder, trace), data.batch_size)
    trace.write()
    ledgers = [client.ledger for client in simulator.clients]
    return Trained(report(trainer, module, recorder, _clients(simulator), simulator.server, ledgers, blocks))


def limits(trainer: L.Trainer, module: VerticalFederation) -> tuple[float | None, int | None]:
    """Return the seconds and the updates of the server that a training takes at most, of which one may be None.

    Raises:
        ValueError: if nothing ends it.
    """
    seconds, updates = module.hparams.seconds, trainer.max_steps if trainer.max_steps > 0 else None
    if seconds is None and updates is None:
        raise ValueError("nothing ends the training: set model.seconds, or trainer.max_steps for so many updates of the server")
    return seconds, updates


def placed(blocks: list[Tensor], device: torch.device) -> list[Tensor]:
    """Put blocks onto a device as float32."""
    return [block.to(device).float() for block in blocks]


def save(trainer: ProjectTrainer, module: VerticalFederation, kept: dict[str, Any], batch: int | None = None) -> None:
    """Write `last.ckpt`, which the other verbs read as one of Lightning's.

    Args:
        trainer: whose run it is of.
        module: the federation.
        kept: what it takes to go on, and to account for the releases.
        batch: records of a client's batch.
    """
    content = {
        "state_dict": module.state_dict(),
        "global_step": int(kept.get("updates", 0)),
        "epoch": 0,
        "pytorch-lightning_version": L.__version__,
        "federation": made_with(module, batch) | kept,
    }
    SafeCheckpointIO().save_checkpoint(content, trainer.run.checkpoints / "last.ckpt")
    for logger in trainer.loggers:
        logger.save()


def made_with(module: VerticalFederation, batch: int | None) -> dict[str, Any]:
    """Return what the promise of a training rests on, and what it can only go on with: plain values, for its checkpoint."""
    settings = {"protection": asdict(module.protection), "protocol": asdict(module.protocol), "l2": float(module.hparams.l2), "batch": batch}
    nets: Any = module.model.bottoms
    return settings | {"maps_zero_to_zero": [net.maps_zero_to_zero for net in nets]}


def _kept(simulator: Simulator, recorder: Recorder, trace: Trace) -> dict[str, Any]:
    clients = simulator.clients
    own = {"updates": simulator.server.updates, "simulator": simulator.state(), "queries": [client.cycle for client in clients]}
    own["releases"] = torch.stack([client.ledger.releases for client in clients])
    return {**own, "curve": recorder.curve, "events": [vars(event) for event in recorder.events], "trace": trace.state()}


def _restore(
    simulator: Simulator, recorder: Recorder, trace: Trace, trainer: ProjectTrainer, module: VerticalFederation, batch: int, ckpt_path: str
) -> None:
    """Go on from a checkpoint, and remove what is left of one whose writing was killed."""
    for leftover in trainer.run.checkpoints.glob(".last.*.ckpt"):
        remove(leftover)
    kept = load_checkpoint(ckpt_path).get("federation", {})
    if not {"simulator", "protection"} <= kept.keys():
        raise ValueError(f"{ckpt_path} is of no simulated training, and cannot be gone on with: train anew, with another --run")
    refuse_others(kept, made_with(module, batch), ckpt_path)
    simulator.load_state(kept["simulator"])
    recorder.restore(kept["curve"], kept["events"])
    trace.load_state(kept["trace"])


def refuse_others(kept: dict[str, Any], present: dict[str, Any], ckpt_path: str) -> None:
    """Raise a ValueError that names the settings that a checkpoint was not made with, but must be gone on with; both as of `made_with`."""

    def fixed(settings: dict[str, Any]) -> dict[str, Any]:
        found = {f"model.protection.{name}": settings["protection"][name] for name in FIXED}
        found |= {f"model.protocol.{name}": value for name, value in settings["protocol"].items()}
        return found | {"model.l2": settings["l2"], "data.batch_size": settings["batch"]}

    before, now = fixed(kept), fixed(present)
    if wrong := [f"{name} was {before[name]} and is {value} now" for name, value in now.items() if before.get(name) != value]:
        raise ValueError(f"{ckpt_path} cannot be gone on with, for {'; '.join(wrong)}: leave it as it was, or begin anew with another --run")


def _begun(simulator: Simulator, records: int, seconds: float | None, updates: int | None) -> str:
    """Say what is going to be done."""
    ends = [*([] if seconds is None else [f"{seconds:g} seconds"]), *([] if updates is None else [f"{updates} updates"])]
    since = f", from second {simulator.time:g}" if simulator.time else ""
    return f"{len(simulator.clients)} clients, {records} training records: simulating {' or '.join(ends)}{since}"


def _clients(simulator: Simulator) -> list[dict[str, Any]]:
    cycles = [client.cycle for client in simulator.clients]
    gaps = [simulator.delays.mean(number) for number in range(len(cycles))]
    return client_rows(simulator.server, cycles, simulator.costs.busy, simulator.time, gaps)
