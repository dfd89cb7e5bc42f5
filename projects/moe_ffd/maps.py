"""Where a detector looks: attention of the class token, and the expert that each patch is routed to."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from projects.moe_ffd.model import Detector, MoEViT
from shared.forgery.pictures import expert_overlay, heat_overlay

SIDE = 112
"""Least height of a picture in a sheet, in pixels."""


@torch.inference_mode()
def attention_map(detector: Detector, images: Tensor) -> Tensor:
    """Return how much the class token of the last block attends to each patch, averaged over heads.

    Args:
        detector: in evaluation mode.
        images: (B, 3, H, W), uint8 or floats in [0, 1].

    Returns:
        (B, rows, columns); of each image they sum to what does not go to the class token itself.
    """
    attention = detector.blocks()[-1].attn
    seen: list[Tensor] = []
    hook = attention.qkv.register_forward_hook(lambda module, inputs, output: seen.append(output))
    try:
        detector(images)
    finally:
        hook.remove()
    query, key, _ = seen[0].unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, D / heads)
    query, key = attention.q_norm(query[:, :, :1]), attention.k_norm(key)
    weights = (query @ key.mT * attention.scale).softmax(-1).mean(1)[:, 0]  # (B, N)
    embed = detector.backbone.patch_embed
    grid = embed.dynamic_feat_size(tuple(images.shape[2:])) if detector.backbone.dynamic_img_size else embed.grid_size
    return weights[:, detector.backbone.num_prefix_tokens :].unflatten(1, grid)


@torch.inference_mode()
def map_sheet(detector: Detector, images: Tensor) -> Tensor:
    """Return a sheet, (3, height, width) in [0, 1], with a row an image: the image, its attention, and the patches' LoRA experts in every block.

    Args:
        detector: in evaluation mode; one without LoRA experts has two columns.
        images: (B, 3, H, W) uint8.
    """
    device = next(detector.parameters()).device
    heat = attention_map(detector, images.to(device))
    routed = isinstance(detector, MoEViT) and detector.mixtures("lora")
    experts = detector.expert_maps() if routed else images.new_empty(0, len(images))  # type: ignore[operator]
    pictures = []
    for row, image in enumerate(images.cpu()):
        pictures += [image.float() / 255, heat_overlay(image, heat[row]), *(expert_overlay(image, layer[row]) for layer in experts)]
    enlarged = F.interpolate(torch.stack(pictures), scale_factor=max(1, -(-SIDE // images.shape[2])), mode="nearest")
    return make_grid(enlarged, nrow=2 + len(experts), padding=3, pad_value=1)
