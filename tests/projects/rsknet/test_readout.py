import pytest
import torch

from projects.rsknet.blocks import RSKBlock
from projects.rsknet.model import RSKNet, build_net
from projects.rsknet.readout import branch_weights, draw_branches, stage_weights, utterance_weights
from shared.seeding import generator

BINS = 8


def network(**options):
    torch.manual_seed(0)
    return RSKNet(BINS, **({"layers": (1, 3), "widths": (4, 6), "embedding": 8} | options))


def features(count=5, frames=30):
    return torch.randn(count, BINS, frames, generator=generator(0, "features"))


@torch.no_grad()
def test_weights_are_those_that_each_block_multiplies_its_branches_with():
    net, inputs = network().eval(), []
    blocks = [part for part in net.modules() if isinstance(part, RSKBlock)]
    hooks = [block.selective.register_forward_hook(lambda part, given, found: inputs.append((part, given[0], found))) for block in blocks]
    weights = branch_weights(net, features())
    for hook in hooks:
        hook.remove()
    assert [tuple(each.shape) for each in weights] == [(5, 2, 4), (5, 2, 6), (5, 2, 6), (5, 2, 6)]
    for (part, given, found), weight in zip(inputs, weights, strict=True):
        outputs = torch.stack([branch(given).relu() for branch in part.branches], 1)  # (B, M, C, F, T)
        torch.testing.assert_close((weight[..., None, None] * outputs).sum(1), found)


@torch.no_grad()
def test_weights_sum_to_one_and_do_not_hear_padding():
    net = network(dilations=((1, 1), (1, 2), (1, 3))).eval()
    padded = branch_weights(net, features(), torch.tensor([30, 29, 17, 8, 3]))
    for each in padded:
        torch.testing.assert_close(each.sum(1), torch.ones(each.shape[0], each.shape[2]))
    for row, frames in enumerate((30, 29, 17, 8, 3)):
        for one, each in zip(branch_weights(net, features()[row : row + 1, :, :frames]), padded, strict=True):
            torch.testing.assert_close(one[0], each[row], rtol=0, atol=1e-5)


def test_reading_leaves_the_network_as_it_was():
    net = network().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    branch_weights(net, features())
    assert all(part.training and not part._forward_hooks for part in net.modules())
    for name, value in net.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_stages_average_over_their_blocks_channels_and_utterances():
    net, weights = network(), branch_weights(network(), features())
    each = utterance_weights(net, features())
    assert each.shape == (5, 2, 2)
    second = sum(float(weights[block][3, 1, channel]) for block in (1, 2, 3) for channel in range(6)) / 18
    assert float(each[3, 1, 1]) == pytest.approx(second, abs=1e-6)
    torch.testing.assert_close(stage_weights(net, features()), each.mean(0))


@pytest.mark.parametrize("options", [{"block": "basic"}, {"block": "fixed"}, {"dilations": ((1, 2),)}])
def test_networks_without_selective_kernels_have_no_weights(options):
    assert branch_weights(network(**options), features()) == []
    with pytest.raises(ValueError, match="no selective kernels"):
        stage_weights(network(**options), features())


def test_other_networks_have_no_weights_either():
    assert branch_weights(build_net("tiny_xvector", BINS), features()) == []


@pytest.mark.parametrize("count", [1, 5])
def test_branches_are_drawn_for_one_utterance_and_for_several(count, tmp_path):
    figure = draw_branches(utterance_weights(network(), features(count)))
    figure.savefig(tmp_path / "branches.png")
    axes = figure.axes[0]
    torch.testing.assert_close(torch.as_tensor(axes.lines[0].get_ydata()), stage_weights(network(), features(count))[:, 1])
