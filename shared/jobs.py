"""Independent computations side by side, in processes or in threads, so that small networks use all cores."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from shared.runs import atomic, write_json

if TYPE_CHECKING:
    import numpy as np
    import torch

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


def in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], device: str | torch.device = "cpu", stop: threading.Event | None = None
) -> list[Result]:
    """Apply a function of torch computations to items, on a CPU several at a time in threads of this process, else one after the other.

    torch's threads are dealt out: small networks keep them busier side by side than together. Gradient mode, inference mode and autocast are the
    caller's in all of them.

    Args:
        function: must not change what others read; its random numbers come from generators of its own.
        items: what it is applied to; the slow ones first make for the shortest time.
        device: where it computes.
        stop: is set when a call fails or this process is interrupted; long calls ask it now and then, for all must end before this returns.

    Returns:
        The results in the order of the items.

    Raises:
        Exception: the first that `function` raises; what was not begun is not done then.
    """
    import torch

    threads = torch.get_num_threads()
    workers = min(threads, len(items)) if torch.device(device).type == "cpu" else 1
    if workers <= 1:
        return [function(item) for item in items]
    is_inference, has_gradients = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    autocast: dict[str, Any] = {"dtype": torch.get_autocast_dtype("cpu"), "enabled": torch.is_autocast_enabled("cpu")}

    at_work, ends = set[object](), threading.Condition()

    def call(item: Item) -> Result:
        mark = object()
        with ends:
            at_work.add(mark)
        try:
            with torch.inference_mode(is_inference), torch.set_grad_enabled(has_gradients), torch.autocast("cpu", **autocast):
                return function(item)
        finally:
            with ends:
                at_work.remove(mark)
                ends.notify_all()

    with ThreadPoolExecutor(workers, initializer=lambda: torch.set_num_threads(threads // workers)) as pool:
        try:
            futures = [pool.submit(call, item) for item in items]  # the first may be at work when an interrupt comes
            for future in as_completed(futures):
                future.result()
        except BaseException:
            if stop is not None:
                stop.set()
            pool.shutdown(cancel_futures=True)
            with ends:  # the pool forgets a thread in whose start an interrupt comes
                ends.wait_for(lambda: not at_work)
            raise
        finally:
            torch.set_num_threads(threads)  # the workers' number is also that of threads to come
    return [future.result() for future in futures]


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


def kept_arrays(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Read the arrays that an earlier call wrote to an .npz file, or make and write them."""
    import numpy as np

    if not path.is_file():
        made = make()
        with atomic(path) as temporary:
            np.savez(temporary, **made)  # type: ignore[arg-type]
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
