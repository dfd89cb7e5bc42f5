"""The project's own little pictures for triggers and targets: drawn large on black and averaged down, so that they need no files and fit any size."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL import Image, ImageDraw
from torch import Tensor

CANVAS = 1024
Colour = tuple[int, int, int]
Point = tuple[float, float]


class Pen:
    """Draws filled shapes on a black square whose corners are (0, 0) and (1, 1), y pointing down."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (CANVAS, CANVAS))
        self._draw = ImageDraw.Draw(self.image)

    def polygon(self, points: list[Point], colour: Colour) -> None:
        """Fill the polygon through `points`."""
        self._draw.polygon([(x * CANVAS, y * CANVAS) for x, y in points], fill=colour)

    def ellipse(self, centre: Point, radii: Point, colour: Colour) -> None:
        """Fill the ellipse about `centre` with horizontal and vertical `radii`."""
        (x, y), (width, height) = centre, radii
        self._draw.ellipse([(x - width) * CANVAS, (y - height) * CANVAS, (x + width) * CANVAS, (y + height) * CANVAS], fill=colour)

    def line(self, points: list[Point], width: float, colour: Colour) -> None:
        """Draw a path of round-ended strokes of the given `width` through `points`."""
        self._draw.line([(x * CANVAS, y * CANVAS) for x, y in points], fill=colour, width=round(width * CANVAS))
        for point in points:
            self.ellipse(point, (width / 2, width / 2), colour)


def smooth(points: list[Point], rounds: int = 4) -> list[Point]:
    """Round a closed polygon's corners by Chaikin's corner cutting."""
    for _ in range(rounds):
        pairs = zip(points, [*points[1:], points[0]], strict=True)
        points = [((1 - w) * a[0] + w * b[0], (1 - w) * a[1] + w * b[1]) for a, b in pairs for w in (0.25, 0.75)]
    return points


def _octagon(radius: float) -> list[Point]:
    corners = [math.pi / 8 + corner * math.pi / 4 for corner in range(8)]
    return [(0.5 + radius * math.cos(angle), 0.5 + radius * math.sin(angle)) for angle in corners]


def stop_sign(pen: Pen) -> None:
    """Red octagon with a white rim and a white bar; no channel is black, since black would be see-through."""
    pen.polygon(_octagon(0.54), (245, 245, 245))
    pen.polygon(_octagon(0.46), (205, 25, 30))
    pen.polygon([(0.2, 0.41), (0.8, 0.41), (0.8, 0.59), (0.2, 0.59)], (245, 245, 245))


def glasses(pen: Pen) -> None:
    """Round light frames with grey lenses, a bridge and the beginnings of the temples."""
    frame, lens = (235, 235, 235), (90, 110, 130)
    for side in (-1, 1):
        pen.ellipse((0.5 + side * 0.26, 0.5), (0.22, 0.2), frame)
        pen.ellipse((0.5 + side * 0.26, 0.5), (0.15, 0.13), lens)
        pen.line([(0.5 + side * 0.45, 0.44), (0.5 + side * 0.475, 0.36)], 0.05, frame)
    pen.line([(0.43, 0.46), (0.5, 0.43), (0.57, 0.46)], 0.06, frame)


def cat_face(pen: Pen) -> None:
    """Head of a ginger cat that fills the picture, on a sky-blue ground."""
    fur, dark, pink = (240, 170, 80), (60, 40, 30), (250, 150, 160)
    pen.polygon([(0, 0), (1, 0), (1, 1), (0, 1)], (70, 130, 190))
    for side in (-1, 1):
        pen.polygon([(0.5 + side * 0.44, 0.04), (0.5 + side * 0.44, 0.56), (0.5 + side * 0.06, 0.28)], fur)
        pen.polygon([(0.5 + side * 0.385, 0.15), (0.5 + side * 0.385, 0.38), (0.5 + side * 0.2, 0.29)], pink)
    pen.ellipse((0.5, 0.6), (0.45, 0.37), fur)
    for side in (-1, 1):
        pen.ellipse((0.5 + side * 0.19, 0.52), (0.105, 0.115), (250, 250, 235))
        pen.ellipse((0.5 + side * 0.19, 0.53), (0.06, 0.1), dark)
        for tilt in (-0.04, 0.05):
            pen.line([(0.5 + side * 0.22, 0.74), (0.5 + side * 0.46, 0.74 + tilt * 1.6)], 0.02, (250, 250, 235))
    pen.ellipse((0.5, 0.8), (0.16, 0.11), (255, 235, 205))
    pen.polygon([(0.43, 0.68), (0.57, 0.68), (0.5, 0.76)], pink)
    pen.line([(0.4, 0.82), (0.45, 0.84), (0.5, 0.76), (0.55, 0.84), (0.6, 0.82)], 0.03, dark)


def cat(pen: Pen) -> None:
    """A white cat sitting, seen from the front with its tail curled up at the right."""
    fur = (235, 230, 225)
    pen.line([(0.6, 0.88), (0.76, 0.87), (0.86, 0.78), (0.87, 0.65), (0.81, 0.54)], 0.09, (200, 185, 170))
    pen.polygon(smooth([(0.3, 0.5), (0.62, 0.5), (0.72, 0.75), (0.7, 0.98), (0.2, 0.98), (0.2, 0.75)]), fur)
    for side in (-1, 1):
        pen.polygon([(0.46 + side * 0.26, 0.02), (0.46 + side * 0.27, 0.32), (0.46 + side * 0.03, 0.18)], fur)
    pen.ellipse((0.46, 0.34), (0.28, 0.22), fur)
    for side in (-1, 1):
        pen.ellipse((0.46 + side * 0.12, 0.32), (0.05, 0.06), (20, 60, 40))
    pen.polygon([(0.41, 0.42), (0.51, 0.42), (0.46, 0.47)], (220, 110, 120))
    pen.line([(0.46, 0.72), (0.46, 0.97)], 0.025, (120, 110, 105))


def hat(pen: Pen) -> None:
    """A tan fedora: pinched crown, dark band, wide curved brim."""
    felt, shade = (215, 180, 130), (185, 150, 100)
    pen.ellipse((0.5, 0.71), (0.49, 0.14), shade)
    pen.ellipse((0.5, 0.68), (0.49, 0.12), felt)
    crown = [(0.23, 0.68), (0.27, 0.3), (0.34, 0.14), (0.44, 0.13), (0.5, 0.2), (0.56, 0.13), (0.66, 0.14), (0.73, 0.3), (0.77, 0.68)]
    pen.polygon(smooth([*crown, (0.6, 0.73), (0.4, 0.73)], 3), felt)
    pen.polygon([(0.245, 0.52), (0.755, 0.52), (0.765, 0.66), (0.62, 0.7), (0.38, 0.7), (0.235, 0.66)], (150, 80, 70))


def shoe(pen: Pen) -> None:
    """An ankle boot in profile, toe to the right, with a dark sole and heel."""
    leather = (225, 205, 180)
    boot = [
        (0.12, 0.1),
        (0.48, 0.1),
        (0.48, 0.12),
        (0.5, 0.42),
        (0.72, 0.52),
        (0.93, 0.6),
        (0.97, 0.74),
        (0.97, 0.78),
        (0.1, 0.78),
        (0.1, 0.74),
        (0.14, 0.45),
    ]
    pen.polygon(smooth(boot, 3), leather)
    pen.polygon([(0.07, 0.76), (0.97, 0.76), (0.97, 0.84), (0.4, 0.84), (0.36, 0.92), (0.07, 0.92)], (135, 95, 65))
    for height in (0.26, 0.36, 0.46):
        pen.line([(0.34, height), (0.48, height + 0.02)], 0.035, (110, 75, 50))


DRAWINGS: dict[str, Callable[[Pen], None]] = {
    "stop_sign": stop_sign,
    "glasses": glasses,
    "cat_face": cat_face,
    "cat": cat,
    "hat": hat,
    "shoe": shoe,
}


def to_tensor(picture: Image.Image, channels: int) -> Tensor:
    """Map a PIL picture to a (C, H, W) float32 tensor in [-1, 1]; one channel is its luminance, black is exactly -1."""
    flat = picture.convert("RGB" if channels == 3 else "L")
    values = torch.frombuffer(bytearray(flat.tobytes()), dtype=torch.uint8).view(flat.height, flat.width, -1)
    return values.permute(2, 0, 1).float() / 127.5 - 1


def draw(name: str, size: int, channels: int) -> Tensor:
    """Return the drawing `name` as (C, size, size) in [-1, 1] on a background of -1; edges blend into the background."""
    pen = Pen()
    DRAWINGS[name](pen)
    return to_tensor(pen.image.resize((size, size), Image.Resampling.BOX), channels)
