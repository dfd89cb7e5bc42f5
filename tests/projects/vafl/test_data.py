"""Records of every source are cut into one block a party, and each machine learns what it needs from its own file."""

import numpy as np
import pytest
import torch
from helpers.party_sets import write_cifar10, write_mimic3, write_mnist, write_parties, write_speech, write_views
from lightning.pytorch import seed_everything

from projects.vafl import mimic3
from projects.vafl.data import VerticalRecords
from projects.vafl.worlds import SERIES_GROUPS, handwriting, vital_signs
from shared.vertical.layouts import read_cifar10
from shared.vertical.worlds import tumours


def ready(source="digits", **options):
    data = VerticalRecords(source, **{name: str(value) if name == "root" else value for name, value in options.items()})
    data.prepare_data()
    data.setup()
    return data


@pytest.mark.parametrize(
    ("options", "shapes", "counts"),
    [
        ({}, [(8,)] * 8, (1437, 360)),
        ({"parties": 3}, [(24,), (24,), (16,)], (1437, 360)),
        ({"split": "quarters", "parties": 4}, [(16,)] * 4, (1437, 360)),
        ({"source": "breast_cancer"}, [(10,)] * 3, (455, 114)),
        ({"source": "breast_cancer", "columns": [["mean radius", 29], ["mean area"]]}, [(2,), (1,)], (455, 114)),
        ({"source": "views"}, [(3, 1, 16, 16)] * 4, (640, 160)),
        ({"source": "views", "parties": 5, "size": 8}, [(3, 1, 8, 8)] * 2 + [(2, 1, 8, 8)] * 3, (640, 160)),
        ({"source": "series"}, [(24, 6), (24, 5), (24, 4), (24, 2)], (1280, 320)),
    ],
)
def test_offline_records_have_the_shapes_of_their_split(options, shapes, counts):
    data = ready(**options)
    assert data.shapes == shapes
    assert data.parties == len(shapes)
    assert (len(data.train), len(data.test)) == counts
    assert not set(data.train.ids) & set(data.test.ids)
    for some in (data.train, data.test):
        assert [tuple(block.shape) for block in some.blocks] == [(len(some), *shape) for shape in shapes]
        assert all(block.dtype == torch.float32 and block.is_contiguous() for block in some.blocks)
        assert set(some.labels.tolist()) == set(range(data.classes))
        assert len(set(some.ids)) == len(some)


def test_digits_keep_rows_labels_and_ids_together():
    data, whole = ready(), handwriting()
    for some in (data.train, data.test):
        rows = torch.tensor([int(name.split()[1]) for name in some.ids])
        assert torch.equal(torch.stack(some.blocks, 1), whole.features[rows, 0])
        assert torch.equal(some.labels, whole.labels[rows])


def test_tables_are_standardised_by_training_records():
    data = ready("breast_cancer")
    train, test = (torch.cat(some.blocks, 1).double() for some in (data.train, data.test))
    torch.testing.assert_close(train.mean(0), torch.zeros(30, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(train.std(0, unbiased=False), torch.ones(30, dtype=torch.float64), atol=1e-6, rtol=0)
    whole = tumours().features
    rows = [torch.tensor([int(name) for name in some.ids]) for some in (data.train, data.test)]
    expected = (whole[rows[1]] - whole[rows[0]].mean(0)) / whole[rows[0]].std(0, unbiased=False)
    torch.testing.assert_close(test, expected, atol=1e-5, rtol=1e-5)


def test_series_are_standardised_over_the_steps_of_training_records():
    data, whole = ready("series"), vital_signs().features.double()
    rows = [torch.tensor([int(name.split()[1]) for name in some.ids]) for some in (data.train, data.test)]
    steps = whole[rows[0]].flatten(0, 1)
    expected = (whole[rows[1]] - steps.mean(0)) / steps.std(0, unbiased=False)
    for party, group in enumerate(SERIES_GROUPS):
        torch.testing.assert_close(data.test.blocks[party].double(), expected[:, :, list(group)], atol=1e-5, rtol=1e-4)


def test_a_seed_gives_the_same_records_and_another_seed_others():
    seed_everything(1)
    first = ready()
    seed_everything(2)
    again, other = ready(), ready(seed=1)
    assert first.train.ids == again.train.ids
    assert all(map(torch.equal, first.train.blocks, again.train.blocks))
    assert first.ids_digest() == again.ids_digest() != other.ids_digest()


def test_some_records_are_taken_with_their_labels_and_ids():
    data, rows = ready(), torch.tensor([5, 0, 700])
    taken = data.train.take(rows)
    assert len(taken) == 3
    assert all(torch.equal(ours, block[rows]) for ours, block in zip(taken.blocks, data.train.blocks, strict=True))
    assert taken.labels.tolist() == data.train.labels[rows].tolist()
    assert taken.ids == [data.train.ids[row] for row in (5, 0, 700)]


def test_training_batches_are_shuffled_passes_and_test_batches_are_in_order():
    data = ready("breast_cancer", batch_size=50)
    batches = list(data.train_dataloader())
    places = torch.cat([batch["index"] for batch in batches])
    assert len(places.unique()) == 450
    assert not torch.equal(places, places.sort().values)
    for batch in batches:
        expected = data.train.take(batch["index"])
        assert all(map(torch.equal, batch["blocks"], expected.blocks))
        assert torch.equal(batch["label"], expected.labels)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        assert torch.cat([batch["index"] for batch in loader]).tolist() == list(range(114))


# ---- files


@pytest.mark.parametrize(("source", "folder"), [("mnist", "MNIST"), ("fashion_mnist", "FashionMNIST")])
def test_mnist_and_fashion_mnist_give_four_rows_to_each_of_seven_parties(tmp_path, source, folder):
    arrays = write_mnist(tmp_path / folder / "raw")
    data = ready(source, root=tmp_path)
    assert data.shapes == [(112,)] * 7
    for some, name in ((data.train, "train"), (data.test, "t10k")):
        for party, block in enumerate(some.blocks):
            np.testing.assert_allclose(block.numpy() * 255, arrays[name][0][:, 4 * party : 4 * party + 4].reshape(-1, 112), atol=1e-4)
        assert some.labels.tolist() == arrays[name][1].tolist()
    assert data.class_names[1] == {"mnist": "1", "fashion_mnist": "trouser"}[source]
    assert data.test.ids[3] == "test 3"


def test_cifar10_gives_384_numbers_to_each_of_eight_parties(tmp_path):
    write_cifar10(tmp_path)
    data = ready("cifar10", root=tmp_path)
    assert data.shapes == [(384,)] * 8
    pictures = read_cifar10(tmp_path, "test").values()
    assert torch.equal(data.test.blocks[2], pictures[:, :, 8:12].flatten(1))


def test_speech_is_split_by_subject_over_three_parties(tmp_path):
    values = write_speech(tmp_path)
    data = ready("parkinson", root=tmp_path, test_fraction=0.25)
    assert data.shapes == [(251,)] * 3
    assert data.class_counts()["healthy"][0] + data.class_counts()["healthy"][1] == 12
    assert sum(map(sum, data.class_counts().values())) == len(values)
    subjects = [{name.split(",")[0] for name in some.ids} for some in (data.train, data.test)]
    assert not subjects[0] & subjects[1]
    assert len(subjects[1]) == 3
    table = torch.cat(data.train.blocks, 1)
    assert table[:, 1:].mean(0).abs().max() < 1e-5
    assert ready("parkinson", root=tmp_path, columns=[["gender"], ["feature_7", 2]]).shapes == [(1,), (2,)]


def test_views_of_modelnet40_are_dealt_to_four_parties(tmp_path):
    write_views(tmp_path)
    data = ready("modelnet40", root=tmp_path)
    assert data.shapes == [(3, 1, 32, 32)] * 4
    assert ready("modelnet40", root=tmp_path, size=8, parties=12).shapes == [(1, 1, 8, 8)] * 12
    levels = torch.cat(data.test.blocks, 1).mean((2, 3, 4)) * 255
    assert (levels[1] - (60 + 60 + 10 * torch.arange(1, 13))).abs().max() <= 1


def test_stays_are_standardised_where_they_are_numbers_and_dealt_to_four_parties(tmp_path):
    write_mimic3(tmp_path)
    data = ready("mimic3", root=tmp_path)
    assert data.shapes == [(48, 11), (48, 8), (48, 49), (48, 8)]
    rate = data.train.blocks[0][:, :, 0]  # Heart Rate comes first
    assert rate.mean().abs() < 1e-5
    assert rate.std(correction=0) == pytest.approx(1, abs=1e-5)
    raw = mimic3.read_stays(tmp_path, "train").features
    masks = raw[:, :, [59 + mimic3.VARIABLES.index(name) for name in mimic3.HOLDERS["circulation"]]]
    assert torch.equal(data.train.blocks[0][:, :, -5:], masks)
    assert data.train.blocks[3][:, :, :4].abs().max() == 0  # never measured, hence constant: no division by nothing


def test_tables_of_ones_own_are_split_by_columns(tmp_path):
    draw = np.random.default_rng(0)
    lines = ["a,b,c,kind", *(f"{','.join(map(repr, row))},{'yn'[n % 2]}" for n, row in enumerate(draw.normal(size=(30, 3)).tolist()))]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    data = ready("table", root=tmp_path / "t.csv", columns=[["c"], ["a", "b"]], label="kind", test_fraction=0.5)
    assert data.shapes == [(1,), (2,)]
    assert (len(data.train), len(data.test)) == (15, 15)
    assert ready("table", root=tmp_path / "t.csv").shapes == [(2,), (1,)]
    assert all(name.startswith("line ") for name in data.train.ids)


# ---- the files of real parties


def test_every_machine_makes_the_same_split_from_its_own_file(tmp_path):
    tables, labels = write_parties(tmp_path / "all")
    whole = ready("parties", root=tmp_path / "all", seed=2)
    assert whole.shapes == [(3,), (2,)]
    assert whole.class_names == ("no", "yes")
    assert [whole.class_names[label] for label in whole.test.labels] == [labels[name] for name in whole.test.ids]
    alone = {}
    for name in ("labels", "party-0", "party-1"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.csv").write_bytes((tmp_path / "all" / f"{name}.csv").read_bytes())
        alone[name] = VerticalRecords("parties", str(tmp_path / name), seed=2, parties=2)
    server = alone["labels"]
    assert torch.equal(server.train_labels(), whole.train_labels())
    assert torch.equal(server.test_labels(), whole.test.labels)
    assert (server.classes, server.parties) == (2, 2)
    assert server.ids_digest() == whole.ids_digest() == alone["party-0"].ids_digest(0) == alone["party-1"].ids_digest(1)
    for party, table in enumerate(tables):
        train, test = alone[f"party-{party}"].party(party)
        assert torch.equal(train, whole.train.blocks[party])
        assert torch.equal(test, whole.party(party)[1])
        known = np.array([table[name] for name in whole.train.ids])
        expected = (np.array([table[name] for name in whole.test.ids]) - known.mean(0)) / known.std(0)
        np.testing.assert_allclose(test.numpy(), expected, atol=1e-5)
    assert (server.shapes, alone["party-0"].shapes, alone["party-1"].shapes) == ([(1,), (1,)], [(3,), (1,)], [(1,), (2,)])  # its own net only
    with pytest.raises(FileNotFoundError, match=r"no labels.csv in .*data.class_count"):
        _ = alone["party-0"].classes
    assert VerticalRecords("parties", str(tmp_path / "party-0"), parties=2, class_count=2).classes == 2
    with pytest.raises(ValueError, match=r"data.class_count is 3, but labels.csv of .* has 2 classes"):
        _ = VerticalRecords("parties", str(tmp_path / "labels"), parties=2, class_count=3).classes
    with pytest.raises(FileNotFoundError, match=r"no party-<m>.csv in .*data.parties"):
        _ = VerticalRecords("parties", str(tmp_path / "labels")).parties


def test_parties_that_hold_other_records_are_told(tmp_path):
    write_parties(tmp_path)
    lines = (tmp_path / "party-1.csv").read_text().splitlines()
    (tmp_path / "party-1.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match=r"labels.csv and party-1.csv of .* differ in 1 ids, such as p\d+: keep the records"):
        ready("parties", root=tmp_path)
    data = VerticalRecords("parties", str(tmp_path))
    assert data.ids_digest() == data.ids_digest(0) != data.ids_digest(1)
    with pytest.raises(ValueError, match=r"all 60 records of .* fall to training: change data.test_fraction"):
        VerticalRecords("parties", str(tmp_path), test_fraction=1e-9).train_labels()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"source": "celeba"}, "data.source 'celeba' is not known; choose one of: digits: "),
        ({"split": "thirds"}, "data.split must be one of quarters, rows, columns, got 'thirds'"),
        ({"parties": 9}, "cannot be split into 9 x 1 blocks"),
        ({"size": 16}, "data.size is for views, modelnet40, not for digits"),
        ({"columns": [["a"]]}, "data.columns is for tables, not for digits"),
        ({"source": "series", "parties": 3}, "data.parties must be 4 with series"),
        ({"source": "views", "parties": 13}, "data.parties must be at most 12 with views"),
        ({"source": "breast_cancer", "parties": 31}, "30 columns cannot be split over 31 parties"),
        ({"source": "mnist"}, "say where they lie with --data.root"),
        ({"source": "table", "test_fraction": 0.0}, r"data.test_fraction must be in \(0, 1\), got 0.0"),
    ],
)
def test_options_that_do_not_fit_are_named(options, match):
    with pytest.raises(ValueError, match=match):
        ready(**options)


def test_there_is_no_other_party():
    with pytest.raises(ValueError, match="there is no party 8: choose one from 0 to 7"):
        ready().party(8)
