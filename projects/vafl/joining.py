"""How links come about: the server listens, clients connect, and both greet each other before the link is handed out.

The greeting settles versions and, where there is one, the shared secret: each side shows by an HMAC over both sides' random numbers that it
knows it. That is authentication of joining only: what follows is neither encrypted nor signed. Over gloo the greeting comes after the
process group, so that only tcp keeps strangers away from everything but the greeting.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import hmac
import ipaddress
import os
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import get_args

from torch import distributed as dist

from projects.vafl.frames import LIMIT, MAGIC, VERSION
from projects.vafl.links import STALL, GlooLink, Link, TcpLink, Transport, close_at_exit, first_line
from shared.messages import say

GREETING = 10.0
"""Seconds for each answer of the greeting that opens a link."""
STRANGER = 2.0
"""Seconds that a caller has to show what it is."""

_POLL = 0.02  # seconds between looks for newcomers
_SAYS_AFTER = 5.0  # seconds after which a client says that it is still seeking
_PEEK = 0.3  # seconds in which a server that speaks tcp shows that it does
_CALLERS = 64  # greetings under way at once
_OFFER = struct.Struct("<4sHB32s")  # magic, version, is a secret asked for, nonce
_ANSWER = struct.Struct("<4sHB32s32s")  # magic, version, is a secret known, nonce, proof
_VERDICT = struct.Struct("<B32s")  # place in _VERDICTS, proof
_NONE = bytes(32)
_VERDICTS = (
    "",
    f"the server's release is another one than this client's (messages of version {VERSION}): install the same on both sides",
    "the server asks for a secret: give this client the server's",
    "this client's secret is another one than the server's",
)


class LinkRefused(ConnectionError):  # noqa: N818
    """The server is there and does not take this client; trying again does not help."""


class Listener:
    """The server's side: takes clients in the background, each in a thread of its own, until it is closed.

    Args:
        transport: `gloo` or `tcp`, as the clients'.
        host: address of this machine to listen at.
        port: of it; 0 chooses a free one, see the attribute.
        secret: that clients have to know; None takes everyone who can reach the port.
        stall: see `Link`.

    Attributes:
        port: that it listens at.

    Raises:
        OSError: if it cannot listen there.
        ValueError: if the transport is unknown or the secret is empty.
    """

    def __init__(self, transport: Transport, host: str = "127.0.0.1", port: int = 0, secret: str | None = None, stall: float = STALL) -> None:
        _check(transport, secret)
        self._secret, self._stall = secret, stall
        self._closed = threading.Event()
        self._ready: queue.SimpleQueue[Link] = queue.SimpleQueue()
        self._slots = threading.BoundedSemaphore(_CALLERS)
        self._greeted: dict[int, Link] = {}  # whose greetings are under way, the oldest first
        entrance = _listen(host, port)
        self.port: int = entrance.getsockname()[1]
        calls = self._tcp_calls(entrance) if transport == "tcp" else self._gloo_calls(entrance)
        self._thread = threading.Thread(target=self._take, args=(calls,), name=f"listener {self.port}", daemon=True)
        self._thread.start()
        close_at_exit(self)

    def accept(self, timeout: float) -> Link | None:
        """Return the next client's link, or None if none has come within `timeout` seconds."""
        try:
            return self._ready.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            return None

    def close(self) -> None:
        """Stop listening; links that were handed out stay, others are closed."""
        self._closed.set()
        self._thread.join()
        self._drop()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _take(self, calls: Iterator[Callable[[], Link]]) -> None:
        for call in calls:
            while not self._slots.acquire(timeout=_POLL):
                if self._closed.is_set():
                    return
                for link in list(self._greeted.values())[:1]:  # who comes takes the place of who dawdles
                    link.close()
            threading.Thread(target=self._greet, args=(call,), daemon=True).start()

    def _greet(self, call: Callable[[], Link]) -> None:
        link = None
        try:
            link = self._greeted[threading.get_ident()] = call()
            _greet_client(link, self._secret)
            self._ready.put(link)
        except (OSError, RuntimeError, ValueError) as error:  # a stranger, or a client that went away
            if isinstance(error, LinkRefused):
                say(str(error))
            if link:
                link.close()
        finally:
            self._greeted.pop(threading.get_ident(), None)
            self._slots.release()
        if self._closed.is_set():
            self._drop()

    def _drop(self) -> None:
        while link := self.accept(0):
            link.close()

    def _tcp_calls(self, entrance: socket.socket) -> Iterator[Callable[[], Link]]:
        with entrance:
            entrance.settimeout(_POLL)
            while not self._closed.is_set():
                try:
                    connection, address = entrance.accept()
                except TimeoutError:
                    continue
                except OSError:  # the caller hung up, or too many files are open
                    self._closed.wait(_POLL)
                    continue
                yield partial(TcpLink, connection, f"{address[0]}:{address[1]}", self._stall, _ANSWER.size)

    def _gloo_calls(self, entrance: socket.socket) -> Iterator[Callable[[], Link]]:
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(entrance.getsockname()[0], entrance.getsockname()[0])
        wait = timedelta(seconds=GREETING)
        held = dist.TCPStore(host, self.port, is_master=True, wait_for_workers=False, timeout=wait, master_listen_fd=entrance.detach())
        view, taken = _store(host, self.port, GREETING), 0  # not shared with other threads, whose waiting would block it
        while held and not self._closed.wait(_POLL):  # the port closes with the last mention of it
            joined = view.add("joined", 0)
            for ticket in range(taken + 1, joined + 1):
                yield partial(_take_ticket, host, self.port, ticket, self._stall)
            taken = joined


def connect(transport: Transport, host: str, port: int, patience: float = 60.0, secret: str | None = None, stall: float = STALL) -> Link:
    """Return a client's link to the server, which may start later than the client.

    Args:
        transport: `gloo` or `tcp`, as the server's.
        host: the server's address.
        port: it listens at.
        patience: seconds to try again while no server answers.
        secret: the server's, where it asks for one.
        stall: see `Link`.

    Raises:
        LinkRefused: if the server answers and does not take this client.
        ConnectionError: if no server answers in time.
        ValueError: if the transport is unknown or the secret is empty.
    """
    _check(transport, secret)
    begun, is_said = time.monotonic(), False
    while True:
        left = begun + patience - time.monotonic()
        timeout = min(GREETING, max(left, 1.0))
        try:
            link = _dial(transport, host, port, timeout, stall)
            _greet_server(link, secret, timeout)
        except LinkRefused:
            raise
        except (OSError, RuntimeError) as error:
            if left <= 0:
                mend = "start it, or check its address and port, the firewall, and that both sides use the same transport"
                raise ConnectionError(
                    f"no server answers at {host}:{port} over {transport}, tried {patience:g} s ({first_line(error)}): {mend}"
                ) from error
            if not is_said and time.monotonic() - begun >= _SAYS_AFTER:
                is_said = True
                say(f"no server answers at {host}:{port} over {transport} yet ({first_line(error)}); trying for {left:.0f} s more")
            time.sleep(min(5 * _POLL, left))
        else:
            return link


def _check(transport: str, secret: str | None) -> None:
    if transport not in get_args(Transport):
        raise ValueError(f"unknown transport {transport!r}, expected one of {', '.join(get_args(Transport))}")
    if secret == "":
        raise ValueError("an empty secret: give one, or none at all")


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=_CALLERS)
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        mend = "give an address of this machine and a port that you may use"
        if taken:
            mend = "another program listens there; choose another port, or 0 for a free one"
        raise OSError(f"cannot listen at {host}:{port} ({error.strerror}): {mend}") from error


def _dial(transport: Transport, host: str, port: int, timeout: float, stall: float) -> Link:
    connection = socket.create_connection((host, port), timeout=timeout)
    own, server = connection.getsockname()[0], connection.getpeername()[0]
    if transport == "tcp":
        return TcpLink(connection, f"the server at {host}:{port}", stall)
    _check_speech(connection, f"{host}:{port}")  # a store's own attempts would fill the terminal
    store = _store(server, port, timeout)
    ticket = store.add("joined", 1)
    store.set(f"at/{ticket}", f"{own} {server}")
    return GlooLink(_pair(store, ticket, 1, own, timeout), 0, f"the server at {host}:{port}", stall)


def _check_speech(connection: socket.socket, where: str) -> None:
    """Refuse a server that speaks first, as one over tcp does and a store does not; closes the connection."""
    with connection:
        connection.settimeout(_PEEK)
        heard = b""
        with contextlib.suppress(OSError):
            heard = connection.recv(8 + len(MAGIC))
    if heard[8:] == MAGIC:
        raise LinkRefused(f"the server at {where} speaks tcp: give --transport tcp")


def _take_ticket(host: str, port: int, ticket: int, stall: float) -> Link:
    """Make the server's side of the link that a client has taken a ticket for, at the address by which the client knows this machine."""
    store = _store(host, port, GREETING)
    client, own = (str(ipaddress.ip_address(part)) for part in store.get(f"at/{ticket}").decode().split())
    return GlooLink(_pair(store, ticket, 0, own, GREETING), 1, f"{client} (ticket {ticket})", stall, _ANSWER.size)


def _store(host: str, port: int, timeout: float) -> dist.TCPStore:
    return dist.TCPStore(host, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def _pair(store: dist.TCPStore, ticket: int, rank: int, address: str, timeout: float) -> dist.ProcessGroupGloo:
    options = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._timeout, options._threads = timedelta(seconds=timeout), 1
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=address)]
    return dist.ProcessGroupGloo(dist.PrefixStore(f"link/{ticket}", store), rank, 2, options)


def _greet_client(link: Link, secret: str | None) -> None:
    """Let a client show what it is, before any large message of it is taken."""
    nonce = os.urandom(32)
    link.send_message(bytearray(_OFFER.pack(MAGIC, VERSION, secret is not None, nonce)))
    magic, version, knows, other, proof = _hear(link, _ANSWER, STRANGER)
    if magic != MAGIC:
        raise ConnectionError(f"{link.peer} is no client")
    verdict = 1 if version != VERSION else 0
    if not verdict and secret is not None:
        verdict = 2 if not knows else 0 if hmac.compare_digest(proof, _proof(secret, b"client", nonce, other)) else 3
    link.limit = LIMIT
    link.send_message(bytearray(_VERDICT.pack(verdict, _NONE if verdict else _proof(secret, b"server", nonce, other))))
    if verdict:
        raise LinkRefused(f"a client at {link.peer} was refused: {_VERDICTS[verdict]}")


def _greet_server(link: Link, secret: str | None, timeout: float) -> None:
    try:
        try:
            magic, version, asked, nonce = _hear(link, _OFFER, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}, as from one over gloo: give both the same --transport") from None
        if magic != MAGIC:
            raise ConnectionError(f"{link.peer} is no server of this project")
        own = os.urandom(32)
        link.send_message(bytearray(_ANSWER.pack(MAGIC, VERSION, secret is not None, own, _proof(secret, b"client", nonce, own))))
        verdict, proof = _hear(link, _VERDICT, timeout)
        verdict = 1 if version != VERSION else verdict
        if verdict:
            raise LinkRefused(f"{link.peer} refused this client: {_VERDICTS[verdict % len(_VERDICTS)]}")
        if secret is not None and not (asked and hmac.compare_digest(proof, _proof(secret, b"server", nonce, own))):
            raise LinkRefused(f"{link.peer} does not know the secret that this client has: start it with the same, or leave it out on both sides")
    except OSError:
        link.close()
        raise


def _hear(link: Link, form: struct.Struct, timeout: float) -> tuple:
    message = link.receive_message(timeout)
    if len(message) != form.size:
        raise ConnectionError(f"{link.peer} does not greet as this project's sides do")
    return form.unpack(message)


def _proof(secret: str | None, side: bytes, server: bytes, client: bytes) -> bytes:
    """Return the HMAC-SHA256 of both random numbers, zeros without a secret; `side` keeps a side's own proof from being sent back to it."""
    return _NONE if secret is None else hmac.digest(secret.encode(), side + server + client, hashlib.sha256)
