"""TriPINet: three encoders, their guided fusion at four stages, and the decoder that integrates them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.tripinet.blocks import Norm
from projects.tripinet.decoders import STAGES, DecoderName, build_decoder, resize
from projects.tripinet.encoders import Encoder, StreamEncoder, build_encoder
from projects.tripinet.forensics import Scaling, Stream, build_front_end
from projects.tripinet.fusion import GCMDA, Attention, FusionName, Sign, build_fusion
from shared.layers import at_least_float32

LEAST = 32
"""Least side of a picture, in pixels."""


class Outputs(NamedTuple):
    """What a network says of B pictures, all in logits.

    Attributes:
        sides: (B, 1, H, W) each, the finest first, which is the map of manipulated pixels.
        edge: (B, 1, H, W), the borders of manipulated regions; None without that head.
        image: (B,), whether the picture is manipulated; None without that head.
    """

    sides: list[Tensor]
    edge: Tensor | None = None
    image: Tensor | None = None


class ImageHead(nn.Module):
    """One logit a picture from its map, (B, 1, H, W) logits -> (B,).

    It is a linear layer on the mean probability and the generalised mean of a learnt exponent, 3 at first, which leans to the largest ones.
    """

    def __init__(self) -> None:
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor(3.0))
        self.linear = nn.Linear(2, 1)

    def forward(self, logits: Tensor) -> Tensor:
        probabilities = at_least_float32(logits).sigmoid().flatten(1).clamp_min(1e-6)  # the power's gradient is infinite at 0
        generalised = probabilities.pow(self.exponent).mean(1).pow(1 / self.exponent)
        return self.linear(torch.stack([generalised, probabilities.mean(1)], dim=1)).squeeze(1)


class TriPINet(nn.Module):
    """Locates manipulated pixels from what a picture shows and from traces that the eye does not see.

    Args:
        streams: front ends, see `build_front_end`, any of them and in any number; the first one is guided by the others.
        encoder: `tiny`, `small` (ResNet-18), `resnet18` or `resnet50`, one for each stream.
        channels: C, the width of the fused features.
        width: d, the width of the decoder.
        fusion: `gcmda`, `add`, `concat`, `gated` or `cbam`.
        decoder: `pise`, `fpn`, `concat`, `se_only` or `cascaded`.
        edge: whether there is a head for the borders of manipulated regions.
        image_head: whether there is a head for the picture as a whole.
        norm: `batch`, `group`, or `frozen`, see `Norm`.
        weights: file of the encoders' ImageNet weights, see `build_encoder`; None starts from random ones.
        alpha: share of the frequencies that the frequency streams remove, in [0, 1].
        scaling: of the frequency streams, `fixed` or `minmax`.
        pooled: largest side of the grid of keys of `gcmda`.
        symmetric: whether the picture guides the traces too, in `gcmda`.
        sign: of the channel attention of `gcmda`, `danet` or `plain`.

    Attributes:
        stride: pixels that the sides of a picture are padded to a multiple of.

    Raises:
        ValueError: if an option does not fit.
        FileNotFoundError: if the weights file is not there.
    """

    def __init__(
        self,
        streams: Sequence[Stream] = ("rgb", "srm", "dct_corner"),
        encoder: Encoder = "tiny",
        channels: int = 64,
        width: int = 64,
        fusion: FusionName = "gcmda",
        decoder: DecoderName = "pise",
        edge: bool = False,
        image_head: bool = False,
        norm: Norm = "batch",
        weights: str | None = None,
        alpha: float = 0.1,
        scaling: Scaling = "fixed",
        pooled: int = 16,
        symmetric: bool = False,
        sign: Sign = "danet",
    ) -> None:
        super().__init__()
        if not streams:
            raise ValueError("there is no stream: give at least one, such as rgb")
        self.streams = nn.ModuleList()
        for name in streams:
            front_end = build_front_end(name, alpha, scaling)
            body = build_encoder(encoder, front_end.maps, norm, weights, is_rgb=name == "rgb")
            self.streams.append(StreamEncoder(front_end, body, channels, norm))
        self.stride: int = body.strides[-1]
        self.fusions = nn.ModuleList(build_fusion(fusion, channels, len(streams), norm, pooled, symmetric, sign) for _ in range(STAGES))
        self.decoder = build_decoder(decoder, channels, width, norm)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in range(STAGES))
        self.edge_head = nn.Conv2d(width, 1, 1) if edge else None
        self.image_head = ImageHead() if image_head else None

    def forward(self, images: Tensor, sides: bool = True) -> Outputs:
        """Map (B, 3, H, W) images, uint8 or floats from 0 to 255 of any size from 32 x 32, to logits.

        Sizes that are no multiples of the stride are reflected on the right and below, and what is computed there is cut away.

        Args:
            images: the pictures.
            sides: whether to return the maps of all four stages rather than the finest one only.

        Raises:
            ValueError: if the images are of another shape.
        """
        decoded = self.decoder([fuse(stage) for fuse, stage in zip(self.fusions, self._stages(images), strict=True)])
        height, width = images.shape[2:]
        padded = [side + -side % self.stride for side in (height, width)]

        def enlarge(head: nn.Module, features: Tensor) -> Tensor:
            return resize(head(features), padded)[:, :, :height, :width]

        maps = [enlarge(head, features) for head, features in zip(self.heads, decoded if sides else decoded[:1], strict=False)]
        edge = None if self.edge_head is None else enlarge(self.edge_head, decoded[0])
        return Outputs(maps, edge, None if self.image_head is None else self.image_head(maps[0]))

    def _stages(self, images: Tensor) -> list[list[Tensor]]:
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < LEAST:
            raise ValueError(f"images must have the shape (B, 3, H, W) with sides of {LEAST} pixels at least, not {tuple(images.shape)}")
        height, width = images.shape[2:]
        pixels = images.to(at_least_float32(next(self.heads.parameters())).dtype)  # half precision does not hold the residuals of 256 grey levels
        padded = F.pad(pixels, [0, -width % self.stride, 0, -height % self.stride], mode="reflect")
        return [list(stage) for stage in zip(*(stream(padded) for stream in self.streams), strict=True)]

    def attention(self, images: Tensor) -> list[Attention]:
        """Return where the guide lets the first stream look at each stage, the finest first; see `forward` for the images.

        Raises:
            ValueError: if the fusion has no attention.
        """
        if not isinstance(self.fusions[0], GCMDA):
            raise ValueError("only the fusion gcmda has maps of attention")
        return [cast(GCMDA, fusion).attention(stage) for fusion, stage in zip(self.fusions, self._stages(images), strict=True)]
