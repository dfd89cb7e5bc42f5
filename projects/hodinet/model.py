"""HODINet: one encoder a modality, their high-order fusion at four stages, and the cascaded decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.hodinet.blocks import cbr, resize
from projects.hodinet.decoders import DecoderName, Head, build_decoder
from projects.hodinet.encoders import Encoder, build_encoder
from projects.hodinet.fusion import PLACEMENT, WIDTHS, FusionName, HighOrder, Interaction, build_fusions
from shared.layers import at_least_float32

Stream = Literal["rgb", "depth"]
"""Names of the modalities."""
STREAMS: tuple[Stream, ...] = get_args(Stream)
STRIDE = 32
"""Pixels of the picture between two positions of the deepest stage; also the least side of a picture."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the colours of ImageNet, in [0, 1]."""


class HODINet(nn.Module):
    """Marks what catches the eye, from a colour picture and its depth.

    Args:
        rgb: encoder of colour, see `build_encoder`.
        depth: encoder of depth.
        fusion: `high_order`, `add`, `concat` or `add_matched`, see `build_fusions`.
        placement: a letter a stage, S for fusion in space and C for fusion over channels.
        decoder: `cascaded` or `fpn`.
        aspp: whether DenseASPP follows the finest stage.
        widths: channels of the fused stages, even.
        streams: `rgb`, `depth` or both; with one of them, 1 x 1 convolutions take the place of the fusion.
        rgb_weights: local file of the colour encoder's ImageNet weights; None starts from random ones.
        depth_weights: of the depth encoder.
        frozen_norms: whether the encoders' batch norms keep the statistics of their weights.
        checkpointing: whether the encoders' activations are computed again in the backward pass.
        order: factors of a product in HOSF.
        pool: side of the squares that HOSF averages colour over; 1 is exact.
        chunk: places of depth whose relations HOSF holds at once; None chooses, and 0 stores all.
        signed: whether HOCF takes its means before the ReLU.
        literal: whether HOCF builds the outer product.

    Raises:
        ValueError: if an option does not fit.
        FileNotFoundError: if a weights file is not there.
    """

    def __init__(
        self,
        rgb: Encoder = "pvt_v2_b3",
        depth: Encoder = "resnet101",
        fusion: FusionName = "high_order",
        placement: str = PLACEMENT,
        decoder: DecoderName = "cascaded",
        aspp: bool = False,
        widths: Sequence[int] = WIDTHS,
        streams: Sequence[Stream] = STREAMS,
        rgb_weights: str | None = None,
        depth_weights: str | None = None,
        frozen_norms: bool = False,
        checkpointing: bool = False,
        order: int = 2,
        pool: int = 1,
        chunk: int | None = None,
        signed: bool = False,
        literal: bool = False,
    ) -> None:
        super().__init__()
        if not streams or set(streams) - set(STREAMS) or len(set(streams)) < len(streams):
            raise ValueError(f"the streams are rgb, depth or both, not {', '.join(streams) or 'none'}")
        self.decoder = build_decoder(decoder, widths, aspp)
        chosen = {"rgb": (rgb, rgb_weights), "depth": (depth, depth_weights)}
        encoders: dict[str, Any] = {name: build_encoder(*chosen[name], frozen_norms, checkpointing) for name in STREAMS if name in streams}
        self.encoders = nn.ModuleDict(encoders)
        channels = [encoder.channels for encoder in encoders.values()]
        if len(channels) == 2:
            self.fusions = build_fusions(channels[0], channels[1], fusion, placement, widths, order, pool, chunk, signed, literal)
        else:
            self.fusions = nn.ModuleList(cbr(size, width) for size, width in zip(channels[0], widths, strict=True))
        self.heads = nn.ModuleList(Head(width) for width in self.decoder.widths)
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor | None, depth: Tensor | None, sides: bool = True) -> list[Tensor]:
        """Return the logits of saliency, (B, 1, H, W) each, the finest first; the map is the first one's sigmoid.

        Sizes that are no multiples of 32 are reflected on the right and below, and what is computed there is cut away.

        Args:
            images: (B, 3, H, W), uint8 or floats from 0 to 255, sides of 32 pixels at least; None where the network has no such stream.
            depth: (B, 1, H, W) in [0, 1], 1 being near; None where the network has no such stream.
            sides: whether to return the maps of all four stages rather than the finest one only.

        Raises:
            ValueError: if an input is missing or of another shape, or depth is of whole numbers.
        """
        inputs = self._inputs(images, depth)
        height, width = next(iter(inputs.values())).shape[2:]
        padded = [height + -height % STRIDE, width + -width % STRIDE]
        decoded = self.decoder([fuse(*stage) for fuse, stage in zip(self.fusions, self._stages(inputs), strict=True)])
        scored = zip(self.heads, decoded if sides else decoded[:1], strict=False)
        return [resize(at_least_float32(head(features)), padded)[:, :, :height, :width] for head, features in scored]

    def interactions(self, images: Tensor, depth: Tensor) -> list[Interaction]:
        """Return what the high-order modules compute at each stage, the finest first; see `forward` for the inputs.

        Raises:
            ValueError: if the network has no high-order modules.
        """
        if not isinstance(self.fusions[0], HighOrder):
            raise ValueError("only the fusion high_order of both streams has gates")
        stages = self._stages(self._inputs(images, depth))
        return [cast(HighOrder, fusion).interact(*stage) for fusion, stage in zip(self.fusions, stages, strict=True)]

    def _inputs(self, images: Tensor | None, depth: Tensor | None) -> dict[str, Tensor]:
        given = {"rgb": images, "depth": depth}
        inputs: dict[str, Tensor] = {}
        for name in self.encoders:
            maps, channels = given[name], 3 if name == "rgb" else 1
            if maps is None or maps.ndim != 4 or maps.shape[1] != channels or min(maps.shape[2:]) < STRIDE:
                found = "none" if maps is None else tuple(maps.shape)
                raise ValueError(f"{name} must have the shape (B, {channels}, H, W) with sides of {STRIDE} pixels at least, not {found}")
            inputs[name] = maps
        if depth is not None and not depth.is_floating_point():
            raise ValueError(f"depth must be floats in [0, 1], near = 1, not {depth.dtype}: divide levels by their largest")
        first, *others = inputs.values()
        if any(other.shape[0] != first.shape[0] or other.shape[2:] != first.shape[2:] for other in others):
            shapes = " and ".join(str(tuple(maps.shape)) for maps in inputs.values())
            raise ValueError(f"colour and depth must be as many and of one size, not {shapes}")
        return inputs

    def _stages(self, inputs: dict[str, Tensor]) -> list[tuple[Tensor, ...]]:
        features = [self.encoders[name](self._prepare(name, maps)) for name, maps in inputs.items()]
        return list(zip(*features, strict=True))

    def _prepare(self, name: str, maps: Tensor) -> Tensor:
        mean, std = cast(Tensor, self.mean), cast(Tensor, self.std)
        pixels = ((maps - mean) / std if name == "rgb" else maps.expand(-1, 3, -1, -1)).to(mean.dtype)
        height, width = pixels.shape[2:]
        return F.pad(pixels, [0, -width % STRIDE, 0, -height % STRIDE], mode="reflect")
