"""The offline worlds are pure functions of seed and split, share no record, and are what the sheet's section 9 was measured on."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_sample_image
from sklearn.preprocessing import StandardScaler

from projects.cafe.metrics import baselines, psnr
from projects.cafe.worlds import PATCHED, Records, Standardisation, breast_cancer, digit_records, divided, photo_patches, tumours

WORLDS = {"digits": digit_records, "patches": photo_patches, "breast_cancer": breast_cancer}


def rows(records):
    return {row.tobytes() for row in records.features.flatten(1).numpy()}


@pytest.mark.parametrize("name", WORLDS)
def test_same_seed_and_split_give_the_same_records(name):
    world = WORLDS[name]
    torch.manual_seed(1)
    first = world("train", seed=3)
    torch.manual_seed(2)
    again, other = world("train", seed=3), world("train", seed=4)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


@pytest.mark.parametrize(("name", "counts"), [("digits", (1400, 397)), ("patches", (1664, 416)), ("breast_cancer", (455, 114))])
def test_splits_divide_all_records_between_them(name, counts):
    train, test = (WORLDS[name](split, seed=5) for split in ("train", "test"))
    assert (len(train), len(test)) == counts
    classes = len(train.class_names)
    assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(classes))


def test_no_record_is_in_two_splits():
    assert not rows(digit_records("train")) & rows(digit_records("test"))
    assert not rows(tumours("train")) & rows(tumours("test"))
    train, test = photo_patches("train"), photo_patches("test")
    assert len(rows(train) & rows(test)) <= 2  # saturated sky has equal pieces in several places


def test_pictures_lie_in_the_unit_interval_and_use_it():
    for name in ("digits", "patches"):
        values = WORLDS[name]("train").values()
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


def test_breast_cancer_is_standardised_by_its_training_records_as_scikit_learn_does():
    scaler = StandardScaler().fit(tumours("train").features.numpy())
    for split in ("train", "test"):
        np.testing.assert_allclose(breast_cancer(split).features.numpy(), scaler.transform(tumours(split).features.numpy()), atol=1e-12)


def test_breast_cancer_keeps_names_and_labels_with_their_rows():
    data, records = load_breast_cancer(), tumours("test", seed=2)
    assert records.feature_names == tuple(data.feature_names)
    assert records.class_names == ("malignant", "benign")
    for row, label in zip(records.features.numpy(), records.labels, strict=True):
        assert data.target[(data.data == row).all(1).argmax()] == label


def test_constant_columns_become_zero_and_restoring_undoes_standardising():
    table = torch.tensor([[1.0, 0.1, 3.0], [2.0, 0.1, 3.0], [6.0, 0.1, 5.0]], dtype=torch.float64)
    records = Records(table, torch.zeros(3, dtype=torch.long), ("a",), ("x", "y", "z"))
    scale = Standardisation.of(records)
    standard = scale.apply(records).features
    assert standard[:, 1].abs().max() < 1e-15
    torch.testing.assert_close(scale.restore(standard), table)


def test_trivial_baselines_are_those_of_the_sheet():
    scores = {name: {key: float(psnr(guess, truth).mean()) for key, guess in baselines(truth, seed=0).items()} for name, truth in pictures().items()}
    assert scores["digits"]["mean"] == pytest.approx(13.98, abs=0.4)
    assert scores["digits"]["zeros"] == pytest.approx(7.0, abs=0.4)
    assert scores["digits"]["noise"] == pytest.approx(6.6, abs=0.2)
    assert scores["patches"]["mean"] == pytest.approx(10.6, abs=0.4)


def pictures():
    return {"digits": digit_records("train").take(torch.arange(200)).values(), "patches": photo_patches("train").take(torch.arange(200)).values()}


def test_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        digit_records("val")
    with pytest.raises(ValueError, match="pieces must have 1 to 427 pixels a side, got 500"):
        photo_patches("train", size=500)
    with pytest.raises(ValueError, match="2 records with 1 labels"):
        Records(torch.zeros(2, 1, 4, 4), torch.zeros(1, dtype=torch.long), ("a",))
    with pytest.raises(ValueError, match="3 columns with 0 names"):
        Records(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), ("a",))
    with pytest.raises(ValueError, match="1 records, which cannot be divided"):
        divided(Records(torch.zeros(1, 1, 4, 4), torch.zeros(1, dtype=torch.long), ("a",)), "train", 0.2, 0, "x")
