from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.ndimage import uniform_filter
from torch.nn import functional as F

from projects.umed.model import CentralDifferenceConv, ContourGenerator, Perturbator, TextureGenerator, UNet, pad_to_multiple
from projects.umed.perturb import local_mean

SMALL = (4, 6, 8)


def test_central_difference_is_the_sum_of_section_2_3():
    torch.manual_seed(0)
    conv, features = CentralDifferenceConv(2, 3, theta=0.7).double(), torch.rand(2, 2, 6, 7, dtype=torch.float64)
    found = conv(features)
    padded = F.pad(features, (1, 1, 1, 1), mode="replicate")
    expected = torch.zeros_like(found)
    for down in range(3):
        for right in range(3):
            near = padded[:, :, down : down + 6, right : right + 7]
            expected += torch.einsum("oi,bihw->bohw", conv.vanilla[:, :, down, right], near)
            expected += 0.7 * torch.einsum("oi,bihw->bohw", conv.central[:, :, down, right], near - features)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_the_difference_part_of_a_constant_is_zero_also_at_the_border(value):
    conv = CentralDifferenceConv(3, 5).double()
    constant = F.pad(torch.full((1, 3, 5, 5), value, dtype=torch.float64), (1, 1, 1, 1), mode="replicate")
    assert F.conv2d(constant, conv.difference_kernel()).abs().max() < 1e-14
    conv.vanilla.data.zero_()
    assert conv(constant).abs().max() < 1e-14
    assert CentralDifferenceConv(3, 5).theta.item() == 0.5


def test_theta_and_both_kernels_learn():
    conv = CentralDifferenceConv(1, 2)
    conv(torch.rand(1, 1, 5, 5)).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in conv.parameters())
    assert {name for name, _ in conv.named_parameters()} == {"vanilla", "central", "theta"}


@pytest.mark.parametrize("size", [(16, 16), (5, 7), (33, 20), (1, 1)])
@pytest.mark.parametrize("channels", [1, 3])
def test_networks_take_any_size(size, channels):
    images = torch.rand(2, channels, *size)
    assert ContourGenerator(channels, SMALL)(images).shape == images.shape
    assert ContourGenerator(channels, SMALL, "plain")(images).shape == images.shape
    assert TextureGenerator(channels, SMALL)(images).shape == images.shape
    for norm in ("instance", "batch"):
        assert UNet(channels, 4, SMALL, norm)(images).shape == (2, 4, *size)


def test_padding_repeats_the_border():
    images = torch.rand(1, 1, 5, 9)
    padded = pad_to_multiple(images, 4)
    assert padded.shape == (1, 1, 8, 12)
    assert torch.equal(padded[..., :5, :9], images)
    assert torch.equal(padded[0, 0, 5:, :9], images[0, 0, 4:].expand(3, -1))
    assert pad_to_multiple(padded, 4) is padded


def test_published_sizes():
    """Counted by hand: k k in out of every convolution, twice that in the contour's encoder with a theta each, 2 width for a norm."""

    def norms(*widths):
        return 2 * sum(widths)

    widths = (16, 32, 64, 128)
    encoder = sum(2 * 9 * (before * after + after * after) + 2 for before, after in zip((1, 16, 32, 64), widths, strict=True))
    decoder = sum(4 * deep * wide + wide + 9 * 2 * wide * wide for wide, deep in ((16, 32), (32, 64), (64, 128)))
    expected = encoder + decoder + norms(*widths, *widths, 16, 32, 64) + 17
    assert sum(p.numel() for p in ContourGenerator(1).parameters()) == expected
    widths = (32, 64, 128, 256, 512)
    encoder = sum(9 * (before * after + after * after) for before, after in zip((1, *widths[:-1]), widths, strict=True))
    decoder = sum(4 * deep * wide + wide + 9 * 3 * wide * wide for wide, deep in pairwise(widths))
    expected = encoder + decoder + 2 * norms(*widths) + 2 * norms(*widths[:-1]) + 2 * 32 + 2
    assert sum(p.numel() for p in UNet(1, 2).parameters()) == expected


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match="instance, batch"):
        UNet(1, 2, SMALL, "layer")
    with pytest.raises(ValueError, match="cdc, plain"):
        ContourGenerator(1, SMALL, "sobel")
    with pytest.raises(ValueError, match="turn on one"):
        Perturbator(None, None, 4 / 255, 1)
    with pytest.raises(ValueError, match="epsilon is in"):
        Perturbator(ContourGenerator(1, SMALL), None, 4, 1)
    with pytest.raises(ValueError, match="count, code, transitions and texture, fixed"):
        Perturbator(ContourGenerator(1, SMALL), None, 4 / 255, 1, clip="hard")


def boxes(count, size, start=4, end=12):
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    masks[:, start:end, start:end] = 1
    return masks


@pytest.mark.parametrize("channels", [1, 3])
def test_perturbations_stay_in_their_place_and_bound(channels):
    torch.manual_seed(0)
    net = Perturbator(ContourGenerator(channels, SMALL), TextureGenerator(channels, SMALL), 4 / 255, radius=1).eval()
    images, masks = torch.rand(3, channels, 17, 17), boxes(3, 17)
    masks[2] = 0
    delta = net(images, masks)
    assert delta.shape == images.shape
    assert 0 < delta.abs().max() <= 4 / 255
    assert delta[:2, :, :3].abs().max() == 0
    assert delta[2].abs().max() == 0, "without foreground nothing is perturbed"
    alone = torch.cat([net(images[row : row + 1], masks[row : row + 1]) for row in range(3)])
    torch.testing.assert_close(alone, delta, atol=1e-7, rtol=0)


def test_images_and_masks_that_do_not_fit_are_named():
    net = Perturbator(ContourGenerator(1, SMALL), None, 4 / 255, 1)
    images, masks = torch.rand(2, 1, 16, 16), boxes(2, 16)
    for wrong in (((255 * images).byte(), masks), (images, masks[:, None]), (images, masks[..., :8]), (images, masks[:1])):
        with pytest.raises(ValueError, match=r"images are \(B, C, H, W\) floats in \[0, 1\] and masks \(B, H, W\), got"):
            net(*wrong)


def test_parts_can_be_left_out():
    images, masks = torch.rand(1, 1, 16, 16), boxes(1, 16)
    only_contour = Perturbator(ContourGenerator(1, SMALL), None, 4 / 255, 1)(images, masks)
    only_texture = Perturbator(None, TextureGenerator(1, SMALL), 4 / 255, 1, clip="fixed")(images, masks)
    assert only_contour[0, 0, 5:11, 5:11].abs().max() == 0
    assert (only_texture[0, 0, 5:11, 5:11] != 0).all()
    assert (only_contour * only_texture).abs().max() == 0


def test_a_high_pass_leaves_no_brightness():
    images, masks = torch.rand(2, 1, 24, 24), torch.ones(2, 24, 24, dtype=torch.int64)

    class Raw(torch.nn.Module):
        def __init__(self, raw):
            super().__init__()
            self.raw = raw

        def forward(self, images):
            return self.raw

    board = ((torch.arange(24)[:, None] + torch.arange(24)) % 2 * 2.0 - 1).expand(2, 1, 24, 24)
    for raw, left in (
        (torch.full((2, 1, 24, 24), 3.0), 0.0),
        (board, 8 / 9),
    ):  # of a checkerboard's 3 x 3 pixels five have one sign and four the other
        net = Perturbator(Raw(raw), Raw(raw), 4 / 255, 1, clip="fixed", high_pass=3)
        expected = 4 / 255 * (left * board).tanh()
        torch.testing.assert_close(net(images, masks)[:, :, 1:-1, 1:-1], expected[:, :, 1:-1, 1:-1], atol=1e-6, rtol=0)
    noise = torch.randn(2, 1, 24, 24, dtype=torch.float64)
    for side in (3, 7):
        expected = torch.from_numpy(np.stack([uniform_filter(part[0].numpy(), side, mode="nearest") for part in noise]))[:, None]
        torch.testing.assert_close(local_mean(noise, side), expected, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="an odd side of at least 3 pixels"):
        Perturbator(Raw(noise), None, 4 / 255, 1, high_pass=4)
