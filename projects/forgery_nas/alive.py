"""Which candidates are still in the search, as a table of (cell, edge, operation), and the softmaxes over them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projects.forgery_nas.genotype import CELLS, edges


class Candidate(NamedTuple):
    """An operation on an edge of a cell; `cell` is a name of `CELLS`, `edge` its number (see `edges`)."""

    cell: str
    edge: int
    operation: str


class AliveTable:
    """The candidates that are alive; both cells and all E edges have equally many, and columns are never renumbered.

    So tensors of (2, E, O) numbers, such as alpha, keep their shape during the whole search; their columns of dead candidates mean nothing.

    Args:
        space: names of the O operations, each once.
        nodes: nodes of a cell.

    Attributes:
        alive: (2, E, O) booleans, on the CPU.

    Raises:
        ValueError: if a name occurs twice, or there is no operation besides `none`.
    """

    def __init__(self, space: Sequence[str], nodes: int = 4) -> None:
        if len(set(space)) < len(space) or not set(space) - {"none"}:
            raise ValueError(f"a search space has different operations, and one besides none, not {', '.join(space) or 'nothing'}")
        self.space, self.nodes = tuple(space), nodes
        self.alive = torch.ones(len(CELLS), len(edges(nodes)), len(space), dtype=torch.bool)

    @property
    def count(self) -> int:
        """Number of candidates that each edge has left."""
        return int(self.alive[0, 0].sum())

    @property
    def stage(self) -> int:
        """Number of prunings so far."""
        return len(self.space) - self.count

    def columns(self, cell: int, edge: int) -> list[int]:
        """Return the operations of an edge that are alive, by their number in the space."""
        return self.alive[cell, edge].nonzero().flatten().tolist()

    def rows(self) -> list[tuple[Candidate, bool]]:
        """Return every candidate with whether it is alive."""
        cells, edge_count, _ = self.alive.shape
        places = [(cell, edge, column) for cell in range(cells) for edge in range(edge_count) for column in range(len(self.space))]
        return [(Candidate(CELLS[cell], edge, self.space[column]), bool(self.alive[cell, edge, column])) for cell, edge, column in places]

    def prune(self, scores: Tensor, is_last: bool = False) -> list[Candidate]:
        """Drop the lowest-scored candidate of every edge; of equal ones the first.

        Args:
            scores: (2, E, O) importances; those of the dead are not looked at.
            is_last: whether no pruning follows: then `none` goes, where it is still alive, whatever its score.

        Returns:
            The dropped candidates, one an edge.

        Raises:
            ValueError: if the edges have one candidate left, or a living one's score is not a number.
        """
        if self.count == 1:
            raise ValueError("every edge has one candidate left: there is nothing to prune")
        scores = scores.detach().to(device="cpu", dtype=torch.float64)
        if not scores[self.alive].isfinite().all():
            raise ValueError("a living candidate's importance is not a finite number: has the search diverged?")
        scores = scores.masked_fill(~self.alive, torch.inf)
        if is_last and "none" in self.space:
            column = self.space.index("none")
            scores[..., column] = torch.where(self.alive[..., column], -torch.inf, torch.inf)
        lowest = scores.sort(dim=-1, stable=True).indices[..., 0]  # (2, E)
        self.alive.scatter_(2, lowest[..., None], False)
        return [
            Candidate(cell, edge, self.space[column]) for cell, row in zip(CELLS, lowest.tolist(), strict=True) for edge, column in enumerate(row)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Return the table as plain data: the names that are alive, edge by edge of each cell."""
        names = {
            cell: [[self.space[column] for column in self.columns(number, edge)] for edge in range(self.alive.shape[1])]
            for number, cell in enumerate(CELLS)
        }
        return {"space": list(self.space), "nodes": self.nodes, "alive": names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: if it is of another space or number of nodes.
        """
        if (tuple(state["space"]), state["nodes"]) != (self.space, self.nodes):
            theirs, own = (f"{nodes} nodes of {', '.join(space)}" for space, nodes in ((state["space"], state["nodes"]), (self.space, self.nodes)))
            raise ValueError(f"the table of candidates is that of another search: it has {theirs}; this one has {own}")
        for number, cell in enumerate(CELLS):
            for edge, names in enumerate(state["alive"][cell]):
                self.alive[number, edge] = torch.tensor([name in names for name in self.space])


def operation_softmax(alpha: Tensor, alive: Tensor) -> Tensor:
    """Softmax over the living operations of each edge, (2, E, O) -> (2, E, O); the dead have 0, and so has an edge without any."""
    return alpha.masked_fill(~alive.to(alpha.device), -torch.inf).softmax(-1).nan_to_num(0.0)


def edge_softmax(beta: Tensor, nodes: int) -> Tensor:
    """Softmax over the edges into each node, (2, E) -> (2, E): the edge normalisation of PC-DARTS."""
    return torch.cat([part.softmax(-1) for part in beta.split([2 + node for node in range(nodes)], dim=-1)], dim=-1)
