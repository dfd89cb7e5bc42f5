"""How benchmarks take times and print them."""

import statistics
import time

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
