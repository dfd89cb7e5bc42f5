"""The pieces of photographs are a pure function of seed and split, share no pixel, and are what the first measurements were made on."""

import pytest
import torch
from sklearn.datasets import load_sample_image

from projects.cafe.metrics import baselines, psnr
from projects.cafe.worlds import PATCHED, photo_patches
from shared.vertical.worlds import digit_records


def rows(records):
    return {row.tobytes() for row in records.features.flatten(1).numpy()}


def test_same_seed_and_split_give_the_same_pieces():
    torch.manual_seed(1)
    first = photo_patches("train", seed=3)
    torch.manual_seed(2)
    again, other = photo_patches("train", seed=3), photo_patches("train", seed=4)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


def test_splits_divide_all_pieces_between_them():
    train, test = (photo_patches(split, seed=5) for split in ("train", "test"))
    assert (len(train), len(test)) == (1664, 416)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == {0, 1}
    assert len(rows(train) & rows(test)) <= 2  # saturated sky has equal pieces in several places


def test_pieces_lie_in_the_unit_interval_and_use_it():
    values = photo_patches("train").values()
    assert values.dtype == torch.float32
    assert values.min() == 0
    assert 0.97 < values.max() <= 1


def test_patches_are_pieces_of_their_photograph():
    records = photo_patches("test", seed=1)
    for index in range(0, len(records), 60):
        photograph = load_sample_image(PATCHED[records.labels[index]])
        tiles = photograph[: 427 // 16 * 16].reshape(26, 16, 40, 16, 3).transpose(0, 2, 4, 1, 3)
        same = (tiles == records.features[index].numpy()).all((2, 3, 4))
        assert same.any()


def test_trivial_baselines_are_those_of_the_paper():
    scores = {name: {key: float(psnr(guess, truth).mean()) for key, guess in baselines(truth, seed=0).items()} for name, truth in pictures().items()}
    assert scores["digits"]["mean"] == pytest.approx(13.98, abs=0.4)
    assert scores["digits"]["zeros"] == pytest.approx(7.0, abs=0.4)
    assert scores["digits"]["noise"] == pytest.approx(6.6, abs=0.2)
    assert scores["patches"]["mean"] == pytest.approx(10.6, abs=0.4)


def pictures():
    return {"digits": digit_records("train").take(torch.arange(200)).values(), "patches": photo_patches("train").take(torch.arange(200)).values()}


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        photo_patches("val")
    with pytest.raises(ValueError, match="pieces must have 1 to 427 pixels a side, got 500"):
        photo_patches("train", size=500)
