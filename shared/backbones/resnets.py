"""Residual networks for small pictures (He et al. 2016, section 4.2), with 1 x 1 convolutions as shortcuts where the width changes."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WIDTHS = (16, 16, 32, 64)
"""Channels of the stem and of the three stages."""


def initialise(network: nn.Module, linear_std: float | None = None) -> None:
    """Draw the weights of all convolutions from N(0, 2 / (k^2 C_out)), k the kernel's side, their biases being zero (He et al. 2015, by fan-out).

    Args:
        network: what to initialise in place, from the global generator.
        linear_std: standard deviation of the weights of linear layers, whose biases become zero; None leaves these layers as they are.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, 0, math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, 0, linear_std)
        else:
            continue
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut, (B, C_in, H, W) -> (B, C_out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor) -> Tensor:
        shortcut = features if self.downsample is None else self.downsample(features)
        inner = torch.relu(self.bn1(self.conv1(features)))
        return torch.relu(self.bn2(self.conv2(inner)) + shortcut)


class CifarResNet(nn.Module):
    """ResNet-20, -32, -44, -56 or -110: three stages of widths 16, 32 and 64, (B, C, H, W) of any size -> (B, K) logits.

    The names of its parts are torchvision's: conv1, bn1, relu, layer1.0.conv1, ..., layer2.0.downsample.0, ..., fc.

    Args:
        depth: layers with weights, 6 n + 2.
        classes: K.
        channels: channels of the pictures.
        widths: channels of the stem and of the three stages; the "x4" networks of the distillation benchmarks have (32, 64, 128, 256).

    Raises:
        ValueError: if the depth is not 6 n + 2.
    """

    def __init__(self, depth: int, classes: int = 10, channels: int = 3, widths: tuple[int, int, int, int] = WIDTHS) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f"a ResNet for small pictures has 6 n + 2 layers (20, 32, 44, 56, 110), not {depth}")
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.layer1 = self._stage(widths[0], widths[1], blocks, stride=1)
        self.layer2 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.layer3 = self._stage(widths[2], widths[3], blocks, stride=2)
        self.fc = nn.Linear(widths[3], classes)
        initialise(self)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.layer3(self.layer2(self.layer1(features)))
        return self.fc(features.mean(dim=(2, 3)))
