"""What is left of a picture once its content is predicted away: fixed and learnt noise residuals."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DIVISORS = (4, 12, 2)
"""What the integer taps of the three kernels are divided by."""


def _integer_kernels() -> Tensor:
    small = F.pad(torch.tensor([[-1.0, 2, -1], [2, -4, 2], [-1, 2, -1]]), [1] * 4)
    edge, side, middle = [-1.0, 2, -2, 2, -1], [2.0, -6, 8, -6, 2], [-2.0, 8, -12, 8, -2]
    large = torch.tensor([edge, side, middle, side, edge])
    line = F.pad(torch.tensor([[1.0, -2, 1]]), [1, 1, 2, 2])
    return torch.stack([small, large, line])


def srm_kernels() -> Tensor:
    """Return three high-pass kernels of the spatial rich model, (3, 5, 5), each of sum 0 (Fridrich and Kodovsky 2012; Zhou et al. 2018).

    They are the 3 x 3 and the 5 x 5 square, and the second difference along a row.
    """
    return _integer_kernels() / torch.tensor(DIVISORS).view(3, 1, 1)


class SRMResidual(nn.Module):
    """Noise residuals of colour pictures under the three fixed kernels, (B, 3, H, W) -> (B, maps, H, W), in the units of the pixels.

    Borders are reflected: zeros would draw a bright frame. The taps are whole numbers and divided by afterwards, so that a constant picture of whole
    grey levels gives exactly 0.

    Args:
        per_channel: apply each kernel to each colour, for 9 maps, those of the first colour first; or to the sum of the colours, for 3.
        clip: largest magnitude of a residual, in the units of the pixels, 10 being made for grey levels from 0 to 255; None leaves them as they are.

    Raises:
        ValueError: if `clip` is not positive.
    """

    def __init__(self, per_channel: bool = True, clip: float | None = 10.0) -> None:
        super().__init__()
        if clip is not None and clip <= 0:
            raise ValueError(f"residuals are clipped at a positive magnitude, not {clip}; None leaves them as they are")
        self.maps, self.groups, self.clip = (9, 3, clip) if per_channel else (3, 1, clip)
        kernels, divisors = _integer_kernels().unsqueeze(1), torch.tensor(DIVISORS, dtype=torch.float32)
        weight = kernels.repeat(3, 1, 1, 1) if per_channel else kernels.expand(3, 3, 5, 5)
        self.register_buffer("weight", weight.contiguous(), persistent=False)
        self.register_buffer("divisors", divisors.repeat(self.maps // 3).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        weight, divisors = cast(Tensor, self.weight), cast(Tensor, self.divisors)
        residuals = F.conv2d(F.pad(pixels, [2] * 4, mode="reflect"), weight.to(pixels.dtype), groups=self.groups) / divisors.to(pixels.dtype)
        return residuals if self.clip is None else residuals.clamp(-self.clip, self.clip)


class BayarConv2d(nn.Module):
    """Constrained convolution: a pixel's difference from a learnt combination of its neighbours, (B, I, H, W) -> (B, O, H, W) (Bayar and Stamm 2018).

    In every kernel the centre is -1 and the neighbours sum to 1. The free weights are projected at right angles onto that plane, not divided by their
    sum, so that a sum of zero does no harm, and steps of gradient descent are projected steps on the plane. Borders are reflected.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: side of the kernels, odd.

    Raises:
        ValueError: if the kernels have no centre, or nothing around it.
    """

    def __init__(self, in_channels: int = 3, out_channels: int = 3, kernel_size: int = 5) -> None:
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ValueError(f"a constrained kernel has a centre and neighbours: its side is odd and at least 3, not {kernel_size}")
        self.maps, self.kernel_size = out_channels, kernel_size
        neighbours = torch.rand(out_channels, in_channels, kernel_size**2 - 1)
        self.weight = nn.Parameter(neighbours / neighbours.sum(2, keepdim=True))  # of the neighbours, row by row

    def kernel(self) -> Tensor:
        """Return the kernels, (O, I, k, k)."""
        neighbours = self.weight + (1 - self.weight.sum(2, keepdim=True)) / self.weight.shape[2]
        before, after = neighbours.chunk(2, dim=2)
        return torch.cat([before, torch.full_like(before[..., :1], -1.0), after], dim=2).unflatten(2, (self.kernel_size, self.kernel_size))

    def forward(self, pixels: Tensor) -> Tensor:
        return F.conv2d(F.pad(pixels, [self.kernel_size // 2] * 4, mode="reflect"), self.kernel().to(pixels.dtype))
