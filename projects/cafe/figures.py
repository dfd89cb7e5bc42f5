"""Figures of an attack: what was recovered beside the truth, from best to worst, and how the errors of all records are spread."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from projects.cafe.metrics import RECOVERED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 40
"""Records in a figure at most."""
COLUMNS = 8
"""Pairs beside each other at most."""
BINS = 40
POINTS = 4000
"""Values in a scatter at most."""
GREY = 0.75
"""Level of pixels that were not recovered."""
FLOOR = 1e-16
"""Least RMSE that is drawn."""
_COLOURS = {"best": "tab:green", "median": "tab:blue", "worst": "tab:red"}


def choose(errors: Tensor, wanted: int = SHOWN) -> list[tuple[int, str]]:
    """Choose records evenly from the best to the worst, which makes the choice an honest one; those without recovery are the worst of all.

    Args:
        errors: (N,) PSNR; NaN where nothing was recovered.
        wanted: records at most.

    Returns:
        Rows with a mark: best, median and worst of what was recovered (the worst is always there, the median is of all that were), else none.
    """
    order = torch.where(errors.isfinite(), errors, -torch.inf).argsort(descending=True, stable=True)
    known = int(errors.isfinite().sum())
    ranks = sorted({round(rank) for rank in torch.linspace(0, len(order) - 1, min(wanted, len(order)), dtype=torch.float64).tolist()})
    marks = {known // 2: "median", known - 1: "worst", 0: "best"} if known else {}
    for rank in marks:
        others = [each for each in ranks[1:-1] if each not in marks]
        if rank not in ranks and others:
            ranks[ranks.index(min(others, key=lambda each: abs(each - rank)))] = rank
    return [(int(order[rank]), marks.get(rank, "")) for rank in sorted(ranks)]


def draw_recovered(truth: Tensor, recovered: Tensor, errors: Tensor, places: Tensor, reasons: dict[int, str]) -> Figure:
    """Draw pairs of a true picture and what was recovered of it, from the best to the worst; what could not be recovered is grey.

    Args:
        truth: (N, 1 or 3, H, W) in [0, 1].
        recovered: of the same shape; NaN where nothing was recovered.
        errors: (N,) PSNR in dB; NaN where a picture was not recovered as a whole.
        places: (N,) numbers of the records.
        reasons: what is wrong with a record, by its number.
    """
    from matplotlib.figure import Figure

    chosen = choose(errors)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    height = truth.shape[2] / (2.1 * truth.shape[3]) * 1.7 + 0.42
    figure = Figure(figsize=(1.8 * columns + 0.2, height * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for axis, (row, mark) in zip(axes, chosen, strict=False):
        place = int(places[row])
        axis.imshow(pair(truth[row], recovered[row]), interpolation="nearest")
        if not recovered[row].isfinite().any():
            _cross(axis, truth.shape[2], truth.shape[3])
        known = f"{float(errors[row]):.1f} dB" + (f" ({mark})" if mark else "")
        said = f"record {place}: {known if bool(errors[row].isfinite()) else reasons.get(place, 'not recovered')}"
        title = textwrap.fill(textwrap.shorten(said, 62, placeholder=" ..."), 34)
        axis.set_title(title, fontsize=7, color=_COLOURS.get(mark, "black"), fontweight="bold" if mark else "normal")
    for axis in figure.axes:
        axis.axis("off")
    figure.suptitle(f"truth | recovered: {len(chosen)} of {len(truth)} records, evenly from the best to the worst", fontsize=10)
    return figure


def pair(truth: Tensor, recovered: Tensor) -> np.ndarray:
    """Set two pictures, (C, H, W), side by side with a white gap; (H, 2 W + gap, 3) in [0, 1], grey where nothing was recovered."""
    found = recovered.nan_to_num(GREY).clamp(0, 1)
    gap = torch.ones(3, truth.shape[1], max(1, truth.shape[2] // 12))
    layers = [truth.float().expand(3, -1, -1), gap, found.float().expand(3, -1, -1)]
    return torch.cat(layers, dim=2).permute(1, 2, 0).numpy()


def _cross(axis: Axes, height: int, width: int) -> None:
    left, right = width + max(1, width // 12) - 0.5, 2 * width + max(1, width // 12) - 0.5
    for low, high in ((-0.5, height - 0.5), (height - 0.5, -0.5)):
        axis.plot([left, right], [low, high], color="tab:red", linewidth=1)


def draw_psnr(errors: Tensor, baseline: float) -> Figure:
    """Draw a histogram of PSNR over all records that were recovered, with the baseline and the level at which a picture counts as recovered.

    Args:
        errors: (N,) in dB; NaN where nothing was recovered.
        baseline: mean PSNR of the mean image.
    """
    known = errors[errors.isfinite()].numpy()
    lines = {f"mean image, {baseline:.1f} dB": (baseline, "tab:red"), f"counts as recovered, {RECOVERED:g} dB": (RECOVERED, "tab:green")}
    drawn = np.append(known, [baseline, RECOVERED])
    low, high = drawn.min(), drawn.max()
    margin = (high - low) * 0.03
    edges = np.linspace(low - margin, high + margin, BINS + 1)
    label = f"PSNR in dB, mean {known.mean():.1f}" if len(known) else "PSNR in dB"
    return _histogram(known, edges, lines, label, len(errors) - len(known))


def draw_rmse(errors: Tensor, baseline: float) -> Figure:
    """Draw a histogram of the RMSE of rows, in standard deviations, on a logarithmic axis, beside that of the mean row.

    Args:
        errors: (N,); NaN where nothing was recovered.
        baseline: RMSE of the mean row.
    """
    known = errors[errors.isfinite()].clamp_min(FLOOR).numpy()
    drawn = np.log10(np.append(known, max(baseline, FLOOR)))
    low, high = drawn.min(), drawn.max()
    edges = np.logspace(low - 0.2, high + 0.2, BINS + 1)
    lines = {f"mean row, {baseline:.3g}": (baseline, "tab:red")}
    figure = _histogram(known, edges, lines, "RMSE in standard deviations", len(errors) - len(known))
    figure.axes[0].set_xscale("log")
    return figure


def _histogram(known: np.ndarray, edges: np.ndarray, lines: dict[str, tuple[float, str]], label: str, missing: int) -> Figure:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    axis.hist(known, edges.tolist(), color="tab:blue", alpha=0.7, label=f"{len(known)} records" + (f", {missing} not recovered" if missing else ""))
    for name, (value, colour) in lines.items():
        axis.axvline(value, color=colour, linestyle="--", linewidth=1.2, label=name)
    axis.set(xlabel=label, ylabel="records", xlim=(float(edges[0]), float(edges[-1])))
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(loc="outside upper center", ncols=len(lines) + 1, frameon=False, fontsize="small")
    return figure


def draw_values(truth: Tensor, recovered: Tensor, names: Sequence[str]) -> Figure:
    """Draw recovered over true values of a table, in standard deviations, and the columns whose errors are largest.

    Args:
        truth: (N, D) standardised.
        recovered: of the same shape; NaN where nothing was recovered.
        names: of the D columns.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullFormatter

    known = recovered.isfinite()
    of_all = known.flatten().nonzero().flatten()
    some = of_all[torch.linspace(0, len(of_all) - 1, min(POINTS, len(of_all))).long()]
    column = torch.where(known, recovered - truth, 0.0).double().square().sum(0).div(known.sum(0).clamp_min(1)).sqrt()
    order = column.argsort(descending=True)
    worst = order[known.any(0)[order]][:12].flip(0)
    figure = Figure(figsize=(9, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = [float(truth.min()), float(truth.max())]
    left.plot(ends, ends, color="grey", linewidth=1, label="exact")
    left.scatter(truth.flatten()[some].numpy(), recovered.flatten()[some].numpy(), s=4, alpha=0.4, label=f"{len(some)} of {truth.numel()} values")
    left.set(xlabel="true value in standard deviations", ylabel="recovered value")
    left.legend(frameon=False, fontsize="small")
    widths = column[worst].clamp_min(FLOOR)
    right.barh([textwrap.shorten(names[i], 28, placeholder="...") for i in worst.tolist()], widths.numpy(), color="tab:blue")
    decades = 10.0 ** (float(widths.log10().min().floor()) - 0.1), 10.0 ** (float(widths.log10().max().ceil()) + 0.1)
    right.set(xscale="log", xlim=decades, xlabel="RMSE in standard deviations", title="columns with the largest errors")
    right.xaxis.set_minor_formatter(NullFormatter())
    right.tick_params(axis="y", labelsize="small")
    right.title.set_fontsize("small")
    return figure


def draw_norms(norms: Sequence[Tensor], validations: Sequence[float], dead: float) -> Figure:
    """Draw how the gradients that records leave fade while the model learns: what is left to read of them.

    Args:
        norms: (parties, N) of v, at each validation.
        validations: epochs of these.
        dead: norm below which h cannot be read.
    """
    from matplotlib.figure import Figure

    levels = torch.stack([norm.double().quantile(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64), dim=1) for norm in norms])  # (V, 3, parties)
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    for party in range(levels.shape[2]):
        low, middle, high = levels[:, :, party].clamp_min(dead / 10).T.numpy()
        axis.plot(validations, middle, color=f"C{party}", label=f"party {party}", marker="o", markersize=3)
        axis.fill_between(validations, low, high, color=f"C{party}", alpha=0.12, linewidth=0)
    axis.axhline(dead, color="grey", linestyle="--", linewidth=1, label="too small to read")
    axis.set(yscale="log", xlabel="epoch", ylabel="gradient of a record for u, norm")
    axis.set_title("median and 10 to 90 % of the records under attack", fontsize=9)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return figure
