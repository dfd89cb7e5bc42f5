"""A small federation whose server and clients are threads of this process, over real links."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from projects.vafl.federation import Setting
from projects.vafl.joining import Listener
from projects.vafl.module import build_model
from projects.vafl.partaking import ClientProcess
from projects.vafl.parted import Parted, digest
from projects.vafl.processes import SERVER_FILE, Membership, client_file, client_process, serve_on
from projects.vafl.recording import Recorder, Trace
from projects.vafl.serving import Plan, ServerProcess
from projects.vafl.settings import Delays, Protocol
from projects.vafl.terms import Terms

CLASSES = 3
INSTANT = Delays(compute="none", floor=0.0)
"""No client waits."""


def records(clients: int = 3, count: int = 60, tests: int = 30) -> tuple[Parted, Parted]:
    """Draw training and test records of four features a client, whose classes can be told."""
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(count + tests) % CLASSES
    features = torch.randn(count + tests, clients * 4, generator=chance) + 2 * torch.randn(CLASSES, clients * 4, generator=chance)[labels]
    whole = Parted(list(features.split(4, dim=1)), labels, [f"subject {row}" for row in range(count + tests)])
    return whole.take(torch.arange(count)), whole.take(torch.arange(count, count + tests))


def model(clients: int = 3, clip: float | None = None) -> Any:
    """Build linear nets and a sum."""
    return build_model([(4,)] * clients, CLASSES, "linear", None, None, "sum", None, clip, 0)


def setting(protocol: Protocol | None = None, delays: Delays = INSTANT, **changes: Any) -> Setting:
    """Return a setting with a batch of six."""
    return Setting(protocol or Protocol(), delays, **{"batch": 6, "lr": 0.3, **changes})


class Thread(threading.Thread):
    """Runs something, and keeps what it returned or raised."""

    def __init__(self, job: Any) -> None:
        super().__init__(daemon=True)
        self._job, self.result, self.error = job, None, None
        self.start()

    def run(self) -> None:
        try:
            self.result = self._job()
        except BaseException as error:
            self.error = error

    def outcome(self, seconds: float = 20.0) -> Any:
        """Wait for its end, and return or raise what it did."""
        self.join(seconds)
        assert not self.is_alive(), "it has not ended"
        if self.error is not None:
            raise self.error
        return self.result


class Federation:
    """Server and clients of one training, each to be started when a test wants it."""

    def __init__(self, folder: Any, setting: Setting, plan: Plan, transport: str = "tcp", clients: int = 3, clip: float | None = None) -> None:
        self.folder, self.setting, self.plan, self.transport = folder, setting, plan, transport
        self.model, (self.train, self.test) = model(clients, clip), records(clients)
        self.terms = Terms.of(setting, clients, len(self.train), len(self.test), digest(self.train.ids, self.test.ids), plan.clock)
        self.port, self.listener = 0, None
        self.process: ServerProcess | None = None
        self.stop: BaseException | None = None
        self.clients: dict[int, ClientProcess] = {}

    def serve(self, head: Any = None, **changes: Any) -> Thread:
        """Start the server; it goes on from its checkpoint."""
        listener = self.listener = Listener(self.transport, port=self.port)
        self.port, self.stop, self.process = listener.port, None, None
        labels, keepers = (self.train.labels, self.test.labels), (Recorder(None, CLASSES), Trace(None))
        head = head or self.model.head
        own = listener, self.setting, self.terms, replace(self.plan, **changes), head, labels, self.folder / SERVER_FILE, *keepers
        return Thread(lambda: serve_on(*own, check=self._check))

    def _check(self, process: ServerProcess) -> None:
        self.process = process
        if self.stop is not None:
            raise self.stop

    def member(self, number: int, **changes: Any) -> Membership:
        """Return what a client needs, its net being a copy of the model's."""
        bottom = model(len(self.train.blocks), self.model.bottoms[0].clip).bottoms[number]
        own = Membership(
            number,
            bottom,
            self.train.blocks[number],
            self.test.blocks[number],
            self.setting,
            self.terms,
            self.transport,
            "127.0.0.1",
            self.port,
            client_file(self.folder, number),
            silence=self.plan.silence,
            patience=self.plan.patience,
        )
        return replace(own, **changes)

    def join(self, number: int, **changes: Any) -> Thread:
        """Start a client; it goes on from its checkpoint."""
        process = self.clients[number] = client_process(self.member(number, **changes))
        return Thread(process.run)

    def join_all(self) -> list[Thread]:
        """Start all clients."""
        return [self.join(number) for number in range(len(self.train.blocks))]

    def wait(self, condition: Any, seconds: float = 15.0) -> None:
        """Wait until something holds."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it has not come true"
            time.sleep(0.005)

    def updates(self) -> int:
        """Return the server's counter."""
        return self.process.server.updates if self.process else 0

    def end(self) -> None:
        """Let a server that a test left behind end."""
        self.stop = self.stop or SystemExit()
        if self.listener is not None:
            with suppress(OSError):
                self.listener.close()
