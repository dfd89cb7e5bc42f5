"""Random and central crops: of single image files as ImageNet networks are trained, and of whole batches as CIFAR networks are."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2


def random_crops(size: int) -> v2.Transform:
    """Random resized crops, half of them mirrored, as ImageNet networks are trained; from torch's global generator, which checkpoints keep."""
    return v2.Compose([v2.RandomResizedCrop(size, antialias=True), v2.RandomHorizontalFlip(), v2.Lambda(on_grid)])


def centre_crop(size: int) -> v2.Transform:
    """Resize the shorter side to 8/7 of `size` (256 for 224) and cut out the centre."""
    return v2.Compose([v2.Resize(size * 8 // 7, antialias=True), v2.CenterCrop(size), v2.Lambda(on_grid)])


def on_grid(image: Tensor) -> Tensor:
    """Round to multiples of 1/255 in [0, 1], as files of 8 bits have them; bytes stay as they are."""
    return image if image.dtype == torch.uint8 else (image * 255).round().clamp(0, 255) / 255


def draw_shifts(count: int, padding: int, generator: torch.Generator) -> Tensor:
    """Draw how far images are moved and whether they are mirrored, (N, 3) int64: rows and columns in [0, 2 padding], and 0 or 1."""
    device = generator.device
    moves = torch.randint(2 * padding + 1, (count, 2), generator=generator, device=device)
    return torch.cat([moves, torch.randint(2, (count, 1), generator=generator, device=device)], dim=1)


def crop_and_flip(images: Tensor, shifts: Tensor, padding: int) -> Tensor:
    """Pad images by black pixels, cut them out anew and mirror some, as is usual for CIFAR.

    Args:
        images: (B, C, H, W), bytes or floats.
        shifts: (B, 3) from `draw_shifts`.
        padding: black pixels on every side.

    Returns:
        (B, C, H, W).
    """
    height, width = images.shape[2:]
    padded = F.pad(images, [padding] * 4)
    rows = shifts[:, 0, None] + torch.arange(height, device=images.device)  # (B, H)
    across = torch.arange(width, device=images.device)
    columns = shifts[:, 1, None] + torch.where(shifts[:, 2, None].bool(), width - 1 - across, across)  # (B, W)
    number = torch.arange(len(images), device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
