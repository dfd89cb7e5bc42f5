"""The dry run: what a plan would do, group by group and in total, as a table and as JSON. Nothing is changed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.pruning.costs import Budget, LatencyTable
from shared.pruning.cutting import cut_shapes
from shared.pruning.groups import GroupIndex
from shared.pruning.plan import Plan


@dataclass(frozen=True)
class Report:
    """What a plan does; `str` gives the table.

    Args:
        groups: a row a group: channels before and after, parameters and FLOPs that go with its channels alone, and the least, median and greatest
            score of dropped and of kept ones.
        layers: a row a type of layer: its outputs and parameters before and after.
        totals: before and after, of channels, parameters, flops, activations (elements that layers put out for one example), and seconds if measured.
        notes: caps, floors and budgets that bound the choice, and layers that cannot be pruned.
    """

    groups: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    totals: dict[str, dict[str, float]]
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {"groups": self.groups, "layers": self.layers, "totals": self.totals, "notes": self.notes}

    def __str__(self) -> str:
        rows = [["group", "channels", "left", "share", "parameters", "MFLOP", "dropped scores", "kept scores"]]
        for row in self.groups:
            share = f"{1 - row['after'] / row['before']:.1%}" if not row["protected"] else f"stays: {row['protected']}"
            cells = [row["group"], row["before"], row["after"], share, f"{row['parameters']:,.0f}", f"{row['flops'] / 1e6:,.2f}"]
            rows.append([str(cell) for cell in cells] + [_span(row["dropped_scores"]), _span(row["kept_scores"])])
        lines = [_table(rows), ""]
        layers = [["layers", "outputs", "left", "share", "parameters", "left", "share"]]
        for row in self.layers:
            layers.append(
                [row["type"], *_counts(row["outputs_before"], row["outputs_after"]), *_counts(row["parameters_before"], row["parameters_after"])]
            )
        lines += [_table(layers), ""]
        totals = [["total", "before", "after", "share removed"]]
        totals += [[name, *_counts(row["before"], row["after"])] for name, row in self.totals.items()]
        return "\n".join([*lines, _table(totals), *(f"note: {note}" for note in self.notes)])


def report(plan: Plan, table: LatencyTable | None = None) -> Report:
    """Compute what a plan would do.

    Args:
        plan: the plan; for masks, what removal of the same channels would save.
        table: latencies by layer, from `costs.measure_latency`, to estimate seconds.
    """
    index = plan.index
    kept = {module: int(mask.sum()) for (module, side), mask in plan.keep().items() if side in ("out", "both")}
    outputs = {name: kept.get(name, site.channels) for name, site in index.sites.items()}
    ledgers = {"channels": Budget(channels=0).ledger(index), "parameters": Budget(parameters=0).ledger(index), "flops": Budget(flops=0).ledger(index)}
    if table is not None:
        ledgers["seconds"] = Budget(latency=0, table=table).ledger(index)
    rows = []
    for name, group in index.groups.items():
        dropped = plan.dropped.get(name, torch.empty(0, dtype=torch.int64))
        row = {"group": name, "before": group.channels, "after": group.channels - len(dropped), "protected": group.protected}
        row |= {measure: ledgers[measure].cost(name, dropped) for measure in ("parameters", "flops")}
        rows.append(row | _quantiles(plan.scores, name, dropped, group.channels))
    before = {measure: ledger.total() for measure, ledger in ledgers.items()}
    for ledger in ledgers.values():
        for name, channels in plan.dropped.items():
            ledger.remove(name, channels)
    totals = {measure: {"before": before[measure], "after": ledger.total()} for measure, ledger in ledgers.items()}
    notes = [*plan.notes, *(f"{name} is not prunable: {reason}" for name, reason in index.skipped.items())]
    activations = [sum(widths[name] * site.positions for name, site in index.sites.items()) for widths in (_channels(index), outputs)]
    totals["activations"] = {"before": float(activations[0]), "after": float(activations[1])}
    if plan.mode == "cut":
        after = index.after(plan).sites
        recut = [name for name, site in index.sites.items() if site.groups != after[name].groups]
        notes += [f"{name}: {index.sites[name].groups} groups become {after[name].groups}" for name in recut]
    return Report(rows, _layers(index, cut_shapes(index, plan), outputs), totals, notes)


def _channels(index: GroupIndex) -> dict[str, int]:
    return {name: site.channels for name, site in index.sites.items()}


def _layers(index: GroupIndex, shapes: Mapping[str, tuple[int, ...]], outputs: Mapping[str, int]) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    blank = {"outputs_before": 0, "outputs_after": 0, "parameters_before": 0, "parameters_after": 0}
    for name, site in index.sites.items():
        row = rows.setdefault(site.type, {"type": site.type, **blank})
        row["outputs_before"] += site.channels
        row["outputs_after"] += outputs[name]
        for when, state in (("before", index.shapes), ("after", shapes)):
            tensors = (state.get(f"{name}.{tensor}") for tensor in ("weight", "bias"))
            row[f"parameters_{when}"] += sum(math.prod(shape) for shape in tensors if shape is not None)
    return list(rows.values())


def _quantiles(scores: Mapping[str, Tensor] | None, name: str, dropped: Tensor, channels: int) -> dict[str, list[float] | None]:
    """Return the least, median and greatest score of the channels that go and of those that stay."""
    if scores is None or name not in scores:
        return {"dropped_scores": None, "kept_scores": None}
    goes = torch.zeros(channels, dtype=torch.bool)
    goes[dropped] = True
    values = scores[name].double()
    steps = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    return {key: values[which].quantile(steps).tolist() if which.any() else None for key, which in (("dropped_scores", goes), ("kept_scores", ~goes))}


def _span(values: list[float] | None) -> str:
    return " ".join(f"{value:.3g}" for value in values) if values else "-"


def _counts(before: float, after: float) -> list[str]:
    exact = ",.0f" if before >= 100 or float(before).is_integer() else ".3g"
    return [format(before, exact), format(after, exact), f"{1 - after / before:.1%}" if before else "-"]


def _table(rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True))) for row in rows
    )
