"""That logs of batches are read as they are meant, that mistakes in them are found where they are, and that schedules have rounds enough."""

import json

import numpy as np
import pytest
import torch

from projects.cafe.schedule_files import make_schedule, read_schedule
from projects.cafe.schedules import condition, epochs, malicious, uniform

MEMBERS = [[3, 0], [1, 4], [2, 3]]
SCHEDULE = torch.tensor([[1, 0, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 1, 0]]).bool()


@pytest.fixture
def written(tmp_path):
    """Write a file of text, bytes or an array, and return its path."""

    def write(name, content):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            np.save(path, content, allow_pickle=True)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.csv", "3,0\n1,4\n2,3\n"),
        ("log.txt", "3, 0\r\n1, 4,,\r\n2, 3\r\n\r\n"),
        ("LOG.CSV", "\ufeff3,0\n1,4\n2,3"),
        ("pairs.csv", "round,record\n12,2\n-1,3\n\n5,4\n5,1\n-1,0\n12,3\n"),
        ("turned.csv", "Record, Round\n3,1\n0,1\n1,2\n4,2\n2,3\n3,3\n"),
        ("log.json", json.dumps(MEMBERS, indent=1)),
        ("members.npy", np.array(MEMBERS)),
        ("floats.npy", np.array(MEMBERS, dtype=np.float32)),
        ("matrix.npy", SCHEDULE.numpy()),
        ("numbers.npy", SCHEDULE.numpy().astype(float)),
    ],
)
@pytest.mark.parametrize("records", [None, 5])
def test_every_form_says_the_same(written, name, content, records):
    assert torch.equal(read_schedule(written(name, content), records), SCHEDULE)


def test_records_that_are_in_no_round_are_counted(written):
    found = read_schedule(written("log.csv", "3,0\n1,4\n2,3\n"), 8)
    assert torch.equal(found, torch.cat([SCHEDULE, torch.zeros(3, 3, dtype=torch.bool)], 1))


def test_rounds_may_be_of_unlike_sizes(written):
    assert read_schedule(written("log.csv", "0,1,2\n2\n")).tolist() == [[True, True, True], [False, False, True]]


def test_zeros_and_ones_alone_are_a_matrix(written):
    assert read_schedule(written("pairs.npy", np.array([[0, 1], [1, 0], [1, 1]]))).sum(1).tolist() == [1, 1, 2]
    with pytest.raises(ValueError, match="a matrix of 0 and 1 for 2 records, but there are 6"):
        read_schedule(written("pairs.npy", np.array([[0, 1], [1, 0]])), 6)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "0,1\n2,x\n", "a.csv, line 2: 'x' is no record number"),
        ("b.csv", "0,1.5\n", "line 1: '1.5' is no record number"),
        ("c.csv", "0,1\n\n2,3\n", "line 2: a round without records"),
        ("d.csv", "0,1\n2,,3\n", "line 2: '' is no record number"),
        ("e.csv", "0,1\n-2,3\n", "line 2: the record number -2 is negative"),
        ("f.csv", "0,1\n2,6\n", "line 2: there is no record 6: the 6 records have the numbers 0 to 5"),
        ("g.csv", "0,1\n2,3,2\n", "line 2: record 2 is in line 2 twice"),
        ("h.csv", "step,record\n0,1\n", "line 1: 'step' is no record number"),
        ("i.csv", "", "i.csv is empty: expected a round at least"),
        ("j.csv", "\n \n", "j.csv is empty"),
        ("k.csv", "round,record\n", "k.csv is empty"),
        ("l.csv", "round,record\n0,1\n0,2,3\n", "line 3: 3 numbers, but the header says 'round,record'"),
        ("m.csv", "round,record\n0,1\n1,2\n0,1\n", "line 4: record 1 is in round 0 twice"),
        ("n.csv", "round,record\n0,1\n0,9\n", "line 3: there is no record 9"),
        ("o.csv", b"\xff\xfe0,1", "save it in UTF-8"),
        ("a.json", "[[0, 1],\n [2, 3]", "cannot read .*a.json as JSON: .* line 2 column 8 .*expected a list of rounds"),
        ("b.json", '{"rounds": []}', "b.json is no list"),
        ("c.json", "[[0], 1]", "round 1: '1' is no list of records"),
        ("d.json", "[[0], [true]]", "round 1: 'True' is no record number"),
        ("e.json", "[[0], []]", "round 1: a round without records"),
        ("f.json", "[[0], [2, 2]]", "round 1: record 2 is in round 1 twice"),
        ("g.json", "[]", "g.json is empty"),
        ("h.json", "", "h.json is empty"),
        ("i.json", "[" * 100_000, "cannot read .*i.json as JSON"),
        ("j.json", f"[[{'9' * 5000}]]", "cannot read .*j.json as JSON"),
        ("a.npy", np.array([[0, 1], [2, 6]]), "round 1: there is no record 6"),
        ("b.npy", np.array([[0, 1], [2, 0.5]]), "round 1: 0.5 is no record number"),
        ("c.npy", np.array([[np.nan, 1], [2, 3]]), "round 0: nan is no record number"),
        ("d.npy", np.array([[0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0]]), "round 1: a round without records"),
        ("e.npy", np.arange(3), r"an array \(3,\) of int64: expected numbers \(T, N\)"),
        ("f.npy", np.array([["0", "1"]]), "expected numbers"),
        ("g.npy", np.array([[0, "x"]], dtype=object), "cannot use .*g.npy"),
        ("h.npy", b"\x93NUMPY\x01\x00", "cannot use .*h.npy"),
        ("i.npy", b"", "cannot use .*i.npy"),
        ("j.npy", np.zeros((0, 4)), "j.npy is empty"),
        ("k.npy", np.array([[0, -3]]), "round 0: the record number -3 is negative"),
        ("a.xlsx", b"", r"ends in '.xlsx': expected a \.csv, \.json or \.npy file"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value[:3] and "\n" not in value else "",
)
def test_what_is_wrong_is_named_with_its_place(written, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_schedule(written(name, content), 6)


def test_identifiers_that_are_no_numbers_from_0_are_not_made_a_matrix_of(written):
    with pytest.raises(ValueError, match="up to number 987654321098, too many to hold: number the records from 0"):
        read_schedule(written("ids.csv", "987654321098,3\n"))


def test_schedules_by_name_are_those_of_the_functions():
    assert torch.equal(make_schedule("uniform", 20, 4, 7, 3), uniform(20, 4, 7, 3))
    assert torch.equal(make_schedule("epochs", 20, 4, 7, 3), epochs(20, 4, 7, 3))
    assert torch.equal(make_schedule("malicious", 20, 4), malicious(20, 4))
    assert torch.equal(make_schedule("malicious", 20, 4, 7), malicious(20, 4)[:7])
    assert torch.equal(make_schedule("malicious", 20, 4, 45), malicious(20, 4).repeat(3, 1)[:45])
    assert len(make_schedule("uniform", 40, 8)) == 48
    assert len(make_schedule("uniform", 40, 2)) == 154  # 40 / 2 * (ln 40 + 4)


@pytest.mark.parametrize("name", ["uniform", "epochs", "malicious"])
@pytest.mark.parametrize(("records", "batch"), [(200, 40), (40, 8), (40, 20), (41, 8), (30, 1), (30, 2), (30, 29), (30, 16), (64, 32)])
def test_by_default_there_are_rounds_enough_to_tell_all_records_apart(name, records, batch):
    for seed in range(3):
        assert condition(make_schedule(name, records, batch, seed=seed)).rank == records


def test_passes_of_whole_batches_need_more_rounds_than_others():
    assert len(make_schedule("epochs", 40, 20)) == 94  # 1.2 * 39 * 2 / 1, as both batches of a pass tell one thing
    assert len(make_schedule("epochs", 41, 20)) == 50
    assert condition(make_schedule("epochs", 40, 20, 48)).rank < 40
    assert condition(make_schedule("epochs", 6, 6)).rank == 1


def test_a_file_is_a_schedule_too(written):
    path = str(written("log.csv", "3,0\n1,4\n2,3\n"))
    assert torch.equal(make_schedule(path, 5, 2), SCHEDULE)
    assert torch.equal(make_schedule(path, 5, 2, rounds=2), SCHEDULE[:2])
    with pytest.raises(ValueError, match="holds 3 rounds, fewer than the 4 asked for"):
        make_schedule(path, 5, 2, rounds=4)


def test_what_is_no_schedule_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no schedule 'unifrom': expected uniform, epochs, malicious, or a \.csv"):
        make_schedule("unifrom", 20, 4)
    with pytest.raises(FileNotFoundError, match=r"no file .*log\.csv"):
        read_schedule(tmp_path / "log.csv")
    with pytest.raises(ValueError, match="at least one round, got 0"):
        make_schedule("malicious", 20, 4, 0)
    for name in ("uniform", "epochs", "malicious"):
        for batch in (0, 21):
            with pytest.raises(ValueError, match=f"batches of {batch}"):
                make_schedule(name, 20, batch)
