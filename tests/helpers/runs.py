"""Runs that several tests begin from: made once, and copied into the folder of runs of each test."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def runs_in(folder: Path) -> Iterator[None]:
    """Let runs lie in a folder, without W&B, for fixtures that outlive a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOUCHSTONE_RUNS", str(folder))
        patch.setenv("WANDB_MODE", "disabled")
        yield


def made_once(factory: pytest.TempPathFactory, main: Callable[[Sequence[str]], Any], *commands: Sequence[str]) -> Path:
    """Carry out commands, the last of which works in the run that is wanted, in a folder of runs of their own; returns the run's folder."""
    with runs_in(factory.mktemp("made")):
        for command in commands:
            cli = main(command)
    return cli.run.path


def copied(run: Path, folder: Path) -> Path:
    """Copy a run into a folder of runs, as the latest one of its project; returns its folder."""
    target = folder / run.parent.name / run.name
    shutil.copytree(run, target)
    (target.parent / "latest").write_text(f"{run.name}\n")
    return target
