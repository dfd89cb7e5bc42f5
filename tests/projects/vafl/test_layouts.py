"""Real layouts are read as they lie on the disk, nothing of a subject is in two splits, and what is wrong with a file is named."""

import numpy as np
import pytest
import torch
from helpers.party_sets import STAY_HEADER, write_mimic3, write_parties, write_speech, write_stay, write_views
from PIL import Image

from projects.vafl import mimic3
from projects.vafl.layouts import by_subject, is_tested, party_count, read_labels, read_party, read_speech, read_views
from shared.data.files import BadFileError

# ---- Parkinson's disease


@pytest.mark.parametrize("header_lines", [1, 2])
def test_speech_is_read_without_its_ids_under_one_line_of_names_or_two(tmp_path, header_lines):
    values = write_speech(tmp_path, header_lines=header_lines)
    records, subjects = read_speech(tmp_path)
    np.testing.assert_array_equal(records.features.numpy(), values)
    assert records.features.shape == (36, 753)
    assert records.feature_names[:2] == ("gender", "feature_0")
    assert records.class_names == ("healthy", "Parkinson's disease")
    assert records.labels.tolist() == [int(n // 3 % 3 > 0) for n in range(36)]
    assert subjects == [str(n // 3) for n in range(36)]


def test_no_subject_is_in_two_splits(tmp_path):
    write_speech(tmp_path, features=3)
    records, subjects = read_speech(tmp_path / "pd_speech_features.csv")
    train, test = (by_subject(records, subjects, split, 0.25, seed=1) for split in ("train", "test"))
    theirs, ours = ({name.split(",")[0] for name in some.ids} for some in (train, test))
    assert (len(train), len(test)) == (27, 9)
    assert not theirs & ours
    assert len(theirs | ours) == 12
    assert by_subject(records, subjects, "test", 0.25, seed=2).ids != test.ids


def test_files_of_speech_that_cannot_be_used_are_refused(tmp_path):
    file = tmp_path / "pd_speech_features.csv"
    with pytest.raises(FileNotFoundError, match=r"no file .*pd_speech_features.csv: expected"):
        read_speech(tmp_path)
    for text, match in {
        "a,b\n1,2\n": "no line of names with id and class",
        "id,x,class\n0,1,0\n0,1,1\n": "subjects of both classes, 0",
        "id,x,class\n0,1,0\n1,1,2\n": r"must have the classes 0 .* but has 0, 2",
        "id,x,class\n0,,0\n1,1,1\n": "line 2, column 'x': no value",
        "id,x,class\n0,1,0\n1,1\n": "3 columns, but some lines",
    }.items():
        file.write_text(text)
        with pytest.raises(BadFileError, match=match):
            read_speech(tmp_path)
    file.write_text("id,x,x,class\n0,1,2,0\n0,3,4,0\n")
    with pytest.raises(BadFileError, match=r"has 0$"):
        read_speech(tmp_path)
    file.write_text("id,x,x,class\n0,1,2,0\n1,3,4,1\n")
    records, subjects = read_speech(tmp_path)
    assert records.feature_names == ("x", "x 2")
    with pytest.raises(ValueError, match="there is 1 subject"):
        by_subject(records.take(torch.tensor([0])), subjects[:1], "train", 0.2, 0)


# ---- ModelNet40


def test_views_are_grouped_by_object_in_the_order_of_their_numbers(tmp_path):
    write_views(tmp_path)
    train, test = (read_views(tmp_path, split, 8) for split in ("train", "test"))
    assert train.features.shape == (4, 12, 1, 8, 8)
    assert train.class_names == ("airplane", "night_stand")
    assert train.ids == ("airplane/airplane_0001", "airplane/airplane_0002", "night_stand/night_stand_0001", "night_stand/night_stand_0002")
    assert test.labels.tolist() == [0, 1]
    for records, numbers in ((train, [1, 2, 1, 2]), (test, [3, 3])):
        for views, label, number in zip(records.features, records.labels.tolist(), numbers, strict=True):
            expected = 60 * label + 20 * number + 10 * torch.arange(1, 13)
            assert (views.float().mean((1, 2, 3)) - expected).abs().max() <= 1


def test_shaded_views_of_all_objects_are_read_as_those_of_the_first_release(tmp_path):
    write_views(tmp_path / "first")
    expected = read_views(tmp_path / "first", "train", 8)
    for view in (tmp_path / "first/modelnet40v1").rglob("*.jpg"):
        thing, number = view.stem.rsplit("_", 1)
        copy = tmp_path / "modelnet40_images_new_12x" / view.parent.relative_to(tmp_path / "first/modelnet40v1") / f"{thing}.obj.shaded_v{number}.png"
        copy.parent.mkdir(parents=True, exist_ok=True)
        Image.open(view).convert("RGB").save(copy)
    for root in (tmp_path, tmp_path / "modelnet40_images_new_12x"):
        found = read_views(root, "train", 8)
        assert found.ids == expected.ids
        assert torch.equal(found.features, expected.features)


def test_objects_that_lack_views_or_are_in_both_splits_are_named(tmp_path):
    write_views(tmp_path)
    root = tmp_path / "modelnet40v1"
    views = sorted((root / "airplane" / "train").iterdir())
    views[3].unlink()
    views[3].with_name("airplane_0001_013.jpg").write_bytes(b"")
    with pytest.raises(BadFileError, match="1 objects do not have the views 1 to 12, missing or too many:\n  airplane/airplane_0001: views 4, 13"):
        read_views(tmp_path, "train", 8)
    views[4].with_name("airplane_0003_001.jpg").write_bytes(b"")
    with pytest.raises(BadFileError, match="same objects in train and test, airplane_0003"):
        read_views(root, "test", 8)
    for path in (root / "night_stand" / "test").iterdir():
        path.unlink()
    (root / "airplane" / "train" / "airplane_0003_001.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"no views in .*night_stand/test"):
        read_views(root, "test", 8)
    (root / "night_stand" / "test").rmdir()
    with pytest.raises(FileNotFoundError, match="the classes night_stand lack train or test"):
        read_views(root, "test", 8)
    with pytest.raises(FileNotFoundError, match="no folder"):
        read_views(tmp_path / "no", "train", 8)


# ---- MIMIC-III


def reference():
    """First column of each variable, and of the masks, counted from the header and the numbers of categories alone."""
    one_hot = {"Capillary refill rate": 2, "Glascow coma scale eye opening": 8, "Glascow coma scale motor response": 12}
    one_hot |= {"Glascow coma scale total": 13, "Glascow coma scale verbal response": 12}
    columns, place = {}, 0
    for name in STAY_HEADER[1:]:
        columns[name] = place
        place += one_hot.get(name, 1)
    return columns, place


def test_the_stay_has_76_columns_at_the_benchmarks_places():
    columns, masks = reference()
    assert (masks, mimic3.WIDTH, len(mimic3.VARIABLES)) == (59, 76, 17)
    assert tuple(STAY_HEADER[1:]) == mimic3.VARIABLES
    assert [columns[name] for name in ("Diastolic blood pressure", "Glucose", "pH")] == [2, 49, 58]
    assert len(mimic3.CONTINUOUS) == 12
    assert {2, 49, 58} <= set(mimic3.CONTINUOUS)
    parts = mimic3.party_columns()
    assert sorted(column for part in parts for column in part) == list(range(76))
    assert [len(part) for part in parts] == [11, 8, 49, 8]


def test_measurements_become_hours_as_the_benchmark_does(tmp_path):
    write_stay(
        tmp_path / "s.csv",
        [
            (0.0, {"Heart Rate": 70, "Glascow coma scale total": "15.0"}),
            (0.9, {"Heart Rate": 75}),  # the last value of an hour counts
            (1.0, {"pH": 7.1}),  # a full hour closes the one before it
            (5.5, {"Heart Rate": 90, "Capillary refill rate": "1.0", "Glascow coma scale eye opening": "None"}),
            (48.0, {"Glucose": 200}),
            (48.1, {"Glucose": 300, "Weight": 1}),  # beyond the end
        ],
    )
    stay = mimic3.discretised(tmp_path / "s.csv")
    columns, masks = reference()
    names = STAY_HEADER[1:]
    rate, ph, glucose = (stay[:, columns[name]] for name in ("Heart Rate", "pH", "Glucose"))
    assert stay.shape == (48, 76)
    assert rate.tolist() == [75] * 5 + [90] * 43
    np.testing.assert_allclose(ph, 7.1, rtol=1e-6)
    assert glucose.tolist() == [128] * 47 + [200]
    assert stay[:, columns["Weight"]].tolist() == [81] * 48
    refill = stay[:, columns["Capillary refill rate"] :][:, :2]
    assert refill.tolist() == [[1, 0]] * 5 + [[0, 1]] * 43
    eyes = stay[:, columns["Glascow coma scale eye opening"] :][:, :8].argmax(1)
    assert eyes.tolist() == [3] * 5 + [4] * 43  # 4 Spontaneously, then None
    assert stay[:, columns["Glascow coma scale total"] :][:, :13].argmax(1).tolist() == [4] * 48
    measured = stay[:, masks:]
    assert measured.sum() == 7
    assert measured[[0, 5], names.index("Heart Rate")].tolist() == [1, 1]
    assert measured[0, names.index("pH")] == 1
    assert measured[47, names.index("Glucose")] == 1
    assert measured[:, names.index("Weight")].sum() == 0


def test_stays_are_read_in_the_order_of_the_list(tmp_path):
    write_mimic3(tmp_path)
    train, test = (mimic3.read_stays(tmp_path, split) for split in ("train", "test"))
    assert (train.features.shape, test.features.shape) == ((6, 48, 76), (3, 48, 76))
    assert train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert train.ids[0] == "101_episode1_timeseries.csv"
    mimic3.refuse_shared_patients(train.ids, test.ids)
    with pytest.raises(BadFileError, match="patients 107 have stays in both"):
        mimic3.refuse_shared_patients([*train.ids, "107_episode2_timeseries.csv"], test.ids)
    assert torch.equal(mimic3.read_stays(tmp_path / "in-hospital-mortality", "test").features, test.features)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ((1, {"Heart Rate": "fast"}), "line 2: 'fast' is no Heart Rate that the benchmark knows"),
        ((1, {"Heart Rate": "nan"}), "'nan' is no Heart Rate"),
        ((1, {"Glascow coma scale total": "2"}), "'2' is no Glascow coma scale total"),
        ((1, {"Glascow coma scale verbal response": "Shouting"}), "'Shouting' is no"),
        ((-1, {}), "line 2: '-1' hours is no time after admission"),
        (("", {"pH": 7}), "line 2: '' hours"),
    ],
    ids=str,
)
def test_values_that_the_benchmark_does_not_know_are_named(tmp_path, row, match):
    write_stay(tmp_path / "s.csv", [row])
    with pytest.raises(BadFileError, match=match):
        mimic3.discretised(tmp_path / "s.csv")


def test_lists_of_stays_that_cannot_be_used_are_refused(tmp_path):
    folder = tmp_path / "train"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match=r"no file .*listfile.csv: expected in-hospital-mortality/"):
        mimic3.read_stays(tmp_path, "train")
    for text, error, match in (
        ("stay,y_true\n1_episode1_timeseries.csv,1\n", FileNotFoundError, "lacks 1 files that its listfile.csv names: 1_episode1"),
        ("stay,label\na,1\n", BadFileError, "must begin with the line stay,y_true"),
        ("stay,y_true\na,2\n", BadFileError, "0 or 1 for each stay, but not for a"),
        ("stay,y_true\na,1\na,1\n", BadFileError, "names 1 stays twice"),
    ):
        (folder / "listfile.csv").write_text(text)
        with pytest.raises(error, match=match):
            mimic3.read_stays(tmp_path, "train")
    (tmp_path / "s.csv").write_text("Hours,Heart Rate\n1,2\n")
    with pytest.raises(BadFileError, match="must have the columns Hours and the 17 variables, differing: Capillary refill rate"):
        mimic3.discretised(tmp_path / "s.csv")


# ---- the files of real parties


def test_files_of_parties_are_aligned_by_their_ids(tmp_path):
    tables, labels = write_parties(tmp_path)
    ids, numbers, class_names = read_labels(tmp_path)
    assert party_count(tmp_path) == 2
    assert ids == sorted(labels)
    assert [class_names[number] for number in numbers] == [labels[name] for name in ids]
    for party, table in enumerate(tables):
        theirs, values = read_party(tmp_path, party)
        assert theirs == ids
        np.testing.assert_array_equal(values.numpy(), [table[name] for name in ids])


def test_the_split_of_an_id_depends_on_nothing_else():
    names = [f"p{number}" for number in range(2000)]
    tested = [is_tested(name, 3, 0.2) for name in names]
    assert np.mean(tested) == pytest.approx(0.2, abs=0.03)
    assert tested[::-1] == [is_tested(name, 3, 0.2) for name in names[::-1]]
    assert tested != [is_tested(name, 4, 0.2) for name in names]
    assert all(is_tested(name, 3, 0.5) for name, is_one in zip(names, tested, strict=True) if is_one)


def test_files_of_parties_that_cannot_be_used_are_refused(tmp_path):
    assert party_count(tmp_path / "no") == 0
    with pytest.raises(FileNotFoundError, match=r"no file .*party-3.csv: expected labels.csv with"):
        read_party(tmp_path, 3)
    for text, match in {
        "name,x\na,1\n": "the first line of .* must name the columns, one of them id",
        "id,x\na,1\na,2\n": "ids twice, a",
        "id,x\n,1\n": "lacks ids in line 2",
        "id\na\n": "the column id only",
        ",id,x\n0,a,1\n": r"party-0\.csv has a column without a name \(''\), as that of the row numbers .* writes: write it with index=False",
        "id,x\na,high\n": r"line 2, column 'x': the text 'high'\n  fill or remove these lines, or turn text into numbers$",
        "id,x\n": "no records",
    }.items():
        (tmp_path / "party-0.csv").write_text(text)
        with pytest.raises(BadFileError, match=match):
            read_party(tmp_path, 0)
    (tmp_path / "labels.csv").write_text("id,y\na,1\n")
    with pytest.raises(BadFileError, match="no column label"):
        read_labels(tmp_path)
    for missing in ("", "nan", "NA", "null"):
        (tmp_path / "labels.csv").write_text(f"id,label\na,1\nb,{missing}\n")
        with pytest.raises(BadFileError, match="lacks labels in line 3"):
            read_labels(tmp_path)
    (tmp_path / "labels.csv").write_text("id,label\na,1.5\nb,2.5\nc,2.5\n")
    with pytest.raises(ValueError, match=r"column 'label' of .*labels.csv holds 2 different labels in 3 records"):
        read_labels(tmp_path)
