"""How colour and depth become one: high-order fusion in space and over channels, and the plainer ways beside it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from projects.hodinet.blocks import STAGES, cbr, projection
from projects.hodinet.readout import relation_readout

FusionName = Literal["high_order", "add", "concat", "add_matched"]
"""Names of the fusions, see `build_fusions`."""
WIDTHS = (64, 128, 256, 512)
PLACEMENT = "SSCC"


class Interaction(NamedTuple):
    """What a high-order module computes.

    Attributes:
        fused: F, (B, C, h, w).
        gate: weights in (0, 1), (B, 1, h, w) of the places for HOSF, (B, C, 1, 1) of the channels for HOCF.
        gated: what the gate weighs, (B, C, h, w): A, the colour gathered for each place of depth, for HOSF, and D for HOCF.
    """

    fused: Tensor
    gate: Tensor
    gated: Tensor


class HighOrder(nn.Module):
    """Joins a stage of both modalities by products of their features, (B, C_r, h, w) and (B, C_d, h, w) -> (B, C, h, w)."""

    def interact(self, rgb: Tensor, depth: Tensor) -> Interaction:
        """Return the fused map with its gate and what that weighs."""
        raise NotImplementedError

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.interact(rgb, depth).fused


class HOSF(HighOrder):
    """High-order spatial fusion F = A k + R: A reads colour out of the relation of all places, k gates by depth.

    The relation of order k > 2 is that of products of k projections, ceil(k / 2) of colour and floor(k / 2) of depth, as in mixed high-order
    attention (Chen et al. 2019); the first of each are R and D.

    Args:
        rgb_channels: C_r.
        depth_channels: C_d.
        channels: C.
        order: k, factors of a product, at least 2.
        pool: side of the squares that colour is averaged over before it enters the relation, an approximation; 1 is exact.
        chunk: places of depth whose relations are held at once, see `relation_readout`.

    Raises:
        ValueError: if `order` or `pool` is too small.
    """

    def __init__(self, rgb_channels: int, depth_channels: int, channels: int, order: int = 2, pool: int = 1, chunk: int | None = None) -> None:
        super().__init__()
        if order < 2 or pool < 1:
            raise ValueError(f"a relation has an order of 2 at least and pools squares of side 1 at least, not {order} and {pool}")
        self.rgb = nn.ModuleList(cbr(rgb_channels, channels) for _ in range((order + 1) // 2))
        self.depth = nn.ModuleList(cbr(depth_channels, channels) for _ in range(order // 2))
        self.gate = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1, bias=False), nn.Conv2d(1, 1, 3, padding=1, bias=False))
        self.pool, self.chunk = pool, chunk

    def interact(self, rgb: Tensor, depth: Tensor) -> Interaction:
        colours, depths = [project(rgb) for project in self.rgb], [project(depth) for project in self.depth]  # (B, C, h, w) each
        r, d = reduce(torch.mul, colours), reduce(torch.mul, depths)
        gathered = relation_readout(r, d, colours[0], self.chunk, self.pool).view_as(d).to(d.dtype)
        gate = self.gate(depths[0].amax(1, keepdim=True)).sigmoid()
        return Interaction(gathered * gate + colours[0], gate, gathered)


class HOCF(HighOrder):
    """High-order channel fusion F = D w + R: the weights w of the channels come from the outer product of both means.

    Args:
        rgb_channels: C_r.
        depth_channels: C_d.
        channels: C.
        signed: whether the means are taken before the ReLU, so that products are of either sign.
        literal: whether the outer product is built, C x C a picture; its maxima are the same.
    """

    def __init__(self, rgb_channels: int, depth_channels: int, channels: int, signed: bool = False, literal: bool = False) -> None:
        super().__init__()
        self.rgb, self.depth = projection(rgb_channels, channels), projection(depth_channels, channels)
        self.weigh = nn.Linear(2 * channels, channels, bias=False)
        self.signed, self.maxima = signed, outer_maxima_literal if literal else outer_maxima

    def interact(self, rgb: Tensor, depth: Tensor) -> Interaction:
        before = [self.rgb(rgb), self.depth(depth)]
        r, d = (features.relu() for features in before)
        x, y = (features.mean((2, 3)) for features in (before if self.signed else (r, d)))  # (B, C) each
        gate = self.weigh(torch.cat(self.maxima(x, y), dim=1)).sigmoid()[:, :, None, None]
        return Interaction(d * gate + r, gate, d)


def outer_maxima_literal(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima of x y^T over its first index and over its second one, (B, C) and (B, D) -> (B, D) and (B, C), by building it."""
    outer = x[:, :, None] * y[:, None, :]
    return outer.amax(1), outer.amax(2)


def outer_maxima(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maxima of `outer_maxima_literal` in O(C + D), for numbers of any sign.

    max_i x_i y_j is max(x) y_j, or min(x) y_j where y_j is negative; the paper's max(x) y is the case of numbers that are not negative.
    """
    return _largest(x, y), _largest(y, x)


def _largest(x: Tensor, y: Tensor) -> Tensor:
    low, high = x.aminmax(dim=1, keepdim=True)
    return torch.where(y < 0, low, high) * y


class AddFusion(nn.Module):
    """R + D, (B, C_r, h, w) and (B, C_d, h, w) -> (B, C, h, w).

    Args:
        rgb_channels: C_r.
        depth_channels: C_d.
        channels: C.
    """

    def __init__(self, rgb_channels: int, depth_channels: int, channels: int) -> None:
        super().__init__()
        self.rgb, self.depth = cbr(rgb_channels, channels), cbr(depth_channels, channels)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.rgb(rgb) + self.depth(depth)


class MatchedAddFusion(AddFusion):
    """CB1(R + D) or CB1(CB1(R + D)): addition with no fewer weights than the high-order module of its place.

    Args:
        rgb_channels, depth_channels, channels: see `AddFusion`.
        layers: 1 beside HOSF, which has 18 weights more than addition, and 2 beside HOCF, which has 2 C^2 more.
    """

    def __init__(self, rgb_channels: int, depth_channels: int, channels: int, layers: int = 1) -> None:
        super().__init__(rgb_channels, depth_channels, channels)
        self.extra = nn.Sequential(*(cbr(channels, channels) for _ in range(layers)))

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.extra(super().forward(rgb, depth))


class ConcatFusion(AddFusion):
    """CB1(cat(R, D)); see `AddFusion`."""

    def __init__(self, rgb_channels: int, depth_channels: int, channels: int) -> None:
        super().__init__(rgb_channels, depth_channels, channels)
        self.merge = cbr(2 * channels, channels)

    def forward(self, rgb: Tensor, depth: Tensor) -> Tensor:
        return self.merge(torch.cat([self.rgb(rgb), self.depth(depth)], dim=1))


def build_fusions(
    rgb_channels: Sequence[int],
    depth_channels: Sequence[int],
    fusion: FusionName = "high_order",
    placement: str = PLACEMENT,
    widths: Sequence[int] = WIDTHS,
    order: int = 2,
    pool: int = 1,
    chunk: int | None = None,
    signed: bool = False,
    literal: bool = False,
) -> nn.ModuleList:
    """Build what joins the modalities at the four stages, the finest first.

    Args:
        rgb_channels: of the colour encoder's stages.
        depth_channels: of the depth encoder's stages.
        fusion: `high_order`, `add`, `concat`, or `add_matched`, which has as many weights as `high_order` at the same placement.
        placement: a letter a stage, S for fusion in space and C for fusion over channels.
        widths: C of the stages.
        order: of HOSF, factors of a product.
        pool: of HOSF, side of the squares that colour is averaged over.
        chunk: of HOSF, places of depth whose relations are held at once.
        signed: of HOCF, whether the means are taken before the ReLU.
        literal: of HOCF, whether the outer product is built.

    Raises:
        ValueError: if there is no such fusion or an option does not fit.
    """
    check_placement(placement)
    if fusion not in get_args(FusionName):
        raise ValueError(f"no fusion {fusion!r}: choose among {', '.join(get_args(FusionName))}")

    def build(letter: str, rgb: int, depth: int, width: int) -> nn.Module:
        if fusion == "add":
            return AddFusion(rgb, depth, width)
        if fusion == "concat":
            return ConcatFusion(rgb, depth, width)
        if fusion == "add_matched":
            return MatchedAddFusion(rgb, depth, width, layers=1 if letter == "S" else 2)
        return HOSF(rgb, depth, width, order, pool, chunk) if letter == "S" else HOCF(rgb, depth, width, signed, literal)

    return nn.ModuleList(build(*stage) for stage in zip(placement, rgb_channels, depth_channels, widths, strict=True))


def check_placement(placement: str) -> None:
    """Refuse what does not say for each of the four stages whether it fuses in space or over channels.

    Raises:
        ValueError: if it is no word of four letters S and C.
    """
    if len(placement) != STAGES or set(placement) - set("SC"):
        raise ValueError(f"a placement has a letter S (space) or C (channels) for each of the {STAGES} stages, such as SSCC, not {placement!r}")
