"""VGG networks for small pictures with batch normalisation and one linear layer, as the distillation benchmarks have them."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from shared.backbones.resnets import initialise

WIDTHS = (64, 128, 256, 512, 512)
CONVOLUTIONS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""Convolutions of each of the five blocks by depth; 11 to 19 are A, B, D and E of Simonyan & Zisserman (2015)."""


class CifarVGG(nn.Module):
    """Five blocks of 3 x 3 convolutions, (B, C, H, W) -> (B, K) logits; averaged over the last map.

    Pictures are halved after each of the first three blocks; after the fourth only from 64 pixels on, so that 32 x 32 end at 4 x 4: the benchmarks'
    habit, not the paper's. Parts: blocks.0.0 (convolution), blocks.0.1 (normalisation), blocks.0.2 (ReLU), ..., fc.

    Args:
        depth: layers with weights; 11 and 13 count the two linear layers that are left out here, as the names do.
        classes: K.
        channels: channels of the pictures.
        size: shorter side of the pictures in pixels.

    Raises:
        ValueError: if there is no VGG of this depth.
    """

    def __init__(self, depth: int, classes: int = 10, channels: int = 3, size: int = 32) -> None:
        super().__init__()
        if depth not in CONVOLUTIONS:
            raise ValueError(f"there are VGGs of {', '.join(map(str, CONVOLUTIONS))} layers, not of {depth}")
        self.halvings = 3 if size < 64 else 4
        widths = pairwise((channels, *WIDTHS))
        self.blocks = nn.ModuleList(_block(inputs, outputs, number) for (inputs, outputs), number in zip(widths, CONVOLUTIONS[depth], strict=True))
        self.fc = nn.Linear(WIDTHS[-1], classes)
        initialise(self, linear_std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        features = images
        for number, block in enumerate(self.blocks, start=1):
            features = block(features)
            if number <= self.halvings:
                features = F.max_pool2d(features, 2)
        return self.fc(features.mean(dim=(2, 3)))


def _block(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before in (inputs, *[outputs] * (convolutions - 1)):
        layers += [nn.Conv2d(before, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
