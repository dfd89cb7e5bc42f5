from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from projects.tripinet.fusion import GCMDA, Concat, DualAttention, FusionName, build_fusion

NAMES = get_args(FusionName)


def features(streams=3, channels=8, height=6, width=5, batch=2):
    torch.manual_seed(1)
    return [torch.randn(batch, channels, height, width, dtype=torch.float64) for _ in range(streams)]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def with_gammas(module):
    for part in module.modules():
        if isinstance(part, DualAttention):
            nn.init.constant_(part.position_gamma, 0.7)
            nn.init.constant_(part.channel_gamma, -0.4)
    return module


def softmax(values):
    weights = np.exp(values - values.max())
    return weights / weights.sum()


def dual_attention(module, picture, guide):
    """Steps 2 and 3 of gCMDA for one image, position by position; the keys are pooled by torch."""
    channels, height, width = picture.shape
    size = [min(side, module.pooled) for side in (height, width)]
    pooled = F.adaptive_avg_pool2d(picture, size).flatten(1).detach().numpy()

    def linear(layer, values):
        return layer.weight.detach().numpy()[:, :, 0, 0] @ values + layer.bias.detach().numpy()[:, None]

    r, g = picture.flatten(1).detach().numpy(), guide.flatten(1).detach().numpy()
    query, key, value = linear(module.query, g), linear(module.key, pooled), linear(module.value, pooled)
    position = np.stack([value @ softmax(query[:, n] @ key) for n in range(r.shape[1])], axis=1)
    similarity = g @ r.T / r.shape[1]
    rows = [row.max() - row if module.sign == "danet" else row for row in similarity]
    channel = np.stack([softmax(row) @ r for row in rows])
    total = module.position_gamma.item() * position + module.channel_gamma.item() * channel + 2 * r
    return torch.from_numpy(total.reshape(channels, height, width))


@pytest.mark.parametrize("sign", ["danet", "plain"])
@pytest.mark.parametrize("pooled", [3, 16])
def test_dual_attention_position_by_position(pooled, sign):
    picture, guide = features(2)
    module = with_gammas(DualAttention(8, pooled, sign)).double()
    found = module(picture, guide)
    for number in range(2):
        torch.testing.assert_close(found[number].detach(), dual_attention(module, picture[number], guide[number]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize("streams", [1, 3])
def test_at_first_it_is_the_plain_fusion_of_twice_the_picture_and_the_guide(streams, is_training):
    parts = features(streams)
    fusion, plain = GCMDA(8, streams).double().train(is_training), Concat(8, streams).double().train(is_training)
    assert plain.load_state_dict(fusion.state_dict(), strict=False).missing_keys == []
    picture, guide = plain.join(parts)
    torch.testing.assert_close(fusion(parts), plain.fuse(2 * picture, guide), rtol=0, atol=0 if not is_training else 1e-12)


def test_pooling_changes_nothing_where_the_map_is_small():
    torch.manual_seed(0)
    module, (picture, guide) = with_gammas(DualAttention(8, 16)).double(), features(2, height=16, width=9)
    pooled = module(picture, guide)
    module.pooled = 64
    assert torch.equal(pooled, module(picture, guide))
    module.pooled = 8
    assert not torch.allclose(pooled, module(picture, guide))


def test_attention_is_what_the_output_is_made_of():
    torch.manual_seed(0)
    fusion, parts = with_gammas(GCMDA(8, pooled=4)).double().eval(), features()
    position, channel = fusion.attention(parts)
    assert (position.shape, channel.shape) == ((2, 30, 16), (2, 8, 8))
    torch.testing.assert_close(position.sum(2), torch.ones(2, 30, dtype=torch.float64))
    torch.testing.assert_close(channel.sum(2), torch.ones(2, 8, dtype=torch.float64))
    picture, guide = fusion.join(parts)
    attend = fusion.attend
    value = attend.value(F.adaptive_avg_pool2d(picture, 4)).flatten(2)
    expected = 0.7 * value @ position.mT - 0.4 * channel @ picture.flatten(2) + 2 * picture.flatten(2)
    torch.testing.assert_close(attend(picture, guide).flatten(2), expected)


def test_the_other_way_round_is_added_in_weights_of_its_own():
    torch.manual_seed(0)
    both, parts = with_gammas(GCMDA(8, symmetric=True)).double().eval(), features()
    one_way = GCMDA(8).double().eval()
    one_way.load_state_dict(both.state_dict(), strict=False)
    picture, guide = both.join(parts)
    other = both.merge_guide(torch.cat([both.attend_guide(guide, picture), picture], dim=1))
    torch.testing.assert_close(both(parts), one_way(parts) + other)
    assert count(both) == 2 * count(one_way) - count(both.guide)


def test_no_matrix_of_positions_and_keys_is_kept():
    torch.manual_seed(0)
    module, (picture, guide) = with_gammas(DualAttention(16)), [part.float() for part in features(2, 16, 40, 40)]
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # fails where that kernel cannot take the tensors
        found = module(picture, guide)
    with sdpa_kernel(SDPBackend.MATH):
        torch.testing.assert_close(found, module(picture, guide), rtol=1e-5, atol=1e-5)


def test_attention_is_of_float32_under_autocast():
    torch.manual_seed(0)
    fusion, parts = with_gammas(GCMDA(8)).eval(), [30 * part.float() for part in features()]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attention, fused = fusion.attention(parts), fusion(parts)
    assert (attention.position.dtype, attention.channel.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(attention.position.sum(2), torch.ones(2, 30))
    assert fused.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_fusion_joins_any_number_of_streams(name, streams, norm):
    parts = [part.float().requires_grad_() for part in features(streams)]
    fused = with_gammas(build_fusion(name, 8, streams, norm))(parts)
    assert fused.shape == (2, 8, 6, 5)
    (fused * torch.randn(2, 8, 6, 5)).sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in parts)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in build_fusion(name, 8, streams, norm).modules()) == (norm == "batch")


def test_fusions_have_nearly_the_same_size():
    sizes = {name: count(build_fusion(name, 64)) for name in NAMES}
    assert sizes["add"] == sizes["concat"] - 9 * 64**2
    assert all(0 < sizes[name] - sizes["concat"] < 0.05 * sizes["concat"] for name in ("gcmda", "gated", "cbam"))


@pytest.mark.parametrize(("name", "factor"), [("gated", 1 / 2), ("cbam", 1 / 4)])
def test_weights_of_nothing_are_one_half_each(name, factor):
    torch.manual_seed(0)
    fusion, parts = build_fusion(name, 8).double().eval(), features()
    for layer in (fusion.gate,) if name == "gated" else (*fusion.channel, fusion.position):
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)
    picture, guide = fusion.join(parts)
    torch.testing.assert_close(fusion(parts), fusion.merge(factor * torch.cat([picture, guide], dim=1)))


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="no fusion 'mean': choose among gcmda, add"):
        build_fusion("mean", 8)
    with pytest.raises(ValueError, match="no sign 'minus'"):
        GCMDA(8, sign="minus")
    with pytest.raises(ValueError, match="at least 1 x 1 position, not 0"):
        GCMDA(8, pooled=0)
    with pytest.raises(ValueError, match="no stream"):
        Concat(8, 0)
