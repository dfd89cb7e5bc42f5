"""Logical scores: how far the measures of a picture lie from those of good pictures, with weights of components."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projects.comad.components import CERTAIN
from projects.comad.measures import Column, Measures
from projects.comad.pieces import NEIGHBOURS


class Scores(NamedTuple):
    """Scores of B pictures, larger for more anomalous ones.

    Attributes:
        parts: (B,) float64 each: `global` of area and colour, `number`, `logical` their sum, and an extension each.
        contributions: (B, M) what each component contributes: e_k for `logical`, and the like for extensions.
        nearest: (B,) the nearest training picture: by area and colour for `logical`, by itself for each extension.
    """

    parts: dict[str, Tensor]
    contributions: dict[str, Tensor]
    nearest: dict[str, Tensor]

    @property
    def logical(self) -> Tensor:
        """The paper's score, S_global + S_number, (B,)."""
        return self.parts["logical"]


def nearest_distances(points: Tensor, known: Tensor, neighbours: int = NEIGHBOURS, leave_out: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean distances to the nearest known points.

    Args:
        points: (B, D).
        known: (N, D).
        neighbours: known points that count, all if there are fewer.
        leave_out: points are the known ones, and none is its own neighbour.

    Returns:
        (B,) float64 mean Euclidean distances, and (B,) the nearest known point.

    Raises:
        ValueError: if nothing is left to compare with.
    """
    others = len(known) - leave_out
    if others < 1:
        raise ValueError(f"{len(known)} training pictures leave none to compare with: give at least {1 + leave_out}")
    distances = torch.cdist(points.double(), known.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if leave_out:
        distances.fill_diagonal_(torch.inf)
    return distances.topk(min(neighbours, others), dim=1, largest=False).values.mean(1), distances.argmin(1)


def cluster_weights(clusters: int, keep: Tensor, given: Mapping[int, float] | None = None, background: float = 1.0) -> Tensor:
    """Return the weight of each cluster, (K,) float64.

    Args:
        clusters: K.
        keep: (K,) bool, clusters that are components.
        given: weights of some clusters; others weigh 1.
        background: weight of clusters that are no components and are not given; 0 silences dirt on the belt.

    Raises:
        ValueError: if there is no such cluster, or a weight is negative.
    """
    weights = torch.where(keep.cpu(), 1.0, background).double()
    for k, weight in (given or {}).items():
        if not 0 <= k < clusters:
            raise ValueError(f"there is no component {k}: clusters are numbered from 0 to {clusters - 1}")
        weights[k] = weight
    return _checked(weights)


def _checked(weights: Tensor) -> Tensor:
    if not bool((weights >= 0).all()):
        raise ValueError(f"weights of components must not be negative, got {weights.tolist()}")
    return weights


def weighing(heat: Tensor, weights: Tensor) -> Tensor:
    """Return what structural anomaly maps are multiplied by, sum_k w_k Q_k(p).

    Args:
        heat: (B, K, H, W) in [0, 1] or uint8 levels.
        weights: (K,).

    Returns:
        (B, 1, H, W) float32.
    """
    maps = heat.float() / CERTAIN if heat.dtype == torch.uint8 else heat
    return torch.einsum("bkhw,k->bhw", maps, _checked(weights).to(maps))[:, None]


class LogicalScorer:
    """Compares measures with those of the training pictures.

    Args:
        training: measures of the good pictures.
        neighbours: training pictures that a picture is compared with.
    """

    def __init__(self, training: Measures, neighbours: int = NEIGHBOURS) -> None:
        self.training, self.neighbours = training, neighbours

    def score(self, measures: Measures, weights: Tensor | None = None) -> Scores:
        """Score pictures.

        Args:
            measures: of B pictures.
            weights: (K,) of all clusters; 0 silences a component. None weighs all 1.
        """
        return self._score(measures, weights, leave_out=False)

    def training_scores(self, weights: Tensor | None = None) -> Scores:
        """Score each training picture against the others."""
        return self._score(self.training, weights, leave_out=True)

    def vectors(self, measures: Measures, weights: Tensor | None = None, group: str = "global") -> Tensor:
        """Return the vectors that are compared, (B, D): the vector g for `global`, every measure times the weights of its components."""
        found = measures.groups[group]
        if weights is None or not found.columns:
            return found.normalised
        return found.normalised * torch.stack([_checked(weights)[list(column.components)].prod() for column in found.columns]).double()

    def number_terms(self, measures: Measures, weights: Tensor | None = None, leave_out: bool = False) -> Tensor:
        """Return each component's part of S_number, (B, M): half the mean distance of its histogram to the nearest, by C_k^2."""
        terms = []
        for own, known in zip(measures.histograms, self.training.histograms, strict=True):
            distances, _ = nearest_distances(own, known, self.neighbours, leave_out)
            terms.append(0.5 * distances / own.shape[1] ** 2)
        by = 1.0 if weights is None else _checked(weights)[list(measures.components)].double()
        return torch.stack(terms, dim=1) * by

    def _score(self, measures: Measures, weights: Tensor | None, leave_out: bool) -> Scores:
        parts, apart, nearest = {}, {}, {}
        for name, group in measures.groups.items():
            own, known = self.vectors(measures, weights, name), self.vectors(self.training, weights, name)
            parts[name], nearest[name] = nearest_distances(own, known, self.neighbours, leave_out)
            apart[name] = (own - known[nearest[name]]).abs() @ _shares(group.columns, measures.components)
        terms = self.number_terms(measures, weights, leave_out)
        whole = {"global": parts.pop("global"), "number": terms.sum(1)}
        whole["logical"] = whole["global"] + whole["number"]
        contributions = {"logical": apart.pop("global") + terms} | apart  # |a_k - a_k^NN| + |c_k - c_k^NN| + number term
        return Scores(whole | parts, contributions, {"logical": nearest.pop("global")} | nearest)

    def localise(self, measures: Measures, scores: Scores, part: str = "logical") -> Tensor:
        """Show which components contribute to the scores: e_k where component k is, or where the nearest training picture has it.

        So missing parts show; a sum of e_k Q_k(p) would leave them out.

        Args:
            measures: of B pictures.
            scores: theirs.
            part: `logical`, or an extension, whose own contributions and nearest training picture count then.

        Returns:
            (B, 1, H, W) float32.

        Raises:
            ValueError: if sizes differ from the training pictures'.
        """
        if measures.size != self.training.size:
            raise ValueError(f"pictures of {measures.size} cannot be laid on training pictures of {self.training.size}: use one size")
        maps = (measures.unpacked() | self.training.unpacked(scores.nearest[part])).float()
        return torch.einsum("bmhw,bm->bhw", maps, scores.contributions[part].to(maps))[:, None]

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that `from_state` takes."""
        return self.training.state() | {"neighbours": self.neighbours}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> LogicalScorer:
        """Restore what `state` returned."""
        return cls(Measures.from_state(state), state["neighbours"])


def _shares(columns: Sequence[Column], components: Sequence[int]) -> Tensor:
    """Return (D, M): a measure counts for its component, or half for each of two."""
    return torch.tensor([[column.components.count(k) / len(column.components) for k in components] for column in columns], dtype=torch.float64).view(
        len(columns), len(components)
    )


def nearest_kinds(vectors: Tensor, labelled: Tensor, kinds: Sequence[str], neighbours: int = 3) -> list[str]:
    """Name the kind of anomaly by a few labelled ones.

    Args:
        vectors: (B, D) vectors of the pictures, as `LogicalScorer.vectors` gives them.
        labelled: (L, D) those of labelled pictures.
        kinds: L labels.
        neighbours: labelled pictures that vote; among kinds with as many votes the nearest wins.
    """
    distances = torch.cdist(vectors.double(), labelled.double(), compute_mode="donot_use_mm_for_euclid_dist")
    order = distances.topk(min(neighbours, len(kinds)), dim=1, largest=False).indices.tolist()
    return [Counter(kinds[index] for index in row).most_common(1)[0][0] for row in order]
