from typing import get_args

import pytest
import torch
from torch.nn import functional as F

from projects.tripinet.decoders import DecoderName, SqueezeExcitation, build_decoder

SIZES = ((13, 18), (7, 9), (4, 5), (2, 3))


def stages(channels=6):
    torch.manual_seed(1)
    return [torch.randn(2, channels, *size, dtype=torch.float64) for size in SIZES]


def build(name, channels=6, width=8):
    torch.manual_seed(0)
    decoder = build_decoder(name, channels, width).double()
    decoder(stages())  # so that the running statistics are no zeros and ones
    return decoder.eval()


def up(features, like):
    return F.interpolate(features, like.shape[2:], mode="bilinear", align_corners=False)


def test_squeeze_and_excitation():
    torch.manual_seed(0)
    layer, z = SqueezeExcitation(32).double(), torch.randn(2, 32, 5, 4, dtype=torch.float64)
    first, _, second, _ = layer.weigh
    assert first.out_features == 8
    for image, found in zip(z, layer(z), strict=True):
        weights = 1 / (1 + (-(second.weight @ (first.weight @ image.mean((1, 2)) + first.bias).relu() + second.bias)).exp())
        torch.testing.assert_close(found, image * weights[:, None, None] + image)
    assert SqueezeExcitation(256).weigh[0].out_features == 16


@pytest.mark.parametrize(("name", "is_progressive", "excites"), [("pise", True, True), ("concat", True, False), ("se_only", False, True)])
def test_integration_stage_by_stage(name, is_progressive, excites):
    decoder, fused = build(name), stages()
    lateral = [decoder.lateral[i](fused[i]) for i in range(4)]
    expected = {}
    for i in (3, 2, 1, 0):
        deeper = range(i + 1, 4) if is_progressive else range(i + 1, min(i + 2, 4))
        z = torch.cat([lateral[i], *(up(expected[j], lateral[i]) for j in deeper)], dim=1)
        if excites:
            z = z * decoder.excite[i].weigh(z.mean((2, 3)))[:, :, None, None] + z
        expected[i] = decoder.merge[i](z)
    for i, found in enumerate(decoder(fused)):
        torch.testing.assert_close(found, expected[i])


def test_progressive_integration_takes_all_deeper_outputs():
    assert [merge[0].in_channels for merge in build("pise").merge] == [4 * 8, 3 * 8, 2 * 8, 8]
    assert [merge[0].in_channels for merge in build("se_only").merge] == [2 * 8, 2 * 8, 2 * 8, 8]


def test_pyramid_and_cascade_stage_by_stage():
    pyramid, cascade, fused = build("fpn"), build("cascaded"), stages()
    added, joined = None, None
    for i in (3, 2, 1, 0):
        lateral = pyramid.lateral[i](fused[i])
        added = pyramid.merge[i](lateral if added is None else lateral + up(added, lateral))
        lateral = cascade.lateral[i](fused[i])
        joined = cascade.merge[i](lateral if joined is None else torch.cat([lateral, up(joined, lateral)], dim=1))
    torch.testing.assert_close(pyramid(fused)[0], added)
    torch.testing.assert_close(cascade(fused)[0], joined)


@pytest.mark.parametrize("name", get_args(DecoderName))
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_every_decoder_gives_four_stages_that_depend_on_all_deeper_ones(name, norm):
    torch.manual_seed(0)
    fused = [stage.float().requires_grad_() for stage in stages()]
    decoded = build_decoder(name, 6, 8, norm)(fused)
    assert [stage.shape for stage in decoded] == [(2, 8, *size) for size in SIZES]
    for number, output in enumerate(decoded):
        gradients = torch.autograd.grad((output * torch.randn_like(output)).sum(), fused, retain_graph=True, allow_unused=True)
        assert [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients] == [j >= number for j in range(4)]


def test_a_wrong_name_is_told():
    with pytest.raises(ValueError, match="no decoder 'unet': choose among pise, fpn"):
        build_decoder("unet", 8, 8)
