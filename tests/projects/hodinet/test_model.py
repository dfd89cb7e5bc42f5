from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.hodinet.decoders import DecoderName
from projects.hodinet.fusion import FusionName
from projects.hodinet.losses import saliency_loss
from projects.hodinet.model import HODINet

WIDTHS = (8, 12, 16, 20)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def pair(height=64, width=64, batch=2):
    generator = torch.Generator().manual_seed(height)
    images = torch.randint(0, 256, (batch, 3, height, width), dtype=torch.uint8, generator=generator)
    return images, torch.rand(batch, 1, height, width, generator=generator)


def build(rgb="tiny_transformer", depth="tiny_cnn", seed=0, **options):
    """A small network whose norms have seen pictures."""
    torch.manual_seed(seed)
    net = HODINet(rgb, depth, **{"widths": WIDTHS} | options)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics of the pictures alone, so that deep stages have a signal
    with torch.no_grad():
        net(*pair(64, 96))
    return net.eval()


@pytest.fixture(scope="module")
def net():
    return build()


def test_the_full_size_has_the_published_counts():
    with torch.device("meta"):
        net = HODINet()
    modules = count(net.fusions) + count(net.decoder) + count(net.heads)
    assert (count(net.encoders["rgb"]), count(net.encoders["depth"]), modules, count(net)) == (44_725_696, 42_500_160, 2_902_920, 90_128_776)
    assert [count(fusion) for fusion in net.fusions] == [20_882, 82_706, 476_672, 1_838_080]


def test_the_full_size_has_the_published_shapes():
    with torch.device("meta"):
        net = HODINet(chunk=0)
        images, depth = torch.zeros(1, 3, 256, 256), torch.zeros(1, 1, 256, 256)
        outputs = net(images, depth)
        fused = [interaction.fused.shape for interaction in net.interactions(images, depth)]
        decoded = net.decoder([torch.zeros(shape) for shape in fused])
    assert fused == [(1, 64, 64, 64), (1, 128, 32, 32), (1, 256, 16, 16), (1, 512, 8, 8)]
    assert [stage.shape for stage in decoded] == [(1, 32, 64, 64), (1, 64, 32, 32), (1, 128, 16, 16), (1, 256, 8, 8)]
    assert [side.shape for side in outputs] == [(1, 1, 256, 256)] * 4


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 64), (64, 64), (150, 97)])
def test_maps_have_the_size_of_the_picture(net, height, width):
    with torch.no_grad():
        sides, finest = net(*pair(height, width, 1)), net(*pair(height, width, 1), sides=False)
    assert [side.shape for side in sides] == [(1, 1, height, width)] * 4
    assert len(finest) == 1
    assert torch.equal(finest[0], sides[0])


def test_padding_is_the_reflected_pair(net):
    images, depth = pair(50, 61)
    padded = [F.pad(maps, [0, 3, 0, 14], mode="reflect") for maps in (images.float(), depth)]
    for found, expected in zip(net(images, depth), net(*padded), strict=True):
        torch.testing.assert_close(found, expected[:, :, :50, :61], rtol=1e-4, atol=1e-4)


def test_colours_are_normalised_and_depth_is_repeated(net):
    images, depth = pair()
    seen = {}
    hooks = [encoder.register_forward_pre_hook(lambda _, inputs, name=name: seen.update({name: inputs[0]})) for name, encoder in net.encoders.items()]
    net(images, depth)
    for hook in hooks:
        hook.remove()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(seen["rgb"], (images / 255 - mean) / std)
    assert torch.equal(seen["depth"], depth.repeat(1, 3, 1, 1))
    assert torch.equal(net(images, depth)[0], net(images.float(), depth)[0])


def test_a_picture_alone_and_in_a_batch_is_the_same(net):
    images, depth = pair(48, 80, 4)
    with torch.no_grad():
        together, apart = net(images, depth)[0], [net(image[None], near[None])[0] for image, near in zip(images, depth, strict=True)]
    torch.testing.assert_close(together, torch.cat(apart), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rgb", "depth"),
    [("tiny_transformer", "tiny_cnn"), ("tiny_cnn", "tiny_transformer"), ("tiny_cnn", "tiny_cnn"), ("tiny_transformer", "tiny_transformer")],
)
def test_gradients_of_the_finest_head_reach_every_pair_of_encoders(rgb, depth):
    net = build(rgb, depth).train()
    finest = net(*pair())[0]
    (finest * torch.randn_like(finest)).sum().backward()
    for encoder in net.encoders.values():
        assert all(parameter.grad.isfinite().all() for parameter in encoder.parameters())
        assert all(stage_weights(encoder))


def stage_weights(encoder):
    """Whether any weight of each stage has a gradient."""
    stages = encoder.stages if hasattr(encoder, "stages") else encoder.net.stages
    return [any(parameter.grad.abs().sum() > 0 for parameter in stage.parameters()) for stage in stages]


@pytest.mark.parametrize("streams", [("rgb",), ("depth",), ("depth", "rgb")])
def test_a_stream_alone_needs_no_other(streams):
    net = build(streams=streams)
    assert set(net.encoders) == set(streams)
    images, depth = pair()
    given = (images if "rgb" in streams else None, depth if "depth" in streams else None)
    assert torch.equal(net(*given)[0], net(images, depth)[0])
    assert count(net) == sum(count(part) for part in (net.encoders, net.fusions, net.decoder, net.heads))


@pytest.mark.parametrize("fusion", get_args(FusionName))
@pytest.mark.parametrize("decoder", get_args(DecoderName))
def test_fusions_and_decoders_go_together(fusion, decoder):
    net = build(fusion=fusion, decoder=decoder, placement="SCSC", aspp=decoder == "fpn")
    assert [side.shape for side in net(*pair(32, 48, 1))] == [(1, 1, 32, 48)] * 4


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": 7}, {"literal": True}])
def test_ways_of_computing_give_the_same_map(net, options):
    other = build(**options)
    torch.testing.assert_close(other(*pair())[0], net(*pair())[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"order": 3}, {"pool": 2}, {"signed": True}, {"placement": "CCSS"}])
def test_options_change_the_map_and_train(net, options):
    other = build(**options)
    assert not torch.allclose(other(*pair())[0], net(*pair())[0])
    saliency_loss(other.train()(*pair()), torch.rand(2, 1, 64, 64) > 0.5)["loss"].backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in other.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_missing", [False, True])
def test_half_precision_gives_finite_losses_and_gradients(dtype, is_missing):
    net = build().train()
    images, depth = pair()
    with torch.autocast("cpu", dtype=dtype):
        outputs = net(images, torch.zeros_like(depth) if is_missing else depth)
        loss = saliency_loss(outputs, torch.rand(2, 1, 64, 64) > 0.5)["loss"]
    loss.backward()
    assert outputs[0].dtype == torch.float32
    assert loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_gates_of_every_stage(net):
    images, depth = pair(50, 64)
    interactions = net.interactions(images, depth)
    assert [part.gate.shape for part in interactions] == [(2, 1, 16, 16), (2, 1, 8, 8), (2, 16, 1, 1), (2, 20, 1, 1)]
    decoded = net.decoder([part.fused for part in interactions])
    torch.testing.assert_close(F.interpolate(net.heads[0](decoded[0]), (64, 64), mode="bilinear")[:, :, :50], net(images, depth)[0])
    with pytest.raises(ValueError, match="only the fusion high_order"):
        build(fusion="add").interactions(images, depth)


def test_a_stored_network_is_the_same(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other = build(seed=1)
    assert not torch.equal(other(*pair())[0], net(*pair())[0])
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(other(*pair())[0], net(*pair())[0])


@pytest.mark.slow
def test_export_takes_the_plain_way(net):
    images, depth = pair(64, 64, 2)
    exported = torch.export.export(net, (images.float(), depth), dynamic_shapes=({0: torch.export.Dim.AUTO}, {0: torch.export.Dim.AUTO}))
    torch.testing.assert_close(exported.module()(images.float(), depth), net(images, depth), rtol=1e-4, atol=1e-4)


def test_it_learns_what_neither_modality_shows():
    """Salient is what is both red and near; red alone and near alone are not."""
    generator = torch.Generator().manual_seed(0)
    images, depth = torch.full((8, 3, 64, 64), 100, dtype=torch.uint8), torch.zeros(8, 1, 64, 64)
    masks = torch.zeros(8, 1, 64, 64, dtype=torch.bool)
    for number in range(8):
        corners = [(8, 8), (8, 36), (36, 8), (36, 36)]
        both, red, near, _ = (corners[place] for place in torch.randperm(4, generator=generator))
        for y, x in (both, red):
            images[number, 0, y : y + 20, x : x + 20] = 220
        for y, x in (both, near):
            depth[number, :, y : y + 20, x : x + 20] = 1
        masks[number, :, both[0] : both[0] + 20, both[1] : both[1] + 20] = True
    torch.manual_seed(0)
    net = HODINet("tiny_transformer", "tiny_cnn", widths=WIDTHS)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-2)
    for _ in range(40):
        optimiser.zero_grad()
        saliency_loss(net(images, depth), masks, "bce_iou")["loss"].backward()
        optimiser.step()
    p, y = net(images, depth)[0].sigmoid(), masks.float()
    assert (p * y).sum() / (p + y - p * y).sum() > 0.7


def test_what_does_not_fit_is_named(net):
    for streams in ((), ("rgb", "rgb"), ("thermal",)):
        with pytest.raises(ValueError, match="the streams are rgb, depth or both"):
            HODINet(streams=streams)
    images, depth = pair()
    for wrong in ((None, depth), (images[0], depth), (images[:, :1], depth), (images[..., :31], depth[..., :31])):
        with pytest.raises(ValueError, match=r"rgb must have the shape \(B, 3, H, W\) with sides of 32 pixels at least"):
            net(*wrong)
    with pytest.raises(ValueError, match=r"depth must have the shape \(B, 1, H, W\)"):
        net(images, depth.repeat(1, 3, 1, 1))
    with pytest.raises(ValueError, match=r"depth must be floats in \[0, 1\], near = 1, not torch.uint8"):
        net(images, (255 * depth).byte())
    with pytest.raises(ValueError, match=r"of one size, not \(2, 3, 64, 64\) and \(2, 1, 64, 48\)"):
        net(images, depth[..., :48])
