"""That the clients' nets are the paper's, and that a signal comes back to the weights as calculus says, noise and clip included."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call, vjp

from projects.vafl.bottoms import LinearBottom, MlpBottom, SeriesBottom, ViewBottom, build_bottom
from projects.vafl.perturbed import Noise, clip_rows
from shared.seeding import generator

NOISE = Noise(11, std=0.3, hidden=(0.1, 0.05))
NETS = {
    "linear": (lambda clip: LinearBottom(8, 5, seed=0, clip=clip), (8,)),
    "relu": (lambda clip: MlpBottom(8, [7, 6], 5, 0, clip=clip), (8,)),
    "tanh": (lambda clip: MlpBottom(8, [7], 5, 0, "tanh", clip), (8,)),
    "views": (lambda clip: ViewBottom(2, 1, 8, [3, 4], 5, 0, clip), (2, 1, 8, 8)),
    "series": (lambda clip: SeriesBottom(3, 6, 0, clip), (6, 3)),
}
CASES = [(kind, is_clipped, noise) for kind in NETS for is_clipped in (False, True) for noise in (None, NOISE)]
IDS = [f"{kind}{'-clipped' if is_clipped else ''}{'-noisy' if noise else ''}" for kind, is_clipped, noise in CASES]


def world(kind, is_clipped=False, records=9):
    """Return a net in float64, a block and a signal; where it clips, it does so to some records."""
    build, shape = NETS[kind]
    bottom = build(None).double()
    chance = generator(0, "world", kind)
    block = torch.randn(records, *shape, generator=chance, dtype=torch.float64)
    if is_clipped:
        with torch.no_grad():
            norms = bottom.pre_activation(block, NOISE.draws()).norm(dim=1)
        bottom.clip = float(norms.sort().values[records // 2 : records // 2 + 2].mean())  # no record is at the edge
        assert 0 < int((norms > bottom.clip).sum()) < records
    return bottom, block, torch.randn(records, bottom.outputs, generator=chance, dtype=torch.float64)


def parameters(net):
    """Count the parameters of a net."""
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(("kind", "is_clipped", "noise"), CASES, ids=IDS)
def test_the_pullback_is_the_derivative(kind, is_clipped, noise):
    bottom, block, signal = world(kind, is_clipped)
    h, pull = bottom.pullback(block, noise)
    with torch.no_grad():
        torch.testing.assert_close(h, bottom(block, noise))
    assert not h.requires_grad
    found = pull(signal)
    expected = torch.autograd.grad(bottom(block, noise), list(bottom.parameters()), signal)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    weights = {name: parameter.detach() for name, parameter in bottom.named_parameters()}
    ways = {name: torch.randn(w.shape, generator=generator(1, name), dtype=w.dtype) for name, w in weights.items()}

    def along(step):
        return float((functional_call(bottom, {name: w + step * ways[name] for name, w in weights.items()}, (block, noise)) * signal).sum())

    difference = (along(1e-6) - along(-1e-6)) / 2e-6
    assert sum(float((one * ways[name]).sum()) for one, name in zip(found, weights, strict=True)) == pytest.approx(difference, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", ["linear", "relu", "views"])
def test_the_pullback_is_that_of_functional_torch(kind):
    bottom, block, signal = world(kind, is_clipped=True)
    weights = dict(bottom.named_parameters())
    _, back = vjp(lambda weights: functional_call(bottom, weights, (block, NOISE)), weights)
    for one, other in zip(bottom.pullback(block, NOISE)[1](signal), back(signal)[0].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_signal_comes_back_where_gradients_are_switched_off(kind, mode):
    bottom, block, signal = world(kind, is_clipped=True)
    expected = bottom.pullback(block, NOISE)[1](signal)
    with mode():
        h, pull = bottom.pullback(block * 1, NOISE)
        found = pull(signal * 1)
    assert not h.requires_grad
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kind", NETS)
def test_weights_are_the_seeds_and_leave_the_global_generator_alone(kind):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again = NETS[kind][0](None), NETS[kind][0](None)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one, other) for one, other in zip(first.parameters(), again.parameters(), strict=True))
    assert all(parameter.is_leaf and parameter.isfinite().all() for parameter in first.parameters())


@pytest.mark.parametrize("kind", NETS)
def test_a_forward_is_replayed_from_its_noise(kind):
    bottom, block, _ = world(kind)
    assert torch.equal(bottom(block, NOISE), bottom(block, NOISE))
    assert not torch.allclose(bottom(block, NOISE), bottom(block, Noise(12, NOISE.std, NOISE.hidden)))
    assert torch.equal(bottom(block, Noise(11)), bottom(block))


def test_the_linear_net_is_a_product_clip_and_noise():
    bottom, block, _ = world("linear", is_clipped=True)
    expected = NOISE.draws().last(clip_rows(block @ bottom.weight.T, bottom.clip))
    torch.testing.assert_close(bottom(block, NOISE), expected)


def test_clients_with_linear_nets_start_at_zero_and_hold_the_softmax_regression_of_mnist():
    bottoms = [build_bottom("auto", (112,), 10, [], seed) for seed in range(7)]
    assert all(isinstance(bottom, LinearBottom) and not bottom.weight.any() for bottom in bottoms)
    assert sum(parameters(bottom) for bottom in bottoms) + 10 == 7850


def test_an_mlp_adds_its_noise_before_each_activation():
    bottom, block, _ = world("relu", is_clipped=True)
    draws, u = NOISE.draws(), block
    for layer in bottom.layers[:-1]:
        u = draws.hidden(u @ layer.weight.T + layer.bias).clamp(min=0)
    last = bottom.layers[-1]
    torch.testing.assert_close(bottom(block, NOISE), draws.last(clip_rows(u @ last.weight.T + last.bias, bottom.clip)))
    assert parameters(bottom) == 8 * 7 + 7 + 7 * 6 + 6 + 6 * 5 + 5


def test_the_papers_net_for_views_has_seven_layers_and_512_outputs_a_view():
    bottom = ViewBottom(3, 1, 32)
    sizes = [1, 32, 32, 64, 64, 128, 128]
    convolutions = sum(9 * inner * outer + outer for inner, outer in pairwise(sizes))
    assert parameters(bottom) == convolutions + 128 * 4 * 4 * 512 + 512 == 1_335_520
    assert len([module for module in bottom.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]) == 7
    h = bottom(torch.rand(2, 3, 1, 32, 32), Noise(0, 1.0, (0.1, 0.1, 0.01)))
    assert h.shape == (2, bottom.outputs) == (2, 1536)
    assert not h.lt(0).any()
    assert h.eq(0).any()


def test_he_weights_carry_the_signal_through_seven_layers():
    blocks = torch.rand(2, 1, 1, 32, 32, generator=generator(0, "views"))
    spread = (ViewBottom(1, 1, 32)(blocks) - ViewBottom(1, 1, 32)(blocks.flip(0))).std()
    assert float(spread.detach()) > 0.05 * float(blocks.std())


def test_a_view_has_the_same_vector_wherever_it_stands():
    bottom, block, _ = world("views")
    torch.testing.assert_close(bottom(block).view(9, 2, 5).flip(1), bottom(block.flip(1)).view(9, 2, 5))


def test_all_views_of_a_record_are_clipped_together():
    bottom, block, _ = world("views", is_clipped=True)
    assert float(bottom(block * 100).detach().norm(dim=1).max()) <= bottom.clip + 1e-9


def test_two_convolutions_have_two_pools_and_three_have_one():
    assert ViewBottom(3, 1, 16, [8, 16], 32).connected.in_features == 16 * 4 * 4
    assert ViewBottom(3, 1, (16, 20), [8, 16, 16], 32).connected.in_features == 16 * 8 * 10


def test_the_series_net_is_that_of_the_mortality_benchmark():
    bottom = build_bottom("auto", (48, 19), 16, [], 0)
    one_way = 4 * (19 * 8 + 8 * 8 + 2 * 8)  # torch has two biases
    assert parameters(bottom) == 2 * one_way + 4 * (16 * 16 + 16 * 16 + 2 * 16)
    block = torch.randn(4, 48, 19)
    states = bottom.last(bottom.both(block)[0])[0]
    torch.testing.assert_close(bottom(block), states[:, -1])
    assert float(bottom(block * 100).detach().norm(dim=1).max()) < math.sqrt(16)


def test_evaluation_mode_changes_nothing_in_a_series_net():
    bottom, block, _ = world("series")
    before = bottom(block)
    assert torch.equal(bottom.eval()(block), before)
    assert not bottom.training
    assert bottom.both.training


def test_kinds_follow_from_the_shape():
    assert isinstance(build_bottom("auto", (5,), 4, [], 0), LinearBottom)
    assert isinstance(build_bottom("auto", (5,), 4, [8], 0), MlpBottom)
    assert isinstance(build_bottom("auto", (10, 5), 4, [], 0), SeriesBottom)
    assert isinstance(build_bottom("auto", (3, 1, 16, 16), 4, [8], 0), ViewBottom)
    assert build_bottom("mlp", (4, 28), 4, [8], 0, clip=2.0)(torch.rand(3, 4, 28)).shape == (3, 4)
    assert build_bottom("linear", (4, 28), 4, [], 0)(torch.rand(3, 4, 28)).shape == (3, 4)


REFUSED = {
    "no-kind": (("auto", (3, 4, 5), 4, [], 0), "name the kind linear or mlp"),
    "series-of-vectors": (("series", (5,), 4, [], 0), r"takes \(T, F\) blocks"),
    "views-of-vectors": (("views", (5,), 4, [], 0), r"takes \(V, C, H, W\) blocks"),
    "hidden-linear": (("linear", (5,), 4, [3], 0), "has no hidden widths"),
    "odd-units": (("series", (10, 5), 5, [], 0), "even number"),
    "small-views": (("views", (3, 1, 4, 4), 4, [], 0), "at least 8 pixels"),
    "no-clip": (("linear", (5,), 4, [], 0, 0.0), "finite positive number"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_mend(case):
    arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build_bottom(*arguments)


def test_a_linear_net_keeps_its_bound_where_it_diverges():
    net = LinearBottom(2, 3, seed=0, clip=2.0)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[3e38, 3e38], [1.0, 0.0], [0.0, float("nan")]]))
    block = torch.tensor([[1.0, 1.0], [0.0, 0.0], [2.0, 0.0]])
    sent, _ = net.pullback(block)
    assert bool((sent.norm(dim=1) <= 2 + 1e-6).all())
    assert torch.equal(sent, net(block))
