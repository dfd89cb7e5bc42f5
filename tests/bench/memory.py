"""How benchmarks measure memory, and how far results lie apart."""

import multiprocessing
from pathlib import Path

import torch

MIB = 2**20


def difference(found, expected):
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in zip(found, expected, strict=False))


def on_gpu(job):
    """Return the MiB that a job allocates at most, above what is there before."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    job()
    return (torch.cuda.max_memory_allocated() - before) / MIB


def isolated(imported, threads, build, *arguments):
    """Return the MiB by which the peak resident size of a process, which has the modules `imported`, exceeds what it holds before a job runs."""
    context = multiprocessing.get_context("forkserver")  # children of a process that has only imported
    context.set_forkserver_preload(imported)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, threads, build, arguments))
    process.start()
    sender.close()
    peak = receiver.recv()
    process.join()
    return peak


def _report(sender, threads, build, arguments):
    torch.set_num_threads(threads)
    torch.linalg.vector_norm(torch.rand(8, 8) @ torch.rand(8, 8))
    job = build(*arguments)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    job()
    sender.send((resident("VmHWM") - before) / MIB)


def resident(field):
    """Return the bytes of a field of this process's status."""
    return next(1024 * int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
