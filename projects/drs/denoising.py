"""Dual smoothing with a denoiser before the classifiers: of each noised sub-image, or of the whole noised image, which is another certificate."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from projects.drs.model import DualClassifier
from projects.drs.splits import Split
from shared.smoothing import Branch
from shared.smoothing.denoised import Denoised
from shared.smoothing.placement import Placed, Placement

Denoising = Literal["per_branch", "shared"]


class Cut(nn.Module):
    """Cuts a sub-image out of whole images, (B, C, H, W) -> (B, C, h, w)."""

    def __init__(self, split: Split, branch: int) -> None:
        super().__init__()
        self.take = split.take(branch)

    def forward(self, images: Tensor) -> Tensor:
        return self.take(images)


def denoised_branches(net: DualClassifier, denoiser: nn.Module, denoising: Denoising) -> list[Branch]:
    """Put a denoiser before the classifiers of all branches.

    Args:
        net: the classifiers.
        denoiser: maps noised (B, C, H, W) images in the scale of [0, 1] to denoised ones, as a function of them alone.
        denoising: `per_branch` embeds each noised sub-image, denoises it and classifies it: every vote depends on one sub-image's noise, and the
            certificates of dual smoothing hold. `shared` denoises the whole noised image and splits it afterwards, as the published ImageNet code
            does: every vote depends on all of the noise, and only the certificate "shared" holds, R = sigma / 2 (a_l + a_r).

    Returns:
        The branches for `shared.smoothing`.

    Raises:
        ValueError: if the embedding mixes pixels before the denoiser.
    """
    if denoising == "shared":
        return [
            Branch(Denoised(denoiser, nn.Sequential(Cut(net.split, branch), net.classifier(branch)), net.split.height))
            for branch in range(len(net.split))
        ]
    if len(net.blends):
        raise ValueError("the embedding checkerboard_maxpool mixes pixels, which no denoiser expects: take packed_nearest, or --denoising shared")
    return [Branch(_denoised_part(net, branch, denoiser), net.split.take(branch)) for branch in range(len(net.split))]


def _denoised_part(net: DualClassifier, branch: int, denoiser: nn.Module) -> nn.Module:
    normalised, network = net.parts_of(branch)
    shape, channels = normalised.shape, len(normalised.mean)
    embed = Placement(normalised.source.view(shape), torch.zeros(channels), torch.ones(channels))
    normalise = Placement(torch.arange(normalised.source.numel()).view(shape), normalised.mean, normalised.std)
    return Placed(embed, Denoised(denoiser, Placed(normalise, network), (shape[1], shape[2])))
