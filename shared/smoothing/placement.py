"""Where the elements of a part of an image come to lie in what a network sees, and their normalisation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Placement(nn.Module):
    """Lays the elements of parts out as images and normalises them, (B, ...) -> (B, C, H, W): (placed - mean) / std.

    Masks, packing and nearest upsampling are all of this kind. Noise is added before, to the part's elements alone.

    Args:
        source: (C, H, W) integers: which of the d elements of a flattened part each output element takes, -1 for none; that one is 0 before
            normalisation.
        mean: (C,) what is taken off each channel.
        std: (C,) what each channel is divided by.

    Attributes:
        needed: how many elements a part must have at least.
        is_identity: elements 0, 1, 2, ... stay where they are; parts must then have no others.

    Raises:
        ValueError: if shapes do not go together, an index is below -1 or a standard deviation is not positive.
    """

    source: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, source: Tensor, mean: Tensor | Sequence[float], std: Tensor | Sequence[float]) -> None:
        super().__init__()
        shift, scale = (torch.as_tensor(values, dtype=torch.float32).clone() for values in (mean, std))
        if source.ndim != 3 or shift.shape != (len(source),) or scale.shape != shift.shape:
            found = ", ".join(str(tuple(values.shape)) for values in (source, shift, scale))
            raise ValueError(f"a placement needs sources of shape (C, H, W) and a mean and a deviation for each channel, got {found}")
        if int(source.min()) < -1 or float(scale.min()) <= 0:
            raise ValueError("sources are at least -1 and deviations positive")
        self.shape = tuple(source.shape)
        flat = source.flatten().to(torch.int32)
        self.needed = int(flat.max()) + 1
        self.is_identity = torch.equal(flat, torch.arange(len(flat), dtype=torch.int32, device=flat.device))
        self._is_partial = bool((flat < 0).any())
        self.register_buffer("source", flat, persistent=False)  # settings, not weights
        self.register_buffer("mean", shift, persistent=False)
        self.register_buffer("std", scale, persistent=False)

    def forward(self, parts: Tensor) -> Tensor:
        """Place and normalise parts, in their floating type."""
        flat = parts.flatten(1)
        self.check(flat.shape[1])
        if not self.is_identity:
            flat = flat.gather(1, self.source.long().clamp_min_(0).expand(len(flat), -1))
        if self._is_partial:
            flat = flat.mul(self.source >= 0)
        mean, std = (values.to(parts.dtype).view(-1, 1, 1) for values in (self.mean, self.std))
        return (flat.view(-1, *self.shape) - mean).div_(std)

    def check(self, elements: int) -> None:
        """Check that parts have elements enough, and no more where all stay in their places: they would be parts of another shape.

        Raises:
            ValueError: if a part has fewer elements than are taken, or more than are laid out as they are.
        """
        if elements < self.needed or (self.is_identity and elements > self.needed):
            raise ValueError(f"a placement takes {self.needed} elements, the part has {elements}")


class Placed(nn.Module):
    """A network behind a placement, parts (B, ...) -> logits (B, K); the engine writes noised parts straight into the network's input.

    The engine places and normalises in float32 and rounds to its own floating type afterwards.

    Args:
        placement: where elements lie.
        network: maps (B, C, H, W) to (B, K).
    """

    def __init__(self, placement: Placement, network: nn.Module) -> None:
        super().__init__()
        self.placement, self.network = placement, network

    def forward(self, parts: Tensor) -> Tensor:
        """Classify parts without noise."""
        logits: Tensor = self.network(self.placement(parts))
        return logits
