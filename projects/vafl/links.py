"""Connections between the server and its clients, which carry frames in order, each way on its own.

`tcp` is a plain socket: one port of the server must be reachable. `gloo` is a process group of two for each client, agreed upon through a
`TCPStore` at the server's port: both sides must reach each other at ports of the system's choice.

A thread of each link reads what arrives, `QUEUE` messages ahead: a peer's end shows at once, a timeout of `receive` harms nothing, and a
sender blocks, at most `stall` seconds, as soon as so many messages lie unread (and, with tcp, the system's own buffers are full).

Nothing is encrypted. Gloo itself ends a process that gets a message longer than it made room for: use it between machines that trust each
other, else tcp in a tunnel. `joining.py` makes the links.
"""

from __future__ import annotations

import atexit
import contextlib
import queue
import socket
import struct
import threading
import weakref
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import Tensor

from projects.vafl.frames import LIMIT, Frame, FrameError, decode, encode

Transport = Literal["gloo", "tcp"]
QUEUE = 8
"""So many messages wait unread on a link before its sender does."""
STALL = 60.0
"""Seconds that a peer may leave a message untaken before the link counts as broken."""

_HEAD = 8192  # bytes of the first part of a message, its length included; what fits into it goes in one piece
_LENGTH = struct.Struct("<Q")
_FOREVER = timedelta(days=365)
_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()


class LinkClosed(ConnectionError):  # noqa: N818
    """The peer has closed the link or is gone."""


class Link:
    """A connection that carries frames both ways; one thread may receive while others send.

    Args:
        peer: name of the other side for messages.
        stall: seconds after which a message that the peer does not take breaks the link.
        limit: bytes of the largest message taken.

    Attributes:
        bytes_sent: so far, with the eight bytes of length that each message has.
        bytes_received: likewise, of messages read from the wire.
    """

    def __init__(self, peer: str, stall: float = STALL, limit: int = LIMIT) -> None:
        self.peer, self.stall, self.limit = peer, stall, limit
        self.bytes_sent = self.bytes_received = 0
        self._arrived: queue.SimpleQueue[memoryview | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(QUEUE)
        self._sending = threading.Lock()
        self._end = ""  # why nothing more comes or goes
        self._reader = threading.Thread(target=self._keep_reading, name=f"link {peer}", daemon=True)
        self._reader.start()
        close_at_exit(self)

    def send(self, frame: Frame) -> None:
        """Send a frame; returns once the system or the peer's reader has it.

        Raises:
            FrameError: if the frame cannot be written; the link stays as it was.
            LinkClosed: if the link is broken, or breaks because the peer takes nothing for `stall` seconds.
        """
        self.send_message(encode(frame))

    def receive(self, timeout: float) -> Frame:
        """Return the next frame.

        Args:
            timeout: seconds to wait for it; afterwards the link is as good as before.

        Raises:
            TimeoutError: if nothing came in time.
            LinkClosed: if nothing will come any more; frames that came before are handed out first.
            FrameError: if what came is no frame; the next one may be.
        """
        return decode(self.receive_message(timeout))

    def send_message(self, message: bytearray) -> None:
        """Send bytes, at least one; see `send`."""
        with self._sending:
            if self._end:
                raise LinkClosed(self._end)
            try:
                self._write(message, self.stall)
            except (OSError, RuntimeError) as error:
                stalled = isinstance(error, BlockingIOError) or "Timed out" in str(error)
                reason = f"{self.peer} took nothing for {self.stall:g} s" if stalled else f"lost the connection to {self.peer} ({first_line(error)})"
                self._break(reason)
                raise LinkClosed(reason) from error
            self.bytes_sent += _LENGTH.size + len(message)

    def receive_message(self, timeout: float) -> memoryview:
        """Return the next message's bytes; see `receive`."""
        try:
            message = self._arrived.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            raise TimeoutError(f"nothing came from {self.peer} in {timeout:g} s") from None
        if message is None:
            self._arrived.put(None)
            raise LinkClosed(self._end)
        self._room.release()
        return message

    def close(self) -> None:
        """Close the link, after what was sent; the peer reads that it was meant. A second call does nothing."""
        reason = f"the link to {self.peer} was closed by this side"
        if not self._end and self._sending.acquire(timeout=1.0):  # not while another thread's message is stuck
            self._end = reason
            with contextlib.suppress(OSError, RuntimeError):
                self._write(bytearray(), 1.0)
            self._sending.release()
        self._break(reason)
        self._reader.join(timeout=2.0)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _keep_reading(self) -> None:
        try:
            while True:
                if not self._end:  # else what the system still holds of the peer's last messages
                    self._room.acquire()
                message = self._read()
                if not len(message):
                    self._break(f"{self.peer} has closed the link")
                    break
                self.bytes_received += _LENGTH.size + len(message)
                self._arrived.put(message)
        except (OSError, RuntimeError, ValueError) as error:
            self._break(f"lost the connection to {self.peer} ({first_line(error)})")
        finally:
            self._arrived.put(None)
            self._release()

    def _break(self, reason: str) -> None:
        self._end = self._end or reason
        self._shut()
        self._room.release()  # the reader may wait for room

    def _buffer(self, length: int) -> Tensor:
        """Make room for a message; the system gives memory only as it is filled."""
        if length > self.limit:
            raise FrameError(f"a message of {length} bytes is announced: at most {self.limit}")
        return torch.empty(length, dtype=torch.uint8)

    def _read(self) -> memoryview:
        """Block until a message is there and return it."""
        raise NotImplementedError

    def _write(self, message: bytearray, patience: float) -> None:
        """Send a message, its length first; give up when nothing of it goes for `patience` seconds."""
        raise NotImplementedError

    def _shut(self) -> None:
        """Let `_read` and `_write` in other threads fail now."""
        raise NotImplementedError

    def _release(self) -> None:
        """Give back what the system lent, at the end of the reader."""
        raise NotImplementedError


class TcpLink(Link):
    """A link over a connected socket; see `Link` for the other arguments."""

    def __init__(self, connection: socket.socket, peer: str, stall: float = STALL, limit: int = LIMIT) -> None:
        self._socket = connection
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(peer, stall, limit)

    def _read(self) -> memoryview:
        head = bytearray(_LENGTH.size)
        self._fill(memoryview(head))
        message = self._buffer(_LENGTH.unpack(head)[0]).numpy().data
        self._fill(message)
        return message

    def _fill(self, view: memoryview) -> None:
        while len(view):
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionError("it ended without a farewell")
            view = view[count:]

    def _write(self, message: bytearray, patience: float) -> None:
        whole, part = int(patience), int(patience % 1 * 1e6)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", whole, part))  # reads, in the other thread, stay without
        self._socket.sendall(_LENGTH.pack(len(message)) + message[: _HEAD - _LENGTH.size])
        if len(message) > _HEAD - _LENGTH.size:
            self._socket.sendall(memoryview(message)[_HEAD - _LENGTH.size :])

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def _release(self) -> None:
        self._socket.close()


class GlooLink(Link):
    """A link over a process group of two; see `Link` for the other arguments.

    Args:
        group: `ProcessGroupGloo` of both sides' own (its stubs lack send and recv).
        other: rank of the peer in it.
    """

    def __init__(self, group: Any, other: int, peer: str, stall: float = STALL, limit: int = LIMIT) -> None:
        self._group, self._other = group, other
        self._first = torch.empty(_HEAD, dtype=torch.uint8)
        super().__init__(peer, stall, limit)

    def _read(self) -> memoryview:
        self._lent().recv([self._first], self._other, 0).wait(_FOREVER)  # a shorter message fits too
        length = _LENGTH.unpack_from(self._first.numpy().data)[0]
        message = self._buffer(length)
        begun = min(length, _HEAD - _LENGTH.size)
        message[:begun] = self._first[_LENGTH.size : _LENGTH.size + begun]
        if begun < length:
            self._lent().recv([message[begun:]], self._other, 0).wait(_FOREVER)
        return message.numpy().data

    def _write(self, message: bytearray, patience: float) -> None:
        wait = timedelta(seconds=patience)
        first = bytearray(_LENGTH.pack(len(message)) + message[: _HEAD - _LENGTH.size])
        self._lent().send([torch.frombuffer(first, dtype=torch.uint8)], self._other, 0).wait(wait)
        if len(message) > _HEAD - _LENGTH.size:
            self._lent().send([torch.frombuffer(message, dtype=torch.uint8, offset=_HEAD - _LENGTH.size)], self._other, 0).wait(wait)

    def _shut(self) -> None:
        with contextlib.suppress(RuntimeError):  # gloo closes a pair when a wait on it runs out of time, and in no other way that wakes its waiters
            self._lent().recv([torch.empty(1, dtype=torch.uint8)], self._other, 1).wait(timedelta(milliseconds=1))

    def _release(self) -> None:
        self._group = None

    def _lent(self) -> Any:
        group = self._group
        if group is None:
            raise RuntimeError("it has ended")
        return group


def close_at_exit(opened: Any) -> None:
    """Close a link or a listener before the interpreter ends: a thread that waits inside gloo at that moment would abort the process."""
    _OPEN.add(opened)


@atexit.register
def _close_all() -> None:
    for opened in list(_OPEN):
        opened.close()


def first_line(error: Exception) -> str:
    """Shorten gloo's messages, which begin with a file and end with a traceback."""
    text = str(error).strip().split("\n")[0]
    text = text.split("] ", 1)[-1] if text.startswith("[") else text
    return text.split(". This is typically")[0]
