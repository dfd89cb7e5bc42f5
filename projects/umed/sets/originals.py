"""One image on the integer grid of its file, so that what is published differs from the original by the perturbation alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Original:
    """An image and its mask as they lie in their files.

    Attributes:
        name: path of the image below its folder, with `/` and its original ending.
        levels: (C, H, W) int32, the integers of the file; C is 1 or 3.
        mask: (H, W) int64, 0 for the background and 1..K for the classes.
        bits: depth of the file, 8 or 16.
        window: the levels that 0 and 1 stand for: a perturbation of epsilon changes an image by epsilon (high - low) levels.
        scale: with `offset`, the physical value is offset + scale * level.
        offset: see `scale`.
    """

    name: str
    levels: Tensor
    mask: Tensor
    bits: int = 8
    window: tuple[float, float] = (0.0, 255.0)
    scale: float = 1.0
    offset: float = 0.0

    def in_window(self) -> Tensor:
        """Return the image as a network sees it, (C, H, W) float32 in [0, 1]; levels outside of the window are clipped."""
        low, high = self.window
        return ((self.levels.float() - low) / (high - low)).clamp(0, 1)

    def as_bytes(self) -> Tensor:
        """Return the image in its window, rounded to (C, H, W) uint8."""
        return (self.in_window() * 255).round().byte()

    def add(self, delta: Tensor) -> Tensor:
        """Add a perturbation on the grid of the file, round(level + delta (high - low)), clipped to the file's range.

        Args:
            delta: (C, H, W) float, in units of [0, 1] images.

        Returns:
            (C, H, W) int32 levels.

        Raises:
            ValueError: if the shapes differ.
        """
        if delta.shape != self.levels.shape:
            raise ValueError(f"{self.name} has the shape {tuple(self.levels.shape)}, its perturbation {tuple(delta.shape)}")
        low, high = self.window
        return (self.levels + delta.double().cpu() * (high - low)).round().clamp(0, 2**self.bits - 1).int()

    def levels_of(self, epsilon: float) -> float:
        """Return how many levels of the file a perturbation of `epsilon`, in units of [0, 1] images, is."""
        return epsilon * (self.window[1] - self.window[0])
