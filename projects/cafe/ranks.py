"""The adaptive attacker against fake gradients: ranks survive the defence, and ranks are nearly the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from projects.cafe.defences import Scope, Zeros, over_scope
from projects.cafe.federation import AttackerView, Federation, Gradients, Named
from projects.cafe.schedules import uniform


def expected_order_statistics(samples: Sequence[np.ndarray], count: int) -> np.ndarray:
    """Estimate what the smallest, second smallest, ... of `count` entries of a gradient are on average.

    Each sample is sorted and read as a quantile function at (i + 1/2) / count, linearly between its own points; the samples are averaged.
    For samples of `count` entries that is the mean of the sorted vectors, which estimates the expectations without bias.

    Args:
        samples: vectors of one or more entries, of any lengths.
        count: number of order statistics.

    Returns:
        (count,) float64 in ascending order.
    """
    places = (np.arange(count) + 0.5) / count
    ordered = [np.sort(sample.astype(np.float64)) for sample in samples]
    return np.mean([np.interp(places, (np.arange(len(sample)) + 0.5) / len(sample), sample) for sample in ordered], axis=0)


class RankAttacker:
    """Undo fake gradients: keep the order of what was uploaded, and put the expected order statistics of true gradients in.

    What the attacker must have: the network's state (CAFE's server has it) and some data of its own, from which it computes gradients of batches
    of the same size, the surrogates. They give the distribution of the entries; the upload gives the order. The fake values
    themselves are thrown away. Steps I to III then run on the result as on true gradients. On digits (N=40, K=8, T=60, 40 surrogates) step II
    then finds h with a relative error of about 0.1, where `pair` without adaptation leaves 0.4 (first layer fully connected) and 2.5 (convolutions).

    A `pair` defence keeps the order of all entries; of the zeros only with `zeros="keep"`. `clip` and `absclip` keep it but for the entries
    near zero where gradient and noise differ in sign, and both pass many true values on, which this attacker replaces too.

    Args:
        surrogates: named gradients of one party on the attacker's batches, one or more, with the party's names and shapes.
        scope: what the defence ranks, "party" or "tensor".
        zeros: "keep" where the defence leaves exact zeros alone: they stay zero and only the others are ranked.

    Raises:
        ValueError: if there are no surrogates, or a gradient to adapt has other names or shapes.
    """

    def __init__(self, surrogates: Sequence[dict[str, Tensor]], scope: Scope = "party", zeros: Zeros = "fake") -> None:
        if not surrogates:
            raise ValueError("the rank attacker needs at least one surrogate gradient: compute it on data of the attacker's own")
        self.scope, self.zeros = scope, zeros
        self._shapes = {name: value.shape for name, value in surrogates[0].items()}
        self._samples: dict[str, list[np.ndarray]] = {}
        self._expected: dict[str, np.ndarray] = {}
        for surrogate in surrogates:
            self._check(surrogate)
            over_scope(surrogate, scope, self._remember)

    def adapt(self, uploaded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the attacker's estimate of a party's true gradients, with the names and shapes of what was uploaded."""
        self._check(uploaded)
        return over_scope(uploaded, self.scope, self._replace)

    def _remember(self, flat: Tensor, name: str) -> Tensor:
        values = flat.detach().cpu().numpy()
        self._samples.setdefault(name, []).append(np.sort(values[values != 0] if self.zeros == "keep" else values))
        return flat

    def _replace(self, flat: Tensor, name: str) -> Tensor:
        values = flat.detach().cpu().numpy()
        places = np.flatnonzero(values) if self.zeros == "keep" else np.arange(len(values))
        samples = [sample for sample in self._samples[name] if len(sample)]
        estimate = np.zeros_like(values)
        if samples and len(places):
            if len(self._expected.get(name, ())) != len(places):  # else they are those of the last upload
                self._expected[name] = expected_order_statistics(samples, len(places))
            estimate[places[np.argsort(values[places], kind="stable")]] = self._expected[name]
        return torch.from_numpy(estimate).to(flat.device)

    def _check(self, gradients: dict[str, Tensor]) -> None:
        shapes = {name: value.shape for name, value in gradients.items()}
        if shapes != self._shapes:
            raise ValueError(f"the gradients have the shapes {_shown(shapes)}, but the first surrogate has {_shown(self._shapes)}")


def adapted(
    view: AttackerView,
    surrogates: Sequence[Tensor],
    labels: Tensor,
    batch: int,
    count: int = 40,
    scope: Scope = "party",
    zeros: Zeros = "fake",
    seed: int = 0,
) -> AttackerView:
    """Undo fake gradients in all that was recorded, with records of the attacker's own; see `RankAttacker`.

    The model of the first recorded round makes the surrogate gradients of all rounds, so the model should hardly change over them.

    Args:
        view: what the server saw.
        surrogates: the attacker's records, one (S, ...) a party; none may be under attack.
        labels: (S,) their class numbers.
        batch: K, records in a batch, as in the recorded rounds.
        count: number of batches of surrogates, drawn uniformly.
        scope: what the defence ranks, "party" or "tensor".
        zeros: "keep" where the defence leaves exact zeros alone.
        seed: seed of the batches.

    Returns:
        The view with the parties' gradients as the attacker estimates them.

    Raises:
        ValueError: if the surrogates are fewer than a batch or not one block a party and label a record, or if "party" ranks tensors whose
            gradients were not recorded.
    """
    if {len(block) for block in surrogates} != {len(labels)}:
        raise ValueError(f"{len(labels)} labels for surrogates of {[len(block) for block in surrogates]} records: there must be one label a record")
    federation = view.federation(0)
    recorded = view.gradients[0].parties
    if scope == "party":
        _check_recorded(federation, recorded)
    attackers = _attackers(federation, surrogates, labels, uniform(len(labels), batch, count, seed), recorded, scope, zeros)
    rounds = [
        Gradients([attacker.adapt(own) for attacker, own in zip(attackers, gradients.parties, strict=True)], gradients.server)
        for gradients in view.gradients
    ]
    return replace(view, gradients=rounds)


@dataclass(frozen=True)
class Closeness:
    """How near an estimated gradient is to the true one, over all its entries.

    Attributes:
        correlation: Pearson's, in [-1, 1]; no change of scale or offset of the estimate changes it.
        relative_error: ||estimate - true|| / ||true||.
        scaled_error: the same for the best multiple of the estimate, sqrt(1 - cosine^2), in [0, 1].
    """

    correlation: float
    relative_error: float
    scaled_error: float


def closeness(estimate: dict[str, Tensor], true: dict[str, Tensor]) -> Closeness:
    """Compare gradients of the same names and shapes.

    Raises:
        ValueError: if a gradient is all zero or constant, so that the ratios do not exist.
    """
    a, b = (torch.cat([part[name].reshape(-1).double() for name in true]) for part in (estimate, true))
    if a.std() == 0 or b.std() == 0:
        raise ValueError("the closeness of gradients needs entries that differ: an estimate or a true gradient is constant")
    cosine = torch.dot(a, b) / (a.norm() * b.norm())
    correlation = torch.dot(a - a.mean(), b - b.mean()) / ((a - a.mean()).norm() * (b - b.mean()).norm())
    return Closeness(correlation.item(), ((a - b).norm() / b.norm()).item(), (1 - cosine**2).clamp_min(0).sqrt().item())


def _attackers(
    federation: Federation,
    surrogates: Sequence[Tensor],
    labels: Tensor,
    schedule: Tensor,
    recorded: Sequence[Named],
    scope: Scope,
    zeros: Zeros,
) -> list[RankAttacker]:
    """Return an attacker a party, from the gradients of the surrogates' batches and of the tensors that were recorded."""
    samples: list[list[Named]] = [[] for _ in recorded]
    for members in schedule:
        found = federation.gradients([block[members.to(block.device)] for block in surrogates], labels[members.to(labels.device)])
        for own, gradients, seen in zip(samples, found.parties, recorded, strict=True):
            own.append({name: gradients[name] for name in seen})
    return [RankAttacker(own, scope, zeros) for own in samples]


def _check_recorded(federation: Federation, recorded: Sequence[Named]) -> None:
    for party, (bottom, seen) in enumerate(zip(federation.bottoms, recorded, strict=True)):
        missing = [name for name, _ in bottom.named_parameters() if name not in seen]
        if missing:
            raise ValueError(
                f"the gradients of {', '.join(missing)} of party {party} were not recorded, but the defence ranked the party's whole upload: "
                f'record all names, or take the scope "tensor" if it ranked each tensor by itself'
            )


def _shown(shapes: dict[str, torch.Size]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
