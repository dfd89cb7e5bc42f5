"""What channels cost: parameters, FLOPs and latency, computed from the shapes of the layers and kept up while channels go."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shared.pruning.groups import GroupIndex, Item
from shared.pruning.plan import query_place

Measure = Literal["channels", "parameters", "flops", "latency"]
LatencyTable = Mapping[str, Mapping[str, Any]]


class Ledger(Protocol):
    """A running total that falls when channels go."""

    def total(self) -> float:
        """Return what the network costs now."""

    def cost(self, group: str, channels: Tensor) -> float:
        """Return by how much the total would fall without these channels."""

    def remove(self, group: str, channels: Tensor) -> None:
        """Take the channels out."""


@dataclass(frozen=True)
class Budget:
    """How much to remove, as a share in [0, 1) of exactly one measure.

    Args:
        channels: share of the channels of all groups that may be pruned.
        parameters: share of the network's parameters.
        flops: share of the floating point operations of convolutions, linear layers and attention, two a multiplication and addition.
        latency: share of the time that `table` gives for the layers.
        table: seconds by layer and widths; see `measure_latency`.
    """

    channels: float | None = None
    parameters: float | None = None
    flops: float | None = None
    latency: float | None = None
    table: LatencyTable | None = None

    def __post_init__(self) -> None:
        given = {name: value for name in ("channels", "parameters", "flops", "latency") if (value := getattr(self, name)) is not None}
        if len(given) != 1:
            raise ValueError(f"a budget sets one of channels, parameters, flops and latency, got {', '.join(given) or 'none'}")
        if not 0 <= self.share < 1:
            raise ValueError(f"a budget is the share to remove, in [0, 1), got {self.measure}={self.share}")
        if (self.measure == "latency") != (self.table is not None):
            raise ValueError("a latency budget needs a table of latencies, the others none: make one with measure_latency(index, model)")

    @property
    def measure(self) -> Measure:
        """The measure that is set."""
        names: tuple[Measure, ...] = ("channels", "parameters", "flops", "latency")
        return next(name for name in names if getattr(self, name) is not None)

    @property
    def share(self) -> float:
        """Its value."""
        return getattr(self, self.measure)

    def ledger(self, index: GroupIndex) -> Ledger:
        """Return a running total of the measure."""
        if self.measure == "channels":
            return ChannelLedger(index)
        return TimeLedger(index, self.table) if self.table is not None else ProductLedger(index, self.measure)


class ChannelLedger:
    """Counts the channels of the groups that may be pruned."""

    def __init__(self, index: GroupIndex) -> None:
        self.left = float(sum(group.channels for group in index.free.values()))

    def total(self) -> float:
        """Return the number of channels."""
        return self.left

    def cost(self, group: str, channels: Tensor) -> float:
        """Return the number of channels given."""
        return float(len(channels))

    def remove(self, group: str, channels: Tensor) -> None:
        """Count the channels down."""
        self.left -= len(channels)


class ProductLedger:
    """Sums factor · d0 · d1 over tensors whose dimensions shrink; removing an input makes the remaining outputs cheaper, and the sum knows."""

    def __init__(self, index: GroupIndex, measure: Measure) -> None:
        terms = _parameter_terms(index) if measure == "parameters" else _flop_terms(index)
        numbers = {name: i for i, name in enumerate(terms)}
        cut: dict[str, list[int]] = {name: [] for name in terms}
        for group in index.groups.values():
            for item in group.items:
                for name, dim in _terms_of(index, item, measure):
                    if name in cut and dim not in cut[name]:
                        cut[name].append(dim)
        self.dims = np.ones((len(terms), 2))
        self.factor = np.ones(len(terms))
        for name, (shape, factor) in terms.items():
            for side, dim in enumerate(cut[name]):
                self.dims[numbers[name], side] = shape[dim]
            self.factor[numbers[name]] = factor * np.prod([size for dim, size in enumerate(shape) if dim not in cut[name]])
        self.losses: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for group in index.groups.values():
            rows: dict[int, np.ndarray] = {}
            for item in group.items:
                for name, dim in _terms_of(index, item, measure):
                    if name in numbers:
                        loss = rows.setdefault(numbers[name], np.zeros((2, group.channels)))
                        loss[cut[name].index(dim)] += np.bincount(item.root.numpy(), minlength=group.channels) / item.groups
            self.losses[group.name] = (np.array(list(rows), dtype=np.int64), np.array(list(rows.values())).reshape(len(rows), 2, group.channels))

    def total(self) -> float:
        """Return the sum."""
        return float((self.factor * self.dims.prod(1)).sum())

    def cost(self, group: str, channels: Tensor) -> float:
        """Return by how much the sum would fall."""
        terms, losses = self.losses[group]
        before = self.dims[terms]
        after = before - losses[:, :, channels.numpy()].sum(2)
        return float((self.factor[terms] * (before.prod(1) - after.prod(1))).sum())

    def remove(self, group: str, channels: Tensor) -> None:
        """Shrink the tensors."""
        terms, losses = self.losses[group]
        self.dims[terms] -= losses[:, :, channels.numpy()].sum(2)


def _parameter_terms(index: GroupIndex) -> dict[str, tuple[tuple[int, ...], float]]:
    return {name: (shape, 1.0) for name, shape in index.shapes.items() if name not in index.uncounted}


def _flop_terms(index: GroupIndex) -> dict[str, tuple[tuple[int, ...], float]]:
    layers = {f"{name}.weight": site for name, site in index.sites.items() if len(index.shapes.get(f"{name}.weight", ())) > 1}
    terms = {name: (index.shapes[name], 2.0 * site.uses) for name, site in layers.items() if site.type != "Embedding"}
    for name, heads in index.attentions.items():
        queries = index.sites.get(query_place(name, heads)[0])
        keys = index.sites.get(f"{name}.to_k", queries)
        if queries is not None and keys is not None:
            terms[f"{name}:attention"] = ((heads.heads * heads.head_dim,), 4.0 * queries.uses * keys.uses)
    return terms


def _terms_of(index: GroupIndex, item: Item, measure: Measure) -> list[tuple[str, int]]:
    """Return (term, dimension) of what shrinks with an item: its tensor, and with the inputs of an attention's last layer the attention itself."""
    terms = [(item.name, item.dim)]
    if measure == "flops" and item.kind == "in":
        owner = next((item.module.removesuffix(end) for end in (".to_out.0", ".proj") if item.module.endswith(end)), "")
        terms += [(f"{owner}:attention", 0)] if owner in index.attentions else []
    return terms


class TimeLedger:
    """Sums the latencies of layers, interpolated in their widths."""

    def __init__(self, index: GroupIndex, table: LatencyTable) -> None:
        self.table = table
        self.widths: dict[str, list[float]] = {}
        self.losses: dict[str, list[tuple[str, int, np.ndarray]]] = {name: [] for name in index.groups}
        for name in table:
            shape = index.shapes[f"{name}.weight"]
            self.widths[name] = [float(shape[1]), float(shape[0])]
        for group in index.groups.values():
            for item in group.items:
                if item.module in table and item.tensor == "weight":
                    counts = np.bincount(item.root.numpy(), minlength=group.channels) / item.groups
                    self.losses[group.name].append((item.module, 0 if item.dim == 1 else 1, counts))

    def total(self) -> float:
        """Return the seconds of all layers."""
        return sum(self._seconds(name, *widths) for name, widths in self.widths.items())

    def cost(self, group: str, channels: Tensor) -> float:
        """Return the seconds that would be saved."""
        after = self._without(group, channels)
        return sum(self._seconds(name, *self.widths[name]) - self._seconds(name, *widths) for name, widths in after.items())

    def remove(self, group: str, channels: Tensor) -> None:
        """Narrow the layers."""
        self.widths.update(self._without(group, channels))

    def _without(self, group: str, channels: Tensor) -> dict[str, list[float]]:
        after: dict[str, list[float]] = {}
        for name, side, counts in self.losses[group]:
            widths = after.setdefault(name, list(self.widths[name]))
            widths[side] -= float(counts[channels.numpy()].sum())
        return after

    def _seconds(self, name: str, inputs: float, outputs: float) -> float:
        entry = self.table[name]
        rows = [_interpolate(entry["outputs"], row, outputs) for row in entry["seconds"]]
        return _interpolate(entry["inputs"], rows, inputs)


def _interpolate(grid: Sequence[float], values: Sequence[float], at: float) -> float:
    """Interpolate linearly, and extend the nearest segment beyond the grid."""
    if len(grid) == 1:
        return values[0]
    right = min(max(bisect.bisect_left(grid, at), 1), len(grid) - 1)
    share = (at - grid[right - 1]) / (grid[right] - grid[right - 1])
    return max(0.0, values[right - 1] + share * (values[right] - values[right - 1]))


def measure_latency(
    index: GroupIndex, model: nn.Module, batch: int = 1, shares: Sequence[float] = (0.25, 0.5, 0.75, 1.0), rounds: int = 5
) -> dict[str, dict[str, Any]]:
    """Time every ungrouped convolution and linear layer alone, at several widths, on the device that the network is on.

    Args:
        index: the network's groups.
        model: the network.
        batch: number of examples.
        shares: widths to time, as shares of the present ones, ascending.
        rounds: the fastest of so many runs counts.

    Returns:
        By layer: "inputs" and "outputs", the widths timed, and "seconds", a row by input width of seconds by output width.
    """
    table: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        site = index.sites.get(name)
        if site is None or not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)) or site.groups > 1:
            continue
        inputs, outputs = (sorted({max(1, round(share * width)) for share in shares}) for width in (module.weight.shape[1], module.weight.shape[0]))
        seconds = [[_time_layer(module, site.input_shape, batch, one, other, rounds) for other in outputs] for one in inputs]
        table[name] = {"inputs": inputs, "outputs": outputs, "seconds": seconds}
    return table


@torch.inference_mode()
def _time_layer(module: nn.Module, input_shape: tuple[int, ...], batch: int, inputs: int, outputs: int, rounds: int) -> float:
    weight = module.weight[:outputs, :inputs].contiguous()  # type: ignore[index]
    run: Callable[[], Any]
    if isinstance(module, nn.Linear):
        given, run = weight.new_zeros(batch, *input_shape[:-1], inputs), lambda: nn.functional.linear(given, weight)
    else:
        given = weight.new_zeros(batch, inputs, *input_shape[1:])
        convolution: Callable[..., Tensor] = (torch.conv1d, torch.conv2d, torch.conv3d)[given.ndim - 3]
        settings = (module.stride, module.padding, module.dilation)
        run = lambda: convolution(given, weight, None, *settings)  # noqa: E731
    return fastest(run, weight, rounds)


def fastest(run: Callable[[], Any], on: Tensor, rounds: int) -> float:
    """Time a computation: the least seconds of `rounds` runs after one to warm up, waiting for the device that a tensor is on."""
    best = float("inf")
    for number in range(rounds + 1):
        _synchronise(on)
        start = time.perf_counter()
        run()
        _synchronise(on)
        best = min(best, time.perf_counter() - start) if number else best
    return best


def _synchronise(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
