"""From four fused stages to four maps, deep to shallow: cascaded reconstruction, a feature pyramid, and the heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from projects.hodinet.blocks import STAGES, cbr, resize

DecoderName = Literal["cascaded", "fpn"]
"""Names of the decoders, see `build_decoder`."""
DILATIONS = (2, 4, 8, 16)
HEAD_WIDTH = 16


class Decoder(nn.Module):
    """Decodes the fused stages, four of (B, C_i, h_i, w_i) -> four T_i of (B, c_i, h_i, w_i), the finest first.

    Args:
        widths: the c_i.

    Attributes:
        aspp: applied to T_1, if not None.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.aspp: nn.Module | None = None

    def step(self, number: int, fused: Tensor, deeper: Tensor | None) -> Tensor:
        """Return T_i from F_i and the next deeper T, None at the deepest stage."""
        raise NotImplementedError

    def forward(self, fused: Sequence[Tensor]) -> list[Tensor]:
        decoded: list[Tensor] = []
        for number in reversed(range(STAGES)):
            decoded.insert(0, self.step(number, fused[number], decoded[0] if decoded else None))
        if self.aspp is not None:
            decoded[0] = self.aspp(decoded[0])
        return decoded


class Cascaded(Decoder):
    """T_i = CB1(C_i -> C_i / 2) of CB1(-> C_i) of cat(F_i, up T_{i+1}); both CB1 of the deepest stage halve and keep the width.

    Args:
        widths: the C_i, even.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__([width // 2 for width in widths])
        inputs = [width + below for width, below in zip(widths, self.widths[1:], strict=False)]
        stages = [nn.Sequential(cbr(size, width), cbr(width, width // 2)) for size, width in zip(inputs, widths, strict=False)]
        stages.append(nn.Sequential(cbr(widths[-1], self.widths[-1]), cbr(self.widths[-1], self.widths[-1])))
        self.stages = nn.ModuleList(stages)

    def step(self, number: int, fused: Tensor, deeper: Tensor | None) -> Tensor:
        joined = fused if deeper is None else torch.cat([fused, resize(deeper, fused.shape[2:])], dim=1)
        return self.stages[number](joined)


class FPN(Decoder):
    """T_i = CB3(CB1(F_i) + up T_{i+1}), all of the width C_1, as a feature pyramid.

    Args:
        widths: the C_i.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__([widths[0]] * len(widths))
        self.lateral = nn.ModuleList(cbr(width, widths[0]) for width in widths)
        self.merge = nn.ModuleList(cbr(widths[0], widths[0], 3) for _ in widths)

    def step(self, number: int, fused: Tensor, deeper: Tensor | None) -> Tensor:
        lateral = self.lateral[number](fused)
        return self.merge[number](lateral if deeper is None else lateral + resize(deeper, lateral.shape[2:]))


class DenseASPP(nn.Module):
    """Dilated convolutions that each see all earlier ones, (B, C, h, w) -> (B, C, h, w) (Yang et al. 2018).

    The dilations are 2, 4, 8 and 16; each adds C / 4 channels, at least one, by CB1(-> C) and a dilated CB3, and CB1 makes C of all.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        growth = max(1, channels // 4)
        inputs = [channels + growth * number for number in range(len(DILATIONS) + 1)]
        self.branches = nn.ModuleList(
            nn.Sequential(cbr(size, channels), cbr(channels, growth, 3, dilation)) for size, dilation in zip(inputs, DILATIONS, strict=False)
        )
        self.merge = cbr(inputs[-1], channels)

    def forward(self, features: Tensor) -> Tensor:
        for branch in self.branches:
            features = torch.cat([features, branch(features)], dim=1)
        return self.merge(features)


class Head(nn.Module):
    """Logits of saliency, (B, C, h, w) -> (B, 1, h, w): 3 x 3 convolution to 16 channels, norm, ReLU, 1 x 1 convolution.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(cbr(channels, HEAD_WIDTH, 3), nn.Conv2d(HEAD_WIDTH, 1, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.layers(features)


def build_decoder(name: str, widths: Sequence[int], aspp: bool = False) -> Decoder:
    """Build a decoder of the fused stages.

    Args:
        name: `cascaded` or `fpn`.
        widths: C of the stages, the finest first.
        aspp: whether T_1 passes through `DenseASPP`.

    Raises:
        ValueError: if there is no such decoder, or there are not four widths, or they are odd.
    """
    if name not in get_args(DecoderName):
        raise ValueError(f"no decoder {name!r}: choose among {', '.join(get_args(DecoderName))}")
    if len(widths) != STAGES or any(width < 2 or width % 2 for width in widths):
        raise ValueError(f"the {STAGES} stages have even widths, not {tuple(widths)}")
    decoder: Decoder = Cascaded(widths) if name == "cascaded" else FPN(widths)
    decoder.aspp = DenseASPP(decoder.widths[0]) if aspp else None
    return decoder
