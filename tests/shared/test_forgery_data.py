"""Offline faces through the DataModule, and what training frames go through."""

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.color import hsv2rgb, rgb2hsv

from shared.forgery.augmentation import (
    SELF_BLEND,
    TrainingFrames,
    blend_centred,
    blur,
    brightness_contrast,
    deepfakebench,
    drawn,
    fancy_pca,
    hue_saturation_value,
    rotate,
    vflip,
)
from shared.forgery.data import ForgeryData
from shared.forgery.faces import faces


def loaded(**options):
    data = ForgeryData(**({"length": 16, "test_length": 8, "size": 16, "batch_size": 4} | options))
    data.prepare_data()
    return data


@pytest.fixture(scope="module")
def small():
    return faces("train", 12, size=24)


def test_offline_faces():
    data = loaded()
    assert data.test_names == ["swap", "reenact", "self_blend"]
    assert [part.kinds for part in data.test_sets] == [("swap",), ("reenact",), ("self_blend",)]
    assert data.val_set.kinds == ("swap",), "only what is learnt chooses a model"
    assert len(data.train_set) == 16
    batches = list(data.train_dataloader())
    assert sorted(torch.cat([batch["index"] for batch in batches]).tolist()) == list(range(16))
    assert [sum(len(batch["label"]) for batch in loader) for loader in data.test_dataloader()] == [8, 8, 8]
    people = [{person for video in part.videos for person in video.identities} for part in (data.train_set.frames, data.val_set, *data.test_sets)]
    assert not people[0] & people[1]
    assert not (people[0] | people[1]) & set.union(*people[2:])
    assert loaded(manipulations=["swap", "reenact"], length=40).train_set.frames.kinds == ("reenact", "swap")


def test_self_blends_are_made_of_real_frames():
    data = loaded(manipulations=[], self_blended=True)
    assert data.train_set.frames.kinds == ()
    assert len(data.train_set) == 32
    batch = data.train_set.__getitems__([0, 16, 32 + 16])
    assert batch["label"].tolist() == [0, 1, 1]
    assert batch["index"].tolist() == [0, 16, 16]
    assert batch["video"][1] == batch["video"][2] != batch["video"][0]
    change = (batch["image"].int() - batch["image"][:1].int()).abs().float().mean((1, 2, 3))
    assert 0 < change[1] < 20
    assert not torch.equal(batch["image"][1], batch["image"][2]), "another blend in the next epoch"
    labels = torch.cat([batch["label"] for batch in data.val_dataloader()])
    assert labels.float().mean() == 0.5
    assert len(loaded(self_blended=True).train_set) == 16 + 8, "beside the fakes"


def test_frames_are_augmented_anew_in_each_epoch_whatever_the_batch(small):
    frames = TrainingFrames(small, "deepfakebench", seed=1)
    first, second = (frames.__getitems__([epoch * 12 + index for index in range(12)]) for epoch in (0, 1))
    assert second["index"].tolist() == list(range(12))
    assert (first["image"] != second["image"]).any()
    for index in (0, 7):
        assert torch.equal(frames[12 + index]["image"], second["image"][index])
    assert torch.equal(TrainingFrames(small).__getitems__([0, 13])["image"], small.frames[[0, 1]])
    data = loaded(augmentation="flip")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    batch = next(iter(loader))
    same = data.train_set.__getitems__((3 * 16 + batch["index"]).tolist())
    assert torch.equal(batch["image"], same["image"])
    with pytest.raises(ValueError, match="none, flip, vflip, deepfakebench"):
        TrainingFrames(small, "more")


def test_a_broken_epoch_goes_on_with_the_next_batch():
    def batches(loader):
        return [batch["index"].tolist() for batch in loader]

    whole = loaded().train_dataloader()
    everything = batches(whole)
    resumed = loaded().train_dataloader()
    resumed.load_state_dict({"epoch": 0, "batches": 2})
    assert batches(resumed) == everything[2:]


def test_each_augmentation_befalls_half_of_the_images():
    images = torch.arange(24, dtype=torch.uint8).mul(10)[None, None, None].expand(400, 3, 24, 24).contiguous()
    chance = drawn(16, 0, "test", [(0, index) for index in range(400)])
    mirrored = deepfakebench(images, chance.clone().index_fill(1, torch.tensor([1, 3, 5, 14]), 0.9))
    assert 0.42 < float((mirrored[:, 0, 0, 0] == 230).float().mean()) < 0.58
    assert torch.equal(deepfakebench(images, torch.full_like(chance, 0.9)), images)


def test_mirrored_both_ways_all_four_pictures_are_as_frequent():
    image = torch.arange(4, dtype=torch.uint8).view(1, 1, 2, 2).expand(400, 3, 2, 2)
    corners = vflip(image, drawn(16, 0, "test", [(0, index) for index in range(400)]))[:, 0, 0, 0]
    assert torch.bincount(corners.long(), minlength=4).min() > 75
    assert torch.equal(vflip(image, torch.full((400, 16), 0.1)), image.rot90(2, (2, 3)))


def test_rotation_equals_pillow():
    rows, columns = np.mgrid[:32, :32]
    picture = (127 + 60 * np.sin(rows / 6) + 60 * np.cos(columns / 5)).astype(np.uint8)
    image = torch.from_numpy(picture)[None, None].expand(1, 3, 32, 32)
    for degrees in (-10, 7):
        expected = np.asarray(Image.fromarray(picture).rotate(degrees, Image.Resampling.BILINEAR))
        found = rotate(image, torch.tensor([np.deg2rad(degrees)], dtype=torch.float32))[0, 0].numpy()
        assert np.abs(found.astype(int) - expected)[6:-6, 6:-6].max() <= 2


def test_blur_equals_direct_sums():
    image = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, width in enumerate((3, 5, 7)):
        sigma = 0.3 * ((width - 1) * 0.5 - 1) + 0.8
        weights = np.exp(-((np.arange(width) - width // 2) ** 2) / (2 * sigma**2))
        weights = np.outer(weights, weights) / weights.sum() ** 2
        padded = np.pad(image[0, 1].numpy().astype(float), width // 2, mode="reflect")
        expected = [[(padded[r : r + width, c : c + width] * weights).sum() for c in range(12)] for r in range(12)]
        assert np.abs(blur(image, torch.tensor([number]))[0, 1].numpy() - np.array(expected)).max() <= 0.5 + 1e-3


def test_colours_change_as_said():
    images = torch.rand(4, 3, 10, 10, generator=torch.Generator().manual_seed(1))
    chance = torch.tensor([[0.75, 0.25, 0.5]]).expand(4, 3)
    torch.testing.assert_close(brightness_contrast(images, chance), 1.05 * images - 0.05)
    hsv = rgb2hsv(images.permute(0, 2, 3, 1).numpy())
    hsv[..., 0] = (hsv[..., 0] + 10 / 180) % 1
    hsv[..., 1] = (hsv[..., 1] - 15 / 255).clip(0, 1)
    expected = hsv2rgb(hsv)
    np.testing.assert_allclose(hue_saturation_value(images, chance).permute(0, 2, 3, 1).numpy(), expected, atol=2e-5)
    for image, found in zip(images.double(), fancy_pca(images, chance).double(), strict=True):
        values, axes = np.linalg.eigh(np.cov(image.flatten(1).numpy()))
        axes = axes * np.sign(axes.sum(0))
        strength = 0.1 * np.array([0.6744897501960817, -0.6744897501960817, 0.0])
        np.testing.assert_allclose((found - image).mean((1, 2)).numpy(), axes @ (strength * values), atol=1e-5)


def test_centred_blends_leave_the_border():
    images = faces("test", 16, size=48).frames
    blends = blend_centred(images, drawn(SELF_BLEND + 5, 0, "test", [(0, index) for index in range(16)]))
    changed = (images != blends).any(1)
    assert changed.flatten(1).any(1).all()
    assert not changed[:, 0].any()
    assert not changed[:, :, 0].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "more"}, "data.source 'more' is not known"),
        ({"length": 0}, "data.length must be at least 1"),
        ({"size": 8}, "data.size must be at least 16"),
        ({"augmentation": "more"}, "none, flip, vflip, deepfakebench"),
        ({"on_leak": "more"}, "remove, refuse, keep"),
        ({"test_sets": ["swap", "swap"]}, "names a set twice"),
        ({"test_sets": ["morph"]}, "no manipulation morph"),
        ({"manipulations": []}, "nothing to learn"),
        ({"in_store": True}, "are for data.source deepfakebench"),
        ({"on_bad_file": "skip"}, "is for frames in files"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        loaded(**options)
