import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers.jobs import square

from shared.jobs import default_jobs, in_threads, kept, run_jobs


@pytest.fixture
def four_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(threads)


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


@pytest.mark.usefixtures("four_threads")
def test_threads_share_the_threads_of_torch_and_the_modes_of_the_caller():
    barrier = threading.Barrier(2, timeout=20)

    def look(number):
        barrier.wait()
        return number, torch.get_num_threads(), torch.is_inference_mode_enabled(), (torch.ones(2, 2) @ torch.ones(2, 2)).dtype

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        assert in_threads(look, [5, 3]) == [(number, 2, True, torch.bfloat16) for number in (5, 3)]
    with torch.no_grad():
        assert in_threads(lambda _: torch.is_grad_enabled(), range(3)) == [False] * 3
    assert torch.get_num_threads() == 4
    assert in_threads(lambda _: torch.get_num_threads(), [0]) == [4]
    assert in_threads(lambda _: threading.current_thread() is threading.main_thread(), range(3), "cuda") == [True] * 3
    assert in_threads(square, []) == []


@pytest.mark.usefixtures("four_threads")
def test_an_error_in_a_thread_stops_the_others():
    stop, begun = threading.Event(), []

    def work(number):
        begun.append(number)
        if number == 1:
            raise ValueError("one is no good")
        assert stop.wait(20)

    with pytest.raises(ValueError, match="one is no good"):
        in_threads(work, range(40), stop=stop)
    ended = list(begun)
    time.sleep(0.05)
    assert begun == ended
    assert len(begun) < 40
    assert torch.get_num_threads() == 4


@pytest.mark.usefixtures("four_threads")
def test_an_interrupt_while_work_is_dealt_out_stops_what_has_begun(monkeypatch):
    stop, begun, submit = threading.Event(), threading.Event(), ThreadPoolExecutor.submit

    def interrupted(pool, function, item):
        if item == 1:
            assert begun.wait(20)
            raise KeyboardInterrupt
        return submit(pool, function, item)

    def work(number):
        begun.set()
        assert stop.wait(20)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        in_threads(work, range(3), stop=stop)
    assert stop.is_set()
    assert torch.get_num_threads() == 4
