"""From four fused stages to one map, deep to shallow: progressive integration with squeeze and excitation, and its alternatives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.tripinet.blocks import Norm, cbr

DecoderName = Literal["pise", "fpn", "concat", "se_only", "cascaded"]
"""Names of the decoders, see `build_decoder`."""
STAGES = 4


def resize(features: Tensor, size: Sequence[int]) -> Tensor:
    """Return (B, C, H, W) features at another size, bilinearly, the corners of the pixels aligned."""
    return F.interpolate(features, size=tuple(size), mode="bilinear", align_corners=False)


def mean_of_resized(features: Tensor, size: Sequence[int]) -> Tensor:
    """Return the means of `resize(features, size)`, (B, C, h, w) -> (B, C); where sides grow by whole factors, they are those of the features."""
    is_whole = all(new % old == 0 for new, old in zip(size, features.shape[2:], strict=True))
    return (features if is_whole else resize(features, size)).mean((2, 3))


class SqueezeExcitation(nn.Module):
    """Z w + Z with channel weights w = sigmoid(W2 relu(W1 mean(Z))), (B, C, H, W) -> (B, C, H, W); C / 16 features, at least 8, lie between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(8, channels // 16)
        self.weigh = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, channels), nn.Sigmoid())

    def factors(self, means: Tensor) -> Tensor:
        """Return 1 + w of the channels' means, (B, C) -> (B, C, 1, 1)."""
        return 1 + self.weigh(means)[:, :, None, None]

    def forward(self, features: Tensor) -> Tensor:
        return features * self.factors(features.mean((2, 3)))


class Decoder(nn.Module):
    """Integrates the stages, four of (B, C, h_i, w_i) -> four of (B, d, h_i, w_i), the finest first.

    Args:
        channels: C.
        width: d.
        norm: of its convolutions.
    """

    def __init__(self, channels: int, width: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.lateral = nn.ModuleList(cbr(1, channels, width, norm) for _ in range(STAGES))

    def forward(self, stages: Sequence[Tensor]) -> list[Tensor]:
        decoded: list[Tensor] = []
        for number in reversed(range(STAGES)):
            lateral = self.lateral[number](stages[number])
            decoded.insert(0, self.step(number, lateral, decoded))
        return decoded

    def step(self, number: int, lateral: Tensor, deeper: list[Tensor]) -> Tensor:
        """Return a stage's output from its lateral (B, d, h, w) and the outputs of the deeper stages, the next one first."""
        raise NotImplementedError


class Integration(Decoder):
    """Dec_i = CBR(3)(SE(cat(lateral_i, deeper outputs))), all sizes being stage i's.

    Channels are weighed before they are enlarged, which gives the same at a fraction of the positions.

    Args:
        channels, width, norm: see `Decoder`.
        is_progressive: take all deeper outputs rather than the next one only.
        excites: weigh the channels by `SqueezeExcitation`.
    """

    def __init__(self, channels: int, width: int, norm: Norm = "batch", is_progressive: bool = True, excites: bool = True) -> None:
        super().__init__(channels, width, norm)
        self.reach = STAGES - 1 if is_progressive else 1
        inputs = [width * (1 + min(self.reach, STAGES - 1 - number)) for number in range(STAGES)]
        self.excite = nn.ModuleList(SqueezeExcitation(size) for size in inputs) if excites else None
        self.merge = nn.ModuleList(cbr(3, size, width, norm) for size in inputs)

    def step(self, number: int, lateral: Tensor, deeper: list[Tensor]) -> Tensor:
        size = lateral.shape[2:]
        parts = [lateral, *deeper[: self.reach]]
        if self.excite is not None:
            means = torch.cat([mean_of_resized(part, size) for part in parts], dim=1)
            factors = cast(SqueezeExcitation, self.excite[number]).factors(means).chunk(len(parts), dim=1)
            parts = [part * factor for part, factor in zip(parts, factors, strict=True)]
        return self.merge[number](torch.cat([parts[0], *(resize(part, size) for part in parts[1:])], dim=1))


class FPN(Decoder):
    """Dec_i = CBR(3)(lateral_i + Dec_{i+1}), as a feature pyramid."""

    def __init__(self, channels: int, width: int, norm: Norm = "batch") -> None:
        super().__init__(channels, width, norm)
        self.merge = nn.ModuleList(cbr(3, width, width, norm) for _ in range(STAGES))

    def step(self, number: int, lateral: Tensor, deeper: list[Tensor]) -> Tensor:
        return self.merge[number](lateral + resize(deeper[0], lateral.shape[2:]) if deeper else lateral)


class Cascaded(Decoder):
    """Dec_i = CBR(1)(CBR(1)(cat(lateral_i, Dec_{i+1}))): reduced twice, enlarged, joined to the next."""

    def __init__(self, channels: int, width: int, norm: Norm = "batch") -> None:
        super().__init__(channels, width, norm)
        inputs = [2 * width] * (STAGES - 1) + [width]
        self.merge = nn.ModuleList(nn.Sequential(cbr(1, size, width, norm), cbr(1, width, width, norm)) for size in inputs)

    def step(self, number: int, lateral: Tensor, deeper: list[Tensor]) -> Tensor:
        return self.merge[number](torch.cat([lateral, *(resize(output, lateral.shape[2:]) for output in deeper[:1])], dim=1))


_BUILDERS: dict[str, Callable[[int, int, Norm], Decoder]] = {
    "pise": Integration,
    "fpn": FPN,
    "concat": lambda channels, width, norm: Integration(channels, width, norm, excites=False),
    "se_only": lambda channels, width, norm: Integration(channels, width, norm, is_progressive=False),
    "cascaded": Cascaded,
}


def build_decoder(name: str, channels: int, width: int, norm: Norm = "batch") -> Decoder:
    """Build a decoder of C channels to d.

    Args:
        name: `pise` (all deeper outputs, excited), `concat` (all, not excited), `se_only` (the next one, excited), `fpn` (the next one, added), or
            `cascaded` (the next one, 1 x 1 convolutions only).
        channels: C.
        width: d.
        norm: of its convolutions.

    Raises:
        ValueError: if there is no such decoder.
    """
    if name not in _BUILDERS:
        raise ValueError(f"no decoder {name!r}: choose among {', '.join(_BUILDERS)}")
    return _BUILDERS[name](channels, width, norm)
