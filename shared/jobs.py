"""Independent computations side by side: a comparison over models and seeds uses all cores, one thread each."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from shared.runs import write_json

Item = TypeVar("Item")
Result = TypeVar("Result")


def default_jobs() -> int:
    """Return how many computations go side by side: as many as there are cores, but one where there is a GPU, which they would share."""
    import torch

    if torch.cuda.is_available():
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_jobs(function: Callable[[Item], Result], items: Sequence[Item], jobs: int | None = None, name: Callable[[Item], str] = str) -> list[Result]:
    """Apply a function to items, several at a time in processes of their own, and tell which are done.

    Args:
        function: a function of a module, picklable as its items and results are.
        items: what it is applied to; the slow ones first make for the shortest time.
        jobs: processes; None takes `default_jobs`, 1 stays in this process, with all its threads.
        name: names an item in the messages.

    Returns:
        The results in the order of the items.

    Raises:
        Exception: the first that `function` raises; what was not begun is not done then.
    """
    jobs = min(jobs or default_jobs(), len(items))
    if jobs <= 1:
        return [_tell(function(item), number, items, name) for number, item in enumerate(items)]
    results: dict[int, Result] = {}
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _prepare) as pool:
        futures = {pool.submit(function, item): number for number, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                results[futures[future]] = future.result()
                print(f"{len(results)} of {len(items)} done: {name(items[futures[future]])}", flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return [results[number] for number in range(len(items))]


def _tell(result: Result, number: int, items: Sequence[Any], name: Callable[[Any], str]) -> Result:
    print(f"{number + 1} of {len(items)} done: {name(items[number])}", flush=True)
    return result


def _prepare() -> None:
    import torch

    from shared.messages import silence

    torch.set_num_threads(1)
    silence()


class Kept(NamedTuple, Generic[Result]):
    """Plain values that a job made, and the seconds that it took."""

    value: Result
    seconds: float


def kept(path: Path, make: Callable[[], Result]) -> Kept[Result]:
    """Read what an earlier call wrote to a JSON file, or make and write it: a long comparison goes on where it stopped, and knows what it took."""
    if not path.is_file():
        began = time.monotonic()
        value = make()
        write_json(path, {"value": value, "seconds": round(time.monotonic() - began, 1)})
    return Kept(**json.loads(path.read_text(encoding="utf-8")))
