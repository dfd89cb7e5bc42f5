"""Where a convolutional network looks: gradient-weighted class activation maps."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.utils import make_grid

from projects.forgery_nas.baselines import Baseline
from projects.forgery_nas.network import ForgeryNet
from shared.forgery.pictures import heat_overlay

SIDE = 112
"""Least height of a picture in a sheet, in pixels."""


def grad_cam(net: ForgeryNet | Baseline, images: Tensor) -> Tensor:
    """Return what in the last cell's features speaks for a fake, (B, h, w) of 0 and more (Selvaraju et al. 2017, Grad-CAM).

    It is ReLU(sum_c w_c F_c), w_c being the mean over positions of the gradient, with respect to F_c, of the fake's logit less the real's.

    Args:
        net: in evaluation mode.
        images: (B, 3, H, W), uint8 or floats in [0, 1].
    """
    with torch.inference_mode(False), torch.no_grad():
        stages = net.stages(images.clone()) if isinstance(net, ForgeryNet) else [net.features(images.clone())]
    with torch.inference_mode(False), torch.enable_grad():
        features = stages[-1].requires_grad_()
        logits = net.head([*stages[:-1], features]) if isinstance(net, ForgeryNet) else net.classify(features)
        [gradient] = torch.autograd.grad((logits[:, 1] - logits[:, 0]).sum(), features)
    return (gradient.mean((2, 3), keepdim=True) * features).sum(1).relu().detach()


def map_sheet(net: ForgeryNet | Baseline, images: Tensor) -> Tensor:
    """Return a sheet, (3, height, width) in [0, 1]: the images, and below each one its `grad_cam` over it.

    Args:
        net: in evaluation mode.
        images: (B, 3, H, W) uint8.
    """
    heat = grad_cam(net, images.to(next(net.parameters()).device))
    pictures = [image.float() / 255 for image in images.cpu()]
    pictures += [heat_overlay(image, part) for image, part in zip(images, heat, strict=True)]
    enlarged = F.interpolate(torch.stack(pictures), scale_factor=max(1, -(-SIDE // images.shape[2])), mode="nearest")
    return make_grid(enlarged, nrow=len(images), padding=3, pad_value=1)
