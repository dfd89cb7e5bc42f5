import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from shared.pruning import Budget, GroupIndex, differential, fisher, geometric_median, hessian, magnitude, random, rank_correlation, select, taylor
from shared.pruning.scores import group_sparsity_, normalise


def theirs(model, inputs, importance):
    """torch-pruning's scores by group."""
    import torch_pruning as tp

    graph = tp.DependencyGraph().build_dependency(model, inputs)
    return {graph._module2name[group[0].dep.target.module]: importance(group) for group in graph.get_all_groups()}


def by_hand(index, model, name, local):
    """A group's score, slice by slice: `local(tensor name, index of the slice)`, averaged over tensors."""
    group = index.groups[name]
    items = [item for item in group.items if item.tensor == "weight"]
    total = torch.zeros(group.channels, dtype=torch.float64)
    for item in items:
        for position, channel in zip(item.idx.tolist(), item.root.tolist(), strict=True):
            total[channel] += float(local(item.name, (slice(None),) * item.dim + (position,)))
    return total / len(items)


@pytest.fixture
def with_gradients(net, digits):
    F.cross_entropy(net(digits[0][:64]), digits[1][:64]).backward()
    return net


def test_magnitude_and_taylor_equal_torch_prunings(make):
    import torch_pruning as tp

    torch.manual_seed(0)
    model, inputs = make.stir(timm.create_model("resnet10t", num_classes=5)), torch.randn(2, 3, 32, 32)
    index = GroupIndex.build(model, inputs)
    model(inputs).square().sum().backward()
    for module in model.modules():  # theirs never count normalisations in Taylor scores
        if isinstance(module, nn.BatchNorm2d):
            module.weight.grad.zero_()
    for reduction in ("mean", "sum", "max"):
        importance = tp.importance.GroupMagnitudeImportance(p=2, group_reduction=reduction)
        ours = magnitude(index, model, reduction=reduction)
        for name, scores in theirs(model, inputs, importance).items():
            key = name if name in ours else next(k for k, g in index.groups.items() if any(i.module == name and i.kind == "out" for i in g.items))
            torch.testing.assert_close(ours[key], scores, rtol=1e-5, atol=1e-6)
    for form, multivariable in (("abs", False), ("sum", True)):
        ours = taylor(index, model, form, reduction="sum")
        for name, scores in theirs(model, inputs, tp.importance.GroupTaylorImportance(multivariable=multivariable, group_reduction="sum")).items():
            key = name if name in ours else next(k for k, g in index.groups.items() if any(i.module == name and i.kind == "out" for i in g.items))
            torch.testing.assert_close(ours[key], scores, rtol=1e-4, atol=1e-5)


def test_scores_equal_their_formulas(index, with_gradients):
    tensors = {name: p.detach().double() for name, p in with_gradients.named_parameters()}
    grads = {name: p.grad.double() for name, p in with_gradients.named_parameters()}
    cases = {
        "magnitude": (magnitude(index, with_gradients, p=1, normaliser=None), lambda name, at: tensors[name][at].abs().sum()),
        "abs": (taylor(index, with_gradients, "abs", normaliser=None), lambda name, at: (tensors[name][at] * grads[name][at]).abs().sum()),
        "sum": (taylor(index, with_gradients, "sum", normaliser=None), lambda name, at: (tensors[name][at] * grads[name][at]).sum().abs()),
        "fisher": (hessian(index, with_gradients, grads, normaliser=None), lambda name, at: (tensors[name][at] ** 2 * grads[name][at]).sum().abs()),
    }
    for scores, local in cases.values():
        for name in ("conv", "block.conv1", "down"):
            torch.testing.assert_close(scores[name].double(), by_hand(index, with_gradients, name, local), rtol=1e-5, atol=1e-9)


def test_defect_1_fisher_averages_over_all_samples(net, digits):
    images, labels = digits[0][:6], digits[1][:6]

    def loss(network, batch):
        return F.cross_entropy(network(batch[0]), batch[1])

    expected = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    for i in range(6):
        net.zero_grad()
        F.cross_entropy(net(images[i : i + 1]), labels[i : i + 1]).backward()
        for name, p in net.named_parameters():
            expected[name] += p.grad**2 / 6
    for method in ("vmap", "loop"):
        found = fisher(net, loss, [(images[:4], labels[:4]), (images[4:], labels[4:])], method, chunk=3)
        for name, values in expected.items():
            torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["batch", "group"])
def test_defect_2_normalisations_enter_taylor_scores(kind, index, with_gradients, unet, make):
    if kind == "batch":
        model, norm, name = with_gradients, with_gradients.bn2, "down"
    else:
        model = unet
        index = GroupIndex.build(unet, make.unet_inputs)
        unet(torch.randn(2, 1, 16, 16), torch.tensor([3, 7])).sample.square().mean().backward()
        norm, name = unet.mid_block.resnets[0].norm2, "mid_block.resnets.0.conv1"
    before = taylor(index, model, normaliser=None)[name]
    norm.weight.grad *= 1000
    assert (taylor(index, model, normaliser=None)[name] > before * 1.5).all()


def test_defect_10_frozen_layers_are_skipped_and_named(index, net, digits):
    net.block.conv1.weight.requires_grad_(False)
    F.cross_entropy(net(digits[0][:32]), digits[1][:32]).backward()
    scores = taylor(index, net)
    assert scores.skipped == ["block.conv1.weight"]
    assert all(scores[name].isfinite().all() for name in index.groups)
    net.zero_grad()
    with pytest.raises(ValueError, match=r"no parameter has a gradient: call backward\(\)"):
        taylor(index, net)


def test_random_scores_do_not_depend_on_group_size(index):
    scores = random(index, seed=3)
    assert all(torch.equal(value, random(index, seed=3)[name]) for name, value in scores.items())
    wide = GroupIndex.build(nn.Sequential(nn.Linear(2, 4000), nn.ReLU(), nn.Linear(4000, 2)), torch.zeros(1, 2))
    assert 0 <= random(wide)["0"].min() < 0.01
    assert 0.99 < random(wide)["0"].max() < 1


def test_geometric_median_sums_distances(index, net):
    weight = net.block.conv1.weight.detach().flatten(1)
    expected = torch.stack([(weight - row).norm(dim=1).sum() for row in weight])
    torch.testing.assert_close(geometric_median(index, net, normaliser=None)["block.conv1"], expected, rtol=1e-4, atol=1e-5)


def test_half_precision_weights_are_summed_in_float32(net, index):
    exact = magnitude(index, net, normaliser=None)
    half = magnitude(index, net.to(torch.bfloat16), normaliser=None)
    for name in exact:
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], exact[name], rtol=5e-3, atol=1e-4)


def test_normalisers():
    scores = torch.tensor([3.0, 1.0, 2.0, 2.0])
    expected = {
        "mean": [1.5, 0.5, 1, 1],
        "sum": [0.375, 0.125, 0.25, 0.25],
        "max": [1, 1 / 3, 2 / 3, 2 / 3],
        "median": [1.5, 0.5, 1, 1],
        "min_max": [1, 0, 0.5, 0.5],
        "lamp": [1, 0.125, 2 / 7, 2 / 5],
    }
    for name, values in expected.items():
        torch.testing.assert_close(normalise(scores, name), torch.tensor(values))
        assert normalise(torch.zeros(4), name).eq(0).all() or name in ("min_max", "lamp")
    standard = normalise(scores, "gaussian")
    assert standard.mean().abs() < 1e-6
    assert standard.std(correction=0) == pytest.approx(1)
    with pytest.raises(ValueError, match="no normaliser 'means'; there are mean, sum"):
        normalise(scores, "means")


def test_the_difference_has_the_sign_that_its_name_says(index):
    """The reference adds the two passes; ours subtracts, and dropping the highest takes what serves the trigger alone."""
    clean = {name: torch.full((group.channels,), 1.0) for name, group in index.groups.items()}
    triggered = {name: scores.clone() for name, scores in clean.items()}
    clean["down"][4], triggered["down"][4] = 9.0, 9.0  # matters to both
    triggered["down"][7] = 9.0  # serves the trigger alone
    difference = differential(clean, triggered, "difference")
    assert difference["down"].argmax() == 7
    assert difference["down"][4] < difference["down"][7] / 2
    assert differential(clean, triggered, "sum")["down"].argmax() == 4
    assert differential(clean, triggered, "ratio")["down"].argmax() == 7
    assert differential(clean, triggered, "clean")["down"].argmin() == 4
    plan = select(index, difference, Budget(channels=0.01), drop="highest", mode="mask")
    assert plan.dropped["down"].tolist() == [7]
    scaled = {name: 50 * scores for name, scores in triggered.items()}
    torch.testing.assert_close(differential(clean, scaled, "difference")["down"], difference["down"])
    with pytest.raises(ValueError, match="no differential score 'minus'"):
        differential(clean, triggered, "minus")
    with pytest.raises(ValueError, match="must score the same groups; differing: down"):
        differential(clean, {name: scores for name, scores in triggered.items() if name != "down"})


def test_rank_correlation_equals_scipys():
    import scipy.stats

    one, other = torch.randn(50), torch.randn(50)
    assert rank_correlation({"g": one}, {"g": other}) == pytest.approx(scipy.stats.spearmanr(one, other).statistic, abs=1e-6)
    assert rank_correlation({"g": one, "h": other}, {"g": 3 * one + 1, "h": other}) == pytest.approx(1)


def test_sparsity_pulls_weak_channels_hardest(index, net):
    scores = {name: torch.arange(group.channels, dtype=torch.float32) for name, group in index.groups.items()}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    group_sparsity_(index, net, scores, strength=0.1)
    ratio = (net.conv.weight.grad / net.conv.weight.detach()).flatten(1).mean(1)
    assert ratio[0] == pytest.approx(0.1 * 2**4, rel=1e-4)
    assert ratio[-1] == pytest.approx(0.1, rel=1e-4)
    assert net.fc.bias.grad.eq(0).all()
