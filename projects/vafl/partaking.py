"""A client as a process: it works at its own pace, answers what it is asked meanwhile, and seeks the server again when that is gone."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.vafl.client import CHUNK, Client, Signal, Upload
from projects.vafl.delays import DelaySource
from projects.vafl.frames import Frame, FrameError
from projects.vafl.links import Link, LinkClosed
from projects.vafl.terms import Terms, is_second, read_releases, read_rows, read_signal, shown, upload_frame
from shared.messages import say

SAVES_EVERY = 2.0
"""Seconds between two checkpoints of a client."""


class Refused(ValueError):  # noqa: N818 - it is the server's word
    """The server does not take this client, or what it sent."""


class _Stopped(Exception):  # noqa: N818
    """The server has said that it is over."""


class _Busy(Exception):  # noqa: N818
    """The server has a client of this number already, perhaps a former process of this one."""


class Journal:
    """Records that were released since the last checkpoint: a file that is written before an upload goes out, and outlives the process.

    Args:
        file: int32 numbers of records, one for each release.
    """

    def __init__(self, file: Path) -> None:
        self._file = file.open("ab", buffering=0)
        self._file.truncate(self._file.tell() // 4 * 4)  # the last number may be torn

    def add(self, rows: np.ndarray) -> None:
        """Write down the records of an upload."""
        self._file.write(rows.astype("<i4").tobytes())

    def clear(self) -> None:
        """Begin anew, now that a checkpoint holds all counts."""
        self._file.truncate(0)

    @staticmethod
    def read(file: Path, records: int) -> Tensor:
        """Return how often an earlier process wrote down each record, (N,) int64; numbers that are none are left out."""
        content = file.read_bytes() if file.is_file() else b""
        rows = np.frombuffer(content[: len(content) // 4 * 4], "<i4").astype(np.int64)
        return torch.from_numpy(np.bincount(rows[(rows >= 0) & (rows < records)], minlength=records))


class ClientProcess:
    """Takes part until the server says that it is over.

    Args:
        client: the core.
        tests: (N_test, ...) its part of the test records.
        delays: how long its cycles take.
        terms: what it must agree with the server on.
        connect: makes a link to the server, and tries for a while.
        silence: seconds without a sign of life after which the server counts as gone.
        save: writes a checkpoint.
        journal: keeps count of releases between checkpoints; None counts in memory only.

    Attributes:
        incarnation: drawn for this process.
        tests_released: how often the test records were embedded for the server.
    """

    def __init__(
        self,
        client: Client,
        tests: Tensor,
        delays: DelaySource,
        terms: Terms,
        connect: Callable[[], Link],
        silence: float,
        save: Callable[[dict[str, Any]], None] = lambda _: None,
        journal: Journal | None = None,
    ) -> None:
        self.client, self.tests, self.delays, self.terms = client, tests, delays, terms
        self.connect, self.silence, self.save, self.journal = connect, silence, save, journal
        self.incarnation = secrets.randbits(48)
        self.tests_released = 0
        self._is_virtual, self._zero, self._virtual, self._heard = terms.clock == "virtual", 0.0, 0.0, 0.0
        if self._is_virtual:
            client.noise_seed = client.seed  # the simulator's numbers, noise among them: nothing is secret then
        self._asks, self._noted, self._tested = False, -1, 0
        self._saved = time.monotonic()

    def run(self) -> None:
        """Take part, and come back as often as the link breaks.

        Raises:
            Refused: if the server does not take this client, or what it sent.
            ConnectionError: if the server is sought in vain.
        """
        busy_since, is_over = None, False
        while not is_over:
            try:
                is_over, busy_since = self._visit(), None
            except _Busy as busy:
                busy_since = busy_since or time.monotonic()
                if time.monotonic() - busy_since > 2 * self.silence:
                    raise Refused(str(busy)) from None
                say(f"{busy}; trying again for a while, in case that is a former process of this one")
                time.sleep(self.silence / 3)
            except Refused:
                raise
            except BaseException:
                self.keep()
                raise

    def keep(self) -> None:
        """Write a checkpoint."""
        self._saved = time.monotonic()
        self.save(self.state())
        if self.journal is not None:
            self.journal.clear()

    def state(self) -> dict[str, Any]:
        """Return what it takes to go on in another process; what was sent is counted."""
        own = {"releases": self.client.ledger.releases.clone(), "virtual": self._virtual, "tests_released": self.tests_released}
        return self.client.state() | own

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; a cycle that had begun begins again, with fresh noise."""
        self.client.load_state(state)
        self._virtual, self.tests_released = float(state["virtual"]), int(state["tests_released"])

    # ---- joining

    def _visit(self) -> bool:
        """Take part over one link; returns whether the training is over."""
        with self.connect() as link:
            try:
                try:
                    self._take_part(link)
                except LinkClosed:
                    self._hear_last_words(link)
                    raise
            except _Stopped:
                self.keep()
                with suppress(LinkClosed):
                    self._say_bye(link)
                return True
            except LinkClosed as lost:
                say(f"client {self.client.number} has lost the server ({lost}), and seeks it anew")
        time.sleep(min(0.2, self.silence / 8))
        return False

    def _hear_last_words(self, link: Link) -> None:
        """Where a message could not be sent any more, the server may have said why."""
        with suppress(LinkClosed, TimeoutError):
            while True:
                self._mind(link.receive(0.2))

    def _take_part(self, link: Link) -> None:
        self._heard = time.monotonic()
        own = {"party": self.client.number, "incarnation": self.incarnation, "width": self.client.bottom.outputs}
        link.send(Frame("hello", own | {"pending": self.client.cycle if self._asks else -1} | asdict(self.terms)))
        welcome = self._await(link, "welcome")
        is_over = threading.Event()
        threading.Thread(target=self._beat, args=(link, is_over), daemon=True).start()
        try:
            self._note_welcome(welcome)
            if welcome.fields.get("fill"):
                self._renew_noise()
                first = self.client.first()
                self._upload(link, first, 0.0, 0.0)
                self._virtual = self.delays.one_way(first.size)
            link.send(Frame("ready"))
            self._note_start(self._await(link, "start"))
            while True:
                self._cycle(link)
        finally:
            is_over.set()

    def _note_welcome(self, welcome: Frame) -> None:
        """Check the server's clock, and take over releases that this process cannot remember where its files are gone."""
        if (clock := welcome.fields.get("clock")) != self.terms.clock:
            raise Refused(f"the server's clock is {shown(clock)}, this client's {self.terms.clock}: give both the same --clock")
        own = self.client.ledger.releases
        own.copy_(torch.maximum(own, read_releases(welcome, len(own), "the server")))

    def _note_start(self, start: Frame) -> None:
        self._zero = time.monotonic() - _second(start, "seconds")
        self._go_to(start.fields.get("cycle"))

    def _go_to(self, cycle: Any) -> None:
        """In synchronous training, go to the round that the server is at; none of the earlier noise is used again."""
        if cycle is not None and (type(cycle) is not int or cycle < 0):
            raise FrameError(f"the server is at round {shown(cycle)}, which is none")
        if cycle is not None and cycle != self.client.cycle:
            self.client.go_to(cycle)
            self._asks, self._noted = False, -1
            self._renew_noise()

    def _renew_noise(self) -> None:
        if not self._is_virtual:
            self.client.noise_seed = secrets.randbits(62)

    def _beat(self, link: Link, is_over: threading.Event) -> None:
        while not is_over.wait(self.silence / 4):
            try:
                link.send(Frame("beat"))
            except LinkClosed:
                return

    # ---- a cycle

    def _cycle(self, link: Link) -> None:
        """Select, embed, upload, query and update, once."""
        ahead, message = self.client.ahead(), self.client.begin()
        if message is None:
            say(f"client {self.client.number} has spent its budget, and only looks on")
            self._say_bye(link)
            while True:
                self._await(link, "stop")
        self._asks = True
        start = self._virtual if self._is_virtual else time.monotonic() - self._zero
        arrival = self.delays.arrival(self.client.number, self.client.cycle, start, message.size)
        if ahead is not None:
            earliest = start + self.delays.one_way(ahead.size)
            if not self._is_virtual:
                self._wait(link, earliest)
            self._upload(link, ahead, start, earliest)
            arrival = max(earliest, arrival)
        if not self._is_virtual:
            self._wait(link, arrival)
        self._upload(link, message, start, arrival)
        answer = self._await(link, "signal", self.client.cycle)
        signal = read_signal(answer, len(message.query), self.client.bottom.outputs)
        self.client.finish(signal)
        self._asks = False
        self._go_to(answer.fields.get("next"))
        self._virtual = _second(answer, "start")
        if not self._is_virtual:
            self._travel(link, signal)
        if time.monotonic() - self._saved >= SAVES_EVERY:
            self.keep()

    def _upload(self, link: Link, upload: Upload, start: float, arrival: float) -> None:
        """Send an upload, after its releases are written down; one that is sent again is no further release."""
        if self.journal is not None and len(upload.rows) and (upload.cycle < 0 or upload.cycle != self._noted):
            self.journal.add(upload.rows)
            self._noted = max(self._noted, upload.cycle)
        link.send(upload_frame(upload, start, arrival))

    def _say_bye(self, link: Link) -> None:
        """Take leave, and tell what was released: some of it may not have come."""
        link.send(Frame("bye", {}, {"releases": self.client.ledger.releases}))

    def _travel(self, link: Link, signal: Signal) -> None:
        """Wait as long as the answer's way is to take."""
        own = self.delays.delays
        if own.down or own.bandwidth:
            self._wait(link, time.monotonic() - self._zero + own.down + self.delays.transfer(signal.size))

    # ---- what comes

    def _wait(self, link: Link, until: float) -> None:
        """Let time pass until a second of the training, and answer what is asked meanwhile."""
        while (left := until + self._zero - time.monotonic()) > 0:
            self._hear(link, left)

    def _await(self, link: Link, kind: str, cycle: int | None = None) -> Frame:
        """Return the next frame of a kind (and a cycle), and answer what is asked meanwhile."""
        while True:
            frame = self._hear(link, self.silence)
            if frame is not None and frame.kind == kind and (cycle is None or frame.fields.get("cycle") == cycle):
                return frame

    def _hear(self, link: Link, timeout: float) -> Frame | None:
        """Receive a frame and deal with it if it asks for something; others are returned.

        Raises:
            LinkClosed: if the server has not been heard for too long.
        """
        try:
            frame = link.receive(min(timeout, self.silence))
        except TimeoutError:
            if time.monotonic() - self._heard > self.silence:
                raise LinkClosed(f"nothing came for {self.silence:g} s") from None
            return None
        self._heard = time.monotonic()
        self._mind(frame)
        if frame.kind == "refresh":
            self._refresh(link, read_rows(frame, "rows", len(self.client.block), "the server"))
            return None
        if frame.kind == "evaluate":
            self.tests_released += 1
            link.send(Frame("evaluated", {"number": frame.fields.get("number")}, {"embeddings": self._embed_tests()}))
            return None
        return frame

    def _mind(self, frame: Frame) -> None:
        """Raise what ends this client's part, if the server says so."""
        if frame.kind == "stop":
            raise _Stopped
        if frame.kind == "refuse":
            kind = _Busy if frame.fields.get("may_retry") else Refused
            raise kind(f"the server refuses client {self.client.number}: {shown(frame.fields.get('reason'), 500)}")

    def _refresh(self, link: Link, rows: np.ndarray) -> None:
        """Send new embeddings of records that the server asks for, or none where their budget is spent."""
        fresh = self.client.refresh(rows)
        if fresh is None:
            link.send(Frame("refreshed", {"cycle": -1}, {"embeddings": torch.empty(0, self.client.bottom.outputs)}))
            return
        if self.journal is not None:
            self.journal.add(fresh.rows)
        link.send(Frame("refreshed", {"cycle": -1}, upload_frame(fresh, 0.0, 0.0).tensors))

    @torch.no_grad()
    def _embed_tests(self) -> Tensor:
        """Embed the test records; where training records are protected so are these, but in virtual time, which has the simulator's numbers."""
        own, parts = self.client, []
        for part in self.tests.split(CHUNK):
            self._tested += 1
            noise = None if self._is_virtual else own.protection.noise(own.noise_seed, "noise", own.number, "tests", self._tested)
            parts.append(own.bottom(part, noise))
        return torch.cat(parts)


def _second(frame: Frame, name: str) -> float:
    """Read a second of the training out of a frame."""
    value: Any = frame.fields.get(name)
    if not is_second(value):
        raise FrameError(f"the server sent a {frame.kind!r} whose {name} are {shown(value)}")
    return float(value)
