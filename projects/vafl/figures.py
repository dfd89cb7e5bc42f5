"""Pictures of a federation: how it learns, who came when, how old the embeddings were; and curves of methods over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from projects.vafl.simulator import Event

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CYCLES = 12
"""Cycles of the slowest client that the timeline shows."""


def draw_training(curve: Sequence[dict[str, Any]], events: Sequence[Event], ages: np.ndarray, clients: Sequence[dict[str, Any]]) -> Figure:
    """Draw one training.

    Args:
        curve: rows of its evaluations.
        events: the first steps of the server.
        ages: histogram of `Server.ages`.
        clients: rows of `client_rows`.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    (quality, loss), (times, histogram) = figure.subplots(2, 2)
    seconds = [row["seconds"] for row in curve]
    measures = [name for name in ("accuracy", "auroc") if name in curve[0]]
    for name in measures:
        quality.plot(seconds, [row[name] for row in curve], label=name)
    quality.set(xlabel="seconds", ylabel=measures[0] if len(measures) == 1 else "", ylim=(None, 1.0), title="Fresh embeddings of test records")
    if len(measures) > 1:
        quality.legend(frameon=False)
    for column, label in (("train_loss", "batches, with old embeddings"), ("loss", "test records")):
        pairs = [(row["seconds"], row[column]) for row in curve if row[column] is not None]
        loss.plot([pair[0] for pair in pairs], [pair[1] for pair in pairs], label=label)
    loss.set(xlabel="seconds", yscale="log", title="Loss")
    loss.legend(frameon=False)
    _draw_timeline(times, events, len(clients))
    _draw_ages(histogram, ages)
    return figure


def _draw_timeline(axis: Axes, events: Sequence[Event], clients: int) -> None:
    """Draw the first cycles of each client: at work in colour, waiting for the server in grey."""
    slowest: dict[int, int] = dict.fromkeys(range(clients), 0)
    shown = []
    for event in events:
        shown.append(event)
        for client in event.clients:
            slowest[client] += 1
        if min(slowest.values()) >= CYCLES:
            break
    for event in shown:
        for client, start, arrival in zip(event.clients, event.starts, event.arrivals, strict=True):
            axis.barh(client, arrival - start, left=start, height=0.6, color="tab:blue", edgecolor="white", linewidth=0.4)
            if event.time > arrival:
                axis.barh(client, event.time - arrival, left=arrival, height=0.3, color="lightgrey")
    axis.set(xlabel="seconds", ylabel="client", title="First cycles: at work (blue), waiting (grey)", yticks=range(clients))
    axis.invert_yaxis()


def _draw_ages(axis: Axes, ages: np.ndarray) -> None:
    """Draw how old the other clients' embeddings were that the server used."""
    last = int(np.flatnonzero(ages).max(initial=0)) + 1
    names = ["0", "1", *[f"{2 ** (place - 1)}-{2**place - 1}" for place in range(2, last)]][:last]
    axis.bar(range(last), ages[:last] / max(1, ages.sum()), color="tab:blue")
    axis.set_xticks(range(last), names, rotation=45, ha="right")
    axis.set(xlabel="age in updates of the server", ylabel="part", title="Age of the others' embeddings")


Curve = tuple[Sequence[float], Sequence[float], Sequence[float]]
"""Seconds, and the mean and the standard deviation of quality at each."""


def draw_curves(curves: Mapping[str, Curve], target: float, label: str = "test accuracy") -> Figure:
    """Draw methods' curves over time: the mean over seeds, and a band of one standard deviation on either side.

    Args:
        curves: of each method.
        target: level that is drawn across.
        label: of the quality.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, curve in curves.items():
        seconds, mean, spread = (np.asarray(part) for part in curve)
        (line,) = axis.plot(seconds, mean, label=name, linewidth=1.5)
        axis.fill_between(seconds, mean - spread, mean + spread, color=line.get_color(), alpha=0.15, linewidth=0)
    axis.axhline(target, color="grey", linestyle="--", linewidth=1)
    axis.set(xlabel="simulated seconds", ylabel=label)
    axis.legend(frameon=False, loc="lower right")
    return figure


def draw_trade_off(lines: Mapping[str, Sequence[tuple[float, float, float]]], free: float) -> Figure:
    """Draw accuracy over mu.

    Args:
        lines: for each way to upload, mu and the mean and the standard deviation of accuracy at each noise.
        free: accuracy without noise, which is drawn across.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, points in lines.items():
        mu, mean, spread = np.asarray(points, dtype=float).T
        axis.errorbar(mu, mean, yerr=spread, marker="o", capsize=3, label=name)
    axis.axhline(free, color="grey", linestyle="--", linewidth=1, label="no noise, no promise")
    axis.set(xscale="log", xlabel="mu of the most released record (smaller is more private)", ylabel="test accuracy")
    axis.legend(frameon=False)
    return figure
