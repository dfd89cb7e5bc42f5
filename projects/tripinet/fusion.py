"""How the streams become one: guided cross-modality dual attention, and the plainer ways beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.tripinet.blocks import Norm, cbr
from shared.layers import at_least_float32

Sign = Literal["danet", "plain"]
"""What the channel attention's softmax is taken of: rowmax(S) - S, as in DANet's code, or S."""
FusionName = Literal["gcmda", "add", "concat", "gated", "cbam"]
"""Names of the fusions, see `build_fusion`."""


class Attention(NamedTuple):
    """Where a module looks.

    Attributes:
        position: (B, h w, h' w'), the weights of the pooled keys for each position, of sum 1.
        channel: (B, C, C), the weights of the channels for each channel, of sum 1.
    """

    position: Tensor
    channel: Tensor


class Fusion(nn.Module):
    """Joins the features of the streams at one stage, S tensors (B, C, h, w) -> (B, C, h, w).

    The first stream, the picture where it is among them, is F_r. The guide G = CBR(3)(cat(others)) joins the others; it is made of F_r without any.

    Args:
        channels: C.
        streams: S, at least 1.
        norm: of its convolutions.

    Raises:
        ValueError: if there is no stream.
    """

    def __init__(self, channels: int, streams: int = 3, norm: Norm = "batch") -> None:
        super().__init__()
        if streams < 1:
            raise ValueError("there is no stream to join")
        self.guide = cbr(3, channels * max(1, streams - 1), channels, norm)

    def join(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return F_r and G, (B, C, h, w) each."""
        return features[0], self.guide(torch.cat(list(features[1:] or features), dim=1))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.fuse(*self.join(features))

    def fuse(self, picture: Tensor, guide: Tensor) -> Tensor:
        """Return the join of F_r and G."""
        raise NotImplementedError


class Add(Fusion):
    """CBR(3)(F_r + G)."""

    def __init__(self, channels: int, streams: int = 3, norm: Norm = "batch") -> None:
        super().__init__(channels, streams, norm)
        self.merge = cbr(3, channels, channels, norm)

    def fuse(self, picture: Tensor, guide: Tensor) -> Tensor:
        return self.merge(picture + guide)


class Concat(Fusion):
    """CBR(3)(cat(F_r, G))."""

    def __init__(self, channels: int, streams: int = 3, norm: Norm = "batch") -> None:
        super().__init__(channels, streams, norm)
        self.merge = cbr(3, 2 * channels, channels, norm)

    def fuse(self, picture: Tensor, guide: Tensor) -> Tensor:
        return self.merge(torch.cat([picture, guide], dim=1))


class Gated(Concat):
    """Concat of F_r and G, each weighted at every position by a sigmoid of both."""

    def __init__(self, channels: int, streams: int = 3, norm: Norm = "batch") -> None:
        super().__init__(channels, streams, norm)
        self.gate = nn.Conv2d(2 * channels, 2, 1)

    def fuse(self, picture: Tensor, guide: Tensor) -> Tensor:
        first, second = self.gate(torch.cat([picture, guide], dim=1)).sigmoid().chunk(2, dim=1)  # (B, 1, h, w) each
        return super().fuse(picture * first, guide * second)


class CBAM(Concat):
    """Concat of F_r and G, weighted by attention to channels and then to positions (Woo et al. 2018)."""

    def __init__(self, channels: int, streams: int = 3, norm: Norm = "batch") -> None:
        super().__init__(channels, streams, norm)
        hidden = max(4, channels // 8)
        self.channel = nn.Sequential(nn.Conv2d(2 * channels, hidden, 1), nn.ReLU(inplace=True), nn.Conv2d(hidden, 2 * channels, 1))
        self.position = nn.Conv2d(2, 1, 7, padding=3)

    def fuse(self, picture: Tensor, guide: Tensor) -> Tensor:
        both = torch.cat([picture, guide], dim=1)
        pooled = self.channel(both.mean((2, 3), keepdim=True)) + self.channel(both.amax((2, 3), keepdim=True))
        both = both * pooled.sigmoid()  # (B, 2C, 1, 1)
        summary = torch.cat([both.mean(1, keepdim=True), both.amax(1, keepdim=True)], dim=1)
        return self.merge(both * self.position(summary).sigmoid())


class DualAttention(nn.Module):
    """Attention of one modality's features under another's guidance, to positions and to channels, (B, C, h, w) twice -> (B, C, h, w).

    E_pos + E_ch of steps 2 and 3: queries come from the guide, keys and values from the features. At first, both gammas being zero, it is twice the
    features. Both attentions are computed in float32.

    Args:
        channels: C.
        pooled: p, the keys and values being averaged to at most p x p positions.
        sign: of the channel attention.
    """

    def __init__(self, channels: int, pooled: int = 16, sign: Sign = "danet") -> None:
        super().__init__()
        width = min(channels, max(4, channels // 8))
        self.query, self.key, self.value = nn.Conv2d(channels, width, 1), nn.Conv2d(channels, width, 1), nn.Conv2d(channels, channels, 1)
        self.position_gamma, self.channel_gamma = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.pooled, self.sign = pooled, sign

    def _tokens(self, features: Tensor, guide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        height, width = features.shape[2:]
        size = (min(height, self.pooled), min(width, self.pooled))
        source = features if size == (height, width) else F.adaptive_avg_pool2d(features, size)
        query, key, value = (at_least_float32(part.flatten(2).mT) for part in (self.query(guide), self.key(source), self.value(source)))
        return query, key, value  # (B, N, d), (B, M, d), (B, M, C)

    def _channel_weights(self, features: Tensor, guide: Tensor) -> Tensor:
        g, r = at_least_float32(guide.flatten(2)), at_least_float32(features.flatten(2))  # (B, C, N)
        similarity = g @ r.mT / r.shape[2]  # (B, C, C)
        return (similarity.amax(2, keepdim=True) - similarity if self.sign == "danet" else similarity).softmax(2)

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        query, key, value = self._tokens(features, guide)
        with torch.autocast(features.device.type, enabled=False):
            blank = value.shape[2] - query.shape[2]  # kernels that keep no N x M matrix want one width and one head; zeros add nothing to the logits
            weighted = (self.position_gamma * value).contiguous()  # gamma on the keys' side, where there are few positions
            padded = (F.pad(query, [0, blank])[:, None], F.pad(key, [0, blank])[:, None], weighted[:, None])
            position = F.scaled_dot_product_attention(*padded, scale=1.0)[:, 0]  # (B, N, C)
            tokens = at_least_float32(features.flatten(2).mT)  # (B, N, C)
            weights = self.channel_gamma * self._channel_weights(features, guide)  # (B, C, C)
            attended = torch.baddbmm(position, tokens, weights.mT).add_(tokens, alpha=2)
        return attended.unflatten(1, features.shape[2:]).movedim(3, 1).to(features.dtype)  # channels last

    def attention(self, features: Tensor, guide: Tensor) -> Attention:
        """Return the weights of positions and channels, in float32."""
        query, key, _ = self._tokens(features, guide)
        with torch.autocast(features.device.type, enabled=False):
            return Attention((query @ key.mT).softmax(2), self._channel_weights(features, guide))


class GCMDA(Fusion):
    """Guided cross-modality dual attention: CBR(3)(cat(E_pos + E_ch, G)), see `DualAttention`.

    At first it is `Concat` of 2 F_r and G, so that what it gains is learnt.

    Args:
        channels, streams, norm: see `Fusion`.
        pooled: largest side of the grid of keys, see `DualAttention`.
        symmetric: add the same with F_r and G exchanged, in weights of its own.
        sign: see `Sign`.

    Raises:
        ValueError: if an option does not fit.
    """

    def __init__(
        self, channels: int, streams: int = 3, norm: Norm = "batch", pooled: int = 16, symmetric: bool = False, sign: Sign = "danet"
    ) -> None:
        super().__init__(channels, streams, norm)
        if sign not in get_args(Sign):
            raise ValueError(f"no sign {sign!r} of the channel attention: choose {' or '.join(get_args(Sign))}")
        if pooled < 1:
            raise ValueError(f"the keys are pooled to at least 1 x 1 position, not {pooled}")
        self.attend, self.merge = DualAttention(channels, pooled, sign), cbr(3, 2 * channels, channels, norm)
        self.attend_guide = DualAttention(channels, pooled, sign) if symmetric else None
        self.merge_guide = cbr(3, 2 * channels, channels, norm) if symmetric else None

    def fuse(self, picture: Tensor, guide: Tensor) -> Tensor:
        fused = self.merge(torch.cat([self.attend(picture, guide), guide], dim=1))
        if self.attend_guide is None or self.merge_guide is None:
            return fused
        return fused + self.merge_guide(torch.cat([self.attend_guide(guide, picture), picture], dim=1))

    def attention(self, features: Sequence[Tensor]) -> Attention:
        """Return where the guide lets the first stream look."""
        return self.attend.attention(*self.join(features))


_SIMPLE: dict[str, type[Fusion]] = {"add": Add, "concat": Concat, "gated": Gated, "cbam": CBAM}


def build_fusion(
    name: str, channels: int, streams: int = 3, norm: Norm = "batch", pooled: int = 16, symmetric: bool = False, sign: Sign = "danet"
) -> Fusion:
    """Build what joins the streams at a stage.

    Args:
        name: `gcmda`, `add`, `concat`, `gated` or `cbam`.
        channels: C.
        streams: S.
        norm: of its convolutions.
        pooled: largest side of the grid of keys of `gcmda`.
        symmetric: whether `gcmda` also guides the other way.
        sign: of the channel attention of `gcmda`.

    Raises:
        ValueError: if there is no such fusion or an option does not fit.
    """
    if name == "gcmda":
        return GCMDA(channels, streams, norm, pooled, symmetric, sign)
    if name not in _SIMPLE:
        raise ValueError(f"no fusion {name!r}: choose among {', '.join(get_args(FusionName))}")
    return _SIMPLE[name](channels, streams, norm)
