from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from helpers.federation import setting

from projects.vafl.client import Signal, Upload
from projects.vafl.frames import Frame, FrameError, decode, encode
from projects.vafl.settings import Delays, Protocol
from projects.vafl.terms import Terms, read_releases, read_signal, read_times, read_upload, signal_frame, upload_frame

TERMS = Terms.of(setting(), 3, 60, 30, "abc")


def sent(frame):
    return decode(encode(frame))


def test_who_agrees_is_told_nothing():
    assert TERMS.difference(asdict(TERMS)) == ""


def test_delays_are_each_partys_own():
    assert Terms.of(setting(delays=Delays(scale=3.0)), 3, 60, 30, "abc") == TERMS


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (replace(TERMS, clients=4), "clients are 4, the server's 3: give both the same data.parties"),
        (replace(TERMS, records=61), "records are 61, the server's 60: both must hold the same subjects"),
        (replace(TERMS, ids="abd"), "ids are abd, the server's abc: both must hold the same subjects in their files"),
        (Terms.of(setting(lr=0.5), 3, 60, 30, "abc"), r"its settings differ \(lr is 0.5 there and 0.3 here\): give both the same configuration"),
        (replace(TERMS, clock="virtual"), "its clock is virtual, the server's wall: give both the same --clock"),
        (replace(TERMS, ids="\x1b[2Jabd"), r"its ids are \?\[2Jabd"),
        (Terms.of(setting(batch=7), 3, 60, 30, "abc"), "batch is 7 there and 6 here"),
        (Terms.of(setting(Protocol("sync")), 3, 60, 30, "abc"), "protocol.algorithm is sync there and async here"),
        (replace(TERMS, settings="[[[["), "its settings differ"),
        (replace(TERMS, settings="[" * 60000), "its settings differ"),
    ],
    ids=["clients", "records", "ids", "lr", "clock", "escape", "batch", "protocol", "garbage", "deep garbage"],
)
def test_a_difference_is_named_with_its_mend(other, said):
    import re

    assert re.search(said, TERMS.difference(asdict(other)))


@pytest.mark.parametrize("query", ["first", "other", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["32", "16"])
def test_uploads_arrive_as_they_were(query, dtype):
    rows = np.array([5, 3, 9, 1])
    asked = {"first": rows[:2], "other": np.array([7, 8]), "none": rows[:0]}[query]
    upload = Upload(1, 4, rows, torch.randn(4, 3).to(dtype), asked)
    frame = sent(upload_frame(upload, 0.5, 0.75))
    found = read_upload(frame, 1, 10, 3, 2)
    assert read_times(frame, 1) == (0.5, 0.75)
    assert (found.client, found.cycle, found.rows.tolist(), found.query.tolist()) == (1, 4, rows.tolist(), asked.tolist())
    assert torch.equal(found.embeddings, upload.embeddings)
    assert found.embeddings.dtype == dtype
    assert ("query" in frame.tensors) == (query == "other")


def test_a_query_alone_arrives():
    upload = Upload(0, 4, np.empty(0, np.int64), torch.empty(0, 3), np.array([2, 0]))
    found = read_upload(sent(upload_frame(upload, 0.0, 1.0)), 0, 10, 3, 2)
    assert found.query.tolist() == [2, 0]
    assert len(found.rows) == 0


GOOD = {"rows": torch.tensor([1, 2], dtype=torch.int32), "embeddings": torch.zeros(2, 3)}


@pytest.mark.parametrize(
    ("fields", "tensors", "said"),
    [
        ({}, {"rows": torch.tensor([1, 1], dtype=torch.int32)}, "client 1 sent a message whose rows are not different records from 0 to 9"),
        ({}, {"rows": torch.tensor([1, 10], dtype=torch.int32)}, "rows"),
        ({}, {"rows": torch.tensor([-1, 2], dtype=torch.int32)}, "rows"),
        ({}, {"rows": torch.tensor([1, 2])}, "rows"),
        ({}, {"rows": torch.zeros(2, 1, dtype=torch.int32)}, "rows"),
        ({}, {"embeddings": torch.zeros(2, 4)}, "no embeddings of shape"),
        ({}, {"embeddings": torch.zeros(2, 3, dtype=torch.float64)}, "no embeddings"),
        ({}, {"embeddings": torch.full((2, 3), torch.nan)}, "not finite: its training has diverged; lower model.lr"),
        ({}, {"embeddings": torch.full((2, 3), 3e38)}, "as large as 3e\\+38: its training has diverged"),
        ({"first": 1}, {}, "fields"),
        ({"first": "2"}, {}, "fields"),
        ({"cycle": "x"}, {}, "fields"),
        ({}, {"query": torch.tensor([3], dtype=torch.int32)}, "asked for 1 records, expected a batch of 2"),
    ],
    ids=[
        "twice", "beyond", "negative", "int64", "matrix", "width", "double", "nan", "huge", "first", "text", "cycle", "short query",
    ],
)  # fmt: skip
def test_what_is_no_upload_is_refused(fields, tensors, said):
    with pytest.raises(FrameError, match=said):
        read_upload(Frame("upload", {"cycle": 0} | fields, GOOD | tensors), 1, 10, 3, 2)


@pytest.mark.parametrize(
    "times", [(1.0, 0.5), (-1.0, 0.5), ("now", 1.0), (0.0, None), (False, True)], ids=["backwards", "negative", "text", "none", "truth"]
)
def test_times_that_are_none_are_refused(times):
    with pytest.raises(FrameError, match="client 1 sent a cycle"):
        read_times(Frame("upload", dict(zip(("start", "arrival"), times, strict=True))), 1)


def test_answers_arrive_as_they_were():
    signal = Signal(torch.randn(6, 3), 12, 3.5)
    frame = sent(signal_frame(signal, 4, 1.25))
    found = read_signal(frame, 6, 3)
    assert torch.equal(found.gradient, signal.gradient)
    assert (found.updates, found.age) == (12, 3.5)
    assert frame.fields["cycle"] == 4
    assert frame.fields["start"] == 1.25
    with pytest.raises(FrameError, match=r"no gradient of shape \(5, 3\)"):
        read_signal(frame, 5, 3)
    with pytest.raises(FrameError, match="not finite: the training has diverged"):
        read_signal(sent(signal_frame(replace(signal, gradient=signal.gradient / 0), 4, 1.25)), 6, 3)


@pytest.mark.parametrize(
    "counts", [torch.ones(3).long(), torch.ones(4), torch.tensor([0, 1, 2, -1]), None], ids=["short", "float", "negative", "none"]
)
def test_counts_that_are_none_are_refused(counts):
    with pytest.raises(FrameError, match="client 1 sent no counts of the releases of 4 records"):
        read_releases(Frame("bye", {}, {} if counts is None else {"releases": counts}), 4, "client 1")
    assert read_releases(sent(Frame("bye", {}, {"releases": torch.arange(4)})), 4, "client 1").tolist() == [0, 1, 2, 3]
