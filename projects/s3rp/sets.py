"""Coarse sequences with winds: all that training may see. The truth is another object, from another file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from projects.s3rp.physics import Physics, Wind

Batch = Mapping[str, Tensor]
"""`coarse` (B, T, h, w), `mask` of that shape, bool, `u` and `v` (B, T or 1, ...) on faces, `index` (B,), and `source` (B, T or 1, H, W) if known."""


@dataclass(frozen=True)
class Observations:
    """Sequences of coarse frames, with the winds on the fine grid.

    Attributes:
        coarse: (B, T, h, w) float32 block means with noise; 0 where missing.
        mask: (B, T, h, w) bool, True where there is an observation.
        wind: face velocities of (B, T, ...), or of (B, 1, ...) where they do not change; of frame t, they carry the field to frame t + 1.
        physics: what else is known.
        sigma: standard deviation of the noise, in the units of `coarse`.
        source: (B, T or 1, H, W) known rate of release by area; None where there is none, or it is unknown.
        names: of the sequences.
        unit: of the scalar, for axes and tables.
    """

    coarse: Tensor
    mask: Tensor
    wind: Wind
    physics: Physics
    sigma: float = 0.0
    source: Tensor | None = None
    names: Sequence[str] = field(default_factory=list)
    unit: str = ""

    def __post_init__(self) -> None:
        count, frames, height, width = self.coarse.shape
        if self.mask.shape != self.coarse.shape or self.mask.dtype != torch.bool:
            raise ValueError(f"the mask is bool of {tuple(self.coarse.shape)}, as the frames are, not {self.mask.dtype} of {tuple(self.mask.shape)}")
        further = int(self.physics.boundary == "open")
        rows, columns = self.wind.u.shape[-2], self.wind.v.shape[-1]
        expected = {"u": (rows, columns + further), "v": (rows + further, columns)}
        for name, speeds in {"u": self.wind.u, "v": self.wind.v}.items():
            if speeds.dim() != 4 or speeds.shape[0] != count or speeds.shape[1] not in (1, frames) or tuple(speeds.shape[2:]) != expected[name]:
                wanted = f"({count}, 1 or {frames}, {expected[name][0]}, {expected[name][1]})"
                raise ValueError(f"{name} holds the velocities of the {self.physics.boundary} grid's faces, {wanted}, not {tuple(speeds.shape)}")
        if rows % height or columns % width or rows // height != columns // width:
            raise ValueError(
                f"the winds' {rows} x {columns} cells are no whole multiple of the frames' {height} x {width}, the same along both sides"
            )
        if self.source is not None and tuple(self.source.shape) not in {(count, times, rows, columns) for times in (1, frames)}:
            raise ValueError(f"the source holds rates of the fine cells, ({count}, 1 or {frames}, {rows}, {columns}), not {tuple(self.source.shape)}")

    def __len__(self) -> int:
        return len(self.coarse)

    @property
    def frames(self) -> int:
        """T."""
        return self.coarse.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the fine grid."""
        return self.wind.u.shape[-2], self.wind.v.shape[-1]

    @property
    def factor(self) -> int:
        """r, fine cells along a side of a coarse one."""
        return self.shape[1] // self.coarse.shape[-1]

    def select(self, rows: Any) -> Observations:
        """Return some of the sequences, by numbers or a slice."""
        numbers = range(len(self))[rows] if isinstance(rows, slice) else [int(number) for number in rows]
        kept = [self.names[number] for number in numbers] if self.names else []
        source = None if self.source is None else self.source[rows]
        return replace(self, coarse=self.coarse[rows], mask=self.mask[rows], wind=self.wind.select(rows), source=source, names=kept)

    def batch(self, rows: Any = slice(None)) -> dict[str, Tensor]:
        """Return sequences as a `Batch`."""
        index = torch.arange(len(self))[rows]
        batch = {"coarse": self.coarse[rows], "mask": self.mask[rows], "u": self.wind.u[rows], "v": self.wind.v[rows], "index": index}
        return batch if self.source is None else batch | {"source": self.source[rows]}


class Sequences(Dataset):
    """Observations as a set of whole batches for loaders."""

    def __init__(self, observations: Observations) -> None:
        self.observations = observations

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self.observations.batch([index]).items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        return self.observations.batch(indices)


def whole(batch: Any) -> Any:
    """Collate what is a batch already."""
    return batch


Estimator = Callable[[Observations], Tensor]
"""Maps observations to fields, (B, T, H, W)."""
