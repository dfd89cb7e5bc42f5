"""What metrology says of pictures: measures of components, raw and beside the training pictures'."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Column(NamedTuple):
    """A measure, and the cluster that it is of, or the two that it relates."""

    measure: str
    components: tuple[int, ...]


@dataclass(frozen=True)
class Group:
    """Measures that are compared together.

    Attributes:
        columns: D measures.
        raw: (B, D) float64 values; NaN where undefined, as the colour of nothing.
        normalised: (B, D) float64, undefined ones as the training mean: area and colour by the training mean, others in training deviations from it.
    """

    columns: tuple[Column, ...]
    raw: Tensor
    normalised: Tensor

    def take(self, rows: Tensor) -> Group:
        """Return the (R,) chosen pictures."""
        return Group(self.columns, self.raw[rows], self.normalised[rows])


@dataclass(frozen=True)
class Measures:
    """Measures of B pictures.

    Attributes:
        components: M clusters that are components, ascending.
        groups: `global`, of area (pixels) and colour; and an extension each.
        histograms: M of (B, C_k) int64, pieces of each size class.
        masks: (B, M, ceil(H W / 8)) uint8, eight pixels a byte.
        size: H and W.
    """

    components: tuple[int, ...]
    groups: dict[str, Group]
    histograms: tuple[Tensor, ...]
    masks: Tensor
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def number(self) -> Tensor:
        """Counted pieces of each component, (B, M) int64."""
        return torch.stack([histogram.sum(1) for histogram in self.histograms], dim=1)

    def take(self, rows: Sequence[int] | Tensor) -> Measures:
        """Return the measures of chosen pictures."""
        rows = torch.as_tensor(rows, dtype=torch.int64)
        groups = {name: group.take(rows) for name, group in self.groups.items()}
        return Measures(self.components, groups, tuple(histogram[rows] for histogram in self.histograms), self.masks[rows], self.size)

    def unpacked(self, rows: Sequence[int] | Tensor | None = None) -> Tensor:
        """Return the masks of chosen pictures, or of all, (R, M, H, W) bool."""
        return unpack(self.masks if rows is None else self.masks[torch.as_tensor(rows, dtype=torch.int64)], self.size)

    def table(self, row: int) -> list[dict[str, Any]]:
        """Return a picture's measures, a dictionary for each component.

        Each holds `component`, `number`, `pieces` by size class, and by measure its raw value, or None where undefined; `relative` holds
        the normalised ones. Relations of two components, and the parts of a grid, are left out.
        """
        rows: list[dict[str, Any]] = [
            {"component": k, "number": int(counts[row].sum()), "pieces": counts[row].tolist(), "relative": {}}
            for k, counts in zip(self.components, self.histograms, strict=True)
        ]
        by_component = {entry["component"]: entry for entry in rows}
        for name, group in self.groups.items():
            for index, (measure, components) in enumerate(group.columns):
                if len(components) == 1 and name != "grid":
                    value = float(group.raw[row, index])
                    by_component[components[0]][measure] = None if math.isnan(value) else value
                    by_component[components[0]]["relative"][measure] = float(group.normalised[row, index])
        return rows

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that `from_state` takes."""
        state: dict[str, Any] = {"components": list(self.components), "size": list(self.size), "masks": self.masks, "groups": list(self.groups)}
        for name, group in self.groups.items():
            state[f"{name}/columns"] = [[column.measure, *column.components] for column in group.columns]
            state |= {f"{name}/raw": group.raw, f"{name}/normalised": group.normalised}
        return state | {f"histogram/{index}": histogram for index, histogram in enumerate(self.histograms)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Measures:
        """Restore what `state` returned."""
        groups = {}
        for name in state["groups"]:
            columns = tuple(Column(measure, tuple(components)) for measure, *components in state[f"{name}/columns"])
            groups[name] = Group(columns, state[f"{name}/raw"], state[f"{name}/normalised"])
        histograms = tuple(state[f"histogram/{index}"] for index in range(len(state["components"])))
        height, width = state["size"]
        return cls(tuple(state["components"]), groups, histograms, state["masks"], (height, width))


def pack(masks: Tensor) -> Tensor:
    """Pack masks, eight pixels a byte, (..., H, W) bool -> (..., ceil(H W / 8)) uint8 on the CPU."""
    return torch.from_numpy(np.packbits(masks.flatten(-2).cpu().numpy(), axis=-1))


def unpack(packed: Tensor, size: tuple[int, int]) -> Tensor:
    """Undo `pack`, (..., ceil(H W / 8)) uint8 -> (..., H, W) bool."""
    bits = np.unpackbits(packed.cpu().numpy(), axis=-1, count=size[0] * size[1])
    return torch.from_numpy(bits.astype(bool)).view(*packed.shape[:-1], *size)
