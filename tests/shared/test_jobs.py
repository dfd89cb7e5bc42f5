import json
import os

import pytest
from helpers.jobs import square

from shared.jobs import default_jobs, kept, run_jobs


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_the_order_of_the_items(jobs, capsys):
    results = run_jobs(square, [3, 1, 2], jobs, name=lambda number: f"number {number}")
    assert [result for result, _ in results] == [9, 1, 4]
    assert (os.getpid() in {process for _, process in results}) == (jobs == 1)
    assert "3 of 3 done: number " in capsys.readouterr().out


def test_an_error_in_a_job_is_raised_here():
    with pytest.raises(ValueError, match="-1 is negative"):
        run_jobs(square, [1, -1, 2], 2)
    assert run_jobs(square, []) == []
    assert default_jobs() >= 1


def test_values_are_made_once(tmp_path):
    made = []
    for _ in range(2):
        found = kept(tmp_path / "rows" / "a.json", lambda: made.append(1) or [{"x": 0.5}])
        assert found.value == [{"x": 0.5}]
        assert 0 <= found.seconds < 60
    assert made == [1]
    assert json.loads((tmp_path / "rows" / "a.json").read_text())["value"] == [{"x": 0.5}]
