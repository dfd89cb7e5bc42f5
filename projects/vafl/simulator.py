"""The federation in simulated time: one process, one heap of arrivals, and every run replays exactly from its seed."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from projects.vafl.client import Client, Signal, Upload
from projects.vafl.delays import DelaySource
from projects.vafl.federation import Setting
from projects.vafl.model import VerticalModel
from projects.vafl.server import Server
from projects.vafl.uploads import ROW_BYTES


@dataclass(frozen=True)
class Event:
    """One step of the server.

    Attributes:
        time: simulated seconds at which the server took it.
        clients: whose messages it took.
        arrivals: when each of them had come.
        starts: when each client had begun its cycle.
        loss: mean loss of the batches.
        age: largest mean age of the embeddings that an answer used.
    """

    time: float
    clients: tuple[int, ...]
    arrivals: tuple[float, ...]
    starts: tuple[float, ...]
    loss: float
    age: float


@dataclass
class Costs:
    """What a run has cost so far.

    Attributes:
        up: bytes that clients have sent.
        down: bytes that the server has sent.
        asked: embeddings that the server had to ask for, for their age.
        busy: seconds that each client was at work or its messages on the way; the rest it waited.
    """

    up: int
    down: int
    asked: int
    busy: list[float]


class Simulator:
    """Plays a federation event by event.

    Args:
        model: trained in place, on the blocks' device.
        blocks: one (N, ...) a client.
        labels: (N,) int64.
        setting: what all have agreed on.
    """

    def __init__(self, model: VerticalModel, blocks: Sequence[Tensor], labels: Tensor, setting: Setting) -> None:
        self.model, self.setting = model, setting
        self.clients: list[Client]
        self.server: Server
        self.clients, self.server = setting.federation(model, blocks, labels)
        self.delays = DelaySource(setting.delays, len(self.clients), setting.seed)
        self.group = setting.protocol.group(len(self.clients))
        self.time = 0.0
        self.costs = Costs(0, 0, 0, [0.0] * len(self.clients))
        self._heap: list[tuple[float, int, bool]] = []  # arrivals, of whom, and whether they ask for an answer
        self._waiting: list[tuple[float, int]] = []
        self._starts = [0.0] * len(self.clients)
        self._is_begun = False

    @property
    def is_over(self) -> bool:
        """Whether too few clients go on for another step: the others have spent their budgets."""
        return self._is_begun and sum(asks for *_, asks in self._heap) + len(self._waiting) < self.group

    def run(self, seconds: float = math.inf, updates: float = math.inf, watch: Callable[[Event], None] | None = None) -> None:
        """Play on until the next step would begin beyond so many simulated seconds, or the server has taken so many updates in all.

        Raises:
            ValueError: if there is no end, for nothing takes any time.
        """
        if updates == math.inf and self.delays.is_instant:
            raise ValueError("nothing takes any time, so that seconds never end the training: give delays, or trainer.max_steps")
        if not self._is_begun:
            self.begin()
        while self.server.updates < updates and not self.is_over:
            while len(self._waiting) < self.group:
                if self._heap[0][0] > seconds:
                    return
                arrival, number, asks = heapq.heappop(self._heap)
                if asks:
                    self._waiting.append((arrival, number))
                elif (ahead := self.clients[number].ahead()) is not None:
                    self._deliver(ahead)
            begins = max(self.time, self._waiting[-1][0])
            if begins > seconds:
                return
            event = self._step(begins)
            if watch is not None:
                watch(event)

    def begin(self) -> None:
        """Fill the table, and let every client begin its first cycle as soon as its line is free."""
        starts = [0.0] * len(self.clients)
        if self.setting.protocol.fills_table:
            for client in self.clients:
                upload = client.first()
                self._deliver(upload)
                starts[client.number] = self.delays.one_way(upload.size)
        for client, start in zip(self.clients, starts, strict=True):
            self._begin_cycle(client, start)
        self._is_begun = True

    def _begin_cycle(self, client: Client, start: float) -> None:
        ahead, message = client.ahead(), client.begin()
        if message is None:
            return
        self._starts[client.number], earliest = start, start
        if ahead is not None:
            earliest = start + self.delays.one_way(ahead.size)
            heapq.heappush(self._heap, (earliest, client.number, False))
        arrival = self.delays.arrival(client.number, client.cycle, start, message.size)
        heapq.heappush(self._heap, (max(earliest, arrival), client.number, True))

    def _deliver(self, upload: Upload) -> None:
        self.server.store(upload)
        self.costs.up += upload.size

    def _step(self, begins: float) -> Event:
        """Let the server take a step with those who wait, and let them begin their next cycles."""
        waiting, self._waiting = sorted(self._waiting, key=lambda pair: pair[1]), []
        numbers = tuple(number for _, number in waiting)
        messages = [upload for number in numbers if (upload := self.clients[number].begin()) is not None]
        self.time = begins + self._refresh(messages) + self.setting.delays.server
        signals = self.server.step(messages)
        event = Event(
            self.time,
            numbers,
            tuple(arrival for arrival, _ in waiting),
            tuple(self._starts[number] for number in numbers),
            float(self.server.loss),
            max(signal.age for signal in signals),
        )
        for message, signal in zip(messages, signals, strict=True):
            self._answer(message, signal)
        return event

    def _answer(self, message: Upload, signal: Signal) -> None:
        """Hand an answer to its client, which takes its step and begins its next cycle as soon as the answer is there."""
        number, client = message.client, self.clients[message.client]
        travel = self.setting.delays.down + self.delays.transfer(signal.size)
        self.costs.up, self.costs.down = self.costs.up + message.size, self.costs.down + signal.size
        self.costs.busy[number] += self.delays.work(number, client.cycle, message.size) + travel
        client.finish(signal)
        self._begin_cycle(client, self.time + travel)

    def _refresh(self, messages: Sequence[Upload]) -> float:
        """Ask for the embeddings that are too old; returns the seconds that the server waits for them."""
        seconds = 0.0
        for number, rows in self.server.overdue(messages).items():
            if (fresh := self.clients[number].refresh(rows)) is None:
                continue
            self._deliver(fresh)
            asking = len(rows) * ROW_BYTES
            self.costs.down, self.costs.asked = self.costs.down + asking, self.costs.asked + len(fresh.rows)
            seconds = max(seconds, self.delays.round_trip(asking, fresh.size))
        return seconds

    # ---- what a run goes on from

    def state(self) -> dict[str, Any]:
        """Return what it takes to go on exactly."""
        own = {"time": self.time, "heap": list(self._heap), "waiting": list(self._waiting), "starts": list(self._starts), "is_begun": self._is_begun}
        own |= {"costs": asdict(self.costs), "begun": [client.begun for client in self.clients]}
        return {**own, "server": self.server.state(), "clients": [client.state() for client in self.clients]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.time, self._is_begun, self._starts = state["time"], state["is_begun"], list(state["starts"])
        self._heap, self._waiting = [tuple(entry) for entry in state["heap"]], [tuple(entry) for entry in state["waiting"]]
        self.costs = Costs(**state["costs"])
        self.server.load_state(state["server"])
        for client, own, begun in zip(self.clients, state["clients"], state["begun"], strict=True):
            client.load_state(own)
            client.begin_again(begun)
