"""Genotypes, the two cells of a network as plain data: checked, read, written, sampled, mutated and drawn."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Edge = tuple[str, int]
"""An operation and its input: 0 is c_{k-2}, 1 is c_{k-1}, 2 the first node, and so on."""
CellGenes = tuple[tuple[Edge, ...], ...]
"""The two edges of each node, the first node's first."""
CELLS = ("normal", "reduce")
_T = TypeVar("_T")


def edges(nodes: int = 4) -> tuple[tuple[int, int], ...]:
    """Return the possible edges of a cell as (node, input), in the order that numbers them everywhere: 2 of node 0, 3 of node 1, ..."""
    return tuple((node, source) for node in range(nodes) for source in range(2 + node))


def edge_number(node: int, source: int) -> int:
    """Return the number of the edge from an input to a node, sum_{m < node} (2 + m) + source."""
    return node * (node + 3) // 2 + source


@dataclass(frozen=True)
class Genotype:
    """The normal and the reduction cell of a network; the order of a node's two edges does not matter.

    Attributes:
        normal: for each node its two (operation, input).
        reduce: the same of the reduction cell.

    Raises:
        ValueError: if a node has not two edges from two different earlier states, or an operation is `none`.
    """

    normal: CellGenes
    reduce: CellGenes

    def __post_init__(self) -> None:
        for cell in CELLS:
            nodes = tuple(tuple((operation, source) for operation, source in node) for node in getattr(self, cell))
            _check_cell(cell, nodes)
            object.__setattr__(self, cell, tuple(tuple(sorted(node, key=lambda edge: edge[1])) for node in nodes))

    def replaced(self, names: Mapping[str, str]) -> Genotype:
        """Return the same topology with operations renamed; those that `names` lacks stay."""
        cells = ([[(names.get(operation, operation), source) for operation, source in node] for node in getattr(self, cell)] for cell in CELLS)
        return Genotype(*(_frozen(cell) for cell in cells))

    def to_json(self) -> str:
        """Return JSON: of each cell a flat list of [operation, input] pairs, two a node, and the states that its output joins, `..._concat`."""
        content: dict[str, Any] = {}
        for cell in CELLS:
            nodes = getattr(self, cell)
            content[cell] = [list(edge) for node in nodes for edge in node]
            content[f"{cell}_concat"] = list(range(2, 2 + len(nodes)))
        return json.dumps(content)

    @classmethod
    def from_json(cls, text: str) -> Genotype:
        """Read what `to_json` writes; further keys are ignored.

        Raises:
            ValueError: if it is no JSON of this form or no genotype.
        """
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"a genotype is JSON: {error}") from None
        return cls(*(_read_cell(content, cell) for cell in CELLS))


def _frozen(cell: Sequence[Sequence[Edge]]) -> CellGenes:
    return tuple(tuple(node) for node in cell)


def _check_cell(cell: str, nodes: CellGenes) -> None:
    if not nodes:
        raise ValueError(f"the {cell} cell has no nodes")
    for number, node in enumerate(nodes):
        place = f"node {number} of the {cell} cell"
        if len(node) != 2:
            raise ValueError(f"{place} has {len(node)} edges: every node has two")
        sources = [source for _, source in node]
        if not all(0 <= source < 2 + number for source in sources):
            raise ValueError(f"{place} has the inputs {sources[0]} and {sources[1]}: they are from 0 (c_k-2) to {1 + number} (the state before it)")
        if sources[0] == sources[1]:
            raise ValueError(f"{place} has input {sources[0]} twice: its two inputs must differ")
        if any(operation == "none" for operation, _ in node):
            raise ValueError(f"{place} has the operation none: a genotype keeps only edges that carry something")


def _read_cell(content: Any, cell: str) -> CellGenes:
    form = f'a genotype is {{"normal": [["OPERATION", INPUT], ...], "normal_concat": [2, ...], "reduce": ..., "reduce_concat": ...}}, but {cell}'
    if not isinstance(content, dict) or not isinstance(pairs := content.get(cell), list):
        raise ValueError(f"{form} is missing")
    for pair in pairs:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and type(pair[1]) is int):
            raise ValueError(f"{form} has {json.dumps(pair)}, not an operation's name and the number of an input")
    if len(pairs) % 2:
        raise ValueError(f"{form} has {len(pairs)} edges, not two a node")
    joined = list(range(2, 2 + len(pairs) // 2))
    if content.get(f"{cell}_concat", joined) != joined:
        raise ValueError(f"{form}_concat is {json.dumps(content[f'{cell}_concat'])}: a cell joins all its nodes, {joined}")
    return tuple((tuple(first), tuple(second)) for first, second in zip(pairs[::2], pairs[1::2], strict=True))


RELEASED = Genotype(
    normal=(
        (("max_pool_3x3", 0), ("sep_cdc_3x3_0.5", 1)),
        (("sep_cdc_3x3_0.8", 1), ("sep_cdc_3x3_0.5", 2)),
        (("sep_cdc_3x3_0.7", 2), ("sep_cdc_3x3_0.5", 3)),
        (("sep_cdc_3x3_0.0", 3), ("sep_cdc_3x3_0.0", 4)),
    ),
    reduce=(
        (("max_pool_3x3", 0), ("max_pool_3x3", 1)),
        (("max_pool_3x3", 1), ("sep_cdc_3x3_0.7", 2)),
        (("max_pool_3x3", 1), ("sep_cdc_3x3_0.8", 2)),
        (("max_pool_3x3", 1), ("sep_cdc_3x3_0.8", 2)),
    ),
)
"""The authors' genotype of their cross-dataset search."""
BUILT_IN = {"released": RELEASED}


def load_genotype(name_or_path: str | Path) -> Genotype:
    """Return a built-in genotype by name, or read one from a JSON file.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the file holds no genotype.
    """
    if name_or_path in BUILT_IN:
        return BUILT_IN[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise FileNotFoundError(f"no genotype {name_or_path}: give a JSON file, or one of the built-in {', '.join(BUILT_IN)}")
    try:
        return Genotype.from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no genotype: {error}") from None


def as_released(genotype: Genotype) -> Genotype:
    """Return what the reference builds for a genotype: its dilated convolution of theta 0.7 has theta 0 by a slip."""
    return genotype.replaced({"dil_cdc_3x3_0.7": "dil_cdc_3x3_0.0"})


def _pick(options: Sequence[_T], generator: torch.Generator) -> _T:
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def _kept(space: Sequence[str]) -> list[str]:
    operations = [operation for operation in space if operation != "none"]
    if not operations:
        raise ValueError("the search space has no operation besides none")
    return operations


def random_genotype(space: Sequence[str], generator: torch.Generator, nodes: int = 4) -> Genotype:
    """Draw a genotype uniformly: each node's two different inputs, and each edge's operation.

    Args:
        space: names of operations; `none` is never drawn.
        generator: source of the numbers, on the CPU.
        nodes: nodes of each cell.

    Raises:
        ValueError: if there is no operation to draw.
    """
    operations = _kept(space)

    def node(number: int) -> tuple[Edge, ...]:
        sources = torch.randperm(2 + number, generator=generator)[:2].tolist()
        return tuple((_pick(operations, generator), source) for source in sources)

    return Genotype(*(tuple(node(number) for number in range(nodes)) for _ in CELLS))


def mutate(genotype: Genotype, space: Sequence[str], generator: torch.Generator) -> Genotype:
    """Change one operation or one input, drawn uniformly among those that can change; the other edges stay.

    Args:
        genotype: the parent.
        space: names of operations; `none` is never drawn.
        generator: source of the numbers, on the CPU.

    Raises:
        ValueError: if there is no operation to draw, or nothing can change.
    """
    operations, changes = _kept(space), []
    for cell in CELLS:
        for number, node in enumerate(getattr(genotype, cell)):
            for (operation, source), kept in zip(node, reversed(node), strict=True):
                free = [other for other in range(2 + number) if other not in (source, kept[1])]
                by_operation: list[Edge] = [(other, source) for other in operations if other != operation]
                by_input: list[Edge] = [(operation, other) for other in free]
                changes += [(cell, number, kept, edges_) for edges_ in (by_operation, by_input) if edges_]
    if not changes:
        raise ValueError("nothing can change: the search space has one operation, and every node has all its inputs")
    cell, number, kept, options = _pick(changes, generator)
    nodes = list(getattr(genotype, cell))
    nodes[number] = (kept, _pick(options, generator))
    return Genotype(**{name: tuple(nodes) if name == cell else getattr(genotype, name) for name in CELLS})


def histogram(genotype: Genotype) -> dict[str, Counter[str]]:
    """Count the operations of the cells `normal` and `reduce`."""
    return {cell: Counter(operation for node in getattr(genotype, cell) for operation, _ in node) for cell in CELLS}


def _state(number: int) -> str:
    return ("c_{k-2}", "c_{k-1}")[number] if number < 2 else str(number - 2)


def to_dot(genotype: Genotype) -> str:
    """Return both cells in Graphviz's language; `dot -Tsvg` draws it."""
    lines = ["digraph genotype {", "  rankdir=LR; node [shape=box, style=rounded];"]
    for cell in CELLS:
        nodes = getattr(genotype, cell)
        states = [f'    {cell}_{number} [label="{_state(number)}"];' for number in range(2 + len(nodes))]
        lines += [f"  subgraph cluster_{cell} {{", f'    label="{cell}";', *states, f'    {cell}_out [label="c_k"];']
        for number, node in enumerate(nodes, start=2):
            lines += [f'    {cell}_{source} -> {cell}_{number} [label="{operation}"];' for operation, source in node]
            lines.append(f"    {cell}_{number} -> {cell}_out [style=dashed];")
        lines.append("  }")
    return "\n".join([*lines, "}\n"])


_COLOURS = {"sep": "#cfe3f7", "dil": "#fbdcc0", "max": "#e4e4e4", "avg": "#e4e4e4", "skip": "#d3eed3"}
"""Background of an operation by the first part of its name."""


def draw(genotype: Genotype) -> Figure:
    """Draw both cells as stairs: every edge has a row of its own, from the state it reads down to the node that it ends at."""
    from matplotlib.figure import Figure

    sizes = [len(getattr(genotype, cell)) for cell in CELLS]
    figure = Figure(figsize=(2.4 + 1.8 * max(sizes), 0.8 * sum(sizes) + 2), layout="constrained")
    for axes, cell in zip(figure.subplots(2, 1, height_ratios=[size + 1 for size in sizes]), CELLS, strict=True):
        axes.set_title("normal cell" if cell == "normal" else "reduction cell", loc="left")
        _draw_cell(axes, getattr(genotype, cell))
    return figure


def _draw_cell(axes: Axes, nodes: CellGenes) -> None:
    last = 2 * len(nodes)
    columns = [0.0, 0.35, *(1.4 + number for number in range(len(nodes))), len(nodes) + 0.9]  # of the states and the output

    def box(column: float, row: float, text: str, **patch: Any) -> None:
        style = {"boxstyle": "round,pad=0.35", "facecolor": "white", "edgecolor": "black"} | patch
        axes.text(column, row, text, ha="center", va="center", fontsize=9, bbox=style, zorder=3)

    for state, column in enumerate(columns[:-1]):
        read = [2 * number + place for number, node in enumerate(nodes) for place, (_, source) in enumerate(node) if source == state]
        top = -1.0 if state < 2 else 2 * (state - 2) + 0.5
        axes.plot([column, column], [top, max(read, default=top)], color="0.35", linewidth=1.2, zorder=1)
        box(column, top, f"${_state(state)}$")
        axes.plot([column] * len(read), read, "o", color="0.35", markersize=4, zorder=2)
    for number, node in enumerate(nodes):
        end, middle = columns[2 + number], 2 * number + 0.5
        for place, (operation, source) in enumerate(node):
            row = 2 * number + place
            axes.plot([columns[source], end - 0.17], [row, row], color="0.35", linewidth=1.2, zorder=1)
            arrow = {"arrowstyle": "-|>", "color": "0.35", "shrinkA": 0, "shrinkB": 9}
            axes.annotate("", (end, middle), (end - 0.17, row), arrowprops=arrow, zorder=1)
            box(end - 0.56, row, operation, facecolor=_COLOURS.get(operation.partition("_")[0], "#efe0f5"), edgecolor="none")
        axes.plot([end, columns[-1]], [middle, middle], color="0.7", linewidth=1, linestyle="--", zorder=0)
    axes.plot([columns[-1]] * 2, [-0.5, last - 0.5], color="0.35", linewidth=3, solid_capstyle="butt")
    axes.text(columns[-1], -1, "$c_k$", ha="center", va="center")
    axes.set(xlim=(-0.3, columns[-1] + 0.3), ylim=(last - 0.3, -1.6))
    axes.axis("off")
