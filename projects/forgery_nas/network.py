"""The evaluation network: discrete cells in a cascade of ever smaller and wider stages, with two heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.forgery_nas.genotype import CellGenes, Genotype
from projects.forgery_nas.operations import Builder, build_operation

Head = Literal["last", "pyramid"]
"""What is classified: the last cell's features, or the pyramid of all stages' (see `PyramidHead`)."""
PYRAMID_CHANNELS = 64
AUXILIARY_SIDE = 8
"""Smallest feature map that the auxiliary head takes, in pixels."""


class FactorizedReduce(nn.Module):
    """Halve the resolution by two pointwise convolutions on the even and the odd pixels, (B, I, H, W) -> (B, O, H / 2, W / 2), rounded up.

    Pixels are picked before the convolutions: with strides of their own, the backward pass of torch 2.15 on a CPU writes outside of its memory where
    channels are last and few.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        height, width = features.shape[2:]
        if height % 2 or width % 2:
            features = F.pad(features, [0, width % 2, 0, height % 2])
        return torch.cat([self.even(features[:, :, ::2, ::2]), self.odd(features[:, :, 1::2, 1::2])], dim=1)


class Preprocess(nn.Sequential):
    """Bring an earlier cell's output to a cell's channels: ReLU, convolution, norm, (B, I, H, W) -> (B, O, H', W').

    Args:
        in_channels: I.
        out_channels: O.
        halves: whether the resolution is halved, by `FactorizedReduce`; else the convolution is pointwise.
        affine: whether the norm has weights.
    """

    def __init__(self, in_channels: int, out_channels: int, halves: bool = False, affine: bool = True) -> None:
        convolution = FactorizedReduce(in_channels, out_channels) if halves else nn.Conv2d(in_channels, out_channels, 1, bias=False)
        super().__init__(nn.ReLU(), convolution, nn.BatchNorm2d(out_channels, affine=affine))


def drop_path(features: Tensor, probability: float) -> Tensor:
    """Zero whole examples of (B, ...) features with a probability in [0, 1), and scale the others so that the mean stays."""
    kept = features.new_empty(len(features), *[1] * (features.ndim - 1)).bernoulli_(1 - probability)
    return features * kept.div_(1 - probability)


class Cell(nn.Module):
    """A discrete cell of N nodes with C channels each, (B, I0, H, W) and (B, I1, H', W') -> (B, N C, H'', W'').

    Args:
        genes: for each node its two (operation, input).
        in_channels: I0 of c_{k-2} and I1 of c_{k-1}.
        channels: C.
        is_reduction: whether the edges from the inputs have stride 2.
        was_reduction: whether c_{k-2} has twice the resolution of c_{k-1}.
        registry: further operations, see `build_operation`.

    Raises:
        ValueError: if there is no such operation.
    """

    def __init__(
        self,
        genes: CellGenes,
        in_channels: tuple[int, int],
        channels: int,
        is_reduction: bool,
        was_reduction: bool,
        registry: Mapping[str, Builder] | None = None,
    ) -> None:
        super().__init__()
        self.preprocess0 = Preprocess(in_channels[0], channels, halves=was_reduction)
        self.preprocess1 = Preprocess(in_channels[1], channels)
        self.sources = tuple(source for node in genes for _, source in node)
        names = (operation for node in genes for operation, _ in node)
        self.operations = nn.ModuleList(
            build_operation(name, channels, 2 if is_reduction and source < 2 else 1, True, registry)
            for name, source in zip(names, self.sources, strict=True)
        )

    def forward(self, before_last: Tensor, last: Tensor, drop_probability: float = 0.0) -> Tensor:
        """Compute the nodes from c_{k-2} and c_{k-1}; in training every operation but identities is dropped with a probability."""
        states = [self.preprocess0(before_last), self.preprocess1(last)]
        results: list[Tensor] = []
        for operation, source in zip(self.operations, self.sources, strict=True):
            result = operation(states[source])
            if self.training and drop_probability > 0 and not isinstance(operation, nn.Identity):
                result = drop_path(result, drop_probability)
            results.append(result)
            if len(results) % 2 == 0:
                states.append(results[-2] + results[-1])
        return torch.cat(states[2:], dim=1)


class LastHead(nn.Module):
    """Global average pool and linear layer on the last stage; its auxiliary head is that of DARTS, on the same features.

    Args:
        widths: channels of the stages.
        classes: number K of classes.
        auxiliary: whether there is an auxiliary head.
    """

    def __init__(self, widths: Sequence[int], classes: int, auxiliary: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(widths[-1], classes)
        self.auxiliary = _auxiliary(widths[-1], classes) if auxiliary else None

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Map the stages' (B, C_i, H_i, W_i) to (B, K) logits."""
        return self.linear(stages[-1].mean((2, 3)))

    def forward_auxiliary(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return also the auxiliary head's logits, (1, B, K).

        Raises:
            ValueError: if the last stage's map is smaller than `AUXILIARY_SIDE` squared.
        """
        assert self.auxiliary is not None
        if min(stages[-1].shape[2:]) < AUXILIARY_SIDE:
            size = " x ".join(str(side) for side in stages[-1].shape[2:])
            raise ValueError(
                f"the auxiliary head needs at least {AUXILIARY_SIDE} x {AUXILIARY_SIDE} features, and the last cell has {size}: "
                "take larger images or fewer reductions, or set auxiliary to false"
            )
        return self(stages), self.auxiliary(stages[-1])[None]


def _auxiliary(channels: int, classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ReLU(),
        nn.AvgPool2d(5, stride=3),
        nn.Conv2d(channels, 128, 1, bias=False),
        nn.BatchNorm2d(128),
        nn.ReLU(inplace=True),
        nn.Conv2d(128, 768, 2, bias=False),
        nn.BatchNorm2d(768),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(768, classes),
    )


class PyramidHead(nn.Module):
    """Cascaded pyramid: T_last = F_last, T_i = two ReLU-BN-Conv3x3 of [F_i, up2(T_{i+1})], all pooled into one linear layer.

    F_i are the stages' features in 64 channels. The auxiliary heads are linear layers, one a level.

    Args:
        widths, classes, auxiliary: see `LastHead`.
    """

    def __init__(self, widths: Sequence[int], classes: int, auxiliary: bool) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, PYRAMID_CHANNELS, 1) for width in widths)
        self.merge = nn.ModuleList(nn.Sequential(*_block(2 * PYRAMID_CHANNELS), *_block(PYRAMID_CHANNELS)) for _ in widths[1:])
        self.linear = nn.Linear(len(widths) * PYRAMID_CHANNELS, classes)
        self.auxiliary = nn.ModuleList(nn.Linear(PYRAMID_CHANNELS, classes) for _ in widths) if auxiliary else None

    def _levels(self, stages: Sequence[Tensor]) -> list[Tensor]:
        """Return the pooled levels, the finest first, (B, 64) each."""
        features = [lateral(stage) for lateral, stage in zip(self.lateral, stages, strict=True)]
        levels = [features[-1]]
        for merge, finer in zip(reversed(self.merge), reversed(features[:-1]), strict=True):
            coarser = F.interpolate(levels[0], size=finer.shape[2:], mode="bilinear", align_corners=False)
            levels.insert(0, merge(torch.cat([finer, coarser], dim=1)))
        return [level.mean((2, 3)) for level in levels]

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Map the stages' (B, C_i, H_i, W_i) to (B, K) logits."""
        return self.linear(torch.cat(self._levels(stages), dim=1))

    def forward_auxiliary(self, stages: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return also the logits of the levels' own heads, (levels, B, K)."""
        assert self.auxiliary is not None
        levels = self._levels(stages)
        return self.linear(torch.cat(levels, dim=1)), torch.stack([head(level) for head, level in zip(self.auxiliary, levels, strict=True)])


def _block(channels: int) -> tuple[nn.Module, ...]:
    return nn.ReLU(), nn.BatchNorm2d(channels), nn.Conv2d(channels, PYRAMID_CHANNELS, 3, padding=1)


def default_reductions(layers: int) -> tuple[int, ...]:
    """Return the numbers of the reduction cells: every quarter's last, or every half's last in networks of fewer than 8 cells."""
    parts = 4 if layers >= 8 else 2
    return tuple(sorted({max(part * layers // parts, 1) - 1 for part in range(1, parts + 1)}))


class ForgeryNet(nn.Module):
    """A network of cells that tells real (0) from fake (1) faces; pixels are used as they are, from 0 to 1, without mean and deviation.

    Args:
        genotype: its two cells.
        channels: C of the first cell's nodes; it doubles at each reduction cell.
        layers: number L of cells.
        classes: number K of classes.
        drop_path: probability of dropping an operation in training, in [0, 1).
        auxiliary: whether there is an auxiliary head in training, for a loss of weight 0.4 in DARTS.
        head: `last` as in the authors' code, or `pyramid`.
        reductions: numbers of the reduction cells, from 0; None for `default_reductions`.
        registry: further operations, see `build_operation`.

    Attributes:
        drop_path: as above; schedules raise it during training.
        auxiliary_logits: (A, B, K) of the last batch in training, A = 1 with head `last`, the number of stages with `pyramid`; else None.

    Raises:
        ValueError: if an option does not fit, or there is no such operation.
    """

    def __init__(
        self,
        genotype: Genotype,
        channels: int = 36,
        layers: int = 12,
        classes: int = 2,
        drop_path: float = 0.2,
        auxiliary: bool = False,
        head: Head = "last",
        reductions: Sequence[int] | None = None,
        registry: Mapping[str, Builder] | None = None,
    ) -> None:
        super().__init__()
        if layers < 1 or channels < 1:
            raise ValueError(f"a network has at least one cell and one channel, not {layers} and {channels}")
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path is a probability in [0, 1), not {drop_path}")
        if head not in get_args(Head):
            raise ValueError(f"no head {head!r}: choose {' or '.join(get_args(Head))}")
        chosen = set(default_reductions(layers) if reductions is None else reductions)
        if not chosen <= set(range(layers)):
            raise ValueError(f"reductions are numbers of cells, 0 to {layers - 1}, not {sorted(chosen)}")
        self.drop_path = drop_path
        self.auxiliary_logits: Tensor | None = None
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * channels, 3, padding=1, bias=False), nn.BatchNorm2d(3 * channels))
        self.cells, widths = nn.ModuleList(), [3 * channels] * 2
        for number in range(layers):
            is_reduction = number in chosen
            channels *= 2 if is_reduction else 1
            genes = genotype.reduce if is_reduction else genotype.normal
            self.cells.append(Cell(genes, (widths[-2], widths[-1]), channels, is_reduction, number - 1 in chosen, registry))
            widths.append(len(genes) * channels)
        self.stage_ends = (layers - 1,) if head == "last" else tuple(sorted(chosen | {layers - 1}))
        build = LastHead if head == "last" else PyramidHead
        self.head = build([widths[2 + number] for number in self.stage_ends], classes, auxiliary)
        self.to(memory_format=torch.channels_last)  # a step on a CPU takes 0.6 of the time

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 3, H, W) images, uint8 or floats in [0, 1], to (B, K) logits.

        Raises:
            ValueError: if the images are of another shape, or too small for the auxiliary head in training.
        """
        stages = self.stages(images)
        self.auxiliary_logits = None
        if self.training and self.head.auxiliary is not None:
            logits, self.auxiliary_logits = self.head.forward_auxiliary(stages)
            return logits
        return self.head(stages)

    def stages(self, images: Tensor) -> list[Tensor]:
        """Return what the head gets, (B, C_i, H_i, W_i) each: the outputs of the last cell and, for the pyramid, of the reduction cells before it."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must have the shape (B, 3, H, W), not {tuple(images.shape)}")
        weight = self.head.linear.weight
        pixels = images.to(weight.dtype)
        before_last = last = self.stem(pixels / 255 if images.dtype == torch.uint8 else pixels)
        outputs = []
        for number, cell in enumerate(self.cells):
            before_last, last = last, cell(before_last, last, self.drop_path)
            if number in self.stage_ends:
                outputs.append(last)
        return outputs

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "auxiliary_logits": None}  # a copy does not take the last batch's graph along
