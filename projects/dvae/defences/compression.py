"""Image shortcut squeezing (Liu et al. 2023) and a blur: maps of single images that a small perturbation may not survive."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from projects.dvae.batches import to_bytes
from projects.dvae.defences.base import ImageMap
from shared.data.memory import through_jpeg, to_unit

LUMA = (19595, 38470, 7471)
"""Weights 0.299, 0.587 and 0.114 of ITU-R 601 in units of 1 / 65536, as Pillow has them."""


class Grey(ImageMap):
    """Grey images: the luma of ITU-R 601, copied to all three channels; images of one channel stay."""

    name = "grey"

    def map(self, images: Tensor) -> Tensor:
        if images.shape[1] != 3:
            return images
        red, green, blue = (weight * images[:, channel].int() for channel, weight in enumerate(LUMA))
        luma = (red + green + blue + 2**15) >> 16
        return luma.byte()[:, None].expand(-1, 3, -1, -1)


class JPEG(ImageMap):
    """JPEG compression and back, with halved resolution of colour.

    Args:
        quality: 1 to 100; published: 10.

    Raises:
        ValueError: for a quality outside.
    """

    def __init__(self, quality: float = 10) -> None:
        if not 1 <= quality <= 100 or quality != int(quality):
            raise ValueError(f"the quality of jpeg must be a whole number from 1 to 100, got {quality:g}")
        self.quality = int(quality)
        self.name = f"jpeg:{self.quality}"

    def map(self, images: Tensor) -> Tensor:
        return through_jpeg(images, self.quality)


class BitDepth(ImageMap):
    """Reduction of the depth, floor(2^b x) / 2^b for x in [0, 1]: white stays white, everything else gets darker.

    Args:
        bits: b, 1 to 7; published: 2.

    Raises:
        ValueError: for a number of bits outside.
    """

    def __init__(self, bits: float = 2) -> None:
        if bits not in range(1, 8):
            raise ValueError(f"the bits of bdr must be a whole number from 1 to 7, got {bits:g}")
        self.bits = int(bits)
        self.name = f"bdr:{self.bits}"
        steps = torch.arange(256) * 2**self.bits // 255
        self._levels = to_bytes(steps / 2**self.bits)

    def map(self, images: Tensor) -> Tensor:
        return self._levels.to(images.device)[images.int()]


class Blur(ImageMap):
    """Gaussian blur by a kernel of 3 x 3.

    The published deviation of 0.1 pixels gives a pixel's neighbours a weight of 2e-22, so images of 8 bits stay what they are.

    Args:
        sigma: standard deviation in pixels.

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, sigma: float = 0.1) -> None:
        if sigma <= 0:
            raise ValueError(f"the sigma of blur must be positive, got {sigma:g}")
        self.sigma = sigma
        self.name = f"blur:{sigma:g}"

    def map(self, images: Tensor) -> Tensor:
        return to_bytes(gaussian_blur(to_unit(images), [3, 3], [self.sigma, self.sigma]))
