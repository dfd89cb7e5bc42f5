"""Vision transformers without a head: timm's by name, and a tiny one that sees noise, for work without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from timm.layers import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from shared.backbones.factory import build_backbone
from shared.checkpoints import load_weights

TINY_WEIGHTS = Path(__file__).parent / "assets" / "tiny_vit.safetensors"
"""Weights of `TinyViT` for 48 x 48 pixels, as float16, from `pretraining.pretrain` with seed 0."""
TINY_SIZE = 48
TINY_NETWORKS: dict[str, dict[str, int]] = {"tiny": {"width": 64, "heads": 4}, "tiny_wide": {"width": 96, "heads": 6}}
"""Options of `TinyViT` by name; weights of the first lie in this folder, those of others are made by `pretraining.pretrain`."""


class HighPassEmbed(PatchEmbed):
    """Patches of an image beside its amplified high frequencies, (B, 3, S, S) -> (B, (S / P)^2, D).

    A linear projection of raw patches does not learn within minutes to see noise; so the image and its difference from the mean of 3 x 3 pixels,
    times `gain` and clipped to [-1, 1], go through a convolution 3x3 to 24 channels and a ReLU before the projection.

    Args:
        img_size: side S of the images in pixels.
        patch_size: side P of a patch in pixels.
        embed_dim: width D of a token.
        gain: factor of the difference, in units of images in [0, 1]. The images that come in are normalised by mean = std = 0.5.
        **options: what timm passes to its own embedding besides.
    """

    def __init__(self, img_size: int = TINY_SIZE, patch_size: int = 6, embed_dim: int = 64, gain: float = 10.0, **options: Any) -> None:
        super().__init__(**(options | {"img_size": img_size, "patch_size": patch_size, "embed_dim": embed_dim, "in_chans": 24}))
        self.gain = gain
        self.filters = nn.Conv2d(6, 24, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        residual = images - F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
        amplified = (self.gain / 2 * residual).clamp(-1, 1)  # normalised images span 2, those in [0, 1] span 1
        return super().forward(self.filters(torch.cat([images, amplified], dim=1)).relu())


class TinyViT(VisionTransformer):
    """A vision transformer of 0.21 million weights behind `HighPassEmbed`, (B, 3, S, S) in [-1, 1] -> (B, D).

    Args:
        size: side S of the images in pixels, a multiple of `patch`.
        patch: side of a patch in pixels.
        width: features D of a token.
        depth: blocks.
        heads: attention heads of a block.

    Raises:
        ValueError: if `size` is no multiple of `patch`.
    """

    def __init__(self, size: int = TINY_SIZE, patch: int = 6, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        if size < patch or size % patch:
            raise ValueError(f"the tiny ViT has patches of {patch} pixels: take a size that is a multiple of {patch}, not {size}")
        super().__init__(img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=heads, num_classes=0, embed_layer=HighPassEmbed)
        self.pretrained_cfg = {"input_size": (3, size, size), "mean": (0.5,) * 3, "std": (0.5,) * 3}


def build_vit(name: str = "tiny", size: int = TINY_SIZE, weights: str | Path | None = None) -> VisionTransformer:
    """Build a vision transformer without a head.

    Args:
        name: `tiny` or `tiny_wide`, or timm's name of a ViT or DeiT, such as `vit_base_patch16_224`.
        size: side of the images in pixels; position embeddings of weights made for another size are resized.
        weights: None for random weights; a local .safetensors or .pth file; or "pretrained": the weights in this folder for `tiny`, else timm's own
            from its cache or by download.

    Returns:
        The network, (B, 3, size, size) to (B, D). Its `pretrained_cfg` has the `mean` and `std` by which images in [0, 1] are normalised.

    Raises:
        ValueError: if there is no such network, it is no vision transformer, the size does not fit its patches, or the weights do not fit it.
        FileNotFoundError: if the weights are not there.
    """
    if name in TINY_NETWORKS:
        return _tiny(name, size, weights)
    if timm.is_model(name) and not timm.models.is_model_in_modules(name, ("vision_transformer", "deit")):
        raise ValueError(f"{name} is no plain vision transformer: take tiny, or a ViT or DeiT such as vit_base_patch16_224")
    net: Any = build_backbone(name, None if weights is None else str(weights), num_classes=0, img_size=size)
    if size % net.patch_embed.patch_size[0]:
        raise ValueError(f"{name} has patches of {net.patch_embed.patch_size[0]} pixels: take a size that is a multiple of it, not {size}")
    return net


def _tiny(name: str, size: int, weights: str | Path | None) -> TinyViT:
    options = TINY_NETWORKS[name]
    if weights is None:
        return TinyViT(size, **options)
    if weights == "pretrained" and name != "tiny":
        raise ValueError(f"no weights of {name} are at hand: make them with the verb pretrain --backbone {name}, and name the file")
    net = TinyViT(**options)
    load_weights(net, TINY_WEIGHTS if weights == "pretrained" else weights)
    if size != TINY_SIZE:
        TinyViT(size)  # refuses sizes that do not fit
        net.set_input_size(img_size=size)
        net.pretrained_cfg["input_size"] = (3, size, size)
    return net
