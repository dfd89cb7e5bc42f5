"""How important a candidate is, on four levels, and the genotype that importances make.

A level is a module whose buffers are all it remembers, so that checkpoints hold it. Importances are (2, E, O), by `CELLS`, edge and operation.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from projects.forgery_nas.alive import AliveTable, edge_softmax
from projects.forgery_nas.genotype import CellGenes, Genotype, edge_number

Level = Literal["alpha", "eoi", "general", "perturb"]


class Importance(nn.Module):
    """Level alpha, I = softmax(alpha), as in PC-DARTS; and what the others have in common.

    Args:
        shape: (2, E, O).
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def observe(self, choice: Tensor, val_accuracy: float, train_accuracy: float) -> None:
        """Note how well a batch went.

        Args:
            choice: (2, E) numbers of the dominant or sampled candidates, -1 for none.
            val_accuracy: accuracy on the search-validation batch, in [0, 1].
            train_accuracy: accuracy on the search-train batch.
        """

    def prune(self) -> None:
        """Note that candidates were dropped."""

    def score(self, probabilities: Tensor, alive: Tensor) -> Tensor:
        """Return the importances I.

        Args:
            probabilities: (2, E, O) softmax of alpha over the living.
            alive: (2, E, O) booleans; what the dead get means nothing.
        """
        return probabilities.cpu()

    def _buffers_of(self, *names: str) -> None:
        for name in names:
            self.register_buffer(name, torch.zeros(self.shape, dtype=torch.float64))

    def _add(self, buffer: Tensor, choice: Tensor, value: float) -> None:
        chosen = choice.to(buffer.device)[..., None]
        buffer.scatter_add_(2, chosen.clamp_min(0), torch.where(chosen >= 0, value, 0.0).to(buffer))


class EoiImportance(Importance):
    """Level eoi, EoiNAS's indicator: I = softmax(alpha) + weight A / N.

    A is the validation accuracy of the latest batch in which the candidate was dominant, 0 if there was none, and N in how many it was since
    the last pruning, at least 1. A is from 0 to 1; in EoiNAS's code, which counts it in percent, it outweighs alpha.

    Args:
        shape: (2, E, O).
        weight: 0.5 in EoiNAS.
    """

    latest: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], weight: float = 0.5) -> None:
        super().__init__(shape)
        self.weight = weight
        self._buffers_of("latest", "count")

    def observe(self, choice: Tensor, val_accuracy: float, train_accuracy: float) -> None:
        self._add(self.count, choice, 1.0)
        is_chosen = torch.zeros_like(self.latest)
        self._add(is_chosen, choice, 1.0)
        self.latest.masked_fill_(is_chosen > 0, val_accuracy)

    def prune(self) -> None:
        self.count.zero_()

    def score(self, probabilities: Tensor, alive: Tensor) -> Tensor:
        return probabilities.cpu() + self.weight * (self.latest / self.count.clamp_min(1)).cpu()


class GeneralImportance(Importance):
    """Level general, ours: I = softmax(alpha) + weight P', with P the mean of m = S_val - gap max(0, S_train - S_val).

    The mean is over the batches in which the candidate was chosen; S_val is the accuracy on the search-validation batch, which is of the other
    set in a cross-dataset search, and what is taken away the generalisation gap. P' is P brought to [0, 1] among the living candidates of an
    edge; those never chosen get the mean of the others.

    Args:
        shape: (2, E, O).
        weight: lambda.
        gap: gamma.
    """

    total: Tensor
    count: Tensor

    def __init__(self, shape: tuple[int, ...], weight: float = 0.5, gap: float = 1.0) -> None:
        super().__init__(shape)
        self.weight, self.gap = weight, gap
        self._buffers_of("total", "count")

    def observe(self, choice: Tensor, val_accuracy: float, train_accuracy: float) -> None:
        self._add(self.total, choice, val_accuracy - self.gap * max(0.0, train_accuracy - val_accuracy))
        self._add(self.count, choice, 1.0)

    def score(self, probabilities: Tensor, alive: Tensor) -> Tensor:
        total, count = self.total.cpu(), self.count.cpu()
        is_seen = (count > 0) & alive
        mean = torch.where(is_seen, total / count.clamp_min(1), 0.0)
        of_edge = mean.sum(-1, keepdim=True) / is_seen.sum(-1, keepdim=True).clamp_min(1)
        mean = torch.where(is_seen, mean, of_edge)
        lowest = mean.masked_fill(~alive, torch.inf).amin(-1, keepdim=True)
        highest = mean.masked_fill(~alive, -torch.inf).amax(-1, keepdim=True)
        return probabilities.cpu() + self.weight * (mean - lowest) / (highest - lowest + 1e-8)


class PerturbImportance(Importance):
    """Level perturb, what removing a candidate does, after OStr-DARTS and DARTS-PT: I = exp(L_without - L).

    L is the mean cross-entropy on search-validation data, and L_without the same with the candidate dead. So I says how many times less probable
    the true labels are without it; differences of accuracy would be equal for most candidates. The exponential keeps I positive.

    Args:
        shape: (2, E, O).

    Attributes:
        rise: (2, E, O) last measured L_without - L; the search measures it before each pruning.
    """

    rise: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self._buffers_of("rise")

    def score(self, probabilities: Tensor, alive: Tensor) -> Tensor:
        return self.rise.cpu().exp()


def build_importance(level: Level, shape: tuple[int, ...], weight: float = 0.5, gap: float = 1.0) -> Importance:
    """Build the importance of a level.

    Args:
        level: alpha, eoi, general or perturb.
        shape: (2, E, O).
        weight: weight of what is not alpha, in eoi and general.
        gap: weight of the generalisation gap, in general.

    Raises:
        ValueError: for another level.
    """
    match level:
        case "alpha":
            return Importance(shape)
        case "eoi":
            return EoiImportance(shape, weight)
        case "general":
            return GeneralImportance(shape, weight, gap)
        case "perturb":
            return PerturbImportance(shape)
    raise ValueError(f"no importance level {level!r}: choose {', '.join(get_args(Level))}")


def derive(table: AliveTable, importance: Tensor, beta: Tensor, skip_limit: int | None = 2) -> Genotype:
    """Make the genotype of the most important candidates.

    An edge's score is its largest importance among living operations besides `none`, times the softmax of beta; each node keeps its two best
    edges. While the normal cell has more skips than allowed, the skip of the lowest score counts no more, and the choice is made anew, unless
    its node would be left without two edges: where nothing else is alive, skips stay.

    Args:
        table: which candidates are alive.
        importance: (2, E, O) importances, not negative.
        beta: (2, E) logits of the edges.
        skip_limit: skips in the normal cell, None for any number.

    Raises:
        ValueError: if a node has fewer than two edges with an operation besides `none`.
    """
    allowed = table.alive.clone()
    if "none" in table.space:
        allowed[..., table.space.index("none")] = False
    scores = importance.detach().cpu().double() * edge_softmax(beta.detach().cpu().double(), table.nodes)[..., None]
    scores = scores.masked_fill(~allowed, -torch.inf)
    normal = _derive_cell(table, scores[0])
    while skip_limit is not None and (edge := _skip_to_drop(table, normal, scores[0], skip_limit)) is not None:
        scores[0, edge, table.space.index("skip_connect")] = -torch.inf
        normal = _derive_cell(table, scores[0])
    return Genotype(normal, _derive_cell(table, scores[1]))


def _skip_to_drop(table: AliveTable, cell: CellGenes, scores: Tensor, limit: int) -> int | None:
    """Return the edge of a cell's lowest-scored skip that its node can do without; None if there is none, or no more skips than allowed."""
    places = [(node, edge_number(node, source)) for node, pairs in enumerate(cell) for name, source in pairs if name == "skip_connect"]
    if len(places) <= limit:
        return None
    skip = table.space.index("skip_connect")
    for node, edge in sorted(places, key=lambda place: scores[place[1], skip].item()):
        rest = scores[edge_number(node, 0) : edge_number(node, 0) + 2 + node].clone()
        rest[edge - edge_number(node, 0), skip] = -torch.inf
        if (rest > -torch.inf).any(-1).sum() >= 2:
            return edge
    return None


def _derive_cell(table: AliveTable, scores: Tensor) -> CellGenes:
    """Return each node's two edges of the highest scores; of equal ones the first."""
    best, columns = scores.max(-1)
    nodes = []
    for node in range(table.nodes):
        numbers = [edge_number(node, source) for source in range(2 + node)]
        sources = sorted(range(2 + node), key=lambda source: -best[numbers[source]].item())[:2]
        if any(best[numbers[source]] == -torch.inf for source in sources):
            raise ValueError(f"node {node} has fewer than two edges with an operation besides none: it cannot be derived")
        nodes.append(tuple((table.space[int(columns[numbers[source]])], source) for source in sources))
    return tuple(nodes)
