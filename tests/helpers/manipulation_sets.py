"""Miniatures of sets of manipulated pictures, no two of which look alike."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SHAPE = (40, 50)


def save_picture(path: Path, number: int, shape: tuple[int, int] = SHAPE) -> None:
    """Draw a picture that is a function of its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(number).integers(0, 256, (5, 6, 3), np.uint8)
    Image.fromarray(coarse).resize(shape[::-1]).save(path)


def save_mask(path: Path, shape: tuple[int, int] = SHAPE) -> None:
    """Draw a mask that marks the middle half of each side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = shape
    pixels = np.zeros(shape, np.uint8)
    pixels[height // 4 : -(height // 4), width // 4 : -(width // 4)] = 255
    Image.fromarray(pixels).save(path)


def write_folder(root: Path, first: int, count: int, authentic: int = 0, shape: tuple[int, int] = SHAPE) -> None:
    """Write `Tp` and `Gt`, and authentic pictures into `Au`."""
    for number in range(first, first + count):
        save_picture(root / "Tp" / f"{number}.png", number, shape)
        save_mask(root / "Gt" / f"{number}_gt.png", shape)
    for number in range(first + count, first + count + authentic):
        save_picture(root / "Au" / f"{number}.png", number, shape)


def write_casia_v2(root: Path, count: int = 8) -> None:
    """Write as many manipulated pictures, each of a source of its own, and as many authentic ones."""
    for number in range(count):
        source = f"ani{number:05d}"
        stem = f"Tp_S_NNN_S_N_{source}_{source}_{number:05d}"
        save_picture(root / "Tp" / f"{stem}.jpg", number)
        save_mask(root / "CASIA 2 Groundtruth" / f"{stem}_gt.png")
        save_picture(root / "Au" / f"Au_ani_{number:05d}.jpg", 100 + number)


def write_casia_v1(root: Path) -> None:
    """Write a spliced picture, a copy-moved one and an authentic one."""
    for part, stem in (("Sp", "Sp_D_CNN_A_art0024_ani0032_0268"), ("CM", "Sp_S_CNN_A_nat0013_nat0013_0100")):
        save_picture(root / "Tp" / part / f"{stem}.jpg", 50 + len(part + stem))
        save_mask(root / "groundtruth" / part / f"{stem}_gt.png")
    save_picture(root / "Au" / "Au_ani_0099.jpg", 60)


def write_coverage(root: Path, count: int = 1) -> None:
    """Write scenes, each of them as it was and copy-moved."""
    for number in range(1, count + 1):
        save_picture(root / "image" / f"{number}.tif", 70 + number)
        save_picture(root / "image" / f"{number}t.tif", 80 + number)
        save_mask(root / "mask" / f"{number}forged.tif")
