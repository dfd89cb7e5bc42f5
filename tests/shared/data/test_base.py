"""Workers of loaders."""

import multiprocessing
import os
import signal
import subprocess
import time
from threading import Thread

import pytest
from helpers.workers import Numbers

from shared.data import base
from shared.data.base import begin_worker

needs_senders = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system tells nobody who sent a signal")


restarted = []


@pytest.fixture
def telemetry():
    """A thread that every child gets anew, as W&B's telemetry has it."""
    restarted.append(lambda: Thread(target=time.sleep, args=(60,), daemon=True).start())
    yield
    restarted.clear()


os.register_at_fork(after_in_child=lambda: [begin() for begin in restarted])


@needs_senders
@pytest.mark.parametrize("kind", ["training", "evaluation"])
@pytest.mark.usefixtures("telemetry")
def test_workers_outlive_a_sigterm_of_others_and_end_at_one_of_their_own_process(kind):
    loader = getattr(Numbers("numbers", batch_size=4, num_workers=1), f"{kind}_loader")(range(32))
    batches = iter(loader)
    next(batches)
    [worker] = loader._iterator._workers
    for _ in range(5):
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        time.sleep(0.05)
    assert len(list(batches)) == 7
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    assert worker.exitcode == 0
    loader._iterator._shutdown_workers()


@needs_senders
def test_the_training_process_gets_its_own_signals_after_workers_are_born():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    loader = Numbers("numbers", batch_size=4, num_workers=1).training_loader(range(33))
    next(iter(loader))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
    loader._iterator._shutdown_workers()


def begin_and_wait():
    begin_worker(0)
    for _ in range(6000):
        time.sleep(0.01)


@needs_senders
@pytest.mark.usefixtures("telemetry")
def test_workers_of_plain_loaders_outlive_it_for_a_while(monkeypatch):
    monkeypatch.setattr(base, "GRACE", 2)
    worker = multiprocessing.get_context("fork").Process(target=begin_and_wait)
    worker.start()
    time.sleep(0.5)
    for _ in range(20):  # until the signal meets the thread that does not block it
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(1)
    assert worker.is_alive()
    worker.join(30)
    assert worker.exitcode == -signal.SIGALRM
