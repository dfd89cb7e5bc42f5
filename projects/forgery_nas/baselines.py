"""Hand-made networks to compare with, behind one face: MesoNet, and timm's by name."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shared.backbones.factory import build_backbone

MESONETS = ("meso4", "mesoinception4")


class Baseline(nn.Module):
    """A convolutional network that tells real (0) from fake (1) faces, (B, 3, H, W) uint8 or floats in [0, 1] -> (B, 2) logits.

    Args:
        mean: of the images that it works on, a number a channel.
        std: their standard deviation.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float] = (0.0, 0.0, 0.0), std: Sequence[float] = (1.0, 1.0, 1.0)) -> None:
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def pixels(self, images: Tensor) -> Tensor:
        """Normalise images."""
        return ((images / 255 if images.dtype == torch.uint8 else images).to(self.mean.dtype) - self.mean) / self.std

    def features(self, images: Tensor) -> Tensor:
        """Map images to the last convolution's (B, C, h, w)."""
        raise NotImplementedError

    def classify(self, features: Tensor) -> Tensor:
        """Map the last convolution's features to (B, 2) logits."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.features(images))


def _block(convolution: nn.Module, channels: int, pool: int) -> nn.Sequential:
    return nn.Sequential(convolution, nn.ReLU(inplace=True), nn.BatchNorm2d(channels), nn.MaxPool2d(pool))


def _convolution(in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation)


class InceptionBlock(nn.Module):
    """Four branches side by side, (B, I, H, W) -> (B, sum of widths, H, W): pointwise, and pointwise with 3 x 3 of dilation 1, 2 and 3 after it.

    Args:
        in_channels: I.
        widths: channels of the branches.
    """

    def __init__(self, in_channels: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([_convolution(in_channels, widths[0], 1)])
        for dilation, width in enumerate(widths[1:], start=1):
            pointwise, spatial = _convolution(in_channels, width, 1), _convolution(width, width, 3, dilation)
            self.branches.append(nn.Sequential(pointwise, nn.ReLU(inplace=True), spatial))

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([branch(features) for branch in self.branches], dim=1)


class MesoNet(Baseline):
    """Meso-4, or with inception MesoInception-4 (Afchar et al. 2018, section III): four convolutions, and a hidden layer of 16.

    At the published 256 x 256 pixels they have 27,977 and 28,615 parameters. The one logit z of being fake is given as (0, z).

    Args:
        size: side of the images in pixels, at least 32; they are reduced 32-fold.
        inception: whether the first two convolutions are `InceptionBlock`.

    Raises:
        ValueError: if the images are smaller.
    """

    def __init__(self, size: int = 256, inception: bool = False) -> None:
        super().__init__()
        if size < 32:
            raise ValueError(f"MesoNet reduces images 32-fold: take them of 32 pixels or more, not {size}")
        if inception:
            start = [_block(InceptionBlock(3, (1, 4, 4, 2)), 11, 2), _block(InceptionBlock(11, (2, 4, 4, 2)), 12, 2)]
        else:
            start = [_block(_convolution(3, 8, 3), 8, 2), _block(_convolution(8, 8, 5), 8, 2)]
        width = 12 if inception else 8
        self.convolutions = nn.Sequential(*start, _block(_convolution(width, 16, 5), 16, 2), _block(_convolution(16, 16, 5), 16, 4))
        hidden = nn.Linear(16 * (size // 32) ** 2, 16)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), hidden, nn.LeakyReLU(0.1), nn.Dropout(0.5), nn.Linear(16, 1))

    def features(self, images: Tensor) -> Tensor:
        return self.convolutions(self.pixels(images))

    def classify(self, features: Tensor) -> Tensor:
        logit = self.classifier(features)
        return torch.cat([torch.zeros_like(logit), logit], dim=1)


class TimmNetwork(Baseline):
    """A network of timm, which gets images in its own normalisation.

    Args:
        name: its name, such as legacy_xception, efficientnet_b0 or mobilenetv3_small_100.
        size: side of the images in pixels.
        weights: see `build_backbone`.

    Raises:
        ValueError: if it is not convolutional, or not for images of this size.
    """

    def __init__(self, name: str, size: int, weights: str | None = None) -> None:
        net = build_backbone(name, weights, num_classes=2).eval()
        try:
            with torch.no_grad():
                is_convolutional = net.forward_features(torch.zeros(1, 3, size, size)).ndim == 4  # type: ignore[operator]
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"{name} does not take images of {size} x {size} pixels: {error}") from error
        if not is_convolutional:
            raise ValueError(f"{name} is no convolutional network: choose one, such as efficientnet_b0")
        super().__init__(net.pretrained_cfg["mean"], net.pretrained_cfg["std"])  # type: ignore[arg-type,index]
        self.net = net.train()

    def features(self, images: Tensor) -> Tensor:
        return self.net.forward_features(self.pixels(images))  # type: ignore[operator]

    def classify(self, features: Tensor) -> Tensor:
        return self.net.forward_head(features)  # type: ignore[operator]


def build_baseline(name: str, size: int, weights: str | None = None) -> Baseline:
    """Build a network by name, with random weights from the global generator unless others are given.

    Args:
        name: meso4, mesoinception4, or timm's name of a convolutional network.
        size: side of the images in pixels.
        weights: of timm's networks, see `build_backbone`.

    Raises:
        ValueError: if there is no such network, or the size or the weights do not fit.
        FileNotFoundError: if there are no such weights.
    """
    if name not in MESONETS:
        return TimmNetwork(name, size, weights)
    if weights is not None:
        raise ValueError(f"{name} starts from random weights: leave model.weights out")
    return MesoNet(size, inception=name == "mesoinception4")
