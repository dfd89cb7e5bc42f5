"""The classifiers that are trained on poisoned and on purified sets. Images enter them as they are, in [0, 1]."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from shared.backbones.factory import build_backbone
from shared.backbones.small_images import build_small_image_network

SMALL = 64
"""Largest side, in pixels, of images that get the networks for small images."""

_LARGE = {
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "densenet121": "densenet121",
    "mobilenetv2": "mobilenetv2_100",
    "vgg19": "vgg19_bn",
    "vit": "vit_base_patch16_224",
}

VICTIMS = {
    "cnn": "three convolutions, for the offline sets",
    "resnet18": "ResNet-18, the paper's",
    "resnet50": "ResNet-50",
    "densenet121": "DenseNet-121",
    "mobilenetv2": "MobileNetV2",
    "vgg19": "VGG-19 with batch normalisation",
    "vit": "vision transformer: ViT-Tiny over 8 x 8 patches up to 64 pixels, ViT-B/16 above",
}
"""Names of the classifiers, with what each is."""


class SmallCNN(nn.Module):
    """Three convolutions of 32, 64 and 64 channels with batch normalisation, (B, C, H, W) of any size from 4 on -> (B, K) logits."""

    def __init__(self, classes: int, channels: int = 3) -> None:
        super().__init__()
        self.features = nn.Sequential(*_layer(channels, 32), nn.MaxPool2d(2), *_layer(32, 64), nn.MaxPool2d(2), *_layer(64, 64))
        self.head = nn.Linear(64 * 2 * 2, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)  # (B, 64, H / 4, W / 4)
        return self.head(nn.functional.adaptive_avg_pool2d(features, 2).flatten(1))


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


def build_victim(name: str, classes: int, channels: int = 3, size: int = 32, seed: int = 0) -> nn.Module:
    """Build a classifier whose random weights are a function of `seed`; the global generator stays as it was.

    Args:
        name: one of `VICTIMS`.
        classes: K.
        channels: channels of the images, 1 or 3.
        size: side of the images in pixels: up to 64 the networks have the stem for small images, above they are timm's for ImageNet.
        seed: seed of the weights.

    Returns:
        The network, (B, C, H, W) images in [0, 1], which it does not normalise, to (B, K) logits.

    Raises:
        ValueError: for an unknown name, or numbers that no network can have.
    """
    if name not in VICTIMS:
        raise ValueError(f"no victim {name!r}; choose one of {', '.join(VICTIMS)}")
    if classes < 2 or channels < 1 or size < 8:
        raise ValueError(f"a victim needs at least 2 classes, 1 channel and images of 8 pixels, got {classes}, {channels} and {size}")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the accelerators, too
        if name == "cnn":
            return SmallCNN(classes, channels)
        if size <= SMALL:
            return build_small_image_network(name, classes, channels, size)
        options: dict[str, Any] = {"img_size": size} if name == "vit" else {}
        return build_backbone(_LARGE[name], num_classes=classes, in_chans=channels, **options)
