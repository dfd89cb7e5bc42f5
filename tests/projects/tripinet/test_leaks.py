"""Shared names, shared sources and pictures that look alike are found, and nothing else is."""

import numpy as np
import pytest
from PIL import Image

from projects.tripinet.leaks import guard, leaks
from projects.tripinet.pairs import Picture
from shared.data.offline import photographs


def crops(split, count):
    dataset = photographs(split, size=96, seed=3, length=count)
    return [Image.fromarray((dataset[number]["image"] * 255).byte().permute(1, 2, 0).numpy()) for number in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("leaks")
    for number, picture in enumerate(crops("train", 6)):
        picture.save(root / f"train{number}.png")
    for number, picture in enumerate(crops("test", 4)):
        picture.save(root / f"test{number}.png")
    copy = Image.open(root / "train2.png")
    copy.resize((70, 70)).save(root / "copy.jpg", quality=60)
    Image.fromarray(np.full((40, 40), 90, np.uint8)).save(root / "flat.png")
    Image.fromarray(np.full((30, 30), 91, np.uint8)).save(root / "even.png")
    return root


def pictures(folder, *names):
    return [Picture(folder / name) for name in names]


def test_looks(folder):
    train = pictures(folder, "train0.png", "train1.png", "train2.png", "flat.png")
    test = pictures(folder, "test0.png", "copy.jpg", "even.png")
    assert leaks(train, test) == []
    found = leaks(train, test, distance=4)
    assert [(leak.train, leak.test, leak.why) for leak in found] == [(train[2], test[1], "look")]
    assert leaks(train, [], 4) == []


def placed(folder, root, **names):
    """Copy drawn pictures to `root`, under names of our own."""
    root.mkdir()
    for name, original in names.items():
        (root / f"{name}.png").write_bytes((folder / f"{original}.png").read_bytes())
    return [Picture(root / f"{name}.png") for name in names]


def test_names_and_sources(folder, tmp_path):
    train = placed(folder, tmp_path / "train", a="train0", b="train1", n001="train2", c="train3")
    train[1] = Picture(train[1].image, sources=frozenset({"casia/ani1", "casia/nat2"}))
    test = placed(folder, tmp_path / "test", a="train0", d="test0", n001="test1")
    test[1] = Picture(test[1].image, sources=frozenset({"casia/nat2"}))
    found = [(leak.train.image.stem, leak.test.image.stem, leak.why) for leak in leaks(train, test)]
    assert found == [("a", "a", "name"), ("b", "d", "source")], "a common name of two different pictures is none"


def test_what_befalls_leaks(folder, tmp_path, caplog):
    train = placed(folder, tmp_path / "train", a="train0", b="train1", c="train2")
    test = placed(folder, tmp_path / "test", b="train1", c="train2", d="test0")
    assert guard(train, test) == train[:1]
    assert "2 of 3 training pictures" in caplog.text
    assert "same name" in caplog.text
    assert guard(train, test, "keep") == train
    with pytest.raises(ValueError, match=r"2 of 3 .*\n.*b\.png.*\n.*c\.png.*\n.*on_leak to remove"):
        guard(train, test, "refuse")
    with pytest.raises(ValueError, match="all 2 training pictures"):
        guard(train[1:], test)
    with pytest.raises(ValueError, match="all 2 validation pictures"):
        guard(train[1:], test, split="validation")
    assert guard(train[:1], test, "refuse") == train[:1]
