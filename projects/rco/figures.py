"""Pictures of routes and of walks along them, and of comparisons over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import lightning as L
import numpy as np

from shared.loggers import log_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from projects.rco.anchors import Route
    from projects.rco.module import RouteDistillation

LABELLED = 12
"""Most anchors that are named in a picture, and most states whose hardness is written out."""
CURVES = {
    "congruence": ("val/congruence", "congruence loss\nto the final teacher"),
    "accuracy": ("val/accuracy", "accuracy,\nheld-out samples"),
    "loss": ("train/loss", "training loss"),
}
"""What `draw_walk` shows of a student: name in a row, log name, heading."""


class WalkFigure(L.Callback):
    """Logs the figures `route` and `walk` when a student has been trained.

    Attributes:
        rows: one an epoch, see `draw_walk`; they travel with checkpoints.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(trainer)  # of the epoch before: at its end the module logs after the callbacks

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._note(trainer)
        lessons = cast("RouteDistillation", pl_module).lessons
        if trainer.is_global_zero:
            log_figure(trainer, "route", draw_route(lessons.route, [leg.anchor for leg in lessons.scheduler.legs]))
            if self.rows:
                log_figure(trainer, "walk", draw_walk(self.rows))

    def _note(self, trainer: L.Trainer) -> None:
        found = {name: float(value) for name, value in trainer.callback_metrics.items() if value.numel() == 1}  # by every process: they are gathered
        epoch = trainer.current_epoch
        if epoch == 0 or "train/anchor" not in found or (self.rows and self.rows[-1]["epoch"] >= epoch):
            return
        curves = {name: found[key] for name, (key, _) in CURVES.items() if key in found}
        self.rows.append({"epoch": float(epoch), "anchor": found["train/anchor"]} | curves)


# ---- one route, one walk


def draw_route(route: Route, anchors: Sequence[int]) -> Figure:
    """Draw the teacher's accuracy over its epochs, the anchors on it, and its learning rate where that changes.

    Args:
        route: the teacher's.
        anchors: teacher epochs in the order in which they teach.
    """
    from matplotlib.figure import Figure

    accuracy = route.accuracy()
    rates = [(state.epoch, state.lr) for state in route.history if state.lr is not None]
    changes = len({rate for _, rate in rates}) > 1
    figure = Figure(figsize=(7.5, (3.6 if accuracy else 1.8) + 1.2 * changes), layout="constrained")
    axes = figure.subplots(1 + changes, 1, sharex=True, squeeze=False, height_ratios=[3, 1][: 1 + changes])[:, 0]
    axis, colours = axes[0], _colours(len(anchors))
    axis.plot(list(accuracy), list(accuracy.values()), color="grey", linewidth=1.5, zorder=1)
    heights = [accuracy.get(anchor, 0.0) for anchor in anchors]
    stored = [epoch for epoch in route.epochs if epoch not in anchors]
    axis.scatter(stored, [accuracy.get(epoch, 0.0) for epoch in stored], s=14, color="white", edgecolor="grey", zorder=2, label="stored state")
    few = len(anchors) <= LABELLED
    label = "anchor, dark to light as they teach"
    axis.scatter(anchors, heights, s=55 if few else 16, color=colours, edgecolor="black", linewidth=0.6 if few else 0.2, zorder=3, label=label)
    if few:
        axis.vlines(anchors, 0, heights, colors=colours, linewidth=1, alpha=0.5)
        box = {"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5}
        for anchor, height in zip(anchors, heights, strict=True):
            axis.annotate(str(anchor), (anchor, height), (0, 8), textcoords="offset points", ha="center", fontsize="small", bbox=box, zorder=4)
    axis.set(ylabel="teacher's accuracy" if accuracy else "", ylim=_limits(accuracy))
    if not accuracy:
        axis.set_yticks([])
    axis.legend(frameon=False, fontsize="small", loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, handletextpad=0.2, borderaxespad=0.1)
    axis.set_title("The teacher's route", loc="left")
    if changes:
        axes[1].step([epoch for epoch, _ in rates], [rate for _, rate in rates], where="post", color="tab:blue")
        axes[1].set(ylabel="learning rate", yscale="log" if min(rate for _, rate in rates) > 0 else "linear")
    axes[-1].set(xlabel="teacher epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _limits(accuracy: Mapping[int, float]) -> tuple[float, float]:
    """Return limits around accuracies that leave room for the anchors' names."""
    low, high = min(accuracy.values(), default=-0.2), max(accuracy.values(), default=0.8)
    room = max(high - low, 0.05)
    return low - 0.08 * room, high + 0.18 * room


def draw_walk(rows: Sequence[Mapping[str, float]]) -> Figure:
    """Draw how a student gets on along the route.

    Args:
        rows: one a student epoch: `epoch`, counted from 1, `anchor`, its teacher's epoch, and those of `congruence`, `accuracy` and `loss` that are
            known.
    """
    from matplotlib.figure import Figure

    names = [name for name in CURVES if any(name in row for row in rows)]
    figure = Figure(figsize=(7.5, 1.2 + 1.8 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    legs, style = _stretches(rows), {"color": "black", "linewidth": 1.2, "marker": "o" if len(rows) <= 60 else "", "markersize": 3, "clip_on": False}
    for axis, name in zip(axes, names, strict=True):
        known = [(row["epoch"], row[name]) for row in rows if name in row]
        axis.plot([epoch for epoch, _ in known], [value for _, value in known], **style)
        for (_, start, stop), colour in zip(legs, _colours(len(legs)), strict=True):
            axis.axvspan(start, stop, color=colour, alpha=0.25, linewidth=0)
        axis.set(ylabel=CURVES[name][1], xlim=(legs[0][1], legs[-1][2]))
        values = [value for _, value in known]
        if name != "accuracy" and 0 < 10 * min(values) <= max(values):
            _scale_by_logarithm(axis)
    every = -(-len(legs) // LABELLED)
    for anchor, start, stop in legs[:: max(every, 1)]:
        axes[0].text((start + stop) / 2, 1.02, str(anchor), transform=axes[0].get_xaxis_transform(), ha="center", va="bottom", fontsize="small")
    figure.suptitle("The student's walk; above: teacher epoch of the anchor that teaches", fontsize="medium")
    axes[-1].set(xlabel="student epoch")
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    return figure


def _scale_by_logarithm(axis: Axes) -> None:
    """Give the vertical axis a logarithmic scale with plain numbers, of which a narrow range has some too."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.minorticks_off()


def _stretches(rows: Sequence[Mapping[str, float]]) -> list[tuple[int, float, float]]:
    """Return of each leg its anchor, and where it begins and ends on an axis of trained epochs."""
    found: list[tuple[int, float, float]] = []
    for row in rows:
        anchor, stop = int(row["anchor"]), float(row["epoch"])
        if found and found[-1][0] == anchor:
            found[-1] = (anchor, found[-1][1], stop)
        else:
            found.append((anchor, found[-1][2] if found else stop - 1, stop))
    return found


def _colours(count: int) -> list[Any]:
    """Return colours of legs, dark to light."""
    from matplotlib import colormaps

    return [colormaps["viridis"](place) for place in np.linspace(0.05, 0.95, count)] if count > 1 else [colormaps["viridis"](0.6)] * count


# ---- what is hard for a student


def draw_hardness(ratios: Mapping[int, Mapping[int, float]], delta: float, path: Sequence[int] = ()) -> Figure:
    """Draw how hard later states of the teacher are for a student that has just learnt from an earlier one.

    Args:
        ratios: r_ij by teacher epochs i and j, both rising, j from i on; the first row has all states.
        delta: by what share the next anchor may be harder than the present one: red is more, blue is less, on a logarithmic scale.
        path: anchors of the greedy search, whose steps from i to j are framed.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    rows, columns = list(ratios), list(next(iter(ratios.values())))
    table = np.array([[ratios[i].get(j, np.nan) for j in columns] for i in rows])
    shades = np.log(table / (1 + delta))
    limit = float(np.clip(np.nanmax(np.abs(shades)), 1e-3, np.log(10)))
    side = 0.62 if len(columns) <= LABELLED else 0.25
    figure = Figure(figsize=(1.9 + side * max(len(columns), 6), 1.6 + 0.8 * side * max(len(rows), 3)), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(shades, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    axis.set_facecolor("0.88")
    if len(columns) <= LABELLED:
        for place, column in np.argwhere(np.isfinite(table)).tolist():
            colour = "white" if abs(shades[place, column]) > 0.6 * limit else "black"
            axis.text(column, place, _written(table[place, column]), ha="center", va="center", fontsize="small", color=colour)
    for place, hard in enumerate(table > 1 + delta):
        if hard.any():
            axis.vlines(int(hard.argmax()) - 0.5, place - 0.5, place + 0.5, color="black", linestyle=":", linewidth=2.5)
    for i, j in pairwise(path):
        axis.add_patch(Rectangle((columns.index(j) - 0.5, rows.index(i) - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=2))
    every = -(-len(columns) // 24)
    axis.set_xticks(range(0, len(columns), every), [str(j) for j in columns[::every]])
    axis.set_yticks(range(0, len(rows), every), [str(i) for i in rows[::every]])
    axis.set(xlabel="teacher epoch j of the later state", ylabel="i, just learnt from")
    framed = "\nframed: steps of the greedy search" if path else ""
    axis.set_title(f"Hardness r_ij; dotted: beyond {1 + delta:g} for the first time{framed}", fontsize="medium")
    low, high = max(float(np.nanmin(shades)), -limit), max(min(float(np.nanmax(shades)), limit), 0.0)
    bar = figure.colorbar(image, ax=axis, extend="max" if np.nanmax(shades) > limit else "neither")
    bar.ax.set_ylim(low, high)
    ticks = [low, 0.0, high / 2, high] if high else [low, 0.0]
    bar.set_ticks(ticks, labels=[_written(float(np.exp(tick)) * (1 + delta)) for tick in ticks])
    return figure


def _written(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 10 else f"{ratio:.3g}"


def draw_gap(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw what becomes of students that one state alone teaches.

    Args:
        rows: `state`, `congruence` (loss to that state) and `final_congruence` (to the final one); of classifiers also `teacher_accuracy` and
            `accuracy`.
    """
    from matplotlib.figure import Figure

    has_accuracy = "accuracy" in rows[0]
    figure = Figure(figsize=(9 if has_accuracy else 5, 3.8), layout="constrained")
    axes = figure.subplots(1, 1 + has_accuracy, squeeze=False)[0]
    states = [row["state"] for row in rows]
    for name, label, style in (("congruence", "to the state that taught", "o-"), ("final_congruence", "to the final state", "s--")):
        axes[0].plot(states, [row[name] for row in rows], style, markersize=5, label=label)
    axes[0].set(ylabel="student's congruence loss", ylim=(0, None))
    axes[0].legend(frameon=False, fontsize="small")
    if has_accuracy:
        axes[1].plot(states, [row["teacher_accuracy"] for row in rows], "o-", color="grey", markersize=5, label="the state that taught")
        axes[1].plot(states, [row["accuracy"] for row in rows], "o-", markersize=5, label="the student")
        axes[1].set(ylabel="accuracy, held-out samples")
        axes[1].legend(frameon=False, fontsize="small")
    for axis in axes:
        axis.set(xlabel="teacher epoch of the only anchor")
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


# ---- comparisons over seeds

Cell = Sequence[float] | Mapping[str, float]
"""Values of seeds, or what `shared.results.summarise` made of them."""


class _Spread(NamedTuple):
    mean: float
    std: float
    values: Sequence[float]


def _spread(cell: Cell) -> _Spread:
    if isinstance(cell, Mapping):
        return _Spread(cell["mean"], cell["std"], [])
    return _Spread(statistics.fmean(cell), statistics.stdev(cell) if len(cell) > 1 else 0.0, cell)


def draw_number(rows: Sequence[Mapping[str, Any]], label: str = "test accuracy") -> Figure:
    """Draw accuracy against the number of anchors: means with a standard deviation on either side, and the seeds where they are known.

    Args:
        rows: `anchors`, n, a number or a `Cell`, and `accuracy`, a `Cell`.
        label: of the accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    numbers = [float(n) if isinstance(n := row["anchors"], int | float) else _spread(n).mean for row in rows]
    cells = [_spread(row["accuracy"]) for row in rows]
    axis.errorbar(numbers, [cell.mean for cell in cells], yerr=[cell.std for cell in cells], marker="o", capsize=3, label="mean")
    for number, cell in zip(numbers, cells, strict=True):
        axis.scatter([number] * len(cell.values), cell.values, s=14, color="grey", alpha=0.7, linewidth=0, zorder=3)
    axis.set(xscale="log", xlabel="number of anchors (1 is plain distillation)", ylabel=label)
    axis.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axis.minorticks_off()
    return figure


def draw_comparison(rows: Sequence[Mapping[str, Any]], label: str = "test accuracy") -> Figure:
    """Draw lines of a table in the order given: accuracy, and the congruence loss to the final teacher on a logarithmic scale beside it.

    Args:
        rows: `name`, `accuracy`, a `Cell`, and `congruence`, a `Cell`, or None where there is no teacher.
        label: of the accuracy.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.1 + 0.36 * len(rows)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 2])
    for place, row in enumerate(rows):
        for axis, name in ((left, "accuracy"), (right, "congruence")):
            if row.get(name) is not None:
                _draw_line(axis, place, _spread(row[name]))
    left.set_yticks(range(len(rows)), [row["name"] for row in rows])
    left.set(xlabel=label, ylim=(len(rows) - 0.5, -0.5))
    right.set(xlabel="congruence loss to the final teacher", xscale="log")
    right.tick_params(left=False)
    has_seeds = not isinstance(rows[0]["accuracy"], Mapping)
    left.set_title("point: a seed; bar: their mean" if has_seeds else "mean, and a standard deviation on either side", loc="left", fontsize="small")
    for axis in (left, right):
        axis.grid(axis="x", alpha=0.3)
    return figure


def _draw_line(axis: Axes, place: int, cell: _Spread) -> None:
    """Draw a seed a point and their mean as a bar, or the mean with its standard deviation where the seeds are not known."""
    if cell.values:
        axis.scatter(cell.values, [place] * len(cell.values), s=22, color="tab:blue", alpha=0.6, linewidth=0, zorder=2)
    else:
        axis.errorbar([cell.mean], [place], xerr=[[min(cell.std, 0.9 * cell.mean)], [cell.std]], color="tab:blue", capsize=3)
    axis.plot([cell.mean] * 2, [place - 0.3, place + 0.3], color="black", linewidth=1.8, zorder=3)
