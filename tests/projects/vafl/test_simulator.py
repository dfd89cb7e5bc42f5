"""The federation in simulated time against the paper's algorithms, the centralised model, and itself after a stop."""

import copy
import heapq

import numpy as np
import pytest
import torch
from helpers.vafl_reference import FEATURES, Reference, drawn, played, selections, simulator
from torch.nn import functional as F

from projects.vafl.delays import DelaySource
from projects.vafl.ledger import releases_within
from projects.vafl.settings import Delays
from projects.vafl.uploads import Passes

INFINITY = float("inf")


def same(one, other, **tolerance):
    for mine, theirs in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, **tolerance)


# ---- the algorithms


@pytest.mark.parametrize(
    ("net", "protocol"),
    [
        ("linear", {"uploads": "batch", "initial": "zeros"}),
        ("linear", {"uploads": "extra:count=5"}),
        ("mlp", {"uploads": "extra:fraction=0.2", "sampling": "shared"}),
        ("mlp", {"uploads": "all"}),
        ("linear", {"uploads": "batch", "order": "query_first", "initial": "zeros"}),
        ("mlp", {"uploads": "extra:count=5", "order": "query_first"}),
        ("linear", {"uploads": "all", "order": "query_first"}),
        ("mlp", {"uploads": "batch", "algorithm": "t_sync"}),
        ("linear", {"uploads": "extra:count=5", "algorithm": "t_sync", "wait_for": 3}),
        ("mlp", {"uploads": "extra:count=5", "algorithm": "t_sync", "order": "query_first"}),
        ("linear", {"uploads": "batch", "algorithm": "sync"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_every_event_is_the_one_of_the_paper(net, protocol):
    ours = simulator(net, l2=0.01, lr=0.3, server_lr=0.1, **protocol)
    own = {name: protocol[name] for name in ("order", "initial") if name in protocol}
    theirs = Reference(ours.model, *drawn(), selections(ours), 0.3, 0.1, 0.01, **own)
    events = played(ours, 60)
    for event in events:
        theirs.step(event.clients)
    same(ours.model, theirs.model, atol=1e-5, rtol=1e-5)
    ages = np.concatenate(theirs.used)
    assert ours.server.mean_age == pytest.approx(ages.mean())
    assert ours.server.oldest == ages.max()
    assert ours.server.ages.tolist() == np.histogram(ages, [0, *(2**power for power in range(24))])[0].tolist()
    groups, used = [len(event.clients) for event in events], iter(theirs.used)
    assert [event.age for event in events] == pytest.approx([max(np.mean(next(used)) for _ in range(size)) for size in groups])
    if own.get("order") != "query_first":  # what waits to be sent there is not yet at the server here
        kept = np.array([[theirs.age[m, n] for n in range(40)] for m in range(3)])
        assert (ours.server.updates - ours.server.stamps == kept).all()


@pytest.mark.parametrize("step_rule", ["constant", "decay:offset=7"])
def test_synchronous_training_is_that_of_one_model_with_all_features(step_rule):
    ours = simulator("mlp", algorithm="sync", uploads="batch", lr=0.3, l2=0.02, step_rule=step_rule)
    blocks, labels = drawn()
    whole, batches = copy.deepcopy(ours.model), Passes(40, 4, 3, "batch", "shared")
    losses = []
    for number in range(50):
        eta = 0.3 * (7 / (number + 7) if step_rule != "constant" else 1)
        rows = batches.part(number)
        loss = F.cross_entropy(whole([block[rows] for block in blocks]), labels[rows])
        penalty = sum(parameter.square().sum() for parameter in whole.bottoms.parameters()) * 0.02 / 2
        gradients = torch.autograd.grad(loss + penalty, list(whole.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(whole.parameters(), gradients, strict=True):
                parameter -= eta * gradient
        losses.append(loss.item())
    events = played(ours, 50)
    same(ours.model, whole, atol=1e-5, rtol=1e-5)
    assert [event.loss for event in events] == pytest.approx(losses, abs=1e-5)
    assert ours.server.oldest == 0


def test_a_client_takes_its_local_steps_with_one_answer():
    ours = simulator("mlp", lr=0.1, local_steps=3, uploads="batch")
    bottom = copy.deepcopy(ours.model.bottoms[1])
    upload = ours.clients[1].begin()
    signal = ours.server.step([upload])[0]
    ours.clients[1].finish(signal)
    for _ in range(3):
        gradients = torch.autograd.grad(bottom(drawn()[0][1][upload.query]), list(bottom.parameters()), signal.gradient)
        with torch.no_grad():
            for parameter, gradient in zip(bottom.parameters(), gradients, strict=True):
                parameter -= 0.1 * gradient
    same(ours.model.bottoms[1], bottom)


# ---- time


def arrivals(source, clients, until):
    """Return (time, client) of all messages of clients that never wait."""
    found = []
    for client in range(clients):
        moment, cycle = 0.0, 0
        while (moment := moment + source.cycle(client, cycle)) <= until:
            found.append((moment, client))
            cycle += 1
    return sorted(found)


def test_asynchronous_clients_never_wait():
    ours = simulator()
    events = played(ours, INFINITY, 30.0)
    assert [(event.time, *event.clients) for event in events] == arrivals(ours.delays, 3, 30.0)
    for client in range(3):
        last = max(event.time for event in events if event.clients == (client,))
        assert ours.costs.busy[client] == pytest.approx(last)  # busy at every moment until its last answer


@pytest.mark.parametrize("wait_for", [1, 2, 3])
def test_the_server_waits_for_exactly_t_different_clients(wait_for):
    events = played(simulator(algorithm="t_sync", wait_for=wait_for), 40)
    for event in events:
        assert len(set(event.clients)) == len(event.clients) == wait_for
        assert event.time == max(event.arrivals)
    times = [event.time for event in events]
    assert times == sorted(times)


def test_a_synchronous_round_takes_as_long_as_its_slowest_client():
    ours = simulator(algorithm="sync", uploads="batch", delays={"slow": ["0:4"], "server": 0.5, "down": 0.25})
    events = played(ours, 30)
    rounds = [max(ours.delays.cycle(client, number) for client in range(3)) for number in range(30)]
    assert np.diff([0.0, *(event.time for event in events)]) == pytest.approx([rounds[0] + 0.5, *(0.25 + longest + 0.5 for longest in rounds[1:])])


def test_two_of_three_are_played_as_by_a_queue_of_arrivals():
    ours = simulator(algorithm="t_sync", wait_for=2, delays={"compute": "exponential"})
    events, source = played(ours, 40), ours.delays
    queue, cycles = [(source.cycle(client, 0), client) for client in range(3)], [0, 0, 0]
    heapq.heapify(queue)
    for event in events:
        group = [heapq.heappop(queue) for _ in range(2)]
        assert event.time == group[-1][0]
        assert event.clients == tuple(sorted(client for _, client in group))
        for _, client in group:
            cycles[client] += 1
            heapq.heappush(queue, (event.time + source.cycle(client, cycles[client]), client))


def test_messages_take_their_time_on_the_line():
    ours = simulator(uploads="batch", initial="zeros", delays={"compute": "none", "bandwidth": 100.0, "up": 0.5, "down": 0.25})
    events = played(ours, 6)
    up, down = 4 * (3 * 4 + 4), 4 * 3 * 4  # four embeddings of three numbers and their rows; four gradients
    period = up / 100 + 0.5 + down / 100 + 0.25
    assert [event.time for event in events] == pytest.approx([up / 100 + 0.5] * 3 + [up / 100 + 0.5 + period] * 3)
    assert (ours.costs.up, ours.costs.down) == (6 * up, 6 * down)


def test_a_busy_server_takes_one_message_after_another():
    ours = simulator(delays={"compute": "constant", "server": 0.4, "floor": 0.0})
    events = played(ours, 60)
    assert (np.diff([event.time for event in events]) >= 0.4 - 1e-12).all()
    assert all(event.time >= event.arrivals[0] + 0.4 - 1e-12 for event in events)


def test_a_run_stops_at_its_second_and_not_before():
    whole, cut = simulator(), simulator()
    events, parts = played(whole, INFINITY, 20.0), []
    for moment in np.arange(1, 41) / 2:
        cut.run(moment, INFINITY, parts.append)
        assert all(event.time <= moment for event in parts)
    assert parts == events


def test_a_recorded_run_is_played_again(tmp_path):
    events = played(simulator(delays={"compute": "exponential"}), 80)
    rows = [f"{event.clients[0]},{event.arrivals[0] - event.starts[0]:.6f}" for event in events]
    (tmp_path / "trace.csv").write_text("\n".join(["client,seconds", *rows]))
    again = played(simulator(delays={"compute": f"trace:{tmp_path / 'trace.csv'}"}), 70)  # those on their way at the end are in no trace
    assert [event.clients for event in again] == [event.clients for event in events[:70]]
    assert [event.time for event in again] == pytest.approx([event.time for event in events[:70]], abs=1e-4)


def test_who_is_away_begins_again_when_back():
    ours = simulator(delays={"absent": ["0:2-9", "1:3-9"]})
    events = played(ours, INFINITY, 30.0)
    assert not [event for event in events if event.clients == (0,) and 2 < event.time < 9]
    assert [event for event in events if event.clients == (2,) and 2 < event.time < 9]
    together = played(simulator(algorithm="sync", uploads="batch", delays={"absent": ["0:2-9"]}), INFINITY, 30.0)
    assert not [event for event in together if 2 < event.arrivals[0] < 9]
    assert [event for event in together if event.time > 9]


# ---- ages


@pytest.mark.parametrize("max_age", [1, 4, 15])
@pytest.mark.parametrize("protocol", [{}, {"algorithm": "t_sync"}, {"order": "query_first"}], ids=["async", "t_sync", "query_first"])
def test_no_embedding_that_is_used_is_older_than_allowed(max_age, protocol):
    ours = simulator(uploads="batch", max_age=max_age, initial="zeros", **protocol)
    played(ours, 80)
    assert ours.server.oldest == max_age if max_age < 15 else ours.server.oldest <= max_age
    assert ours.costs.asked > 0
    grown = simulator(uploads="batch", initial="zeros", **protocol)
    played(grown, 80)
    assert grown.server.oldest > 15
    assert grown.costs.asked == 0


def test_what_the_server_asks_for_is_counted_and_waited_for():
    ours = simulator(uploads="batch", initial="zeros", max_age=1, delays={"compute": "constant", "up": 0.1, "down": 0.2, "bandwidth": 1000.0})
    events = played(ours, 40)
    sent, row = 40 * 4, 3 * 4 + 4
    assert ours.costs.up == (sent + ours.costs.asked) * row
    assert ours.costs.down == sent * 3 * 4 + ours.costs.asked * 4
    assert ours.server.releases.sum() == sent + ours.costs.asked
    assert sum(client.ledger.releases.sum() for client in ours.clients) == sent + ours.costs.asked + sum(len(c.begin().rows) for c in ours.clients)
    late = [event.time - event.arrivals[0] for event in events]
    assert all(wait == 0 or wait >= 0.3 for wait in late[:3])
    assert max(late) > 0.3


# ---- releases and budgets


@pytest.mark.parametrize("initial", ["all", "zeros"])
def test_every_embedding_that_leaves_a_client_is_counted(initial):
    ours = simulator(initial=initial, uploads="extra:count=5")
    expected = torch.full((3, 40), int(initial == "all"))
    rows = selections(ours)
    played(ours, 50)
    for client, part in enumerate(ours.clients):
        for cycle in range(part.cycle):
            expected[client, np.concatenate(rows[client](cycle))] += 1
    assert ours.server.releases.tolist() == expected.tolist()
    for client, part in enumerate(ours.clients):
        on_the_way = np.concatenate(rows[client](part.cycle))
        assert part.ledger.releases[on_the_way].tolist() == (expected[client, on_the_way] + 1).tolist()


def test_a_client_whose_budget_is_spent_uploads_no_more():
    protection = {"std": 2.0, "clip": 1.0, "epsilon": 3.0}
    ours = simulator(protection=protection, uploads="extra:count=10")
    most = releases_within(3.0, 1e-5, 1.0, 2.0)
    played(ours, INFINITY, 1e6)
    assert ours.is_over
    assert ours.time < 1e4
    assert 1 < most < 10
    assert [client.ledger.most for client in ours.clients] == [most] * 3
    assert ours.server.releases.max() == most
    together = simulator(protection=protection, algorithm="sync", uploads="batch")
    played(together, INFINITY, 1e6)
    assert together.is_over
    assert together.server.updates == most * (40 // 4)


# ---- half as many bits


def test_sixteen_bits_halve_the_bytes_of_numbers_and_keep_learning():
    whole, half = (simulator(initial="zeros", uploads="batch", message_bits=bits) for bits in (32, 16))
    events, others = played(whole, 150), played(half, 150)
    assert half.costs.down * 2 == whole.costs.down
    assert half.costs.up == 150 * 4 * (3 * 2 + 4)
    assert [event.time for event in events] == [event.time for event in others]
    for some in (events, others):
        assert np.mean([event.loss for event in some[-30:]]) < 0.8 * np.mean([event.loss for event in some[:30]])
    assert torch.equal(half.server.table, half.server.table.half().float())


# ---- exact repetition


PLAYS = {
    "async": {"uploads": "extra:count=5"},
    "t_sync": {"algorithm": "t_sync", "uploads": "batch"},
    "sync": {"algorithm": "sync", "uploads": "batch"},
    "query_first": {"order": "query_first", "uploads": "extra:count=5"},
    "oldest": {"uploads": "oldest:bytes=160"},
    "bounded": {"uploads": "batch", "max_age": 3, "local_steps": 2},
    "noise": {"net": "mlp", "protection": {"std": 0.3, "hidden": [0.1]}},
    "budget": {"protection": {"std": 2.0, "clip": 1.0, "epsilon": 3.0}, "uploads": "extra:count=5"},
    "budget_and_ages": {"protection": {"std": 2.0, "clip": 1.0, "epsilon": 3.0}, "uploads": "extra:count=5", "max_age": 4, "initial": "zeros"},
    "begun_before": {"protection": {"std": 2.0, "clip": 1.0, "epsilon": 3.0}, "uploads": "batch", "max_age": 2, "delays": {"compute": "exponential"}},
}


def alike(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    return one == other


@pytest.mark.parametrize("name", PLAYS)
def test_a_stopped_run_ends_as_an_unbroken_one(name):
    setting = {"delays": {"server": 0.01}, **PLAYS[name]}
    whole = simulator(**setting)
    events = played(whole, INFINITY, 12.0)
    repeated, part = [], simulator(**setting)
    for moment in (0.0, 0.9, 1.7, 2.5, 3.3, 3.4, 4.2, 5.0, 7.0, 12.0):
        part.run(moment, INFINITY, repeated.append)
        state, part = copy.deepcopy(part.state()), simulator(**setting)
        part.load_state(state)
    assert repeated == events
    assert alike(part.state(), whole.state())


def test_the_seed_decides_on_everything():
    one, same_seed, other = (played(simulator(protection={"std": 0.1}, seed=seed), 40) for seed in (3, 3, 4))
    assert one == same_seed
    assert one != other


# ---- a case that was measured on a prototype


@pytest.fixture(scope="module")
def digits():
    from projects.vafl.data import VerticalRecords

    data = VerticalRecords()
    data.setup()
    return data


def accuracy(federation, data):
    with torch.no_grad():
        return (federation.model(data.test.blocks).argmax(1) == data.test.labels).double().mean().item()


def first_time(federation, data, level, seconds):
    for moment in range(2, seconds + 1, 2):
        federation.run(moment)
        if accuracy(federation, data) >= level:
            return moment
    return INFINITY


def test_extra_uploads_make_asynchronous_training_of_digits_sooner_than_synchronous(digits):
    own = {"blocks": digits.train.blocks, "labels": digits.train.labels, "batch": 14, "lr": 2.0, "l2": 1e-3, "seed": 0}
    soon = first_time(simulator(**own), digits, 0.9, 40)
    late = first_time(simulator(**own, algorithm="sync", uploads="batch"), digits, 0.9, 40)
    assert soon < 40
    assert soon * 1.5 <= late
    assert soon < first_time(simulator(**own, uploads="batch"), digits, 0.9, 40)


def test_delays_are_those_of_the_source_whatever_the_method():
    source = DelaySource(Delays(), len(FEATURES), 3)
    for protocol in ({}, {"algorithm": "t_sync"}, {"algorithm": "sync", "uploads": "batch"}, {"order": "query_first"}):
        cycles = [0] * len(FEATURES)
        for event in played(simulator(**protocol), 30):
            for client, start, arrival in zip(event.clients, event.starts, event.arrivals, strict=True):
                assert arrival - start == pytest.approx(source.cycle(client, cycles[client]))
                cycles[client] += 1
