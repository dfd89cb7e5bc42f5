from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

from projects.comad import bilateral
from projects.comad.bilateral import TILE, BilateralFilter, colour_cells, gaussian_matrix, spatial_terms, tiles
from projects.comad.crf import DenseCRF


def brute_kernel(image, sxy, srgb):
    """The bilateral kernel of all pairs of pixels, (N, N) float64."""
    height, width = image.shape[1:]
    places = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    exponent = torch.cdist(places, places) ** 2 / (2 * sxy**2)
    if srgb is not None:
        colours = image.flatten(1).T.double()
        exponent = exponent + torch.cdist(colours, colours) ** 2 / (2 * srgb**2)
    return torch.exp(-exponent)


def brute_mean_field(probabilities, image, sxy=1, compat=3, bilateral_sxy=67, bilateral_srgb=3, bilateral_compat=4, iterations=2):
    """The mean field with the kernels of all pairs, (K, H, W) float64."""
    kernel = torch.zeros(())
    for weight, each in ((compat, brute_kernel(image, sxy, None)), (bilateral_compat, brute_kernel(image, bilateral_sxy, bilateral_srgb))):
        sums = each.sum(1)
        kernel = kernel + weight * each / (sums[:, None] * sums).sqrt()
    start = probabilities.flatten(1).double()
    maps = start
    for _ in range(iterations):
        maps = (start.log() + maps @ kernel).softmax(0)
    return maps.view(probabilities.shape)


def scene(height, width, noise=3.0, seed=0):
    """A picture of discs on an unevenly lit ground with noise, (3, H, W) uint8, and flat soft maps of 3 components, (3, H, W)."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    image = torch.tensor([90.0, 100.0, 120.0])[:, None, None] * (1 + 0.3 * x / width)
    owner = torch.zeros(height, width, dtype=torch.long)
    for number, colour in enumerate(([200.0, 60.0, 50.0], [60.0, 170.0, 80.0]), start=1):
        disc = ((y - height * (0.2 + 0.3 * number)) ** 2 + (x - width * (0.95 - 0.3 * number)) ** 2) < (0.22 * min(height, width)) ** 2
        image = torch.where(disc, torch.tensor(colour)[:, None, None], image)
        owner[disc] = number
    image = image + noise * torch.randn(image.shape, generator=generator)
    coarse = F.interpolate(F.one_hot(owner, 3).movedim(-1, 0)[None].float(), size=(height // 8, width // 8), mode="bilinear", antialias=True)
    coarse = (coarse + 0.3 * torch.rand(coarse.shape, generator=generator)).clamp(0, 1)
    soft = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=True).softmax(1)[0]
    return image.round().clamp(0, 255).to(torch.uint8), soft, owner


@pytest.mark.parametrize(("height", "width", "sigma"), [(17, 24, 67.0), (24, 31, 9.0), (1, 12, 2.0)])
def test_the_terms_of_places_leave_no_more_than_the_tolerance(height, width, sigma):
    terms = spatial_terms(height, width, sigma, 3e-3)
    basis = (terms.rows[:, None] * terms.columns).flatten(0, 1).double()
    exact = brute_kernel(torch.zeros(3, height, width), sigma, None)
    assert (basis @ basis.T - exact).abs().max() <= 3e-3 + 1e-6
    assert (basis[:, :-1] @ basis[:, :-1].T - exact).abs().max() > 3e-3 or basis.shape[1] == 1  # the fewest


@pytest.mark.parametrize(("sxy", "srgb"), [(67.0, 3.0), (8.0, 4.5)])
def test_the_filter_with_cells_of_one_level_is_the_kernel_of_all_pairs(sxy, srgb):
    image = scene(20, 24)[0]
    values = torch.rand(20 * 24, 4, generator=torch.Generator().manual_seed(1))
    expected = brute_kernel(image, sxy, srgb) @ values.double()
    found = BilateralFilter(image, sxy, srgb, tolerance=1e-6, cell=1, reach=5.5)(values)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_cells_join_exactly_the_pairs_within_their_reach():
    image = scene(20, 20)[0]
    cells = colour_cells(image, 3.0, 2, 3.5)
    colours = image.flatten(1).T.long()
    places, owners = torch.unique(colours // 2, dim=0, return_inverse=True)
    near = (2 * torch.cdist(places.double(), places.double())) <= 3.5 * 3
    assert torch.equal(cells.kernel.to_dense() > 0, near)
    assert torch.equal(cells.owners, owners)
    torch.testing.assert_close(cells.means[owners] + cells.offsets, colours.float())
    torch.testing.assert_close(torch.zeros(len(places), 3).index_add_(0, owners, cells.offsets), torch.zeros(len(places), 3), atol=1e-4, rtol=0)


def test_tiles_hold_every_pixel_once_and_pixels_of_one_cell():
    owners = torch.randint(0, 40, (900,), generator=torch.Generator().manual_seed(0)).unique(return_inverse=True)[1]
    laid = tiles(owners, int(owners.max()) + 1)
    filled = laid.pixels < 900
    assert torch.equal(laid.pixels[filled].sort().values, torch.arange(900))
    assert torch.equal(laid.pixels[laid.places], torch.arange(900))
    assert torch.equal(laid.cells.repeat_interleave(TILE)[filled], owners[laid.pixels[filled]])
    assert torch.equal(laid.sums.to_dense(), F.one_hot(laid.cells).T.float())


@pytest.mark.parametrize("noise", [0.0, 3.0])
def test_the_filter_is_near_that_of_all_pairs(noise):
    image = scene(40, 48, noise)[0]
    values = torch.cat([torch.ones(1920, 1), torch.rand(1920, 2, generator=torch.Generator().manual_seed(1))], 1)
    expected = brute_kernel(image, 14, 3) @ values.double()
    found = BilateralFilter(image, 14, 3)(values).double()
    assert (found - expected).abs().mean() < 0.03 * expected.mean()
    assert (found[:, 1:] / found[:, :1] - expected[:, 1:] / expected[:, :1]).abs().mean() < 0.01


def test_the_filter_works_in_parts(monkeypatch):
    image, soft, _ = scene(24, 24)
    values = soft.flatten(1).T
    expected = BilateralFilter(image, 9, 3)(values)
    monkeypatch.setattr(bilateral, "CHUNK", 1)
    parts = BilateralFilter(image, 9, 3)
    assert parts.basis is None
    assert parts.step < parts.terms.rows.shape[1]
    torch.testing.assert_close(parts(values), expected, rtol=1e-4, atol=1e-4)


def test_cells_of_noise_are_widened_until_their_pairs_are_few(monkeypatch):
    image = scene(40, 40, noise=12.0)[0]
    assert colour_cells(image, 3.0, 1, 3.5).kernel._nnz() > 3000
    monkeypatch.setattr(bilateral, "MAX_PAIRS", 3000)
    cells = colour_cells(image, 3.0, 1, 3.5)
    assert cells.kernel._nnz() <= 3000
    assert len(cells.owners) == 1600


@pytest.mark.parametrize("noise", [0.0, 3.0, 8.0])
@pytest.mark.parametrize("bilateral_sxy", [67.0, 12.0])
def test_the_mean_field_is_that_of_all_pairs(noise, bilateral_sxy):
    image, soft, _ = scene(48, 40, noise)
    expected = brute_mean_field(soft, image, bilateral_sxy=bilateral_sxy)
    found = DenseCRF(bilateral_sxy=bilateral_sxy)(soft[None], image[None])[0].double()
    assert (found - expected).abs().max() < 0.04
    assert (found - expected).abs().mean() < 0.0015
    exact = DenseCRF(bilateral_sxy=bilateral_sxy, cell=1)(soft[None], image[None])[0].double()
    assert (exact - expected).abs().max() < 0.01


def test_the_gaussian_kernel_is_normalised_as_by_scipy():
    _, soft, _ = scene(16, 24)
    image = torch.zeros(3, 16, 24, dtype=torch.uint8)
    taps = np.exp(-(np.arange(-30, 31) ** 2) / (2 * 1.5**2))

    def blur(values):
        return ndimage.convolve1d(ndimage.convolve1d(values, taps, axis=-1, mode="constant"), taps, axis=-2, mode="constant")

    norm = np.sqrt(blur(np.ones((16, 24))))
    logits = np.log(soft.double().numpy()) + 2.5 * np.stack([blur(each / norm) / norm for each in soft.double().numpy()])
    expected = torch.from_numpy(logits).softmax(0)
    found = DenseCRF(sxy=1.5, compat=2.5, bilateral_compat=0, iterations=1)(soft[None], image[None])[0]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_large_ground_of_one_colour_keeps_its_colour():
    image = torch.full((3, 300, 300), 201, dtype=torch.uint8)
    image[:, 0, 0] = 203
    cells = colour_cells(image, 3.0, 3, 3.5)  # the sum of 90000 times 201 is no float32
    torch.testing.assert_close(cells.means, torch.full((1, 3), 201 + 2 / 90000), rtol=1e-7, atol=0)
    torch.testing.assert_close(cells.offsets[:2], torch.tensor([[2.0] * 3, [0.0] * 3]), rtol=0, atol=1e-4)
    torch.testing.assert_close(cells.kernel.to_dense(), torch.ones(1, 1), rtol=1e-3, atol=0)


def test_two_pixels_follow_the_closed_form():
    image = torch.tensor([10, 12], dtype=torch.uint8).expand(3, 1, 2)
    start = torch.tensor([[0.7, 0.4], [0.3, 0.6]])[:, None]
    place, appearance = np.exp(-1 / 2), np.exp(-1 / (2 * 67**2) - 3 * 4 / (2 * 9))
    own, other = 3 / (1 + place) + 4 / (1 + appearance), 3 * place / (1 + place) + 4 * appearance / (1 + appearance)
    odds = [np.log(0.7 / 0.3) + own * 0.4 + other * -0.2, np.log(0.4 / 0.6) + own * -0.2 + other * 0.4]
    found = DenseCRF(iterations=1, cell=1)(start[None], image[None])
    np.testing.assert_allclose(found[0, 0, 0], 1 / (1 + np.exp(-np.array(odds))), atol=2e-3)


def test_heat_maps_follow_the_edges_of_the_picture():
    image, soft, owner = scene(64, 64)
    maps = DenseCRF()(soft[None], image[None])
    before, after = ((each.argmax(0) == owner).float().mean() for each in (soft, maps[0]))
    assert after > before + 0.02
    assert after > 0.97


def test_a_batch_gives_what_its_pictures_give():
    pairs = [scene(32, 24, seed=seed)[:2] for seed in (0, 1)]
    images, soft = torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])
    maps = DenseCRF()(soft, images)
    torch.testing.assert_close(maps, torch.cat([DenseCRF()(soft[i : i + 1], images[i : i + 1]) for i in range(2)]))
    torch.testing.assert_close(maps.sum(1), torch.ones(2, 32, 24))
    order = [2, 0, 1]
    torch.testing.assert_close(DenseCRF()(soft[:, order], images), maps[:, order], rtol=1e-4, atol=1e-5)
    turned = DenseCRF()(soft.transpose(2, 3), images.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(turned, maps, rtol=1e-3, atol=1e-4)
    assert DenseCRF()(soft[:0], images[:0]).shape == (0, 3, 32, 24)


def test_without_iterations_or_weights_probabilities_stay():
    image, soft, _ = scene(16, 16)
    torch.testing.assert_close(DenseCRF(iterations=0)(soft[None], image[None]), soft[None])
    torch.testing.assert_close(DenseCRF(compat=0, bilateral_compat=0)(soft[None], image[None]), soft[None])


def test_probabilities_of_zero_are_clipped():
    image, _, owner = scene(24, 24)
    hard = F.one_hot(owner, 3).movedim(-1, 0)[None].float()
    assert torch.isfinite(DenseCRF()(hard, image[None])).all()


@pytest.mark.parametrize(
    "setting", [{"sxy": 0}, {"bilateral_srgb": -1}, {"compat": -1}, {"iterations": -1}, {"cell": 0}, {"bilateral_sxy": float("nan")}]
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} of the CRF"):
        DenseCRF(**setting)


def test_what_does_not_fit_is_refused():
    image, soft, _ = scene(16, 16)
    with pytest.raises(ValueError, match="uint8"):
        DenseCRF()(soft[None], image[None].float())
    with pytest.raises(ValueError, match="do not fit"):
        DenseCRF()(soft[None, :, :8], image[None])
    with pytest.raises(ValueError, match="finite"):
        DenseCRF()(soft[None] * float("nan"), image[None])


def test_the_matrix_of_a_line_is_symmetric_with_ones_on_its_diagonal():
    matrix = gaussian_matrix(5, 2.0)
    assert torch.equal(matrix, matrix.T)
    assert torch.equal(matrix.diagonal(), torch.ones(5, dtype=torch.float64))
    assert matrix[0, 2] == pytest.approx(np.exp(-0.5))
