"""Workers of loaders."""

import os
import signal
import subprocess
import time
from threading import Thread

import pytest
from helpers.workers import Numbers
from torch.utils.data import DataLoader

from shared.data.base import begin_worker

needs_senders = pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system tells nobody who sent a signal")


@needs_senders
def test_workers_outlive_a_sigterm_of_others_and_end_at_one_of_their_own_process():
    loader = Numbers("numbers", batch_size=4, num_workers=1).training_loader(range(33))
    batches = iter(loader)
    next(batches)
    [worker] = loader._iterator._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert len(list(batches)) == 7
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(30)
    assert worker.exitcode == 0
    loader._iterator._shutdown_workers()


def begin_beside_a_thread(number):
    Thread(target=time.sleep, args=(60,), daemon=True).start()
    begin_worker(number)


@needs_senders
def test_a_thread_of_another_library_does_not_let_the_signal_through():
    loader = DataLoader(range(33), batch_size=4, num_workers=1, worker_init_fn=begin_beside_a_thread, multiprocessing_context="fork")
    batches = iter(loader)
    next(batches)
    [worker] = batches._workers
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    time.sleep(0.2)
    assert len(list(batches)) == 8
