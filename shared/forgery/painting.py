"""Painted faces: soft-edged ellipses whose colours and proportions are a person's and whose places are a pose's.

Lengths are those of a canvas of 64 pixels and grow with it. Every function works on whole batches; B is the number of faces, S the canvas.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

CANVAS = 64
"""Side of the canvas that lengths are given for, in pixels."""

TRAITS = 28
"""Numbers in [0, 1) that a person is drawn from."""

POSE = 11
"""Numbers in [0, 1) that a pose is drawn from."""

TEXTURE = 8
"""Side of the grid of the skin's texture."""

_SKIN = ((0.46, 0.31, 0.24), (0.94, 0.79, 0.69))
_HAIR = ((0.10, 0.07, 0.05), (0.82, 0.66, 0.38))
_IRIS = ((0.22, 0.13, 0.08), (0.30, 0.48, 0.62))
_LIPS = ((0.52, 0.20, 0.20), (0.80, 0.45, 0.42))


@dataclass(frozen=True)
class Region:
    """A rotated ellipse for each of B faces.

    Args:
        centre: (B, 2) x and y in pixels from the canvas's middle.
        axes: (B, 2) half-axes in pixels.
        roll: (B,) rotation in radians, clockwise as seen.
    """

    centre: Tensor
    axes: Tensor
    roll: Tensor

    def mask(self, size: int, feather: Tensor) -> Tensor:
        """Return (B, 1, size, size) in [0, 1]: 1 well inside, 0 outside, smooth over (B,) pixels at the edge."""
        x, y = turned(size, self.centre, self.roll)
        ramp = (depth(x, y, *self.axes.unbind(1)) / feather[:, None, None] + 0.5).clamp(0, 1)
        return (ramp * ramp * (3 - 2 * ramp))[:, None]


def turned(size: int, centre: Tensor, roll: Tensor) -> tuple[Tensor, Tensor]:
    """Return each pixel's x and y, (B, size, size) in pixels, in axes about (B, 2) centres that are turned by (B,) radians."""
    place = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    x = place[None, None, :] - centre[:, 0, None, None]
    y = place[None, :, None] - centre[:, 1, None, None]
    cosine, sine = roll.cos()[:, None, None], roll.sin()[:, None, None]
    return cosine * x + sine * y, cosine * y - sine * x


def depth(x: Tensor, y: Tensor, width: Tensor, height: Tensor) -> Tensor:
    """Return how deep places lie in ellipses, negative outside, to first order about the edge.

    Args:
        x: (B, S, S) across from the middle, in pixels.
        y: (B, S, S) down from the middle.
        width: (B,) half-axes across.
        height: (B,) half-axes down.

    Returns:
        (B, S, S) in pixels.
    """
    across, below = x / width[:, None, None], y / height[:, None, None]
    radius = torch.sqrt(across**2 + below**2).clamp(min=1e-3)
    slope = torch.sqrt((across / width[:, None, None]) ** 2 + (below / height[:, None, None]) ** 2 + 1e-12) / radius
    return (1 - radius) / slope


def between(low: float, high: float, chance: Tensor) -> Tensor:
    """Map numbers in [0, 1) to [low, high)."""
    return low + (high - low) * chance


@dataclass(frozen=True)
class Poses:
    """How each of B heads is held and lit.

    Args:
        chance: (B, 11) in [0, 1).
        unit: pixels of the canvas for each of its 64.
    """

    chance: Tensor
    unit: float

    @property
    def centre(self) -> Tensor:
        """(B, 2) middle of the face: up to 3 pixels from the canvas's."""
        return self.unit * between(-3, 3, self.chance[:, 0:2])

    @property
    def roll(self) -> Tensor:
        """(B,) radians, up to 0.15 to either side."""
        return between(-0.15, 0.15, self.chance[:, 2])

    @property
    def yaw(self) -> Tensor:
        """(B,) pixels by which eyes, nose and mouth lie to the side, up to 2.5."""
        return self.unit * between(-2.5, 2.5, self.chance[:, 3])

    @property
    def opening(self) -> Tensor:
        """(B,) half the height of the open mouth, 0 to 2.5 pixels; a third of the mouths are closed."""
        return self.unit * (3.75 * self.chance[:, 4] - 1.25).clamp(min=0)

    def with_expression(self, chance: Tensor) -> Poses:
        """Return the same poses with another yaw and opening of the mouth, drawn from (B, 2) numbers that say how far they move round the range."""
        moved = (self.chance[:, 3:5] + between(0.3, 0.7, chance)) % 1
        return Poses(torch.cat([self.chance[:, :3], moved, self.chance[:, 5:]], 1), self.unit)


@dataclass(frozen=True)
class People:
    """What each of B faces looks like in every pose.

    Args:
        chance: (B, 28) in [0, 1).
        texture: (B, 1, 8, 8) standard normal: the skin's texture.
        unit: pixels of the canvas for each of its 64.
    """

    chance: Tensor
    texture: Tensor
    unit: float

    @property
    def axes(self) -> Tensor:
        """(B, 2) half-axes of the face: 17 to 21 and 22 to 26 pixels."""
        return torch.stack([self.length(17, 21, 0), self.length(22, 26, 1)], 1)

    def length(self, low: float, high: float, number: int) -> Tensor:
        """Return (B,) pixels between two lengths."""
        return self.unit * between(low, high, self.chance[:, number])

    def colour(self, ends: tuple[tuple[float, ...], tuple[float, ...]], first: int) -> Tensor:
        """Return (B, 3, 1, 1): a mixture of two colours with a little of its own hue, drawn from the numbers `first` to `first` + 3."""
        dark, light = torch.tensor(ends)
        mixed = dark + (light - dark) * self.chance[:, first, None] + between(-0.04, 0.04, self.chance[:, first + 1 : first + 4])
        return mixed.clamp(0, 1)[:, :, None, None]


@dataclass
class _Canvas:
    """What is painted on: `image` (B, 3, S, S), and each pixel's place in the head's own axes, `x` and `y` (B, S, S) in pixels."""

    image: Tensor
    x: Tensor
    y: Tensor
    unit: float

    def cover(self, colour: Tensor, left: Tensor, down: Tensor, width: Tensor, height: Tensor) -> None:
        """Paint an ellipse whose edge is a pixel of 64 wide: its colour (B, 3, S or 1, S or 1), the place of its middle and its half-axes (B,)."""
        x, y = self.x - left[:, None, None], self.y - down[:, None, None]
        part = (depth(x, y, width, height) / self.unit + 0.5).clamp(0, 1)[:, None]
        self.image = self.image + part * (colour - self.image)


def paint_faces(people: People, poses: Poses, size: int) -> Tensor:
    """Paint heads before a background, without a camera's noise: hair, face, eyes with brows, nose and mouth, in this order.

    Args:
        people: B people.
        poses: B poses.
        size: side S of the canvas, in pixels.

    Returns:
        (B, 3, S, S) in [0, 1].
    """
    x, y = turned(size, poses.centre, poses.roll)
    canvas = _Canvas(_background(poses.chance[:, 7:11], size), x, y, people.unit)
    light = _light(poses.chance[:, 5:7], size)
    hair, skin = people.colour(_HAIR, 6) * light, people.colour(_SKIN, 2) * light
    middle, (wide, high) = torch.zeros_like(poses.roll), people.axes.unbind(1)
    canvas.cover(hair, middle, middle - 3 * people.unit, 1.14 * wide, 1.1 * high)
    canvas.cover(skin + _texture(people, x, y, size), middle, middle, wide, high)
    _paint_eyes(canvas, people, poses, hair)
    canvas.cover(0.8 * skin, 1.2 * poses.yaw, middle + 3 * people.unit, people.length(1.8, 3.4, 23), people.length(4, 6, 24))
    _paint_mouth(canvas, people, poses, light)
    return canvas.image.clamp(0, 1)


def _paint_eyes(canvas: _Canvas, people: People, poses: Poses, hair: Tensor) -> None:
    """Paint white, iris, pupil and brow on both sides."""
    apart, wide = people.length(6.5, 9, 10), people.length(2.6, 3.8, 11)
    down, above = torch.full_like(wide, -5 * people.unit), -people.length(9, 11, 22)
    for side in (-1, 1):
        across = side * apart + poses.yaw
        canvas.cover(torch.tensor(0.93), across, down, wide, 0.6 * wide)
        canvas.cover(people.colour(_IRIS, 12), across, down, 0.5 * wide, 0.5 * wide)
        canvas.cover(torch.tensor(0.05), across, down, 0.24 * wide, 0.24 * wide)
        canvas.cover(0.8 * hair, across, above, people.length(3.4, 4.8, 20), people.length(0.8, 1.5, 21))


def _paint_mouth(canvas: _Canvas, people: People, poses: Poses, light: Tensor) -> None:
    """Paint lips, and what is dark between them; of a closed mouth, a line."""
    wide, down = _mouth_width(people), people.length(11, 13.5, 26)
    canvas.cover(people.colour(_LIPS, 16) * light, poses.yaw, down, wide, poses.opening + people.length(1.2, 2.2, 25))
    canvas.cover(torch.tensor(0.12), poses.yaw, down, 0.8 * wide, poses.opening + 0.3 * people.unit)


def _mouth_width(people: People) -> Tensor:
    return people.length(5, 8, 27)


def inner_face(people: People, poses: Poses) -> Region:
    """Return the part of the face that a swap replaces: from the brows to the chin."""
    return Region(_below(poses, 1.5 * people.unit), 0.74 * people.axes, poses.roll)


def mouth_region(people: People, poses: Poses) -> Region:
    """Return the region about the mouth that a reenactment replaces."""
    wide = _mouth_width(people) + 5 * people.unit
    return Region(_below(poses, 12 * people.unit), torch.stack([wide, torch.full_like(wide, 8 * people.unit)], 1), poses.roll)


def eye_band(people: People, poses: Poses) -> Region:
    """Return the band across both eyes and brows."""
    axes = torch.stack([0.8 * people.axes[:, 0], torch.full_like(poses.roll, 6.5 * people.unit)], 1)
    return Region(_below(poses, -6.5 * people.unit), axes, poses.roll)


def _below(poses: Poses, down: float) -> Tensor:
    """Return (B, 2) places so many pixels below the middle of the face, in the head's own axes."""
    return poses.centre + down * torch.stack([-poses.roll.sin(), poses.roll.cos()], 1)


def _light(chance: Tensor, size: int) -> Tensor:
    """Return (B, 1, S, S): the factor of linear shading, from a direction and of a strength that (B, 2) numbers give."""
    angle, strength = 2 * torch.pi * chance[:, 0], between(0.1, 0.3, chance[:, 1])
    across, _ = turned(size, torch.zeros(len(chance), 2), angle)
    return (1 + strength[:, None, None] * across / (size / 2))[:, None]


def _background(chance: Tensor, size: int) -> Tensor:
    """Return (B, 3, S, S): a gradient of grey with a hue, drawn from (B, 4) numbers."""
    across, _ = turned(size, torch.zeros(len(chance), 2), 2 * torch.pi * chance[:, 0])
    hue = 0.12 * torch.cos(2 * torch.pi * (chance[:, 3, None] + torch.tensor([0.0, 1 / 3, 2 / 3])))
    grey = between(0.25, 0.75, chance[:, 1, None, None]) + between(-0.2, 0.2, chance[:, 2, None, None]) * across / (size / 2)
    return (grey[:, None] + hue[:, :, None, None]).clamp(0, 1)


def _texture(people: People, x: Tensor, y: Tensor, size: int) -> Tensor:
    """Return (B, 1, S, S): the skin's texture, fixed to the head, with a standard deviation of about 0.03."""
    grid = torch.stack([x, y], -1) / (size / 2)
    return 0.04 * F.grid_sample(people.texture, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
