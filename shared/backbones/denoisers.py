"""Residual convolutional denoisers."""

from __future__ import annotations

from torch import Tensor, nn


class DnCNN(nn.Module):
    """Predicts the noise and takes it off, (B, C, H, W) noised -> (B, C, H, W) denoised (Zhang et al. 2017, DnCNN-S).

    A convolution and ReLU, `depth - 2` times convolution, batch normalisation and ReLU, a convolution; all 3 x 3, so sizes stay.

    Args:
        channels: channels of the images, C.
        width: channels inside.
        depth: convolutions.

    Raises:
        ValueError: if there are fewer than two convolutions.
    """

    def __init__(self, channels: int = 3, width: int = 64, depth: int = 17) -> None:
        super().__init__()
        if depth < 2:
            raise ValueError(f"a DnCNN has at least two convolutions, got depth {depth}")
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
        for _ in range(depth - 2):
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        self.noise = nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, noised: Tensor) -> Tensor:
        """Denoise images of any range."""
        denoised: Tensor = noised - self.noise(noised)
        return denoised
