import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.cafe.rivals.aligned import match_rounds
from projects.cafe.rivals.matching import Attacked

SHAPES = [(3, 3), (5,)]


def federation(seed=0, activation=nn.Sigmoid):
    """Two parties with a small net each, of a picture and of a row of a table, and a linear server."""
    torch.manual_seed(seed)
    bottoms = nn.ModuleList([nn.Sequential(nn.Flatten(), nn.Linear(width, 24), activation(), nn.Linear(24, 5)) for width in (9, 5)])
    server = nn.Linear(10, 4)
    return Attacked(
        lambda blocks: server(torch.cat([net(block) for net, block in zip(bottoms, blocks, strict=True)], 1)),
        [*bottoms.parameters(), *server.parameters()],
    )


def records(count, seed=0):
    random = torch.Generator().manual_seed(seed)
    return [torch.rand(count, *shape, generator=random) for shape in SHAPES], torch.randint(0, 4, (count,), generator=random)


def upload(attacked, blocks, labels):
    return attacked.gradients(blocks, F.one_hot(labels, 4).float())


def error(recovered, blocks):
    """Root mean squared error over all pixels."""
    return float(torch.stack([(ours - theirs).square().mean() for ours, theirs in zip(recovered.blocks, blocks, strict=True)]).mean().sqrt())


def schedule(count, batch, rounds):
    order = [torch.randperm(count, generator=torch.Generator().manual_seed(t))[:batch] for t in range(rounds)]
    return torch.stack([torch.zeros(count, dtype=torch.bool).index_fill(0, members, True) for members in order])


def rounds(attacked, blocks, labels, plan):
    return [upload(attacked, [block[row] for block in blocks], labels[row]) for row in plan]


def test_rounds_of_single_records_give_each_record_its_own_place():
    attacked = federation()
    blocks, labels = records(3)
    plan = torch.eye(3, dtype=torch.bool)
    recovered = match_rounds(lambda _: attacked, rounds(attacked, blocks, labels, plan), plan, SHAPES, steps=300, labels=labels)
    assert error(recovered, blocks) < 0.15
    assert recovered.loss < 1e-4


def test_matching_rounds_brings_the_gradients_and_the_labels_nearer():
    attacked = federation(activation=nn.ReLU)
    blocks, labels = records(8)
    plan = schedule(8, 3, 16)
    observed = rounds(attacked, blocks, labels, plan)
    start = match_rounds(lambda _: attacked, observed, plan, SHAPES, steps=0)
    end = match_rounds(lambda _: attacked, observed, plan, SHAPES, steps=200)
    assert end.loss < start.loss / 10
    assert (end.labels.argmax(1) == labels).all()


def test_matching_rounds_uses_the_model_of_each_round():
    models = [federation(seed) for seed in range(2)]
    blocks, labels = records(2)
    plan = torch.ones(2, 2, dtype=torch.bool)
    observed = [upload(model, blocks, labels) for model in models]
    right = match_rounds(lambda t: models[t], observed, plan, SHAPES, steps=40, labels=labels)
    wrong = match_rounds(lambda t: models[0], observed, plan, SHAPES, steps=40, labels=labels)
    assert right.loss < wrong.loss / 3


def test_the_same_seed_gives_the_same_records_and_another_seed_others():
    attacked = federation()
    blocks, labels = records(4)
    plan = schedule(4, 2, 5)
    observed = rounds(attacked, blocks, labels, plan)
    found = [match_rounds(lambda _: attacked, observed, plan, SHAPES, steps=5, seed=seed).blocks[1] for seed in (0, 0, 1)]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_schedules_that_are_not_of_the_rounds_are_refused():
    attacked = federation()
    blocks, labels = records(2)
    observed = upload(attacked, blocks, labels)
    with pytest.raises(ValueError, match="1 rounds of gradients for a schedule of 2"):
        match_rounds(lambda _: attacked, [observed], torch.ones(2, 2, dtype=torch.bool), SHAPES)
    with pytest.raises(ValueError, match=r"member of rounds \[1\]"):
        match_rounds(lambda _: attacked, [observed, observed], torch.tensor([[True, True], [False, False]]), SHAPES)
