"""What a party does to its gradient before the upload: fake gradients, noise, pruning.

Every defence is called with a party's named gradients, the round's number and the party's number, and returns named gradients of the
same shapes; so it can be handed to `observe`. The same seed, round and party give the same upload.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from shared.seeding import generator

Mode = Literal["pair", "clip", "absclip"]
Scope = Literal["party", "tensor"]
Zeros = Literal["fake", "keep"]
Defence = Callable[[dict[str, Tensor], int, int], dict[str, Tensor]]

ENTRIES_AT_ONCE = 2**24
"""Candidate values that are held in memory at a time: 64 MiB of float32."""
SPREAD = 5
"""Norms of normal vectors lie this near to sigma sqrt(D), in units of sigma; their standard deviation is below one."""


def over_scope(gradients: dict[str, Tensor], scope: Scope, change: Callable[[Tensor, str], Tensor]) -> dict[str, Tensor]:
    """Apply `change` to flat vectors: once to all tensors of a party in a row, or to each tensor.

    Args:
        gradients: named gradients of one party.
        scope: "party" or "tensor".
        change: maps a (D,) vector and its name ("party", or the tensor's) to a (D,) vector.

    Returns:
        New tensors of the names, shapes, types and devices of `gradients`.
    """
    if scope == "tensor":
        return {name: change(value.reshape(-1), name).view_as(value) for name, value in gradients.items()}
    flat = change(torch.cat([value.reshape(-1) for value in gradients.values()]), "party")
    parts = flat.split([value.numel() for value in gradients.values()])
    return {name: part.view_as(value) for (name, value), part in zip(gradients.items(), parts, strict=True)}


@dataclass(frozen=True)
class FakeGradients:
    """Replace the gradient by random values in the same order.

    Of several sorted normal vectors the one nearest to the sorted gradient is taken; the largest true entry then gets its largest value.
    The map is monotone, so the order of the entries survives: this is no guarantee, and `ranks.RankAttacker` makes use of it.
    The scale of the upload is arbitrary; the server must train with Adam.

    A literal "redraw until the distance is at most tau" never ends for large gradients, as the distance is about |sigma - std(g)| sqrt(D).
    Here the redraws are counted, and after the last the nearest vector of all is taken; where `tau` is out of reach nothing is drawn again.

    Entries that are exactly zero (weights of dead units) tie. With `zeros="fake"` they are ranked by their place and get different values
    around the middle of the normal, as in the paper: Adam then moves dead units as fast as others. With `zeros="keep"` they stay zero
    and only the other entries are ranked among themselves: dead units rest, and the server sees which they are. Other ties are ranked by place.

    Args:
        mode: "pair" uploads the matched values themselves. "clip" is the published port's rule min(psi, max(g, -psi)), which uploads psi itself
            wherever psi is negative and wrecks the training. "absclip" uploads the true value cut to the range +-|psi|.
        sigma: standard deviation of the normal, in units of the gradient; None is the paper's 1.1, and for "absclip" that of the gradient itself.
        candidates: vectors that are drawn at a time (1000 in the paper; for large gradients they hardly differ).
        tau: distance at which no more vectors are drawn.
        redraws: how often a new set is drawn at most when the nearest is farther than `tau`.
        scope: "party" ranks a party's whole gradient, "tensor" each tensor by itself.
        zeros: what happens to entries that are exactly zero.
        seed: seed of the draws.

    Raises:
        ValueError: if an argument is out of its range.
    """

    mode: Mode = "pair"
    sigma: float | None = None
    candidates: int = 10
    tau: float = 47.0
    redraws: int = 1
    scope: Scope = "party"
    zeros: Zeros = "fake"
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, ("pair", "clip", "absclip"))
        _one_of("scope", self.scope, ("party", "tensor"))
        _one_of("zeros", self.zeros, ("fake", "keep"))
        if self.sigma is not None and self.sigma <= 0:
            raise ValueError(f"sigma must be positive or None, got {self.sigma}")
        if self.candidates < 1 or self.redraws < 0:
            raise ValueError(f"candidates must be at least 1 and redraws at least 0, got {self.candidates} and {self.redraws}")

    def __call__(self, gradients: dict[str, Tensor], round_number: int, party: int) -> dict[str, Tensor]:
        """Return the fake gradients of a party in a round."""
        return over_scope(gradients, self.scope, lambda flat, name: self._fake(flat, generator(self.seed, "fake", round_number, party, name)))

    def _fake(self, gradient: Tensor, chance: torch.Generator) -> Tensor:
        if self.zeros == "fake":
            return self._fake_all(gradient, chance)
        fake = torch.zeros_like(gradient)
        present = gradient != 0
        if present.any():
            fake[present] = self._fake_all(gradient[present], chance)
        return fake

    def _fake_all(self, gradient: Tensor, chance: torch.Generator) -> Tensor:
        values = gradient.detach().cpu().numpy()
        order = np.argsort(values, kind="stable")
        true = values[order]
        psi = nearest_sorted_normal(true, self._scale(true), self.candidates, self.tau, self.redraws, chance)
        fake = np.empty_like(values)
        fake[order] = combine(true, psi, self.mode)
        return torch.from_numpy(fake).to(gradient.device)

    def _scale(self, values: np.ndarray) -> float:
        if self.sigma is not None:
            return self.sigma
        return float(values.std()) if self.mode == "absclip" else 1.1


def combine(true: np.ndarray, psi: np.ndarray, mode: Mode) -> np.ndarray:
    """Return what is uploaded for true values and the random values of the same ranks: the three variants, entry by entry."""
    if mode == "pair":
        return psi
    if mode == "clip":
        return np.minimum(psi, np.maximum(true, -psi))
    return np.clip(true, -np.abs(psi), np.abs(psi))


def nearest_sorted_normal(true: np.ndarray, sigma: float, candidates: int, tau: float, redraws: int, chance: torch.Generator) -> np.ndarray:
    """Draw sorted normal vectors and return the one nearest to a sorted gradient (steps 2 and 3 of the defence).

    Args:
        true: (D,) the gradient's entries in ascending order.
        sigma: standard deviation of the draws.
        candidates: vectors of a set.
        tau: a set whose nearest vector is within this distance ends the search.
        redraws: sets that are drawn at most after the first.
        chance: generator of the draws.

    Returns:
        (D,) in ascending order, of the type of `true`.
    """
    best, least = true, math.inf
    norm = sigma * math.sqrt(len(true))  # of the draws, give or take sigma
    is_out_of_reach = abs(np.linalg.norm(true) - norm) > tau + SPREAD * sigma
    for _ in range(1 + redraws):
        for count in _portions(candidates, len(true)):
            psi = np.sort(torch.randn(count, len(true), generator=chance).numpy(), axis=1) * np.float32(sigma)  # numpy sorts many times as fast
            distances = np.linalg.norm(psi - true, axis=1)
            if distances.min() < least:
                best, least = psi[distances.argmin()], float(distances.min())
        if least <= tau or is_out_of_reach:
            break
    return best.astype(true.dtype)


def _portions(candidates: int, entries: int) -> list[int]:
    """Cut a number of candidates into portions that fit into memory."""
    most = max(1, ENTRIES_AT_ONCE // entries)
    return [min(most, candidates - start) for start in range(0, candidates, most)]


@dataclass(frozen=True)
class GaussianNoise:
    """Add normal noise to every entry (on digits 1e-2 stops the attack and costs five points of accuracy, 1e-3 does neither).

    Args:
        std: standard deviation of the noise, in units of the gradient of the batch-mean loss.
        seed: seed of the noise.

    Raises:
        ValueError: if `std` is negative.
    """

    std: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.std < 0:
            raise ValueError(f"std must be 0 or more, got {self.std}")

    def __call__(self, gradients: dict[str, Tensor], round_number: int, party: int) -> dict[str, Tensor]:
        """Return the noisy gradients of a party in a round."""
        chance = generator(self.seed, "noise", round_number, party)
        return {
            name: value + self.std * torch.randn(value.shape, generator=chance, dtype=value.dtype).to(value.device)
            for name, value in gradients.items()
        }


@dataclass(frozen=True)
class Pruning:
    """Upload only the entries of the largest magnitude, zeros in place of the rest (sparsification).

    Args:
        keep: part of the entries that is uploaded, in (0, 1]; at least one entry is.
        scope: "party" compares all of a party's entries, "tensor" those of each tensor.

    Raises:
        ValueError: if an argument is out of its range.
    """

    keep: float
    scope: Scope = "party"

    def __post_init__(self) -> None:
        _one_of("scope", self.scope, ("party", "tensor"))
        if not 0 < self.keep <= 1:
            raise ValueError(f"keep must be above 0 and at most 1, got {self.keep}")

    def __call__(self, gradients: dict[str, Tensor], round_number: int, party: int) -> dict[str, Tensor]:
        """Return the pruned gradients; they do not depend on the round."""
        return over_scope(gradients, self.scope, lambda flat, _: self._prune(flat))

    def _prune(self, gradient: Tensor) -> Tensor:
        kept = gradient.abs().topk(math.ceil(self.keep * len(gradient)), sorted=False).indices
        return torch.zeros_like(gradient).index_copy(0, kept, gradient[kept])


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
