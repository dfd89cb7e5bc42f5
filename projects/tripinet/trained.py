"""Networks used as they were trained: what their weights are worth nothing without, although their shapes do not tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from projects.tripinet.module import STREAMS, ManipulationLocalisation
from shared.checkpoints import differing_settings, load_checkpoint, load_weights, with_weights

SETTINGS = ("alpha", "scaling", "pooled", "sign")
"""Options that change what the same weights compute; so do the streams, most of which have as many maps as another."""


def other_settings(module: ManipulationLocalisation, checkpoint: Mapping[str, Any]) -> str:
    """Say with which settings a checkpoint's network was trained where the module has others; empty if they are the same."""
    trained = checkpoint.get("hyper_parameters", {})
    if "streams" in trained:
        trained = {**trained, "streams": list(trained["streams"] or STREAMS)}
    here = {name: module.hparams[name] for name in SETTINGS} | {"streams": list(module.streams)}
    return ", ".join(f"model.{name} {before}, not {now}" for name, (before, now) in differing_settings(here, trained).items())


def with_network(module: ManipulationLocalisation, ckpt_path: str | None) -> ManipulationLocalisation:
    """Load a checkpoint, which the command line has checked against the module, into it; None loads nothing. Evaluation mode.

    Raises:
        ValueError: if it was trained with other settings.
    """
    if ckpt_path is not None:
        _refuse_others(module, load_checkpoint(ckpt_path), ckpt_path)
    return with_weights(module, ckpt_path)


def begin_with(module: ManipulationLocalisation, path: str) -> None:
    """Give a module that is about to train the network in a checkpoint, all or nothing of it; optimiser and schedule begin anew.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read safely, does not fit, or was trained with other settings.
    """
    _refuse_others(module, load_checkpoint(path), path)
    load_weights(module, path)
    module.absent = None


def _refuse_others(module: ManipulationLocalisation, checkpoint: Mapping[str, Any], path: str) -> None:
    if differing := other_settings(module, checkpoint):
        raise ValueError(f"the network in {path} was trained with {differing}: give it these, or the config.yaml of its run by --config")
