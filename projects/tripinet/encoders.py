"""The encoders of the streams: four stages of features, at a common width."""

from __future__ import annotations

import itertools
from typing import Any, Literal, cast, get_args

from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

from projects.tripinet.blocks import Norm, cbr, check_norm, group_norms_
from projects.tripinet.forensics import FrontEnd
from shared.backbones.factory import build_backbone
from shared.checkpoints import load_tensors

Encoder = Literal["tiny", "small", "resnet18", "resnet50"]
"""Names of the encoders, see `build_encoder`."""
TINY_WIDTHS = (16, 24, 32, 48)


class TinyEncoder(nn.Module):
    """Four stages of two 3 x 3 convolutions, the first one of stride 2: 62 thousand parameters.

    Args:
        maps: channels of the input.
        norm: of its convolutions.

    Attributes:
        widths: channels of the stages.
        strides: pixels of the input between two of their positions.
    """

    widths, strides = TINY_WIDTHS, (2, 4, 8, 16)

    def __init__(self, maps: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        widths = itertools.pairwise((maps, *TINY_WIDTHS))
        self.stages = nn.ModuleList(nn.Sequential(cbr(3, before, after, norm, stride=2), cbr(3, after, after, norm)) for before, after in widths)

    def forward(self, maps: Tensor) -> list[Tensor]:
        features = [maps]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]


class ResNetEncoder(nn.Module):
    """The four stages of timm's ResNet, at strides 4, 8, 16 and 32.

    Args:
        name: `resnet18`, `resnet50`, or another network of timm with such stages.
        maps: channels of the input. With weights, each takes the mean of the three colours', scaled so that the sum over the channels is
            kept; for the picture itself, which `is_rgb` tells, they stay as they are.
        norm: see `Norm`.
        weights: a local file of ImageNet weights, see `build_backbone`; None starts from random ones.
        is_rgb: whether the input is the picture itself.

    Raises:
        ValueError: if the norms are to be frozen without weights, or the weights do not fit.
        FileNotFoundError: if the weights file is not there.
    """

    def __init__(self, name: str, maps: int = 3, norm: Norm = "batch", weights: str | None = None, is_rgb: bool = True) -> None:
        super().__init__()
        if norm == "frozen" and weights is None:
            raise ValueError("frozen norms keep the statistics of weights, but there are none: give weights, or choose the norm group")
        net = cast(Any, build_backbone(name, weights, features_only=True, out_indices=(1, 2, 3, 4), in_chans=maps if weights is None else 3))
        if weights is not None:
            _check_fit(net, name, weights)
        if weights is not None and not is_rgb:
            _widen_(net.conv1, maps)
        self.widths, self.strides = tuple(net.feature_info.channels()), tuple(net.feature_info.reduction())
        self.net = group_norms_(net) if norm == "group" else freeze_batch_norm_2d(net) if norm == "frozen" else net

    def forward(self, maps: Tensor) -> list[Tensor]:
        return self.net(maps)


def _check_fit(net: nn.Module, name: str, weights: str) -> None:
    """Refuse weights of another network, of which timm takes what has the right name, and leaves the rest random."""
    lacking = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")} - load_tensors(weights).keys()
    if lacking:
        raise ValueError(f"the weights in {weights} do not fit {name}: {len(lacking)} are missing, such as {min(lacking)}")


def _widen_(convolution: nn.Conv2d, maps: int) -> None:
    mean = convolution.weight.detach().mean(1, keepdim=True)
    convolution.weight = nn.Parameter(mean.repeat(1, maps, 1, 1) * (convolution.in_channels / maps))
    convolution.in_channels = maps


def build_encoder(name: str, maps: int = 3, norm: Norm = "batch", weights: str | None = None, is_rgb: bool = True) -> TinyEncoder | ResNetEncoder:
    """Build the encoder of a stream, (B, maps, H, W) -> four stages (B, C_i, H / s_i, W / s_i), the finest first.

    Args:
        name: `tiny` (strides 2 to 16), `small`, which is `resnet18`, or `resnet50` (strides 4 to 32).
        maps: channels of the input.
        norm: see `Norm`.
        weights: a local file of ImageNet weights; None starts from random ones.
        is_rgb: whether the input is the picture itself, see `ResNetEncoder`.

    Raises:
        ValueError: if there is no such encoder, it takes no weights, or an option does not fit.
        FileNotFoundError: if the weights file is not there.
    """
    check_norm(norm)
    if name not in get_args(Encoder):
        raise ValueError(f"no encoder {name!r}: choose among {', '.join(get_args(Encoder))}")
    if weights == "pretrained":
        raise ValueError("the encoders' weights come from a local file, never from the network: give the path of a .safetensors or .pth file")
    if name != "tiny":
        return ResNetEncoder("resnet18" if name == "small" else name, maps, norm, weights, is_rgb)
    if weights is not None or norm == "frozen":
        raise ValueError("the tiny encoder takes neither weights nor frozen norms, for nobody has trained it: choose resnet18 or resnet50")
    return TinyEncoder(maps, norm)


class StreamEncoder(nn.Module):
    """One stream: the front end, its encoder, and a 1 x 1 convolution to C channels at each stage.

    Args:
        front_end: turns pixels into maps.
        encoder: of as many maps.
        channels: C.
        norm: of the 1 x 1 convolutions.
    """

    def __init__(self, front_end: FrontEnd, encoder: TinyEncoder | ResNetEncoder, channels: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.front_end, self.encoder = front_end, encoder
        self.reductions = nn.ModuleList(cbr(1, width, channels, norm) for width in encoder.widths)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Map (B, 3, H, W) pixels from 0 to 255 to four stages (B, C, H / s_i, W / s_i), the finest first."""
        maps = self.front_end(pixels).to(next(self.encoder.parameters()).dtype)
        return [reduce(stage) for reduce, stage in zip(self.reductions, self.encoder(maps), strict=True)]
