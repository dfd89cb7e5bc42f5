"""A Trainer that runs without a word, for a program that trains dozens of networks."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

from shared.messages import SILENCED


def quiet_trainer(epochs: int, clip: float | None = None, **options: Any) -> L.Trainer:
    """Return a Trainer of one device that prints and keeps nothing, unless `options` of `L.Trainer` say otherwise.

    Args:
        epochs: epochs to train.
        clip: norm that gradients are cut down to; None leaves them.
        **options: arguments of `L.Trainer`, such as `accelerator`, `devices`, `precision`, `logger` or `callbacks`.
    """
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False, "devices": 1}
    with silence():
        return L.Trainer(**(quiet | {"max_epochs": epochs, "gradient_clip_val": clip, "num_sanity_val_steps": 0} | options))


@contextmanager
def silence() -> Iterator[None]:
    """Keep Lightning's remarks on devices, workers and intervals to itself."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in SILENCED:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
