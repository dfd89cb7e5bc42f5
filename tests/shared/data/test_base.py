"""Workers of loaders."""

import os
import signal
import subprocess
import time

import pytest
from helpers.workers import Numbers


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the system tells nobody who sent a signal")
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
