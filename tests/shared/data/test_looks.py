"""Copies look alike however they were stored; other pictures, and pictures without structure, do not."""

import numpy as np
import pytest
from PIL import Image
from scipy.fft import dctn
from torch.nn import functional as F

from shared.data.files import BadFileError, read_image
from shared.data.looks import alike, are_alike, look_hash
from shared.data.offline import PHOTOGRAPHS, photographs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("looks")
    assert "chelsea.png" in PHOTOGRAPHS["test"]
    for split, count in (("train", 6), ("test", 4)):
        dataset = photographs(split, size=96, seed=3, length=count)
        for number in range(count):
            pixels = (dataset[number]["image"] * 255).byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(root / f"{split}{number}.png")
    Image.open(root / "train2.png").resize((70, 70)).save(root / "copy.jpg", quality=60)
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(root / "flat.png")
    Image.fromarray(np.full((30, 30), 91, np.uint8)).save(root / "even.png")
    return root


def bits(one, other):
    return (one ^ other).bit_count()


def test_a_copy_that_was_scaled_and_compressed_has_nearly_the_same_hash(folder):
    original = look_hash(folder / "train2.png")
    assert bits(original, look_hash(folder / "copy.jpg")) <= 4
    others = [folder / f"test{number}.png" for number in range(4)] + [folder / f"train{number}.png" for number in (0, 1, 3, 4, 5)]
    assert min(bits(original, look_hash(path)) for path in others) > 8


def test_the_hash_is_of_the_lowest_coefficients_of_the_cosine_transform(folder):
    path = folder / "train1.png"
    small = F.interpolate(read_image(path, "L")[None], (32, 32), mode="bilinear", antialias=True)[0, 0].double()
    lowest = dctn(small.numpy(), norm=None)[:8, :8].ravel()[1:]
    assert look_hash(path) == int("".join("1" if value > np.median(lowest) else "0" for value in lowest), 2)


def test_alike_finds_the_first_copy_and_nothing_else(folder):
    paths = [folder / name for name in ("train0.png", "train2.png", "flat.png")]
    others = [folder / name for name in ("test0.png", "copy.jpg", "train2.png", "even.png")]
    assert alike(paths, others, 4) == {1: 1}
    assert alike(paths, others[2:], 0) == {1: 0}
    assert alike(paths, [], 4) == alike([], others, 4) == {}


def test_alike_equals_a_comparison_of_all_pairs(folder):
    paths = sorted(folder.glob("*.png"))
    expected = {}
    for number, path in enumerate(paths):
        near = [place for place, other in enumerate(paths) if are_alike(path, other, 24)]
        expected |= {number: near[0]} if near else {}
    assert alike(paths, paths, 24) == expected
    assert len(expected) == len(paths) - 2, "pictures without structure are not even like themselves"


def test_a_picture_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    with pytest.raises(BadFileError, match=r"bad\.png"):
        alike([tmp_path / "bad.png"], [tmp_path / "bad.png"], 4)
