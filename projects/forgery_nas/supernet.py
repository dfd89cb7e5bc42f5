"""The supernet: all candidates of all edges in one network, with partial channels and edge normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from projects.forgery_nas.alive import AliveTable, Candidate, edge_softmax, operation_softmax
from projects.forgery_nas.candidates import MixedOperation, State, grow_, names_of, shuffle, use_batch_statistics, weighted_sum
from projects.forgery_nas.genotype import CELLS, Genotype, edge_number, edges
from projects.forgery_nas.network import Preprocess
from projects.forgery_nas.operations import SPACE, Builder, check_operation
from shared.seeding import derive_seed


class Mixture(NamedTuple):
    """How the candidates of both cells' edges are weighed.

    Attributes:
        operations: (2, E, O) weights of the candidates of an edge.
        edges: (2, E) weights of the edges into a node.
        active: (2, E, O) booleans on the CPU, which candidates are computed; the others count as zero.
    """

    operations: Tensor
    edges: Tensor
    active: Tensor

    @property
    def choice(self) -> Tensor:
        """Number of the dominant candidate of each edge, (2, E) on the CPU: the heaviest active one, -1 where there is none."""
        weights = self.operations.detach().cpu().masked_fill(~self.active, -torch.inf)
        return torch.where(self.active.any(-1), weights.argmax(-1), -1)

    def detach(self) -> Mixture:
        """Return the same weights without their history."""
        return Mixture(self.operations.detach(), self.edges.detach(), self.active)


class _Plan(NamedTuple):
    """What a mixture asks of a node.

    Attributes:
        edges: source and number of each edge, and the names of its candidates to compute.
        terms: weights of all these candidates, in this order.
        bypasses: weights of the edges.
    """

    edges: list[tuple[int, int, list[str]]]
    terms: Sequence[Tensor]
    bypasses: Sequence[Tensor]


class SearchCell(nn.Module):
    """A cell with all its edges, (B, I0, H, W) and (B, I1, H', W') -> (B, N C, H'', W'').

    Args:
        space: names of the operations.
        in_channels: I0 of c_{k-2} and I1 of c_{k-1}.
        channels: C.
        k: K; the first C / K channels go through the candidates, the others by them.
        nodes: N.
        is_reduction: whether the edges from the inputs have stride 2.
        was_reduction: whether c_{k-2} has twice the resolution of c_{k-1}.
        share_theta: see `MixedOperation`.
        registry: further operations, see `build_operation`.
    """

    def __init__(
        self,
        space: Sequence[str],
        in_channels: tuple[int, int],
        channels: int,
        k: int,
        nodes: int,
        is_reduction: bool,
        was_reduction: bool,
        share_theta: bool = False,
        registry: Mapping[str, Builder] | None = None,
    ) -> None:
        super().__init__()
        self.channels, self.k, self.stride = channels, k, 2 if is_reduction else 1
        self.preprocess0 = Preprocess(in_channels[0], channels, halves=was_reduction, affine=False)
        self.preprocess1 = Preprocess(in_channels[1], channels, affine=False)
        self.edges = nn.ModuleList(
            MixedOperation(space, channels // k, self.stride if source < 2 else 1, share_theta, registry) for _, source in edges(nodes)
        )
        use_batch_statistics(self)

    def forward(self, before_last: Tensor, last: Tensor, plans: Sequence[_Plan]) -> Tensor:
        """Compute the nodes from c_{k-2} and c_{k-1}, as each one's plan says."""
        width = self.channels // self.k
        states = [State(self.preprocess0(before_last), width, self.stride), State(self.preprocess1(last), width, self.stride)]
        nodes = []
        for plan in plans:
            terms = [term for source, edge, names in plan.edges for term in cast(MixedOperation, self.edges[edge])(states[source], names)]
            mixed = weighted_sum(plan.terms, terms) if terms else states[plan.edges[0][0]].zeros()
            if self.k > 1:
                bypass = weighted_sum(plan.bypasses, [states[source].bypass for source, _, _ in plan.edges])
                mixed = shuffle(torch.cat([mixed, bypass], dim=1), self.k)
            nodes.append(mixed)
            states.append(State(mixed, width, 1))
        return torch.cat(nodes, dim=1)

    def drop(self, candidates: Iterable[Candidate]) -> None:
        """Delete the candidates of this kind of cell."""
        for candidate in candidates:
            if candidate.cell == CELLS[self.stride - 1]:
                cast(MixedOperation, self.edges[candidate.edge]).drop(candidate.operation)

    def replace_edges(self, other: SearchCell) -> None:
        """Take over another cell's edges, and give them the filters of one's own as far as they reach."""
        grow_(other.edges, self.edges.state_dict())
        self.edges, self.k = other.edges, other.k


class Supernet(nn.Module):
    """The network that is searched, (B, 3, H, W) images, uint8 or floats in [0, 1], to (B, 2) logits of real and fake.

    alpha and beta keep a column for every candidate of the space, dead or alive: so their shapes never change, and a pruned network's
    architecture parameters always fit. Weights of dead candidates are deleted: `restore` first makes the modules that a checkpoint has.

    Args:
        space: names of the O operations.
        channels: C of the first cell's nodes; it doubles at each reduction cell.
        layers: number L of cells.
        k: K; a K-th of the channels goes through candidates.
        nodes: nodes of a cell.
        reductions: numbers of the reduction cells, from 0; None for those that end the halves.
        share_theta: whether central difference convolutions that differ in theta alone share their weights.
        registry: further operations, see `build_operation`.
        seed: seed of the weights that come with a smaller K, see `widen`.

    Attributes:
        table: which candidates are alive.
        alpha: (2, E, O) logits of the operations.
        beta: (2, E) logits of the edges.
        choice: (2, E) dominant or sampled operations of the last forward, see `Mixture.choice`.

    Raises:
        ValueError: if C / K is no whole number, or there is no such operation or cell.
    """

    def __init__(
        self,
        space: Sequence[str] = SPACE,
        channels: int = 16,
        layers: int = 8,
        k: int = 4,
        nodes: int = 4,
        reductions: Sequence[int] | None = None,
        share_theta: bool = False,
        registry: Mapping[str, Builder] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        chosen = {max(layers // 2, 1) - 1, layers - 1} if reductions is None else set(reductions)
        if layers < 1 or not chosen <= set(range(layers)):
            raise ValueError(f"a supernet has at least one cell, and its reductions are numbers of cells, not {sorted(chosen)} of {layers}")
        for name in space:
            check_operation(name, registry)
        self.table, self.k, self.seed = AliveTable(space, nodes), k, seed
        self.share_theta, self.registry = share_theta, registry
        self.is_reduction = [number in chosen for number in range(layers)]
        self.channels = [channels, *(channels * 2 ** sum(self.is_reduction[: number + 1]) for number in range(layers))]
        self._check_k(k)
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels, affine=False))
        use_batch_statistics(self.stem)
        self.cells = nn.ModuleList(self._cell(number, k) for number in range(layers))
        self.linear = nn.Linear(nodes * self.channels[-1], 2)
        shape = self.table.alive.shape
        self.alpha = nn.Parameter(1e-3 * torch.randn(shape))
        self.beta = nn.Parameter(1e-3 * torch.randn(shape[:2]))
        self.choice = torch.full(shape[:2], -1)

    def _check_k(self, k: int) -> None:
        if k < 1 or self.channels[0] % k:
            raise ValueError(f"K must divide the {self.channels[0]} channels, so that a K-th of them goes through candidates, not {k}")

    def _cell(self, number: int, k: int) -> SearchCell:
        stem, *channels = self.channels
        widths = [3 * stem, 3 * stem, *(self.table.nodes * each for each in channels)]
        kinds = self.is_reduction[number], number > 0 and self.is_reduction[number - 1]
        inputs = widths[number], widths[number + 1]
        return SearchCell(self.table.space, inputs, channels[number], k, self.table.nodes, *kinds, self.share_theta, self.registry)

    def architecture_parameters(self) -> list[nn.Parameter]:
        """Return alpha and beta."""
        return [self.alpha, self.beta]

    def weight_parameters(self) -> list[nn.Parameter]:
        """Return all others."""
        return [parameter for name, parameter in self.named_parameters() if name not in ("alpha", "beta")]

    # ---- mixtures

    def probabilities(self) -> Tensor:
        """Return the softmax of alpha over the living candidates of each edge, (2, E, O), without history."""
        return operation_softmax(self.alpha.detach(), self.table.alive)

    def mixture(self) -> Mixture:
        """Return the mixture of all living candidates by the softmaxes of alpha and beta."""
        alive = self.table.alive
        return Mixture(operation_softmax(self.alpha, alive), edge_softmax(self.beta, self.table.nodes), alive.clone())

    def without(self, cell: int, edge: int, column: int) -> Mixture:
        """Return the mixture as it would be if one more candidate were dead; of an edge's last one nothing is left. No gradients."""
        alive = self.table.alive.clone()
        alive[cell, edge, column] = False
        return Mixture(operation_softmax(self.alpha.detach(), alive), edge_softmax(self.beta.detach(), self.table.nodes), alive)

    def sample(self, noise: Tensor, temperature: float) -> Mixture:
        """Draw one candidate an edge with the probabilities of the softmax of alpha: Gumbel-max, straight through.

        The weight of the drawn candidate is 1, with the gradient of its Gumbel softmax, softmax((alpha + noise) / temperature). The others are not
        computed, so what this gradient would have of them is left out, as in GDAS.

        Args:
            noise: (2, E, O) standard Gumbel noise, on the CPU, see `gumbel`.
            temperature: of the softmax; larger ones make smaller gradients.
        """
        noisy = self.alpha + noise.to(self.alpha)
        soft = operation_softmax(noisy / temperature, self.table.alive)
        drawn = soft.detach().argmax(-1, keepdim=True)
        through = soft.gather(2, drawn)
        hard = torch.zeros_like(soft).scatter(2, drawn, through - through.detach() + 1)
        active = torch.zeros_like(self.table.alive).scatter(2, drawn.cpu(), True)
        return Mixture(hard, edge_softmax(self.beta, self.table.nodes), active)

    def path(self, genotype: Genotype) -> Mixture:
        """Return the mixture that computes a genotype alone: its edges and operations have weight 1.

        Raises:
            ValueError: if one of its operations is not in the space, or dead, or it has another number of nodes.
        """
        operations = torch.zeros_like(self.alpha, requires_grad=False)
        for number, cell in enumerate(CELLS):
            genes = getattr(genotype, cell)
            if len(genes) != self.table.nodes:
                raise ValueError(f"the genotype's {cell} cell has {len(genes)} nodes, the supernet's {self.table.nodes}")
            for edge, operation in ((edge_number(node, source), operation) for node, pairs in enumerate(genes) for operation, source in pairs):
                if operation not in names_of(self.table.space, self.table.columns(number, edge)):
                    raise ValueError(f"the genotype has {operation} on edge {edge} of the {cell} cell, which the supernet lacks, or has dropped")
                operations[number, edge, self.table.space.index(operation)] = 1
        return Mixture(operations, operations.sum(-1), operations.bool().cpu())

    # ---- the network

    def forward(self, images: Tensor, mixture: Mixture | None = None) -> Tensor:
        """Map images to (B, 2) logits under a mixture; None is that of `mixture`."""
        mixture = self.mixture() if mixture is None else mixture
        self.choice = mixture.choice
        plans = [self._plans(mixture, cell) for cell in range(len(CELLS))]
        pixels = images.to(self.linear.weight.dtype)
        pixels = (pixels / 255 if images.dtype == torch.uint8 else pixels).contiguous(memory_format=torch.channels_last)
        before_last = last = self.stem(pixels)
        for cell, is_reduction in zip(self.cells, self.is_reduction, strict=True):
            before_last, last = last, cell(before_last, last, plans[is_reduction])
        return self.linear(last.mean((2, 3)))

    def _plans(self, mixture: Mixture, cell: int) -> list[_Plan]:
        """Return the plans of a cell's nodes; weights are taken apart once for all cells."""
        space, active = self.table.space, mixture.active[cell].tolist()
        terms = (mixture.operations[cell] * mixture.edges[cell, :, None]).flatten().unbind()
        bypasses = mixture.edges[cell].unbind()
        plans = []
        for node in range(self.table.nodes):
            open_edges, weights = [], []
            for source in range(2 + node):
                edge = edge_number(node, source)
                columns = [column for column, is_active in enumerate(active[edge]) if is_active]
                if columns:
                    open_edges.append((source, edge, names_of(space, columns)))
                    weights += [terms[edge * len(space) + column] for column in columns if space[column] != "none"]
            plans.append(_Plan(open_edges, weights, [bypasses[edge] for _, edge, _ in open_edges]))
        return plans

    # ---- pruning

    def prune(self, scores: Tensor, is_last: bool = False) -> list[Candidate]:
        """Drop the lowest-scored candidate of every edge and delete its modules, see `AliveTable.prune`."""
        dropped = self.table.prune(scores, is_last)
        for cell in self._search_cells():
            cell.drop(dropped)
        return dropped

    def _search_cells(self) -> list[SearchCell]:
        return cast(list[SearchCell], list(self.cells))

    def widen(self, k: int) -> None:
        """Change K: old filters stay, those of further channels are a function of the seed and K.

        Raises:
            ValueError: if K does not divide the channels.
        """
        self._check_k(k)
        dead = [candidate for candidate, is_alive in self.table.rows() if not is_alive]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(self.seed, "forgery_nas widen", k))
            for number, cell in enumerate(self._search_cells()):
                wider = self._cell(number, k).to(self.alpha)
                wider.drop(dead)
                cell.replace_edges(wider)
        self.k = k

    def structure(self) -> dict[str, Any]:
        """Return as plain data what decides which modules there are."""
        return {"table": self.table.state_dict(), "k": self.k}

    def restore(self, structure: Mapping[str, Any]) -> None:
        """Make the modules that `structure` tells of; their weights are not those of the other network."""
        self.table.load_state_dict(structure["table"])
        self.widen(structure["k"])


def gumbel(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Draw standard Gumbel noise, -ln E with E of the exponential distribution."""
    return -torch.empty(tuple(shape)).exponential_(generator=generator).log()
