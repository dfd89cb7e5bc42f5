import copy

import pytest
import torch
from torch import nn

from projects.rsknet.folding import folded
from projects.rsknet.model import NETS, build_net

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def drawn_net(name, **options):
    """A network whose norms have statistics and weights of a trained one's sizes, in float64."""
    torch.manual_seed(0)
    net = build_net(name, 16, options).double()
    for module in net.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            if module.affine:
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.3)
    return net


VARIANTS = {"fixed": {"block": "fixed"}, "excited": {"block": "excited"}, "normalised": {"normalised": True, "attentive": True}}
CASES = {name: (name, {}) for name in NETS if name.startswith("tiny")} | {name: ("tiny_rsknet_mtsp_l", own) for name, own in VARIANTS.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_folded_network_gives_the_same(case):
    name, options = CASES[case]
    net, features = drawn_net(name, **options), torch.randn(3, 16, 50, dtype=torch.float64)
    lengths = torch.tensor([50, 37, 21])
    found = folded(net)
    with torch.no_grad():
        net.eval()
        for given in (None, lengths):
            expected = net(features, given)
            assert float(expected.abs().max()) > 0.01
            torch.testing.assert_close(found(features, given), expected, atol=1e-5, rtol=0)


def test_the_network_is_left_as_it_is():
    net = drawn_net("tiny_rsknet_mtsp").train()
    before = copy.deepcopy(net.state_dict())
    found = folded(net)
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not found.training
    assert not any(parameter.requires_grad for parameter in found.parameters())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("name", ["tiny_rsknet_mtsp", "tiny_rsknet_mtsp_l", "tiny_resnet"])
def test_only_the_norms_behind_selective_sums_are_left(name):
    left = [place for place, module in folded(drawn_net(name)).named_modules() if isinstance(module, NORMS)]
    assert left == ([] if name == "tiny_resnet" else [f"stages.{stage}.0.bn" for stage in range(3)])


def test_the_weights_keep_their_layout():
    found = folded(build_net("tiny_rsknet_mtsp", 16).to(memory_format=torch.channels_last))
    assert found.stages[1][0].first[0].weight.is_contiguous(memory_format=torch.channels_last)
