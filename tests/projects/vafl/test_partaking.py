import struct
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.federation import Thread, setting

from projects.vafl.joining import Listener, connect
from projects.vafl.partaking import Journal, Refused
from projects.vafl.processes import client_process
from projects.vafl.serving import Plan
from projects.vafl.settings import Delays, Protection, Protocol

PLAN = Plan(None, 10**6, 0.05, silence=0.8, patience=10.0)
STEADY = Delays("constant", scale=0.02, floor=0.0)


def finish(played, server, *clients):
    """Let the training end in a few steps."""
    played.process.plan = replace(played.process.plan, updates=played.updates() + 5)
    process = server.outcome()
    for client in clients:
        client.outcome()
    return process


# ---- who is refused


@pytest.mark.parametrize(
    ("number", "changes", "said"),
    [
        (1, {"terms": "ids"}, "its ids are other, the server's"),
        (1, {"terms": "lr"}, r"lr is 9.0 there and 0.3 here"),
        (7, {}, "there is no client 7: they are 0 to 2"),
        (1, {"bottom": "wide"}, "its embeddings have 5 entries, the server's head takes 3: give both the same nets"),
    ],
    ids=["ids", "settings", "number", "width"],
)
def test_who_does_not_fit_is_refused_with_the_reason_on_both_sides(federation, capfd, number, changes, said):
    played = federation(setting(delays=STEADY), PLAN)
    server = played.serve()
    played.wait(lambda: played.process is not None)
    made = {
        "ids": replace(played.terms, ids="other"),
        "lr": replace(played.terms, settings=played.terms.settings.replace('"lr": 0.3', '"lr": 9.0')),
    }
    member = played.member(1)
    member = replace(member, number=number)
    if "terms" in changes:
        member = replace(member, terms=made[changes["terms"]])
    if "bottom" in changes:
        from projects.vafl.bottoms import build_bottom

        member = replace(member, bottom=build_bottom("linear", (4,), 5, (), 0, None))
    with pytest.raises(Refused, match=said):
        client_process(member).run()
    clients = played.join_all()
    played.wait(lambda: played.updates() > 5)
    finish(played, server, *clients)
    assert "refused a client" in capfd.readouterr().err


def test_a_second_client_of_one_number_is_refused_and_the_first_goes_on(federation):
    played = federation(setting(delays=STEADY), replace(PLAN, silence=0.3))
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 5)
    with pytest.raises(Refused, match="client 1 is there already: give each its own number"):
        client_process(played.member(1, file=played.folder / "second.ckpt")).run()
    process = finish(played, server, *clients)
    assert process.lost == 0


def test_garbage_harms_nobody(federation):
    played = federation(setting(delays=STEADY), PLAN)
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 5)
    from projects.vafl.frames import Frame

    for nonsense in (Frame("upload"), Frame("hello", {"party": "x"}), Frame("hello", {"party": 1, "incarnation": [1]}), Frame("bye")):
        with connect("tcp", "127.0.0.1", played.port, 5) as link:
            link.send(nonsense)
            with suppress(ConnectionError):
                assert link.receive(5).kind == "refuse"
    with connect("tcp", "127.0.0.1", played.port, 5) as link:
        link._socket.sendall(struct.pack("<Q", 40) + b"x" * 40)
        with pytest.raises(ConnectionError):
            link.receive(5)
    before = played.updates()
    played.wait(lambda: played.updates() > before + 5)
    process = finish(played, server, *clients)
    assert process.lost == 0


def test_a_client_that_diverges_ends_alone_and_is_told_what_to_do(federation):
    played = federation(setting(delays=STEADY), PLAN)
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 10)
    with torch.no_grad():
        next(iter(played.clients[2].client.bottom.parameters())).fill_(float("nan"))
    with pytest.raises(Refused, match=r"client 2 sent embeddings that are not finite: its training has diverged; lower model\.lr"):
        clients[2].outcome()
    before = played.updates()
    played.wait(lambda: played.updates() > before + 10)
    process = finish(played, server, *clients[:2])
    assert process.lost == 1
    assert bool(process.server.table.isfinite().all())


# ---- who is gone and comes back


@pytest.mark.parametrize("transport", ["tcp", "gloo"])
def test_a_link_that_breaks_is_made_anew_and_no_step_is_taken_twice(federation, transport):
    played = federation(setting(delays=STEADY), PLAN, transport)
    server, clients = played.serve(), played.join_all()
    for _ in range(4):
        before = played.clients[1].client.cycle
        played.wait(lambda before=before: played.clients[1].client.cycle > before + 3)
        played.process.hub.peers[1].link._shut()
    before = played.clients[1].client.cycle
    played.wait(lambda: played.clients[1].client.cycle > before + 3)
    process = finish(played, server, *clients)
    assert 1 <= process.lost <= 4
    for number, client in played.clients.items():
        assert abs(client.client.cycle - process.cycles[number]) <= 1
        sent = torch.from_numpy(process.server.releases[number])
        assert bool((client.client.ledger.releases >= sent).all())


def test_an_answer_that_got_lost_is_sent_again_without_a_second_step(federation, monkeypatch):
    """The server's link breaks after the step, before the answer: the client asks again and gets the same answer."""
    played = federation(setting(delays=STEADY), PLAN)
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 10)
    lost, sent = [], []
    framed = played.process._framed

    def lose_one(answer):
        frame = framed(answer)
        sent.append((answer.incarnation, answer.cycle, frame.tensors["gradient"].clone()))
        if not lost and answer.incarnation == played.clients[1].incarnation:
            lost.append(answer.cycle)
            played.process.hub.peers[1].link._shut()
        return frame

    played.process._framed = lose_one
    played.wait(lambda: lost and played.clients[1].client.cycle > lost[0] + 3)
    process = finish(played, server, *clients)
    again = [gradient for incarnation, cycle, gradient in sent if (incarnation, cycle) == (played.clients[1].incarnation, lost[0])]
    assert len(again) == 2
    assert torch.equal(*again)
    assert process.cycles[1] in (played.clients[1].client.cycle, played.clients[1].client.cycle + 1)


def test_a_restarted_client_has_fresh_noise_and_counts_all_that_was_sent(federation, tmp_path):
    chosen = setting(delays=STEADY, protection=Protection(std=0.5, clip=1.0))
    played = federation(chosen, PLAN, clip=1.0)
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.clients[1].client.cycle > 10)
    first = played.clients[1]
    first.journal.clear = lambda: None  # the process is killed before another checkpoint
    first.save = lambda state: None
    first.connect = lambda: threading.Event().wait(60)
    played.process.hub.peers[1].link._shut()
    played.wait(lambda: 1 not in played.process.hub.peers)
    again = played.join(1)
    second = played.clients[1]
    assert second.incarnation != first.incarnation
    assert second.client.noise_seed != first.client.noise_seed
    sent = torch.from_numpy(played.process.server.releases[1].copy())
    assert bool((second.client.ledger.releases >= sent).all())
    assert sent.sum() > 60
    before = played.process.cycles[1]
    played.wait(lambda: played.process.cycles[1] > before + 3)
    finish(played, server, clients[0], clients[2], again)


def test_a_round_that_comes_again_gets_other_noise(federation):
    """A synchronous server that went on from an older checkpoint asks for rounds that were there: noise must not repeat under another net."""
    played = federation(setting(Protocol("sync"), protection=Protection(std=0.5, clip=1.0)), PLAN, clip=1.0)
    member = played.member(0)
    process = client_process(member)
    process.client.begin()
    former = process.client.noise_seed
    process._go_to(0)
    assert process.client.noise_seed == former
    process._go_to(3)
    assert process.client.noise_seed != former
    assert process.client.cycle == 3


def test_a_journal_outlives_its_process_and_ends_with_a_checkpoint(tmp_path):
    journal = Journal(tmp_path / "sent")
    journal.add(np.array([3, 1, 2]))
    journal.add(np.array([3]))
    assert Journal.read(tmp_path / "sent", 8).tolist() == [0, 1, 1, 2, 0, 0, 0, 0]
    with (tmp_path / "sent").open("ab") as file:
        file.write(b"\x01\x02")  # torn
    assert Journal.read(tmp_path / "sent", 8).tolist() == [0, 1, 1, 2, 0, 0, 0, 0]
    journal.clear()
    journal.add(np.array([7]))
    assert Journal.read(tmp_path / "sent", 8).tolist() == [0] * 7 + [1]
    assert Journal.read(tmp_path / "none", 2).tolist() == [0, 0]


def test_a_server_that_is_silent_is_sought_anew(federation):
    played = federation(setting(delays=STEADY), PLAN)
    with Listener("tcp") as listener:
        played.port = listener.port
        process = client_process(played.member(0, patience=0.5, silence=0.3))
        visits = []
        real = process.connect
        process.connect = lambda: visits.append(time.monotonic()) or real()
        thread = Thread(process.run)
        links = [listener.accept(5), listener.accept(5)]
        assert all(links)
        assert visits[1] - visits[0] > 0.25
    for link in links:
        link.close()
    with pytest.raises(ConnectionError, match="no server answers"):
        thread.outcome(10)
