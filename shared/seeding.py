"""Random numbers that depend on what they are for, never on what was drawn before."""

from __future__ import annotations

import hashlib
import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*key: int | str) -> int:
    """Map a key such as `(seed, "flip", epoch, index)` to a seed in [0, 2^63), stable over machines and Python versions."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a fresh generator on `device` seeded by `derive_seed(*key)`."""
    import torch

    return torch.Generator(device).manual_seed(derive_seed(*key))


def rng_state() -> dict[str, object]:
    """Collect the states of Python's, NumPy's and torch's global generators as plain numbers and tensors, loadable with `weights_only=True`."""
    import numpy
    import torch

    version, internal, gauss = random.getstate()
    state = numpy.random.get_state(legacy=False)
    assert isinstance(state, dict)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(state["state"]["key"].astype("int64")), state["state"]["pos"], state["has_gauss"], state["gauss"]],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_rng_state(state: dict) -> None:
    """Put the global generators back into the states that `rng_state` collected; CUDA states only where as many devices are present."""
    import numpy
    import torch

    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    numpy.random.set_state(("MT19937", keys.numpy().astype("uint32"), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
