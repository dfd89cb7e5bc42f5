import pytest
import torch

from shared.poisons import AutoregressiveProcesses, find_processes, scale_to_l2
from shared.poisons.autoregressive import CROP, row_matrices, scan
from shared.seeding import generator


@pytest.fixture(scope="module")
def processes():
    return find_processes(4, 3, seed=0)


def slow_scan(start, coefficients):
    """The recurrence as it is defined: window by window, cell by cell."""
    field = start.clone()
    for row in range(field.shape[0] - 2):
        for column in range(field.shape[1] - 2):
            window = field[row : row + 3, column : column + 3]
            field[row + 2, column + 2] = sum(coefficients[i, j] * window[i, j] for i in range(3) for j in range(3) if (i, j) != (2, 2))
    return field


def test_scan_is_the_recurrence():
    random = generator(0, "test")
    coefficients = 0.3 * torch.randn(2, 3, 3, generator=random, dtype=torch.float64)
    coefficients[:, 2, 2] = 0
    start = torch.randn(2, 1, 9, 13, generator=random, dtype=torch.float64)
    found = scan(start, row_matrices(coefficients, 13))
    expected = torch.stack([slow_scan(start[number, 0], coefficients[number]) for number in range(2)])
    torch.testing.assert_close(found[:, 0], expected, rtol=1e-10, atol=1e-10)


def test_drawn_fields_follow_the_recurrence_from_their_own_start(processes):
    start = torch.randn(3, 8 + CROP, 12 + CROP, generator=generator(5, "autoregressive", 7)).double()
    expected = torch.stack([slow_scan(start[channel], processes.coefficients[2, channel]) for channel in range(3)])[:, CROP:, CROP:]
    drawn = processes.draw(torch.tensor([2]), (8, 12), torch.tensor([7]), seed=5)
    torch.testing.assert_close(drawn[0].double(), expected, rtol=1e-4, atol=1e-5)


def test_only_the_own_matched_filter_is_silent(processes):
    labels = torch.arange(40) % 4
    fields = scale_to_l2(processes.draw(labels, (32, 32), torch.arange(40), 0).double(), 1.0)
    responses = processes.matched_responses(fields)
    is_own = torch.nn.functional.one_hot(labels, 4).bool()
    assert responses[is_own].max() < 1e-4
    assert responses[~is_own].min() > 1
    assert (responses[~is_own].median()) > 10  # what was demanded of trial fields


def test_accepted_processes_satisfy_the_rule(processes):
    assert processes.coefficients.sum((2, 3)).allclose(torch.ones(4, 3, dtype=torch.float64), atol=1e-4)
    fields = processes.draw(torch.arange(4).repeat(8), (32, 32), torch.arange(32), 1)
    norms = fields.flatten(1).norm(dim=1)
    assert norms.median() <= 50
    assert norms.max() <= 100


def test_fields_larger_than_trial_fields_stay_bounded():
    fields = find_processes(2, 1, seed=0, size=(64, 48)).draw(torch.tensor([0, 1]), (64, 48), torch.arange(2), 0)
    assert fields.shape == (2, 1, 64, 48)
    assert fields.square().mean().sqrt() < 2


def test_the_demand_falls_where_it_cannot_be_met():
    assert len(find_processes(3, 1, seed=0, min_response=1e6, patience=20).coefficients) == 3


def test_fields_depend_on_seed_and_index_only(processes):
    labels, indices = torch.tensor([3, 0, 1, 0]), torch.tensor([5, 9, 2, 7])
    fields = processes.draw(labels, (16, 16), indices, 0)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(processes.draw(labels[order], (16, 16), indices[order], 0), fields[order], rtol=1e-5, atol=1e-6)
    assert not processes.draw(labels, (16, 16), indices, 1).allclose(fields)
    assert torch.equal(find_processes(2, 3, seed=3).coefficients, find_processes(2, 3, seed=3).coefficients)


def test_coefficients_are_checked():
    with pytest.raises(ValueError, match=r"\(K, C, 3, 3\) with 0 in the last cell"):
        AutoregressiveProcesses(torch.ones(2, 3, 3, 3))
