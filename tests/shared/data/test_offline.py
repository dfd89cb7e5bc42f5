"""The offline worlds: what they hold, that seeds decide everything, and that splits share nothing."""

from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader

from shared.data.offline import PHOTOGRAPHS, SHAPES, TensorImages, digits, paint, photographs, shapes


def test_digits_are_those_of_scikit_learn_in_the_order_of_the_seed():
    train, test = digits("train", size=8), digits("test", size=8)
    assert (len(train), len(test)) == (1400, 397)
    order = np.random.default_rng(0).permutation(1797)
    both = torch.cat([train.images, test.images])
    np.testing.assert_array_equal(both[:, 0].numpy(), load_digits().images[order].astype(np.float32) / 16)
    assert torch.cat([train.labels, test.labels]).tolist() == load_digits().target[order].tolist()


def test_digits_are_enlarged_bilinearly_with_equal_channels():
    small, large = digits("test", size=8), digits("test", size=16, channels=3)
    assert large.images.shape == (397, 3, 16, 16)
    for channel in range(3):
        torch.testing.assert_close(large.images[:, [channel]], F.interpolate(small.images, scale_factor=2, mode="bilinear"))
    item = large[5]
    assert torch.equal(item["image"], large.images[5])
    assert (item["label"], item["index"]) == (int(large.labels[5]), 5)
    assert large.images.min() >= 0
    assert large.images.max() <= 1


def test_digits_for_validation_come_out_of_the_training_ones():
    whole, train, val = digits("train"), digits("train", num_val=200), digits("val", num_val=200)
    assert torch.equal(whole.images, torch.cat([train.images, val.images]))
    assert torch.equal(digits("test", num_val=200).images, digits("test").images)
    assert not torch.equal(digits("test", seed=1).images, digits("test").images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "split must be 'train', 'val' or 'test', got 'valid'"),
        ({"split": "val"}, "no digits are left for the split 'val': num_val is 0"),
        ({"split": "train", "num_val": 1400}, "no digits are left for the split 'train'"),
        ({"split": "train", "num_val": 1000, "num_test": 1000}, "together at most 1797, got 1000 and 1000"),
        ({"split": "train", "channels": 2}, "channels must be 1 or 3, got 2"),
        ({"split": "train", "size": 0}, "at least 1, got 0"),
    ],
)
def test_digits_refuse_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        digits(**arguments)


def test_photographs_of_different_splits_are_different_pictures():
    for one, other in combinations(PHOTOGRAPHS.values(), 2):
        assert not set(one) & set(other)
    worlds = [photographs(split, size=8, length=60) for split in PHOTOGRAPHS]
    labels = [{world[index]["label"] for index in range(60)} for world in worlds]
    assert [len(seen) for seen in labels] == [len(names) for names in PHOTOGRAPHS.values()]  # every picture is used
    assert not set.intersection(*labels)
    assert {worlds[2].class_names[label] for label in labels[2]} == {"chelsea", "flower", "gravel"}


def test_crops_depend_on_seed_split_and_index_alone():
    crops = photographs("train", size=32, seed=3, length=10)
    late = photographs("train", size=32, seed=3, length=500)
    for index in (9, 0, 9):
        assert torch.equal(crops[index]["image"], late[index]["image"])
    images = [crops[0], crops[1], photographs("train", size=32, seed=4, length=1)[0], photographs("val", size=32, seed=3, length=1)[0]]
    for one, other in combinations(images, 2):
        assert not torch.equal(one["image"], other["image"])
    with pytest.raises(IndexError, match="index 10 of 10"):
        crops[10]


def test_crops_are_parts_of_their_photograph():
    crops = photographs("val", size=427, length=12)  # as tall as the rocket's photograph, so that only place and flip are free
    items = [crops[index] for index in range(12)]
    rockets = [item["image"][:, :8] for item in items if crops.class_names[item["label"]] == "rocket"]
    photograph = crops._photographs[1][:, :8].float() / 255
    windows = photograph.unfold(2, 427, 1).permute(2, 0, 1, 3)  # (214, 3, 8, 427)
    assert rockets
    for rocket in rockets:
        distances = [(turned - windows).abs().amax(dim=(1, 2, 3)).min() for turned in (rocket, rocket.flip(-1))]
        assert min(distances) < 1e-6


@pytest.mark.parametrize("size", [16, 600])
def test_crops_have_the_size_even_beyond_the_photograph(size):
    image = photographs("test", size=size, length=1)[0]["image"]
    assert image.shape == (3, size, size)
    assert 0 <= image.min() < image.max() <= 1


def test_a_photograph_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(PHOTOGRAPHS, "val", ("lost.png",))
    with pytest.raises(FileNotFoundError, match=r"lost\.png is not in .*skimage/data or .*install scikit-image and scikit-learn anew"):
        photographs("val")


def test_shapes_depend_on_seed_split_and_index_alone():
    many, few = shapes("train", length=300), shapes("train", length=7)
    assert torch.equal(many.images[:7], few.images)
    assert torch.equal(many.labels[:7], few.labels)
    assert not torch.equal(shapes("train", length=7, seed=1).images, few.images)
    assert not torch.equal(shapes("test", length=7).images, few.images)
    assert torch.equal(shapes("train", length=7, channels=1).labels, few.labels)
    assert len(torch.unique(many.images.flatten(1), dim=0)) == 300


def test_shapes_cover_their_area():
    radii = torch.tensor([0.2, 0.3, 0.4]).repeat(len(SHAPES))
    labels = torch.arange(len(SHAPES)).repeat_interleave(3)
    painted = paint(labels, torch.full((12, 2), 0.5), radii, size=64)
    factor = torch.tensor([torch.pi, 4, 4 * 5 / 9, 2])[labels]  # area in radii squared: disc, square, cross of five ninths, triangle
    torch.testing.assert_close(painted.mean(dim=(1, 2, 3)), factor * radii**2, rtol=0.02, atol=0)


def test_edges_are_anti_aliased():
    disc = paint(torch.tensor([0]), torch.tensor([[0.5, 0.5]]), torch.tensor([0.3]), size=16)
    assert len(disc.unique()) > 4
    assert (disc.min(), disc.max()) == (0, 1)
    assert torch.equal(disc, disc.flip(-1))


def test_shapes_are_in_place_in_contrast_and_in_range():
    dataset = shapes("train", size=24, length=200)
    assert dataset.images.shape == (200, 3, 24, 24)
    assert dataset.images.min() >= 0
    assert dataset.images.max() <= 1
    contrast = dataset.images.amax(dim=(2, 3)) - dataset.images.amin(dim=(2, 3))
    assert contrast.min() > 0.28  # 0.3, less where no pixel is covered to the full
    assert torch.bincount(dataset.labels, minlength=4).min() > 30


def test_shapes_can_be_told_apart():
    def features(dataset):
        grey = dataset.images[:, 0]
        covered = (grey - grey[:, :1, :1]).abs()
        covered = covered / covered.amax(dim=(1, 2), keepdim=True)
        rows, columns = covered.amax(2) > 0.5, covered.amax(1) > 0.5
        crops = [F.interpolate(c[r][:, k][None, None], size=(6, 6), mode="area").flatten() for c, r, k in zip(covered, rows, columns, strict=True)]
        return torch.stack(crops).numpy()

    train, test = shapes("train", length=400), shapes("test", length=200)
    score = LogisticRegression(max_iter=500).fit(features(train), train.labels).score(features(test), test.labels)
    assert score > 0.9


def test_batches_come_out_of_a_loader():
    for dataset in (digits("test"), shapes("val", length=8), photographs("val", size=16, length=8)):
        batch = next(iter(DataLoader(dataset, batch_size=4)))
        assert batch["image"].shape[0] == 4
        assert batch["image"].dtype == torch.float32
        assert batch["label"].dtype == torch.int64
        assert batch["index"].tolist() == [0, 1, 2, 3]


def test_images_without_labels_are_refused():
    with pytest.raises(ValueError, match="2 images with 1 labels"):
        TensorImages(torch.zeros(2, 1, 4, 4), torch.zeros(1, dtype=torch.long), ("a",))
