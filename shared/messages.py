"""What the terminal shows: errors in words, and none of the libraries' notices that a user can do nothing about."""

from __future__ import annotations

import logging
import os
import re
import sys
import time
import warnings
from pathlib import Path

from shared.distributed import rank

SILENCED = (
    r".*isinstance\(treespec, LeafSpec\)",  # lightning's use of a deprecated torch name
    r"The `add_instantiator`|.*instantiate_classes|.*skip_none",  # lightning's use of deprecated jsonargparse calls
    r"Found \d+ module\(s\) in eval mode",  # averaged and frozen networks are meant to be
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # verbs other than fit need weights only
    r"predict returned None if it was on purpose",  # predict_step writes files instead of returning them
    r"Checkpoint directory .* exists and is not empty",  # it is meant to: the run goes on
    r"Total length of `list` across ranks is zero",  # no samples are held out for validation
    r".*does not have many workers which may be a bottleneck",  # for data in memory none is best; data.num_workers says so
)
TIPS = (
    *("litlogger", "litmodels", "`weights_only` was not set", "GPU available: False", "TPU available", "Seed set to"),
    *("Loading `train_dataloader` to estimate", "will override existing callbacks"),
)


def describe(error: Exception) -> str:
    """Say in words what went wrong: the message alone for errors that are meant for users, else also the kind and how to see the traceback."""
    text = _own_text(error)
    if isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    if text and isinstance(error, ValueError | OSError) and not isinstance(error, UnicodeError):
        return text
    return f"{type(error).__name__}: {text or 'no message'}\n(run the command again with --debug to see where)"


def _own_text(error: Exception) -> str:
    """Return an error's message, without the traceback that torch puts before one which it passes on from a worker process."""
    text = str(error).strip()
    if not re.match(r"Caught \w+ in .*\nOriginal Traceback", text):
        return text
    return re.split(rf"\n(?:[\w.]+\.)?{type(error).__name__}: ", text)[-1]


class Interval:
    """Tells now and then that some time has passed: `if interval.is_over(): print("still at it")`.

    Args:
        seconds: from one time to the next; the first counts from here.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    def is_over(self) -> bool:
        """Tell whether the seconds have passed, and if so begin anew."""
        if time.monotonic() - self._began < self.seconds:
            return False
        self._began = time.monotonic()
        return True


def say(message: str) -> None:
    """Print a message to the error stream, with the process's number where there are several."""
    prefix = f"[process {rank()}] " if int(os.environ.get("WORLD_SIZE", "1")) > 1 else ""
    print(prefix + message, file=sys.stderr, flush=True)


def shown_path(path: Path) -> str:
    """Write a path relative to the current folder where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


class _Tips(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not any(tip in record.getMessage() for tip in TIPS)


def silence() -> None:
    """Drop advertisements, and notices about Lightning's own code that a user can do nothing about, each by its message."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        for handler in logging.getLogger(name).handlers:
            if not any(isinstance(present, _Tips) for present in handler.filters):
                handler.addFilter(_Tips())
    for message in SILENCED:
        warnings.filterwarnings("ignore", message)
