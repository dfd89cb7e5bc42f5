"""The networks: the contour and the texture generator, what joins them, and the U-Net that is the surrogate.

All of them take images of any size: they are padded by their own border to a multiple of what the network halves them by, and the output is cut back.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.umed.perturb import TextureMode, compose, local_mean, local_texture, regions

Norm = Literal["instance", "batch"]
"""Normalisation of a U-Net: by each image's own statistics, or by the batch's."""
Convolution = Literal["cdc", "plain"]
"""Convolutions of the contour generator's encoder: with central differences, or without."""
Clip = Literal["texture", "fixed"]
"""Bound of the texture perturbation: epsilon times the local texture, or epsilon alone."""

WIDTHS = (32, 64, 128, 256, 512)
"""Channels of the U-Net's levels."""
GENERATOR_WIDTHS = (16, 32, 64, 128)
"""Channels of the generators' levels, as in the public re-implementation."""


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pad (B, C, H, W) below and to the right by repeating the border, to multiples of `multiple` that are at least twice as large.

    Twice, since a map of a single pixel has no statistics of its own that an instance norm could use.
    """
    height, width = (max(2 * multiple, -(-side // multiple) * multiple) for side in images.shape[2:])
    if (height, width) == images.shape[2:]:
        return images
    return F.pad(images, (0, width - images.shape[3], 0, height - images.shape[2]), mode="replicate")


def _norm(name: str, width: int) -> nn.Module:
    return nn.InstanceNorm2d(width, affine=True) if name == "instance" else nn.BatchNorm2d(width)


class ConvBlock(nn.Sequential):
    """Twice (3 x 3 convolution, norm, ReLU), (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), _norm(norm, outputs), nn.ReLU(inplace=True)]
            inputs = outputs
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net for segmentation, (B, C, H, W) images in [0, 1] -> (B, outputs, H, W) logits, of any size.

    A level is twice (3 x 3 convolution, norm, ReLU); max-pooling halves, transposed convolution doubles, and skips are concatenated. Images are
    shifted and scaled inside, so that perturbations are added before it.

    Args:
        channels: channels C of the images.
        outputs: number of logits, which is foreground classes + 1.
        widths: channels of the levels; there are len(widths) - 1 halvings.
        norm: instance for the surrogate, batch for exploiters.

    Raises:
        ValueError: if there are no levels, or the norm is not known.
    """

    def __init__(self, channels: int, outputs: int, widths: Sequence[int] = WIDTHS, norm: str = "instance") -> None:
        super().__init__()
        if not widths or norm not in get_args(Norm):
            raise ValueError(f"a U-Net has at least one width and a norm of {', '.join(get_args(Norm))}, got {list(widths)} and {norm!r}")
        block = partial(ConvBlock, norm=norm)
        self.multiple = 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(block(before, after) for before, after in pairwise([channels, *widths]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, stride=2) for wide, deep in pairwise(widths))
        self.join = nn.ModuleList(block(2 * wide, wide) for wide in widths[:-1])
        self.head = nn.Conv2d(widths[0], outputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1] to logits of the same height and width."""
        height, width = images.shape[2:]
        features = (pad_to_multiple(images, self.multiple) - 0.5) / 0.25
        skips = []
        for level, down in enumerate(self.down):
            features = down(F.max_pool2d(features, 2) if level else features)  # (B, widths[level], H / 2^level, W / 2^level)
            skips.append(features)
        for level in reversed(range(len(self.up))):
            features = self.join[level](torch.cat([skips[level], self.up[level](features)], 1))
        return self.head(features)[:, :, :height, :width]


class CentralDifferenceConv(nn.Module):
    """3 x 3 convolution that also sees central differences, (B, in, H, W) -> (B, out, H, W).

    f_out(p0) = Σ_n w_v(p_n) f(p0 + p_n) + θ [ Σ_n w_c(p_n) f(p0 + p_n) - f(p0) Σ_n w_c(p_n) ]

    As both parts are linear they are one convolution, whose kernel is w_v + θ (w_c less its own sum at the centre). The border is padded by
    repeating it, so that the difference part of a constant image is 0 there too; zeros would look like edges all around it.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        theta: start of the learnable weight θ; classical central-difference convolution has w_c = w_v and 0.7.
    """

    def __init__(self, inputs: int, outputs: int, theta: float = 0.5) -> None:
        super().__init__()
        self.vanilla = nn.Conv2d(inputs, outputs, 3, bias=False).weight
        self.central = nn.Conv2d(inputs, outputs, 3, bias=False).weight
        self.theta = nn.Parameter(torch.tensor(theta))

    def difference_kernel(self) -> Tensor:
        """Return (out, in, 3, 3), the kernel of the bracket: it sums to 0."""
        centre = F.pad(self.central.sum((2, 3), keepdim=True), (1, 1, 1, 1))
        return self.central - centre

    def forward(self, features: Tensor) -> Tensor:
        """Convolve features; the output has their height and width."""
        kernel = self.vanilla + self.theta * self.difference_kernel()
        return F.conv2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), kernel)


class PlainConv(nn.Module):
    """3 x 3 convolution with the same padding, which the ablation puts in the place of `CentralDifferenceConv`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.vanilla = nn.Conv2d(inputs, outputs, 3, bias=False).weight

    def forward(self, features: Tensor) -> Tensor:
        """Convolve features; the output has their height and width."""
        return F.conv2d(F.pad(features, (1, 1, 1, 1), mode="replicate"), self.vanilla)


def _activated(layer: nn.Module, width: int) -> nn.Sequential:
    return nn.Sequential(layer, nn.InstanceNorm2d(width, affine=True), nn.LeakyReLU(0.01, inplace=True))


class ContourGenerator(nn.Module):
    """Generator G_c, (B, C, H, W) clean images in [0, 1] -> (B, C, H, W) before tanh.

    Args:
        channels: channels C of the images.
        widths: channels of the levels.
        convolution: cdc, or plain for the ablation.
    """

    def __init__(self, channels: int, widths: Sequence[int] = GENERATOR_WIDTHS, convolution: Convolution = "cdc") -> None:
        super().__init__()
        if convolution not in get_args(Convolution):
            raise ValueError(f"the convolution must be one of {', '.join(get_args(Convolution))}, got {convolution!r}")
        layer = CentralDifferenceConv if convolution == "cdc" else PlainConv
        self.multiple = 2 ** (len(widths) - 1)
        self.down = nn.ModuleList(
            nn.Sequential(_activated(layer(before, after), after), _activated(layer(after, after), after))
            for before, after in pairwise([channels, *widths])
        )
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, stride=2) for wide, deep in pairwise(widths))
        self.join = nn.ModuleList(_activated(nn.Conv2d(2 * wide, wide, 3, padding=1, bias=False), wide) for wide in widths[:-1])
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map clean images to raw perturbations of their shape."""
        height, width = images.shape[2:]
        features = pad_to_multiple(images, self.multiple)
        skips = []
        for level, down in enumerate(self.down):
            features = down(F.max_pool2d(features, 2) if level else features)
            skips.append(features)
        for level in reversed(range(len(self.up))):
            features = self.join[level](torch.cat([skips[level], self.up[level](features)], 1))
        return self.head(features)[:, :, :height, :width]


class ResidualUnit(nn.Module):
    """(convolution, instance norm, LeakyReLU) beside a linear shortcut, (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.body = _activated(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, stride, stride=stride)

    def forward(self, features: Tensor) -> Tensor:
        """Return body plus shortcut."""
        return self.body(features) + self.shortcut(features)


class TextureGenerator(nn.Module):
    """Generator G_t, (B, C, H, W) clean images in [0, 1] -> (B, C, H, W) before tanh: a U-Net with one residual unit a level and strides of 2.

    Args:
        channels: channels C of the images.
        widths: channels of the levels, the first of which has the images' resolution.
    """

    def __init__(self, channels: int, widths: Sequence[int] = GENERATOR_WIDTHS) -> None:
        super().__init__()
        self.multiple = 2 ** (len(widths) - 1)
        steps = enumerate(pairwise([channels, *widths]))
        self.down = nn.ModuleList(ResidualUnit(before, after, stride=2 if level else 1) for level, (before, after) in steps)
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, stride=2) for wide, deep in pairwise(widths))
        self.join = nn.ModuleList(ResidualUnit(2 * wide, wide) for wide in widths[:-1])
        self.head = nn.Conv2d(widths[0], channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Map clean images to raw perturbations of their shape."""
        height, width = images.shape[2:]
        features = pad_to_multiple(images, self.multiple)
        skips = []
        for down in self.down:
            features = down(features)
            skips.append(features)
        for level in reversed(range(len(self.up))):
            features = self.join[level](torch.cat([skips[level], self.up[level](features)], 1))
        return self.head(features)[:, :, :height, :width]


class Perturbator(nn.Module):
    """Both generators with what binds them: δ of clean images and their masks, in one pass without any optimisation.

    Args:
        contour: generator of the contour's perturbation; None leaves it out.
        texture: generator of the interior's; None leaves it out.
        epsilon: bound on every value, in units of [0, 1] images.
        radius: reach of the contour's band in pixels; None takes it by the images' size, see `regions`.
        classes: foreground classes K of the masks.
        mode: measure of local texture.
        clip: texture bounds the interior's perturbation by epsilon times the texture; fixed by epsilon alone (ablation).
        high_pass: side, in pixels and odd, of the window whose mean is taken off both outputs before tanh, so that a perturbation hardly makes a
            region darker or brighter as a whole (tanh brings a little of it back); 0, as published, takes nothing off.

    Raises:
        ValueError: if there is no generator, or an argument is out of its range.
    """

    def __init__(
        self,
        contour: nn.Module | None,
        texture: nn.Module | None,
        epsilon: float,
        radius: int | None,
        classes: int = 1,
        mode: TextureMode = "count",
        clip: Clip = "texture",
        high_pass: int = 0,
    ) -> None:
        super().__init__()
        if contour is None and texture is None:
            raise ValueError("without a contour generator and without a texture generator nothing is perturbed: turn on one of them")
        if not 0 < epsilon <= 0.5 or (radius is not None and radius < 1) or classes < 1:
            raise ValueError(f"epsilon is in (0, 0.5], radius and classes at least 1, got {epsilon}, {radius} and {classes}")
        if high_pass and (high_pass < 3 or high_pass % 2 == 0):
            raise ValueError(f"the window of high_pass has an odd side of at least 3 pixels, or 0 for none, got {high_pass}")
        if mode not in get_args(TextureMode) or clip not in get_args(Clip):
            known = f"{', '.join(get_args(TextureMode))} and {', '.join(get_args(Clip))}"
            raise ValueError(f"measures of texture and clips are {known}, got {mode!r} and {clip!r}")
        self.contour, self.texture = contour, texture
        self.epsilon, self.radius, self.classes = epsilon, radius, classes
        self.mode, self.clip, self.high_pass = mode, clip, high_pass

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Perturb a batch.

        Args:
            images: (B, C, H, W) clean images in [0, 1].
            masks: (B, H, W) whole numbers, 0 for the background and 1..K.

        Returns:
            (B, C, H, W) δ = δ_c + δ_t, in units of [0, 1] images, at most epsilon, and 0 outside of band and interior.

        Raises:
            ValueError: if images are no floats, or masks of another shape.
        """
        if not images.is_floating_point() or masks.shape != (len(images), *images.shape[2:]):
            given = f"{images.dtype} of shape {tuple(images.shape)} with masks of shape {tuple(masks.shape)}"
            raise ValueError(f"images are (B, C, H, W) floats in [0, 1] and masks (B, H, W), got {given}")
        contour = None if self.contour is None else self._filtered(self.contour(images))
        texture = None if self.texture is None else self._filtered(self.texture(images))
        strength = None if texture is None or self.clip == "fixed" else local_texture(images, self.mode)
        return compose(contour, texture, regions(masks, self.radius, self.classes), strength, self.epsilon)

    def _filtered(self, raw: Tensor) -> Tensor:
        return raw - local_mean(raw, self.high_pass) if self.high_pass else raw
