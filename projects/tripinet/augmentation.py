"""What training pictures go through: turns, changes of colour, compression, blur, scale, and forging on the fly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from projects.tripinet.forging import membrane
from shared.data.memory import through_jpeg
from shared.forgery.augmentation import blur

Augmentation = Literal["none", "flips", "benco"]
"""Nothing; the eight positions of a picture, which leave every trace as it is; or these with all that IMDL-BenCo does, forging among it."""


class Augmented(NamedTuple):
    """A picture, (3, H, W) uint8; its mask, (1, H, W) uint8 of 0 and 1; and what was forged on the fly, None if nothing was."""

    image: Tensor
    mask: Tensor
    forged: str | None = None


def augment(image: Tensor, mask: Tensor, augmentation: Augmentation, chance: torch.Generator) -> Augmented:
    """Augment a picture.

    Args:
        image: (3, H, W) uint8.
        mask: (1, H, W) uint8, 1 where manipulated.
        augmentation: what is done. With `benco` these are, each with its probability: scale by 0.8 to 1.2 (1), copy-move and inpainting of a
            rectangle of 5 to 80 % of the sides (0.1 each), the eight positions, brightness and contrast by up to a tenth (1), JPEG of quality 70 to
            100 (0.2), and blur over 3, 5 or 7 pixels (0.2).
        chance: where all numbers come from.

    Returns:
        Picture and mask; forging on the fly has marked its rectangle in the mask.

    Raises:
        ValueError: if the augmentation is not known.
    """
    if augmentation not in get_args(Augmentation):
        raise ValueError(f"data.augmentation must be one of {', '.join(get_args(Augmentation))}, got {augmentation!r}")
    if augmentation == "none":
        return Augmented(image, mask)
    if augmentation == "flips":
        return Augmented(*_positioned(image, mask, chance))
    forged = None
    image, mask = _scaled(image, mask, 0.8 + 0.4 * _draw(chance))
    for kind, forge in _FORGERS.items():
        if _draw(chance) < 0.1:
            image, mask = forge(image, mask, chance)
            forged = kind
    image, mask = _positioned(image, mask, chance)
    image = _colours(image, chance)
    if _draw(chance) < 0.2:
        image = through_jpeg(image[None], 70 + int(31 * _draw(chance)))[0]
    if _draw(chance) < 0.2 and min(image.shape[1:]) > 3:
        image = blur(image[None], torch.randint(3, (1,), generator=chance))[0]
    return Augmented(image, mask, forged)


def copy_move(image: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Copy a rectangle of 5 to 80 % of the sides to another place, and mark where it lies."""
    height, width = _sides(image, chance)
    (top, left), (row, column) = (_place(image, height, width, chance) for _ in range(2))
    image, mask = image.clone(), mask.clone()
    image[:, row : row + height, column : column + width] = image[:, top : top + height, left : left + width].clone()
    mask[:, row : row + height, column : column + width] = 1
    return image, mask


def inpaint(image: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Fill a rectangle of 5 to 80 % of the sides with a membrane over its border, and mark it."""
    height, width = _sides(image, chance)
    top, left = _place(image, height, width, chance)
    hole = torch.zeros_like(mask, dtype=torch.bool)
    hole[:, top : top + height, left : left + width] = True
    return membrane(image.float(), hole).round().clamp(0, 255).byte(), mask.masked_fill(hole, 1)


_FORGERS: dict[str, Callable[[Tensor, Tensor, torch.Generator], tuple[Tensor, Tensor]]] = {"copymove": copy_move, "inpaint": inpaint}


def _positioned(image: Tensor, mask: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put a picture into one of its eight positions."""
    position = int(torch.randint(8, (), generator=chance))
    image, mask = ((layer.flip(2) if position < 4 else layer).rot90(position, (1, 2)) for layer in (image, mask))
    return image, mask


def _scaled(image: Tensor, mask: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    size = [max(1, round(factor * side)) for side in image.shape[1:]]
    scaled = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return scaled, F.interpolate(mask[None], size=size, mode="nearest-exact")[0]


def _colours(image: Tensor, chance: torch.Generator) -> Tensor:
    gain, offset = 0.9 + 0.2 * _draw(chance), 255 * (-0.1 + 0.2 * _draw(chance))
    return (gain * image + offset).round().clamp(0, 255).byte()


def _sides(image: Tensor, chance: torch.Generator) -> tuple[int, int]:
    height, width = (max(1, round((0.05 + 0.75 * _draw(chance)) * side)) for side in image.shape[1:])
    return height, width


def _place(image: Tensor, height: int, width: int, chance: torch.Generator) -> tuple[int, int]:
    top, left = (int(_draw(chance) * (side - own + 1)) for side, own in zip(image.shape[1:], (height, width), strict=True))
    return top, left


def _draw(chance: torch.Generator) -> float:
    return float(torch.rand((), generator=chance))
