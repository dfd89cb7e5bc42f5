"""Splits that divide no patient and no lesion, and near-duplicates that belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.seeding import generator

_SIDE, _KEPT = 32, 8  # pixels that an image is shrunk to, and frequencies of them in each direction


def split_groups(groups: Sequence[str], seed: int, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> tuple[list[int], list[int], list[int]]:
    """Divide images into train, val and test so that no group is in two of them.

    Args:
        groups: the group of each image.
        seed: seed of the choice; it depends on the names of the groups, not on their order.
        fractions: parts of the groups in train, val and test. A part that is not 0 gets at least one group.

    Returns:
        The indices of each, in order.

    Raises:
        ValueError: if there are fewer groups than parts.
    """
    names = sorted(set(groups))
    wanted = sum(fraction > 0 for fraction in fractions)
    if len(names) < wanted:
        what = f"{len(groups)} images of {len(names)} patients or lesions" if len(names) < len(groups) else f"{len(names)} images"
        raise ValueError(f"{what} cannot be split into {wanted} parts that share none: add images, or set data.source to a layout with splits")
    order = torch.randperm(len(names), generator=generator(seed, "umed split")).tolist()
    test = max(1, round(fractions[2] * len(names))) if fractions[2] > 0 else 0
    val = max(1, round(fractions[1] * len(names))) if fractions[1] > 0 else 0
    part = {names[number]: 2 if place < test else 1 if place < test + val else 0 for place, number in enumerate(order)}
    found: tuple[list[int], list[int], list[int]] = ([], [], [])
    for index, group in enumerate(groups):
        found[part[group]].append(index)
    return found


def choose_groups(groups: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Choose the images of a random part of the groups, at least one of them; a smaller fraction's are among a larger one's.

    Raises:
        ValueError: if `fraction` is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"data.fraction must lie above 0 and be at most 1, got {fraction}")
    names = sorted(set(groups))
    order = torch.randperm(len(names), generator=generator(seed, "umed fraction")).tolist()
    chosen = {names[number] for number in order[: max(1, round(fraction * len(names)))]}
    return [index for index, group in enumerate(groups) if group in chosen]


def perceptual_hash(image: Tensor) -> Tensor:
    """Hash an image so that re-encoding, resizing and brightening change few bits: the signs of its low frequencies around their median.

    Args:
        image: (C, H, W) in [0, 1].

    Returns:
        (63,) bool.
    """
    small = F.interpolate(image.mean(0)[None, None], size=(_SIDE, _SIDE), mode="bilinear", align_corners=False, antialias=True)[0, 0].double()
    place = torch.arange(_SIDE, dtype=torch.float64)
    basis = torch.cos(math.pi / _SIDE * (place + 0.5) * torch.arange(_KEPT, dtype=torch.float64)[:, None])  # (8, 32): the DCT-II
    frequencies = (basis @ small @ basis.T).flatten()[1:]  # without the mean
    return frequencies > frequencies.median()


def join_duplicates(hashes: Sequence[Tensor], groups: Sequence[str], tolerance: float = 0.1) -> list[str]:
    """Join the groups of images that look alike.

    Args:
        hashes: (D,) bool of each image.
        groups: the group of each image.
        tolerance: part of the bits in which near-duplicates may differ; those of unrelated images differ in half.

    Returns:
        The group of each image: the first name of those that were joined.
    """
    signs = torch.stack(list(hashes)).float() * 2 - 1  # (N, D)
    parent = {group: group for group in groups}

    def root(name: str) -> str:
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for first, rows in enumerate(signs.split(512)):
        distances = (1 - rows @ signs.T / signs.shape[1]) / 2  # (512, N), in parts of the bits
        for row, column in (distances <= tolerance).nonzero().tolist():
            one, other = sorted((root(groups[512 * first + row]), root(groups[column])))
            parent[other] = one
    return [root(group) for group in groups]
