"""What an edge of a cell can compute: pooling, skips, and separable and dilated central difference convolutions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.layers.residuals import srm_kernels

Builder = Callable[[int, int, bool], nn.Module]
"""Builds an operation on C channels from C, the stride (1 or 2) and whether its batch norms are affine."""

SPACE = (
    "max_pool_3x3",
    "sep_cdc_3x3_0.0",
    "sep_cdc_3x3_0.5",
    "sep_cdc_3x3_0.7",
    "sep_cdc_3x3_0.8",
    "dil_cdc_3x3_0.0",
    "dil_cdc_3x3_0.5",
    "dil_cdc_3x3_0.7",
    "dil_cdc_3x3_0.8",
    "skip_connect",
    "none",
)
"""The forgery-oriented search space."""
SMALL_SPACE = ("max_pool_3x3", "sep_cdc_3x3_0.0", "sep_cdc_3x3_0.7", "dil_cdc_3x3_0.0", "dil_cdc_3x3_0.7", "skip_connect", "none")
"""The same with one strength of the difference, for small data."""
PLAIN_SPACE = ("max_pool_3x3", "sep_cdc_3x3_0.0", "dil_cdc_3x3_0.0", "skip_connect", "none")
"""The same with ordinary convolutions only."""

_CONVOLUTION = re.compile(r"(sep|dil)_cdc_(\d+)x\2_(\d+(?:\.\d+)?)")


class KernelConv2d(nn.Module):
    """A convolution without bias, (B, I, H, W) -> (B, O, H', W'), whose kernel is computed from its weights.

    The size is kept at stride 1 and halved, rounding up, at stride 2.

    Args:
        in_channels: I.
        out_channels: O.
        kernel_size: side of the kernel, odd.
        stride: step of the output grid.
        dilation: step of the kernel's taps.
        groups: groups of channels that are convolved apart.

    Raises:
        ValueError: if the kernel has no centre.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3, stride: int = 1, dilation: int = 1, groups: int = 1) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise ValueError(f"a kernel of side {kernel_size} has no centre: take an odd one")
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.padding = dilation * (kernel_size // 2)

    def kernel(self) -> Tensor:
        """Return the kernel, (O, I / groups, k, k)."""
        raise NotImplementedError

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.kernel(), None, self.stride, self.padding, self.dilation, self.groups)

    def plain(self) -> nn.Conv2d:
        """Return an ordinary convolution that does the same."""
        with torch.no_grad():
            kernel = self.kernel()
            plain = nn.utils.skip_init(
                nn.Conv2d,
                self.in_channels,
                self.out_channels,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.groups,
                bias=False,
                device=kernel.device,
                dtype=kernel.dtype,
            )
            plain.weight.copy_(kernel)
        return plain


class CDConv2d(KernelConv2d):
    """Central difference convolution (Yu et al. 2020): y(p) = sum_o w_o x(p + o) - theta x(p) sum_o w_o, zero padding.

    Both terms are one convolution whose centre tap is less by theta sum_o w_o, at borders and with strides too.

    Args:
        in_channels, out_channels, kernel_size, stride, dilation, groups: see `KernelConv2d`.
        theta: strength of the difference, in [0, 1]; 0 is the ordinary convolution, and a constant c gives (1 - theta) c sum_o w_o.

    Raises:
        ValueError: if `theta` is outside [0, 1] or the kernel has no centre.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int = 3, theta: float = 0.7, stride: int = 1, dilation: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, dilation, groups)
        if not 0 <= theta <= 1:
            raise ValueError(f"theta, the strength of the difference, is in [0, 1], not {theta}")
        self.theta = theta
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d
        centre = F.pad(torch.full((1, 1), -theta), [kernel_size // 2] * 4)
        self.register_buffer("centre", centre, persistent=False)

    def kernel(self) -> Tensor:
        if self.theta == 0:
            return self.weight
        assert isinstance(self.centre, Tensor)
        return torch.addcmul(self.weight, self.weight.sum((2, 3), keepdim=True), self.centre)


class BayarConv2d(KernelConv2d):
    """Depthwise constrained convolution (Bayar and Stamm 2018): a pixel's difference from a learned mean of its neighbours.

    Args:
        channels: I = O.
        kernel_size: side of the kernel.
        stride: step of the output grid.
    """

    def __init__(self, channels: int, kernel_size: int = 5, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel_size, stride, groups=channels)
        self.weight = nn.Parameter(torch.rand(channels, kernel_size**2 - 1))  # of the neighbours; positive, so that no sum is near zero

    def kernel(self) -> Tensor:
        neighbours = self.weight / self.weight.sum(1, keepdim=True)
        before, after = neighbours.chunk(2, dim=1)
        taps = torch.cat([before, neighbours.new_full((len(neighbours), 1), -1.0), after], dim=1)
        return taps.view(-1, 1, self.kernel_size, self.kernel_size)


class SRMConv2d(KernelConv2d):
    """Three fixed noise residuals of every channel, C -> 3C, see `srm_kernels`."""

    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__(channels, 3 * channels, 5, stride, groups=channels)
        self.register_buffer("weight", srm_kernels().unsqueeze(1).repeat(channels, 1, 1, 1), persistent=False)

    def kernel(self) -> Tensor:
        assert isinstance(self.weight, Tensor)
        return self.weight


class Zero(nn.Module):
    """No connection: zeros of the strided size."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        return torch.zeros_like(features[:, :, :: self.stride, :: self.stride])


def separable(channels: int, kernel_size: int, theta: float, stride: int, affine: bool) -> nn.Sequential:
    """Build ReLU, depthwise CDC, pointwise convolution, norm, and the same again at stride 1.

    The pointwise parts are ordinary convolutions: in a kernel of one tap theta is a factor of (1 - theta), which the norm takes away.
    """
    return nn.Sequential(
        nn.ReLU(),
        CDConv2d(channels, channels, kernel_size, theta, stride, groups=channels),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
        nn.ReLU(inplace=True),
        CDConv2d(channels, channels, kernel_size, theta, groups=channels),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.BatchNorm2d(channels, affine=affine),
    )


def dilated(channels: int, kernel_size: int, theta: float, stride: int, affine: bool) -> nn.Sequential:
    """Build ReLU, depthwise CDC of dilation 2, pointwise convolution, norm."""
    depthwise = CDConv2d(channels, channels, kernel_size, theta, stride, dilation=2, groups=channels)
    return nn.Sequential(nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels, affine=affine))


def _residual(residual: KernelConv2d, channels: int, affine: bool) -> nn.Sequential:
    pointwise = nn.Conv2d(residual.out_channels, channels, 1, bias=False)
    return nn.Sequential(nn.ReLU(), residual, pointwise, nn.BatchNorm2d(channels, affine=affine))


def _average(stride: int) -> nn.AvgPool2d:
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


_BUILDERS: dict[str, Builder] = {
    "none": lambda channels, stride, affine: Zero(stride),
    "skip_connect": lambda channels, stride, affine: nn.Identity() if stride == 1 else _average(stride),
    "max_pool_3x3": lambda channels, stride, affine: nn.MaxPool2d(3, stride, padding=1),
    "avg_pool_3x3": lambda channels, stride, affine: _average(stride),
    "bayar_5x5": lambda channels, stride, affine: _residual(BayarConv2d(channels, 5, stride), channels, affine),
    "srm_5x5": lambda channels, stride, affine: _residual(SRMConv2d(channels, stride), channels, affine),
}


def _find(name: str, registry: Mapping[str, Builder] | None) -> Builder:
    known = _BUILDERS if registry is None else {**_BUILDERS, **registry}
    if name in known:
        return known[name]
    match = _CONVOLUTION.fullmatch(name)
    if match is None:
        forms = f"{', '.join(known)}, sep_cdc_KxK_THETA, dil_cdc_KxK_THETA"
        raise ValueError(f"no operation {name!r}: choose among {forms}, with an odd K and THETA in [0, 1], such as sep_cdc_3x3_0.7")
    build, side, theta = separable if match[1] == "sep" else dilated, int(match[2]), float(match[3])
    if side % 2 == 0 or theta > 1:
        raise ValueError(f"operation {name!r}: the side of the kernel must be odd and theta in [0, 1]")
    return lambda channels, stride, affine: build(channels, side, theta, stride, affine)


def check_operation(name: str, registry: Mapping[str, Builder] | None = None) -> None:
    """Refuse what `build_operation` does not know.

    Raises:
        ValueError: if there is no such operation.
    """
    _find(name, registry)


def with_theta(name: str, theta: float) -> str:
    """Return the name of the same central difference convolution with another theta; other operations keep theirs."""
    match = _CONVOLUTION.fullmatch(name)
    return name if match is None else f"{match[1]}_cdc_{match[2]}x{match[2]}_{theta}"


def build_operation(name: str, channels: int, stride: int, affine: bool, registry: Mapping[str, Builder] | None = None) -> nn.Module:
    """Build an operation, (B, C, H, W) -> (B, C, H', W'), that keeps the size at stride 1 and halves it, rounding up, at stride 2.

    Every convolution is an `nn.Sequential` that begins with its ReLU; pooling has no norm.

    Args:
        name: `max_pool_3x3`, `avg_pool_3x3`, `skip_connect` (at stride 2 the average pool), `none` (zeros), `sep_cdc_KxK_THETA` (see `separable`),
            `dil_cdc_KxK_THETA` (see `dilated`), `bayar_5x5` and `srm_5x5` (ReLU, noise residual, pointwise convolution, norm).
        channels: C.
        stride: 1 or 2.
        affine: whether batch norms have weights.
        registry: further operations, which go before those of the same name.

    Raises:
        ValueError: if there is no such operation.
    """
    return _find(name, registry)(channels, stride, affine)


def fold_(module: nn.Module) -> nn.Module:
    """Replace all convolutions inside a module whose kernels are computed by ordinary ones, in place; return the module."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, KernelConv2d):
                setattr(parent, name, child.plain())
    return module
