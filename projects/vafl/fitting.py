"""The verb `fit`: a federation trained in simulated time, kept so that it goes on exactly where it stopped (sections 2.2 to 2.5 and 9)."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor

from projects.vafl.data import VerticalRecords
from projects.vafl.module import VerticalFederation
from projects.vafl.recording import Recorder, Trace, client_rows
from projects.vafl.reporting import report
from projects.vafl.simulator import Simulator
from shared.checkpoints import SafeCheckpointIO, load_checkpoint

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

SAVES_EVERY = 10.0
"""Seconds between two checkpoints."""


@dataclass(frozen=True)
class Trained:
    """What a training returns: the figures that head the run's page."""

    summary: dict[str, Any]


def simulate(trainer: ProjectTrainer, module: VerticalFederation, data: VerticalRecords, ckpt_path: str | None) -> Trained:
    """Train in simulated time, evaluate now and then, and write what came of it; `ckpt_path` goes on with an earlier training."""
    seconds, updates = limits(trainer, module)
    data.setup()
    device = trainer.strategy.root_device
    module.to(device)
    blocks, labels = placed(data.train.blocks, device), data.train.labels.to(device)
    simulator = Simulator(module.model, blocks, labels, module.setting(data.batch_size))
    recorder, trace = Recorder(trainer, module.classes, seconds, updates), Trace(trainer)
    _restore(simulator, recorder, trace, ckpt_path)
    test, truth = placed(data.test.blocks, device), data.test.labels.to(device)

    def evaluate(moment: float) -> None:
        if recorder.curve and recorder.curve[-1]["seconds"] >= round(moment, 6):
            return  # a training that had ended is gone on with
        with torch.no_grad():
            recorder.evaluate(moment, simulator.server, module.model.embed(test), truth, simulator.costs.up, simulator.costs.down)

    def watch(event: Any) -> None:
        recorder.watch(event)
        trace.watch(event, simulator.server.updates)

    saved = time.monotonic()
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
        if time.monotonic() - saved >= SAVES_EVERY:
            saved = time.monotonic()
            save(trainer, module, _kept(simulator, recorder, trace))
    module.keep_absent(blocks)
    save(trainer, module, _kept(simulator, recorder, trace))
    trace.write()
    ledgers = [client.ledger for client in simulator.clients]
    return Trained(report(trainer, module, recorder, _clients(simulator), simulator.server, ledgers, data.batch_size, blocks))


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


def save(trainer: ProjectTrainer, module: VerticalFederation, kept: dict[str, Any]) -> None:
    """Write `last.ckpt`, which the other verbs read as one of Lightning's, with what it takes to go on."""
    content = {
        "state_dict": module.state_dict(),
        "global_step": int(kept.get("updates", 0)),
        "epoch": 0,
        "pytorch-lightning_version": L.__version__,
        "federation": kept,
    }
    SafeCheckpointIO().save_checkpoint(content, trainer.run.checkpoints / "last.ckpt")
    for logger in trainer.loggers:
        logger.save()


def _kept(simulator: Simulator, recorder: Recorder, trace: Trace) -> dict[str, Any]:
    clients = simulator.clients
    own = {"updates": simulator.server.updates, "simulator": simulator.state(), "queries": [client.cycle for client in clients]}
    own["releases"] = torch.stack([client.ledger.releases for client in clients])
    return {**own, "curve": recorder.curve, "events": [vars(event) for event in recorder.events], "trace": trace.state()}


def _restore(simulator: Simulator, recorder: Recorder, trace: Trace, ckpt_path: str | None) -> None:
    """Go on from a checkpoint."""
    if ckpt_path is None:
        return
    kept = load_checkpoint(ckpt_path).get("federation", {})
    if "simulator" not in kept:
        raise ValueError(f"{ckpt_path} is of no simulated training, and cannot be gone on with: train anew, with another --run")
    simulator.load_state(kept["simulator"])
    recorder.restore(kept["curve"], kept["events"])
    trace.load_state(kept["trace"])


def _clients(simulator: Simulator) -> list[dict[str, Any]]:
    cycles = [client.cycle for client in simulator.clients]
    gaps = [simulator.delays.mean(number) for number in range(len(cycles))]
    return client_rows(simulator.server, cycles, simulator.costs.busy, simulator.time, gaps)
