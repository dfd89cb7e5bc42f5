"""That horizontal learning is seen as vertical learning with one party is, alone or stacked."""

import pytest
import torch
from torch.nn import functional as F

from projects.cafe.federation import Federation, observe
from projects.cafe.horizontal import observe_horizontal
from projects.cafe.nets import ServerNet, conv_bottom
from projects.cafe.schedules import condition, uniform

ROUNDS, CLASSES = 6, 3


def shared_net(parties=1):
    """Build the one net of all parties in float64."""
    bottoms = [conv_bottom(1, 8, (3, 4), 6, 5, seed, rectified=False) for seed in range(parties)]
    return Federation(bottoms, ServerNet(parties, 5, CLASSES, 0)).double()


def own_records(parties=3):
    """Draw whole images, labels and schedules of horizontal learning, of other numbers and batches at each party."""
    sizes, batches = range(5, 5 + parties), range(2, 2 + parties)
    blocks = [torch.rand(size, 1, 8, 8, generator=torch.Generator().manual_seed(size), dtype=torch.float64) for size in sizes]
    labels = [torch.arange(size) % CLASSES for size in sizes]
    return blocks, labels, [uniform(size, batch, ROUNDS, size) for size, batch in zip(sizes, batches, strict=True)]


def test_each_party_of_horizontal_learning_is_a_case_of_its_own():
    blocks, labels, schedules = own_records()
    federation = shared_net()
    views = observe_horizontal(federation, blocks, labels, schedules, known_labels=True)
    for view, block, label, schedule in zip(views, blocks, labels, schedules, strict=True):
        alone = observe(federation, [block], label, schedule)
        assert torch.equal(view.schedule, schedule)
        assert torch.equal(view.labels, label)
        assert view.shapes == [(1, 8, 8)]
        for found, expected in zip(view.gradients, alone.gradients, strict=True):
            torch.testing.assert_close(vars(found), vars(expected))


def test_the_secure_sum_is_one_case_with_the_records_of_all():
    blocks, labels, schedules = own_records()
    federation = shared_net()
    (view,) = observe_horizontal(federation, blocks, labels, schedules, secure_sum=True)
    assert torch.equal(view.schedule, torch.cat(schedules, 1))
    assert view.labels is None
    alone = observe(federation, [torch.cat(blocks)], torch.cat(labels), torch.cat(schedules, 1))
    for found, expected in zip(view.gradients, alone.gradients, strict=True):
        torch.testing.assert_close(vars(found), vars(expected))


def test_horizontal_rounds_update_the_shared_net_with_the_mean_of_the_defended_uploads():
    blocks, labels, schedules = own_records()
    federation, plain = shared_net(), shared_net()
    names = []

    def defence(gradients, number, party):
        names.append(set(gradients))
        return {name: gradient * (party + 1) for name, gradient in gradients.items()}

    optimiser = torch.optim.SGD(federation.parameters(), 0.3)
    observe_horizontal(federation, blocks, labels, schedules, optimiser, defence, secure_sum=True)
    for number in range(ROUNDS):
        losses = [
            (party + 1) * F.cross_entropy(plain([blocks[party][schedule[number]]]), labels[party][schedule[number]], reduction="sum")
            for party, schedule in enumerate(schedules)
        ]
        total = sum(losses) / sum(int(schedule[number].sum()) for schedule in schedules)
        gradients = torch.autograd.grad(total, list(plain.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(plain.parameters(), gradients, strict=True):
                parameter -= 0.3 * gradient
    for own, expected in zip(federation.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, expected)
    assert {"first.weight", "server.top.bias"} <= names[0]


def test_the_secure_sum_tells_parties_apart_only_if_their_batch_sizes_change():
    constant = [uniform(10, 3, 60, seed) for seed in range(4)]
    found = condition(torch.cat(constant, 1))
    assert found.rank == 40 - 3
    assert not found.recoverable.any()
    changing = [torch.cat([uniform(10, size, 30, seed), uniform(10, 7 - size, 30, seed + 4)]) for seed, size in enumerate((1, 2, 3, 4))]
    assert condition(torch.cat(changing, 1)).rank == 40 - 2
    drawn = [torch.rand(60, 10, generator=torch.Generator().manual_seed(seed)) < 0.3 for seed in range(4)]
    assert condition(torch.cat(drawn, 1)).recoverable.all()


def test_parties_that_do_not_fit_together_are_refused():
    blocks, labels, schedules = own_records()
    for net, *own in [
        (shared_net(2), blocks, labels, schedules),
        (shared_net(), blocks, labels[:2], schedules),
        (shared_net(), blocks, labels, [*schedules[:2], schedules[2][:3]]),
    ]:
        with pytest.raises(ValueError, match="horizontal learning needs one shared net"):
            observe_horizontal(net, *own)
