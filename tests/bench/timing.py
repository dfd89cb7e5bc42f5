"""How benchmarks take times, print them and record what comes of a comparison."""

import importlib
import json
import os
import statistics
import time
from pathlib import Path

import torch


def clock(device="cpu"):
    """Return seconds: of the process's CPU time with one thread, which other work on the machine lengthens least, and of the wall's clock else."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def timed(job, device="cpu"):
    """Return what a job returns, and its seconds."""
    began = clock(device)
    found = job()
    return found, clock(device) - began


def medians(jobs, rounds, device="cpu"):
    """Return the median seconds of jobs by name, which run in turns after a round to warm up."""
    times = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            seconds = timed(job, device)[1]
            if number:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}


def table(heads, rows):
    """Print rows of text as a Markdown table."""
    print(f"\n| {heads} |\n|" + "---|" * (heads.count(" | ") + 1))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def installed(name):
    """Tell whether a peer is there; where it is not, say that its rows are left out."""
    try:
        importlib.import_module(name)
    except (ImportError, OSError) as error:
        print(f"{name}: left out, as it cannot be imported ({error}); `uv run --group peers` has the peers", flush=True)
        return False
    return True


def record(what, size, ours, other, beside="straightforward", *, kind="naive", unit="s", target=None, reason="", peak=None):
    """Add a comparison to the file that the environment variable TOUCHSTONE_BENCH names, one JSON object a line; without it, do nothing.

    Args:
        what: that was done.
        size: how much of it.
        ours: our measurement.
        other: that of the contestant beside us, or what was asked for.
        beside: the contestant.
        kind: naive (the same, written as one would first write it), peer (another library) or bound (a number that was asked for).
        unit: of both; more is better where it ends in /s, else less.
        target: the ratio that was asked for.
        reason: why the ratio is below it, should it be.
        peak: peak memory of ours in MiB, where it was measured.
    """
    if path := os.environ.get("TOUCHSTONE_BENCH"):
        ratio = ours / other if unit.endswith("/s") else other / ours
        row = {"what": what, "size": size, "ours": ours, "other": other, "beside": beside, "kind": kind, "unit": unit, "ratio": ratio}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"target": target, "reason": reason, "peak": peak}) + "\n")
