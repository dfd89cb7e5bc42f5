import os
import queue
import signal
import socket
import struct
import threading
import time
from contextlib import ExitStack, suppress

import pytest
import torch
from helpers.linked import echo, serve
from helpers.processes import start

from projects.vafl import frames, joining
from projects.vafl.frames import VERSION, Frame, FrameError
from projects.vafl.joining import LinkRefused, Listener, connect
from projects.vafl.links import QUEUE, LinkClosed

TRANSPORTS = pytest.mark.parametrize("transport", ["gloo", "tcp"])
MEGABYTE = Frame("upload", {}, {"h": torch.zeros(250_000)})


class Pairs:
    """Links of a listener's side and of a client's, all in this process."""

    def __init__(self, stack, transport, **settings):
        self.stack, self.transport, self.settings = stack, transport, settings
        self.listener = stack.enter_context(Listener(transport, **settings))

    def make(self):
        client = self.stack.enter_context(connect(self.transport, "127.0.0.1", self.listener.port, 20, **self.settings))
        server = self.listener.accept(20)
        assert server is not None
        return self.stack.enter_context(server), client


@pytest.fixture
def stack():
    with ExitStack() as opened:
        yield opened


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def reads(link, said, seconds=5.0):
    """Tell whether a link ends with these words within some seconds."""
    begun = time.monotonic()
    with pytest.raises(LinkClosed, match=said):
        link.receive(seconds)
    return time.monotonic() - begun < seconds


def flood(link):
    for _ in range(100):
        link.send(MEGABYTE)


def drained(connection):
    """Read what a connection says until its other side has left it."""
    with suppress(ConnectionResetError):
        while connection.recv(4096):
            pass
    return True


@TRANSPORTS
def test_frames_arrive_whole_and_in_order_both_ways(stack, transport):
    server, client = Pairs(stack, transport).make()
    sizes = [0, 1, 2, 2000, 2047, 2048, 2049, 5000, 2_000_000]  # 8 MB at most; about what goes in one piece, and more
    for sender, receiver in ((client, server), (server, client)):
        for size in sizes:
            value = torch.randn(size)
            sender.send(Frame("upload", {"size": size}, {"h": value}))
            found = receiver.receive(10)
            assert found.fields == {"size": size}
            assert torch.equal(found.tensors["h"], value)
        assert sender.bytes_sent == receiver.bytes_received > 4 * sum(sizes)


@TRANSPORTS
def test_both_sides_may_send_much_at_once(stack, transport):
    def send(link):
        for number in range(15):
            link.send(Frame("upload", {"n": number}, MEGABYTE.tensors))

    pair = Pairs(stack, transport).make()
    senders = [threading.Thread(target=send, args=(link,)) for link in pair]
    for sender in senders:
        sender.start()
    for link in pair:
        assert [link.receive(10).fields["n"] for _ in range(15)] == list(range(15))
    for sender in senders:
        sender.join()


@TRANSPORTS
def test_a_timeout_leaves_the_link_as_it_was(stack, transport):
    server, client = Pairs(stack, transport).make()
    for link in (server, client):
        with pytest.raises(TimeoutError, match=r"nothing came from .*127\.0\.0\.1.* in 0\.05 s"):
            link.receive(0.05)
    client.send(Frame("beat"))
    server.send(Frame("stop"))
    assert (server.receive(5).kind, client.receive(5).kind) == ("beat", "stop")


@TRANSPORTS
def test_a_sender_waits_for_a_reader_that_lags(stack, transport):
    server, client = Pairs(stack, transport).make()
    sent = queue.SimpleQueue()
    sender = threading.Thread(target=lambda: [(client.send(MEGABYTE), sent.put(n)) for n in range(QUEUE + 24)])
    sender.start()
    time.sleep(0.2)
    waiting = sent.qsize()
    assert QUEUE <= waiting < QUEUE + 24 if transport == "tcp" else waiting == QUEUE  # the system holds some more of a tcp stream
    for _ in range(QUEUE + 24):
        assert server.receive(5).kind == "upload"
    sender.join(5)
    assert sent.qsize() == QUEUE + 24


@TRANSPORTS
def test_a_reader_that_stalls_breaks_the_senders_link(stack, transport):
    server, client = Pairs(stack, transport, stall=0.15).make()
    with pytest.raises(LinkClosed, match=r"took nothing for 0\.15 s"):
        flood(client)
    assert reads(client, "took nothing|lost the connection")  # whichever of its threads was first
    for _ in range(QUEUE):  # what had arrived is there
        assert server.receive(5).kind == "upload"


@TRANSPORTS
def test_what_was_sent_before_the_close_arrives_and_then_the_end(stack, transport):
    server, client = Pairs(stack, transport).make()
    server.send(MEGABYTE)
    server.send(Frame("bye"))
    server.close()
    assert [client.receive(5).kind, client.receive(5).kind] == ["upload", "bye"]
    assert reads(client, "has closed the link")
    assert reads(client, "has closed the link")  # it stays so
    assert reads(server, "closed by this side")
    for link in (client, server):
        with pytest.raises(LinkClosed):
            link.send(Frame("beat"))


@TRANSPORTS
def test_bytes_that_are_no_frame_harm_only_themselves(stack, transport):
    server, client = Pairs(stack, transport).make()
    client.send_message(bytearray(b"\x80\x04cos\nsystem\n"))
    client.send(Frame("beat"))
    with pytest.raises(FrameError, match="not a message of this project"):
        server.receive(5)
    assert server.receive(5).kind == "beat"
    with pytest.raises(FrameError, match="unknown kind"):
        client.send(Frame("gossip"))
    client.send(Frame("bye"))
    assert server.receive(5).kind == "bye"


@TRANSPORTS
def test_a_killed_client_is_noticed_and_another_joins_in_its_place(stack, transport):
    pairs = Pairs(stack, transport)
    process = start(echo, transport, pairs.listener.port)
    first = stack.enter_context(pairs.listener.accept(60))
    first.send(MEGABYTE)
    assert torch.equal(first.receive(10).tensors["h"], MEGABYTE.tensors["h"])
    os.kill(process.pid, signal.SIGKILL)
    assert reads(first, "lost the connection to")
    with pytest.raises(LinkClosed):
        first.send(Frame("beat"))
    process.join(10)
    server, client = pairs.make()
    client.send(Frame("hello"))
    assert server.receive(5).kind == "hello"


@TRANSPORTS
def test_a_client_that_hangs_can_be_left(stack, transport):
    pairs = Pairs(stack, transport)
    process = start(echo, transport, pairs.listener.port)
    link = pairs.listener.accept(60)
    threads = threading.active_count()
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            link.receive(0.1)
        begun = time.monotonic()
        link.close()
        assert time.monotonic() - begun < 3
        assert reads(link, "closed by this side")
        deadline = time.monotonic() + 3
        while threading.active_count() >= threads and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() < threads  # its reader has ended
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)


@TRANSPORTS
def test_a_server_may_start_after_its_client_and_its_death_is_noticed(transport):
    port = free_port()
    process = start(serve, transport, port)
    with connect(transport, "127.0.0.1", port, 60) as link:
        os.kill(process.pid, signal.SIGKILL)
        assert reads(link, "lost the connection to the server at 127.0.0.1")
    process.join(10)


@TRANSPORTS
def test_strangers_do_not_keep_clients_away(stack, transport):
    pairs = Pairs(stack, transport)
    nonsense = [b"", b"GET / HTTP/1.0\r\n\r\n", os.urandom(300), struct.pack("<Q", 1 << 62), struct.pack("<Q", 105) + bytes(105)]
    for message in nonsense:
        stranger = stack.enter_context(socket.create_connection(("127.0.0.1", pairs.listener.port)))
        stranger.sendall(message)  # and it stays, silent
    begun = time.monotonic()
    server, client = pairs.make()
    assert time.monotonic() - begun < 3
    client.send(Frame("hello"))
    assert server.receive(5).kind == "hello"
    assert pairs.listener.accept(0) is None


def test_a_stranger_cannot_make_the_server_take_large_messages(stack):
    pairs = Pairs(stack, "tcp")
    stranger = stack.enter_context(socket.create_connection(("127.0.0.1", pairs.listener.port)))
    stranger.settimeout(5)
    stranger.sendall(struct.pack("<Q", 1 << 20))
    assert drained(stranger)
    server, client = pairs.make()
    client._write(bytearray(frames.LIMIT // 512), 5)  # a member may send megabytes
    assert len(server.receive_message(5)) == frames.LIMIT // 512
    client._socket.sendall(struct.pack("<Q", frames.LIMIT + 1))
    assert reads(server, "is announced: at most")


@TRANSPORTS
def test_who_knows_the_secret_joins(stack, transport):
    server, client = Pairs(stack, transport, secret="an open sesame").make()
    client.send(Frame("hello"))
    assert server.receive(5).kind == "hello"


@TRANSPORTS
@pytest.mark.parametrize(
    ("asked", "known", "said"),
    [("a", "b", "secret is another one"), ("a", None, "asks for a secret"), (None, "b", "does not know the secret")],
    ids=["wrong", "absent", "server without"],
)
def test_a_secret_that_does_not_fit_is_refused_at_once(stack, transport, asked, known, said):
    listener = stack.enter_context(Listener(transport, secret=asked))
    begun = time.monotonic()
    with pytest.raises(LinkRefused, match=said):
        connect(transport, "127.0.0.1", listener.port, 20, secret=known)
    assert time.monotonic() - begun < 5
    joined = listener.accept(0.05)
    assert joined is None or (asked is None and reads(joined, "closed the link"))


def said_within(seconds, capsys):
    """Return what other threads print to stderr, as soon as they do."""
    end = time.monotonic() + seconds
    while not (said := capsys.readouterr().err) and time.monotonic() < end:
        time.sleep(0.02)
    return said


def test_another_release_is_refused_by_either_side(stack, capsys):
    port = Pairs(stack, "tcp").listener.port
    old = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
    assert old.recv(4096)
    answer = struct.pack("<4sHB", b"VAFL", VERSION + 1, 0) + bytes(64)
    old.sendall(struct.pack("<Q", len(answer)) + answer)
    assert old.recv(8 + 33)[8] == 1
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def offer():
        connection, _ = server.accept()
        connection.sendall(struct.pack("<Q4sHB", 39, b"VAFL", VERSION + 1, 0) + bytes(32))
        connection.sendall(struct.pack("<QB", 33, 0) + bytes(32))
        connection.recv(1)

    threading.Thread(target=offer, daemon=True).start()
    with pytest.raises(LinkRefused, match="install the same on both sides"):
        connect("tcp", "127.0.0.1", server.getsockname()[1], 5)
    assert "was refused: the server's release is another one" in said_within(5, capsys)


@TRANSPORTS
def test_a_port_in_use_is_named(stack, transport):
    port = Pairs(stack, transport).listener.port
    with pytest.raises(OSError, match=f"cannot listen at 127.0.0.1:{port} .*another program listens there; choose another port"):
        Listener(transport, port=port)


@TRANSPORTS
def test_a_listener_that_was_closed_gives_its_port_back_and_keeps_its_links(stack, transport):
    pairs = Pairs(stack, transport)
    server, client = pairs.make()
    waiting = stack.enter_context(connect(transport, "127.0.0.1", pairs.listener.port, 5))
    pairs.listener.close()
    assert reads(waiting, "closed the link")
    client.send(Frame("hello"))
    assert server.receive(5).kind == "hello"
    with Listener(transport, port=pairs.listener.port) as again:
        assert again.port == pairs.listener.port


def test_a_client_over_gloo_is_told_that_the_server_speaks_tcp(stack):
    begun = time.monotonic()
    with pytest.raises(LinkRefused, match="speaks tcp: give --transport tcp"):
        connect("gloo", "127.0.0.1", Pairs(stack, "tcp").listener.port, 20)
    assert time.monotonic() - begun < 3


def test_a_caller_that_dawdles_makes_room_for_others_and_the_listener_closes(stack, monkeypatch):
    monkeypatch.setattr(joining, "_CALLERS", 2)
    pairs = Pairs(stack, "tcp")
    for _ in range(2):
        stack.enter_context(socket.create_connection(("127.0.0.1", pairs.listener.port)))
    begun = time.monotonic()
    pairs.make()
    assert time.monotonic() - begun < joining.STRANGER
    pairs.listener.close()


def test_a_client_says_once_that_it_still_seeks(monkeypatch, capsys):
    monkeypatch.setattr(joining, "_SAYS_AFTER", 0.1)
    with pytest.raises(ConnectionError, match=r"tried 0\.5 s"):
        connect("tcp", "127.0.0.1", free_port(), patience=0.5)
    assert capsys.readouterr().err.count("over tcp yet") == 1


@TRANSPORTS
def test_a_server_that_is_not_there_is_named(transport):
    port = free_port()
    with pytest.raises(
        ConnectionError, match=f"no server answers at 127.0.0.1:{port} over {transport}, tried 0.1 s .*both sides use the same transport"
    ):
        connect(transport, "127.0.0.1", port, patience=0.1)


def test_what_cannot_be_is_said():
    with pytest.raises(OSError, match=r"cannot listen at 192\.0\.2\.1:0 .*an address of this machine"):
        Listener("tcp", "192.0.2.1")
    with pytest.raises(ValueError, match="unknown transport 'rpc', expected one of gloo, tcp"):
        connect("rpc", "127.0.0.1", 1)
    with pytest.raises(ValueError, match="empty secret"):
        Listener("tcp", secret="")
