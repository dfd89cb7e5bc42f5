"""Blocks that see near and far in time at once.

All take features (B, C, F, T) and a mask (B, 1, 1, T) of valid frames, or None where all are valid. Frames that are no speech but padding are zeroed
before every convolution, as if the file ended there: what is computed of a file does not depend on the files beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

Dilation = Sequence[int]
"""Steps between the taps of a 3 x 3 kernel, over frequency and over time."""

NEAR: Dilation = (1, 1)
LEAST = 32
"""Channels that a gate is squeezed to at least (L of Li et al. 2019)."""


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """Return (B, 1, T) float32, 1 for the first `lengths` (B,) frames of T and 0 for padding."""
    return (torch.arange(frames, device=lengths.device) < lengths[:, None]).float()[:, None]


def masked(features: Tensor, mask: Tensor | None) -> Tensor:
    """Return features with padding zeroed."""
    return features if mask is None else features * mask


def spatial_mean(features: Tensor, mask: Tensor | None) -> Tensor:
    """Average (B, C, F, T) over frequency and valid frames, (B, C)."""
    if mask is None:
        return features.mean((2, 3))
    return (features * mask).sum((2, 3)) / (features.shape[2] * mask.sum((2, 3)))


def convolution(inputs: int, outputs: int, stride: int = 1, dilation: Dilation = NEAR, separable: bool = False) -> nn.Sequential:
    """Return a 3 x 3 convolution of "same" padding with its batch norm; separable, one of each channel and one that mixes them, each with its norm.

    Args:
        inputs: channels taken.
        outputs: channels given.
        stride: step over frequency and time.
        dilation: steps between the taps.
        separable: depthwise and pointwise.
    """
    step, kept = (int(dilation[0]), int(dilation[1])), inputs if separable else outputs
    spread = nn.Conv2d(inputs, kept, 3, stride, padding=step, dilation=step, groups=inputs if separable else 1, bias=False)
    if not separable:
        return nn.Sequential(spread, nn.BatchNorm2d(outputs))
    return nn.Sequential(spread, nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class BranchGate(nn.Module):
    """Weights of branches, for each channel of each utterance (steps 3 and 4): (B, C) -> (B, M, C) that sum to 1 over M.

    Args:
        channels: C.
        branches: M.
        reduction: rho, by which channels are squeezed.
    """

    def __init__(self, channels: int, branches: int, reduction: int = 8) -> None:
        super().__init__()
        squeezed = max(channels // reduction, LEAST)
        self.squeeze = nn.Linear(channels, squeezed, bias=False)
        self.bn = nn.BatchNorm1d(squeezed)
        self.select = nn.Linear(squeezed, branches * channels, bias=False)
        self.branches = branches

    def forward(self, summary: Tensor) -> Tensor:
        logits = self.select(torch.relu(self.bn(self.squeeze(summary))))
        return logits.unflatten(1, (self.branches, -1)).softmax(1)


class SKConv2d(nn.Module):
    """Selective kernel convolution: each channel of an utterance chooses between near and far context (Li et al. 2019).

    Args:
        channels: C, taken and given.
        dilations: of each branch; one branch alone is not weighted.
        gated: weights branches by what is heard; False gives all the same weight, the ablation "fixed fusion".
        reduction: rho, see `BranchGate`.
        separable: of the branches, see `convolution`.

    Raises:
        ValueError: if there is no branch, or a dilation is not positive.
    """

    def __init__(self, channels: int, dilations: Sequence[Dilation], gated: bool = True, reduction: int = 8, separable: bool = False) -> None:
        super().__init__()
        if not dilations or any(len(pair) != 2 or min(pair) < 1 for pair in dilations):
            raise ValueError(f"dilations hold a pair of positive steps (frequency, time) for each branch, such as [[1, 1], [1, 2]], not {dilations}")
        self.branches = nn.ModuleList(convolution(channels, channels, 1, dilation, separable) for dilation in dilations)
        self.gate = BranchGate(channels, len(dilations), reduction) if gated and len(dilations) > 1 else None

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        outputs = [torch.relu_(branch(features)) for branch in self.branches]  # U_b
        if self.gate is None:
            return sum(outputs[1:], outputs[0]) / len(outputs)
        summary = torch.stack([spatial_mean(output, mask) for output in outputs]).sum(0)  # s: the mean of a sum is the sum of the means
        weights = self.gate(summary)[..., None, None].to(outputs[0].dtype).unbind(1)
        if len(outputs) == 2:  # the weights sum to 1: V is a point between the two, found in one pass
            return torch.lerp(outputs[1], outputs[0], weights[0])
        return torch.stack([output * weight for output, weight in zip(outputs, weights, strict=True)]).sum(0)


class SqueezeExcitation(nn.Module):
    """A factor in [0, 1] for each channel of an utterance (Hu et al. 2018): what a plain block has for an ablation, see `BasicBlock`."""

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        squeezed = max(channels // reduction, LEAST)
        self.squeeze, self.excite = nn.Linear(channels, squeezed), nn.Linear(squeezed, channels)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        factors = torch.sigmoid(self.excite(torch.relu(self.squeeze(spatial_mean(features, mask)))))
        return features * factors[..., None, None]


class _Residual(nn.Module):
    """A 3 x 3 convolution that may take two steps at once, something behind it, and the way around both."""

    def __init__(self, inputs: int, outputs: int, stride: int, separable: bool) -> None:
        super().__init__()
        self.stride = stride
        self.first = convolution(inputs, outputs, stride, separable=separable)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Map (B, C_in, F, T), zero where padded, to (B, C_out, F / stride, T / stride), zero where padded; the mask is that of the result."""
        step = self.stride  # taken by slices: of a 1 x 1 convolution of few channels in steps, torch 2.15 damages memory in the backward pass
        around = features if self.shortcut is None else self.shortcut(features[:, :, ::step, ::step])
        inner = masked(torch.relu_(self.first(features)), mask)
        return masked(torch.relu(self.behind(inner, mask) + around), mask)

    def behind(self, features: Tensor, mask: Tensor | None) -> Tensor:
        raise NotImplementedError


class RSKBlock(_Residual):
    """Residual block with a selective kernel: ReLU(BN(SK(ReLU(BN(conv(x))))) + shortcut(x)).

    Args:
        inputs: channels taken.
        outputs: channels given.
        stride: of the first convolution.
        dilations: of the branches of the second one, which is a `SKConv2d`.
        gated: see `SKConv2d`.
        reduction: see `SKConv2d`.
        separable: see `convolution`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        stride: int,
        dilations: Sequence[Dilation],
        gated: bool = True,
        reduction: int = 8,
        separable: bool = False,
    ) -> None:
        super().__init__(inputs, outputs, stride, separable)
        self.selective = SKConv2d(outputs, dilations, gated, reduction, separable)
        self.bn = nn.BatchNorm2d(outputs)

    def behind(self, features: Tensor, mask: Tensor | None) -> Tensor:
        return self.bn(self.selective(features, mask))


class BasicBlock(_Residual):
    """Residual block of two 3 x 3 convolutions (He et al. 2016), the peers' and the ablation's; `excited` weights its channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, excited: bool = False, separable: bool = False) -> None:
        super().__init__(inputs, outputs, stride, separable)
        self.second = convolution(outputs, outputs, separable=separable)
        self.excitation = SqueezeExcitation(outputs) if excited else None

    def behind(self, features: Tensor, mask: Tensor | None) -> Tensor:
        second = self.second(features)
        return second if self.excitation is None else self.excitation(second, mask)
