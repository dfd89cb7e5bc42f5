"""How the measures of a component are distributed over the good pictures, and beyond which bounds one stands out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projects.comad.measures import Measures
from projects.comad.metrology import Metrology
from projects.comad.naming import BOUND, FLOORS

UNITS = {
    "area": "by the training mean",
    "colour": "by the training mean",
    "x": "part of the width",
    "y": "part of the height, from the top",
    "elongation": "0 of a disc, 1 of a line",
    "number": "pieces",
}
BINS = 18
WIDTH, HEIGHT = 440, 90
"""Of the bars of a chart, in pixels of the page."""


@dataclass(frozen=True)
class Chart:
    """A histogram, ready to be drawn.

    Attributes:
        bars: left edge, width and height of each.
        low: place of the lower bound.
        high: place of the upper bound.
        mean: place of the mean.
    """

    bars: list[tuple[float, float, float]]
    low: float
    high: float
    mean: float


@dataclass(frozen=True)
class Distribution:
    """A measure of one component over the good pictures, in the units that rules take.

    Attributes:
        component: cluster that it is of.
        measure: its name, as findings and rules give it.
        values: (N,) float64; NaN where undefined.
        mean: as naming takes it.
        deviation: in the manner of a population.
        low: bound below which the measure stands out: 3 deviations off the mean, or off the least deviation that naming takes.
        high: bound above which it does.
    """

    component: int
    measure: str
    values: Tensor
    mean: float
    deviation: float
    low: float
    high: float

    @property
    def unit(self) -> str:
        """What values are in."""
        return UNITS[self.measure.partition(" ")[0]]

    @property
    def defined(self) -> Tensor:
        """The values that are defined."""
        return self.values[~self.values.isnan()]

    @property
    def row(self) -> dict[str, Any]:
        """The row of the table `measures`."""
        values = self.defined
        least, median, most = (float(values.min()), float(values.median()), float(values.max())) if len(values) else (None, None, None)
        numbers = {"mean": self.mean, "sd": self.deviation, "min": least, "median": median, "max": most, "low": self.low, "high": self.high}
        rounded = {name: None if value is None else float(f"{value:.6g}") for name, value in numbers.items()}
        return {"component": self.component, "measure": self.measure, "unit": self.unit, **rounded, "undefined": len(self.values) - len(values)}

    def chart(self) -> Chart:
        """Count the values in bins of equal width, or of one piece each for numbers."""
        values = self.defined if len(self.defined) else torch.tensor([self.mean], dtype=torch.float64)
        start, end = min(self.low, float(values.min())), max(self.high, float(values.max()))
        is_count = self.unit == "pieces"
        start, end = (math.floor(start) - 0.5, math.ceil(end) + 0.5) if is_count else (start - (end - start) / 40, end + (end - start) / 40)
        bins = min(round(end - start), 200) if is_count else BINS
        counts = torch.histc(values, bins, start, end)
        width, heights = WIDTH / bins, counts / counts.max() * HEIGHT
        bars = [(round(place * width, 2), round(width, 2), round(height, 2)) for place, height in enumerate(heights.tolist()) if height]
        low, high, mean = (round((value - start) / (end - start) * WIDTH, 2) for value in (self.low, self.high, self.mean))
        return Chart(bars, low, high, mean)


def distributions(metrology: Metrology, training: Measures) -> list[Distribution]:
    """Describe the measures of each component: area, colour, position, elongation and number, in all and of each size class.

    Shares of the grid and relations of two components are left out.

    Args:
        metrology: fitted.
        training: the measures that its fit returned.

    Returns:
        By component, in the order above.
    """
    found = [*_single(metrology, training), *_numbers(training)]
    return sorted(found, key=lambda one: one.component)


def _single(metrology: Metrology, training: Measures) -> Iterator[Distribution]:
    for name, group in training.groups.items():
        if name in ("grid", "pair"):
            continue
        is_relative = name == "global"  # as rules take area and colour
        shift, scale = torch.tensor([[0.0], [1.0]]).expand(2, len(group.columns)) if is_relative else metrology.norms[name]
        for index, (measure, components) in enumerate(group.columns):
            values = torch.where(group.raw[:, index].isnan(), torch.nan, group.normalised[:, index])
            yield _described(
                components[0], measure, values, group.normalised[:, index], FLOORS.get(name, 1.0), float(shift[index]), float(scale[index])
            )


def _numbers(training: Measures) -> Iterator[Distribution]:
    for k, histogram in zip(training.components, training.histograms, strict=True):
        counts = histogram.double()
        yield _described(k, "number", counts.sum(1), counts.sum(1), FLOORS["number"])
        for size, own in enumerate(counts.T if counts.shape[1] > 1 else ()):
            yield _described(k, f"number of size {size}", own, own, FLOORS["number"])


def _described(component: int, measure: str, values: Tensor, compared: Tensor, floor: float, shift: float = 0.0, scale: float = 1.0) -> Distribution:
    """Describe values that naming compares, given what they are multiplied by and what is added to have them in the units of rules."""
    mean, deviation = float(compared.mean()), float(compared.std(correction=0))
    reach = BOUND * max(deviation, floor)
    low, high, middle = (place * scale + shift for place in (mean - reach, mean + reach, mean))
    return Distribution(component, measure, values * scale + shift, middle, deviation * scale, low, high)
