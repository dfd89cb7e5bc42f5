"""Tables of one's own are read whatever separates their columns, and what is wrong with a cell is named."""

import pytest
import torch

from shared.data.files import BadFileError
from shared.vertical.tables import column_places, read_table


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_tables_are_read_with_names_or_without(tmp_path):
    named = write(tmp_path / "a.csv", "age,dose,kind\n1,2.5,b\n\n3,-4e1,a\n5,6,b\n7,8,a\n")
    records = read_table(named)
    assert records.features.tolist() == [[1, 2.5], [3, -40], [5, 6], [7, 8]]
    assert records.features.dtype == torch.float64
    assert records.feature_names == ("age", "dose")
    assert records.class_names == ("a", "b")
    assert records.labels.tolist() == [1, 0, 1, 0]
    bare = read_table(write(tmp_path / "b.csv", "1;2.5;b\n3;-4e1;a\n5;6;b\n7;8;a\n"))
    assert torch.equal(bare.features, records.features)
    assert bare.feature_names == ("0", "1")
    tabbed = read_table(write(tmp_path / "c.tsv", "\ufeffkind\t'age'\t\"dose, mg\"\nb\t1\t2.5\na\t3\t-40\nb\t5\t6\na\t7\t8\n"), "kind")
    assert torch.equal(tabbed.features, records.features)
    assert tabbed.feature_names == ("'age'", "dose, mg")


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_row_numbers_of_pandas_are_no_features(tmp_path, name):
    file = write(tmp_path / "a.csv", f"{name},x,y,kind\n0,1,2,a\n1,3,4,a\n2,5,6,b\n3,7,8,b\n")
    with pytest.raises(BadFileError, match=rf"a\.csv has a column without a name \('{name}'\), .* index=False, or choose the columns of numbers"):
        read_table(file)
    assert read_table(file, columns=["y", "x"]).features.tolist() == [[2, 1], [4, 3], [6, 5], [8, 7]]


@pytest.mark.parametrize("names", ["0,1,2,kind", "0,1,2,3", ",0,1,2", "kind,0,1,2"])
def test_columns_that_are_counted_are_no_record(tmp_path, names):
    with pytest.raises(BadFileError, match=r"the first line of .*a\.csv counts its columns, 0, 1, 2 \.\.\., .*: name them in words, or put a line"):
        read_table(write(tmp_path / "a.csv", f"{names}\n5,1,2,0\n6,3,4,0\n7,5,6,1\n8,7,8,1\n"))
    assert len(read_table(write(tmp_path / "a.csv", "0,1,1\n1,0,1\n0,0,0\n1,1,0\n"))) == 4


def test_columns_that_nobody_wants_may_hold_anything(tmp_path):
    file = write(tmp_path / "a.csv", "who,x,y,kind\nann,1,2,a\nbob,3,,b\ncid,5,6,a\ndan,7,8,b\n")
    records = read_table(file, columns=["x"])
    assert records.features.tolist() == [[1], [3], [5], [7]]
    assert records.feature_names == ("x",)
    swapped = read_table(write(tmp_path / "b.csv", "1,2,a\n3,4,a\n"), columns=[1, 0])
    assert swapped.features.tolist() == [[2, 1], [4, 3]]
    with pytest.raises(ValueError, match=r"column 'kind' of .* is that of the labels"):
        read_table(file, columns=["x", "kind"])
    with pytest.raises(ValueError, match="columns 'x' are given twice"):
        read_table(file, columns=["x", 1])


def test_labels_that_are_numbers_keep_their_order(tmp_path):
    records = read_table(write(tmp_path / "a.csv", "y,x\n10,1\n0.5,2\n10.0,3\n9,4\n9,5\n.5,6\n"), label=0)
    assert records.class_names == ("0.5", "9", "10")
    assert records.labels.tolist() == [2, 0, 2, 1, 1, 0]


def test_values_that_are_no_numbers_are_named_with_line_and_column(tmp_path):
    file = write(tmp_path / "a.csv", "x,y,kind\n1,2,a\n,nan,b\n3,tall,\n4,inf,b\n")
    with pytest.raises(BadFileError) as caught:
        read_table(file)
    told = str(caught.value)
    for expected in ("5 values", "line 3, column 'x': no value", "line 3, column 'y': 'nan' is not finite", "line 4, column 'y': the text 'tall'"):
        assert expected in told
    assert "line 4, column 'kind': no label" in told
    assert "line 5, column 'y': 'inf' is not finite" in told


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("", BadFileError, "is empty"),
        ("x,y\n", BadFileError, "names of columns, but no records"),
        ("x,x,y\n1,2,3\n", BadFileError, "several columns named 'x'"),
        ("x,y\n1,a\n1,2,a\n", BadFileError, "has 2 columns, but some lines have more or fewer:\n  line 3: 3"),
        ("y\na\na\n", ValueError, "only the column 'y'"),
        ("x,y\n1,0.1\n2,0.2\n3,0.3\n", ValueError, "column 'y' of .* holds 3 different labels in 3 records"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(tmp_path, text, error, match):
    with pytest.raises(error, match=match):
        read_table(write(tmp_path / "a.csv", text))


def test_missing_tables_and_other_encodings_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*expected a table of numbers"):
        read_table(tmp_path / "no.csv")
    (tmp_path / "a.csv").write_bytes("größe,y\n1,a\n".encode("latin1"))
    with pytest.raises(BadFileError, match="save it as CSV in UTF-8"):
        read_table(tmp_path / "a.csv")


def test_columns_are_found_by_name_or_place():
    assert column_places(["a", "b", "c"], ["c", 0, -2]) == [2, 0, 1]
    with pytest.raises(ValueError, match="no column 'd': choose a place from 0 to 2, or one of 'a', 'b', 'c'"):
        column_places(["a", "b", "c"], ["d"])
    with pytest.raises(ValueError, match="no column 3"):
        column_places(["a", "b", "c"], [3])
