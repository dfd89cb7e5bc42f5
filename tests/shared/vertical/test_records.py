"""Records are divided once and for all by a key, standardised by their training part, and keep names and labels with their rows."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

from shared.vertical.records import Records, Standardisation, divided
from shared.vertical.worlds import digit_records, tumours


def halves(seed=0):
    return [divided(tumours(), split, 0.2, seed, "somebody", "tumours") for split in ("train", "test")]


def rows(records):
    return {row.tobytes() for row in records.features.flatten(1).numpy()}


@pytest.mark.parametrize("world", [digit_records, lambda split, seed: halves(seed)[split == "test"]], ids=["digits", "tumours"])
def test_same_seed_and_split_give_the_same_records(world):
    torch.manual_seed(1)
    first = world("train", 3)
    torch.manual_seed(2)
    again, other = world("train", 3), world("train", 4)
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.labels, other.labels)


def test_splits_divide_all_records_between_them():
    for (train, test), counts in ((halves(5), (455, 114)), ([digit_records(split, 5) for split in ("train", "test")], (1400, 397))):
        assert (len(train), len(test)) == counts
        assert set(train.labels.tolist()) == set(test.labels.tolist()) == set(range(len(train.class_names)))
        assert not rows(train) & rows(test)


def test_digits_lie_in_the_unit_interval_and_use_it():
    values = digit_records("train").values()
    assert values.dtype == torch.float32
    assert values.min() == 0
    assert 0.97 < values.max() <= 1


def test_tables_are_standardised_by_training_records_as_scikit_learn_does():
    train, test = halves()
    scaler, scale = StandardScaler().fit(train.features.numpy()), Standardisation.of(train)
    for some in (train, test):
        np.testing.assert_allclose(scale.apply(some).features.numpy(), scaler.transform(some.features.numpy()), atol=1e-12)


def test_tumours_keep_names_labels_and_ids_with_their_rows():
    data, records = load_breast_cancer(), halves(2)[1]
    assert records.feature_names == tuple(data.feature_names)
    assert records.class_names == ("malignant", "benign")
    for row, label, name in zip(records.features.numpy(), records.labels, records.ids, strict=True):
        place = (data.data == row).all(1).argmax()
        assert data.target[place] == label
        assert name == str(place)


def test_some_columns_of_a_table_keep_their_names():
    narrow = tumours().narrowed([4, 0])
    assert narrow.feature_names == ("mean smoothness", "mean radius")
    assert torch.equal(narrow.features, tumours().features[:, [4, 0]])


def test_constant_columns_become_zero_and_restoring_undoes_standardising():
    table = torch.tensor([[1.0, 0.1, 3.0], [2.0, 0.1, 3.0], [6.0, 0.1, 5.0]], dtype=torch.float64)
    records = Records(table, torch.zeros(3, dtype=torch.long), ("a",), ("x", "y", "z"))
    scale = Standardisation.of(records)
    standard = scale.apply(records).features
    assert standard[:, 1].abs().max() < 1e-15
    torch.testing.assert_close(scale.restore(standard), table)


def test_errors_say_what_is_wrong():
    nought = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        digit_records("val")
    with pytest.raises(ValueError, match="2 records with 1 labels"):
        Records(torch.zeros(2, 1, 4, 4), nought[:1], ("a",))
    with pytest.raises(ValueError, match="3 columns with 0 names"):
        Records(torch.zeros(2, 3), nought, ("a",))
    with pytest.raises(ValueError, match="2 records with 3 ids"):
        Records(torch.zeros(2, 5, 3), nought, ("a",), ids=("a", "b", "c"))
    with pytest.raises(ValueError, match="1 records, which cannot be divided"):
        divided(Records(torch.zeros(1, 1, 4, 4), nought[:1], ("a",)), "train", 0.2, 0, "x")


def test_columns_that_are_too_large_to_be_standardised_are_named():
    table = torch.tensor([[1.0, 1e300], [2.0, -1e300], [3.0, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="columns 'b' have no finite standard deviation"):
        Standardisation.of(Records(table, torch.zeros(3, dtype=torch.long), ("x",), ("a", "b")))
