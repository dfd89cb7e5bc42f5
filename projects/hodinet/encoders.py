"""The encoders of the two modalities: a transformer and a CNN, four stages of features each."""

from __future__ import annotations

import itertools
from typing import Any, Literal, cast, get_args

from timm.layers import freeze_batch_norm_2d
from timm.models.pvt_v2 import PyramidVisionTransformerV2
from torch import Tensor, nn

from projects.hodinet.blocks import STAGES
from shared.backbones.factory import build_backbone
from shared.backbones.resnets import BasicBlock

Encoder = Literal["pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "pvt_v2_b3", "resnet50", "resnet101", "tiny_transformer", "tiny_cnn"]
"""Names of the encoders, see `build_encoder`."""
TINY_WIDTHS = (16, 32, 48, 64)
Channels = tuple[int, int, int, int]


class TimmEncoder(nn.Module):
    """The four stages of a network of timm without its classifier, (B, 3, H, W) -> four maps (B, C_i, H / s_i, W / s_i), s = 4, 8, 16, 32.

    A stage of PVTv2 ends with its LayerNorm, one of a ResNet with its ReLU.

    Args:
        net: a network with intermediate features, the last four of which are the stages.

    Attributes:
        channels: the C_i.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        network = cast(Any, net)
        network.reset_classifier(0)
        self.channels = cast(Channels, tuple(stage["num_chs"] for stage in network.feature_info[-STAGES:]))
        self.net = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.net.forward_intermediates(images, indices=STAGES, intermediates_only=True)


class TinyCNN(nn.Module):
    """A ResNet of one basic block a stage, see `TimmEncoder`; its widths are 16, 32, 48 and 64."""

    channels = TINY_WIDTHS

    def __init__(self) -> None:
        super().__init__()
        stem = nn.Conv2d(3, TINY_WIDTHS[0], 3, stride=2, padding=1, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(TINY_WIDTHS[0]), nn.ReLU(inplace=True), nn.MaxPool2d(3, stride=2, padding=1))
        widths = itertools.pairwise((TINY_WIDTHS[0], *TINY_WIDTHS))
        self.stages = nn.ModuleList(BasicBlock(before, after, 1 if number == 0 else 2) for number, (before, after) in enumerate(widths))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.stem(images)]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


def tiny_transformer() -> TimmEncoder:
    """Build a PVTv2 of one block a stage and widths 16, 32, 48 and 64, with heads of 16 features and MLPs of twice the width."""
    depths, heads, reductions, ratios = (1,) * STAGES, (1, 2, 3, 4), (8, 4, 2, 1), (2.0,) * STAGES
    return TimmEncoder(PyramidVisionTransformerV2(depths=depths, embed_dims=TINY_WIDTHS, num_heads=heads, sr_ratios=reductions, mlp_ratios=ratios))


def build_encoder(name: str, weights: str | None = None, frozen_norms: bool = False, checkpointing: bool = False) -> TimmEncoder | TinyCNN:
    """Build an encoder, (B, 3, H, W) -> four maps (B, C_i, H / s_i, W / s_i) at strides 4, 8, 16 and 32, rounded up, the finest first.

    Args:
        name: `pvt_v2_b0` to `pvt_v2_b3`, `resnet50`, `resnet101`, `tiny_transformer` or `tiny_cnn`.
        weights: a local file of the whole ImageNet network, in the names of timm, torchvision or PVT's authors; None starts from random weights.
        frozen_norms: whether batch norms keep the statistics, scales and shifts of the weights, for batches of fewer than 4.
        checkpointing: whether the blocks' activations are computed again in the backward pass rather than stored.

    Returns:
        The encoder; its `channels` are the C_i.

    Raises:
        ValueError: if there is no such encoder, a key or shape of the file does not fit, or a tiny encoder is given an option of the large ones.
        FileNotFoundError: if the weights file is not there.
    """
    if name not in get_args(Encoder):
        raise ValueError(f"no encoder {name!r}: choose among {', '.join(get_args(Encoder))}")
    if name.startswith("tiny"):
        if weights is not None or frozen_norms or checkpointing:
            raise ValueError(f"{name} takes no weights, frozen norms or checkpointing: choose pvt_v2_b0 or resnet50")
        return TinyCNN() if name == "tiny_cnn" else tiny_transformer()
    if weights == "pretrained":
        raise ValueError("the encoders' weights come from a local file, never from the network: give the path of a .safetensors or .pth file")
    if frozen_norms and weights is None:
        raise ValueError("frozen norms keep the statistics of weights, but there are none: give weights")
    net = build_backbone(name, weights)  # with its classifier, for then every key of the file has to fit
    cast(Any, net).set_grad_checkpointing(checkpointing)
    return TimmEncoder(freeze_batch_norm_2d(net) if frozen_norms else net)
