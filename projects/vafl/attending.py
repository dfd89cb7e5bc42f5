"""Who is there: the server takes clients in or refuses them, and notes who begins, who is lost, and who has finished."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from projects.vafl.frames import Frame, FrameError
from projects.vafl.hub import Hub, Peer
from projects.vafl.server import Server
from projects.vafl.terms import Terms, read_releases, shown
from shared.messages import say


class Attendance:
    """The clients of a server.

    Args:
        hub: connections.
        server: the core, which knows what was released.
        terms: what clients must agree with.
        told: what else a client that is taken in is told.
        is_filled: whether the table needs no first embeddings.

    Attributes:
        ready: clients that may begin, or have begun.
        done: clients that have finished, their budgets being spent.
        pending: cycle that each client had not got an answer to when it came; -1 is none.
        lost: how often a client was lost.
        counted: (M, N) int64 releases that the clients themselves told; zero where they have not.
        silent: clients that have not told theirs.
        is_filled: whether the table holds an embedding of every record, of each client.
        on_loss: is called with the number of a client that is lost.
    """

    def __init__(self, hub: Hub, server: Server, terms: Terms, told: dict[str, Any], is_filled: bool) -> None:
        self.hub, self.server, self.terms, self._told = hub, server, terms, told
        self.counted = torch.zeros(terms.clients, terms.records, dtype=torch.int64)
        self.silent = set(range(terms.clients))
        self.ready: set[int] = set()
        self.done: set[int] = set()
        self.pending: dict[int, int] = {}
        self.lost, self.is_filled = 0, [is_filled] * terms.clients
        self.on_loss: Callable[[int], None] = lambda _: None
        self._seen = time.monotonic()

    @property
    def active(self) -> list[int]:
        """Clients that are there and go on."""
        return [number for number in self.ready if number in self.hub.peers and number not in self.done]

    @property
    def missing(self) -> list[int]:
        """Clients that are neither ready nor done."""
        return [number for number in range(self.terms.clients) if number not in self.ready | self.done]

    @property
    def going_on(self) -> int:
        """How many clients have not finished."""
        return self.terms.clients - len(self.done)

    def begin(self) -> None:
        """Let the time begin after which a training without clients ends."""
        self._seen = time.monotonic()

    def check_deserted(self, patience: float) -> None:
        """Raise ConnectionError where for so long no client has been there, or in virtual time, which waits for each, one has been missing."""
        gone = [number for number in range(self.terms.clients) if number not in self.done and number not in self.active]
        needs_all = self.terms.clock == "virtual"
        if not gone or (self.active and not needs_all):
            self._seen = time.monotonic()
        if time.monotonic() - self._seen > patience:
            who = f"client {', '.join(map(str, gone))}, whom virtual time waits for, is gone" if needs_all else "all clients are gone"
            raise ConnectionError(f"{who}, and none has come back within {patience:g} s: go on later with --resume")

    def note_farewell(self, number: int, frame: Frame) -> None:
        """Let a client be done, and keep what it has counted itself: more than came, where messages got lost.

        Raises:
            FrameError: if it tells something else.
        """
        if frame.tensors:
            self.note_counts(number, read_releases(frame, self.terms.records, f"client {number}"))
        self.done.add(number)

    def note_counts(self, number: int, counts: Tensor) -> None:
        """Keep a client's own counts, (N,)."""
        self.counted[number] = torch.maximum(self.counted[number], counts)
        self.silent.discard(number)

    def see_off(self, seconds: float) -> None:
        """Send all clients home, and wait so long for their farewells, after which their checkpoints are written."""
        for number in list(self.hub.peers):
            self.hub.send(number, Frame("stop"))
        deadline = time.monotonic() + seconds
        while self.hub.peers and time.monotonic() < deadline:
            arrival = self.hub.next(0.1)
            if arrival is None or arrival.peer.number is None or self.hub.peers.get(arrival.peer.number) is not arrival.peer:
                continue
            if arrival.frame is not None and arrival.frame.kind == "bye":
                with suppress(FrameError):
                    self.note_farewell(arrival.peer.number, arrival.frame)
            if arrival.frame is None or arrival.frame.kind == "bye":
                del self.hub.peers[arrival.peer.number]

    def admit(self, peer: Peer, fields: dict[str, Any]) -> None:
        """Take a client in, or refuse it."""
        if reason := self._objection(fields):
            self.refuse(peer, reason)
            return
        number, incarnation = int(fields["party"]), int(fields["incarnation"])
        if (former := self.hub.peers.get(number)) is not None:
            if former.incarnation != incarnation:
                self.refuse(peer, f"client {number} is there already: give each its own number", may_retry=True)
                return
            self.lose(former, "it came anew")
        peer.take_in(number, incarnation, self.terms.limit(self.server.head.widths[number]))
        self.hub.peers[number] = peer
        self.pending[number] = int(fields["pending"])
        self.done.discard(number)
        told = {"fill": not self.is_filled[number]} | self._told
        peer.send(Frame("welcome", told, {"releases": torch.from_numpy(self.server.releases[number].copy())}))

    def _objection(self, fields: dict[str, Any]) -> str:
        """Say why a client cannot be taken in; empty if it can."""
        number, width = fields.get("party"), fields.get("width")
        if difference := self.terms.difference(fields):
            return difference
        if type(number) is not int or not 0 <= number < self.terms.clients:
            return f"there is no client {shown(number)}: they are 0 to {self.terms.clients - 1}"
        if width != (expected := self.server.head.widths[number]):
            return f"its embeddings have {shown(width)} entries, the server's head takes {expected}: give both the same nets and model.embedding"
        if type(fields.get("incarnation")) is not int or type(fields.get("pending")) is not int:
            return "its greeting is not of this release: install the same on both sides"
        return ""

    def refuse(self, peer: Peer, reason: str, may_retry: bool = False) -> None:
        """Close a link and say why, on both sides."""
        say(f"refused a client at {peer.link.peer}: {reason}")
        peer.send(Frame("refuse", {"reason": reason, "may_retry": may_retry}))
        peer.end()

    def lose(self, peer: Peer, reason: str) -> None:
        """Go on without a client."""
        number = peer.number
        if number is None or self.hub.peers.get(number) is not peer:
            return
        del self.hub.peers[number]
        peer.end()
        self.ready.discard(number)
        self.on_loss(number)
        if number not in self.done:
            self.lost += 1
            say(f"client {number} is gone ({reason}); the others go on")
