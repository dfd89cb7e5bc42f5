"""Figures of certification tables: certified accuracy over the radius, and how probable the top classes were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shared.smoothing.analysis import average_certified_radius
from shared.smoothing.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGIN, _FEWEST_TICKS, _MOST_TICKS = 1.03, 4, 12


def figure(tables: Mapping[str, Table], radii: Sequence[float] = (), title: str = "") -> Figure:
    """Draw certified accuracy over the radius, a step at every certified radius, and the upper envelope of tables of the same images.

    At r = 0 the accuracy is that of images with a positive radius; abstentions count against it.

    Args:
        tables: by name, which the legend gives together with the average certified radius (ACR).
        radii: radii of the printed table, as ticks of the axis if there are enough.
        title: of the figure.

    Returns:
        A figure that no window belongs to.

    Raises:
        ValueError: if there is no table, or one has no radii.
    """
    if not tables:
        raise ValueError("there is no table to draw")
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = drawn.add_subplot()
    curves = {name: _curve(table) for name, table in tables.items()}
    for name, (steps, shares) in curves.items():
        axes.step(steps, 100 * shares, where="pre", linewidth=1.5, label=f"{name} (ACR {average_certified_radius(tables[name]):.3f})")
    if len(tables) > 1 and len({tuple(table.index.sort().values.tolist()) for table in tables.values()}) == 1:
        steps, shares = _highest(list(curves.values()))
        axes.step(steps, 100 * shares, where="pre", color="black", linewidth=1, linestyle=(0, (4, 2)), label="upper envelope")
    end = max(float(steps[-1]) for steps, _ in curves.values())
    axes.set(xlim=(0, _MARGIN * end or 1), ylim=(0, 100), xlabel=r"radius $r$ ($\ell_2$, pixels in [0, 1])", ylabel="certified accuracy (%)")
    ticks = [radius for radius in radii if radius <= _MARGIN * end]
    if len(ticks) >= _FEWEST_TICKS:
        ticks = ticks[:: math.ceil(len(ticks) / _MOST_TICKS)]
        axes.set_xticks(ticks, [f"{radius:g}" for radius in ticks])
    if title:
        axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small")
    return drawn


def _curve(table: Table) -> tuple[Tensor, Tensor]:
    """Return radii and the share of images that each is certified for; a share holds from the radius before, which is left out, up to its own."""
    certified = table.radius[table.is_correct & (table.radius > 0)].sort().values
    counts = torch.arange(len(certified), -1, -1, dtype=torch.float64)
    zero = torch.zeros(1, dtype=torch.float64)
    steps = torch.cat([zero, certified, certified[-1:] if len(certified) else zero])  # the last one falls to 0
    return steps, torch.cat([counts[:1], counts]) / len(table)


def _highest(curves: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    steps = torch.cat([steps for steps, _ in curves]).unique()
    shares = []
    for own, values in curves:
        place = torch.searchsorted(own, steps)  # the first step at or beyond
        shares.append(torch.where(place < len(own), values[place.clamp(max=len(own) - 1)], 0.0))
    best = torch.stack(shares).max(0).values
    return torch.cat([steps, steps[-1:]]), torch.cat([best, torch.zeros(1, dtype=torch.float64)])


def histogram(bounds: Mapping[str, Tensor], bins: int = 40) -> Figure:
    """Draw how the lower bounds of the top classes' probabilities are distributed, a panel a table, the branches of one side by side.

    Args:
        bounds: (N, branches) bounds of each table; see `analysis.probability_bounds`.
        bins: bars over [0, 1].

    Raises:
        ValueError: if there is no table.
    """
    if not bounds:
        raise ValueError("bounds are in the logs beside tables of ours (certify.jsonl); none is there")
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    drawn = Figure(figsize=(6.4, 0.6 + 1.7 * len(bounds)), layout="constrained")
    panels = drawn.subplots(len(bounds), sharex=True, squeeze=False)[:, 0]
    for axes, (name, values) in zip(panels, bounds.items(), strict=True):
        branches = values.shape[1]
        labels = [f"branch {branch}" for branch in range(branches)] if branches > 1 else None
        axes.hist(values.numpy(), bins=bins, range=(0, 1), label=labels)
        axes.axvline(0.5, color="black", linewidth=1, linestyle=(0, (4, 2)))
        axes.set(xlim=(0, 1), ylabel="images")
        axes.set_title(name, fontsize="small", loc="left")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        if branches > 1:
            axes.legend(frameon=False, fontsize="small", loc="upper left")
    panels[-1].set_xlabel(r"lower bound of the top class's probability $p_A$")
    return drawn
