import numpy as np
import pytest
import scipy.signal
import torch

from shared.layers import BayarConv2d, SRMResidual, srm_kernels

SMALL = np.array([[0, 0, 0, 0, 0], [0, -1, 2, -1, 0], [0, 2, -4, 2, 0], [0, -1, 2, -1, 0], [0, 0, 0, 0, 0]]) / 4
LARGE = np.array([[-1, 2, -2, 2, -1], [2, -6, 8, -6, 2], [-2, 8, -12, 8, -2], [2, -6, 8, -6, 2], [-1, 2, -2, 2, -1]]) / 12
LINE = np.array([[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, -2, 1, 0], [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]]) / 2


def test_kernels_are_those_of_the_paper_and_sum_to_zero():
    torch.testing.assert_close(srm_kernels(), torch.from_numpy(np.stack([SMALL, LARGE, LINE])).float(), rtol=0, atol=1e-7)
    assert srm_kernels().double().sum((1, 2)).abs().max() < 1e-6


@pytest.mark.parametrize("per_channel", [True, False])
def test_residuals_pixel_by_pixel(per_channel):
    pixels = torch.randint(0, 256, (2, 3, 9, 12), generator=torch.Generator().manual_seed(0)).double()
    found = SRMResidual(per_channel, clip=None)(pixels)
    padded = np.pad(pixels.numpy(), [(0, 0), (0, 0), (2, 2), (2, 2)], mode="reflect")
    each = np.stack(
        [[[scipy.signal.correlate2d(colour, kernel, "valid") for kernel in (SMALL, LARGE, LINE)] for colour in image] for image in padded]
    )  # (B, colour, kernel, H, W)
    expected = each.reshape(2, 9, 9, 12) if per_channel else each.sum(1)
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(SRMResidual(per_channel)(pixels), found.clamp(-10, 10))


def test_an_impulse_gives_the_mirrored_kernels():
    pixels = torch.zeros(1, 3, 11, 11)
    pixels[0, 1, 5, 5] = 1
    response = SRMResidual(clip=None)(pixels)[0]
    torch.testing.assert_close(response[3:6, 3:8, 3:8], srm_kernels().flip(1, 2))
    assert response[[0, 1, 2, 6, 7, 8]].abs().max() == 0


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("level", [0, 1, 37, 255])
def test_a_constant_picture_has_no_residual_at_all_up_to_its_border(per_channel, level):
    layer = SRMResidual(per_channel)
    response = layer(torch.full((1, 3, 17, 8), float(level)))
    assert response.shape == (1, layer.maps, 17, 8)
    assert response.abs().max() == 0


def test_nothing_of_the_residual_trains_or_is_stored():
    assert not list(SRMResidual().parameters())
    assert not SRMResidual().state_dict()


@pytest.mark.parametrize("optimiser", [torch.optim.SGD, torch.optim.Adam])
def test_the_constraint_holds_through_training(optimiser):
    torch.manual_seed(0)
    layer = BayarConv2d()
    start, steps = layer.kernel().detach().clone(), optimiser(layer.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(20):
        steps.zero_grad()
        layer(torch.rand(2, 3, 8, 8)).square().mean().backward()
        steps.step()
        kernel = layer.kernel().detach()
        assert (kernel[:, :, 2, 2] == -1).all()
        torch.testing.assert_close(kernel.sum((2, 3)), torch.zeros(3, 3), rtol=0, atol=1e-5)  # 1 less the centre
    assert (kernel - start).abs().max() > 0.01


def test_the_constrained_kernel_is_the_nearest_one_even_of_a_sum_of_zero():
    torch.manual_seed(0)
    layer = BayarConv2d(2, 4, 3).double()
    with torch.no_grad():
        layer.weight.sub_(layer.weight.mean(2, keepdim=True))
    neighbours = layer.kernel().detach().flatten(2)[:, :, [0, 1, 2, 3, 5, 6, 7, 8]]
    other = torch.randn_like(neighbours)
    other += (1 - other.sum(2, keepdim=True)) / 8
    offset, along = layer.weight - neighbours, other - neighbours
    torch.testing.assert_close((offset * along).sum(2), torch.zeros(4, 2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(neighbours.sum(2), torch.ones(4, 2, dtype=torch.float64))


def test_the_constrained_convolution_predicts_a_pixel_from_its_neighbours():
    torch.manual_seed(0)
    layer, pixels = BayarConv2d(3, 2).double(), torch.rand(1, 3, 7, 6, dtype=torch.float64)
    padded = np.pad(pixels[0].numpy(), [(0, 0), (2, 2), (2, 2)], mode="reflect")
    kernel = layer.kernel().detach().numpy()
    expected = np.stack([sum(scipy.signal.correlate2d(padded[i], kernel[o, i], "valid") for i in range(3)) for o in range(2)])
    torch.testing.assert_close(layer(pixels)[0].detach(), torch.from_numpy(expected))
    assert layer(torch.full((1, 3, 7, 6), 255.0, dtype=torch.float64)).abs().max() < 1e-10


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="positive magnitude, not 0"):
        SRMResidual(clip=0)
    with pytest.raises(ValueError, match="odd and at least 3, not 4"):
        BayarConv2d(kernel_size=4)
