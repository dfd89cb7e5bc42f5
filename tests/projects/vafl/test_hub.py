import time
from contextlib import suppress

import pytest
import torch

from projects.vafl.frames import Frame
from projects.vafl.hub import INBOX, OUTBOX, STRANGER_LIMIT, Hub
from projects.vafl.joining import Listener, connect
from projects.vafl.links import LinkClosed


@pytest.fixture
def hub():
    with Listener("tcp") as listener:
        made = Hub(listener, 0.8)
        made.port = listener.port
        yield made
        made.close(0.2)


def admitted(hub, number=0):
    link = connect("tcp", "127.0.0.1", hub.port, 10)
    link.send(Frame("hello"))
    arrival = hub.next(5)
    arrival.peer.take_in(number, 1)
    hub.peers[number] = arrival.peer
    return link, arrival.peer


def until(hub, condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if (arrival := hub.next(0.05)) is not None and condition(arrival):
            return arrival
    raise AssertionError("it has not come")


def test_messages_come_in_order_and_go_out_in_order(hub):
    link, _ = admitted(hub)
    for number in range(5):
        link.send(Frame("evaluated", {"number": number}))
    assert [hub.next(5).frame.fields["number"] for _ in range(5)] == list(range(5))
    for number in range(5):
        hub.send(0, Frame("evaluate", {"number": number}))
    assert [link.receive(5).fields["number"] for _ in range(5)] == list(range(5))
    up, down = hub.traffic
    assert up > 200
    assert down > 200


def test_one_who_is_silent_is_lost_and_beats_are_a_sign_of_life(hub):
    link, peer = admitted(hub)
    begun = time.monotonic()
    while time.monotonic() < begun + 1.2:
        link.send(Frame("beat"))
        assert hub.next(0.2) is None  # beats are for the hub alone
    lost = until(hub, lambda arrival: arrival.frame is None)
    assert lost.peer is peer
    assert lost.reason == "nothing came for 0.8 s"
    assert time.monotonic() - begun < 2.6


def test_clients_hear_that_the_server_is_there(hub):
    link, _ = admitted(hub)
    assert link.receive(1.0).kind == "beat"


def test_one_who_reads_nothing_is_lost_and_blocks_nobody(hub):
    _, peer = admitted(hub)
    big, begun = Frame("signal", {}, {"gradient": torch.zeros(3_000_000)}), time.monotonic()
    for _ in range(OUTBOX + 20):
        hub.send(0, big)
    assert time.monotonic() - begun < 0.5
    lost = until(hub, lambda arrival: arrival.frame is None)
    assert lost.peer is peer
    assert "closed by this side" in lost.reason


def test_no_more_waits_than_the_inbox_holds(hub):
    link, _ = admitted(hub)
    for _ in range(INBOX):
        link.send(Frame("evaluated", {}, {}))
    time.sleep(0.1)
    assert hub._inbox.qsize() <= INBOX
    for _ in range(INBOX):
        assert hub.next(2) is not None


def test_a_stranger_sends_no_large_message(hub):
    link = connect("tcp", "127.0.0.1", hub.port, 10)
    time.sleep(0.3)
    with suppress(LinkClosed):  # perhaps before it is written
        link.send(Frame("hello", {}, {"large": torch.zeros(STRANGER_LIMIT)}))
    arrival = until(hub, lambda arrival: arrival.frame is None)
    assert "at most" in arrival.reason
    with pytest.raises(LinkClosed):
        link.receive(5)


def test_closed_links_are_forgotten_but_their_bytes_count(hub):
    for _ in range(3):
        link, peer = admitted(hub)
        link.close()
        until(hub, lambda arrival, peer=peer: arrival.frame is None and arrival.peer is peer)
    before = hub.traffic
    admitted(hub)
    deadline = time.monotonic() + 5
    while len(hub._links) != 1 or hub.traffic[0] <= before[0]:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_last_words_go_out_before_a_link_is_closed():
    with Listener("tcp") as listener:
        hub = Hub(listener, 2.0)
        hub.port = listener.port
        link, _ = admitted(hub)
        hub.send(0, Frame("stop"))
        hub.close()
        assert link.receive(2).kind == "stop"
        with pytest.raises(LinkClosed):
            link.receive(2)
