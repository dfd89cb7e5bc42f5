import os
import random
import signal
import sys
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what it puts in the background; tests send the signal to processes
    signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.dont_write_bytecode:  # as containers have it; each of the many processes of the suite would compile PyTorch anew
    sys.dont_write_bytecode, sys.pycache_prefix = False, str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


def pytest_xdist_auto_num_workers(config):
    """Folders are tested on all cores, up to four; single files in this process, as processes take longer to start than their tests."""
    if all(argument.partition("::")[0].endswith(".py") for argument in config.args):
        return 0
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def pytest_collection_finish(session):
    """Tests that start processes fork them from a server: it imports what they need beside the first tests, where a core is free for that."""
    if "helpers.processes" in sys.modules and not session.config.option.collectonly and "PYTEST_XDIST_WORKER" not in os.environ:
        forkserver.ensure_running()


def seed():
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small networks run fastest on one thread, and other processes may use the other cores; fixtures of any scope are made under it too."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def same_numbers():
    """A module's own fixtures draw the same numbers in any order of modules."""
    seed()


@pytest.fixture(autouse=True)
def run_folder(request, tmp_path_factory, monkeypatch):
    """Every test draws the same numbers in any order of tests, and its runs lie in a folder of their own, without W&B unless it asks for that.

    Pages take half the time of a short training: they are built for tests that are marked `reports`, and for fixtures of a wider scope.
    A training that a test stops leaves its handlers of signals behind, as its process would have ended: they are taken back.
    """
    seed()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    folder = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(folder))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TOUCHSTONE_RUN_STAMP", "TOUCHSTONE_PARENT_RUN", "TOUCHSTONE_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    if "reports" not in request.keywords:
        monkeypatch.setattr("shared.report.build_report", lambda folder: None)
    yield folder
    for number, handler in handlers.items():
        signal.signal(number, handler)
