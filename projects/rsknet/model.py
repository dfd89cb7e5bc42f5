"""RSKNet-MTSP, its light version, and the residual networks they are compared with, on log-mel features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from projects.rsknet.baselines import ECAPATDNN, XVector
from projects.rsknet.blocks import BasicBlock, Dilation, RSKBlock, convolution, frame_mask
from projects.rsknet.lowrank import LowRankLinear
from projects.rsknet.pooling import MTSP

BlockName = Literal["rsk", "fixed", "basic", "excited"]
"""Selective kernels; their branches with fixed weights; two plain convolutions; these with squeeze and excitation."""
LAYERS, WIDTHS = (3, 4, 6, 3), (32, 64, 128, 256)
DILATIONS: Sequence[Dilation] = ((1, 1), (1, 2))
RANK = 128


class RSKNet(nn.Module):
    """Maps utterances to speaker embeddings, (B, F, T) -> (B, E): a stem, stages of residual blocks, MTSP and a linear layer.

    Args:
        bins: F, mel bins.
        embedding: E.
        layers: blocks of each stage.
        widths: channels of each stage.
        block: see `BlockName`.
        dilations: (frequency, time) of each branch of a selective kernel.
        scales: stages that are pooled, from 1; null is all, which is MTSP, and the last alone is plain statistics pooling. Stages behind the last one
            of them are not built.
        averaged: see `MTSP`.
        attentive: see `MTSP`.
        normalised: see `MTSP`.
        separable: depthwise separable convolutions but for the stem.
        rank: of the embedding's matrix; null is a full one.
        reduction: rho of selective kernels.

    Raises:
        ValueError: if the sizes make no network.
    """

    def __init__(
        self,
        bins: int = 80,
        embedding: int = 256,
        layers: Sequence[int] = LAYERS,
        widths: Sequence[int] = WIDTHS,
        block: BlockName = "rsk",
        dilations: Sequence[Dilation] = DILATIONS,
        scales: Sequence[int] | None = None,
        averaged: bool = False,
        attentive: bool = False,
        normalised: bool = False,
        separable: bool = False,
        rank: int | None = None,
        reduction: int = 8,
    ) -> None:
        super().__init__()
        _check(layers, widths, block, scales)
        if scales is not None:  # later stages would learn nothing
            layers, widths = layers[: max(scales)], widths[: max(scales)]
        self.bins, self.embedding_size = bins, embedding
        self.scales = tuple(range(1, len(layers) + 1)) if scales is None else tuple(sorted(scales))
        self.stem = convolution(1, widths[0])
        stages = []
        for number, (count, (inputs, outputs)) in enumerate(zip(layers, pairwise((widths[0], *widths)), strict=True)):
            strides = [1 if number == 0 else 2] + [1] * (count - 1)
            sizes = [inputs] + [outputs] * count
            stages.append(
                nn.ModuleList(
                    BasicBlock(before, outputs, stride, block == "excited", separable)
                    if block in ("basic", "excited")
                    else RSKBlock(before, outputs, stride, dilations, block == "rsk", reduction, separable)
                    for before, stride in zip(sizes, strides, strict=False)
                )
            )
        self.stages = nn.ModuleList(stages)
        bands = [bins]
        while len(bands) < len(widths):
            bands.append(-(-bands[-1] // 2))
        pooled = [scale - 1 for scale in self.scales]
        self.pooling = MTSP([widths[one] for one in pooled], [bands[one] for one in pooled], averaged, attentive, normalised)
        size = self.pooling.size
        self.embed: nn.Module = nn.Linear(size, embedding) if rank is None else LowRankLinear(size, embedding, rank)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def statistics(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return what the embedding is a linear map of, (B, 2 sum C_l F_l), of (B, F, T) log-mel features with `lengths` (B,) valid frames."""
        mask = None if lengths is None else frame_mask(lengths, features.shape[2])
        frames = features if mask is None else features * mask
        frames = torch.relu(self.stem(frames[:, None]))
        frames = frames if mask is None else frames * mask[:, None]
        stages, masks = [], []
        for number, stage in enumerate(self.stages, 1):
            if mask is not None and number > 1:
                mask = mask[:, :, ::2]  # a step of two keeps frames 0, 2, ...: valid as long as the frame in its middle is
            for block in cast(nn.ModuleList, stage):
                frames = block(frames, None if mask is None else mask[:, None])
            if number in self.scales:
                stages.append(frames)
                masks.append(mask)
        return self.pooling(stages, masks)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map (B, F, T) log-mel features, of which `lengths` (B,) frames are valid, to (B, E) embeddings."""
        return self.embed(self.statistics(features, lengths))


def _check(layers: Sequence[int], widths: Sequence[int], block: str, scales: Sequence[int] | None) -> None:
    if not layers or len(layers) != len(widths) or min(*layers, *widths) < 1:
        raise ValueError(f"layers and widths hold one positive number a stage, not {list(layers)} and {list(widths)}")
    if block not in get_args(BlockName):
        raise ValueError(f"no block {block!r}: choose among {', '.join(get_args(BlockName))}")
    if scales is not None and not (scales and set(scales) <= set(range(1, len(layers) + 1)) and len(set(scales)) == len(scales)):
        raise ValueError(f"scales names stages from 1 to {len(layers)}, each once, not {list(scales)}")


TINY = {"layers": (1, 1, 1), "widths": (12, 24, 48), "dilations": ((1, 1), (1, 3)), "embedding": 64}
LIGHT = {"separable": True, "rank": RANK}
PLAIN = {"block": "basic", "scales": (4,)}
NETS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "rsknet_mtsp": (RSKNet, {}),
    "rsknet_mtsp_l": (RSKNet, LIGHT),
    "rsknet18_mtsp": (RSKNet, {"layers": (2, 2, 2, 2)}),
    "rsknet18_mtsp_l": (RSKNet, {"layers": (2, 2, 2, 2), **LIGHT}),
    "resnet34": (RSKNet, PLAIN),
    "xvector": (XVector, {}),
    "ecapa512": (ECAPATDNN, {"channels": 512}),
    "ecapa1024": (ECAPATDNN, {"channels": 1024}),
    "tiny_rsknet_mtsp": (RSKNet, TINY),
    "tiny_rsknet_mtsp_l": (RSKNet, TINY | LIGHT | {"rank": 32}),
    "tiny_resnet": (RSKNet, TINY | PLAIN | {"scales": (3,)}),
    "tiny_xvector": (XVector, {"widths": (128, 128, 128, 128, 256), "embedding": 64, "layers": 1}),
    "tiny_ecapa": (ECAPATDNN, {"channels": 64, "embedding": 64}),
}
"""Networks by name: their class, and how they differ from its defaults. Those that begin with tiny are for the drawn speakers."""


def build_net(name: str, bins: int, options: Mapping[str, Any] | None = None) -> nn.Module:
    """Build a network on log-mel features with random weights.

    Args:
        name: one of `NETS`.
        bins: F.
        options: of its class, besides those of the name.

    Raises:
        ValueError: if the name, an option or a value is not known.
    """
    if name not in NETS:
        raise ValueError(f"no network {name!r}: choose among {', '.join(NETS)}")
    kind, own = NETS[name]
    try:
        return kind(bins=bins, **(own | dict(options or {})))
    except TypeError as error:
        raise ValueError(f"the network {name} does not take these options: {error}") from error


def parameters(net: nn.Module) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in net.parameters())
