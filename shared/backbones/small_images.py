"""Well-known classifiers in the form that is usual for pictures of 32 x 32: a 3 x 3 stem of stride 1 and no pooling after it."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torchvision import models
from torchvision.models.vgg import cfgs, make_layers

from shared.backbones.factory import build_backbone

TOKENS = 8
"""Patches of a vision transformer along each side of an image."""


def _stem(channels: int, width: int) -> nn.Conv2d:
    convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution


def _resnet(build: Callable[..., models.ResNet]) -> Callable[[int, int, int], nn.Module]:
    def make(classes: int, channels: int, size: int) -> nn.Module:
        network = build(num_classes=classes)
        network.conv1 = _stem(channels, 64)
        network.maxpool = nn.Identity()
        return network

    return make


def _densenet121(classes: int, channels: int, size: int) -> nn.Module:
    network = models.densenet121(num_classes=classes)
    network.features.conv0 = _stem(channels, 64)
    for name in ("norm0", "relu0", "pool0"):  # the first dense layer begins with its own normalisation
        delattr(network.features, name)
    return network


def _mobilenetv2(classes: int, channels: int, size: int) -> nn.Module:
    network = models.mobilenet_v2(num_classes=classes, dropout=0.0)
    network.features[0][0] = _stem(channels, 32)
    network.features[2].conv[1][0].stride = (1, 1)
    return network


def _vgg19(classes: int, channels: int, size: int) -> nn.Module:
    layers = list(make_layers(cfgs["E"], batch_norm=True))
    layers[0] = nn.Conv2d(channels, 64, 3, padding=1)
    pools = [place for place, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    fitting = size.bit_length() - 1  # as often as this can the size be halved
    for place in pools[fitting:]:
        layers[place] = nn.Identity()
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return nn.Sequential(nn.Sequential(*layers), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes))


def _vit(classes: int, channels: int, size: int) -> nn.Module:
    patch, rest = divmod(size, TOKENS)
    if rest or not patch:
        raise ValueError(f"a vision transformer for small images has {TOKENS} x {TOKENS} patches: the size must divide by {TOKENS}, got {size}")
    return build_backbone("vit_tiny_patch16_224", img_size=size, patch_size=patch, in_chans=channels, num_classes=classes)


_NETWORKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    **{f"resnet{depth}": _resnet(getattr(models, f"resnet{depth}")) for depth in (18, 34, 50, 101, 152)},
    "densenet121": _densenet121,
    "mobilenetv2": _mobilenetv2,
    "vgg19": _vgg19,
    "vit": _vit,
}


def build_small_image_network(name: str, classes: int, channels: int = 3, size: int = 32) -> nn.Module:
    """Build a classifier for small images, with random weights from the global generator and no dropout.

    ResNet-18 to -152 (He et al. 2016), DenseNet-121 (Huang et al. 2017), VGG-19 with batch normalisation and one linear layer (Simonyan & Zisserman
    2015) and MobileNetV2 (Sandler et al. 2018; the first two halvings left out) are torchvision's with the stem replaced. The vision transformer
    (Dosovitskiy et al. 2021) is timm's ViT-Tiny, width 192 and depth 12, over 8 x 8 patches.

    Args:
        name: resnet18, resnet34, resnet50, resnet101, resnet152, densenet121, mobilenetv2, vgg19 or vit.
        classes: K.
        channels: channels of the images.
        size: side of the images in pixels; the transformer needs just this size, the others take any from about this one on.

    Returns:
        The network, (B, C, H, W) -> (B, K) logits.

    Raises:
        ValueError: for an unknown name, or a size that a transformer cannot divide.
    """
    if name not in _NETWORKS:
        raise ValueError(f"no network {name!r} for small images; choose one of {', '.join(_NETWORKS)}")
    return _NETWORKS[name](classes, channels, size)
