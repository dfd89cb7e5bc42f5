"""A client by itself: what it sends, what it does with an answer, and its noise."""

import copy
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers.vafl_reference import drawn, simulator

from projects.vafl.client import Signal
from projects.vafl.perturbed import Noise
from shared.seeding import derive_seed


def client(number=0, **options):
    return simulator(**options).clients[number]


def answer(to, value=0.1):
    return Signal(torch.full((len(to.query), to.embeddings.shape[1]), value), 0, 0.0)


def stepped(of, cycles):
    """Play cycles with made-up answers; returns the messages."""
    found = []
    for _ in range(cycles):
        found.append(of.begin())
        of.finish(answer(found[-1]))
    return found


def test_a_cycle_begins_once():
    of = client(protection={"std": 1.0})
    one = of.begin()
    assert of.begin() is one
    assert int(of.ledger.releases.sum()) == len(one.rows)
    of.finish(answer(one))
    assert of.begin() is not one
    assert of.cycle == 1


def test_a_table_is_filled_within_the_budget():
    of = client(protection={"std": 8.0, "clip": 1.0, "epsilon": 1.0})
    whole = of.first()
    assert whole.rows.tolist() == list(range(40))
    of.ledger.releases[::2] = of.budget
    some = of.first()
    assert some.rows.tolist() == list(range(1, 40, 2))
    assert int(of.ledger.releases.max()) <= of.budget
    of.ledger.releases[:] = of.budget
    assert of.first().size == 0


@pytest.mark.parametrize("net", ["linear", "mlp"])
def test_noise_is_the_same_in_the_upload_and_in_the_step_and_fresh_in_each_cycle(net):
    protection = {"std": 0.5, "hidden": [0.2], "clip": 1.0}
    of, block = client(net=net, lr=0.1, uploads="extra:count=5", protection=protection), drawn()[0][0]
    seeds, kept = set(), []
    for cycle in range(3):
        bottom, sent = copy.deepcopy(of.bottom), of.begin()
        noise = Noise(derive_seed(3, "noise", 0, "batch", cycle), 0.5, (0.2,))
        embeddings = bottom(block[sent.query], noise)
        torch.testing.assert_close(sent.embeddings[: len(sent.query)], embeddings.detach())
        assert sent.query.tolist() == sent.rows[:4].tolist()
        signal = torch.randn(embeddings.shape)
        of.finish(Signal(signal, 0, 0.0))
        gradients = torch.autograd.grad(embeddings, list(bottom.parameters()), signal)
        for before, gradient, after in zip(bottom.parameters(), gradients, of.bottom.parameters(), strict=True):
            torch.testing.assert_close(after, before.detach() - 0.1 * gradient)
        seeds.add(noise.seed)
        noises = sent.embeddings - bottom(block[sent.rows]).detach()
        kept += [noises[:3], noises[4:7]]  # of the batch, and of those that go along
    assert len(seeds) == 3
    assert not any(torch.allclose(one, other, atol=1e-3) for one, other in combinations(kept, 2))


def test_noise_is_each_clients_own_and_of_the_stated_size():
    parts = simulator(protection={"std": 0.5}).clients
    noises = [part.first().embeddings for part in parts]  # linear nets start at zero
    assert not torch.allclose(noises[0], noises[1])
    assert torch.cat(noises).std() == pytest.approx(0.5, rel=0.15)
    again = parts[0].refresh(np.arange(40)).embeddings
    assert not torch.allclose(again, parts[0].refresh(np.arange(40)).embeddings)


def test_the_noise_of_a_real_client_is_not_that_of_the_common_seed():
    ours = simulator(protection={"std": 0.5})
    secret = ours.setting.client(0, ours.model.bottoms[0], drawn()[0][0], noise_seed=12345)
    assert secret.begin().rows.tolist() == ours.clients[0].begin().rows.tolist()
    assert not torch.allclose(secret.begin().embeddings, ours.clients[0].begin().embeddings)


def test_with_query_first_embeddings_go_ahead_and_the_query_follows():
    of = client(order="query_first", uploads="extra:count=5")
    ahead, query = of.ahead(), of.begin()
    assert len(ahead.query) == 0
    assert len(ahead.rows) >= 4
    assert len(query.rows) == len(query.embeddings) == 0
    assert query.query.tolist() == ahead.rows[:4].tolist()
    assert (ahead.size, query.size) == (len(ahead.rows) * 16, 4 * 4)
    assert client(order="upload_first").ahead() is None


def test_a_regulariser_shrinks_the_weights():
    of = client(net="mlp", lr=0.5, l2=0.1)
    before = copy.deepcopy(of.bottom)
    of.finish(answer(of.begin(), 0.0))
    for old, new in zip(before.parameters(), of.bottom.parameters(), strict=True):
        torch.testing.assert_close(new, old * (1 - 0.5 * 0.1))


def test_the_step_size_follows_the_servers_counter_and_the_age():
    for rule, expected in (("decay:offset=10", 0.3 * 10 / 30), ("stale:power=1", 0.3 / 5)):
        of, twin = client(step_rule=rule), client()
        sent = of.begin()
        twin.begin()
        of.finish(Signal(torch.ones(4, 3), 20, 4.0))
        twin.finish(Signal(torch.ones(4, 3), 0, 0.0))
        torch.testing.assert_close(of.bottom.weight, twin.bottom.weight * expected / 0.3)
        assert len(sent.query) == 4


def test_a_spent_budget_lets_records_stay_at_home():
    of = client(uploads="all", protection={"std": 1.0, "clip": 1.0, "epsilon": 8.0})
    most = of.budget
    messages = stepped(of, most)
    assert all(len(message.rows) == 40 for message in messages)
    assert of.begin() is None
    assert of.refresh(np.arange(5)) is None
    assert of.ledger.releases.tolist() == [most] * 40


def test_only_the_records_within_the_budget_are_embedded_anew():
    of = client(uploads="batch", protection={"std": 1.0, "clip": 1.0, "epsilon": 8.0})
    for _ in range(of.budget):
        of.refresh(np.arange(10))
    assert of.refresh(np.arange(5, 15)).rows.tolist() == list(range(10, 15))
    assert of.ledger.most == of.budget


def test_a_client_that_comes_back_goes_on_with_a_fresh_cycle():
    of = client()
    stepped(of, 3)
    state = copy.deepcopy(of.state())
    begun = of.begin()
    assert [int(some["releases"].sum()) for some in (state, of.state())] == [int(of.ledger.releases.sum()) - len(begun.rows)] * 2
    other = client()
    other.load_state(state)
    assert torch.equal(other.begin().embeddings, begun.embeddings)
    assert other.begin().rows.tolist() == begun.rows.tolist()
    other.go_to(7)
    assert other.begin().cycle == 7


def test_a_state_of_other_data_is_refused():
    state = client().state()
    blocks, labels = drawn(records=30)
    with pytest.raises(ValueError, match="the ledger needs 30 int64 counts"):
        client(blocks=blocks, labels=labels).load_state(state)
