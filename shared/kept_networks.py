"""Networks of a comparison, each trained once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch

from shared.jobs import kept_arrays
from shared.quiet import silence
from shared.seeding import derive_seed

_Module = TypeVar("_Module", bound=L.LightningModule)


def key_of(settings: Any) -> str:
    """Return 16 hexadecimal digits for settings that JSON can write: other settings, other digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def kept_network(module: _Module, path: Path, seed: int, fit: Callable[[], None]) -> _Module:
    """Train a network without a word, or give it the weights that an earlier training left; on the CPU, in evaluation mode.

    Args:
        module: the network, with its first weights.
        path: .npz file of the weights, whose name should hold the `key_of` all that they depend on.
        seed: of what is random in the training.
        fit: trains the module; its last weights are taken.
    """

    def trained() -> dict[str, Any]:
        with silence(), torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "training"))
            fit()
        return {name: value.numpy() for name, value in module.cpu().state_dict().items()}

    weights = kept_arrays(path, trained)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return module.eval()


def thousands(module: torch.nn.Module) -> float:
    """Return the number of parameters in thousands."""
    return sum(parameter.numel() for parameter in module.parameters()) / 1e3
