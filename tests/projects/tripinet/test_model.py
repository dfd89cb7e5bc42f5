from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.tripinet.decoders import DecoderName
from projects.tripinet.forensics import Stream
from projects.tripinet.fusion import FusionName
from projects.tripinet.losses import training_loss
from projects.tripinet.model import ImageHead, TriPINet


def pictures(height=64, width=64, count=2):
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(height))


def build(*arguments, seed=0, **options):
    """A small network whose norms have seen pictures and whose attention counts."""
    torch.manual_seed(seed)
    net = TriPINet(*arguments, **{"channels": 8, "width": 8} | options)
    for name, parameter in net.named_parameters():
        if "gamma" in name:
            nn.init.constant_(parameter, 0.5)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics of the pictures alone, so that deep stages have a signal
    net(pictures(64, 96))
    return net.eval()


@pytest.fixture(scope="module")
def net():
    return build(edge=True, image_head=True)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 64), (250, 333)])
def test_maps_have_the_size_of_the_picture(net, height, width):
    images = pictures(height, width, 1)
    with torch.no_grad():
        outputs, finest = net(images), net(images, sides=False)
    assert [side.shape for side in outputs.sides] == [(1, 1, height, width)] * 4
    assert (outputs.edge.shape, outputs.image.shape) == ((1, 1, height, width), (1,))
    assert len(finest.sides) == 1
    assert torch.equal(finest.sides[0], outputs.sides[0])
    assert torch.equal(finest.image, outputs.image)


def test_padding_is_the_reflected_picture(net):
    images = pictures(50, 61).float()
    padded = F.pad(images, [0, 3, 0, 14], mode="reflect")
    for found, expected in zip(net(images).sides, net(padded).sides, strict=True):
        torch.testing.assert_close(found, expected[:, :, :50, :61])


def test_grey_levels_as_bytes_and_as_floats_are_the_same(net):
    assert torch.equal(net(pictures()).sides[0], net(pictures().float()).sides[0])


def test_a_picture_does_not_depend_on_its_batch(net):
    images = pictures(48, 80, 4)
    with torch.no_grad():
        together, apart = net(images), [net(image[None]) for image in images]
    torch.testing.assert_close(together.sides[0], torch.cat([outputs.sides[0] for outputs in apart]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.image, torch.cat([outputs.image for outputs in apart]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "streams", [("rgb",), ("srm", "dct_corner"), ("rgb", "bayar"), ("dct_radial", "fft", "haar", "block_dct", "srm3"), ("rgb", "rgb")]
)
def test_any_streams_and_gradients_reach_every_encoder(streams):
    torch.manual_seed(0)
    net = TriPINet(streams, channels=8, width=8, edge=True, image_head=True)
    masks = torch.rand(2, 1, 64, 64) > 0.5
    training_loss(net(pictures()), masks, torch.tensor([1, 0]))["loss"].backward()
    assert len(net.streams) == len(streams)
    for stream in net.streams:
        assert all(parameter.grad.abs().sum() > 0 for parameter in stream.parameters())
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("fusion", get_args(FusionName))
@pytest.mark.parametrize("decoder", get_args(DecoderName))
def test_fusions_and_decoders_go_together(fusion, decoder):
    torch.manual_seed(0)
    net = TriPINet(("rgb", "srm"), channels=8, width=4, fusion=fusion, decoder=decoder, norm="group")
    assert [side.shape for side in net(pictures(32, 48, 1)).sides] == [(1, 1, 32, 48)] * 4


def test_residual_networks_pad_to_their_stride():
    torch.manual_seed(0)
    net = TriPINet(("rgb", "srm"), encoder="small", channels=8, width=8).eval()
    assert net.stride == 32
    with torch.no_grad():
        assert net(pictures(33, 40, 1)).sides[3].shape == (1, 1, 33, 40)


def test_the_full_size_has_the_published_encoders():
    with torch.device("meta"):
        net = TriPINet(encoder="resnet50")
    for stream, maps in zip(net.streams, (3, 9, 3), strict=True):
        assert sum(p.numel() for p in stream.encoder.parameters()) == 23_508_032 + (maps - 3) * 64 * 49
        assert [reduce[0].weight.shape for reduce in stream.reductions] == [(64, width, 1, 1) for width in (256, 512, 1024, 2048)]
    assert [merge[0].in_channels for merge in net.decoder.merge] == [256, 192, 128, 64]


def test_group_norm_treats_a_picture_alike_in_training_and_evaluation():
    net = build(norm="group")
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())
    images = pictures(32, 32, 1)
    torch.testing.assert_close(net.train()(images).sides[0], net.eval()(images).sides[0])


def test_attention_of_every_stage(net):
    attention = net.attention(pictures(64, 64))
    assert [maps.position.shape for maps in attention] == [(2, 1024, 256), (2, 256, 256), (2, 64, 64), (2, 16, 16)]  # keys pooled to 16 x 16
    assert all(maps.channel.shape == (2, 8, 8) for maps in attention)
    with pytest.raises(ValueError, match="only the fusion gcmda"):
        build(fusion="concat").attention(pictures())


def test_a_stored_network_is_the_same(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = build(edge=True, image_head=True, seed=1)
    assert not torch.equal(other(pictures()).sides[0], net(pictures()).sides[0])
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(other(pictures()).sides[0], net(pictures()).sides[0])


def test_front_ends_stay_precise_under_autocast(net):
    with torch.no_grad():
        precise = net(pictures()).sides[0]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = net(pictures()).sides[0]
    assert torch.corrcoef(torch.stack([rough.flatten().float(), precise.flatten()]))[0, 1] > 0.98


@pytest.mark.slow
def test_export_takes_the_same_way(net):
    class Map(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, images):
            return self.net(images, sides=False).sides[0]

    images = pictures(40, 56).float()
    torch.testing.assert_close(torch.export.export(Map(), (images,)).module()(images), Map()(images))
    assert net(pictures(40, 56)).sides[0].isfinite().all()  # nothing of the export stays behind


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_the_image_head_sees_the_mean_of_a_constant_map(level):
    head, logits = ImageHead(), torch.full((1, 1, 8, 8), level).logit(1e-6)
    torch.testing.assert_close(head(logits), head.linear(torch.full((1, 2), level)).squeeze(1), rtol=1e-3, atol=1e-4)
    logits.requires_grad_()
    head(logits).backward()
    assert logits.grad.isfinite().all()
    assert head.exponent.grad.isfinite()


def test_noise_streams_learn_noise_that_the_eye_does_not_see():
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(4, 1, 64, 64)
    for number, mask in enumerate(masks):
        mask[:, 8 * number : 8 * number + 32, 28 - 8 * number : 60 - 8 * number] = 1
    images = (128 + torch.randn(4, 3, 64, 64, generator=generator) * (2 + 5 * masks)).round()
    torch.manual_seed(0)
    net = TriPINet(("srm",), channels=8, width=8, decoder="fpn")
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(25):
        optimiser.zero_grad()
        training_loss(net(images), masks, torch.ones(4))["loss"].backward()
        optimiser.step()
    right = (net(images).sides[0] > 0) == (masks > 0)
    assert right.float().mean() > 0.95


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="there is no stream"):
        TriPINet(())
    with pytest.raises(ValueError, match="no stream 'depth'"):
        TriPINet(("rgb", "depth"))
    net = TriPINet(get_args(Stream)[:1], channels=4, width=4)
    for shape in [(3, 64, 64), (1, 1, 64, 64), (1, 3, 31, 64)]:
        with pytest.raises(ValueError, match="sides of 32 pixels at least"):
            net(torch.zeros(shape))
