"""MobileNetV2 (Sandler et al. 2018) for small pictures, as the distillation benchmarks have it."""

from __future__ import annotations

from torch import Tensor, nn

from shared.backbones.resnets import initialise

HEAD_WIDTH = 1280


def mobilenet_v2_blocks(expansion: int, halving: int = 2) -> list[tuple[int, int, int, int]]:
    """List MobileNetV2's seven groups of blocks as (expansion, channels, blocks, stride of the first), see Table 2 of the paper.

    Args:
        expansion: T, how many times wider a block is inside; 6 in the paper.
        halving: stride of the second group, 2 in the paper and 1 for small pictures.
    """
    t = expansion
    return [(1, 16, 1, 1), (t, 24, 2, halving), (t, 32, 3, 2), (t, 64, 4, 2), (t, 96, 3, 1), (t, 160, 3, 2), (t, 320, 1, 1)]


class InvertedResidual(nn.Module):
    """Widening 1 x 1, depthwise 3 x 3 and narrowing 1 x 1 convolution, (B, C_in, H, W) -> (B, C_out, H / stride, W / stride), linear at its end.

    The shortcut is the identity, where shapes allow. The widening convolution is there even where it does not widen.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.has_shortcut = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            nn.Conv2d(inputs, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(inplace=True),
            nn.Conv2d(inner, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        inner = self.conv(features)
        return features + inner if self.has_shortcut else inner


class CifarMobileNetV2(nn.Module):
    """MobileNetV2(T, w), (B, C, H, W) -> (B, K) logits, with plain ReLUs and no dropout; 32 x 32 pictures end at 2 x 2 and are averaged.

    Only the first halving of the paper's beginning is kept, that of the stem. Parts: stem, blocks.0 to blocks.6 (a group each), head, fc.

    Args:
        width: w, factor on all channels but the last 1280, which only grow: with w above 1.
        expansion: T, how many times wider a block is inside.
        classes: K.
        channels: channels of the pictures.

    Raises:
        ValueError: if the factor leaves a layer without channels, or the expansion is not positive.
    """

    def __init__(self, width: float = 0.5, expansion: int = 6, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        if int(16 * width) < 1 or expansion < 1:
            raise ValueError(f"a MobileNetV2 needs a width of 1/16 or more and an expansion of 1 or more, got {width} and {expansion}")
        inputs, last = int(32 * width), int(HEAD_WIDTH * max(1.0, width))
        self.stem = _activated(channels, inputs, kernel=3, stride=2)
        groups = []
        for t, wide, number, stride in mobilenet_v2_blocks(expansion, halving=1):
            outputs = int(wide * width)
            first = InvertedResidual(inputs, outputs, stride, t)
            groups.append(nn.Sequential(first, *(InvertedResidual(outputs, outputs, 1, t) for _ in range(number - 1))))
            inputs = outputs
        self.blocks = nn.Sequential(*groups)
        self.head = _activated(inputs, last, kernel=1, stride=1)
        self.fc = nn.Linear(last, classes)
        initialise(self, linear_std=0.01)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.head(self.blocks(self.stem(images))).mean(dim=(2, 3)))


def _activated(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))
