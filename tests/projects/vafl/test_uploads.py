"""What goes along with a batch."""

import numpy as np
import pytest

from projects.vafl.uploads import Passes, Selection, UploadPolicy

RECORDS, BATCH, ROW_BYTES = 100, 8, 44


def selection(policy="batch", records=RECORDS, batch=BATCH, seed=0, client=1, is_shared=False):
    return Selection(UploadPolicy.parse(policy), records, batch, ROW_BYTES, seed, client, is_shared)


def played(of, cycles):
    """Return the batches and the others of the first cycles, noted as a client does."""
    found = []
    for cycle in range(cycles):
        found.append(of.rows(cycle))
        of.note(np.concatenate(found[-1]), cycle)
    return found


@pytest.mark.parametrize(("total", "size"), [(100, 10), (100, 7), (5, 5), (5, 4)])
def test_a_pass_takes_each_record_once_and_drops_what_is_left_over(total, size):
    passes, parts = Passes(total, size, 0, "key"), total // size
    orders = [np.concatenate([passes.part(turn * parts + place) for place in range(parts)]) for turn in range(3)]
    for order in orders:
        assert len(np.unique(order)) == parts * size
        assert 0 <= order.min() <= order.max() < total
    assert not (orders[0] == orders[1]).all()


def test_parts_are_a_function_of_their_number():
    one, other = Passes(100, 7, 0, "key"), Passes(100, 7, 0, "key")
    forwards = [one.part(number).tolist() for number in range(40)]
    assert [other.part(number).tolist() for number in reversed(range(40))] == forwards[::-1]
    assert Passes(100, 7, 1, "key").part(0).tolist() != forwards[0]


@pytest.mark.parametrize("policy", ["batch", "extra:fraction=0.1", "extra:count=30", "extra:fraction=1", "all", "oldest:bytes=880"])
def test_no_record_goes_twice_in_a_message(policy):
    sizes = set()
    for batch, others in played(selection(policy), 40):
        rows = np.concatenate([batch, others])
        assert len(np.unique(rows)) == len(rows)
        assert len(batch) == BATCH
        assert rows.dtype == np.int64
        sizes.add(len(others))
    most = {"batch": 0, "extra:fraction=0.1": 10, "extra:count=30": 30, "oldest:bytes=880": 12}.get(policy, 92)
    assert max(sizes) <= most
    assert most - max(sizes) <= 3  # extra ones that are in the batch anyway do not go twice
    if not policy.startswith("extra"):
        assert sizes == {most}


@pytest.mark.parametrize("count", [10, 30, 60])
def test_extra_records_go_in_turn_so_that_none_waits_long(count):
    others = [set(np.concatenate(rows).tolist()) for rows in played(selection(f"extra:count={count}"), 60)]
    turn = -(-RECORDS // count)
    for start in range(60 - turn):
        assert set.union(*others[start : start + turn]) == set(range(RECORDS))


def test_the_oldest_are_those_that_were_uploaded_longest_ago():
    of, last = selection("oldest:bytes=880"), dict.fromkeys(range(RECORDS), -1)
    for cycle in range(60):
        batch, others = of.rows(cycle)
        left = sorted(last[row] for row in set(range(RECORDS)) - set(batch.tolist()))
        assert sorted(last[row] for row in others.tolist()) == left[: len(others)]
        for row in np.concatenate([batch, others]).tolist():
            last[row] = cycle
        of.note(np.concatenate([batch, others]), cycle)
    assert min(last.values()) > 60 - 10  # twelve a cycle refresh a hundred within nine


@pytest.mark.parametrize("size", [352, 400, 880, 4399, 4400, 10**6])
def test_an_upload_of_the_oldest_keeps_within_its_bytes(size):
    for batch, others in played(selection(f"oldest:bytes={size}"), 5):
        assert len(batch) + len(others) == min(RECORDS, size // ROW_BYTES)


def test_shared_batches_are_the_same_everywhere_and_own_ones_are_not():
    shared = [selection("extra:count=9", client=client, is_shared=True) for client in (0, 1)]
    own = [selection("extra:count=9", client=client) for client in (0, 1)]
    assert shared[0].rows(5)[0].tolist() == shared[1].rows(5)[0].tolist()
    assert own[0].rows(5)[0].tolist() != own[1].rows(5)[0].tolist()
    assert shared[0].rows(5)[1].tolist() != shared[1].rows(5)[1].tolist()


def test_a_batch_may_be_the_whole_set():
    for policy in ("batch", "extra:count=5", "all", "oldest:bytes=4400"):
        batch, others = selection(policy, batch=RECORDS).rows(3)
        assert sorted(batch) == list(range(RECORDS))
        assert len(others) == 0


UNKNOWN = """none batch:count=1 extra extra:fraction=0 extra:fraction=1.5 extra:fraction=nan extra:count=0 extra:count=1.5 extra:count=many
extra:bytes=5 oldest oldest:bytes=0.5 oldest:count=5 all:count=1"""


@pytest.mark.parametrize("text", ["", *UNKNOWN.split()])
def test_policies_that_cannot_be_read_are_named(text):
    with pytest.raises(
        ValueError, match=r"protocol.uploads '.*' is not known: give batch, extra:fraction=0.1, extra:count=100, all, or oldest:bytes"
    ):
        UploadPolicy.parse(text)


def test_one_extra_record_and_all_of_them_are_told_apart():
    assert UploadPolicy.parse("extra:count=1").count(RECORDS, BATCH, ROW_BYTES) == 1
    assert UploadPolicy.parse("extra:fraction=1").count(RECORDS, BATCH, ROW_BYTES) == RECORDS - BATCH


def test_too_few_bytes_for_a_batch_are_named():
    with pytest.raises(ValueError, match=r"protocol\.uploads allows 351 bytes, but a batch of 8 embeddings takes 352: raise it"):
        selection("oldest:bytes=351")


@pytest.mark.parametrize("batch", [0, 101])
def test_a_batch_that_is_none_or_too_large_is_named(batch):
    with pytest.raises(ValueError, match=f"data.batch_size is {batch}, but there are 100 training records: take 1 to 100"):
        selection(batch=batch)
