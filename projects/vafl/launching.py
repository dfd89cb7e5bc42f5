"""The verbs `launch`, `serve` and `join`: a federation in processes of their own, on this machine or on several."""

from __future__ import annotations

import math
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from projects.vafl.data import VerticalRecords
from projects.vafl.fitting import Trained, limits, save
from projects.vafl.joining import Listener
from projects.vafl.ledger import Ledger, statement
from projects.vafl.links import Transport
from projects.vafl.module import VerticalFederation
from projects.vafl.partaking import ClientProcess
from projects.vafl.plans import Clock, Plan
from projects.vafl.predicting import HEAD
from projects.vafl.processes import SERVER_FILE, Clients, Membership, client_file, client_process, play, serve_on
from projects.vafl.recording import Recorder, Trace, client_rows
from projects.vafl.reporting import report
from projects.vafl.serving import ServerProcess
from projects.vafl.terms import Terms
from shared.loggers import log_table
from shared.messages import say
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

SECRET = "VAFL_SECRET"
"""Environment variable that the secret is taken from where none is given: other users of a machine can read command lines."""

__all__ = ["Clients", "Membership", "Plan", "ServerProcess", "Stops", "Terminated", "join", "launch", "play", "serve"]


class Terminated(Exception):  # noqa: N818 - it is no error
    """SIGTERM has come."""


class Stops:
    """Lets Ctrl-C and SIGTERM be seen at a place of one's choice, where nothing is half done; a second one takes effect at once.

    Args:
        trainer: told of SIGTERM, for the exit code.
        at_once: whether the first takes effect at once, too.
    """

    def __init__(self, trainer: ProjectTrainer, at_once: bool = False) -> None:
        self._trainer, self._at_once, self._number = trainer, at_once, 0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._former = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt or Terminated if a signal has come."""
        if self._number == signal.SIGTERM:
            self._trainer._signal_connector.received_sigterm = True
            raise Terminated("SIGTERM has come")
        if self._number:
            raise KeyboardInterrupt

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number:
            raise KeyboardInterrupt
        self._number = number
        if self._at_once:
            self.check()


# ---- the verbs


def launch(
    trainer: ProjectTrainer, module: VerticalFederation, data: VerticalRecords, transport: Transport, clock: Clock, port: int, silence: float
) -> Trained:
    """Train in processes on this machine; see the verb."""
    data.setup()
    plan, setting = _plan(trainer, module, clock, silence, patience=120.0), module.setting(data.batch_size)
    recorder, trace = _keepers(trainer, module, plan)
    with Stops(trainer) as stops, _kept_if_stopped(trace):
        watch, device = (lambda *_: stops.check()), trainer.strategy.root_device
        own = setting, module.model, data.train, data.test, plan, trainer.run.checkpoints, transport, port
        served = play(*own, recorder, trace, watch, device)
    return _conclude(trainer, module, data, served, data.train.blocks)


def serve(
    trainer: ProjectTrainer,
    module: VerticalFederation,
    data: VerticalRecords,
    host: str,
    port: int,
    transport: Transport,
    clock: Clock,
    secret: str | None,
    silence: float,
    patience: float,
) -> Trained:
    """Be the server; see the verb."""
    plan, setting = _plan(trainer, module, clock, silence, patience), module.setting(data.batch_size)
    recorder, trace = _keepers(trainer, module, plan)
    labels, device = (data.train_labels(), data.test_labels()), trainer.strategy.root_device
    terms = Terms.of(setting, data.parties, len(labels[0]), len(labels[1]), data.ids_digest(), clock)
    file, head = trainer.run.checkpoints / SERVER_FILE, module.model.head.to(device)
    with Listener(transport, host, port, _secret(secret)) as listener, Stops(trainer) as stops, _kept_if_stopped(trace):
        print(f"waiting for {terms.clients} clients at {host}:{listener.port} over {transport}", flush=True)
        there = labels[0].to(device), labels[1].to(device)
        served = serve_on(listener, setting, terms, plan, head, there, file, recorder, trace, lambda _: stops.check())
    return _conclude(trainer, module, data, served)


def join(
    trainer: ProjectTrainer,
    module: VerticalFederation,
    data: VerticalRecords,
    party: int,
    host: str,
    port: int,
    transport: Transport,
    secret: str | None,
    silence: float,
    patience: float,
    clock: Clock = "wall",
) -> None:
    """Take part as one client; see the verb."""
    _check_seconds(silence, patience)
    if not 0 <= party < data.parties:
        raise ValueError(f"there is no client {party}: they are 0 to {data.parties - 1}")
    setting, blocks = module.setting(data.batch_size), data.party(party)
    terms = Terms.of(setting, data.parties, len(blocks[0]), len(blocks[1]), data.ids_digest(party), clock)
    file, device = client_file(trainer.run.checkpoints, party), str(trainer.strategy.root_device)
    bottom: Any = module.model.bottoms[party]
    process = client_process(
        Membership(party, bottom, *blocks, setting, terms, transport, host, port, file, _secret(secret), silence, patience, device)
    )
    try:
        with Stops(trainer, at_once=True):
            process.run()
    finally:
        _tell_releases(trainer, module, process)
    save(trainer, module, {"only": f"the net of client {party}"})
    print(f"the training is over; this client's net lies in {file}")


def _tell_releases(trainer: ProjectTrainer, module: VerticalFederation, process: ClientProcess) -> None:
    """Write what the client itself has counted of its releases, which is what counts for its records' privacy."""
    own, client = module.protection, process.client
    if not client.ledger.most and not process.tests_released:
        return
    stated = statement(
        client.ledger,
        own.clip,
        own.std,
        client.ledger.rows_of_upload(client.cycle),
        client.cycle,
        own.delta,
        own.adjacency,
        client.bottom.maps_zero_to_zero,
        prv=False,
    )
    row = {"client": client.number, "cycles": client.cycle, **{name: value for name, value in stated.items() if name != "epsilon_prv"}}
    row |= {"tests_released": process.tests_released}
    if process.terms.clock == "virtual" and own.std:
        row |= {name: math.inf for name in row if name.startswith(("mu", "epsilon"))}
        say("virtual time has no secret noise, for its numbers are the simulator's: nothing is promised of this client's records")
    log_table(trainer, "ledger", [row])
    told = ("client", "cycles", "releases_max", "releases_mean", "std", "mu", "epsilon", "delta", "tests_released")
    print(markdown([{name: row[name] for name in told}]))


def _secret(given: str | None) -> str | None:
    return given or os.environ.get(SECRET) or None


def _plan(trainer: ProjectTrainer, module: VerticalFederation, clock: Clock, silence: float, patience: float) -> Plan:
    if module.protocol.algorithm == "centralised":
        raise ValueError("centralised training has no clients: choose another model.protocol.algorithm, or use fit")
    _check_seconds(silence, patience)
    return Plan(*limits(trainer, module), module.hparams.every, clock, silence, patience)


def _check_seconds(silence: float, patience: float) -> None:
    if silence <= 0 or patience <= 0:
        raise ValueError(f"silence and patience must be positive seconds, got {silence} and {patience}")


def _keepers(trainer: ProjectTrainer, module: VerticalFederation, plan: Plan) -> tuple[Recorder, Trace]:
    return Recorder(trainer, module.classes, plan.seconds, plan.updates), Trace(trainer)


@contextmanager
def _kept_if_stopped(trace: Trace) -> Iterator[None]:
    """Write the trace so far where the training is stopped, which the checkpoint goes on with."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        trace.write()
        raise


def _conclude(
    trainer: ProjectTrainer, module: VerticalFederation, data: VerticalRecords, served: ServerProcess, blocks: Sequence[Tensor] = ()
) -> Trained:
    """Write what came of it."""
    server, attendance = served.server, served.attendance
    module.absent.copy_(server.mean_embeddings())
    server.releases[...] = np.maximum(server.releases, attendance.counted.numpy())
    releases = torch.from_numpy(server.releases)
    if attendance.silent:
        names = ", ".join(map(str, sorted(attendance.silent)))
        say(f"client {names} has not told its own counts: more may have been released than came, and its ledger here is a lower bound")
    ledgers = [Ledger(server.records) for _ in range(server.clients)]
    for ledger, own in zip(ledgers, releases, strict=True):
        ledger.load(own)
    kept = {"updates": server.updates, "releases": releases, "queries": list(served.cycles)} | ({} if blocks else {"only": HEAD})
    save(trainer, module, kept, data.batch_size)
    served.trace.write()
    rows = client_rows(server, served.cycles, served.busy, served.time, [served.delays.mean(number) for number in range(server.clients)])
    found = report(trainer, module, served.recorder, rows, server, ledgers, blocks)
    print(f"clients were lost {served.lost} times; the longest time between two updates was {served.longest_gap:.2f} s")
    return Trained(found | {"train/lost": served.lost, "train/longest_gap": served.longest_gap})
