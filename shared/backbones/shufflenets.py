"""ShuffleNets for small pictures, as the distillation benchmarks have them: a 1 x 1 stem of stride 1 and no pooling after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.shufflenetv2 import channel_shuffle, shufflenet_v2_x1_0

STEM_WIDTH = 24
WIDTHS = (240, 480, 960)
"""Channels of the stages of a ShuffleNetV1 with three groups (Zhang et al. 2018, Table 1)."""
BLOCKS = (4, 8, 4)
GROUPS = 3


class ShuffleBlock(nn.Module):
    """Grouped 1 x 1, depthwise 3 x 3 and grouped 1 x 1 convolution, channels shuffled after the first (Zhang et al. 2018, Figure 2b and c).

    (B, C, H, W) -> (B, C, H, W), the input added; or with a stride of 2 -> (B, outputs, H / 2, W / 2), the last C channels being the averaged input.

    Args:
        inputs: C.
        outputs: channels of the result; equal to `inputs` where the stride is 1.
        stride: 1 or 2.
        groups: groups of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int = GROUPS) -> None:
        super().__init__()
        made = outputs - inputs if stride == 2 else outputs
        inner = made // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, made, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(made)
        self.stride, self.groups = stride, groups

    def forward(self, features: Tensor) -> Tensor:
        inner = channel_shuffle(torch.relu(self.bn1(self.conv1(features))), self.groups)
        inner = torch.relu(self.bn2(self.conv2(inner)))  # the paper has no ReLU here, the benchmarks have
        made = self.bn3(self.conv3(inner))
        if self.stride == 1:
            return torch.relu(made + features)
        return torch.relu(torch.cat([made, F.avg_pool2d(features, 3, stride=2, padding=1)], dim=1))


class CifarShuffleNetV1(nn.Module):
    """ShuffleNetV1 with three groups, (B, C, H, W) -> (B, K) logits; 32 x 32 pictures end at 4 x 4 and are averaged.

    Parts: conv1, bn1, relu, stage2, stage3, stage4, fc.

    Args:
        classes: K.
        channels: channels of the pictures.
    """

    def __init__(self, classes: int = 10, channels: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, STEM_WIDTH, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.relu = nn.ReLU()
        first = ShuffleBlock(STEM_WIDTH, WIDTHS[0], stride=2, groups=1)  # too few channels come in for groups, says the paper
        self.stage2 = nn.Sequential(first, *(ShuffleBlock(WIDTHS[0], WIDTHS[0], 1) for _ in range(BLOCKS[0] - 1)))
        self.stage3 = self._stage(WIDTHS[0], WIDTHS[1], BLOCKS[1])
        self.stage4 = self._stage(WIDTHS[1], WIDTHS[2], BLOCKS[2])
        self.fc = nn.Linear(WIDTHS[2], classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(ShuffleBlock(inputs, outputs, 2), *(ShuffleBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        features = self.relu(self.bn1(self.conv1(images)))
        return self.fc(self.stage4(self.stage3(self.stage2(features))).mean(dim=(2, 3)))


def cifar_shufflenet_v2(classes: int = 10, channels: int = 3) -> nn.Module:
    """Build ShuffleNetV2 of width 1 (Ma et al. 2018), torchvision's with another stem, (B, C, H, W) -> (B, K) logits.

    Parts: conv1, stage2, stage3, stage4, conv5, fc.
    """
    network = shufflenet_v2_x1_0(num_classes=classes)
    network.conv1[0] = nn.Conv2d(channels, STEM_WIDTH, 1, bias=False)
    network.maxpool = nn.Identity()
    return network
