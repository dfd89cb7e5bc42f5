import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from projects.tripinet.blocks import build_norm, cbr
from projects.tripinet.encoders import ResNetEncoder, StreamEncoder, build_encoder
from projects.tripinet.forensics import build_front_end


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    net = timm.create_model("resnet18")
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.running_var, 0.5, 2)
            nn.init.normal_(layer.running_mean)
            nn.init.normal_(layer.weight)
    file = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(net.state_dict(), file)
    return str(file)


def test_sizes_and_shapes():
    tiny = build_encoder("tiny", maps=9)
    assert [stage.shape for stage in tiny(torch.rand(2, 9, 64, 48))] == [(2, 16, 32, 24), (2, 24, 16, 12), (2, 32, 8, 6), (2, 48, 4, 3)]
    assert count(build_encoder("tiny")) == 9 * (3 * 16 + 16**2 + 16 * 24 + 24**2 + 24 * 32 + 32**2 + 32 * 48 + 48**2) + 4 * (16 + 24 + 32 + 48)
    with torch.device("meta"):
        for name, widths, size in (("resnet50", (256, 512, 1024, 2048), 23_508_032), ("small", (64, 128, 256, 512), 11_176_512)):
            encoder = build_encoder(name)
            assert (encoder.widths, encoder.strides, count(encoder)) == (widths, (4, 8, 16, 32), size)  # timm's sizes without the classifier
            shapes = [(1, width, side, side) for width, side in zip(widths, (16, 8, 4, 2), strict=True)]
            assert [stage.shape for stage in encoder(torch.rand(1, 3, 64, 64))] == shapes


def test_the_first_convolution_takes_the_mean_of_the_colours(weights):
    stored = timm.create_model("resnet18", checkpoint_path=weights).eval()
    rgb, srm = build_encoder("resnet18", weights=weights).eval(), build_encoder("resnet18", maps=9, weights=weights, is_rgb=False).eval()
    srm3 = build_encoder("resnet18", maps=3, weights=weights, is_rgb=False)
    assert torch.equal(rgb.net.conv1.weight, stored.conv1.weight)
    mean = stored.conv1.weight.mean(1, keepdim=True)
    torch.testing.assert_close(srm3.net.conv1.weight, mean.repeat(1, 3, 1, 1))
    torch.testing.assert_close(srm.net.conv1.weight, mean.repeat(1, 9, 1, 1) / 3)
    grey = torch.rand(1, 1, 64, 64)  # the same in every map: the sum over the channels is kept
    for found, expected in zip(srm(grey.expand(-1, 9, -1, -1)), rgb(grey.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_frozen_norms_keep_the_statistics_in_training(weights):
    frozen, plain = build_encoder("resnet18", norm="frozen", weights=weights).train(), build_encoder("resnet18", weights=weights).eval()
    pixels = torch.randn(1, 3, 32, 32)
    for _ in range(2):
        found = frozen(pixels)
    torch.testing.assert_close(found[3], plain(pixels)[3], rtol=1e-4, atol=1e-4)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in frozen.modules())
    assert {name for name, _ in frozen.named_parameters()} == {name for name, p in plain.named_parameters() if p.ndim == 4}


def test_group_norms_take_scale_and_shift_of_the_weights(weights):
    grouped, plain = build_encoder("resnet18", norm="group", weights=weights), build_encoder("resnet18", weights=weights)
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in grouped.modules())
    assert torch.equal(grouped.net.layer1[0].bn1.weight, plain.net.layer1[0].bn1.weight)
    assert count(grouped) == count(plain)


@pytest.mark.parametrize("channels", [3, 8, 12, 20, 64])
def test_group_norm_fits_any_width(channels):
    assert build_norm("group", channels)(torch.rand(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def test_a_block_rounds_up():
    assert cbr(3, 2, 4, stride=2)(torch.rand(1, 2, 5, 6)).shape == (1, 4, 3, 3)


def test_a_stream_reduces_every_stage():
    front_end = build_front_end("srm")
    stream = StreamEncoder(front_end, build_encoder("tiny", front_end.maps), channels=5)
    assert [stage.shape for stage in stream(torch.rand(1, 3, 32, 48))] == [(1, 5, 16 // s, 24 // s) for s in (1, 2, 4, 8)]


def test_wrong_options_are_named(tmp_path):
    with pytest.raises(ValueError, match="no encoder 'vgg': choose among tiny, small"):
        build_encoder("vgg")
    with pytest.raises(ValueError, match="no norm 'layer'"):
        build_encoder("tiny", norm="layer")
    with pytest.raises(ValueError, match="neither weights nor frozen norms"):
        build_encoder("tiny", norm="frozen")
    with pytest.raises(ValueError, match="frozen norms keep the statistics of weights"):
        ResNetEncoder("resnet18", norm="frozen")
    with pytest.raises(ValueError, match="from a local file, never from the network"):
        build_encoder("small", weights="pretrained")
    with pytest.raises(FileNotFoundError, match="no backbone weights"):
        build_encoder("small", weights=str(tmp_path / "none.pth"))


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth do not fit resnet18: \d+ are missing, such as "):
        build_encoder("resnet18", weights=str(tmp_path / "other.pth"))
