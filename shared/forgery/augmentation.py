"""What training frames go through, in the workers that read them: presets, and fakes that are made of real frames.

Every image has its own numbers, keyed by (seed, epoch, index): so a result depends neither on the batch's size nor on the number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from matplotlib.colors import hsv_to_rgb, rgb_to_hsv
from torch import Tensor
from torch.utils.data import Dataset

from shared.forgery.blending import SELF_BLEND, jpeg, self_blend
from shared.forgery.painting import Region, between
from shared.forgery.sets import ForgerySet
from shared.seeding import generator

Augmentation = Literal["none", "flip", "vflip", "deepfakebench"]
"""Nothing, as MoE-FFD does; mirroring; mirroring both ways, as forgery_nas does; or what DeepfakeBench does."""

CHANCES = 16
"""Numbers in [0, 1) that say how an image is augmented."""

_KERNELS = (3, 5, 7)
_LEVELS = 255.0


class TrainingFrames(Dataset):
    """A training set as it is seen in one epoch after the other; batches are those of `ForgerySet`.

    An index i stands for frame i modulo N in epoch i // N (integer division), N being `len()` of this set: so that readers in other processes
    know the epoch.

    Args:
        frames: the set.
        augmentation: the preset.
        self_blended: adds a fake made of each real frame, anew in every epoch; their indices follow those of `frames`.
        seed: seed of everything.

    Raises:
        ValueError: if the preset is not known, or there are no real frames to blend.
    """

    def __init__(self, frames: ForgerySet, augmentation: Augmentation = "none", self_blended: bool = False, seed: int = 0) -> None:
        if augmentation not in get_args(Augmentation):
            raise ValueError(f"augmentation must be one of {', '.join(get_args(Augmentation))}, got {augmentation!r}")
        self.frames, self.augmentation, self.seed = frames, augmentation, seed
        real = (frames.labels == 0).nonzero()[:, 0]
        self.source = torch.cat([torch.arange(len(frames)), real]) if self_blended else torch.arange(len(frames))
        if self_blended and len(real) == 0:
            raise ValueError("self-blended fakes are made of real frames, and the training set has none")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[0] for name, value in self.__getitems__([index]).items()}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        places = torch.as_tensor(indices, dtype=torch.int64)
        index, epochs = places % len(self), (places // len(self)).tolist()
        batch = self.frames.__getitems__(self.source[index].tolist())
        blended = index >= len(self.frames)
        keys = list(zip(epochs, index.tolist(), strict=True))
        images = batch["image"].clone()
        if blended.any():
            chosen = [key for key, is_blended in zip(keys, blended.tolist(), strict=True) if is_blended]
            images[blended] = blend_centred(images[blended], drawn(SELF_BLEND + 5, self.seed, "self-blend", chosen))
        if self.augmentation != "none":
            chance = drawn(CHANCES, self.seed, "augmentation", keys)
            images = _CHANGES[self.augmentation](images, chance)
        video = batch["video"] + blended * len(self.frames.videos)  # a blend is no frame of the video it is made of
        return {"image": images, "label": torch.where(blended, 1, batch["label"]), "video": video, "index": index}


def drawn(count: int, seed: int, what: str, keys: Sequence[tuple[int, int]]) -> Tensor:
    """Draw (B, count) numbers in [0, 1) for each of B pairs of epoch and index."""
    return torch.stack([torch.rand(count, generator=generator(seed, what, epoch, index)) for epoch, index in keys])


def blend_centred(images: Tensor, chance: Tensor) -> Tensor:
    """Make self-blended fakes of face crops without landmarks: the masks are ellipses about the middle, as a crop with a margin of 1.3 has a face.

    Args:
        images: (B, 3, S, S) uint8.
        chance: (B, 19) in [0, 1).

    Returns:
        (B, 3, S, S) uint8.
    """
    size = images.shape[-1]
    place, rest = chance[:, :5], chance[:, 5:]
    centre, roll = size * between(-0.04, 0.04, place[:, :2]), between(-0.15, 0.15, place[:, 2])
    wide, high = size * between(0.24, 0.32, place[:, 3]), size * between(0.30, 0.38, place[:, 4])
    below = torch.stack([torch.zeros_like(high), high], 1)
    inner = Region(centre, torch.stack([wide, high], 1), roll)
    mouth = Region(centre + 0.6 * below, torch.stack([0.6 * wide, 0.35 * high], 1), roll)
    eyes = Region(centre - 0.35 * below, torch.stack([wide, 0.3 * high], 1), roll)
    return _bytes(_LEVELS * self_blend(images.float() / _LEVELS, [inner, mouth, eyes], rest, size / 48))


def flip(images: Tensor, chance: Tensor) -> Tensor:
    """Mirror (B, 3, H, W) images left to right where the first of (B, 16) numbers is below a half."""
    return torch.where((chance[:, 0] < 0.5)[:, None, None, None], images.flip(-1), images)


def vflip(images: Tensor, chance: Tensor) -> Tensor:
    """Mirror (B, 3, H, W) images left to right, and turn them upside down, where the first and the second of (B, 16) numbers are below a half."""
    images = flip(images, chance)
    return torch.where((chance[:, 1] < 0.5)[:, None, None, None], images.flip(-2), images)


def deepfakebench(images: Tensor, chance: Tensor) -> Tensor:
    """Augment as DeepfakeBench does: mirror, rotate, blur, change colours and compress, each with probability a half.

    Its isotropic resize changes nothing in square frames of the working size, and is left out.

    Args:
        images: (B, 3, S, S) uint8.
        chance: (B, 16) in [0, 1).

    Returns:
        (B, 3, S, S) uint8.
    """
    images = flip(images, chance)
    images = _where(chance[:, 1], images, lambda some, own: rotate(some, math.radians(10) * between(-1, 1, own[:, 2])), chance)
    images = _where(chance[:, 3], images, lambda some, own: blur(some, (own[:, 4] * len(_KERNELS)).long()), chance)
    images = _where(chance[:, 5], images, lambda some, own: change_colours(some, own[:, 6:14]), chance)
    return _where(chance[:, 14], images, lambda some, own: jpeg(some, 40 + (own[:, 15] * 61).long()), chance)


_CHANGES = {"flip": flip, "vflip": vflip, "deepfakebench": deepfakebench}


def _where(used: Tensor, images: Tensor, change: Callable[[Tensor, Tensor], Tensor], chance: Tensor) -> Tensor:
    """Change the images whose number in `used` is below a half, with their own rows of `chance`."""
    rows = (used < 0.5).nonzero()[:, 0]
    return images.index_copy(0, rows, change(images[rows], chance[rows])) if len(rows) else images


def rotate(images: Tensor, angles: Tensor) -> Tensor:
    """Turn (B, 3, S, S) uint8 images by (B,) radians about their middle, counter-clockwise as seen; what comes in from outside mirrors the border."""
    cosine, sine, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    theta = torch.stack([torch.stack([cosine, -sine, zero], 1), torch.stack([sine, cosine, zero], 1)], 1)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return _bytes(F.grid_sample(images.float(), grid, padding_mode="reflection", align_corners=False))


def blur(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter (B, 3, H, W) uint8 images by Gaussians of 3, 5 or 7 pixels, (B,) numbers 0 to 2; sigma is 0.15 k + 0.35, as OpenCV has it."""
    result = images.clone()
    for number in kernels.unique().tolist():
        width, chosen = _KERNELS[number], kernels == number
        place = torch.arange(width) - width // 2
        kernel = torch.exp(-(place**2) / (2 * (0.15 * width + 0.35) ** 2))
        kernel = (kernel / kernel.sum()).expand(3, 1, -1)
        padded = F.pad(images[chosen].float(), [width // 2] * 4, mode="reflect")
        result[chosen] = _bytes(F.conv2d(F.conv2d(padded, kernel[:, :, None, :], groups=3), kernel[:, :, :, None], groups=3))
    return result


def change_colours(images: Tensor, chance: Tensor) -> Tensor:
    """Apply to each image one of brightness with contrast (up to 0.1), noise along the principal colours (0.1), and hue, saturation and value.

    Args:
        images: (B, 3, H, W) uint8.
        chance: (B, 8) in [0, 1).

    Returns:
        (B, 3, H, W) uint8.
    """
    levels = images.float() / _LEVELS
    kinds = (chance[:, 0] * 3).long()
    result = torch.empty_like(levels)
    for kind, change in enumerate((brightness_contrast, fancy_pca, hue_saturation_value)):
        chosen = kinds == kind
        if chosen.any():
            result[chosen] = change(levels[chosen], chance[chosen, 1:4])
    return _bytes(_LEVELS * result)


def brightness_contrast(images: Tensor, chance: Tensor) -> Tensor:
    """Map (B, 3, H, W) in [0, 1] to (1 + a) x + b, a and b up to 0.1 to either side."""
    gain, offset = between(0.9, 1.1, chance[:, 0]), between(-0.1, 0.1, chance[:, 1])
    return images * gain[:, None, None, None] + offset[:, None, None, None]


def fancy_pca(images: Tensor, chance: Tensor) -> Tensor:
    """Add to (B, 3, H, W) in [0, 1] the principal axes of each image's colours, times eigenvalue and N(0, 0.1) (Krizhevsky et al. 2012)."""
    colours = images.flatten(2)
    centred = colours - colours.mean(2, keepdim=True)
    values, axes = torch.linalg.eigh(centred @ centred.transpose(1, 2) / (colours.shape[2] - 1))
    strength = 0.1 * torch.special.ndtri(chance.double().clamp(1e-6, 1 - 1e-6)).float()
    axes = axes * axes.sum(1, keepdim=True).sign()  # an eigenvector's sign is arbitrary
    return images + (axes @ (strength * values)[:, :, None])[:, :, :, None]


def hue_saturation_value(images: Tensor, chance: Tensor) -> Tensor:
    """Move hue by up to 20 of 180, saturation by up to 30 and value by up to 20 of 255, in (B, 3, H, W) in [0, 1]."""
    reach = torch.tensor([20 / 180, 30 / 255, 20 / 255])
    hsv = torch.from_numpy(rgb_to_hsv(images.permute(0, 2, 3, 1).numpy())) + (reach * between(-1, 1, chance))[:, None, None, :]
    hsv = torch.cat([hsv[..., :1] % 1, hsv[..., 1:].clamp(0, 1)], -1)
    return torch.from_numpy(hsv_to_rgb(hsv.numpy())).permute(0, 3, 1, 2)


def _bytes(levels: Tensor) -> Tensor:
    return levels.round().clamp(0, _LEVELS).byte()
