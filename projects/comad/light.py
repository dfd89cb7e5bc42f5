"""A small network that gives an inspector's heat maps without transformer and CRF, as CSAD and SALAD train one."""

from __future__ import annotations

from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.comad.components import CERTAIN, to_levels
from shared.seeding import derive_seed

WIDTHS = (16, 32, 64, 96)
"""Channels at a half, a quarter, an eighth and a sixteenth of the picture's resolution."""


class LightSegmenter(nn.Module):
    """A U-Net of about 0.3 million parameters: the probability of each cluster at each pixel. It normalises pictures itself.

    Squares of 2 x 2 pixels are laid on top of one another before the first layer and apart again after the last one, so that the finest maps have
    half the resolution, and edges are still of one pixel.

    Args:
        k: clusters.
        widths: channels of the resolutions.
        seed: of the random weights that training starts from.
    """

    def __init__(self, k: int, widths: tuple[int, ...] = WIDTHS, seed: int = 0) -> None:
        super().__init__()
        self.k, self.widths = k, tuple(widths)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(seed, "light"))
            self.down = nn.ModuleList(
                nn.Sequential(_convolution(before, width, stride), _convolution(width, width))
                for before, width, stride in zip((12, *self.widths), self.widths, (1, 2, 2, 2), strict=False)
            )
            pairs = list(zip(self.widths[1:], self.widths, strict=False))[::-1]  # the coarsest first
            self.narrow = nn.ModuleList(nn.Conv2d(deep, width, 1, bias=False) for deep, width in pairs)
            self.up = nn.ModuleList(_convolution(width, width) for _, width in pairs)
            self.head = nn.Conv2d(self.widths[0], 4 * k, 1)
        self.to(memory_format=torch.channels_last)  # convolutions on CPUs are a third faster so

    def forward(self, images: Tensor) -> Tensor:
        """Return the probability of each cluster, (B, 3, H, W) uint8 -> (B, K, H, W) float32 with sum 1 over k."""
        return self.logits(images).softmax(1)

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits of the probabilities, (B, 3, H, W) uint8 or floats of its range -> (B, K, H, W) float32."""
        height, width = images.shape[2:]
        whole = 2 ** len(self.widths)
        pixels = F.pad(images.float() / 127.5 - 1, (0, -width % whole, 0, -height % whole), mode="replicate")
        maps, skipped = F.pixel_unshuffle(pixels, 2), []  # (B, 12, H/2, W/2)
        for stage in self.down:
            maps = stage(maps)
            skipped.append(maps)
        for narrow, up, skip in zip(self.narrow, self.up, skipped[-2::-1], strict=True):
            maps = up(F.interpolate(narrow(maps), scale_factor=2.0, mode="bilinear") + skip)
        return F.pixel_shuffle(self.head(maps), 2)[..., :height, :width].float()

    @torch.no_grad()
    def levels(self, images: Tensor) -> Tensor:
        """Return heat maps, (B, 3, H, W) uint8 -> (B, K, H, W) uint8 levels, 128 for certainty, on the device of the pictures, where it moves to."""
        return to_levels(self.to(images.device)(images))

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that `from_state` takes."""
        return {"k": self.k, "widths": list(self.widths), "weights": dict(self.state_dict())}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Restore what `state` returned, for inspecting.

        Raises:
            ValueError: if the weights do not fit.
        """
        light = cls(state["k"], tuple(state["widths"]))
        try:
            light.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise ValueError(f"the weights of the light network do not fit it: distil the inspector anew ({error})") from error
        return light.eval()


def soft_cross_entropy(logits: Tensor, levels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Return the mean over pixels of -sum_k w_k Q_k log p_k, for heat maps Q that another segmentation gives.

    Args:
        logits: (B, K, H, W) of the probabilities p.
        levels: (B, K, H, W) uint8, round(128 Q).
        weights: (K,) w of the clusters; None for 1.

    Returns:
        A scalar, at least 0.
    """
    targets = levels.float() / CERTAIN
    if weights is not None:
        targets = targets * weights[:, None, None]
    return -(targets * logits.log_softmax(1)).sum(1).mean()


def balancing(shares: Tensor) -> Tensor:
    """Return weights of clusters, in inverse proportion to the roots of their shares of all pixels, so that small components are learnt too.

    Args:
        shares: (K,) at least 0; those that are 0 get the weight 0.

    Returns:
        (K,) with a mean over pixels of 1.
    """
    weights = torch.where(shares > 0, shares.clamp_min(torch.finfo(shares.dtype).tiny).rsqrt(), 0)
    return weights * shares.sum() / (weights * shares).sum()


def _convolution(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
