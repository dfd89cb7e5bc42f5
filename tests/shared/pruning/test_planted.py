"""Networks in which it is known what should go."""

from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from shared.pruning import (
    Activations,
    BatchTaylor,
    Budget,
    GroupIndex,
    Plan,
    apply,
    differential,
    fisher,
    hessian,
    magnitude,
    masked,
    random,
    select,
    taylor,
)

EXAMPLE = torch.zeros(1, 1, 8, 8)


def accuracy(model, images, labels):
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def duplicate(net, copies):
    """Write channel j of the block's inner layer over with a copy of channel i, and halve what its consumer gives to each, for (i, j) in `copies`."""
    with torch.no_grad():
        for i, j in copies:
            for tensor in (net.block.conv1.weight, *net.block.bn1.state_dict(keep_vars=True).values()):
                if tensor.ndim:
                    tensor[j] = tensor[i]
            net.block.conv2.weight[:, i] /= 2
            net.block.conv2.weight[:, j] = net.block.conv2.weight[:, i]


def test_duplicates_go_first_and_can_go_without_loss(net, digits):
    copies = [(0, 9), (4, 12), (6, 13)]
    single = deepcopy(net)
    with torch.no_grad():
        for _, j in copies:
            single.block.conv2.weight[:, j] = 0
    duplicate(net, copies)
    index = GroupIndex.build(net, EXAMPLE)
    torch.testing.assert_close(net(digits[2]), single(digits[2]), rtol=0, atol=1e-4)
    for model in (net, single):
        F.cross_entropy(model(digits[0][:256]), digits[1][:256]).backward()
    with_copies, without = taylor(index, net, normaliser=None)["block.conv1"], taylor(index, single, normaliser=None)["block.conv1"]
    for i, j in copies:
        assert with_copies[i] == pytest.approx(float(without[i]) / 2, rel=1e-3), "half of the work each"
        assert with_copies[j] == pytest.approx(float(with_copies[i]), rel=1e-3)
    consumers = magnitude(index, net, reduction="last", normaliser=None)["block.conv1"]
    before = magnitude(index, single, reduction="last", normaliser=None)["block.conv1"]
    assert all(consumers[i] == pytest.approx(float(before[i]) / 4, rel=1e-4) for i, _ in copies)
    apply(net, Plan.of(index, {"block.conv1": [j for _, j in copies]}))
    with torch.no_grad():
        for i, _ in copies:
            net.block.conv2.weight[:, i] *= 2
    torch.testing.assert_close(net(digits[2]), single(digits[2]), rtol=0, atol=1e-4)
    assert accuracy(net, *digits[2:]) == accuracy(single, *digits[2:])


def test_equal_channels_lose_their_duplicates_to_both_scores(digits):
    """Channels that are all alike but for planted duplicates: those rank lowest."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 12, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 36, 10))
    with torch.no_grad():
        net[0].weight.copy_(F.normalize(torch.randn(12, 9).abs(), dim=1).view(12, 1, 3, 3))
        columns = net[3].weight.view(10, 12, 36)
        columns.copy_(F.normalize(torch.randn(10, 12, 36).transpose(0, 1).flatten(1), dim=1).view(12, 10, 36).transpose(0, 1))
        for i, j in ((1, 7), (3, 10)):
            net[0].weight[j] = net[0].weight[i]
            columns[:, i] /= 2
            columns[:, j] = columns[:, i]
    index = GroupIndex.build(net, EXAMPLE)
    collector = BatchTaylor(index, net, "abs")
    for rows in torch.arange(1024).split(128):
        F.cross_entropy(net(digits[0][rows]), digits[1][rows]).backward()
        collector.step()
    for scores in (magnitude(index, net), collector.scores()):
        assert set(scores["0"].argsort()[:4].tolist()) == {1, 3, 7, 10}


def test_dead_channels_score_nothing_go_first_and_are_not_missed(net, digits):
    dead = [2, 5, 11]
    with torch.no_grad():
        net.block.conv2.weight[:, dead] = 0
    index = GroupIndex.build(net, EXAMPLE)
    with Activations(index, net, gradients=True) as seen:
        F.cross_entropy(net(digits[0][:64]), digits[1][:64]).backward()
    scored = {"abs": taylor(index, net), "sum": taylor(index, net, "sum"), "gates": seen.taylor(), "wanda": seen.wanda()}
    before = net(digits[2])
    for name, scores in scored.items():
        assert scores["block.conv1"][dead].eq(0).all(), name
        plan = select(index, scores, Budget(channels=3 / 64))
        assert {group: channels.tolist() for group, channels in plan.dropped.items()} == {"block.conv1": dead}, name
    apply(net, plan)
    torch.testing.assert_close(net(digits[2]), before, rtol=0, atol=1e-5)


def with_trigger(images):
    triggered = images.clone()
    triggered[:, :, -3:, -3:] = 1
    return triggered


def plant_trigger(net):
    """Make one inner channel fire on the bright corner patch alone, and one feature carry it to class 7."""
    with torch.no_grad():
        # fires where 3 x 3 pixels are all bright; the gain hides in the running variance, where no magnitude sees it
        net.bn.weight[3], net.bn.bias[3], net.bn.running_mean[3], net.bn.running_var[3] = 1, 0, 2.82, 0
        net.conv.weight[3] = 1 / 3
        net.block.bn2.weight[3], net.block.bn2.bias[3] = 0, 0  # the residual stream carries it on
        net.down.weight[20] = 0
        net.down.weight[20, 3, 1, 1] = 0.6
        net.bn2.weight[20], net.bn2.bias[20], net.bn2.running_mean[20], net.bn2.running_var[20] = 1, 0, 0, 0
        corner = net.fc.weight.view(10, 32, 4, 4)
        corner[:, 20, 3, 3] = 0
        corner[7, 20, 3, 3] = 0.6


@pytest.fixture
def backdoored(net, digits):
    clean = accuracy(net, *digits[2:])
    plant_trigger(net)
    rest = digits[3] != 7
    assert accuracy(net, *digits[2:]) > clean - 0.03
    assert accuracy(net, with_trigger(digits[2][rest]), torch.full((int(rest.sum()),), 7)) > 0.95
    return net, rest


def ranks_first(scores, planted):
    """Whether the planted channels are among the top one per cent of all (at least as many as were planted)."""
    everything = sorted(((float(value), name, i) for name, values in scores.items() for i, value in enumerate(values)), reverse=True)
    return {(name, i) for _, name, i in everything[: len(planted)]} == planted


def test_a_trigger_channel_is_found_by_differences_and_not_by_magnitude(backdoored, digits):
    net, rest = backdoored
    index, planted = GroupIndex.build(net, EXAMPLE), {("conv", 3), ("down", 20)}
    images, labels = digits[0][:256], digits[1][:256]
    with Activations(index, net, parts=2, gradients=True) as seen:
        F.cross_entropy(net(torch.cat([images, with_trigger(images)])), labels.repeat(2), reduction="sum").backward()
    free = index.free
    distances = {name: values for name, values in seen.difference(normaliser="mean").items() if name in free}
    gates = differential(seen.taylor("abs", 0), seen.taylor("abs", 1), "difference")
    for scores in (distances, {name: values for name, values in gates.items() if name in free}):
        assert ranks_first(scores, planted)
        plan = select(index, scores, Budget(channels=2 / 64), drop="highest")
        assert {name: channels.tolist() for name, channels in plan.dropped.items()} == {"conv": [3], "down": [20]}
    by_magnitude = select(index, magnitude(index, net), Budget(channels=2 / 64))
    assert not {(name, int(i)) for name, channels in by_magnitude.dropped.items() for i in channels} & planted
    assert not ranks_first({name: values for name, values in magnitude(index, net).items() if name in free}, planted)
    clean = accuracy(net, *digits[2:])
    with masked(net, plan):
        masked_accuracy = accuracy(net, *digits[2:])
    apply(net, plan)
    assert accuracy(net, *digits[2:]) == masked_accuracy > clean - 0.01
    assert accuracy(net, with_trigger(digits[2][rest]), torch.full((int(rest.sum()),), 7)) < 0.1


def test_weight_gradients_of_two_passes_find_it_too(backdoored, digits):
    net, _ = backdoored
    index, passes = GroupIndex.build(net, EXAMPLE), []
    for images in (digits[0][:256], with_trigger(digits[0][:256])):
        net.zero_grad()
        F.cross_entropy(net(images), digits[1][:256]).backward()
        passes.append(taylor(index, net))
    scores = {name: values for name, values in differential(*passes).items() if name in index.free}
    assert scores["down"].argmax() == 20
    assert scores["conv"].argmax() == 3


def test_at_half_the_operations_gradients_beat_magnitude_beat_chance(digits, make):
    results = {"taylor": [], "fisher": [], "magnitude": [], "random": []}
    for seed in range(5):
        torch.manual_seed(seed)
        net = make.train(make.convolutions(12), digits[0], digits[1], epochs=3, seed=seed)
        index = GroupIndex.build(net, EXAMPLE)
        collector = BatchTaylor(index, net, "square")
        for rows in torch.arange(1024).split(16):
            F.cross_entropy(net(digits[0][rows]), digits[1][rows]).backward()
            collector.step()
        squares = fisher(net, lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]), [(digits[0][:512], digits[1][:512])], chunk=64)
        scores = {
            "taylor": collector.scores(),
            "fisher": hessian(index, net, squares),
            "magnitude": magnitude(index, net),
            "random": random(index, seed),
        }
        for name, values in scores.items():
            pruned = deepcopy(net)
            apply(pruned, select(index, values, Budget(flops=0.5), cap=0.6))
            results[name].append(accuracy(pruned, *digits[2:]))
    mean = {name: sum(values) / 5 for name, values in results.items()}
    assert min(mean["taylor"], mean["fisher"]) > mean["magnitude"] + 0.02, mean
    assert mean["taylor"] > mean["magnitude"] + 0.05, mean
    assert mean["magnitude"] > mean["random"] + 0.05, mean
