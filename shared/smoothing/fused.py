"""Noise on CUDA in one pass: Philox, Box-Muller, scale, placement of the sub-image's pixels, normalisation and cast, without storing the noise.

Triton is imported only when this is called.
"""

from __future__ import annotations

import functools
import math
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from shared.smoothing.noise import half_length

_BLOCK = 256


def perturb(
    images: Tensor,
    slots: Tensor,
    keys: Tensor,
    draws: Tensor,
    sigma: float,
    out: Tensor,
    source: Tensor | None = None,
    mean: Tensor | None = None,
    std: Tensor | None = None,
) -> Tensor:
    """Write (placed(image + sigma · noise) - mean) / std to each row, with the noise of `noise.Sampler`.

    Args:
        images: (M, d) or (M, ...) float32 images or sub-images, contiguous.
        slots: (B,) int64 rows of `images`.
        keys: (B,) int64 from `stream_key`.
        draws: (B,) int64 numbers of the draws.
        sigma: standard deviation.
        out: (B, ...) or (B, C, H, W) of any floating type, contiguous or channels last.
        source: (D,) int32 which of the d elements each of the D output elements (in the order C, H, W) takes, -1 for none, which then is 0; so masks,
            packing and nearest upsampling are written directly. None: d = D, each its own.
        mean: (C,) float32 that is taken off each channel; None: 0.
        std: (C,) float32 that each channel is divided by; None: 1.

    Returns:
        `out`.
    """
    elements, size = images[0].numel(), out[0].numel()
    channels = out.shape[1] if out.ndim == 4 else 1
    plane = size // channels
    is_last = out.ndim == 4 and not out.is_contiguous()
    strides = (1, channels) if is_last else (plane, 1)
    ones = torch.ones(channels, device=out.device)
    shift, scale = (ones - 1 if mean is None else mean), (ones if std is None else std)
    half = half_length(elements)
    common = (images, slots, keys, draws, shift, scale, out, sigma, elements, half, size, plane, *strides)
    with torch.cuda.device(out.device) if out.is_cuda else nullcontext():  # Triton launches on the current device, whatever the tensors'
        if source is None:
            _kernels()["dense"][(len(out), math.ceil(half / 4 / _BLOCK))](*common, BLOCK=_BLOCK)
        else:
            _kernels()["placed"][(len(out), math.ceil(size / _BLOCK))](*common, source, BLOCK=_BLOCK)
    return out


@functools.cache
def _kernels() -> dict[str, Any]:
    from shared.smoothing import triton_kernels

    return {"dense": triton_kernels.perturb_dense, "placed": triton_kernels.perturb_placed}
