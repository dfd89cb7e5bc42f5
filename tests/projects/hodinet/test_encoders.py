import re

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from projects.hodinet.encoders import build_encoder

LARGE = {
    "pvt_v2_b0": (3_409_760, (32, 64, 160, 256)),
    "pvt_v2_b1": (13_496_000, (64, 128, 320, 512)),
    "pvt_v2_b2": (24_849_856, (64, 128, 320, 512)),
    "pvt_v2_b3": (44_725_696, (64, 128, 320, 512)),
    "resnet50": (23_508_032, (256, 512, 1024, 2048)),
    "resnet101": (42_500_160, (256, 512, 1024, 2048)),
}
TINY = {"tiny_transformer": (157_904, (16, 32, 48, 64)), "tiny_cnn": (124_016, (16, 32, 48, 64))}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def stored():
    """PVTv2-B0 with its classifier, whose norms differ from those of a new network."""
    torch.manual_seed(0)
    net = timm.create_model("pvt_v2_b0")
    for layer in net.modules():
        if isinstance(layer, nn.LayerNorm):
            nn.init.uniform_(layer.weight, 0.5, 2)
    return net.eval()


def as_the_authors_name_it(key):
    """The name of a weight in the files of the authors of PVTv2."""
    key = re.sub(r"^patch_embed", "patch_embed1", key)
    key = re.sub(r"^stages\.(\d)\.downsample", lambda found: f"patch_embed{int(found[1]) + 1}", key)
    key = re.sub(r"^stages\.(\d)\.blocks\.", lambda found: f"block{int(found[1]) + 1}.", key)
    return re.sub(r"^stages\.(\d)\.norm", lambda found: f"norm{int(found[1]) + 1}", key).replace("dwconv", "dwconv.dwconv")


@pytest.mark.parametrize("name", LARGE)
def test_large_encoders_have_the_published_sizes(name):
    size, channels = LARGE[name]
    with torch.device("meta"):
        encoder = build_encoder(name)
        shapes = [stage.shape for stage in encoder(torch.rand(1, 3, 96, 64))]
    assert (count(encoder), encoder.channels) == (size, channels)
    assert shapes == [(1, width, 24 // s, 16 // s) for width, s in zip(channels, (1, 2, 4, 8), strict=True)]


def test_with_classifiers_the_sizes_are_the_papers():
    assert LARGE["pvt_v2_b3"][0] + 1000 * 512 + 1000 == 45_238_696  # 45.2 M
    with torch.device("meta"):
        assert LARGE["resnet101"][0] + 1000 * 2048 + 1000 == count(torchvision.models.resnet101())


@pytest.mark.parametrize("name", TINY)
def test_tiny_encoders_have_the_same_strides(name):
    encoder = build_encoder(name)
    assert (count(encoder), encoder.channels) == TINY[name]
    shapes = [stage.shape for stage in encoder(torch.rand(2, 3, 96, 64))]
    assert shapes == [(2, width, 24 // s, 16 // s) for width, s in zip(encoder.channels, (1, 2, 4, 8), strict=True)]


def test_stages_of_a_transformer_follow_the_recipe():
    with torch.device("meta"):
        stages = build_encoder("pvt_v2_b3").net.stages
    assert [len(stage.blocks) for stage in stages] == [3, 4, 18, 3]
    blocks = [stage.blocks[0] for stage in stages]
    assert [block.attn.num_heads for block in blocks] == [1, 2, 5, 8]
    assert [block.attn.sr.stride[0] if block.attn.sr else 1 for block in blocks] == [8, 4, 2, 1]
    assert [block.mlp.fc1.out_features // block.mlp.fc1.in_features for block in blocks] == [8, 8, 4, 4]
    assert {stage.norm.eps for stage in stages} == {block.norm1.eps for block in blocks} == {1e-6}
    assert isinstance(blocks[0].drop_path1, nn.Identity)


@pytest.mark.parametrize("name", ["pvt_v2_b0", "resnet50"])
def test_features_are_those_that_timm_returns(name):
    torch.manual_seed(0)
    reference = timm.create_model(name, features_only=True, out_indices=(0, 1, 2, 3) if "pvt" in name else (1, 2, 3, 4)).eval()
    encoder = build_encoder(name).eval()
    # the same parts in the same order, under other names
    encoder.load_state_dict(dict(zip(encoder.state_dict(), reference.state_dict().values(), strict=True)))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for found, expected in zip(encoder(images), reference(images), strict=True):
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("naming", ["timm", "authors"])
def test_weights_of_a_file_are_taken(stored, naming, tmp_path):
    state = stored.state_dict()
    if naming == "timm":
        save_file(state, file := tmp_path / "b0.safetensors")
    else:
        torch.save({as_the_authors_name_it(key): value for key, value in state.items()}, file := tmp_path / "b0.pth")
    encoder = build_encoder("pvt_v2_b0", str(file)).eval()
    with torch.no_grad():
        images = torch.rand(1, 3, 64, 64)
        torch.testing.assert_close(encoder(images)[-1], stored.forward_features(images))


def test_residual_networks_have_torchvisions_names():
    with torch.device("meta"):
        assert timm.create_model("resnet101").state_dict().keys() == torchvision.models.resnet101().state_dict().keys()


def test_keys_that_do_not_fit_are_named(stored, tmp_path):
    state = stored.state_dict()
    save_file({key: value for key, value in state.items() if key != "stages.0.norm.weight"}, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match=r"do not fit pvt_v2_b0(.|\n)*Missing key\(s\) in state_dict: \"stages.0.norm.weight\""):
        build_encoder("pvt_v2_b0", str(tmp_path / "short.safetensors"))
    save_file(timm.create_model("resnet18").state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="do not fit pvt_v2_b0"):
        build_encoder("pvt_v2_b0", str(tmp_path / "other.safetensors"))


def test_frozen_norms_keep_the_statistics_in_training(monkeypatch):
    monkeypatch.setattr("projects.hodinet.encoders.build_backbone", lambda name, weights: timm.create_model("resnet10t"))
    encoder = build_encoder("resnet50", "weights.safetensors", frozen_norms=True)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in encoder.modules())
    images, before = torch.rand(1, 3, 32, 32), {name: value.clone() for name, value in encoder.state_dict().items()}
    torch.testing.assert_close(encoder.train()(images)[3], encoder.eval()(images)[3])
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_checkpointing_changes_no_gradient():
    torch.manual_seed(0)
    plain, spared = build_encoder("pvt_v2_b0"), build_encoder("pvt_v2_b0", checkpointing=True)
    spared.load_state_dict(plain.state_dict())
    images = torch.rand(1, 3, 32, 32)
    for encoder in (plain, spared):
        encoder(images)[3].square().sum().backward()
    for found, expected in zip(spared.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="no encoder 'vgg': choose among pvt_v2_b0"):
        build_encoder("vgg")
    for options in ({"weights": "w.pth"}, {"frozen_norms": True}, {"checkpointing": True}):
        with pytest.raises(ValueError, match="tiny_cnn takes no weights"):
            build_encoder("tiny_cnn", **options)
    with pytest.raises(ValueError, match="from a local file, never from the network"):
        build_encoder("resnet50", "pretrained")
    with pytest.raises(ValueError, match="frozen norms keep the statistics of weights"):
        build_encoder("resnet50", frozen_norms=True)
    with pytest.raises(FileNotFoundError, match="no backbone weights"):
        build_encoder("pvt_v2_b3", str(tmp_path / "none.pth"))
