"""Records come from every source, are split over the parties and put together again, and attacked ones are a seeded choice."""

import gzip
import struct

import numpy as np
import pytest
import torch
from lightning.pytorch import seed_everything
from PIL import Image

from projects.cafe.data import FederatedRecords
from shared.vertical.parts import split_image


def ready(**options):
    data = FederatedRecords(**options)
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({}, [(1, 8, 8)] * 4),
        ({"source": "patches"}, [(3, 8, 8)] * 4),
        ({"source": "patches", "split": "rows"}, [(3, 4, 16)] * 4),
        ({"split": "columns", "parties": 2}, [(1, 16, 8)] * 2),
        ({"split": "rows", "parties": 1, "size": 8}, [(1, 8, 8)]),
        ({"source": "breast_cancer", "parties": 3}, [(10,)] * 3),
        ({"source": "breast_cancer"}, [(8,), (8,), (7,), (7,)]),
    ],
)
def test_blocks_have_the_shapes_of_the_split_and_join_again(options, shapes):
    data = ready(count=30, **options)
    values = data.attacked.values()
    blocks = data.blocks(values)
    assert data.shapes == shapes
    assert [tuple(block.shape) for block in blocks] == [(30, *shape) for shape in shapes]
    assert torch.equal(data.join(blocks), values)
    assert len(shapes) == data.parties


def test_attacked_records_are_a_seeded_choice_of_training_records():
    seed_everything(1)
    data = ready(count=50)
    seed_everything(2)
    again, more, other = ready(count=50), ready(count=80), ready(count=50, seed=1)
    assert torch.equal(data.chosen, again.chosen)
    assert torch.equal(data.attacked.features, again.attacked.features)
    assert torch.equal(data.chosen, more.chosen[:50])
    assert not torch.equal(data.chosen, other.chosen)
    assert len(data.chosen.unique()) == 50
    assert torch.equal(data.attacked.features, data.train_records.features[data.chosen])
    assert torch.equal(data.attacked.labels, data.train_records.labels[data.chosen])
    assert len(ready(count=None).attacked) == 1400


def test_pictures_are_given_out_in_the_unit_interval():
    for source in ("digits", "patches"):
        data = ready(source=source)
        for batch in (next(iter(data.train_dataloader())), next(iter(data.test_dataloader()))):
            values = data.join(batch["blocks"])
            assert values.dtype == torch.float32
            assert 0 <= values.min() < 0.1
            assert 0.9 < values.max() <= 1


def test_training_batches_are_shuffled_passes_and_test_batches_are_in_order():
    data = ready(source="breast_cancer", batch_size=50)
    batches = list(data.train_dataloader())
    places = torch.cat([batch["index"] for batch in batches])
    assert len(batches) == 9
    assert len(places.unique()) == 450
    assert not torch.equal(places, places.sort().values)
    for batch in batches:
        torch.testing.assert_close(data.join(batch["blocks"]), data.train_records.values()[batch["index"]])
        assert torch.equal(batch["label"], data.train_records.labels[batch["index"]])
    tested = list(data.test_dataloader())
    assert torch.cat([batch["index"] for batch in tested]).tolist() == list(range(114))
    assert torch.equal(torch.cat([batch["label"] for batch in tested]), data.test_records.labels)


def table(path, count=40):
    draw = np.random.default_rng(0)
    values = draw.normal(size=(count, 4)) * [1, 10, 100, 1000] + [5, 0, -5, 7]
    lines = ["who,a,b,c,d,kind", *(f"p{n},{','.join(map(repr, row.tolist()))},{'yn'[n % 2]}" for n, row in enumerate(values))]
    path.write_text("\n".join(lines))
    return values


def test_tables_are_split_by_names_and_places_and_brought_back_to_their_units(tmp_path):
    values = table(tmp_path / "t.csv")
    columns = [["d", "a"], [2]]
    data = ready(source="table", root=str(tmp_path / "t.csv"), columns=columns, count=20, test_fraction=0.25)
    assert (data.parties, data.shapes, data.classes) == (2, [(2,), (1,)], 2)
    assert (len(data.train_records), len(data.test_records)) == (30, 10)
    assert data.attacked.feature_names == ("d", "a", "b")
    restored = data.scale.restore(data.join(data.blocks(data.attacked.features)))
    for row, label in zip(restored, data.attacked.labels, strict=True):
        place = int(np.abs(values[:, [3, 0, 1]] - row.numpy()).max(1).argmin())
        np.testing.assert_allclose(row, values[place, [3, 0, 1]], rtol=1e-10)
        assert data.attacked.class_names[label] == "yn"[place % 2]
    train = data.train_records.features
    torch.testing.assert_close(train.mean(0), torch.zeros(3, dtype=torch.float64))
    torch.testing.assert_close(train.std(0, unbiased=False), torch.ones(3, dtype=torch.float64))
    assert data.test_records.features.mean(0).abs().max() > 1e-3


def test_columns_of_breast_cancer_are_named_too():
    data = ready(source="breast_cancer", columns=[["mean radius", 29], ["mean area"]])
    assert data.shapes == [(2,), (1,)]
    assert data.attacked.feature_names == ("mean radius", "worst fractal dimension", "mean area")


def test_mnist_is_split_into_quarters_of_14_pixels(tmp_path):
    draw = np.random.default_rng(0)
    for name, count in (("train", 60), ("t10k", 9)):
        for kind, array in (("images-idx3", draw.integers(0, 256, (count, 28, 28))), ("labels-idx1", draw.integers(0, 10, count))):
            header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (tmp_path / f"{name}-{kind}-ubyte.gz").write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))
    data = ready(source="mnist", root=str(tmp_path), count=40)
    assert data.shapes == [(1, 14, 14)] * 4
    assert data.train_records.features.dtype == torch.uint8
    blocks = data.blocks(data.attacked.values())
    expected = data.train_records.features[data.chosen, :, :14, 14:].float() / 255
    assert torch.equal(blocks[1], expected)
    assert torch.equal(split_image(data.attacked.values())[1], expected)


def test_folders_of_pictures_are_read_at_the_size_asked_for(tmp_path):
    for split in ("train", "test"):
        for name in ("berry", "bird"):
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(6):
                Image.new("RGB", (32, 32), (90, 9, 200)).save(tmp_path / split / name / f"{index}_32.jpg")
    assert ready(source="linnaeus", root=str(tmp_path), count=6).shapes == [(3, 16, 16)] * 4
    data = ready(source="linnaeus", root=str(tmp_path), count=6, size=8)
    assert data.shapes == [(3, 4, 4)] * 4
    first, again = data.train_records, ready(source="linnaeus", root=str(tmp_path), size=8, count=None).train_records
    assert first.ids == again.ids
    assert len(set(first.labels[:6].tolist())) > 1  # an attacker's own records, and those that set batch norms, are not of one class
    assert [first.class_names[label] for label in first.labels] == [name.split("/")[1] for name in first.ids]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source": "celeba"}, "data.source 'celeba' is not known; choose one of: digits: "),
        ({"split": "thirds"}, "data.split must be one of quarters, rows, columns, got 'thirds'"),
        ({"count": 0}, "data.count must be at least 1, got 0"),
        ({"count": 1401}, "data.count is 1401, but digits has only 1400 training records"),
        ({"parties": 3}, "quarters are for 4 parties, not 3"),
        ({"split": "rows", "parties": 17}, "cannot be split into 17 x 1 blocks"),
        ({"source": "mnist", "root": ".", "size": 16}, "data.size is for digits, patches, linnaeus, not for mnist"),
        ({"columns": [["a"]]}, "data.columns is for tables, not for digits"),
        ({"source": "breast_cancer", "columns": [["mean radius"], []]}, "at least one column for each party"),
        ({"source": "breast_cancer", "columns": [[1], [2]], "parties": 3}, "data.columns is for 2 parties, but data.parties is 3"),
        ({"source": "breast_cancer", "columns": [[1], ["mean texture"]]}, "columns 'mean texture' are given twice"),
        ({"source": "breast_cancer", "parties": 31}, "30 columns cannot be split over 31 parties"),
        ({"source": "table"}, "say where they lie with --data.root"),
        ({"source": "table", "test_fraction": 1.0}, r"data.test_fraction must be in \(0, 1\), got 1.0"),
        ({"batch_size": 0}, "data.batch_size must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        ready(**options)
