"""The server's connections: who is there, what comes in, and what goes out, without ever waiting for anyone."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass

from projects.vafl.frames import LIMIT, Frame, FrameError
from projects.vafl.joining import Listener
from projects.vafl.links import Link, LinkClosed

INBOX = 64
"""Messages that wait for the server; then links are no longer read, and their senders wait."""
OUTBOX = 16
"""Messages that wait for a client; one that leaves more untaken counts as gone."""
STRANGER_LIMIT = 1 << 16
"""Bytes of a message at most, until the server has taken the client in."""


class Peer:
    """One connected client: a thread reads what it sends into the hub's inbox, and another writes to it.

    Attributes:
        number: of the client, once the server has taken it in; else None.
        incarnation: drawn by the client's process when it started.
        is_open: whether the link still stands.
    """

    def __init__(self, link: Link, inbox: queue.Queue[Arrival], silence: float) -> None:
        self.link, self.incarnation, self.is_open = link, 0, True
        self.number: int | None = None
        self._is_leaving = False
        link.limit = STRANGER_LIMIT
        self._silence, self._inbox = silence, inbox
        self._outbox: queue.Queue[Frame | None] = queue.Queue(OUTBOX)
        self._threads = [threading.Thread(target=task, name=f"{task.__name__} {link.peer}", daemon=True) for task in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    def take_in(self, number: int, incarnation: int, limit: int = LIMIT) -> None:
        """Let it be a client, which may send messages of so many bytes."""
        self.number, self.incarnation, self.link.limit = number, incarnation, limit

    def send(self, frame: Frame) -> None:
        """Let a frame be written, or lose the client where too many wait already; returns at once."""
        self._put(frame)

    def end(self) -> None:
        """Close the link after what waits to be written; returns at once."""
        self._put(None)

    def _put(self, frame: Frame | None) -> None:
        try:
            self._outbox.put_nowait(frame)
        except queue.Full:
            if not self._is_leaving:
                self._is_leaving = True
                threading.Thread(target=self.link.close, daemon=True).start()  # it may wait for the message that is stuck

    def wait(self, seconds: float) -> None:
        """Wait until all is written and the link is closed, but not longer than so many seconds."""
        self._threads[1].join(seconds)

    def _read(self) -> None:
        try:
            while True:
                frame = self.link.receive(self._silence)
                if frame.kind != "beat":
                    self._inbox.put(Arrival(self, frame, time.monotonic()))
        except TimeoutError:
            reason = f"nothing came for {self._silence:g} s"
        except (LinkClosed, FrameError) as error:
            reason = str(error)
        self.is_open = False
        self._inbox.put(Arrival(self, None, time.monotonic(), reason))
        self.link.close()
        self.end()  # wakes the writer

    def _write(self) -> None:
        try:
            while (frame := self._outbox.get()) is not None:
                self.link.send(frame)
        except LinkClosed:
            return  # the reader tells
        self.link.close()


@dataclass(frozen=True)
class Arrival:
    """What has come.

    Attributes:
        peer: from whom.
        frame: the message; None where the link is at its end.
        time: when it came, by the monotonic clock.
        reason: why the link is at its end.
    """

    peer: Peer
    frame: Frame | None
    time: float
    reason: str = ""


class Hub:
    """All connections of the server.

    Args:
        listener: where clients come.
        silence: seconds without any message after which a client is lost; clients send a beat several times as often.

    Attributes:
        peers: those who are there, by their numbers.
    """

    def __init__(self, listener: Listener, silence: float) -> None:
        self.peers: dict[int, Peer] = {}
        self._listener, self._silence = listener, silence
        self._inbox: queue.Queue[Arrival] = queue.Queue(INBOX)
        self._is_closed = False
        self._links: list[Peer] = []
        self._old_traffic = (0, 0)
        self._keeper = threading.Thread(target=self._keep, name="hub", daemon=True)
        self._keeper.start()

    def next(self, timeout: float) -> Arrival | None:
        """Return what has come, or None if nothing has within `timeout` seconds."""
        try:
            return self._inbox.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None

    def send(self, number: int, frame: Frame) -> None:
        """Send a frame to a client, if it is there."""
        if (peer := self.peers.get(number)) is not None:
            peer.send(frame)

    def close(self, seconds: float = 2.0) -> None:
        """Close all links after what waits to be written, and wait for that so many seconds at most."""
        self._is_closed = True
        self._keeper.join()
        self._listener.close()
        deadline = time.monotonic() + seconds
        for peer in self._links:
            peer.end()
        for peer in self._links:
            peer.wait(max(0.0, deadline - time.monotonic()))

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes that have come, and that were sent, over all links so far."""
        sums, links = self._old_traffic, list(self._links)
        return sums[0] + sum(peer.link.bytes_received for peer in links), sums[1] + sum(peer.link.bytes_sent for peer in links)

    def _keep(self) -> None:
        """Take newcomers in, and let the clients know now and then that the server is there."""
        beaten = time.monotonic()
        while not self._is_closed:
            if (link := self._listener.accept(min(0.2, self._silence / 8))) is not None:
                self._forget_closed()
                self._links.append(Peer(link, self._inbox, self._silence))
            if time.monotonic() - beaten >= self._silence / 4:
                beaten = time.monotonic()
                for peer in list(self.peers.values()):
                    peer.send(Frame("beat"))

    def _forget_closed(self) -> None:
        for peer in [peer for peer in self._links if not peer.is_open]:
            up, down = self._old_traffic
            self._old_traffic = up + peer.link.bytes_received, down + peer.link.bytes_sent
            self._links.remove(peer)
