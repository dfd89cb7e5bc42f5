import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.cafe.rivals.matching import Attacked, cosine_distance, kernel_distance, squared_distance


def layers(seed):
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((3, 4), (3,), (2, 3, 2))]


def flat(gradients):
    return torch.cat([each.flatten() for each in gradients])


def test_squared_distance_is_that_of_the_flat_vectors():
    ours, theirs = layers(0), layers(1)
    assert float(squared_distance(ours, theirs)) == pytest.approx(float((flat(ours) - flat(theirs)).norm() ** 2))


def test_cosine_distance_is_that_of_the_flat_vectors_and_ignores_scale():
    ours, theirs = layers(0), layers(1)
    expected = 1 - float(flat(ours) @ flat(theirs) / flat(ours).norm() / flat(theirs).norm())
    assert float(cosine_distance(ours, theirs)) == pytest.approx(expected)
    assert float(cosine_distance([7 * each for each in theirs], theirs)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("summed", [False, True])
def test_kernel_distance_is_its_formula_layer_by_layer(summed):
    ours, theirs = [each / 4 for each in layers(0)], layers(1)
    expected = 0.0
    for a, b in zip(ours, theirs, strict=True):
        squares = ((a - b) ** 2).numpy()
        expected += 1 - math.exp(-(squares.sum() if summed else squares.mean()) / b.numpy().var())
    assert float(kernel_distance(ours, theirs, summed)) == pytest.approx(expected)


def test_the_summed_kernel_has_no_gradient_far_away_and_the_mean_kernel_has():
    theirs = [torch.randn(5000, generator=torch.Generator().manual_seed(0))]
    slopes = []
    for summed in (True, False):
        ours = torch.zeros(5000, requires_grad=True)
        slopes.append(float(torch.autograd.grad(kernel_distance([ours], theirs, summed), ours)[0].norm()))
    assert slopes[0] == 0 < slopes[1]


def test_kernel_distance_leaves_constant_layers_out_and_refuses_if_no_other_is_left():
    ours, theirs = layers(0), layers(1)
    constant = torch.zeros(4, dtype=torch.float64)
    assert float(kernel_distance([*ours, constant + 1], [*theirs, constant])) == float(kernel_distance(ours, theirs))
    with pytest.raises(ValueError, match="no scale"):
        kernel_distance([constant], [constant])


def test_gradients_are_joint_over_parties_and_equal_those_of_backward():
    torch.manual_seed(0)
    bottoms, server = nn.ModuleList([nn.Linear(3, 2), nn.Linear(4, 2)]), nn.Linear(4, 3)
    attacked = Attacked(
        lambda blocks: server(torch.cat([net(block).relu() for net, block in zip(bottoms, blocks, strict=True)], 1)),
        [*bottoms.parameters(), *server.parameters()],
    )
    blocks, labels = [torch.randn(5, 3), torch.randn(5, 4)], torch.tensor([0, 2, 1, 1, 0])
    found = attacked.gradients(blocks, F.one_hot(labels, 3).float())
    F.cross_entropy(attacked.model(blocks), labels).backward()
    torch.testing.assert_close(found, [parameter.grad for parameter in attacked.parameters])


def test_the_distance_of_gradients_is_differentiated_twice_as_finite_differences_are():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    attacked = Attacked(lambda blocks: net(blocks[0]), list(net.parameters()))
    observed = [torch.randn_like(each) for each in attacked.parameters]
    records, logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True), torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    for distance in (squared_distance, cosine_distance, kernel_distance):
        assert torch.autograd.gradcheck(lambda x, y, d=distance: d(attacked.gradients([x], y.softmax(1), True), observed), (records, logits))


def test_a_parameter_that_is_not_used_has_gradient_zero():
    used, unused = nn.Linear(2, 2), nn.Parameter(torch.ones(3))
    attacked = Attacked(lambda blocks: used(blocks[0]), [unused, *used.parameters()])
    assert attacked.gradients([torch.ones(1, 2)], torch.eye(2)[:1])[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ([torch.zeros(2, 3)], "1 observed gradients for 2 parameters"),
        ([torch.zeros(3, 2), torch.zeros(2)], r"observed gradient 0 has shape \(3, 2\), its parameter \(2, 3\)"),
        ([torch.zeros(2, 3), torch.tensor([0, math.nan])], "observed gradient 1 has values that are not finite"),
    ],
)
def test_gradients_that_are_not_the_models_are_refused(observed, message):
    net = nn.Linear(3, 2)
    with pytest.raises(ValueError, match=message):
        Attacked(lambda blocks: net(blocks[0]), list(net.parameters())).check(observed)
