"""That the right depth scores clearly higher than any wrong one."""

import numpy as np
import pytest
import scipy.ndimage
import skimage.filters
import torch

from projects.hodinet.depth import nearness, read_depth
from projects.hodinet.quality import SIDE, depth_quality, edges
from projects.hodinet.scenes import draw_scene, motorcycle_example
from shared.data.files import read_levels


def scenes(count, size):
    drawn = [draw_scene("test", number, size=size) for number in range(count)]
    return [(scene.image, nearness(scene.depth)) for scene in drawn]


@pytest.fixture(scope="module")
def motorcycle(tmp_path_factory):
    picture, depth = motorcycle_example(tmp_path_factory.mktemp("motorcycle"))
    return read_levels(picture), read_depth(depth)


def spoilt(depth, other):
    """Return depth as it should not be, by name."""
    side = max(depth.shape)
    blurred = torch.from_numpy(scipy.ndimage.gaussian_filter(depth.numpy(), (0, side / 20, side / 20)))
    return {
        "noise": torch.rand(depth.shape, generator=torch.Generator().manual_seed(0)),
        "of another scene": torch.nn.functional.interpolate(other[None], depth.shape[1:])[0],
        "mirrored": depth.flip(2),
        "shifted": depth.roll((side // 10, side // 10), (1, 2)),
        "blurred": blurred,
        "half measured": torch.where(torch.arange(depth.shape[2]) < depth.shape[2] // 2, 0, depth),
    }


@pytest.mark.parametrize("size", [64, 200])
def test_wrong_depth_of_drawn_scenes_scores_lower(size):
    pictures = scenes(8, size)
    right = torch.tensor([depth_quality(*picture) for picture in pictures])
    wrong = {}
    for (image, depth), (_, other) in zip(pictures, pictures[1:] + pictures[:1], strict=True):
        for name, bad in spoilt(depth, other).items():
            wrong.setdefault(name, []).append(depth_quality(image, bad))
    assert right.mean() > 0.15
    for name, scores in wrong.items():
        scores = torch.tensor(scores)
        most = {"blurred": 0.75, "half measured": 0.75}.get(name, 0.25)
        assert scores.mean() < most * right.mean(), name
        assert (scores < right).double().mean() > 0.8, name


def test_wrong_depth_of_a_real_scene_scores_lower(motorcycle):
    image, depth = motorcycle
    right = depth_quality(image, depth)
    assert right > 0.25
    for name, bad in spoilt(depth, scenes(1, 64)[0][1]).items():
        assert depth_quality(image, bad) < (0.7 if name in ("blurred", "half measured") else 0.25) * right, name


def test_polarity_and_contrast_of_depth_do_not_count(motorcycle):
    image, depth = motorcycle
    turned = torch.where(depth > 0, 1.001 - depth, 0)
    assert depth_quality(image, turned) == pytest.approx(depth_quality(image, depth), rel=1e-3)
    assert depth_quality(image, 0.3 * depth) == pytest.approx(depth_quality(image, depth), rel=1e-6)


def test_grey_is_its_own_best_depth_and_nothing_is_the_worst():
    grey = torch.arange(1, 256, dtype=torch.uint8)[torch.randint(255, (1, 40, 50), generator=torch.Generator().manual_seed(0))]
    image = grey.expand(3, -1, -1)
    assert depth_quality(image, grey / 255) == pytest.approx(1, abs=1e-6)
    assert depth_quality(image, torch.where(torch.arange(50) < 25, 0, grey / 255)) < 0.51
    for level in (0.0, 0.5):
        assert depth_quality(image, torch.full((1, 40, 50), level)) == 0
    assert depth_quality(torch.zeros_like(image), grey / 255) == 0


def test_edges_are_gradients_at_twice_their_angle():
    layer = scipy.ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(30, 41)), 1.5)
    along, across = (skimage.filters.sobel(layer, axis=axis, mode="nearest") for axis in (0, 1))
    field = (across + 1j * along) ** 2 / np.hypot(across, along)
    expected = [scipy.ndimage.uniform_filter(part, 3)[1:-1, 1:-1] for part in (field.real, field.imag)]
    found = edges(torch.from_numpy(layer)[None].float())
    np.testing.assert_allclose(2 * found[:, 1:-1, 1:-1].numpy(), expected, rtol=0, atol=1e-6)  # scikit-image differs over two pixels


def test_large_pictures_are_compared_small():
    image, depth = scenes(1, 64)[0]
    large = [torch.nn.functional.interpolate(layer[None].float(), scale_factor=SIDE * 10 / 64, mode="nearest")[0] for layer in (image, depth)]
    assert depth_quality(large[0].byte(), large[1]) > 0.05
