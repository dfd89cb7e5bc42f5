"""That the simulator computes what the parties and the server would."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.cafe.federation import Federation, Gradients, observe
from projects.cafe.nets import BottomNet, ServerNet, conv_bottom, settle_norms, tabular_bottom
from projects.cafe.schedules import uniform
from shared.vertical.parts import split_image

RECORDS, BATCH, ROUNDS, CLASSES = 12, 4, 6, 3


def images(seed=0, records=RECORDS):
    """Draw quarters of images and labels."""
    chance = torch.Generator().manual_seed(seed)
    pictures = torch.rand(records, 1, 8, 8, generator=chance, dtype=torch.float64)
    return split_image(pictures), torch.randint(CLASSES, (records,), generator=chance)


def small(reference_loss=False, **options):
    """Build a federation of four parties with small nets in float64, whose outputs are never dead unless said so."""
    options = {"rectified": False} | options
    bottoms = [conv_bottom(1, 4, (3, 4), 6, 5, seed, **options) for seed in range(4)]
    return Federation(bottoms, ServerNet(4, 5, CLASSES, 0), reference_loss).double()


def tables(seed=0):
    """Build a federation of two parties with tables, and draw their data."""
    chance = torch.Generator().manual_seed(seed)
    blocks = [torch.randn(RECORDS, features, generator=chance, dtype=torch.float64) for features in (5, 7)]
    bottoms = [tabular_bottom(features, (6, 4), 3, seed, rectified=False) for features in (5, 7)]
    return Federation(bottoms, ServerNet(2, 3, CLASSES, seed)).double(), blocks, torch.randint(CLASSES, (RECORDS,), generator=chance)


def loss_of(federation, logits, labels):
    """Write out the mean cross entropy, after a softmax more for the reference."""
    probabilities = logits.softmax(1)
    if federation.reference_loss:
        probabilities = probabilities.softmax(1)
    return -probabilities[torch.arange(len(labels)), labels].log().mean()


def middles(federation, blocks, labels, party, batch=BATCH):
    """Find H and V of a party record by record: V holds the gradients of a record's loss over K for u."""
    h, v = [], []
    for number in range(len(labels)):
        record = [block[number : number + 1] for block in blocks]
        outputs = federation.outputs(record)
        bottom = federation.bottoms[party]
        inner, u = bottom.middle(record[party])
        outputs[party] = bottom.tail(u)
        loss = loss_of(federation, federation.server(outputs), labels[number : number + 1]) / batch
        h.append(inner.detach()[0])
        v.append(torch.autograd.grad(loss, u)[0][0])
    return torch.stack(h), torch.stack(v)


@pytest.mark.parametrize("reference_loss", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_two_identities_hold(seed, reference_loss):
    """The bias gradient is V^T s and the weight gradient H^T diag(s) V, on random nets in float64."""
    blocks, labels = images(seed)
    federation = small(reference_loss)
    schedule = uniform(RECORDS, BATCH, ROUNDS, seed)
    view = observe(federation, blocks, labels, schedule)
    for party in range(4):
        h, v = middles(federation, blocks, labels, party)
        s = schedule.double()
        torch.testing.assert_close(view.bias_gradients(party), s @ v, rtol=1e-10, atol=1e-14)
        expected = torch.stack([(h.T @ torch.diag(row) @ v).T for row in s])  # torch stores the transpose
        torch.testing.assert_close(view.weight_gradients(party), expected, rtol=1e-10, atol=1e-14)


def test_the_two_identities_hold_for_tables_where_h_is_the_record():
    federation, blocks, labels = tables()
    schedule = uniform(RECORDS, BATCH, ROUNDS, 0)
    view = observe(federation, blocks, labels, schedule)
    h, v = middles(federation, blocks, labels, 1)
    assert torch.equal(h, blocks[1])
    torch.testing.assert_close(view.weight_gradients(1), torch.einsum("tn,nu,nh->tuh", schedule.double(), v, h))


@pytest.mark.parametrize("reference_loss", [False, True])
def test_gradients_are_those_of_the_mean_loss(reference_loss):
    blocks, labels = images()
    federation = small(reference_loss)
    found = federation.gradients(blocks, labels)
    loss_of(federation, federation(blocks), labels).backward()
    expected = [{name: parameter.grad for name, parameter in net.named_parameters()} for net in (*federation.bottoms, federation.server)]
    torch.testing.assert_close(vars(found), vars(Gradients(expected[:-1], expected[-1])))


def test_gradients_can_be_differentiated_for_the_data_and_soft_labels():
    blocks, labels = images()
    federation = small()
    dummies = [block[:BATCH].clone().requires_grad_() for block in blocks]
    logits = torch.zeros(BATCH, CLASSES, dtype=torch.float64, requires_grad=True)
    found = federation.gradients(dummies, logits.softmax(1), create_graph=True)
    total = sum(gradient.square().sum() for own in [*found.parties, found.server] for gradient in own.values())
    assert all(inner.any() for inner in torch.autograd.grad(total, [*dummies, logits]))
    hard = F.one_hot(labels[:BATCH], CLASSES).double()
    torch.testing.assert_close(vars(federation.gradients(dummies, hard)), vars(federation.gradients(dummies, labels[:BATCH])))


def test_a_party_that_takes_on_the_servers_signal_finds_the_same_gradients():
    blocks, labels = images()
    federation = small()
    schedule = uniform(RECORDS, BATCH, ROUNDS, 0)
    calls = []

    def local(bottom, block, signal, number, party):
        calls.append((number, party))
        names, parameters = zip(*bottom.named_parameters(), strict=True)
        return dict(zip(names, torch.autograd.grad(bottom(block), parameters, signal), strict=True))

    view, expected = observe(federation, blocks, labels, schedule, local=local), observe(federation, blocks, labels, schedule)
    for found, other in zip(view.gradients, expected.gradients, strict=True):
        torch.testing.assert_close(vars(found), vars(other))
    assert calls == [(number, party) for number in range(ROUNDS) for party in range(4)]


def test_a_static_model_is_recorded_once_and_stays_as_it_is():
    blocks, labels = images()
    federation = small()
    before = [parameter.clone() for parameter in federation.parameters()]
    view = observe(federation, blocks, labels, uniform(RECORDS, BATCH, ROUNDS, 0))
    assert len(view.bottoms) == len(view.server) == 1
    assert len(view.gradients) == ROUNDS
    for own, old, new in zip(federation.parameters(), before, view.federation(3).parameters(), strict=True):
        assert torch.equal(own, old)
        assert torch.equal(own, new)
        assert own is not new


@pytest.mark.parametrize("make", [lambda own: torch.optim.Adam(own, 1e-2, eps=1e-7), lambda own: torch.optim.SGD(own, 0.5, momentum=0.9)])
def test_a_trained_model_is_recorded_before_each_update_with_what_was_uploaded(make):
    """A plain loop of training with the defended gradients goes the same way."""
    blocks, labels = images()
    schedule = uniform(RECORDS, BATCH, ROUNDS, 0)
    federation, plain = small(), small()

    def defence(gradients, number, party):
        return {name: gradient.sign() * (number + party) for name, gradient in gradients.items()}

    view = observe(federation, blocks, labels, schedule, make(federation.parameters()), defence)
    optimiser = make(plain.parameters())
    for number, members in enumerate(schedule):
        for own, expected in zip(view.federation(number).parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(own, expected)
        optimiser.zero_grad()
        F.cross_entropy(plain([block[members] for block in blocks]), labels[members]).backward()
        for party, bottom in enumerate(plain.bottoms):
            for name, parameter in bottom.named_parameters():
                parameter.grad = parameter.grad.sign() * (number + party)
                torch.testing.assert_close(view.gradients[number].parties[party][name], parameter.grad)
        torch.testing.assert_close(view.gradients[number].server["top.weight"], plain.server.top.weight.grad)
        optimiser.step()
    for own, expected in zip(federation.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, expected)
        assert own.grad is None


def test_only_the_last_rounds_and_the_named_gradients_are_kept():
    blocks, labels = images()
    schedule = uniform(RECORDS, BATCH, ROUNDS, 0)
    models = [small() for _ in range(2)]
    whole, part = (
        observe(model, blocks, labels, schedule, torch.optim.SGD(model.parameters(), 0.1), **options)
        for model, options in zip(models, ({}, {"recent": 2, "names": {"first.weight", "first.bias"}}), strict=True)
    )
    window = whole.window(ROUNDS - 2, ROUNDS)
    assert torch.equal(part.schedule, window.schedule)
    assert torch.equal(part.schedule, schedule[-2:])
    assert len(part.gradients) == len(window.server) == 2
    assert len(part.bottoms) == 1
    assert torch.equal(part.weight_gradients(1), window.weight_gradients(1))
    assert torch.equal(part.federation().bottoms[0].first.weight, window.federation().bottoms[0].first.weight)
    assert part.gradients[0].parties[0].keys() == {"first.weight", "first.bias"}
    assert len(observe(small(), blocks, labels, schedule).window(1, 3).bottoms) == 1
    with pytest.raises(ValueError, match="rounds 4 to 9 are not among the 6"):
        whole.window(4, 9)


@pytest.mark.parametrize("reference_loss", [False, True])
def test_a_static_model_may_begin_at_h_when_nothing_before_is_recorded(reference_loss):
    blocks, labels = images()
    schedule = uniform(RECORDS, BATCH, ROUNDS, 0)
    federation = small(reference_loss)
    calls = []
    federation.bottoms[0].body.register_forward_hook(lambda *_: calls.append(1))
    part = observe(federation, blocks, labels, schedule, names={"first.weight", "tail.1.bias"})
    assert len(calls) == 1
    whole = observe(federation, blocks, labels, schedule)
    for found, expected in zip(part.gradients, whole.gradients, strict=True):
        named = [{name: own[name] for name in ("first.weight", "tail.1.bias")} for own in expected.parties]
        torch.testing.assert_close(vars(found), vars(Gradients(named, expected.server)))
    assert part.shapes == whole.shapes
    torch.testing.assert_close(part.federation()(blocks), federation(blocks))


def test_batches_of_several_sizes_are_brought_to_one():
    """The mean over K_t records counts each 1 / K_t, so the gradients are scaled by K_t over the mean size."""
    blocks, labels = images()
    federation = small()
    schedule = torch.cat([uniform(RECORDS, size, 2, 0) for size in (3, 6)])
    view = observe(federation, blocks, labels, schedule)
    h, v = middles(federation, blocks, labels, 2, batch=4.5)
    torch.testing.assert_close(view.bias_gradients(2), schedule.double() @ v)
    torch.testing.assert_close(view.weight_gradients(2), torch.einsum("tn,nu,nh->tuh", schedule.double(), v, h))


def test_nets_that_depend_on_the_batch_are_refused_until_they_are_fixed():
    blocks, labels = images()
    federation = small(batch_norm=True)
    schedule = uniform(RECORDS, BATCH, ROUNDS, 0)
    with pytest.raises(ValueError, match=r"bottoms\.0\.body\.0\.1.* call eval\(\) first"):
        observe(federation, blocks, labels, schedule)
    for bottom, block in zip(federation.bottoms, blocks, strict=True):
        settle_norms(bottom, block)
    view = observe(federation, blocks, labels, schedule)
    _, v = middles(federation, blocks, labels, 3)
    torch.testing.assert_close(view.bias_gradients(3), schedule.double() @ v)


def test_rounds_that_cannot_be_are_refused():
    blocks, labels = images()
    schedule = uniform(RECORDS, BATCH, ROUNDS, 0)
    federation = small()
    empty = schedule.clone()
    empty[2] = False
    other = torch.optim.SGD(small().parameters(), 0.1)
    cases = [
        (r"records and there are 12 labels, but the schedule is torch\.bool of shape \(6, 11\)", (blocks, labels, schedule[:, :11]), {}),
        (r"torch\.float32 of shape .*: expected bool", (blocks, labels, schedule.float()), {}),
        (r"\[12, 12, 12, 10\] records", ([*blocks[:3], blocks[3][:10]], labels, schedule), {}),
        ("1 rounds have no records, the first is round 2", (blocks, labels, empty), {}),
        ("3 blocks cannot be given to 4 parties", (blocks[:3], labels, schedule), {}),
        ("3 blocks cannot be given to 4 parties", (blocks[:3], labels, schedule), {"names": {"first.bias"}}),
        ("the optimiser is not of this federation's parameters", (blocks, labels, schedule), {"optimiser": other}),
        ("defence of party 0 changed the names or shapes of tail", (blocks, labels, schedule), {"defence": lambda own, *_: _without_tail(own)}),
        (r"shapes of first\.bias in round 0", (blocks, labels, schedule), {"defence": lambda own, *_: own | {"first.bias": torch.zeros(1)}}),
    ]
    for message, arguments, options in cases:
        with pytest.raises(ValueError, match=message):
            observe(federation, *arguments, **options)


def _without_tail(gradients):
    return {name: gradient for name, gradient in gradients.items() if not name.startswith("tail")}


def test_parameters_that_are_not_used_have_gradients_of_zero():
    """A user's net may hold such."""

    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.spare = nn.Parameter(torch.ones(2))

        def forward(self, u):
            return u

    federation = Federation([BottomNet(nn.Flatten(), nn.Linear(4, 3), Idle())], ServerNet(1, 3, 2, 0))
    found = federation.gradients([torch.rand(5, 4)], torch.zeros(5, dtype=torch.long))
    assert torch.equal(found.parties[0]["tail.spare"], torch.zeros(2))


def test_the_gradients_of_the_middle_are_those_of_each_record_alone():
    bottoms = [tabular_bottom(3, (5, 4), 2, seed) for seed in range(2)]
    federation = Federation(bottoms, ServerNet(2, 2, 3, seed=0))
    blocks = [torch.randn(4, 3, generator=torch.Generator().manual_seed(party)) for party in range(2)]
    labels = torch.tensor([0, 1, 2, 1])
    found = federation.middle_gradients(blocks, labels)
    for n in range(4):
        alone = federation.gradients([block[n : n + 1] for block in blocks], labels[n : n + 1])
        for party in range(2):
            torch.testing.assert_close(found[party][n], alone.parties[party]["first.bias"])


def test_the_gradients_of_the_middle_are_found_in_inference_mode_too():
    federation = small()
    blocks, labels = images()
    expected = federation.middle_gradients(blocks, labels)
    with torch.inference_mode():
        found = federation.middle_gradients([block.clone() for block in blocks], labels.clone())
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs)
