"""Small worlds that need no files: sparse parity, the same painted in tiles, and noisy digits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from projects.rco.sets import Samples
from shared.data.offline import Split, digits
from shared.seeding import generator

COLUMNS = 8
"""Tiles side by side; 40 bits make five rows."""

_PARTS = {"train": "train", "val": "held", "test": "test"}
_CHUNK = 2048  # vectors that are painted at once: bounds the memory


def secret_coordinates(seed: int, bits: int, secret: int, easy: int = 0) -> Tensor:
    """Return the hidden coordinates, (secret + easy,) int64: first those of the parity, then those whose signs show in the class."""
    return torch.randperm(bits, generator=generator(seed, "parity", "secret"))[: secret + easy]


def parity_class(signs: Tensor, hidden: Tensor, secret: int) -> Tensor:
    """Return the class of sign vectors: parity bit + 2 sum_j 2^j [coordinate j of the easy ones is +1].

    Args:
        signs: (N, bits) of -1 and +1.
        hidden: (secret + easy,) from `secret_coordinates`.
        secret: number of coordinates of the parity, whose bit is 1 where their product is -1, that is an odd number of them is.

    Returns:
        (N,) int64 in [0, 2^(1 + easy)).
    """
    is_odd = (signs[:, hidden[:secret]] < 0).sum(dim=1) % 2
    easy = (signs[:, hidden[secret:]] > 0).long()
    return is_odd + 2 * (easy * 2 ** torch.arange(easy.shape[1])).sum(dim=1)


def parity_names(easy: int) -> list[str]:
    """Return the names of the classes: even or odd, and the signs of the easy coordinates, as in `odd +-`."""
    signs = ["".join("+" if label >> place & 1 else "-" for place in range(easy)) for label in range(2**easy)]
    return [f"{word} {shown}".strip() for shown in signs for word in ("even", "odd")]


def parity(split: Split, length: int, seed: int = 0, bits: int = 40, secret: int = 5, easy: int = 0) -> Samples:
    """Draw sign vectors, uniform in {-1, +1}^bits, whose class is the parity of hidden coordinates; a function of the arguments alone.

    Args:
        split: training samples, `val` for further ones that are never learnt (D'), or test samples.
        length: number of samples.
        seed: seed of the hidden coordinates, the same for all splits, and of the vectors.
        bits: n, number of coordinates.
        secret: k, number of coordinates whose product is the parity.
        easy: number of further coordinates whose signs are part of the class, so that there are 2^(1 + easy) classes.

    Returns:
        Inputs (length, bits) float32.
    """
    random = generator(seed, "parity", "vectors", _PARTS[split])
    signs = 2 * torch.randint(2, (length, bits), generator=random) - 1
    return Samples(signs.float(), parity_class(signs, secret_coordinates(seed, bits, secret, easy), secret))


def parity_tiles(split: Split, length: int, seed: int = 0, bits: int = 40, secret: int = 5, easy: int = 0, side: int = 4) -> Samples:
    """Paint the vectors of `parity` as grids of glyphs, eight side by side: a ring for -1 and a cross for +1, of differing brightness, with noise.

    Args:
        split: see `parity`.
        length: see `parity`.
        seed: see `parity`; also of brightness and noise.
        bits: see `parity`; a multiple of 8.
        secret: see `parity`.
        easy: see `parity`.
        side: height and width of a tile, in pixels.

    Returns:
        Inputs (length, 1, bits / 8 * side, 8 * side) uint8.
    """
    plain = parity(split, length, seed, bits, secret, easy)
    random = generator(seed, "parity", "tiles", _PARTS[split])
    return Samples(torch.cat(list(_painted(plain.inputs, side, random))), plain.labels)


def glyphs(side: int) -> Tensor:
    """Draw a ring and a cross, anti-aliased from 8 x 8 points a pixel, (2, side, side) in [0, 1]."""
    points = (torch.arange(8 * side) + 0.5) / (4 * side) - 1  # from -1 to 1
    y, x = points[:, None], points[None, :]
    ring = ((x**2 + y**2).sqrt() - 0.7).abs() < 0.25
    cross = ((x - y).abs() < 0.35) | ((x + y).abs() < 0.35)
    return torch.nn.functional.avg_pool2d(torch.stack([ring, cross]).float(), 8)


def noisy_digits(split: Split, size: int = 8, noise: float = 0.0, seed: int = 0) -> Samples:
    """Return scikit-learn's digits with Gaussian noise that is drawn once; the splits are the same for all seeds.

    Args:
        split: see `shared.data.offline.digits`.
        size: height and width, in pixels.
        noise: standard deviation of the noise; levels beyond [0, 1] are kept.
        seed: seed of the noise.

    Returns:
        Inputs (N, 1, size, size) float32.
    """
    plain = digits(split, size)
    drawn = torch.randn(plain.images.shape, generator=generator(seed, "noisy digits", split))
    return Samples(plain.images + noise * drawn, plain.labels)


def _painted(signs: Tensor, side: int, random: torch.Generator) -> Iterator[Tensor]:
    """Paint (N, bits) signs in parts."""
    drawings = glyphs(side)
    for part in signs.split(_CHUNK):
        rows = part.shape[1] // COLUMNS
        brightness = 0.6 + 0.4 * torch.rand(*part.shape, 1, 1, generator=random)
        tiles = (brightness * drawings[(part > 0).long()]).view(len(part), rows, COLUMNS, side, side)
        images = tiles.transpose(2, 3).reshape(len(part), 1, rows * side, COLUMNS * side)
        noise = 0.05 * torch.randn(images.shape, generator=random)
        yield ((images + noise).clamp(0, 1) * 255).round().byte()
