"""What tests run in processes of their own."""

import importlib
import os
import signal

import lightning as L
import torch
import torch.distributed as dist

from shared.data.base import DataModule
from shared.distributed import UnpaddedSampler, gather_objects, gather_rows, own_rows


class Numbers(DataModule):
    sources = {  # noqa: RUF012
        "numbers": "0 to 32"
    }

    def batches(self):
        loader = self.training_loader(range(33))
        loader.sampler.set_epoch(2)
        return list(loader)


def together(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save(
        {
            "batches": torch.stack(Numbers("numbers", batch_size=4, seed=3).batches()),
            "evaluated": torch.tensor(list(UnpaddedSampler(range(33)))),
            "rows": own_rows(torch.arange(8)),
            "gathered": gather_rows(torch.full((3 + 2 * rank, 2), rank)),
            "objects": gather_objects([f"{rank}.{row}" for row in range(rank + 1)]),
            "empty": gather_rows(torch.zeros(rank, 1)),
        },
        f"{folder}/{rank}.pt",
    )
    try:
        Numbers("numbers", batch_size=5).batches()
    except ValueError as error:
        assert "does not divide" in str(error)  # noqa: PT017 - in a process of its own
    else:
        raise AssertionError("an odd batch was dealt to two processes")
    dist.destroy_process_group()


def command_line(arguments, project="diff_cleanse"):
    """Run a project's command line, as a launcher's process does."""
    importlib.import_module(f"projects.{project}.cli").main(arguments)


class KillAt(L.Callback):
    """Kills the process, without warning, at the end of a training step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def fit_until_killed(arguments, project, step):
    """Run a project's command line; the process is killed once `step` steps and their checkpoints are done."""
    fit = L.Trainer.fit

    def until_killed(trainer, *args, **kwargs):
        trainer.callbacks.append(KillAt(step))
        return fit(trainer, *args, **kwargs)

    L.Trainer.fit = until_killed
    command_line(arguments, project)


def stopping(advance, number, rounds):
    """Wrap `Certification._advance`: this process gets the signal `number` after so many rounds of draws."""
    left = iter(range(rounds))

    def until_stopped(certification):
        if next(left, None) is None:
            os.kill(os.getpid(), number)
        advance(certification)

    return until_stopped


def certify_until_killed(arguments, rounds):
    """Run the command line of drs; the process is killed after so many rounds of draws."""
    from projects.drs.certification import Certification

    Certification._advance = stopping(Certification._advance, signal.SIGKILL, rounds)
    command_line(arguments, "drs")


def comad_until_killed(arguments, batches):
    """Run a command line of comad; the process is killed when the segmentation has kept the maps of so many batches."""
    from projects.comad.learning import Segmentation

    step, left = Segmentation.predict_step, iter(range(batches))

    def until_killed(self, batch, batch_idx):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        step(self, batch, batch_idx)

    Segmentation.predict_step = until_killed
    command_line(arguments, "comad")
