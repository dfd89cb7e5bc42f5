"""How trays and what lies on them look: compartments, fruit, pins, rings, grain, scratches and paint.

Lengths are in parts of the side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

COMPONENTS = ("floor", "wall", "orange", "apple", "pin", "ring", "grain")
"""What the numbers of `Tray.components` mean."""

UNIT = 1 / 128
"""A pixel of a tray of the usual size."""

INSIDE = 58 * UNIT
"""Side of a compartment."""

CORNERS = {name: (row * UNIT, column * UNIT) for name, row, column in (("fruit", 4, 4), ("pin", 4, 66), ("ring", 66, 4), ("grain", 66, 66))}
"""Row and column where each compartment begins."""

FRUIT, RING, HOLE, PIN, THICK = (length * UNIT for length in (8.5, 8.5, 4.0, 20, 1.5))
"""Radii of fruit, of rings and of what they enclose; length and half the width of pins."""

_COLOURS = {
    "floor": (0.78, 0.77, 0.72),
    "wall": (0.55, 0.55, 0.55),
    "orange": (0.93, 0.55, 0.12),
    "apple": (0.68, 0.12, 0.16),
    "pin": (0.10, 0.20, 0.80),
    "ring": (0.20, 0.48, 0.30),
    "grain": (0.55, 0.38, 0.22),
}
_SCRATCH = 0.25  # of the light of what it is on
_PAINTS = ((0.75, 0.15, 0.75), (0.10, 0.70, 0.85))
_ALL = (slice(None), slice(None))
_JITTER, _TRAY_JITTER = 0.03, 0.01  # of pieces and grain; of the tray, which is the same one
_LIGHT, _NOISE, _GRAIN = 0.04, 0.02, 0.10


@dataclass(frozen=True)
class Piece:
    """A piece: its sort, row and column of its middle, and its angle."""

    sort: str
    row: float
    column: float
    angle: float = 0.0


@cache
def points(size: int) -> tuple[Tensor, Tensor]:
    """Return rows (S, 1) and columns (1, S) of the middles of pixels."""
    middles = (torch.arange(size) + 0.5) / size
    return middles[:, None], middles[None]


def compartment(place: str, size: int, height: float = 1.0) -> Tensor:
    """Return a compartment, (S, S) bool, from its bottom to a part of its height."""
    top, left = CORNERS[place]
    rows, columns = points(size)
    return (rows >= top + (1 - height) * INSIDE) & (rows < top + INSIDE) & (columns >= left) & (columns < left + INSIDE)


def within(component: Tensor) -> Tensor:
    """Return the pixels of a component, (S, S) bool, that lie so far from its border that features there show nothing else."""
    margin = round(5 * UNIT * component.shape[0])
    outside = F.pad((~component)[None].float(), [margin] * 4, value=1.0)
    return F.max_pool2d(outside, 2 * margin + 1, 1)[0] == 0


class Canvas:
    """A picture with the components that its pixels belong to.

    Args:
        size: side in pixels.

    Attributes:
        rows: (S, 1) rows of the middles of pixels.
        columns: (1, S) their columns.
        image: (3, S, S).
        components: (S, S) uint8, numbers in `COMPONENTS`.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.rows, self.columns = points(size)
        self.image = torch.zeros(3, size, size)
        self.components = torch.zeros(size, size, dtype=torch.uint8)

    def window(self, row: float, column: float, radius: float) -> tuple[slice, slice]:
        """Return rows and columns of pixels that hold a circle."""
        spans = ((middle - radius, middle + radius) for middle in (row, column))
        first, second = (slice(max(0, math.floor(low * self.size) - 1), math.ceil(high * self.size) + 1) for low, high in spans)
        return first, second

    def lay(self, outside: Tensor, colour: Tensor, component: str | None = None, window: tuple[slice, slice] = _ALL) -> Tensor:
        """Lay a colour where distances from a border are negative, with soft borders.

        Args:
            outside: (h, w) distances.
            colour: (3, 1 or h, 1 or w).
            component: what pixels then belong to; None leaves that as it is.
            window: the h x w pixels.

        Returns:
            (h, w) bool, where.
        """
        part = self.image[:, *window]
        part += (0.5 - outside * self.size).clamp(0, 1) * (colour - part)
        inside = outside < 0
        if component is not None:
            self.components[window].masked_fill_(inside, COMPONENTS.index(component))
        return inside

    def finished(self, chance: torch.Generator) -> Tensor:
        """Return the picture in its light and with noise, (3, S, S) uint8."""
        light = 1 + _LIGHT * (2 * draw(chance) - 1)
        noise = _NOISE * torch.randn(self.image.shape, generator=chance)
        return (255 * (light * self.image + noise).clamp(0, 1)).round().byte()


def draw_floor(canvas: Canvas, chance: torch.Generator) -> None:
    """Draw the walls and floors of all compartments."""
    canvas.image[:] = _colour("wall", chance)
    canvas.components[:] = COMPONENTS.index("wall")
    floor = _colour("floor", chance)
    for top, left in CORNERS.values():
        window = canvas.window(top + INSIDE / 2, left + INSIDE / 2, INSIDE / 2)
        canvas.lay(_from_box(canvas, window, top, left), floor, "floor", window)


def draw_grain(canvas: Canvas, level: float, chance: torch.Generator) -> None:
    """Fill the compartment of the grain to a part of its height, with an uneven surface."""
    top, left = CORNERS["grain"]
    window = canvas.window(top + INSIDE / 2, left + INSIDE / 2, INSIDE / 2)
    box = _from_box(canvas, window, top, left)
    ripple = 0.5 * UNIT * F.interpolate(torch.randn(1, 1, 6, generator=chance), size=box.shape[1], mode="linear")[0]
    surface = top + (1 - level) * INSIDE + ripple
    coarse = torch.randn(1, 1, 24, 24, generator=chance)
    texture = _GRAIN * F.interpolate(coarse, size=box.shape, mode="bilinear", align_corners=False)[0]
    canvas.lay(torch.maximum(surface - canvas.rows[window[0]], box), _colour("grain", chance) + texture, "grain", window)


def draw_piece(canvas: Canvas, piece: Piece, chance: torch.Generator) -> None:
    """Draw a disc with a highlight, a ring, or a short line."""
    window = canvas.window(piece.row, piece.column, PIN / 2)  # the largest piece
    y, x = canvas.rows[window[0]] - piece.row, canvas.columns[:, window[1]] - piece.column
    distance = torch.hypot(y, x)
    colour = _colour(piece.sort, chance)
    if piece.sort == "ring":
        outside = (distance - (RING + HOLE) / 2).abs() - (RING - HOLE) / 2
    elif piece.sort == "pin":
        outside = _from_line(y, x, piece.angle, PIN / 2 - THICK) - THICK
    else:
        outside = distance - FRUIT
        shine = torch.hypot(y + 0.35 * FRUIT, x + 0.35 * FRUIT) / (0.3 * FRUIT)
        colour = colour + 0.35 * (-(shine**2)).exp() - 0.08 * (distance / FRUIT).clamp(max=1) ** 2
    canvas.lay(outside, colour, piece.sort, window)


def scratch(canvas: Canvas, chance: torch.Generator, allowed: Tensor) -> Tensor:
    """Darken what lies along a bent line, whose middle lies in and which does not leave the pixels that are `allowed`, (S, S) bool; returns where."""
    row, column = _middle(canvas, chance, allowed)
    angle, half = math.pi * draw(chance), (12 + 8 * draw(chance)) * UNIT
    y, x = canvas.rows - row, canvas.columns - column
    along = y * math.sin(angle) + x * math.cos(angle)
    bend = 4 * UNIT * (draw(chance) - 0.5) * (along / half) ** 2
    outside = _from_line(y - bend * math.cos(angle), x + bend * math.sin(angle), angle, half) - 1.1 * UNIT
    return canvas.lay(torch.where(allowed, outside, UNIT), _SCRATCH * canvas.image)


def paint(canvas: Canvas, chance: torch.Generator, allowed: Tensor) -> Tensor:
    """Drop paint of a foreign colour, see `scratch`."""
    row, column = _middle(canvas, chance, allowed)
    radius = (4 + 3 * draw(chance)) * UNIT
    y, x = canvas.rows - row, canvas.columns - column
    waves = (3 * torch.atan2(y, x) + 2 * math.pi * draw(chance)).cos()
    colour = torch.tensor(_PAINTS[choose(len(_PAINTS), chance)])[:, None, None]
    return canvas.lay(torch.where(allowed, torch.hypot(y, x) - radius * (1 + 0.2 * waves), UNIT), colour)


def _middle(canvas: Canvas, chance: torch.Generator, allowed: Tensor) -> list[float]:
    """Choose row and column of a pixel that is allowed, away from the outer walls."""
    inner = torch.zeros_like(allowed)
    border = round(canvas.size / 8)
    inner[border:-border, border:-border] = True
    places = (allowed & inner).nonzero()
    return ((places[choose(len(places), chance)] + 0.5) / canvas.size).tolist()


def draw(chance: torch.Generator) -> float:
    """Draw a number from [0, 1)."""
    return float(torch.rand((), generator=chance))


def choose(count: int, chance: torch.Generator) -> int:
    """Draw a whole number from [0, count)."""
    return int(torch.randint(count, (), generator=chance))


def _colour(name: str, chance: torch.Generator) -> Tensor:
    """Return a jittered colour, (3, 1, 1)."""
    jitter = _TRAY_JITTER if name in ("floor", "wall") else _JITTER
    return (torch.tensor(_COLOURS[name]) + jitter * (2 * torch.rand(3, generator=chance) - 1))[:, None, None]


def _from_box(canvas: Canvas, window: tuple[slice, slice], top: float, left: float) -> Tensor:
    """Return distances of the pixels of a window from the border of a compartment, (h, w), the larger of those along rows and columns."""
    rows, columns = (points - start - INSIDE / 2 for points, start in ((canvas.rows[window[0]], top), (canvas.columns[:, window[1]], left)))
    return torch.maximum(rows.abs(), columns.abs()) - INSIDE / 2


def _from_line(y: Tensor, x: Tensor, angle: float, half: float) -> Tensor:
    """Return distances from a line through the origin that is `2 half` long."""
    along = (y * math.sin(angle) + x * math.cos(angle)).clamp(-half, half)
    return torch.hypot(y - along * math.sin(angle), x - along * math.cos(angle))
