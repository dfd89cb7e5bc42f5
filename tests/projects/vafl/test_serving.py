import time
from dataclasses import replace

import pytest
import torch
from helpers.federation import CLASSES, records, setting
from helpers.federation import model as build

from projects.vafl.recording import Recorder, Trace
from projects.vafl.serving import Plan
from projects.vafl.settings import Delays, Protection, Protocol
from projects.vafl.simulator import Simulator

VIRTUAL = Plan(None, 30, 0.5, "virtual", silence=5.0, patience=10.0)
POISSON = Delays()


def simulated(chosen, plan, clip):
    """Play the same in one process; returns the server, the curve and the trace."""
    net, (train, test) = build(clip=clip), records()
    simulator, recorder, trace = Simulator(net, train.blocks, train.labels, chosen), Recorder(None, CLASSES), Trace(None)

    def watch(event):
        recorder.watch(event)
        trace.watch(event, simulator.server.updates)

    def judge(moment):
        with torch.no_grad():
            recorder.evaluate(moment, simulator.server, net.embed(test.blocks), test.labels, simulator.costs.up, simulator.costs.down)

    simulator.begin()
    judge(0.0)
    number = 1
    while simulator.server.updates < plan.updates:
        simulator.run(number * plan.every, plan.updates, watch)
        judge(simulator.time if simulator.server.updates == plan.updates else number * plan.every)
        number += 1
    return simulator, recorder.curve, trace.rows


CASES = {
    "async": setting(delays=POISSON),
    "t_sync": setting(Protocol("t_sync", wait_for=2), POISSON),
    "sync": setting(Protocol("sync"), POISSON),
    "query_first": setting(Protocol(order="query_first"), POISSON),
    "max_age": setting(Protocol(uploads="batch", max_age=4), POISSON),
    "noise": setting(delays=POISSON, protection=Protection(std=0.3, clip=2.0)),
    "delays": setting(delays=replace(POISSON, up=0.05, down=0.1, bandwidth=4000.0, server=0.02)),
    "half": setting(Protocol(message_bits=16, local_steps=2, uploads="oldest:bytes=400"), POISSON),
}


@pytest.mark.parametrize(("name", "transport"), [(name, "tcp") for name in CASES] + [("async", "gloo"), ("max_age", "gloo")])
def test_virtual_time_gives_the_simulators_numbers(federation, name, transport):
    clip = CASES[name].protection.clip
    simulator, curve, trace = simulated(CASES[name], VIRTUAL, clip)
    played = federation(CASES[name], VIRTUAL, transport, clip=clip)
    server = played.serve()
    clients = played.join_all()
    process = server.outcome()
    for client in clients:
        client.outcome()
    assert process.trace.rows == trace
    assert process.recorder.curve == curve
    assert process.busy == pytest.approx(simulator.costs.busy)
    torch.testing.assert_close(process.server.table, simulator.server.table, rtol=0, atol=0)
    for number, client in played.clients.items():
        for ours, theirs in zip(client.client.bottom.parameters(), simulator.model.bottoms[number].parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


# ---- real seconds


def unreachable():
    raise ConnectionError("no server answers")


QUICK = Plan(None, 120, 0.05, silence=1.0, patience=10.0)
STEADY = Delays("constant", scale=0.02, floor=0.0)


def test_wall_time_serves_everyone_and_evaluates_beside(federation):
    played = federation(setting(), replace(QUICK, updates=300))
    server, clients = played.serve(), played.join_all()
    process = server.outcome()
    for client in clients:
        client.outcome()
    assert process.server.updates == 300
    assert process.lost == 0
    assert min(process.cycles) > 30
    assert sum(process.cycles) == 300
    assert process.recorder.curve[0]["seconds"] == 0.0
    assert process.recorder.curve[0]["accuracy"] < 0.5
    assert process.recorder.curve[-1]["accuracy"] > 0.8
    assert [row["updates"] for row in process.recorder.curve] == sorted(row["updates"] for row in process.recorder.curve)
    for number, client in played.clients.items():  # each side has counted the same
        assert torch.equal(client.client.ledger.releases >= torch.from_numpy(process.server.releases[number]), torch.ones(60, dtype=torch.bool))


def test_an_evaluation_that_takes_long_keeps_nobody(federation, monkeypatch):
    judge = Recorder.judge

    def slowly(self, *args):
        time.sleep(0.5)
        return judge(self, *args)

    monkeypatch.setattr(Recorder, "judge", slowly)
    played = federation(setting(delays=STEADY), replace(QUICK, updates=None, seconds=1.2, every=0.6))
    server, _ = played.serve(), played.join_all()
    process = server.outcome()
    assert process.longest_gap < 0.25
    assert len(process.recorder.curve) == 3


@pytest.mark.parametrize("algorithm", ["t_sync", "sync"])
def test_a_client_that_is_gone_is_not_waited_for_and_comes_back_to_the_present_round(federation, algorithm):
    played = federation(setting(Protocol(algorithm), STEADY), replace(QUICK, updates=10**6))
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 20)
    played.clients[1].connect = unreachable
    played.process.hub.peers[1].link._socket.shutdown(2)  # as a broken line does
    played.wait(lambda: 1 not in played.process.hub.peers)
    before = played.updates()
    played.wait(lambda: played.updates() > before + 10)
    assert 1 not in played.process.hub.peers
    again = played.join(1)
    cycles = played.process.cycles[1]
    played.wait(lambda: played.process.cycles[1] > cycles + 5)
    if algorithm == "sync":
        assert all(abs(client.client.cycle - played.updates()) <= 1 for number, client in played.clients.items())
        queries = {tuple(waiting.upload.query) for waiting in list(played.process._pool.values())}
        assert len(queries) <= 1
    played.process.plan = replace(played.process.plan, updates=played.updates() + 5)
    process = server.outcome()
    for client in (clients[0], clients[2], again):
        client.outcome()
    with pytest.raises(ConnectionError, match="no server answers"):
        clients[1].outcome()
    assert process.lost == 1


def test_all_budgets_spent_end_the_training(federation):
    protection = Protection(std=12.0, clip=1.0, epsilon=1.0)
    played = federation(setting(Protocol(uploads="batch"), protection=protection), replace(QUICK, updates=10**6), clip=1.0)
    server, clients = played.serve(), played.join_all()
    process = server.outcome()
    for client in clients:
        client.outcome()
    budget = played.clients[0].client.budget
    assert budget is not None
    assert all(client.client.ledger.most == budget for client in played.clients.values())
    assert process.server.releases.max() == budget
    assert process.lost == 0


def test_a_server_that_is_stopped_goes_on_with_the_same_clients(federation):
    played = federation(setting(delays=STEADY), replace(QUICK, updates=10**6))
    server, clients = played.serve(), played.join_all()
    played.wait(lambda: played.updates() > 40)
    played.stop = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        server.outcome()
    stopped = played.process
    states = [client.client.cycle for client in played.clients.values()]
    assert all(client.is_alive() for client in clients)
    again = played.serve(head=build().head, updates=stopped.server.updates + 60)
    process = again.outcome()
    for client in clients:
        client.outcome()
    assert process.server.updates == stopped.server.updates + 60
    curve = process.recorder.curve
    assert curve[: len(stopped.recorder.curve)] == stopped.recorder.curve
    assert curve[-1]["seconds"] > stopped.time
    assert curve[-1]["bytes_up"] > stopped.recorder.curve[-1]["bytes_up"]
    assert sum(process.cycles) == process.server.updates
    for number, before in enumerate(states):
        assert played.clients[number].client.cycle > before
        assert abs(played.clients[number].client.cycle - process.cycles[number]) <= 1  # each answer was given and taken once


def test_virtual_time_goes_on_where_it_was_stopped(federation):
    chosen = CASES["t_sync"]
    _, curve, trace = simulated(chosen, VIRTUAL, None)
    played = federation(chosen, replace(VIRTUAL, updates=12))
    first, clients = played.serve(), played.join_all()
    first.outcome()
    for client in clients:
        client.outcome()
    second, clients = played.serve(updates=30), played.join_all()
    process = second.outcome()
    for client in clients:
        client.outcome()
    assert process.trace.rows == trace
    assert {row["updates"]: row["accuracy"] for row in process.recorder.curve}[30] == curve[-1]["accuracy"]
