"""That the nets are the reference's, and that the two identities on which the attack stands hold."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.cafe.nets import BottomNet, ServerNet, conv_bottom, mnist_bottom, settle_norms, tabular_bottom


def parameters(net):
    """Count the parameters of a net."""
    return sum(parameter.numel() for parameter in net.parameters())


def test_the_net_for_mnist_is_the_references():
    net = mnist_bottom(0)
    h, u = net.middle(torch.rand(3, 1, 14, 14))
    assert h.shape == (3, 2048)
    assert u.shape == (3, 256)
    assert net(torch.rand(3, 1, 14, 14)).shape == (3, 10)
    convolutions, connected = 25 * 64 + 64 + 25 * 64 * 128 + 128, 2048 * 256 + 256 + 256 * 64 + 64 + 64 * 10 + 10
    assert parameters(net) == convolutions + connected == 748_234
    assert parameters(ServerNet(4, 10, 10, 0)) == 410


def test_quarters_of_cifar_have_as_wide_a_middle():
    assert conv_bottom(3, 16, (64, 128), 256, 10, 0).first.in_features == 2048


def test_a_further_stage_repeats_the_last_width_and_halves_the_sides():
    net = conv_bottom(3, (32, 17), (64, 128), 256, 5, 0, stages=3)
    assert net.first.in_features == 128 * 4 * 3
    assert net(torch.rand(2, 3, 32, 17)).shape == (2, 5)


def test_the_pool_pads_at_the_end_as_tensorflow_does():
    """The windows of an odd side begin at 0, 2, 4 and 6, and the last holds a single pixel."""
    net = conv_bottom(1, 7, (2,), 8, 4, 0)
    blocks = torch.rand(2, 1, 7, 7)
    stage = net.body[0]
    maps = F.relu(stage[0](blocks))
    expected = F.max_pool2d(F.pad(maps, (0, 1, 0, 1), value=-torch.inf), 2)
    torch.testing.assert_close(net.body(blocks), expected.flatten(1))


def test_weights_are_glorot_uniform_with_zero_biases_and_follow_the_seed():
    net, again, other = mnist_bottom(1), mnist_bottom(1), mnist_bottom(2)
    for module, (inner, outer) in {net.body[1][0]: (64 * 25, 128 * 25), net.first: (2048, 256)}.items():
        limit = (6 / (inner + outer)) ** 0.5
        assert 0.99 * limit < module.weight.abs().max() <= limit
        assert module.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.01)
        assert not module.bias.any()
    assert torch.equal(net.first.weight, again.first.weight)
    assert not torch.equal(net.first.weight, other.first.weight)


def test_building_a_net_leaves_the_global_generator_alone():
    state = torch.get_rng_state()
    mnist_bottom(0)
    assert torch.equal(state, torch.get_rng_state())


def test_the_middle_of_a_table_is_the_table():
    blocks = torch.randn(4, 7)
    net = tabular_bottom(7, (16, 8), 3, 0)
    h, u = net.middle(blocks)
    assert torch.equal(h, blocks)
    assert u.shape == (4, 16)
    assert (net(blocks) >= 0).all()
    assert (tabular_bottom(7, (16, 8), 3, 0, rectified=False)(torch.randn(50, 7)) < 0).any()


def test_norms_are_settled_on_the_blocks_and_then_fixed():
    net = conv_bottom(1, 8, (4, 6), 8, 4, 0, batch_norm=True)
    blocks = torch.rand(30, 1, 8, 8)
    maps = net.body[0][0](blocks)
    settle_norms(net, blocks)
    torch.testing.assert_close(net.body[0][1].running_mean, maps.mean((0, 2, 3)))
    torch.testing.assert_close(net.body[0][1].running_var, maps.var((0, 2, 3)))
    torch.testing.assert_close(net(blocks)[:3], net(blocks[:3]))


def test_nets_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="1 stages cannot have the 2 widths"):
        conv_bottom(1, 8, (4, 6), 8, 4, 0, stages=1)
    with pytest.raises(ValueError, match="at least one hidden layer"):
        tabular_bottom(7, (), 3, 0)
    with pytest.raises(ValueError, match="has no bias"):
        BottomNet(nn.Identity(), nn.Linear(3, 4, bias=False), nn.ReLU())
