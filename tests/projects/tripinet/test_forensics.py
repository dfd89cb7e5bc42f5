from typing import get_args

import numpy as np
import pytest
import scipy.fft
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import normalize

from projects.tripinet.forensics import Stream, build_front_end, dct2, dct_matrix, idct2
from shared.layers import SRMResidual

SIZES = [(32, 32), (33, 47), (64, 21)]
GLOBAL = ("dct_corner", "dct_radial", "fft")


def pictures(height=33, width=47, count=2):
    return torch.randint(0, 256, (count, 3, height, width), generator=torch.Generator().manual_seed(height)).double()


@pytest.mark.parametrize("size", [1, 2, 7, 8, 33, 100])
def test_the_dct_matrix_is_the_orthonormal_one_of_scipy(size):
    matrix = dct_matrix(size)
    np.testing.assert_allclose(matrix, scipy.fft.dct(np.eye(size), axis=0, norm="ortho"), atol=1e-12)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-12)
    assert torch.equal(dct_matrix(size, 1), matrix[:1])


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_transform_of_pictures_is_that_of_scipy_and_invertible(height, width):
    pixels = pictures(height, width)
    np.testing.assert_allclose(dct2(pixels), scipy.fft.dctn(pixels.numpy(), axes=(2, 3), norm="ortho"), atol=1e-9)
    assert (idct2(dct2(pixels.float())) - pixels).abs().max() < 1e-3
    assert (idct2(dct2(pixels)) - pixels).abs().max() < 1e-9


def is_low(name, alpha, height, width):
    rows, columns = np.arange(height)[:, None], np.arange(width)
    if name == "dct_corner":
        return (rows < alpha * height) & (columns < alpha * width)
    if name == "dct_radial":
        return (rows / height + columns / width) / 2 < alpha
    return (abs(rows - height // 2) / height < alpha / 2) & (abs(columns - width // 2) / width < alpha / 2)


@pytest.mark.parametrize("name", GLOBAL)
@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.3, 0.7, 1.0])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_high_frequencies_are_those_of_the_masked_spectrum(name, alpha, height, width):
    pixels = pictures(height, width)
    if name == "fft":
        spectrum = scipy.fft.fftshift(scipy.fft.fft2(pixels.numpy()), axes=(2, 3))
        expected = scipy.fft.ifft2(scipy.fft.ifftshift(np.where(is_low(name, alpha, height, width), 0, spectrum), axes=(2, 3))).real
    else:
        spectrum = scipy.fft.dctn(pixels.numpy(), axes=(2, 3), norm="ortho")
        expected = scipy.fft.idctn(np.where(is_low(name, alpha, height, width), 0, spectrum), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(build_front_end(name, alpha)(pixels), expected / 8, atol=1e-9)
    np.testing.assert_allclose(build_front_end(name, alpha)(pixels.float()), expected / 8, atol=1e-4)


@pytest.mark.parametrize("name", GLOBAL)
def test_nothing_is_removed_at_alpha_zero(name):
    pixels = pictures().float()
    torch.testing.assert_close(build_front_end(name, alpha=0)(pixels) * 8, pixels, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", [*GLOBAL, "srm", "srm3", "haar"])
@pytest.mark.parametrize("level", [0, 1, 200, 255])
def test_a_flat_picture_has_no_traces(name, level):
    flat = torch.full((1, 3, 50, 37), level, dtype=torch.uint8)
    assert build_front_end(name)(flat).abs().max() < 1e-4
    assert build_front_end(name, scaling="minmax")(flat).abs().max() < 0.01


@pytest.mark.parametrize("name", GLOBAL)
def test_minmax_scales_each_picture_to_its_range(name):
    maps = build_front_end(name, scaling="minmax")(pictures(count=3) * torch.tensor([0.1, 0.5, 1.0]).view(3, 1, 1, 1))
    assert maps.amin((1, 2, 3)).tolist() == [0, 0, 0]
    torch.testing.assert_close(maps.amax((1, 2, 3)), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(("height", "width"), [(8, 6), (7, 9)])
def test_haar_details_block_by_block(height, width):
    pixels = pictures(height, width)
    maps, padded = build_front_end("haar")(pixels), np.pad(pixels, [(0, 0), (0, 0), (0, 1), (0, 1)], mode="reflect")
    for row in range(height):
        for column in range(width):
            top, left = row // 2 * 2, column // 2 * 2
            a, b, c, d = (padded[:, :, top + i, left + j] for i in (0, 1) for j in (0, 1))
            details = np.stack([a - b + c - d, a + b - c - d, a - b - c + d], axis=2) / 2 / 8  # orthonormal, then the scale
            np.testing.assert_allclose(maps[:, :, row, column], details.reshape(2, 9), atol=1e-12)


def test_block_dct_block_by_block():
    pixels = pictures(24, 20)
    planes = build_front_end("block_dct")(pixels)
    assert planes.shape == (2, 21, 24, 20)
    assert torch.equal(planes.sum(1), torch.ones(2, 24, 20, dtype=torch.float64))
    luma = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2] - 128
    for top in (0, 8, 16):
        for left in (0, 8):
            block = scipy.fft.dctn(luma[:, top : top + 8, left : left + 8].numpy(), axes=(1, 2), norm="ortho")
            expected = np.minimum(np.abs(np.round(block)), 20)
            np.testing.assert_array_equal(planes[:, :, top : top + 8, left : left + 8].argmax(1), expected)


def test_block_dct_is_of_the_grid_that_begins_at_the_first_pixel():
    pixels, front_end = pictures(40, 40), build_front_end("block_dct")
    assert torch.equal(front_end(pixels[:, :, 8:32, 16:32]), front_end(pixels)[:, :, 8:32, 16:32])
    assert not torch.equal(front_end(pixels[:, :, 8:32, 12:28]), front_end(pixels)[:, :, 8:32, 12:28])


def test_colours_and_noise():
    pixels = pictures().float()
    expected = normalize(pixels / 255, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    torch.testing.assert_close(build_front_end("rgb")(pixels), expected)
    assert torch.equal(build_front_end("srm")(pixels), SRMResidual()(pixels))
    assert build_front_end("srm")(pixels).abs().max() == 10  # grey levels


@pytest.mark.parametrize("name", get_args(Stream))
def test_every_front_end_keeps_the_size_and_float32(name):
    torch.manual_seed(0)
    front_end, pixels = build_front_end(name), pictures(35, 50).to(torch.uint8)
    maps = front_end(pixels)
    assert maps.shape == (2, front_end.maps, 35, 50)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = front_end(pixels)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, maps)
    assert F.l1_loss(front_end(pixels[1:]), maps[1:]) < 1e-5  # whatever else is in the batch


def test_cached_matrices_serve_training_after_inference():
    with torch.inference_mode():
        build_front_end("dct_corner")(torch.rand(1, 3, 39, 41))
    pixels = torch.rand(1, 3, 39, 41, requires_grad=True)
    build_front_end("dct_corner")(pixels).square().sum().backward()
    assert pixels.grad.abs().sum() > 0


def test_wrong_options_are_named():
    with pytest.raises(ValueError, match="no stream 'dct': choose among rgb, srm"):
        build_front_end("dct")
    with pytest.raises(ValueError, match=r"alpha, .* in \[0, 1\], not 2"):
        build_front_end("fft", alpha=2)
    with pytest.raises(ValueError, match="no scaling 'max': choose fixed or minmax"):
        build_front_end("fft", scaling="max")
