"""What a defence costs: the accuracy of a federation that is trained under it; and cost beside gain."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.cafe.federation import Federation, adam, update, uploads
from projects.cafe.metrics import defence_score
from projects.cafe.protection import Protection
from shared.distributed import EpochSampler

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from projects.cafe.data import FederatedRecords

AT_ONCE = 512
"""Test records that are classified at a time."""
WEAK = "CAFE without a defence is no better than the mean record, so nothing is shown of the defences: take more --steps, a wider net, or more rounds"
"""The verdict where there is nothing to hold off."""
COLOURS = ("black", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:olive", "tab:cyan")
LEAST_SPAN = 0.04
"""Range of accuracies that is drawn at least."""
ABOVE, APART = 13, 13
"""Pixels from a point to its number, and between two numbers."""


def training_batches(records: int, batch: int, rounds: int, seed: int) -> Tensor:
    """Return the members of each round, (rounds, batch) int64: shuffled passes over all records in whole batches, those of `fit` with the same seed.

    Raises:
        ValueError: if there are fewer records than a batch, or no round.
    """
    if not 0 < batch <= records or rounds < 1:
        raise ValueError(f"{rounds} rounds of {batch} of {records} records: there must be at least one round, and a batch of 1 to {records} records")
    sampler, passes, count = EpochSampler(range(records), seed), [], records // batch
    for number in range(-(-rounds // count)):
        sampler.set_epoch(number)
        passes.append(torch.tensor(list(sampler))[: count * batch].reshape(count, batch))
    return torch.cat(passes)[:rounds]


def trained_accuracy(federation: Federation, data: FederatedRecords, protection: Protection, rounds: int, batch: int, lr: float, seed: int) -> float:
    """Train a copy of a federation under a defence, as `fit` does, and return its accuracy on the test records, in [0, 1].

    Args:
        federation: model at the start; it is not changed.
        data: its training records are trained on, the attacked ones among them.
        protection: what the parties do to their gradients.
        rounds: number of rounds.
        batch: K, records of a round.
        lr: learning rate of Adam.
        seed: seed of the batches.

    Raises:
        ValueError: see `training_batches`, or if the defence cannot treat these nets.
    """
    data.setup()
    learner, records = deepcopy(federation), data.train_records
    device = next(learner.parameters()).device
    blocks, labels = [block.to(device) for block in data.blocks(records.values())], records.labels.to(device)
    optimiser = adam(learner, lr)
    for number, members in enumerate(training_batches(len(records), batch, rounds, seed).to(device)):
        some = [block[members] for block in blocks]
        update(learner, optimiser, uploads(learner, some, labels[members], number, protection.defence, protection.local))
    return accuracy(learner, data)


@torch.no_grad()
def accuracy(federation: Federation, data: FederatedRecords) -> float:
    """Return the part of the test records that a federation classifies rightly."""
    device, records = next(federation.parameters()).device, data.test_records
    right = 0
    for rows in torch.arange(len(records)).split(AT_ONCE):
        some = records.take(rows)
        logits = federation([block.to(device) for block in data.blocks(some.values())])
        right += int((logits.argmax(1).cpu() == some.labels).sum())
    return right / len(records)


# ---- judging


def tabulate(measured: Sequence[dict[str, Any]], unit: str = "psnr") -> list[dict[str, Any]]:
    """Turn what `defending.measure` returned, each with `defence` and `seconds`, into rows of `Defended`; the first is without a defence."""
    ideal = measured[0]["accuracy"]
    rows = []
    for one in measured:
        naive, adaptive = one["naive"], one["adaptive"]
        row = {"defence": one["defence"], "accuracy": one["accuracy"], "points": 100 * (one["accuracy"] - ideal)}
        row |= {f"{name}_{unit}": part["error"] for name, part in (("naive", naive), ("adaptive", adaptive))}
        row |= {f"{name}_{what}": part[what] for what in ("attack", "recovered") for name, part in (("naive", naive), ("adaptive", adaptive))}
        worst = max(naive["attack"], adaptive["attack"])
        row |= {"attack": worst, "score": defence_score(worst, one["accuracy"], ideal), "epsilon": one["epsilon"]}
        notes = [f"{name}: {part['note']}" for name, part in (("CAFE", naive), ("adaptive", adaptive)) if "note" in part]
        rows.append(row | {"epsilon_attacked": one["epsilon_attacked"], "seconds": one["seconds"], "note": "; ".join(notes)})
    return rows


def verdict(rows: Sequence[Mapping[str, Any]], baseline: float, tests: int, seed: int, unit: str = "psnr") -> list[str]:
    """Say which defences hold CAFE below the mean record, against whom, and what that costs; or that CAFE is below it without a defence.

    Args:
        rows: of `tabulate`.
        baseline: error of the mean record.
        tests: number of test records.
        seed: of all that was measured.
        unit: psnr, of which more is leaked, or rmse, of which less is.
    """
    sign, name = (1, "dB") if unit == "psnr" else (-1, "standard deviations")

    def is_stopped(row: Mapping[str, Any], attack: str) -> bool:
        return sign * row[f"{attack}_{unit}"] <= sign * baseline

    def listed(wanted: tuple[bool, bool]) -> str:
        chosen = [row for row in rows[1:] if (is_stopped(row, "naive"), is_stopped(row, "adaptive")) == wanted]
        return ", ".join(f"{row['defence']} ({_points(row['points'])})" for row in chosen) or "none"

    plain, spread = rows[0], 196 * math.sqrt(rows[0]["accuracy"] * (1 - rows[0]["accuracy"]) / tests)
    lines = [f"without a defence CAFE gets {plain[f'naive_{unit}']:.3g} {name}, and the mean record {baseline:.3g}"]
    if is_stopped(plain, "naive"):
        lines += [WEAK]
    else:
        lines += [f"held to the mean record, also against the attacker who knows the defence: {listed((True, True))}"]
        lines += [f"held to it only while the attacker does not know the defence: {listed((True, False))}"]
        lines += [f"not held to it: {listed((False, False))}"]
        if (odd := listed((False, True))) != "none":
            lines[-1] += f"; nor, though the attacker who knows them gets less: {odd}"
    promised = [f"{row['defence']} (epsilon {row['epsilon']:.3g})" for row in rows if row["epsilon"] is not None]
    lines += [f"a formal promise is made by: {', '.join(promised) or 'none'}"]
    return [*lines, f"all of this is one seed ({seed}): an accuracy on {tests} test records is sure to about {spread:.1f} points"]


def _points(points: float) -> str:
    return f"{points:+.1f} points"


# ---- the picture


def draw_trade_off(rows: Sequence[Mapping[str, Any]], baseline: float, is_pictures: bool) -> Figure:
    """Draw test accuracy over what CAFE recovers: an arrow a defence, from the attack as published to the attacker who knows the defence.

    What leaks more lies on the right, so that the axis of RMSE is turned round; RMSE above twice the baseline is drawn there.

    Args:
        rows: of `tabulate`.
        baseline: what the mean record gets, in the same unit.
        is_pictures: whether that is PSNR, not RMSE.
    """
    from matplotlib.figure import Figure

    unit, most = ("psnr", math.inf) if is_pictures else ("rmse", 2 * baseline)
    pairs = [tuple(min(row[f"{attack}_{unit}"], most) for attack in ("naive", "adaptive")) for row in rows]
    heights = [row["accuracy"] for row in rows]
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(rows))]
    figure = Figure(figsize=(9.2, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.axvline(baseline, color="grey", linestyle="--", linewidth=1)
    axis.axhline(heights[0], color="grey", linestyle=":", linewidth=1)
    for (naive, adaptive), height, colour in zip(pairs, heights, colours, strict=True):
        axis.plot(adaptive, height, "o", markersize=6, color=colour)
        axis.plot(naive, height, "o", markersize=9, markerfacecolor="none", color=colour)
        axis.annotate("", (adaptive, height), (naive, height), arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 1.4})
    span = max(max(heights) - min(heights), LEAST_SPAN)
    axis.set(ylabel="test accuracy", ylim=(min(heights) - 0.12 * span, max(heights) + 0.35 * span))
    axis.set_xlabel(f"what CAFE recovers: {'PSNR, dB' if is_pictures else 'RMSE, standard deviations'} (leaks more to the right)")
    axis.margins(x=0.08)
    if not is_pictures:
        axis.invert_xaxis()
    _explain(figure, [row["defence"] for row in rows], colours)
    _number(axis, [(adaptive, height) for (_, adaptive), height in zip(pairs, heights, strict=True)], colours)
    return figure


def _explain(figure: Figure, defences: Sequence[str], colours: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", linestyle="", color=colour) for colour in colours]
    handles += [Line2D([], [], marker="o", linestyle="", color="grey", markerfacecolor=face) for face in ("none", "grey")]
    handles += [Line2D([], [], color="grey", linestyle=line) for line in ("--", ":")]
    names = [f"{number}  {name.replace(',', ', ')}" for number, name in enumerate(defences)]
    said = ["CAFE as published", "attacker who knows the defence", "mean record, no attack", "accuracy without defence"]
    figure.legend(handles, [*names, *said], loc="outside right upper", frameon=False, fontsize="small")


def _number(axis: Axes, points: Sequence[tuple[float, float]], colours: Sequence[str]) -> None:
    """Write each point's number above it, moved up where it would lie on another."""
    axis.figure.draw_without_rendering()  # type: ignore[union-attr] # until then the axes have no extent
    places = axis.transData.transform(points)
    taken: list[tuple[float, float]] = []
    for number in sorted(range(len(points)), key=lambda one: places[one][1]):
        x, y = places[number][0], places[number][1] + ABOVE
        while any(abs(x - other) < APART and abs(y - height) < APART for other, height in taken):
            y += APART / 4
        taken.append((x, y))
        shift = (y - places[number][1]) * 72 / axis.figure.dpi
        axis.annotate(
            str(number), points[number], (0, shift), textcoords="offset points", ha="center", va="center", color=colours[number], fontsize="small"
        )
