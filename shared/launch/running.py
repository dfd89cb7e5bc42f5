"""Carries out what `lightning run` has planned: in this process, or in processes started by torch's elastic launcher."""

from __future__ import annotations

import contextlib
import logging
import os
import runpy
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from shared.launch.planning import Plan
from shared.runs import REPOSITORY

INTERRUPTED = 130
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads that wait for others sleep instead of spinning: on a machine in use, spinning makes small networks many times slower."""


def execute(plan: Plan) -> int:
    """Run a plan and return the exit code of the script, or of the process that failed first.

    Raises:
        SystemExit: if the script raises it, in this process.
    """
    environment = {name: value for name, value in PATIENT.items() if name not in os.environ} | dict(plan.environment)
    changed = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        return _run_here(plan) if plan.in_process else _run_processes(plan)
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        for name, value in changed.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _run_here(plan: Plan) -> int:
    argv, path = sys.argv, sys.path[:]
    sys.argv = [str(plan.script), *plan.arguments]
    sys.path[:0] = [str(plan.script.parent), str(REPOSITORY)]
    try:
        runpy.run_path(str(plan.script), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path
    return 0


def _run_processes(plan: Plan) -> int:
    from torch.distributed import DistError
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous import RendezvousError
    from torch.distributed.launcher.api import elastic_launch

    try:
        with _stop_signals(), _quiet_elastic(), _told_exit_code() as told:
            elastic_launch(_launch_config(plan), sys.executable)("-u", str(plan.script), *plan.arguments)
            return told()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = f"exit code {failure.exitcode}" if failure.exitcode > 0 else f"signal {failure.signal_name()}"
        print(f"lightning run: process {rank} of {plan.processes * plan.nodes} ended with {how}; the others were stopped", file=sys.stderr)
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as stop:
        return 128 + int(stop.sigval)
    except (DistError, RendezvousError) as error:
        where = f"{plan.main_address}:{plan.main_port}"
        print(f"lightning run: the processes could not meet at {where}; is the port in use, or a node not started?\n{error}", file=sys.stderr)
        return 1


def _launch_config(plan: Plan) -> Any:
    """Return torch's launch configuration: a free port on one node, or a meeting point that every node knows."""
    from torch.distributed.launcher.api import LaunchConfig

    meeting: dict[str, Any] = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "local_addr": plan.main_address}
    if plan.main_port is not None:
        endpoint = f"{plan.main_address}:{plan.main_port}"
        meeting = {"rdzv_backend": "static", "rdzv_endpoint": endpoint, "rdzv_configs": {"rank": plan.node_rank}}
    return LaunchConfig(
        min_nodes=plan.nodes,
        max_nodes=plan.nodes,
        nproc_per_node=plan.processes,
        run_id="touchstone",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are ours, see _stop_signals
        **meeting,
    )


@contextlib.contextmanager
def _told_exit_code() -> Iterator[Callable[[], int]]:
    """Let processes that end well tell the exit code of what they did, and give a function that reads it: by failing they would stop each other."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "exit_code"
        os.environ["TOUCHSTONE_EXIT_CODE_FILE"] = str(file)
        try:
            yield lambda: int(file.read_text(encoding="utf-8")) if file.is_file() else 0
        finally:
            del os.environ["TOUCHSTONE_EXIT_CODE_FILE"]


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """Let the first Ctrl-C, SIGTERM or SIGHUP stop the processes; further ones cannot interrupt the stopping and leave processes behind."""
    from torch.distributed.elastic.multiprocessing.api import SignalException

    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def stop(number: int, frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise SignalException(f"received {signal.Signals(number).name}", signal.Signals(number))

    previous = {each: signal.signal(each, stop) for each in signals}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


@contextlib.contextmanager
def _quiet_elastic() -> Iterator[None]:
    """Silence the launcher's log, unless $LOGLEVEL asks for it: a process that fails has printed its own message."""
    if "LOGLEVEL" not in os.environ:
        logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
