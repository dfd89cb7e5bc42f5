import pytest
import torch
from torch.nn import functional as F

from projects.drs.splits import BlockMax, make_split, source_of

NAMES = ("whole", "checkerboard", "checkerboard_ref", "column", "row", "block", "random", "phases")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 10)])
def test_splits_are_partitions(name, height, width):
    split = make_split(name, height, width, seed=3)
    assert torch.cat([part.flatten() for part in split.parts]).sort().values.tolist() == list(range(height * width))
    assert len({part.numel() for part in split.parts}) == 1
    images = torch.rand(2, 3, height, width)
    for branch, part in enumerate(split.parts):
        taken = split.take(branch)(images)
        assert taken.shape == (2, 3, *part.shape)
        assert torch.equal(taken, images.flatten(2)[:, :, part])


def test_the_checkerboard_takes_diagonals():
    left = torch.zeros(4, 8)
    left.view(-1)[make_split("checkerboard", 4, 8).parts[0].flatten()] = 1
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(8), indexing="ij")
    assert torch.equal(left.bool(), rows % 2 == columns % 2)


def test_the_published_checkerboard_has_its_first_pairs_exchanged():
    left = [part % 8 for part in make_split("checkerboard_ref", 4, 8).parts[0]]
    assert left[0].tolist() == [0, 3, 5, 7]
    assert left[1].tolist() == [1, 2, 4, 6]
    assert left[2].tolist() == [0, 3, 5, 7]


def test_random_splits_follow_their_seed():
    one, same, other = (make_split("random", 8, 8, seed).parts[0] for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert bool((one // 8 == torch.arange(8)[:, None]).all())
    assert bool((one % 8 // 2 == torch.arange(4)).all()), "one pixel of every pair"


def test_packed_sub_images_are_enlarged_by_the_nearest_pixel():
    for name in ("checkerboard", "row", "phases", "block"):
        split = make_split(name, 6, 8)
        part = split.take(1)(torch.rand(2, 3, 6, 8))
        found = part.flatten(1)[:, source_of(split, 1, "packed_nearest", 3)]
        torch.testing.assert_close(found, F.interpolate(part, size=(6, 8), mode="nearest"))
        assert torch.equal(part.flatten(1)[:, source_of(split, 1, "packed_native", 3)], part)


def test_the_maximum_of_the_block_is_added_to_its_kept_pixels():
    split = make_split("checkerboard", 4, 6)
    images = torch.randn(3, 2, 4, 6)
    source = source_of(split, 0, "checkerboard_maxpool", 2)
    part = split.take(0)(images)
    full = torch.where(source >= 0, part.flatten(1)[:, source.clamp_min(0)], 0.0)
    found = BlockMax(source[0] >= 0)(full)
    for row in range(4):
        for column in range(6):
            if row % 2 != column % 2:
                assert bool((found[:, :, row, column] == 0).all())
                continue
            top, left = row // 2 * 2, column // 2 * 2
            largest = torch.maximum(images[:, :, top, left], images[:, :, top + 1, left + 1]).clamp_min(0)
            torch.testing.assert_close(found[:, :, row, column], images[:, :, row, column] + largest)


def test_an_embedding_sees_its_own_half_only():
    for name, embedding in (("checkerboard", "checkerboard_maxpool"), ("checkerboard", "packed_nearest"), ("row", "packed_native")):
        split = make_split(name, 4, 4)
        source = source_of(split, 0, embedding, 1)
        assert int(source.max()) == split.parts[0].numel() - 1
        assert set(source.flatten().tolist()) - {-1} == set(range(split.parts[0].numel()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_split("checkerboard", 8, 7), "even height and width"),
        (lambda: make_split("row", 7, 8), "pad or resize"),
        (lambda: make_split("spiral", 8, 8), "no split 'spiral'"),
        (lambda: source_of(make_split("row", 4, 4), 0, "bilinear", 1), "no embedding"),
        (lambda: make_split("row", 4, 4).take(0)(torch.zeros(1, 1, 6, 4)), "4 x 4 pixels, not 6 x 4"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
