"""That the constants of Theorem 5 are the formulas, and which of them bound what nets really do under noise."""

import math

import pytest
import torch

from projects.vafl.bottoms import LinearBottom, MlpBottom, ViewBottom
from projects.vafl.perturbed import Noise
from projects.vafl.smoothness import (
    client_constant,
    gaussian_constant,
    layer_constants,
    operator_norms,
    printed_bias,
    smoothing_bias,
    uniform_constant,
)
from shared.seeding import generator

DRAWS = 20_000
NOISE = Noise(5, std=0.3, hidden=(0.2, 0.1))
STDS = [0.2, 0.1, 0.3]


def net():
    """Return a net of three layers and one output in float64, and a record repeated for each draw of the noise."""
    bottom = MlpBottom(4, [5, 3], 1, 0).double()
    with torch.no_grad():
        for parameter in bottom.parameters():
            parameter.mul_(1.5)
    return bottom, torch.randn(1, 4, generator=generator(0, "record"), dtype=torch.float64).expand(DRAWS, 4)


def mean_gradients(bottom, block):
    """Return the gradient of the mean embedding for each parameter, under the same draws at every call."""
    return bottom.pullback(block, NOISE)[1](torch.full((DRAWS, 1), 1 / DRAWS, dtype=torch.float64))


def mean_inputs(bottom, block):
    """Return E|u_{l-1}| of each layer."""
    draws, u, norms = NOISE.draws(), block, []
    for layer in bottom.layers:
        norms.append(float(u.norm(dim=1).mean()))
        u = draws.hidden(u @ layer.weight.T + layer.bias).relu().detach()
    return norms


def test_the_recursion_is_the_papers():
    norms, dimensions, stds, inputs, steep = [0.7, 1.3, 2.0], [5, 4, 3], [0.1, 0.2, 0.5], [1.5, 2.5, 0.5], 1.1
    third = steep * 3 / 0.5
    second = third * 2.0 * steep**2 + steep * 2.0 * 2 * math.sqrt(4) * steep / 0.2
    first = second * 1.3 * steep**2 + steep * 1.3 * steep * 2.0 * 2 * math.sqrt(5) * steep / 0.1
    constants = layer_constants(norms, dimensions, stds, inputs, steep)
    assert constants.biases == pytest.approx([first, second, third])
    assert constants.weights == pytest.approx([1.5 * first, 2.5 * second, 0.5 * third])
    expected = 0.5 * 3.0**2 + 1.4 * (2.5 * first + 3.5 * second + 1.5 * third) + 0.001
    assert client_constant(constants, 1.4, 0.5, 3.0, 0.001) == pytest.approx(expected)


def test_a_rectified_neuron_under_normal_noise_is_as_smooth_as_told():
    slopes = torch.tensor([0.6, -1.1, 0.4])
    draws = Noise(1, std=0.3).draws().last(torch.zeros(DRAWS, 3)) @ slopes
    size, step = float(slopes.norm()), 0.05
    rise = size * float(((draws + step > 0).float() - (draws - step > 0).float()).mean()) / (2 * step / size)
    assert rise == pytest.approx(size / (0.3 * math.sqrt(2 * math.pi)), rel=0.1)
    assert rise <= gaussian_constant(size, 3, 0.3)


def test_an_absolute_value_under_uniform_noise_meets_the_lemma_up_to_the_width_of_the_noise():
    draws = Noise(1, hidden=(0.3,)).draws().hidden(torch.zeros(DRAWS))
    curvature = float(((draws + 0.1).sign() - (draws - 0.1).sign()).mean()) / 0.2
    assert curvature == pytest.approx(2 / (math.sqrt(12) * 0.3), rel=0.05)
    assert curvature == pytest.approx(uniform_constant(1.0, 1, 0.3) / math.sqrt(12), rel=0.05)


@pytest.mark.parametrize("layer", range(3))
def test_gradients_of_the_mean_embedding_change_within_the_constants(layer):
    bottom, block = net()
    constants = layer_constants(operator_norms(bottom), [5, 3, 1], STDS, mean_inputs(bottom, block))
    bias, weight = bottom.layers[layer].bias, bottom.layers[layer].weight
    before = mean_gradients(bottom, block)[2 * layer + 1]
    chance = generator(0, "ways", layer)
    for parameter, constant in ((bias, constants.biases[layer]), (weight, constants.weights[layer])):
        rates = []
        for _ in range(8):
            way = torch.randn(parameter.shape, generator=chance, dtype=torch.float64)
            way *= 0.2 / way.norm()
            with torch.no_grad():
                parameter += way
            rates.append(float((mean_gradients(bottom, block)[2 * layer + 1] - before).norm()) / 0.2)
            with torch.no_grad():
                parameter -= way
        assert max(rates) <= constant
        assert max(rates) > 0.001 * constant or layer == 2  # the last layer is linear


def test_the_noise_moves_a_lipschitz_loss_within_the_bias():
    bottom, block = net()
    with torch.no_grad():
        target = bottom(block[:1])
        moved = float((bottom(block, NOISE) - target).abs().mean())
    assert 0.1 < moved <= smoothing_bias(1, operator_norms(bottom), [5, 3, 1], STDS)


def test_the_printed_bias_is_no_bound_where_weights_are_small():
    bottom = LinearBottom(1, 1)
    bottom.weight.data.fill_(0.5)
    with torch.no_grad():
        moved = float(bottom(torch.zeros(DRAWS, 1), Noise(2, std=0.4)).abs().mean())  # the loss |h|, whose value without noise is 0
    assert moved == pytest.approx(0.4 * math.sqrt(2 / math.pi), rel=0.02)
    assert printed_bias(1, [0.5], [0.4]) < moved <= smoothing_bias(1, [0.5], [1], [0.4])


def test_the_biases_are_the_formulas():
    printed = 7 * math.sqrt((1.1 * 2 * 1.1 * 3) ** 2 + (1.1 * 3) ** 2) * math.sqrt(0.1**2 + 0.5**2)
    assert printed_bias(7, [2, 3], [0.1, 0.5], activation=1.1) == pytest.approx(printed)
    assert printed_bias(7, [2, 3], [0.1, 0.5], activation=1.1, loss_lipschitz=2.0) == pytest.approx(2 * printed)
    sound = 7 * 2.0 * math.sqrt((1.1 * 1.1 * 3) ** 2 + 1.1**2) * math.sqrt(5 * 0.1**2 + 4 * 0.5**2)
    assert smoothing_bias(7, [2, 3], [5, 4], [0.1, 0.5], activation=1.1, loss_lipschitz=2.0) == pytest.approx(sound)


def test_a_cross_entropy_has_the_constants_that_are_told():
    chances = (torch.randn(500, 6, generator=generator(0, "logits"), dtype=torch.float64) * 4).softmax(1)
    hessians = chances.diag_embed() - chances[:, :, None] * chances[:, None, :]
    assert 0.4 < float(torch.linalg.eigvalsh(hessians).max()) <= 0.5
    gradients = chances.clone()
    gradients[:, 0] -= 1
    assert 1.3 < float(gradients.norm(dim=1).max()) <= math.sqrt(2)


def test_operator_norms_are_the_most_that_a_layer_stretches():
    bottom = MlpBottom(4, [5, 3], 1, 0)
    assert operator_norms(bottom) == pytest.approx([float(torch.linalg.svdvals(layer.weight.detach())[0]) for layer in bottom.layers])
    assert operator_norms(LinearBottom(4, 2)) == [0.0]


def test_what_has_no_constants_is_refused():
    with pytest.raises(ValueError, match="choose kind linear or mlp"):
        operator_norms(ViewBottom(1, 1, 8, [2], 3))
    with pytest.raises(ValueError, match="give every layer a positive one"):
        layer_constants([1.0, 1.0], [2, 2], [0.0, 0.1], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"have the lengths \[2, 1\]"):
        printed_bias(1, [1.0, 1.0], [0.1])
