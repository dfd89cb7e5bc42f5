"""Training pictures that look like test pictures are found, counted by set, and kept from being learnt."""

import numpy as np
import pytest
from PIL import Image

from projects.hodinet.duplicates import duplicates_table, find_duplicates, guard
from projects.hodinet.layouts import Sample


def draw(path, number):
    """Draw a smooth picture that looks like no other."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((60, 48), Image.Resampling.BICUBIC)
    picture.save(path)
    return picture


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return training pictures and test pictures of two sets; STERE holds two copies, one scaled and one compressed."""
    root = tmp_path_factory.mktemp("duplicates")

    def sample(name, dataset, split):
        return Sample(root / name, None, None, dataset, split, name.split(".")[0])

    drawn = [draw(root / f"train{number}.png", number) for number in range(5)]
    drawn[1].resize((90, 72)).save(root / "copy1.png")
    drawn[3].save(root / "copy3.jpg", quality=70)
    for number in range(3):
        draw(root / f"test{number}.png", 100 + number)
    train = [sample(f"train{number}.png", "NJU2K", "train") for number in range(5)]
    test = [sample(name, "STERE", "test") for name in ("test0.png", "copy1.png", "copy3.jpg", "test1.png")] + [sample("test2.png", "SIP", "test")]
    return train, test


def test_copies_are_found_on_both_sides(parts):
    train, test = parts
    found = find_duplicates(train, test, 4)
    assert found.train == [(train[1], test[1]), (train[3], test[2])]
    assert found.test == [(test[1], train[1]), (test[2], train[3])]
    assert duplicates_table(found, test) == [
        {"set": "STERE", "pictures": 4, "duplicates": 2, "part": 0.5},
        {"set": "SIP", "pictures": 1, "duplicates": 0, "part": 0},
    ]


def test_what_befalls_duplicates(parts, caplog):
    train, test = parts
    assert guard(train, test, 4) == [train[0], train[2], train[4]]
    assert "2 of 5 training pictures look like test pictures (2 of 4 of STERE)" in caplog.text
    assert guard(train, test, 4, "keep") == train
    with pytest.raises(ValueError, match=r"2 of 5 .*\n.*train1\.png and .*copy1\.png\n.*\n.*data\.on_duplicate to remove or keep"):
        guard(train, test, 4, "refuse")
    with pytest.raises(ValueError, match="all 1 training pictures look like test pictures"):
        guard(train[1:2], test, 4)
    assert guard(train[:1], test, 4, "refuse") == train[:1]
    assert guard(train, [], 4) == train
