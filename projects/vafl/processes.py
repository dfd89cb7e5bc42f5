"""The processes of a federation on this machine, and a whole federation of them, without a trainer."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from projects.vafl.bottoms import Bottom
from projects.vafl.delays import DelaySource
from projects.vafl.federation import Setting
from projects.vafl.hub import Hub
from projects.vafl.joining import Listener, connect
from projects.vafl.links import Transport
from projects.vafl.model import VerticalModel
from projects.vafl.partaking import ClientProcess, Journal
from projects.vafl.parted import Parted, digest
from projects.vafl.plans import Plan
from projects.vafl.recording import Recorder, Trace
from projects.vafl.serving import ServerProcess
from projects.vafl.terms import Terms
from shared.checkpoints import SafeCheckpointIO, load_checkpoint
from shared.messages import describe, say

SERVER_FILE = "server.ckpt"


@dataclass(frozen=True)
class Membership:
    """All that the process of a client needs.

    Attributes:
        number: m.
        bottom: its net.
        block: (N, ...) its part of the training records.
        tests: its part of the test records.
        setting: what all have agreed on.
        terms: what it must agree with the server on.
        transport: of the link.
        host: of the server.
        port: of the server.
        file: its checkpoint, from which it goes on if it is there.
        secret: the server's.
        silence: seconds without a sign of life after which the server counts as gone.
        patience: seconds to seek the server.
        device: where it computes.
    """

    number: int
    bottom: Bottom
    block: Tensor
    tests: Tensor
    setting: Setting
    terms: Terms
    transport: Transport
    host: str
    port: int
    file: Path
    secret: str | None = None
    silence: float = 10.0
    patience: float = 600.0
    device: str = "cpu"

    @property
    def journal(self) -> Path:
        """File of the releases since the last checkpoint."""
        return self.file.with_suffix(".sent")


def client_process(member: Membership) -> ClientProcess:
    """Return the client that a member is, as far as it was when an earlier process of it ended."""
    bottom, device, setting = member.bottom.to(member.device), member.device, member.setting
    client = setting.client(member.number, bottom, member.block.to(device).float(), secrets.randbits(62))
    delays = DelaySource(setting.delays, member.terms.clients, setting.seed)
    link = partial(connect, member.transport, member.host, member.port, member.patience, member.secret)
    keep = partial(_write, member.file, "client")
    member.file.parent.mkdir(parents=True, exist_ok=True)
    sent = Journal.read(member.journal, len(member.block))
    process = ClientProcess(client, member.tests.to(device).float(), delays, member.terms, link, member.silence, keep, Journal(member.journal))
    if member.file.is_file():
        process.load_state(load_checkpoint(member.file)["client"])
    client.ledger.releases += sent
    return process


def counted(member: Membership) -> Tensor:
    """Return how often a client has released each record, (N,) int64, as it has written down itself."""
    kept = load_checkpoint(member.file)["client"]["releases"] if member.file.is_file() else 0
    return kept + Journal.read(member.journal, len(member.block))


def take_part(member: Membership) -> ClientProcess:
    """Be a client, until the server says that it is over."""
    process = client_process(member)
    process.run()
    return process


def _write(file: Path, name: str, state: dict[str, Any]) -> None:
    SafeCheckpointIO().save_checkpoint({name: state}, file)


# ---- processes


def process_context() -> BaseContext:
    """Return the way of starting processes: forked from a server that has imported everything once, where the system can."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "projects.vafl.processes"])
    return context


def _be_client(content: bytes) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which ends the others
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    member: Membership = pickle.loads(content)  # its own parent's, through the pipe by which multiprocessing itself sends pickles
    try:
        take_part(member)
    except Exception as error:
        say(f"client {member.number}: {describe(error)}")
        sys.exit(1)


def _end_with_parent() -> None:
    """End this process when that which started it has ended, whatever its end was."""
    if (parent := multiprocessing.parent_process()) is not None:
        parent.join()
        os._exit(1)


class Clients:
    """The processes of clients on this machine.

    Args:
        members: what each needs.
    """

    def __init__(self, members: Sequence[Membership]) -> None:
        self.members, self._context = list(members), process_context()
        self.processes: list[BaseProcess] = []
        for member in self.members:
            self.processes.append(self._started(member))

    def _started(self, member: Membership) -> BaseProcess:
        content = pickle.dumps(member)  # plainly, not by shared memory, of which a container may have little
        process = self._context.Process(target=_be_client, args=(content,), name=f"client {member.number}", daemon=True)  # type: ignore[attr-defined]
        process.start()
        return process

    def kill(self, number: int) -> None:
        """End a client's process at once, as a crash of its machine would."""
        self.processes[number].kill()
        self.processes[number].join()

    def restart(self, number: int) -> None:
        """Start a client's process anew; it goes on from its checkpoint."""
        self.processes[number] = self._started(self.members[number])

    def check(self, can_spare: bool = False) -> None:
        """Look after the processes.

        Args:
            can_spare: whether the training goes on without a client that has failed or was killed.

        Raises:
            ValueError: if a client has ended that is needed, or none is left.
        """
        ended = [process for process in self.processes if process.exitcode]
        if ended and (not can_spare or len(ended) == len(self.processes)):
            names = ", ".join(f"{process.name} (signal {-process.exitcode})" if process.exitcode < 0 else process.name for process in ended)  # type: ignore[operator]
            raise ValueError(f"{names} failed, as told above, or was ended from outside: mend that, and go on with --resume")

    def end(self, seconds: float) -> None:
        """Wait so long for all to end, and end those that do not."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()


# ---- a federation


def serve_on(
    listener: Listener,
    setting: Setting,
    terms: Terms,
    plan: Plan,
    head: Any,
    labels: tuple[Tensor, Tensor],
    file: Path,
    recorder: Recorder,
    trace: Trace,
    check: Callable[[ServerProcess], None] = lambda _: None,
    keeps_clients: bool = True,
) -> ServerProcess:
    """Be the server, from where an earlier process of it ended, until the training is over.

    Args:
        listener: where clients come.
        setting: what all have agreed on.
        terms: what clients must agree with.
        plan: how it goes about it.
        head: its net, trained in place.
        labels: of the training and of the test records, on the head's device.
        file: its checkpoint.
        recorder: keeps the curve.
        trace: keeps the events.
        check: is called several times a second between two steps; may raise what ends the training.
        keeps_clients: whether clients are to wait for another server where this one ends before its time; else they are sent home.
    """
    hub, server = Hub(listener, plan.silence), setting.server(head, labels[0])
    keep = partial(_write, file, "server")
    process = ServerProcess(hub, server, setting, terms, plan, recorder, trace, labels[1], keep, lambda: check(process))
    if file.is_file():
        process.load_state(load_checkpoint(file)["server"])
    try:
        process.run()
    except BaseException:
        process.close() if keeps_clients else process.dismiss()
        raise
    finally:
        hub.close()
    return process


def play(
    setting: Setting,
    model: VerticalModel,
    train: Parted,
    test: Parted,
    plan: Plan,
    folder: Path,
    transport: Transport = "tcp",
    port: int = 0,
    recorder: Recorder | None = None,
    trace: Trace | None = None,
    watch: Callable[[ServerProcess, Clients], None] = lambda *_: None,
    device: str | torch.device = "cpu",
) -> ServerProcess:
    """Train a federation in processes on this machine, and bring what the clients have learnt into the model.

    Args:
        setting: what all agree on.
        model: trained in place.
        train: training records.
        test: test records.
        plan: how the server goes about it.
        folder: of the checkpoints; where some are there the training goes on from them.
        transport: of the links.
        port: that the server listens at; 0 is a free one.
        recorder: keeps the curve; None makes one without loggers.
        trace: keeps the events; None makes one without a file.
        watch: is called several times a second with the server and its clients, and may kill and restart those.
        device: where all compute.
    """
    classes = int(max(train.labels.max(), test.labels.max())) + 1
    terms = Terms.of(setting, len(train.blocks), len(train), len(test), digest(train.ids, test.ids), plan.clock)
    listener, where = Listener(transport, "127.0.0.1", port), str(device)
    members = [
        Membership(number, bottom, block, tests, setting, terms, transport, "127.0.0.1", listener.port,  # type: ignore[arg-type]
                   client_file(folder, number), None, plan.silence, plan.patience, where)
        for number, (bottom, block, tests) in enumerate(zip(model.bottoms, train.blocks, test.blocks, strict=True))
    ]  # fmt: skip
    clients = Clients(members)

    def check(process: ServerProcess) -> None:
        clients.check(can_spare=process.is_started and plan.clock == "wall")
        watch(process, clients)

    labels = train.labels.to(device), test.labels.to(device)
    keepers = recorder or Recorder(None, classes), trace or Trace(None)
    try:
        served = serve_on(
            listener, setting, terms, plan, model.head.to(device), labels, folder / SERVER_FILE, *keepers, check=check, keeps_clients=False
        )
        clients.end(plan.silence)
    finally:
        clients.end(0.0)
    for number, bottom in enumerate(model.bottoms):
        if (file := client_file(folder, number)).is_file():
            bottom.load_state_dict(load_checkpoint(file)["client"]["net"])
        served.attendance.note_counts(number, counted(members[number]))
    return served


def client_file(folder: Path, number: int) -> Path:
    """Return the checkpoint of a client."""
    return folder / f"client-{number}.ckpt"
