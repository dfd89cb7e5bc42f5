"""Commands in processes of their own, forked from a server that has imported the heavy libraries once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shared.runs import REPOSITORY

CONTEXT = multiprocessing.get_context("forkserver")
COMMANDS = [f"projects.{file.parent.name}.cli" for file in REPOSITORY.glob("projects/*/cli.py")]
CONTEXT.set_forkserver_preload(["torchmetrics", "matplotlib.pyplot", "diffusers.models.unets.unet_2d", *COMMANDS])


def start(function: Callable, *args: Any, environment: dict[str, str] | None = None) -> multiprocessing.process.BaseProcess:
    """Start `function(*args)`, a module's function, in a process with this process's environment and `environment` besides."""
    process = CONTEXT.Process(target=_enter, args=(function, args, dict(os.environ) | (environment or {})))
    process.start()
    return process


def _enter(function: Callable, args: tuple, environment: dict[str, str]) -> None:
    import torch

    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    function(*args)


def run_until_killed(run_folder: Path, function: Callable, *args: Any) -> None:
    """Run `function(*args)`, whose process kills itself, with a folder for its runs, and wait."""
    process = start(function, *args, environment={"TOUCHSTONE_RUNS": str(run_folder), "OMP_NUM_THREADS": "1"})
    process.join()
    assert process.exitcode == -signal.SIGKILL


def run_together(function: Callable, *args: Any, count: int = 2) -> None:
    """Run `function(*args)` in `count` processes with the variables that torchrun sets, and wait; any failure raises."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"TORCHELASTIC_RUN_ID": "test", "TOUCHSTONE_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    processes = [
        start(function, *args, environment=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"}) for rank in range(count)
    ]
    for process in processes:
        process.join(240)
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
    assert codes == [0] * count, f"exit codes {codes}"
