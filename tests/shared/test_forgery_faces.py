"""Procedural faces: determinism, balance, people, the same pipeline for both classes, and what each step does against independent computations."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from sklearn.metrics import roc_auc_score

from shared.forgery.blending import add_camera_noise, jpeg, move_colours, resample, self_blend, shift, smooth
from shared.forgery.faces import MANIPULATIONS, PEOPLE, faces, reenact, swap
from shared.forgery.painting import Region, depth
from shared.forgery.sets import REAL

COUNT = 40


@pytest.fixture(scope="module")
def sets():
    return {kind: faces("test", COUNT, kind, seed=3) for kind in MANIPULATIONS}


def test_faces_are_balanced_videos_of_disjoint_people(sets):
    for kind, found in sets.items():
        assert found.frames.shape == (COUNT, 3, 48, 48)
        assert found.frames.dtype == torch.uint8
        assert found.labels.tolist() == [0, 1] * (COUNT // 2)
        assert found.kinds == (kind,)
        assert set(found.manipulations[0::2]) == {REAL}
        lengths = found.video.bincount()
        for label in (0, 1):
            own = [length for length, video in zip(lengths.tolist(), found.videos, strict=True) if video.label == label]
            assert all(4 <= length <= 8 for length in own[:-1])
            assert 1 <= own[-1] <= 8
        assert all(video.identities <= {f"person {number:03d}" for number in PEOPLE["test"]} for video in found.videos)
        assert all(len(video.identities) == (2 if video.manipulation == "swap" else 1) for video in found.videos)
    assert not set(PEOPLE["train"]) & set(PEOPLE["test"])
    assert not set(PEOPLE["train"]) & set(PEOPLE["val"])
    assert not set(PEOPLE["val"]) & set(PEOPLE["test"])


def test_a_smaller_set_is_the_beginning_of_a_larger_one(sets):
    small = faces("test", 10, "swap", seed=3)
    assert torch.equal(small.frames, sets["swap"].frames[:10])
    assert small.video[0::2].tolist() == sets["swap"].video[0:10:2].tolist()
    assert not torch.equal(small.frames, faces("test", 10, "swap", seed=4).frames)
    assert not torch.equal(small.frames, faces("val", 10, "swap", seed=3).frames)


def test_frames_of_a_video_can_be_set():
    found = faces("train", 20, video_frames=1)
    assert len(found.videos) == 20
    assert len({video.identities for video in found.videos if not video.label}) > 5, "each frame shows somebody drawn anew"
    assert faces("train", 20, video_frames=4).video.bincount().tolist() == [4, 4, 2, 4, 4, 2]
    with pytest.raises(ValueError, match="at least one frame, got 0"):
        faces("train", 20, video_frames=0)


def test_sets_share_their_real_frames_and_differ_in_the_fakes(sets):
    for kind in ("reenact", "self_blend"):
        assert torch.equal(sets[kind].frames[0::2], sets["swap"].frames[0::2])
        assert (sets[kind].frames[1::2] != sets["swap"].frames[1::2]).any(dim=(1, 2, 3)).all()


def test_manipulations_take_turns():
    mixed = faces("train", 60, ["swap", "reenact"], size=16)
    fakes = [video.manipulation for video in mixed.videos if video.label]
    assert fakes[:4] == ["swap", "reenact", "swap", "reenact"]
    assert mixed.kinds == ("reenact", "swap")


def test_forgeries_change_the_part_they_replace_and_nothing_else(sets):
    """Outside of the replaced part a fake is as noisy as a real one; inside, a swap is smoother."""
    residual = {}
    for kind, found in sets.items():
        levels = found.frames.float()
        high = (levels - smooth(levels, 1.5)).abs().mean(1)
        residual[kind] = high[:, 16:32, 16:32].mean((1, 2)) / torch.cat([high[:, :6].flatten(1), high[:, -6:].flatten(1)], 1).mean(1)
    assert roc_auc_score(sets["swap"].labels, -residual["swap"]) > 0.8
    for kind in ("reenact", "self_blend"):
        change = (sets[kind].frames[1::2].float() - sets["swap"].frames[1::2].float()).abs().mean((0, 1))
        assert change[20:36, 16:32].mean() > 10
        assert change[:3].mean() < 3, "above the face only JPEG's blocks tell them apart"


def test_both_classes_end_in_the_same_codec(sets):
    """Both are multiples of JPEG's tables: compressing again at the same quality changes little, and the qualities have one distribution."""
    for label in (0, 1):
        frames = sets["swap"].frames[label::2]
        again = torch.stack([jpeg(frames, torch.full((len(frames),), quality)) for quality in range(75, 99)])
        change = (again.float() - frames.float()).abs().mean((2, 3, 4)).amin(0)
        assert float(change.median()) < 0.6


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="no manipulation morph; there are: reenact, self_blend, swap"):
        faces("train", 10, "morph")
    with pytest.raises(ValueError, match="split train, val or test"):
        faces("dev", 10)
    with pytest.raises(ValueError, match="16 pixels"):
        faces("train", 10, size=8)


def test_noise_has_the_stated_deviation():
    grey = torch.full((1, 3, 256, 256), 0.5)
    noisy = add_camera_noise(grey, torch.randn(1, 3, 258, 258, generator=torch.Generator().manual_seed(0))) - 0.5
    assert float(noisy.std()) == pytest.approx(0.04 * 0.8**0.5, rel=0.03)
    neighbours = (noisy[..., 1:] * noisy[..., :-1]).mean() / noisy.square().mean()
    kernel = np.array([0.25, 1.0, 0.25])
    expected = (kernel[1:] * kernel[:-1]).sum() / (kernel**2).sum()
    assert float(neighbours) == pytest.approx(expected, abs=0.02)


def test_smoothing_equals_scipy():
    image = torch.rand(1, 3, 20, 24, dtype=torch.float32)
    expected = gaussian_filter(image[0].numpy().astype(np.float64), (0, 1.0, 1.0), mode="nearest", truncate=3.0)
    np.testing.assert_allclose(smooth(image, 1.0)[0].numpy(), expected, atol=1e-5)


def test_colours_are_moved_to_the_mean_under_the_mask():
    random = torch.Generator().manual_seed(1)
    source, target = torch.rand(2, 2, 3, 12, 12, generator=random)
    mask = torch.rand(2, 1, 12, 12, generator=random)
    moved = move_colours(source, target, mask, torch.tensor([1.0, 0.5]))
    mean = lambda images: (images.double() * mask.double()).sum((2, 3)) / mask.double().sum((2, 3))  # noqa: E731
    torch.testing.assert_close(mean(moved)[0], mean(target)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(mean(moved)[1], (mean(target)[1] + mean(source)[1]) / 2, atol=1e-6, rtol=0)


def test_shift_by_whole_pixels_and_resampling_by_one():
    image = torch.rand(1, 3, 10, 12)
    moved = shift(image, torch.tensor([[2.0, -1.0]]))
    torch.testing.assert_close(moved[..., :-1, 2:], image[..., 1:, :-2], atol=1e-5, rtol=0)
    torch.testing.assert_close(resample(image[..., :10], torch.tensor([1.0])), image[..., :10])


def test_what_befalls_an_image_does_not_depend_on_its_batch():
    random = torch.Generator().manual_seed(2)
    images, chance = torch.rand(5, 3, 32, 32, generator=random), torch.rand(5, 14, generator=random)
    region = lambda rows: [Region(torch.zeros(rows, 2), torch.full((rows, 2), 9.0), torch.zeros(rows))]  # noqa: E731
    together = self_blend(images, region(5), chance, 0.5)
    for row in range(5):
        torch.testing.assert_close(self_blend(images[row, None], region(1), chance[row, None], 0.5)[0], together[row], atol=1e-6, rtol=0)


def test_masks_are_ellipses():
    region = Region(torch.tensor([[3.0, -2.0]]), torch.tensor([[10.0, 6.0]]), torch.tensor([0.4]))
    mask = region.mask(64, torch.tensor([2.0]))[0, 0].numpy()
    assert mask.sum() == pytest.approx(np.pi * 60, rel=0.01)
    assert mask.max() == 1
    rows, columns = np.mgrid[:64, :64]
    assert (mask * columns).sum() / mask.sum() == pytest.approx(31.5 + 3, abs=0.05)
    assert (mask * rows).sum() / mask.sum() == pytest.approx(31.5 - 2, abs=0.05)
    covariance = (mask * (columns - 34.5) * (rows - 29.5)).sum() / mask.sum()
    assert covariance == pytest.approx((100 - 36) / 4 * np.cos(0.4) * np.sin(0.4), rel=0.05), "turned clockwise as seen: right is lower"


def test_depth_of_a_circle_is_the_distance_to_its_edge():
    x = torch.linspace(-20, 20, 81)[None, None].expand(1, 81, 81)
    y = x.transpose(1, 2)
    found = depth(x, y, torch.tensor([8.0]), torch.tensor([8.0]))
    expected = 8 - torch.sqrt(x**2 + y**2)
    away = expected < 7.9
    torch.testing.assert_close(found[away], expected[away], atol=1e-3, rtol=0)


def test_swap_and_reenactment_keep_the_outside():
    random = torch.Generator().manual_seed(5)
    target, source = torch.rand(2, 2, 3, 16, 16, generator=random)
    mask = torch.zeros(2, 1, 16, 16)
    assert torch.equal(swap(target, source, mask, torch.rand(2, 2, generator=random)), target)
    assert torch.equal(reenact(target, source, mask), target)
    flat = reenact(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.5), torch.ones(1, 1, 8, 8))
    assert sorted({round(float(value), 4) for value in flat.unique()}) == [0.488, 0.512]


def test_jpeg_equals_pillow():
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    qualities = torch.tensor([40, 90, 40])
    for image, quality, found in zip(images, qualities.tolist(), jpeg(images, qualities), strict=True):
        file = io.BytesIO()
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))
