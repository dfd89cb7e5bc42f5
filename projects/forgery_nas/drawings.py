"""Pictures of a search: how important each candidate was, which operations won, and what networks cost and reach."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.forgery_nas.genotype import CELLS, edges

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = ("normal cell", "reduction cell")


def importance_map(values: Tensor, alive: Tensor, space: Sequence[str], label: str) -> Figure:
    """Draw a value of every candidate of both cells as a heat map, an edge a row; dropped candidates are left blank.

    Args:
        values: (2, E, O), such as softmax(alpha).
        alive: (2, E, O) booleans.
        space: names of the O operations.
        label: what the values are.
    """
    from matplotlib.figure import Figure

    nodes = next(count for count in range(1, alive.shape[1] + 1) if len(edges(count)) == alive.shape[1])
    rows = [f"{('c$_{k-2}$', 'c$_{k-1}$')[source] if source < 2 else source - 2} → {node}" for node, source in edges(nodes)]
    values = values.detach().cpu().float()
    shown = values.masked_fill(~alive, torch.nan)
    figure = Figure(figsize=(2.6 + 0.75 * len(space), 1.9 + 0.28 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, value in zip(panels, TITLES, shown, strict=True):
        axes.set_facecolor("0.93")
        picture = axes.imshow(value.numpy(), aspect="auto", cmap="viridis", vmin=float(values[alive].min()), vmax=float(values[alive].max()))
        axes.set_xticks(range(len(space)), space, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_title(title)
    panels[0].set_yticks(range(len(rows)), rows, fontsize=8)
    panels[0].set_ylabel("edge")
    figure.colorbar(picture, ax=panels, label=label)
    return figure


def operation_histogram(counts: Mapping[str, Counter[str]], space: Sequence[str]) -> Figure:
    """Draw how many edges of each cell have each operation.

    Args:
        counts: see `projects.forgery_nas.genotype.histogram`.
        space: names in the order that they are drawn in.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = [name for name in space if name != "none"]
    figure = Figure(figsize=(7, 0.9 + 0.34 * len(names)), layout="constrained")
    axes = figure.subplots()
    for number, (cell, title) in enumerate(zip(CELLS, TITLES, strict=True)):
        places = [place + 0.4 * number - 0.2 for place in range(len(names))]
        axes.barh(places, [counts[cell][name] for name in names], height=0.38, label=title)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("edges")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def scores_over_parameters(rows: Sequence[Mapping[str, Any]], score: str, measure: str) -> Figure:
    """Draw what networks reach over their number of parameters.

    Args:
        rows: one a network, with `network`, `kind`, `parameters` and the score; random cells are not named.
        score: column of the score.
        measure: what the score is.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        axes.scatter([row["parameters"] for row in of_kind], [row[score] for row in of_kind], label=kind, s=36)
        for row in of_kind if kind != "random" else ():
            is_left = kind == "plain convolutions"  # of as many parameters as the given cells, and often of nearly their score
            place, shift, anchor = (row["parameters"], row[score]), (-6 if is_left else 6, 4), "right" if is_left else "left"
            axes.annotate(row["network"], place, textcoords="offset points", xytext=shift, ha=anchor, fontsize=8)
    axes.set(xscale="log", xlabel="parameters", ylabel=measure)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=8)
    axes.margins(x=0.28)
    figure.legend(loc="outside right center", frameon=False)
    return figure
