from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from projects.hodinet.decoders import DecoderName, DenseASPP, Head, build_decoder

SIZES, WIDTHS = ((13, 18), (7, 9), (4, 5), (2, 3)), (6, 8, 10, 12)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def stages(dtype=torch.float64):
    torch.manual_seed(1)
    return [torch.randn(2, width, *size, dtype=dtype) for width, size in zip(WIDTHS, SIZES, strict=True)]


def build(name, **options):
    torch.manual_seed(0)
    decoder = build_decoder(name, WIDTHS, **options).double()
    decoder(stages())  # so that the running statistics are no zeros and ones
    return decoder.eval()


def up(features, like):
    return F.interpolate(features, like.shape[2:], mode="bilinear", align_corners=False)


def test_the_cascade_stage_by_stage():
    decoder, fused, expected = build("cascaded"), stages(), [None] * 4
    expected[3] = decoder.stages[3](fused[3])
    for i in (2, 1, 0):
        expected[i] = decoder.stages[i](torch.cat([fused[i], up(expected[i + 1], fused[i])], dim=1))
    for found, each in zip(decoder(fused), expected, strict=True):
        torch.testing.assert_close(found, each)


def test_the_cascade_has_the_widths_of_the_paper():
    with torch.device("meta"):
        decoder, heads = build_decoder("cascaded", (64, 128, 256, 512)), [Head(width) for width in (32, 64, 128, 256)]
    widths = [[(block[0].in_channels, block[0].out_channels) for block in stage] for stage in decoder.stages]
    assert widths == [[(128, 64), (64, 32)], [(256, 128), (128, 64)], [(512, 256), (256, 128)], [(512, 256), (256, 256)]]
    assert decoder.widths == (32, 64, 128, 256)
    assert (count(decoder), sum(map(count, heads))) == (415_200, 69_380)
    assert all(layer.bias is not None for layer in decoder.modules() if isinstance(layer, nn.Conv2d))  # although a norm follows


def test_the_pyramid_stage_by_stage():
    decoder, fused, deeper = build("fpn"), stages(), None
    for i in (3, 2, 1, 0):
        lateral = decoder.lateral[i](fused[i])
        deeper = decoder.merge[i](lateral if deeper is None else lateral + up(deeper, lateral))
    torch.testing.assert_close(decoder(fused)[0], deeper)


@pytest.mark.parametrize("name", get_args(DecoderName))
@pytest.mark.parametrize("aspp", [False, True])
def test_every_decoder_gives_four_stages_that_depend_on_all_deeper_ones(name, aspp):
    torch.manual_seed(0)
    fused = [stage.requires_grad_() for stage in stages(torch.float32)]
    decoder = build_decoder(name, WIDTHS, aspp)
    decoded = decoder(fused)
    assert [stage.shape for stage in decoded] == [(2, width, *size) for width, size in zip(decoder.widths, SIZES, strict=True)]
    for number, output in enumerate(decoded):
        gradients = torch.autograd.grad((output * torch.randn_like(output)).sum(), fused, retain_graph=True, allow_unused=True)
        assert [gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients] == [j >= number for j in range(4)]


def test_dense_aspp_sees_all_earlier_branches():
    torch.manual_seed(0)
    layer, features = DenseASPP(8).double().eval(), torch.randn(1, 8, 40, 40, dtype=torch.float64)
    seen = [features]
    for number, branch in enumerate(layer.branches):
        assert (branch[0][0].in_channels, branch[1][0].dilation) == (8 + 2 * number, (2 ** (number + 1),) * 2)
        seen.append(branch(torch.cat(seen, dim=1)))
    torch.testing.assert_close(layer(features), layer.merge(torch.cat(seen, dim=1)))
    plain, with_aspp = build("cascaded"), build("cascaded", aspp=True)
    torch.testing.assert_close(with_aspp(stages())[0], with_aspp.aspp(plain(stages())[0]))  # of the finest stage only
    torch.testing.assert_close(with_aspp(stages())[1], plain(stages())[1])


def test_a_head_gives_one_logit_a_place():
    head = Head(6).double().eval()
    (convolution, norm, _), last = head.layers
    features = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    hidden = F.conv2d(features, convolution.weight, convolution.bias, padding=1) / (1 + norm.eps) ** 0.5
    expected = F.conv2d(hidden.relu(), last.weight, last.bias)
    torch.testing.assert_close(head(features), expected)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="no decoder 'unet': choose among cascaded, fpn"):
        build_decoder("unet", WIDTHS)
    for widths in ((64, 128, 256), (63, 128, 256, 512), (0, 2, 4, 6)):
        with pytest.raises(ValueError, match="the 4 stages have even widths"):
            build_decoder("cascaded", widths)
