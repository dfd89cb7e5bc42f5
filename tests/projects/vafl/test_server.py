"""The server by itself: its table, its ages, its answers."""

import copy

import numpy as np
import pytest
import torch
from helpers.vafl_reference import drawn, played, simulator
from torch.nn import functional as F

from projects.vafl.client import Upload
from projects.vafl.heads import ConcatHead
from projects.vafl.server import Diverged, Server
from projects.vafl.steps import StepSizes


def message(client, rows, value=1.0, query=(), width=3):
    rows = np.array(rows, np.int64)
    return Upload(client, 0, rows, torch.full((len(rows), width), float(value)), np.array(query, np.int64))


def server(**options):
    return simulator(**options).server


def test_the_table_keeps_the_last_embedding_of_each_client_and_record():
    of = server()
    of.store(message(0, [3, 5], 1.0))
    of.store(message(2, [5], 2.0))
    of.updates = 4
    of.store(message(0, [5, 6], 3.0))
    assert of.table[5].tolist() == [3.0] * 3 + [0.0] * 3 + [2.0] * 3
    assert of.table[3].tolist() == [1.0] * 3 + [0.0] * 6
    assert of.stamps[0, [3, 5, 6]].tolist() == [0, 4, 4]
    assert of.releases[:, 5].tolist() == [2, 0, 1]
    assert of.table.abs().sum() == 3 + 9 + 9 + 6


def test_an_embedding_is_one_update_old_after_the_step_it_came_with():
    of = server()
    of.step([message(0, [1, 2], query=[1, 2])])
    assert (of.updates - of.stamps[0, [1, 2]]).tolist() == [1, 1]  # equation 3
    signal = of.step([message(1, [1, 2], query=[1, 2])])[0]
    assert signal.age == 1.0  # client 0's are 1, client 2's zeros are of the beginning, 1
    of.step([message(1, [7], query=[7])])
    assert of.step([message(2, [1], query=[1])])[0].age == (3 + 2) / 2


@pytest.mark.parametrize("net", ["linear", "mlp"])
def test_answers_are_gradients_of_each_ones_own_batch_and_the_head_takes_the_average(net):
    ours = simulator(net, server_lr=0.2, algorithm="t_sync")
    played(ours, 5)
    of, labels = ours.server, drawn()[1]
    uploads = [ours.clients[client].begin() for client in (0, 2)]
    head, table, widths = copy.deepcopy(of.head), of.table.clone(), of.head.widths
    for upload in uploads:
        begin = sum(widths[: upload.client])
        table[upload.rows, begin : begin + widths[upload.client]] = upload.embeddings
    answers, gradients = of.step(uploads), []
    for upload, signal in zip(uploads, answers, strict=True):
        leaf = table[upload.query].requires_grad_()
        own, *heads = torch.autograd.grad(F.cross_entropy(head(leaf), labels[upload.query]), [leaf, *head.parameters()])
        begin = sum(widths[: upload.client])
        torch.testing.assert_close(signal.gradient, own[:, begin : begin + widths[upload.client]])
        gradients.append(heads)
    for before, after, *some in zip(head.parameters(), of.head.parameters(), *gradients, strict=True):
        torch.testing.assert_close(after, before.detach() - 0.2 * (some[0] + some[1]) / 2)


def test_step_sizes_of_both_sides_are_at_the_same_counter():
    of = server(step_rule="decay:offset=5")
    for number in range(3):
        assert of.step([message(0, [1], query=[1])])[0].updates == number
    assert of.updates == 3


def test_only_what_is_needed_and_too_old_is_overdue():
    of = server(max_age=3)
    of.updates = 10
    of.stamps[:] = 10
    of.stamps[1, [4, 6, 9]] = [7, 6, 0]
    of.stamps[0, 4], of.stamps[2, 30] = 0, 0
    found = of.overdue([message(0, [4, 6], query=[4, 6])])
    assert {client: rows.tolist() for client, rows in found.items()} == {1: [6]}  # 4 is 3 old; client 0 brings its own
    both = of.overdue([message(0, [4, 6], query=[4, 6]), message(2, [9], query=[9])])
    assert {client: rows.tolist() for client, rows in both.items()} == {1: [6, 9]}
    assert server().overdue([message(0, [4], query=[4])]) == {}


def test_what_is_not_of_this_federation_is_refused():
    with pytest.raises(ValueError, match=r"client 1 sent embeddings of shape \(2, 4\), expected \(2, 3\)"):
        server().store(message(1, [0, 1], width=4))


def test_a_server_goes_on_from_its_state():
    ours = simulator()
    played(ours, 12)
    other = server()
    other.load_state(copy.deepcopy(ours.server.state()))
    assert (other.updates, other.oldest, other.mean_age) == (12, ours.server.oldest, ours.server.mean_age)
    assert torch.equal(other.table, ours.server.table)
    sent = message(1, [0, 1, 2, 3], 0.5, [0, 1, 2, 3])
    assert torch.equal(other.step([sent])[0].gradient, ours.server.step([sent])[0].gradient)
    assert torch.equal(other.head.bias, ours.server.head.bias)


def test_a_step_that_is_not_finite_is_not_taken_and_says_whose_embeddings_are_the_largest():
    server = Server(ConcatHead([3, 3], 3), torch.arange(8) % 3, StepSizes.parse("constant", 0.5))
    rows = np.arange(8)
    server.store(Upload(0, -1, rows, torch.randn(8, 3), rows[:0]))
    server.store(Upload(1, -1, rows, torch.randn(8, 3), rows[:0]))
    before = {name: value.clone() for name, value in server.head.state_dict().items()}
    honest, huge = Upload(0, 0, rows[:4], torch.ones(4, 3), rows[:4]), Upload(1, 0, rows[4:], torch.full((4, 3), 3e38), rows[4:])
    with pytest.raises(Diverged) as raised:
        server.step([honest, huge], checks=True)
    assert raised.value.client == 1
    assert all(torch.equal(value, before[name]) for name, value in server.head.state_dict().items())
    assert server.updates == 0
    assert server.releases.tolist() == [[1] * 8, [1] * 4 + [2] * 4]
    server.forget_large(1)
    assert server.table[4:, 3:].abs().max() == 0
    assert server.table[:4, 3:].abs().min() > 0
    assert bool(server.step([honest], checks=True)[0].gradient.isfinite().all())
    assert server.releases[0].tolist() == [2] * 4 + [1] * 4


def test_a_state_stays_as_it_was_while_training_goes_on():
    server = Server(ConcatHead([3], 3), torch.arange(4) % 3, StepSizes.parse("constant", 0.5))
    kept, rows = server.state(), np.arange(4)
    before = {name: value.clone() for name, value in kept["head"].items()}
    server.step([Upload(0, 0, rows, torch.randn(4, 3), rows)])
    assert all(torch.equal(value, before[name]) for name, value in kept["head"].items())
