"""Neither colour nor depth tells what is salient, and everything else is the same for all kinds of blobs."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from projects.hodinet.depth import polarity, read_depth
from projects.hodinet.scenes import BAD_DEPTH, _bicubic, _blobs, _smooth, draw_scene, motorcycle_example
from shared.seeding import generator

COUNT = 60
VARIANTS = ("default", "depth_easy", "rgb_easy", "bad_depth", "inverted")


@pytest.fixture(scope="module")
def scenes():
    return {variant: [draw_scene("train", index, 0, 64, variant) for index in range(COUNT)] for variant in VARIANTS}


@pytest.fixture(scope="module")
def blobs():
    return [_blobs(64, generator(0, "scenes", "train", index)) for index in range(COUNT)]


def rises(scene, blob, others, layer):
    """Say how much a layer differs inside a blob from the ring around it, in each channel, leaving holes and other blobs out."""
    values = layer(scene).float()
    seen = (scene.depth[0] > 0) & ~others
    ring = (F.max_pool2d(blob[None].float(), 7, 1, 3)[0] > 0) & ~blob & seen
    inside = blob & (scene.depth[0] > 0)
    if inside.sum() < 20 or ring.sum() < 20:
        return None
    return (values[:, inside].mean(1) - values[:, ring].mean(1)).abs().max().item()


def contrasts(scenes, blobs, layer):
    found = {"salient": [], "decal": [], "bump": []}
    for scene, drawn in zip(scenes, blobs, strict=True):
        for number, kind in enumerate(drawn.kinds):
            others = drawn.inside[[place != number for place in range(len(drawn.kinds))]].any(0)
            value = rises(scene, drawn.inside[number], others, layer)
            if value is not None:
                found[kind].append(value)
    return {kind: torch.tensor(values) for kind, values in found.items()}


def test_a_scene_has_its_shapes_and_ranges(scenes):
    for scene in scenes["default"][:5]:
        assert (scene.image.shape, scene.image.dtype) == ((3, 64, 64), torch.uint8)
        assert (scene.depth.shape, scene.depth.dtype) == ((1, 64, 64), torch.float32)
        assert (scene.mask.shape, scene.mask.dtype) == ((1, 64, 64), torch.bool)
        assert scene.depth.min() >= 0
        assert scene.depth.max() < 1
        assert scene.mask.any()
        assert (scene.depth == 0).any(), "holes"
    assert draw_scene("val", 3, size=96).image.shape == (3, 96, 96)


def test_a_scene_is_a_function_of_its_place_and_variant(scenes):
    for variant in VARIANTS:
        again = draw_scene("train", 7, 0, 64, variant)
        for name in ("image", "depth", "mask"):
            assert torch.equal(getattr(again, name), getattr(scenes[variant][7], name))
    others = [draw_scene("val", 7), draw_scene("train", 8), draw_scene("train", 7, seed=1)]
    assert not any(torch.equal(other.image, scenes["default"][7].image) for other in others)


def test_decals_have_the_colour_and_bumps_the_depth_of_what_is_salient(scenes, blobs):
    colour = contrasts(scenes["default"], blobs, lambda scene: scene.image)
    depth = contrasts(scenes["default"], blobs, lambda scene: scene.depth)
    assert colour["decal"].mean() == pytest.approx(colour["salient"].mean().item(), rel=0.15)
    assert colour["bump"].mean() < colour["salient"].mean() / 4
    assert depth["bump"].mean() == pytest.approx(depth["salient"].mean().item(), rel=0.15)
    assert depth["decal"].mean() < depth["salient"].mean() / 4


def test_shapes_sizes_and_places_are_the_same_for_all_kinds():
    areas, places = {}, {}
    for index in range(300):
        drawn = _blobs(32, generator(1, "scenes", "train", index))
        for inside, kind in zip(drawn.inside, drawn.kinds, strict=True):
            areas.setdefault(kind, []).append(inside.float().mean().item())
            places.setdefault(kind, []).append(inside.nonzero().float().mean(0))
    counts = [len(values) for values in areas.values()]
    assert min(counts) > 400
    assert max(counts) < 500
    means = {kind: np.mean(values) for kind, values in areas.items()}
    error = np.std(areas["salient"]) / np.sqrt(min(counts))
    assert max(means.values()) - min(means.values()) < 4 * error
    middles = torch.stack([torch.stack(values).mean(0) for values in places.values()])
    assert (middles - middles.mean(0)).abs().max() < 4 * 10 / np.sqrt(min(counts))


def test_blobs_of_all_kinds_are_there_and_none_overlap(blobs):
    for drawn in blobs:
        assert drawn.inside.sum(0).max() == 1
        assert {"salient", "decal", "bump"} == set(drawn.kinds)


def test_variants_change_what_their_names_say_and_nothing_else(scenes, blobs):
    for default, depth_easy, rgb_easy, inverted in zip(*(scenes[name] for name in ("default", "depth_easy", "rgb_easy", "inverted")), strict=True):
        assert torch.equal(default.image, depth_easy.image)
        assert torch.equal(default.image, inverted.image)
        assert torch.equal(default.depth, rgb_easy.depth)
        assert all(torch.equal(default.mask, other.mask) for other in (depth_easy, rgb_easy, inverted))
        holes = default.depth == 0
        assert torch.equal(inverted.depth == 0, holes)
        torch.testing.assert_close(inverted.depth[~holes], 1 - default.depth[~holes])
    bumps = contrasts(scenes["depth_easy"], blobs, lambda scene: scene.depth)["bump"]
    decals = contrasts(scenes["rgb_easy"], blobs, lambda scene: scene.image)["decal"]
    assert bumps.mean() < 0.05
    assert decals.mean() < 25


def test_three_in_ten_scenes_have_another_scenes_depth(scenes):
    is_bad = [not torch.equal(bad.depth, good.depth) for bad, good in zip(scenes["bad_depth"], scenes["default"], strict=True)]
    assert sum(is_bad) / COUNT == pytest.approx(BAD_DEPTH, abs=4 * (0.21 / COUNT) ** 0.5)
    correlations = [polarity(scene.depth, scene.mask) for scene, bad in zip(scenes["bad_depth"], is_bad, strict=True) if bad]
    assert abs(np.mean(correlations)) < 0.1
    assert np.mean([polarity(scene.depth, scene.mask) for scene in scenes["default"]]) > 0.2


def test_enlarging_is_bicubic():
    coarse = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_smooth(coarse, 64), F.interpolate(coarse[None], (64, 64), mode="bicubic")[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(_bicubic(4, 64).sum(1), torch.ones(64))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"variant": "easy"}, "variant"), ({"size": 16}, "size"), ({"index": -1}, "index"), ({"split": "all"}, "split")],
)
def test_arguments_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw_scene(**{"split": "train", "index": 0, **options})


def test_the_motorcycle_is_a_real_pair(tmp_path):
    picture, depth = motorcycle_example(tmp_path)
    with Image.open(picture) as opened:
        assert (opened.mode, opened.size) == ("RGB", (741, 500))
    from skimage.data import stereo_motorcycle

    _, _, disparity = stereo_motorcycle()
    measured = np.isfinite(disparity)
    read = read_depth(depth, normalise=False)[0].numpy()
    assert not read[~measured].any()
    np.testing.assert_allclose(read[measured], disparity[measured] / disparity[measured].max(), atol=1e-5)
    assert {path.name for path in (tmp_path / "depth").iterdir()} == {"motorcycle.png"}
