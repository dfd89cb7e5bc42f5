"""That a schedule settles the records that exact arithmetic says it does, and when."""

import math
from fractions import Fraction

import pytest
import torch

from projects.cafe.leaks import last_rounds_needed, pass_length, schedule_leaks, settled_share
from projects.cafe.schedules import epochs, malicious, uniform

SCHEDULES = {
    "uniform": uniform(9, 3, 14, 0),
    "too few": uniform(9, 3, 7, 1),
    "epochs": epochs(8, 2, 20, 0),
    "pairs": epochs(6, 3, 12, 2),
    "malicious": malicious(9, 2),
    "singles": torch.eye(5, dtype=torch.bool),
    "sizes differ": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 1, 1]], dtype=torch.bool),
}


def rank(rows):
    """Rank by elimination in fractions."""
    rows, found = [[Fraction(int(entry)) for entry in row] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((i for i in range(found, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        for i in range(found + 1, len(rows)):
            factor = rows[i][column] / rows[found][column]
            rows[i] = [a - factor * b for a, b in zip(rows[i], rows[found], strict=True)]
        found += 1
    return found


def settled_after(schedule, record):
    """Rounds after which the unit vector of a record adds nothing to the rank of the rounds so far; 0 for never."""
    unit = [int(n == record) for n in range(schedule.shape[1])]
    rows = schedule.int().tolist()
    return next((t for t in range(1, len(rows) + 1) if rank(rows[:t]) == rank([*rows[:t], unit])), 0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_records_are_settled_when_exact_elimination_says_so(name):
    schedule = SCHEDULES[name]
    leaks = schedule_leaks(schedule)
    expected = [settled_after(schedule, record) for record in range(schedule.shape[1])]
    assert leaks.after.tolist() == expected
    assert leaks.rank == rank(schedule.int().tolist())
    settled = [after for after in expected if after]
    assert (leaks.first, leaks.last) == ((min(settled), max(settled)) if settled else (None, None))
    assert set(leaks.reasons) == {record for record, after in enumerate(expected) if not after}


@pytest.mark.parametrize("name", SCHEDULES)
def test_amplification_is_the_norm_of_the_combination_of_rounds_that_gives_a_record(name):
    schedule = SCHEDULES[name]
    leaks, inverse = schedule_leaks(schedule), torch.linalg.pinv(schedule.double())
    expected = torch.where(leaks.settled, inverse.norm(dim=1), math.inf)
    torch.testing.assert_close(leaks.amplification, expected)


@pytest.mark.parametrize("name", SCHEDULES)
def test_last_rounds_needed_settle_what_all_settle_and_one_less_does_not(name):
    schedule = SCHEDULES[name]
    needed, settled = last_rounds_needed(schedule), schedule_leaks(schedule).settled
    if not settled.any():
        assert needed == 0
        return
    assert torch.equal(schedule_leaks(schedule[-needed:]).settled, settled)
    assert needed == 1 or int(schedule_leaks(schedule[1 - needed :]).settled.sum()) < int(settled.sum())


def test_share_of_settled_records_is_a_count_over_rounds():
    after = torch.tensor([3, 0, 1, 3, 5])
    assert settled_share(after, 6).tolist() == [sum(0 < one <= t for one in after.tolist()) / 5 for t in range(7)]


def test_passes_are_found_and_add_one_less_than_their_length_to_the_rank():
    for records, batch in ((8, 2), (9, 4), (12, 3)):
        assert pass_length(epochs(records, batch, 3 * (records // batch), 0)) == records // batch
    schedule = epochs(12, 3, 8, 0)
    assert [schedule_leaks(schedule[: 4 * passes]).rank for passes in (1, 2)] == [4, 7]
    assert pass_length(uniform(12, 3, 30, 0)) is None
    assert pass_length(epochs(8, 2, 4, 0)) is None  # one pass does not show that there are several


def test_reasons_tell_absent_records_from_inseparable_ones_and_from_too_few_rounds():
    schedule = torch.zeros(3, 7, dtype=torch.bool)
    schedule[0, [1, 2, 3]] = schedule[1, [1, 2, 4]] = schedule[2, [5]] = True
    reasons = schedule_leaks(schedule).reasons
    assert reasons[0] == "it is in no round"
    assert reasons[1] == "it is always in one batch with record 2"
    assert reasons[3] == "3 rounds of rank 3 do not tell it from the rest of 7 records"
    assert 5 not in reasons
    assert schedule_leaks(torch.ones(1, 4, dtype=torch.bool)).reasons[0] == "it is always in one batch with record 1 and 2 more"
