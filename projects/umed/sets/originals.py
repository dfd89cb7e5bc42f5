"""One image on the integer grid of its file, so that what is published differs from the original by the perturbation alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

_LUMA = (19595, 38470, 7471)
"""Parts of red, green and blue in 65536 parts of grey, with which Pillow makes grey of colour (ITU-R BT.601)."""


@dataclass(frozen=True)
class Original:
    """An image and its mask as they lie in their files.

    Attributes:
        name: path of the image below its folder, with `/` and its original ending.
        levels: (C, H, W) int32, the integers of the file; C is 1 for grey and 3 for colour, whatever a network takes.
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

    def in_window(self, channels: int | None = None) -> Tensor:
        """Return the image as a network sees it, (channels, H, W) float32 in [0, 1]; levels outside of the window are clipped.

        Args:
            channels: 1 for the luma of colour, 3 for grey three times; None keeps the file's.
        """
        low, high = self.window
        return ((_with_channels(self.levels, channels or len(self.levels)).float() - low) / (high - low)).clamp(0, 1)

    def as_bytes(self, channels: int | None = None) -> Tensor:
        """Return the image in its window, rounded to (channels, H, W) uint8; see `in_window`."""
        return (self.in_window(channels) * 255).round().byte()

    def add(self, delta: Tensor) -> Tensor:
        """Add a perturbation on the grid of the file, round(level + delta (high - low)), clipped to the file's range.

        Args:
            delta: (C, H, W) float, in units of [0, 1] images. That of grey is added to each channel of colour, and the mean of three to grey.

        Returns:
            (C, H, W) int32 levels, with the file's channels.

        Raises:
            ValueError: if heights or widths differ.
        """
        if delta.shape[1:] != self.levels.shape[1:]:
            raise ValueError(f"{self.name} has the shape {tuple(self.levels.shape)}, its perturbation {tuple(delta.shape)}")
        if len(delta) > len(self.levels):
            delta = delta.mean(0, keepdim=True)
        low, high = self.window
        return (self.levels + delta.double().cpu() * (high - low)).round().clamp(0, 2**self.bits - 1).int()

    def levels_of(self, epsilon: float) -> float:
        """Return how many levels of the file a perturbation of `epsilon`, in units of [0, 1] images, is."""
        return epsilon * (self.window[1] - self.window[0])


def _with_channels(levels: Tensor, channels: int) -> Tensor:
    """Bring (C, H, W) int32 levels to 1 or 3 channels; of colour, which has 8 bits, the luma is what Pillow rounds it to."""
    if len(levels) == channels:
        return levels
    if channels == 3:
        return levels.expand(3, -1, -1)
    luma = (levels * levels.new_tensor(_LUMA)[:, None, None]).sum(0, keepdim=True, dtype=levels.dtype)
    return (luma + 32768) >> 16
