"""That schedules draw what they say, and that their condition is judged rightly."""

from itertools import combinations

import numpy as np
import pytest
import torch

from projects.cafe.schedules import condition, epochs, malicious, rounds_until_known, second_moment, uniform


def rows(subsets, records):
    """Turn sets of members into a schedule."""
    return torch.tensor([[number in subset for number in range(records)] for subset in subsets])


def test_a_round_of_a_uniform_schedule_can_be_replayed():
    long, short, other = uniform(50, 8, 30, 0), uniform(50, 8, 10, 0), uniform(50, 8, 10, 1)
    assert torch.equal(long[:10], short)
    assert not torch.equal(short, other)
    assert (long.sum(1) == 8).all()


@pytest.mark.parametrize(("records", "batch"), [(6, 3), (7, 2), (5, 5), (4, 1)])
def test_the_second_moment_is_that_of_all_subsets(records, batch):
    every = rows(combinations(range(records), batch), records).double()
    torch.testing.assert_close(every.T @ every / len(every), second_moment(records, batch))


def test_a_uniform_schedule_has_the_second_moment_and_its_condition():
    """The eigenvalues are K^2 / N of the mean direction and K(N - K) / (N(N - 1)) of all others."""
    records, batch, rounds = 20, 6, 20_000
    schedule = uniform(records, batch, rounds, 0)
    moment = second_moment(records, batch)
    assert (schedule.double().T @ schedule.double() / rounds - moment).abs().max() < 0.02
    values = torch.linalg.eigvalsh(moment)
    torch.testing.assert_close(values[-1], torch.tensor(batch**2 / records, dtype=torch.float64))
    torch.testing.assert_close(values[:-1], torch.full((records - 1,), batch * (records - batch) / (records * (records - 1)), dtype=torch.float64))
    found = condition(schedule)
    assert found.rank == records
    assert found.recoverable.all()
    assert found.condition == pytest.approx((values[-1] / values[0]).sqrt().item(), rel=0.05)
    expected = moment.inverse().diagonal().div(rounds).sqrt()
    torch.testing.assert_close(found.amplification, expected, rtol=0.05, atol=0)


def test_a_pass_meets_every_record_once_and_no_batch_is_smaller():
    schedule = epochs(23, 5, 10, 0)
    assert schedule.shape == (10, 23)
    assert (schedule.sum(1) == 5).all()
    for start in (0, 4):
        assert schedule[start : start + 4].sum(0).max() == 1
    assert not torch.equal(schedule[:4], schedule[4:8])


def test_each_full_pass_tells_one_batch_less():
    """The batches of every pass add up to all records, so that passes of P batches have rank 1 + P' (P - 1) after P' passes."""
    assert condition(epochs(24, 6, 20, 0)).rank == 1 + 5 * 3
    assert condition(uniform(24, 6, 20, 0)).rank == 20


@pytest.mark.parametrize(("records", "batch"), [(200, 40), (205, 40), (42, 40), (41, 40), (40, 8), (55, 8), (7, 1), (8, 2), (61, 60)])
def test_malicious_schedules_give_all_records_away_in_the_fewest_rounds(records, batch):
    schedule = malicious(records, batch)
    assert schedule.shape == (records, records)
    assert (schedule.sum(1) == batch).all()
    found = condition(schedule)
    assert found.rank == records
    assert found.recoverable.all()
    assert found.condition < max(3 * batch, 6)
    assert found.amplification.max() < 2


def test_malicious_batches_differ_in_one_record_within_a_group():
    schedule = malicious(82, 40)
    changes = (schedule[1:] != schedule[:-1]).sum(1)
    assert (changes.eq(2).sum(), changes.ne(2).sum()) == (80, 1)


def test_malicious_schedules_are_better_conditioned_than_honest_ones():
    assert condition(malicious(205, 40)).condition == pytest.approx(40)
    honest = condition(uniform(205, 40, 205, 0))
    assert honest.condition > 300
    assert honest.amplification.max() > 3


def test_the_condition_is_numpys_and_recoverable_records_are_those_that_stay_when_the_rest_moves():
    schedule = rows([{0, 1}, {1, 2}, {0, 2}, {3, 4}, {3, 4, 5}], 7)
    found = condition(schedule)
    matrix = schedule.double().numpy()
    assert found.rank == np.linalg.matrix_rank(matrix) == 5
    assert found.condition == float("inf")
    assert found.recoverable.tolist() == [True, True, True, False, False, True, False]
    inverse = np.linalg.pinv(matrix)
    expected = np.where(found.recoverable.numpy(), np.linalg.norm(inverse, axis=1), np.inf)
    torch.testing.assert_close(found.amplification, torch.from_numpy(expected))
    full = uniform(12, 5, 30, 0)
    assert condition(full).condition == pytest.approx(np.linalg.cond(full.double().numpy()))


def test_records_are_known_from_the_round_on_that_settles_them():
    schedule = rows([{0, 1}, {0, 1}, {0}, {2, 3}, {3, 4}, {2, 4}], 6)
    assert rounds_until_known(schedule).tolist() == [3, 3, 6, 6, 6, 0]
    drawn = uniform(15, 4, 25, 0)
    settled = rounds_until_known(drawn)
    for number in range(1, 26):
        torch.testing.assert_close((settled > 0) & (settled <= number), condition(drawn[:number]).recoverable)


def test_batches_of_all_records_tell_nothing_apart():
    found = condition(torch.ones(5, 4, dtype=torch.bool))
    assert found.rank == 1
    assert not found.recoverable.any()
    assert (rounds_until_known(torch.ones(5, 4, dtype=torch.bool)) == 0).all()


def test_schedules_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="batches of 9 cannot be drawn from 8 records"):
        uniform(8, 9, 3, 0)
    with pytest.raises(ValueError, match="at least one round, got 0"):
        epochs(8, 3, 0, 0)
    with pytest.raises(ValueError, match="batches of 8 of 8 records cannot tell them apart"):
        malicious(8, 8)
