"""The nets that the field compares with: x-vector (Snyder et al. 2018) and ECAPA-TDNN (Desplanques et al. 2020).

Both map (B, F, T) log-mel features to (B, E) embeddings. Convolutions keep the number of frames, with zeros beyond the ends. Deviations are
biased (divided by T) and have a floor. `lengths`, where given, say how many frames of each file are valid: the rest is zeroed before every
convolution and left out of every mean, so that a padded file's embedding is the one it has alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from projects.rsknet.blocks import frame_mask, masked
from projects.rsknet.pooling import statistics, weighted_statistics
from shared.layers import at_least_float32


class TDNNLayer(nn.Module):
    """Convolution over time, ReLU, batch normalisation: (B, C, T) to (B, C', T), frames beyond the mask taken as zeros.

    Args:
        inputs: C.
        outputs: C'.
        kernel: width of the convolution in frames, odd.
        dilation: frames from one tap of the convolution to the next.
        affine: whether the normalisation has learned scales and shifts.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, affine: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, dilation=dilation, padding=dilation * (kernel // 2))
        self.norm = nn.BatchNorm1d(outputs, affine=affine)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.conv.kernel_size[0] > 1:  # a convolution of one frame mixes nothing into its neighbours
            frames = masked(frames, mask)
        return self.norm(torch.relu_(self.conv(frames)))


class XVector(nn.Module):
    """The x-vector network: five layers over 15 frames, mean and deviation over time, one or two linear layers.

    Args:
        bins: F, log-mel bands.
        widths: channels of the five frame layers.
        embedding: E.
        layers: 1 returns embedding a, straight after the statistics; 2 adds ReLU, normalisation and a linear layer and returns embedding b, as
            WeSpeaker does (4.61 M weights at 80 bins).
    """

    def __init__(self, bins: int = 80, widths: Sequence[int] = (512, 512, 512, 512, 1500), embedding: int = 512, layers: int = 2) -> None:
        super().__init__()
        if len(widths) != 5:
            raise ValueError(f"an x-vector network has five frame layers, got widths {tuple(widths)}")
        if layers not in (1, 2):
            raise ValueError(f"an x-vector network has 1 or 2 layers after the statistics, got {layers}")
        self.embedding_size = embedding
        shapes = zip((bins, *widths), widths, (5, 3, 3, 1, 1), (1, 2, 3, 1, 1), strict=False)
        self.frames = nn.ModuleList(TDNNLayer(*shape, affine=False) for shape in shapes)
        self.segment = nn.Sequential(nn.Linear(2 * widths[-1], embedding))
        if layers == 2:
            self.segment.extend([nn.ReLU(), nn.BatchNorm1d(embedding, affine=False), nn.Linear(embedding, embedding)])

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map (B, F, T) features, of which `lengths` (B,) frames are valid, to (B, E) embeddings."""
        mask = _mask(features, lengths)
        for layer in self.frames:
            features = layer(features, mask)
        return self.segment(statistics(features, mask))


class Res2Layer(nn.Module):
    """Res2Net's hierarchy of small convolutions: of `scale` groups of channels each but the first is convolved after the result before it is added.

    Args:
        channels: C, a multiple of the scale.
        dilation: frames between the taps of the convolutions of three frames.
        scale: groups of channels.
    """

    def __init__(self, channels: int, dilation: int, scale: int = 8) -> None:
        super().__init__()
        if channels % scale:
            raise ValueError(f"channels must be a multiple of the scale {scale}, got {channels}")
        self.layers = nn.ModuleList(TDNNLayer(channels // scale, channels // scale, 3, dilation) for _ in range(scale - 1))

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        first, *groups = frames.chunk(len(self.layers) + 1, dim=1)
        results = [first]
        for layer, group in zip(self.layers, groups, strict=True):
            results.append(layer(group if len(results) == 1 else group + results[-1], mask))
        return torch.cat(results, dim=1)


class SERes2Block(nn.Module):
    """x + SE(1x1, Res2, 1x1), (B, C, T) to (B, C, T), where SE weighs each channel by what the whole utterance holds.

    Args:
        channels: C.
        dilation: of the Res2 layer.
        bottleneck: hidden units of the squeeze and excitation.
        scale: groups of the Res2 layer.
    """

    def __init__(self, channels: int, dilation: int, bottleneck: int = 128, scale: int = 8) -> None:
        super().__init__()
        self.enter = TDNNLayer(channels, channels)
        self.res2 = Res2Layer(channels, dilation, scale)
        self.leave = TDNNLayer(channels, channels)
        self.excite = nn.Sequential(nn.Linear(channels, bottleneck), nn.ReLU(), nn.Linear(bottleneck, channels), nn.Sigmoid())

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        inner = self.leave(self.res2(self.enter(frames), mask))
        return torch.addcmul(frames, inner, self.excite(_mean(inner, mask))[:, :, None])


class AttentiveStatistics(nn.Module):
    """Mean and deviation over time with weights of its own for every channel, (B, C, T) to (B, 2C), that see the whole utterance (ECAPA-TDNN).

    The weights are softmax_t(V tanh(W [x_t; mean; deviation] + b) + k), with mean and deviation of the utterance. W is applied to its parts apart:
    the last two are the same for all frames and need one product an utterance.

    Args:
        channels: C.
        bottleneck: rows of W.
    """

    def __init__(self, channels: int, bottleneck: int = 128) -> None:
        super().__init__()
        self.frame = nn.Conv1d(channels, bottleneck, 1)
        self.context = nn.Linear(2 * channels, bottleneck, bias=False)
        self.score = nn.Conv1d(bottleneck, channels, 1)

    def forward(self, frames: Tensor, mask: Tensor | None = None) -> Tensor:
        context = self.context(statistics(frames, mask).to(frames.dtype))
        scores = at_least_float32(self.score((self.frame(frames) + context[:, :, None]).tanh_()))  # (B, C, T)
        if mask is not None:
            scores = scores.masked_fill(mask == 0, -torch.inf)
        return weighted_statistics(frames, scores.softmax(2))


class ECAPATDNN(nn.Module):
    """The ECAPA-TDNN: a convolution, three SE-Res2 blocks whose outputs meet in a 1x1 convolution, attentive statistics, a linear layer.

    6.19 M weights with 512 channels, 14.65 M with 1024, at 80 bins.

    Args:
        bins: F, log-mel bands.
        channels: C.
        embedding: E.
        dilations: of the blocks, in frames.
        scale: groups of the Res2 layers.
        bottleneck: hidden units of the squeeze and excitation and of the attention.
        gathered: channels that the statistics are taken of.
    """

    def __init__(
        self,
        bins: int = 80,
        channels: int = 512,
        embedding: int = 192,
        dilations: Sequence[int] = (2, 3, 4),
        scale: int = 8,
        bottleneck: int = 128,
        gathered: int = 1536,
    ) -> None:
        super().__init__()
        self.embedding_size = embedding
        self.stem = TDNNLayer(bins, channels, 5)
        self.blocks = nn.ModuleList(SERes2Block(channels, dilation, bottleneck, scale) for dilation in dilations)
        self.gather = nn.Conv1d(len(dilations) * channels, gathered, 1)
        self.pool = AttentiveStatistics(gathered, bottleneck)
        self.norm = nn.BatchNorm1d(2 * gathered)
        self.embed = nn.Linear(2 * gathered, embedding)

    def forward(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Map (B, F, T) features, of which `lengths` (B,) frames are valid, to (B, E) embeddings."""
        mask = _mask(features, lengths)
        frames, outputs = self.stem(features, mask), []
        for block in self.blocks:
            frames = block(frames, mask)
            outputs.append(frames)
        gathered = torch.relu_(self.gather(torch.cat(outputs, dim=1)))
        return self.embed(self.norm(self.pool(gathered, mask)))


def _mask(features: Tensor, lengths: Tensor | None) -> Tensor | None:
    return None if lengths is None else frame_mask(lengths, features.shape[-1])


def _mean(frames: Tensor, mask: Tensor | None) -> Tensor:
    """Return (B, C), the mean of (B, C, T) over the valid frames."""
    return frames.mean(2) if mask is None else (frames * mask).sum(2) / mask.sum(2)
