"""Saturated per-region overlap of anomaly maps with defects, sPRO, and the area under its curve (Bergmann et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from projects.comad.defects import Defect
from shared.runs import atomic

LIMITS = (0.01, 0.05, 0.1, 0.3, 1.0)
"""False-positive rates up to which curves are integrated; papers quote 0.05."""

THRESHOLDS = 1 << 20
"""Distinct thresholds of a curve at most. Maps of more values have theirs merged, the nearest ones first."""

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class OverlapCurve:
    """The curve, from (0, 0) at a threshold above all values, straight between points.

    Attributes:
        fpr: (P,) float64, part of the sound pixels of all pictures together that are at or above a threshold; rises. NaN without sound pixels.
        spro: (P,) float64, mean over all defects of their saturated overlap; rises. NaN without defects.
        is_exact: whether every value of the maps is a threshold of its own; else every point still is exact, and only points are missing.
    """

    fpr: Tensor
    spro: Tensor
    is_exact: bool

    def area(self, limit: float) -> float:
        """Return the area under the curve for rates in [0, limit], divided by the limit; in [0, 1], NaN without defects or without sound pixels.

        Raises:
            ValueError: if the limit is not in (0, 1].
        """
        fpr, spro = self._up_to(limit)
        return float(torch.trapezoid(spro, fpr)) / limit if len(fpr) > 1 else math.nan

    def uncertainty(self, limit: float) -> float:
        """Return by how much `area` differs at most from that of the curve with all thresholds, which runs in the boxes between these points."""
        return 0.0 if self.is_exact else float((self.fpr.clamp(max=limit).diff() * self.spro.diff()).sum()) / limit

    def areas(self) -> dict[str, float]:
        """Return the areas at the five limits, `au_spro_0.05` and the like."""
        return {f"au_spro_{limit:g}": self.area(limit) for limit in LIMITS}

    def _up_to(self, limit: float) -> tuple[Tensor, Tensor]:
        """Return the points up to a rate, the last of which lies there, on the line between its neighbours."""
        if not 0 < limit <= 1:
            raise ValueError(f"the limit of the false-positive rate must be in (0, 1], got {limit}")
        inside = max(1, int((self.fpr <= limit).sum()))
        fpr, spro = self.fpr[:inside], self.spro[:inside]
        if inside == len(self.fpr):
            return fpr, spro
        part = (limit - fpr[-1]) / (self.fpr[inside] - fpr[-1])
        return torch.cat([fpr, fpr.new_tensor([limit])]), torch.cat([spro, (spro[-1:] + part * (self.spro[inside] - spro[-1]))])


class SaturatedOverlap:
    """Gathers maps picture by picture; what is kept has `thresholds` rows at most, whatever the number and size of maps.

    The saturated overlap of a defect, min(found pixels / saturation area s, 1), is the part of its s highest pixels that is found. So a curve needs
    no more than the number of sound pixels of each value and the weight of the defects' highest pixels, 1 / s each. Values stay exact until there are
    too many; then the last bits of all are dropped, which merges neighbours. The order of pictures changes nothing.

    Args:
        thresholds: see above.

    Raises:
        ValueError: if there are fewer than 2.
    """

    def __init__(self, thresholds: int = THRESHOLDS) -> None:
        if thresholds < 2:
            raise ValueError(f"a curve needs at least 2 thresholds, got {thresholds}")
        self.thresholds = thresholds
        self.defects = 0
        self._shift = 0  # last bits of values that are dropped
        self._keys: Array = np.empty(0, np.int32)
        self._mass: Array = np.empty((2, 0))  # sound pixels, and weight of defects, of each key
        self._pending: list[tuple[Array, Array]] = []

    def update(self, anomaly_map: Tensor, defects: Sequence[Defect] = ()) -> None:
        """Add a picture.

        Args:
            anomaly_map: (H, W) or (1, H, W), larger is more anomalous, of the picture's original size; taken as float32.
            defects: all defects of the picture, each with its own mask (H, W); none for a good picture. What lies in none of them is sound.

        Raises:
            ValueError: if a value is not finite, a mask is empty or sizes differ.
        """
        values = _plane(anomaly_map)
        if not np.isfinite(values).all():
            raise ValueError("an anomaly map must be finite: it holds NaN or infinity")
        keys = _ordered(values)
        marked = [defect.mask.cpu().numpy() for defect in defects]
        for mask, defect in zip(marked, defects, strict=True):
            if mask.shape != keys.shape:
                here, there = (f"{height} x {width}" for height, width in (keys.shape, mask.shape))
                raise ValueError(f"the map has {here} pixels (height x width), the mask of {defect.name} {there}: enlarge maps, never resize masks")
            if not mask.any():
                raise ValueError(f"the mask of {defect.name} marks nothing")
        for mask, defect in zip(marked, defects, strict=True):
            saturation = defect.saturation
            self._add(np.sort(keys[mask])[-saturation:], 1, 1 / saturation)
        self._add(np.sort(keys[~np.logical_or.reduce(marked)] if marked else keys, axis=None), 0, 1)
        self.defects += len(marked)

    def merged(self, other: SaturatedOverlap) -> SaturatedOverlap:
        """Return the overlap of the pictures of both, such as of the good and the logical ones."""
        both = SaturatedOverlap(min(self.thresholds, other.thresholds))
        both.defects = self.defects + other.defects
        self._fold()
        other._fold()
        both._shift = max(self._shift, other._shift)
        for part in (self, other):
            both._pending.append((part._keys >> (both._shift - part._shift), part._mass))
        both._fold()
        return both

    def curve(self) -> OverlapCurve:
        """Return the curve of all pictures that were added."""
        self._fold()
        points = torch.zeros(2, len(self._keys) + 1, dtype=torch.float64)
        points[:, 1:] = torch.from_numpy(self._mass[:, ::-1].cumsum(1))
        fpr, spro = points[0] / points[0, -1], points[1] / (self.defects or math.nan)
        return OverlapCurve(fpr, spro.clamp(max=1), self._shift == 0)

    def _add(self, keys: Array, row: int, weight: float) -> None:
        """Keep sorted keys, each with a weight in one row of the mass."""
        keys = keys >> self._shift
        starts = _starts(keys)
        mass = np.zeros((2, len(starts)))
        mass[row] = np.diff(starts, append=len(keys)) * weight
        self._pending.append((keys[starts], mass))
        if sum(len(some) for some, _ in self._pending) > self.thresholds:
            self._fold()

    def _fold(self) -> None:
        """Merge what is pending into what is kept, and drop bits until it is not too much."""
        if not self._pending:
            return
        keys = np.concatenate([self._keys, *(some for some, _ in self._pending)])
        order = keys.argsort(kind="stable")  # fast on sorted parts
        keys, mass = keys[order], np.concatenate([self._mass, *(some for _, some in self._pending)], axis=1)[:, order]
        self._pending = []
        while True:
            starts = _starts(keys)
            keys, mass = keys[starts], np.add.reduceat(mass, starts, axis=1) if len(keys) else mass
            if len(keys) <= self.thresholds:
                break
            keys, self._shift = keys >> 1, self._shift + 1
        self._keys, self._mass = keys, mass


def _plane(anomaly_map: Tensor) -> Array:
    """Return a map (H, W) or (1, H, W) as (H, W) float32."""
    values = anomaly_map[0] if anomaly_map.ndim == 3 and len(anomaly_map) == 1 else anomaly_map
    if values.ndim != 2:
        raise ValueError(f"an anomaly map must be (H, W) or (1, H, W), got {tuple(anomaly_map.shape)}")
    return values.detach().cpu().float().numpy()


def _ordered(values: Array) -> Array:
    """Map float32 to int32 that have the same order."""
    bits = (values + np.float32(0)).view(np.int32)  # -0 becomes 0
    return bits ^ ((bits >> 31) & np.int32(0x7FFFFFFF))


def _starts(keys: Array) -> Array:
    """Return the places at which the runs of equal numbers begin."""
    return np.flatnonzero(np.concatenate([np.ones(min(len(keys), 1), bool), keys[1:] != keys[:-1]]))


def enlarged(anomaly_maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize (B, 1, h, w) maps to the (height, width) of the original pictures, bilinear; where those are smaller, without aliases."""
    return F.interpolate(anomaly_maps, size, mode="bilinear", antialias=size[0] < anomaly_maps.shape[2] or size[1] < anomaly_maps.shape[3])


def tiff_path(folder: Path, category: str, kind: str, name: str) -> Path:
    """Return where MVTec's evaluation looks for a map: `<folder>/<category>/test/<kind>/<name>.tiff`, the kind being that of the picture's folder."""
    return folder / category / "test" / kind / f"{name}.tiff"


def write_tiff(anomaly_map: Tensor, path: Path) -> None:
    """Write a map, (H, W) or (1, H, W), as a TIFF of 32-bit floats, in one piece or not at all.

    Raises:
        ValueError: if the map has another shape.
    """
    values = _plane(anomaly_map)
    with atomic(path) as temporary:
        Image.fromarray(values).save(temporary, format="TIFF")
