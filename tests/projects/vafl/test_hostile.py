"""Clients and servers that do not keep to the protocol: the others go on unharmed."""

import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers.federation import CLASSES, setting

from projects.vafl.client import Upload
from projects.vafl.examining import Examination
from projects.vafl.frames import Frame, FrameError
from projects.vafl.heads import ConcatHead
from projects.vafl.hub import Arrival
from projects.vafl.joining import connect
from projects.vafl.links import LinkClosed
from projects.vafl.partaking import Refused
from projects.vafl.processes import client_process
from projects.vafl.serving import DEFERRED, Plan
from projects.vafl.settings import Delays, Protocol
from projects.vafl.terms import upload_frame

PLAN = Plan(None, 10**6, 0.05, silence=0.6, patience=10.0)
STEADY = Delays("constant", scale=0.02, floor=0.0)
NONE = np.empty(0, np.int64)


class Attacker:
    """A client of a test's own making, which beats as an honest one does."""

    def __init__(self, played, number):
        self.number, self.link, self.width = number, connect("tcp", "127.0.0.1", played.port, 5), played.model.head.widths[number]
        own = {"party": number, "incarnation": 7, "width": self.width, "pending": -1}
        self.link.send(Frame("hello", own | asdict(played.terms)))
        self.until("welcome")
        threading.Thread(target=self._beat, daemon=True).start()
        self.upload(np.arange(60), torch.randn(60, self.width), -1, NONE)
        self.link.send(Frame("ready"))
        self.until("start")

    def _beat(self):
        with suppress(LinkClosed):
            while True:
                self.link.send(Frame("beat"))
                time.sleep(0.1)

    def upload(self, rows, embeddings, cycle, query):
        self.link.send(upload_frame(Upload(self.number, cycle, rows, embeddings, query), 0.0, 0.0))

    def until(self, *kinds):
        while (frame := self.link.receive(10)).kind not in kinds:
            if frame.kind == "evaluate":
                answer = torch.zeros(30, self.width)
                self.link.send(Frame("evaluated", {"number": frame.fields["number"]}, {"embeddings": answer}))
        return frame


def finish(played, server, *clients):
    played.process.plan = replace(played.process.plan, updates=played.updates() + 5)
    process = server.outcome()
    for client in clients:
        client.outcome()
    return process


@pytest.mark.parametrize("size", [3e38, 9e5], ids=["refused at once", "refused by the step"])
def test_huge_embeddings_of_one_harm_nobody_else(federation, size):
    played = federation(setting(delays=STEADY), PLAN)
    head = ConcatHead(played.model.head.widths, CLASSES)
    if size < 1e6:
        with torch.no_grad():
            next(head.parameters())[:, 6:] = 1e33  # what the third client sends becomes infinite, if it is large
    server, clients = played.serve(head=head), [played.join(0), played.join(1)]
    attacker = threading.Thread(target=lambda: seen.append(attack(played, size)), daemon=True)
    seen = []
    attacker.start()
    attacker.join(10)
    assert "embeddings" in seen[0].fields["reason"]
    assert "as large as" in seen[0].fields["reason"]
    before = played.updates()
    played.wait(lambda: played.updates() > before + 5)
    process = finish(played, server, *clients)
    assert all(bool(part.isfinite().all()) for part in process.server.head.parameters())
    assert float(process.server.table.abs().max()) < 1e4
    for number in (0, 1):
        assert all(bool(part.isfinite().all()) for part in played.clients[number].client.bottom.parameters())
        sent = torch.from_numpy(process.server.releases[number])
        assert bool((played.clients[number].client.ledger.releases >= sent).all())


def attack(played, size):
    played.wait(lambda: played.process is not None)
    attacker = Attacker(played, 2)
    attacker.upload(np.arange(6), torch.full((6, attacker.width), size), 0, np.arange(6))
    return attacker.until("refuse", "signal")


def test_one_who_does_not_answer_what_it_is_asked_counts_as_lost(federation):
    played = federation(setting(Protocol(uploads="batch", max_age=4), STEADY), PLAN)
    server, clients = played.serve(), [played.join(0), played.join(1)]
    attackers = []
    threading.Thread(target=lambda: attackers.append(Attacker(played, 2)), daemon=True).start()
    played.wait(lambda: attackers and 2 not in played.process.hub.peers)
    before = played.updates()
    played.wait(lambda: played.updates() > before + 20, 3.0)
    process = finish(played, server, *clients)
    assert process.lost == 1


def test_uploads_beyond_a_few_in_the_middle_of_a_step_cost_their_sender_its_place(federation):
    played = federation(setting(delays=STEADY), PLAN)
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 3)
    played.stop = SystemExit()
    with pytest.raises(SystemExit):
        server.outcome()
    process = played.process
    process._later.clear()
    peer = type("Peer", (), {"number": 1, "end": lambda self: None})()
    process.hub.peers[1] = peer
    for _ in range(DEFERRED + 1):
        process._take_or_defer(Arrival(peer, Frame("upload"), 0.0))
    assert len(process._later) == DEFERRED
    assert 1 not in process.hub.peers
    del clients


def test_an_answer_is_kept_though_its_client_has_gone(federation):
    played = federation(setting(delays=STEADY), PLAN)
    server, _ = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 3)
    played.stop = SystemExit()
    with pytest.raises(SystemExit):
        server.outcome()
    process = played.process
    waiting = next(iter(process._pool.values()), None) or process_waiting(process)
    process.hub.peers.pop(waiting.number, None)
    process._step([process._pool.setdefault(waiting.number, waiting)])
    kept = process._answered[waiting.number]
    assert (kept.incarnation, kept.cycle) == (waiting.incarnation, waiting.upload.cycle)


def process_waiting(process):
    from projects.vafl.plans import Waiting

    rows = np.arange(6)
    return Waiting(process.time, 1, process.time, Upload(1, 9, rows, torch.zeros(6, 3), rows), 77)


def test_virtual_time_ends_when_one_stays_away(federation):
    plan = Plan(None, 10**6, 5.0, "virtual", silence=0.4, patience=0.8)
    played = federation(setting(delays=STEADY), plan)
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 10)
    played.clients[1].connect = lambda: threading.Event().wait(60)
    played.process.hub.peers[1].link._shut()
    with pytest.raises(ConnectionError, match=r"client 1, whom virtual time waits for, is gone, and none has come back within 0\.8 s"):
        server.outcome(8)
    del clients


def test_the_clocks_must_agree(federation):
    played = federation(setting(delays=STEADY), PLAN)
    server = played.serve()
    played.wait(lambda: played.process is not None)
    with pytest.raises(Refused, match="its clock is virtual, the server's wall: give both the same --clock"):
        client_process(played.member(1, terms=replace(played.terms, clock="virtual"))).run()
    process = client_process(played.member(0))
    former = process.client.noise_seed
    with pytest.raises(Refused, match="the server's clock is virtual, this client's wall"):
        process._note_welcome(Frame("welcome", {"clock": "virtual"}, {"releases": torch.zeros(60, dtype=torch.int64)}))
    assert process.client.noise_seed == former
    played.stop = SystemExit()
    with pytest.raises(SystemExit):
        server.outcome()


def test_a_server_that_asks_for_a_record_twice_gets_nothing(federation):
    played = federation(setting(delays=STEADY), PLAN)
    process = client_process(played.member(0))
    asked = Frame("refresh", {}, {"rows": torch.tensor([1, 1], dtype=torch.int32)})
    link = type("Link", (), {"receive": lambda *_: asked})()
    with pytest.raises(FrameError, match="the server sent a message whose rows are not different records from 0 to 59"):
        process._hear(link, 1.0)
    assert process.client.ledger.most == 0


@pytest.mark.parametrize("fields", [{}, {"seconds": "x"}, {"seconds": True}, {"seconds": 0.0, "cycle": -1}], ids=["none", "text", "truth", "cycle"])
def test_a_start_that_is_none_is_named(federation, fields):
    process = client_process(federation(setting(delays=STEADY), PLAN).member(0))
    with pytest.raises(FrameError, match="the server"):
        process._note_start(Frame("start", fields))


def test_the_farewell_tells_what_was_sent_and_a_finished_server_ends_at_once(federation):
    played = federation(setting(delays=STEADY), replace(PLAN, updates=20))
    server, clients = played.serve(), played.join_all()
    process = server.outcome()
    for client in clients:
        client.outcome()
    assert not process.attendance.silent
    for number, client in played.clients.items():
        assert torch.equal(process.attendance.counted[number], client.client.ledger.releases)
        assert client.tests_released >= 2
    curve, begun = process.recorder.curve, time.monotonic()
    again = played.serve().outcome()
    assert time.monotonic() - begun < 4
    assert again.server.updates == 20
    assert again.recorder.curve == curve


def test_evaluations_are_left_out_while_one_is_judged():
    examination = Examination(None, torch.zeros(4, dtype=torch.int64), [3])
    assert examination.due(0.5) == 0.0
    examination.ask(0.0, [0])
    examination.skip(1.7)
    assert examination.due(0.5) == 2.0
    assert examination.moment == 0.0
    with pytest.raises(FrameError, match="not finite"):
        examination.note(0, Frame("evaluated", {"number": 1}, {"embeddings": torch.full((4, 3), 1e300, dtype=torch.float64)}))
