import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from projects.moe_ffd.backbones import TINY_WEIGHTS, HighPassEmbed, TinyViT, build_vit


def test_the_tiny_network_has_the_weights_of_the_paper():
    net = build_vit()
    assert isinstance(net, TinyViT)
    assert sum(weight.numel() for weight in net.parameters()) == 210_984  # 211 k
    assert net(torch.randn(2, 3, 48, 48)).shape == (2, 64)
    assert net.forward_features(torch.randn(2, 3, 48, 48)).shape == (2, 65, 64)
    assert net.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_the_stem_sees_the_image_and_its_amplified_residual():
    stem = HighPassEmbed(embed_dim=5)
    images = torch.rand(2, 3, 48, 48)
    inner = images.unfold(2, 3, 1).unfold(3, 3, 1).mean((4, 5))  # (2, 3, 46, 46)
    residual = ((images[:, :, 1:-1, 1:-1] - inner) * 10).clamp(-1, 1)
    seen = []
    stem.filters.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    tokens = stem(2 * images - 1)
    assert tokens.shape == (2, 64, 5)
    torch.testing.assert_close(seen[0][:, :3], 2 * images - 1)
    torch.testing.assert_close(seen[0][:, 3:, 1:-1, 1:-1], residual, atol=1e-5, rtol=0)
    expected = F.conv2d(F.conv2d(seen[0], stem.filters.weight, stem.filters.bias, padding=1).relu(), stem.proj.weight, stem.proj.bias, stride=6)
    torch.testing.assert_close(tokens, expected.flatten(2).mT)


def test_a_constant_image_has_no_residual_at_the_border_either():
    stem, seen = HighPassEmbed(), []
    stem.filters.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    stem(torch.full((1, 3, 48, 48), 0.7))
    torch.testing.assert_close(seen[0][:, 3:], torch.zeros(1, 3, 48, 48), atol=1e-5, rtol=0)


def test_the_weights_at_hand_fit_and_are_small():
    assert TINY_WEIGHTS.stat().st_size < 500_000
    first, second = build_vit("tiny", weights="pretrained"), build_vit("tiny", weights=TINY_WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True))
    assert all(weight.dtype == torch.float32 for weight in first.parameters())


def test_other_sizes_get_other_position_embeddings():
    net = build_vit("tiny", size=96, weights="pretrained")
    assert net.pos_embed.shape == (1, 257, 64)
    assert net(torch.randn(1, 3, 96, 96)).shape == (1, 64)
    assert net.pretrained_cfg["input_size"] == (3, 96, 96)
    assert build_vit("tiny", size=60)(torch.randn(1, 3, 60, 60)).shape == (1, 64)


@pytest.mark.parametrize(("name", "prefix"), [("vit_tiny_patch16_224", 1), ("deit_tiny_distilled_patch16_224", 2)])
def test_transformers_of_timm_are_built_for_any_size(name, prefix):
    net = build_vit(name, size=64)
    assert net.num_prefix_tokens == prefix
    assert net.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 192)


def test_weights_of_timm_for_another_size_are_resized(tmp_path):
    save_file(build_vit("vit_tiny_patch16_224", size=64).state_dict(), tmp_path / "vit.safetensors")
    assert build_vit("vit_tiny_patch16_224", size=96, weights=tmp_path / "vit.safetensors").pos_embed.shape == (1, 37, 192)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 50}, "multiple of 6, not 50"),
        ({"size": 50, "weights": "pretrained"}, "multiple of 6, not 50"),
        ({"name": "vit_tiny_patch16_224", "size": 50}, "patches of 16 pixels: take a size that is a multiple of it, not 50"),
        ({"name": "resnet18"}, "resnet18 is no plain vision transformer"),
        ({"name": "vit_tini_patch16_224"}, "did you mean vit_tiny_patch16_224"),
    ],
)
def test_networks_that_cannot_be_built_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_vit(**options)


def test_weights_that_are_absent_or_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no weights .*tiny\.safetensors"):
        build_vit("tiny", weights=tmp_path / "tiny.safetensors")
    save_file(TinyViT(width=32).state_dict(), tmp_path / "narrow.safetensors")
    with pytest.raises(ValueError, match=r"cls_token: the network has \(1, 1, 64\), the file \(1, 1, 32\)"):
        build_vit("tiny", weights=tmp_path / "narrow.safetensors")
