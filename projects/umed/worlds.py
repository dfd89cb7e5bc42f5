"""Small sets that need no download: ellipses in speckle, each a function of (seed, split, index), and micrographs cut by region."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from projects.umed.sets import SegmentationSet
from shared.data.offline import Split
from shared.seeding import generator

_CHANCES = 16  # numbers in [0, 1) that each image is drawn from


def ellipses(split: Split, count: int, size: int = 32, seed: int = 0, channels: int = 1, classes: int = 1) -> SegmentationSet:
    """Draw one dark, soft-edged ellipse an image on a smooth ground under speckle.

    Lengths are those of 32 pixels a side and grow with `size`: the ground is noise filtered by a Gaussian of sigma 4 with a standard deviation of
    0.08 around 0.5, the half-axes of the ellipse are U(4, 8), its contrast U(0.08, 0.2), its edge some two pixels wide. Speckle multiplies pixels,
    as that of ultrasound does, by N(1, 0.03²), inside with one and a half times the deviation. The whole ellipse lies inside the image and covers
    about 11 % of it.

    Args:
        split: train, val and test hold different images.
        count: number of images.
        size: height and width in pixels, at least 16.
        seed: seed of everything.
        channels: 1 for grey, 3 for images whose ground and contrast have a hue.
        classes: 1, or 2: the ellipse has a brighter core of 0.5 to 0.65 of its axes, which is class 2.

    Returns:
        The set; each image is its own group.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split must be 'train', 'val' or 'test', got {split!r}")
    if channels not in (1, 3) or classes not in (1, 2) or size < 16 or count < 1:
        what = f"{channels} channels, {classes} classes, {size} pixels and {count} images"
        raise ValueError(f"ellipses have 1 or 3 channels, 1 or 2 classes, at least 16 pixels a side and 1 image, got {what}")
    kernel = _gaussian(size / 8)
    images, masks = torch.empty(count, channels, size, size, dtype=torch.uint8), torch.empty(count, size, size, dtype=torch.uint8)
    for indices in torch.arange(count).split(64):
        chance, coarse, fine = _draw(split, indices.tolist(), (channels, size, size), len(kernel) - 1, seed)
        radius, edge = _ellipse(chance, size)
        core = 0.5 + 0.15 * chance[:, 6, None, None]  # of the axes
        mask = (radius <= 1).byte() + (radius <= core).byte() * (classes == 2)
        hue = 0.6 + 0.4 * chance[:, 7 : 7 + channels] if channels == 3 else torch.ones(len(chance), 1)  # of the contrast
        ground = 0.5 + 0.08 * _smooth(coarse, kernel) + (0.15 * (chance[:, 10:13, None, None] - 0.5) if channels == 3 else 0)
        contrast = ((0.08 + 0.12 * chance[:, 5, None]) * hue)[:, :, None, None]
        shade = torch.sigmoid((1 - radius) / edge) - (1.6 * torch.sigmoid((core - radius) / edge) if classes == 2 else 0)
        speckle = 1 + 0.03 * (1 + 0.5 * (mask > 0).float())[:, None] * fine
        images[indices] = (((ground - contrast * shade[:, None]) * speckle).clamp(0, 1) * 255).round().byte()
        masks[indices] = mask
    return SegmentationSet(images, masks, [f"{split}-{index:05d}.png" for index in range(count)], classes=classes)


def _draw(split: str, indices: list[int], shape: tuple[int, int, int], border: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw numbers in [0, 1), (B, 16), and standard normal noise with a border for filtering and without one, for each image by its index."""
    channels, height, width = shape
    chance = torch.empty(len(indices), _CHANCES)
    coarse, fine = torch.empty(len(indices), channels, height + border, width + border), torch.empty(len(indices), *shape)
    for row, index in enumerate(indices):
        random = generator(seed, "umed ellipses", split, index)
        chance[row] = torch.rand(_CHANCES, generator=random)
        coarse[row] = torch.randn(coarse.shape[1:], generator=random)
        fine[row] = torch.randn(shape, generator=random)
    return chance, coarse, fine


def _ellipse(chance: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return each pixel's distance from the middle in units of the ellipse's radius, (B, H, W), and the width of its edge in the same unit."""
    unit = size / 32
    axes = unit * (4 + 4 * chance[:, :2])  # (B, 2) half-axes in pixels
    angle = math.pi * chance[:, 2]
    extents = torch.stack([_extent(axes, angle.sin(), angle.cos()), _extent(axes, angle.cos(), angle.sin())], 1)  # vertical, horizontal
    centres = extents + (size - 2 * extents) * chance[:, 3:5] - 0.5
    place = torch.arange(size)
    y, x = place[None, :, None] - centres[:, 0, None, None], place[None, None, :] - centres[:, 1, None, None]
    sine, cosine = angle.sin()[:, None, None], angle.cos()[:, None, None]
    along, across = (x * cosine + y * sine) / axes[:, 0, None, None], (y * cosine - x * sine) / axes[:, 1, None, None]
    return (along.square() + across.square()).sqrt(), unit / axes.prod(1).sqrt()[:, None, None]


def _extent(axes: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return ((axes[:, 0] * first).square() + (axes[:, 1] * second).square()).sqrt()


def _gaussian(sigma: float) -> Tensor:
    """Return a kernel whose square sums to 1, so that filtered white noise keeps its variance in each direction."""
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).float() / sigma).square() / 2)
    return kernel / kernel.square().sum().sqrt()


def _smooth(noise: Tensor, kernel: Tensor) -> Tensor:
    """Filter (B, C, H, W) noise in both directions without padding."""
    batch, channels, height, width = noise.shape
    rows = F.conv2d(noise.reshape(batch * channels, 1, height, width), kernel[None, None, :, None])
    both = F.conv2d(rows, kernel[None, None, None, :])
    return both.reshape(batch, channels, *both.shape[2:])


def micrographs(split: Split, size: int = 64, channels: int = 3) -> SegmentationSet:
    """Cut tiles from the two pictures that scikit-image installs with itself and that are large enough to be split by region.

    The retina (at half its resolution) is labelled with its vessels, the immunohistochemistry with its glands, both by Otsu's threshold: of how much
    darker the green channel is than its surroundings, and of the smoothed grey. No pixel is in two splits: train is cut from the left 55 % of each
    picture with tiles that overlap by half, val from the next 15 %, and test from the rest. Tiles with less than 2 % foreground are left out. The
    other pictures will not do: cell shows one cell, and human_mitosis and skin are not installed but downloaded.

    Args:
        split: train, val or test.
        size: height and width of the tiles in pixels, from 16 to 100.
        channels: 3, or 1 for grey.

    Returns:
        The set; the group of a tile is its picture and split.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if split not in ("train", "val", "test") or channels not in (1, 3) or not 16 <= size <= 100:
        raise ValueError(f"micrographs have a split train, val or test, 1 or 3 channels and 16 to 100 pixels a side, got {split}, {channels}, {size}")
    images, masks, names, groups = [], [], [], []
    for picture, (image, mask) in _labelled_pictures().items():
        left, right = (int(part * image.shape[2]) for part in _REGIONS[split])
        step = size // 2 if split == "train" else size
        for top in range(0, image.shape[1] - size + 1, step):
            for column in range(left, right - size + 1, step):
                tile = mask[top : top + size, column : column + size]
                if tile.float().mean() >= 0.02:
                    images.append(image[:, top : top + size, column : column + size])
                    masks.append(tile)
                    names.append(f"{picture}/{top:04d}-{column:04d}.png")
                    groups.append(f"{picture} {split}")
    found = torch.stack(images)
    grey = (found.float() * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True).round().byte()
    return SegmentationSet(found if channels == 3 else grey, torch.stack(masks), names, groups, classes=1)


_REGIONS = {"train": (0.0, 0.55), "val": (0.55, 0.7), "test": (0.7, 1.0)}


@cache
def _labelled_pictures() -> dict[str, tuple[Tensor, Tensor]]:
    """Read the pictures, (3, H, W) uint8, and label them, (H, W) bool."""
    from skimage import color, data, filters, measure, morphology

    tissue = data.immunohistochemistry()
    smooth = filters.gaussian(color.rgb2gray(tissue), 2)
    glands = smooth < filters.threshold_otsu(smooth)
    whole = data.retina()[:1410, :1410]
    retina = np.round(measure.block_reduce(whole, (2, 2, 1), np.mean)).astype(np.uint8)
    green = retina[..., 1].astype(np.float64)
    seen = morphology.erosion(green > filters.threshold_otsu(green) / 2, morphology.disk(8))  # without the dark frame
    darker = np.where(seen, filters.gaussian(green, 10) - filters.gaussian(green, 1), 0)
    vessels = darker > filters.threshold_otsu(darker[seen])
    pictures = {"immunohistochemistry": (tissue, glands), "retina": (retina, vessels)}
    return {name: (torch.from_numpy(image).permute(2, 0, 1).contiguous(), torch.from_numpy(mask)) for name, (image, mask) in pictures.items()}
