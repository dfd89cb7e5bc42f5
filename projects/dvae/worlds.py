"""Small sets that need no download: coloured digits and textured shapes, each image a function of (seed, split, index)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.dvae.sets import ImageSet
from shared.data.offline import Split, digits
from shared.seeding import generator

SHAPES = ("bar", "crescent", "cross", "disc", "ell", "frame", "ring", "square", "star", "triangle")
"""What `textures` paints, in the order of the labels."""

_FINE = 3  # points along a pixel's side at which a shape is asked for


def colour_digits(split: Split, size: int = 16, channels: int = 3, seed: int = 0) -> ImageSet:
    """Scikit-learn's handwritten digits in faint colours on a ground of another colour.

    The ground is U(0.2, 0.8) in each channel; the digit is lighter or darker by U(0.12, 0.4) in each, and noise of 0.01 lies over both. So a
    perturbation of a few levels is not small beside what tells the digits apart, as in photographs.

    Args:
        split: train (1400 digits) or test (397); no digit is in both.
        size: height and width in pixels.
        channels: 3, or 1 for grey.
        seed: seed of the split, the colours and the noise.

    Returns:
        The set; the label is the digit.

    Raises:
        ValueError: if an argument is out of its range.
    """
    drawn = digits(split, size, 1, seed)
    chance, noise = _draw("digits", split, len(drawn), 9, (channels, size, size), seed)
    ground = 0.2 + 0.6 * chance[:, :channels]  # (N, C)
    contrast = (0.12 + 0.28 * chance[:, 3 : 3 + channels]) * torch.where(chance[:, 6 : 6 + channels] < 0.5, -1.0, 1.0)
    images = ground[:, :, None, None] + contrast[:, :, None, None] * drawn.images + 0.01 * noise
    return ImageSet(_bytes(images), drawn.labels, drawn.class_names)


def textures(split: Split, size: int = 32, length: int = 3000, channels: int = 3, seed: int = 0) -> ImageSet:
    """Paint one of ten shapes an image, in random colour, place, scale and tilt, on a ground with a gradient of colours and a wave over it.

    Args:
        split: train, val and test hold different images.
        size: height and width in pixels.
        length: number of images.
        channels: 3, or 1 for grey.
        seed: seed of everything.

    Returns:
        The set; the label is the shape's place in `SHAPES`, and every ten images hold each shape once.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if channels not in (1, 3) or size < 8 or length < 1:
        raise ValueError(f"textures have 1 or 3 channels, at least 8 pixels a side and 1 image, got {channels}, {size} and {length}")
    chance, noise = _draw("textures", split, length, 24, (channels, size, size), seed)
    labels = torch.arange(length) % len(SHAPES)
    coverage = _paint(labels, chance[:, :4], size)
    ground = _ground(chance[:, 4:17], size, channels)
    middle = ground.mean((2, 3), keepdim=True)
    shift = (0.2 + 0.3 * chance[:, 17 : 17 + channels, None, None]) * torch.where(chance[:, 20 : 20 + channels, None, None] < 0.5, -1.0, 1.0)
    colour = torch.where((middle + shift - 0.5).abs() <= 0.5, middle + shift, middle - shift)  # away from the nearer end
    images = ground + coverage * (colour - middle) + 0.03 * noise  # the wave goes on under the shape
    return ImageSet(_bytes(images), labels, SHAPES)


def _draw(world: str, split: str, length: int, count: int, shape: tuple[int, int, int], seed: int) -> tuple[Tensor, Tensor]:
    """Draw `count` numbers in [0, 1) and standard normal noise of `shape` for each image."""
    chance, noise = torch.empty(length, count), torch.empty(length, *shape)
    for index in range(length):
        random = generator(seed, f"dvae {world}", split, index)
        chance[index] = torch.rand(count, generator=random)
        noise[index] = torch.randn(shape, generator=random)
    return chance, noise


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round().byte()


def _ground(chance: Tensor, size: int, channels: int) -> Tensor:
    """Give each image a gradient between two colours and a wave, (N, C, size, size), from 13 numbers in [0, 1)."""
    rows, columns = torch.meshgrid(*[(torch.arange(size) + 0.5) / size] * 2, indexing="ij")
    first, second = 0.2 + 0.6 * chance[:, :channels], chance[:, 3 : 3 + channels] - 0.5  # second: how much the colour changes across
    angles = 2 * math.pi * chance[:, 6:8, None, None]  # of the gradient and of the wave
    along = ((rows - 0.5) * angles.sin() + (columns - 0.5) * angles.cos())[:, :, None]  # (N, 2, 1, H, W), from -0.7 to 0.7
    cycles = (2 + 6 * chance[:, 8, None, None, None]) * size / 32
    wave = (2 * math.pi * (cycles * along[:, 1] + chance[:, 9, None, None, None])).sin()
    height = 0.04 + 0.08 * chance[:, 10 : 10 + channels, None, None]
    return (first[:, :, None, None] + 0.6 * second[:, :, None, None] * along[:, 0] + height * wave).clamp(0.05, 0.95)


def _paint(labels: Tensor, chance: Tensor, size: int) -> Tensor:
    """Give the part of each pixel that its image's shape covers, (N, 1, size, size) in [0, 1], from 4 numbers in [0, 1): scale, place and tilt."""
    radii = 0.24 + 0.14 * chance[:, 0]
    centres = radii[:, None] + (1 - 2 * radii[:, None]) * chance[:, 1:3]
    tilt = (chance[:, 3] - 0.5) * math.pi / 3  # 30 degrees to either side
    points = (torch.arange(_FINE * size) + 0.5) / (_FINE * size)
    painted = torch.empty(len(labels), 1, size, size)
    for rows in torch.arange(len(labels)).split(max(1, 2**22 // len(points) ** 2)):  # bounds the memory
        y = (points[None, :, None] - centres[rows, 0, None, None]) / radii[rows, None, None]
        x = (points[None, None, :] - centres[rows, 1, None, None]) / radii[rows, None, None]
        sine, cosine = tilt[rows, None, None].sin(), tilt[rows, None, None].cos()
        x, y = x * cosine - y * sine, x * sine + y * cosine
        for label in labels[rows].unique().tolist():
            some = labels[rows] == label
            painted[rows[some]] = F.avg_pool2d(_covers(SHAPES[label], x[some], y[some])[:, None].float(), _FINE)
    return painted


def _covers(shape: str, x: Tensor, y: Tensor) -> Tensor:
    """Tell which points, x to the right and y downwards from -1 to 1, lie in a shape."""
    radius, square = x**2 + y**2, torch.maximum(x.abs(), y.abs())
    match shape:
        case "bar":
            return (x.abs() <= 0.3) & (y.abs() <= 1)
        case "crescent":
            return (radius <= 1) & ((x - 0.5) ** 2 + y**2 > 0.7)
        case "cross":
            return (square <= 0.95) & (torch.minimum(x.abs(), y.abs()) <= 0.28)
        case "disc":
            return radius <= 0.85
        case "ell":
            return (square <= 0.85) & ((x <= -0.3) | (y >= 0.3))
        case "frame":
            return (square <= 0.85) & (square > 0.45)
        case "ring":
            return (radius <= 1) & (radius > 0.3)
        case "square":
            return square <= 0.75
        case "star":
            return radius.sqrt() <= _star_edge(torch.atan2(x, -y))
        case _:  # triangle
            return (y <= 0.7) & (2 * x.abs() <= y + 1)


def _star_edge(angle: Tensor) -> Tensor:
    """Give the distance from the middle to the edge of a five-pointed star, at angles from its upper point; its tips are at 1."""
    inner, half = 0.42, math.pi / 5
    folded = (angle.abs() + half) % (2 * half) - half  # from the nearest tip
    tip = torch.tensor([1.0, 0.0])
    notch = inner * torch.tensor([math.cos(half), math.sin(half)])
    normal = torch.stack([notch[1] - tip[1], tip[0] - notch[0]])  # of the edge from a tip to a notch
    return (normal @ tip) / (normal[0] * folded.abs().cos() + normal[1] * folded.abs().sin())
