"""Wide residual networks for small pictures (Zagoruyko & Komodakis 2016), without dropout."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shared.backbones.resnets import initialise

STEM_WIDTH = 16


class PreActivationBlock(nn.Module):
    """Twice normalisation, ReLU and 3 x 3 convolution, and a shortcut, (B, C_in, H, W) -> (B, C_out, H / stride, W / stride).

    The shortcut is the identity; where the width changes, a 1 x 1 convolution of the first ReLU's output.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        active = torch.relu(self.bn1(features))
        shortcut = features if self.shortcut is None else self.shortcut(active)
        return self.conv2(torch.relu(self.bn2(self.conv1(active)))) + shortcut


class WideResNet(nn.Module):
    """WRN-d-k: three stages of widths 16 k, 32 k and 64 k, (B, C, H, W) of any size -> (B, K) logits.

    A stage ends with a sum; the ReLU comes in the next one. Parts: conv1, layer1.0.bn1, ..., layer3, bn1, relu, fc.

    Args:
        depth: d, layers with weights on the longest path, 6 n + 4.
        factor: k, how many times wider than the narrowest.
        classes: K.
        channels: channels of the pictures.

    Raises:
        ValueError: if the depth is not 6 n + 4, or the factor is not positive.
    """

    def __init__(self, depth: int, factor: int, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        blocks, rest = divmod(depth - 4, 6)
        if rest or blocks < 1 or factor < 1:
            raise ValueError(
                f"a wide ResNet has 6 n + 4 layers (16, 22, 28, 40) and a factor of 1 or more, not {depth} layers and a factor of {factor}"
            )
        widths = [factor * width for width in (16, 32, 64)]
        self.conv1 = nn.Conv2d(channels, STEM_WIDTH, 3, padding=1, bias=False)
        self.layer1 = self._stage(STEM_WIDTH, widths[0], blocks, stride=1)
        self.layer2 = self._stage(widths[0], widths[1], blocks, stride=2)
        self.layer3 = self._stage(widths[1], widths[2], blocks, stride=2)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU()
        self.fc = nn.Linear(widths[2], classes)
        initialise(self)
        nn.init.zeros_(self.fc.bias)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        return nn.Sequential(PreActivationBlock(inputs, outputs, stride), *(PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        return self.fc(self.relu(self.bn1(features)).mean(dim=(2, 3)))
