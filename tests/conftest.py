import signal
import sys
from multiprocessing import forkserver

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so a shell starts what it puts in the background; tests send the signal to processes
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish(session):
    """Tests that start processes fork them from a server: it imports what they need beside the first tests."""
    if "helpers.processes" in sys.modules and not session.config.option.collectonly:
        forkserver.ensure_running()


@pytest.fixture(autouse=True)
def run_folder(tmp_path_factory, monkeypatch):
    """Every test's runs lie in a folder of their own, without W&B unless the test asks for it."""
    folder = tmp_path_factory.mktemp("runs")
    monkeypatch.setenv("TOUCHSTONE_RUNS", str(folder))
    monkeypatch.setenv("WANDB_MODE", "disabled")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "TOUCHSTONE_RUN_STAMP", "TOUCHSTONE_PARENT_RUN", "TOUCHSTONE_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    return folder
