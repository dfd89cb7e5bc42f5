"""Teachers and students by name, and where their stages end."""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn
from torchvision import models

from shared.backbones.factory import build_backbone
from shared.backbones.mobilenets import CifarMobileNetV2, mobilenet_v2_blocks
from shared.backbones.resnets import CifarResNet
from shared.backbones.shufflenets import CifarShuffleNetV1, cifar_shufflenet_v2
from shared.backbones.small_images import build_small_image_network
from shared.backbones.vggs import CifarVGG
from shared.backbones.wide_resnets import WideResNet

Shape = tuple[int, ...]
Builder = Callable[[re.Match[str], Shape, int], nn.Module]

SMALL = 64
"""Up to this side in pixels, images are small: ResNets and MobileNetV2 then have the form of the CIFAR benchmarks."""
TILE_COLUMNS = 8
"""Tiles side by side in a picture of the world of parity tiles."""
WIDE = (32, 64, 128, 256)
ZOO = (
    *("mlp_16", "mlp_512_256", "cnn_8", "tiles_16", "tiles_800"),
    *("resnet8", "resnet14", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "resnet8x4", "resnet32x4"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wrn_16_1", "wrn_16_2", "wrn_40_1", "wrn_40_2"),
    *("vgg8", "vgg11", "vgg13", "vgg16", "vgg19", "mobilenetv2_0.5", "mobilenetv2_0.5_t3", "mobilenetv2_1", "shufflenetv1", "shufflenetv2"),
)
"""Names to choose from; numbers of mlp, cnn, tiles, wrn and mobilenetv2 may be others. Beside them `timm:NAME` and `torchvision:NAME`."""
_UNSUITABLE = ("googlenet", "inception_v3")  # in training they answer with more than logits


def mlp(shape: Shape, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """Build flatten, (hidden1, relu1), (hidden2, relu2), ..., output; inputs of `shape` to (B, `outputs`)."""
    sizes = [int(torch.Size(shape).numel()), *hidden]
    layers: list[tuple[str, nn.Module]] = [("flatten", nn.Flatten())]
    for number, (before, width) in enumerate(pairwise(sizes), start=1):
        layers += [(f"hidden{number}", nn.Linear(before, width)), (f"relu{number}", nn.ReLU())]
    return nn.Sequential(OrderedDict([*layers, ("output", nn.Linear(sizes[-1], outputs))]))


def cnn(channels: int, width: int, outputs: int) -> nn.Sequential:
    """Build three stages of a 3 x 3 convolution, normalisation and ReLU, the first two halved, of widths 1, 2 and 4 times `width`.

    (B, `channels`, H, W) with sides of 4 pixels or more to (B, `outputs`), from the average over the last map.
    """
    layers: list[tuple[str, nn.Module]] = []
    for number, (before, after) in enumerate(pairwise((channels, width, 2 * width, 4 * width)), start=1):
        convolution = nn.Conv2d(before, after, 3, padding=1, bias=False)
        layers += [(f"conv{number}", convolution), (f"bn{number}", nn.BatchNorm2d(after)), (f"relu{number}", nn.ReLU())]
        layers += [(f"pool{number}", nn.MaxPool2d(2))] if number < 3 else []
    head = [("average", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten()), ("output", nn.Linear(4 * width, outputs))]
    return nn.Sequential(OrderedDict([*layers, *head]))


def tiles(shape: Shape, width: int, outputs: int) -> nn.Sequential:
    """Build the net for parity tiles: one filter reads every tile, a hidden layer sees the codes of all at once.

    The codes are normalised, so that the hidden layer sees them centred, as signs are.

    Args:
        shape: (C, R s, 8 s), R rows of tiles of s x s pixels.
        width: units of the hidden layer.
        outputs: K.

    Returns:
        tile (a code of one number each), bn, flatten, hidden, relu, output: (B, C, R s, 8 s) -> (B, K).

    Raises:
        ValueError: if the shape is no grid of square tiles, eight side by side.
    """
    channels, height, columns = shape
    side = columns // TILE_COLUMNS
    if side < 1 or columns % TILE_COLUMNS or height % side:
        raise ValueError(f"tiles_{width} reads rows of {TILE_COLUMNS} square tiles, (C, R s, {TILE_COLUMNS} s), not {shape}; for others take cnn_8")
    layers: list[tuple[str, nn.Module]] = [("tile", nn.Conv2d(channels, 1, side, stride=side, bias=False)), ("bn", nn.BatchNorm2d(1))]
    hidden = nn.Linear(height // side * TILE_COLUMNS, width)
    layers += [("flatten", nn.Flatten()), ("hidden", hidden), ("relu", nn.ReLU()), ("output", nn.Linear(width, outputs))]
    return nn.Sequential(OrderedDict(layers))


def _is_small(shape: Shape) -> bool:
    return max(shape[1:]) <= SMALL


def _with_channels(net: nn.Module, channels: int) -> nn.Module:
    """Give a net of torchvision another first convolution where images have not three channels; in place."""
    name, first = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if first.in_channels != channels:
        size = first.kernel_size, first.stride, first.padding
        fresh = nn.Conv2d(channels, first.out_channels, *size, bias=first.bias is not None)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(fresh.weight, mode="fan_out", nonlinearity="relu")
        net.set_submodule(name, fresh)
    return net


def _resnet(match: re.Match[str], shape: Shape, outputs: int) -> nn.Module:
    if _is_small(shape):
        return build_small_image_network(match[0], outputs, shape[0])
    return _with_channels(models.get_model(match[0], weights=None, num_classes=outputs), shape[0])


def _mobilenetv2(match: re.Match[str], shape: Shape, outputs: int) -> nn.Module:
    width, expansion = float(match[1]), int(match[2] or 6)
    if _is_small(shape):
        return CifarMobileNetV2(width, expansion, outputs, shape[0])
    blocks = [list(group) for group in mobilenet_v2_blocks(expansion)]
    return _with_channels(models.MobileNetV2(outputs, width, inverted_residual_setting=blocks), shape[0])


def _torchvision(match: re.Match[str], shape: Shape, outputs: int) -> nn.Module:
    name, known = match[1], [name for name in models.list_models(module=models) if name not in _UNSUITABLE]
    if name not in known:
        raise ValueError(f"torchvision has no classifier {name!r} for us" + _near(name, known))
    return _with_channels(models.get_model(name, weights=None, num_classes=outputs), shape[0])


def _timm(match: re.Match[str], shape: Shape, outputs: int) -> nn.Module:
    import timm

    name = match[1]
    is_fixed = timm.is_model(name) and getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    return build_backbone(name, None, num_classes=outputs, in_chans=shape[0], **({"img_size": shape[1:]} if is_fixed else {}))


_BUILDERS: dict[str, Builder] = {
    r"mlp((?:_[1-9]\d*)+)": lambda match, shape, outputs: mlp(shape, [int(width) for width in match[1].split("_")[1:]], outputs),
    r"cnn_([1-9]\d*)": lambda match, shape, outputs: cnn(shape[0], int(match[1]), outputs),
    r"tiles_([1-9]\d*)": lambda match, shape, outputs: tiles(shape, int(match[1]), outputs),
    r"resnet(8|14|20|32|44|56|110)": lambda match, shape, outputs: CifarResNet(int(match[1]), outputs, shape[0]),
    r"resnet(8|14|20|32|44|56|110)x4": lambda match, shape, outputs: CifarResNet(int(match[1]), outputs, shape[0], WIDE),
    r"resnet(18|34|50|101|152)": _resnet,
    r"wrn_(\d+)_(\d+)": lambda match, shape, outputs: WideResNet(int(match[1]), int(match[2]), outputs, shape[0]),
    r"vgg(8|11|13|16|19)": lambda match, shape, outputs: CifarVGG(int(match[1]), outputs, shape[0], min(shape[1:])),
    r"mobilenetv2_(\d+(?:\.\d+)?)(?:_t(\d+))?": _mobilenetv2,
    r"shufflenetv1": lambda match, shape, outputs: CifarShuffleNetV1(outputs, shape[0]),
    r"shufflenetv2": lambda match, shape, outputs: cifar_shufflenet_v2(outputs, shape[0]),
    r"torchvision:(.+)": _torchvision,
    r"timm:(.+)": _timm,
}


def build_network(name: str, shape: Sequence[int], outputs: int) -> nn.Module:
    """Build a network with random weights from the global generator.

    Args:
        name: one of `ZOO`, such as `mlp_16` (widths of hidden layers), `cnn_8` (first width), `tiles_16`, `resnet20`, `wrn_40_2` (depth, width),
            `mobilenetv2_0.5` (width; `_t3` for expansion 3 instead of 6); or `timm:NAME` or `torchvision:NAME`, without a download.
        shape: (n,) of vectors or (C, H, W) of images. ResNet-18 to -152 and MobileNetV2 keep torchvision's form for images of more than 64 pixels.
        outputs: K classes, or the length d of an embedding.

    Returns:
        The network, (B, *shape) -> (B, outputs), in training mode.

    Raises:
        ValueError: if the name is unknown, or the network cannot take inputs of this shape.
    """
    shape = tuple(int(size) for size in shape)
    if len(shape) not in (1, 3) or min((*shape, outputs)) < 1:
        raise ValueError(f"a network maps vectors (n,) or images (C, H, W) to one output or more, not inputs of shape {shape} to {outputs}")
    match, build = _find(name)
    if len(shape) == 1 and not name.startswith("mlp_"):
        raise ValueError(f"{name} takes images (C, H, W), the data have vectors of {shape[0]} numbers: take an mlp, such as mlp_16")
    try:
        net = build(match, shape, outputs)
        answer = _probe(net, shape)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"{name} cannot take inputs of shape {shape} ({reason}): give it larger images, or take another network") from error
    if answer != (1, outputs):
        raise ValueError(f"{name} does not answer an input with one row of {outputs} numbers: take another network")
    return net


def _find(name: str) -> tuple[re.Match[str], Builder]:
    for pattern, build in _BUILDERS.items():
        if match := re.fullmatch(pattern, name):
            return match, build
    raise ValueError(f"no network {name!r}{_near(name, ZOO)}; choose one of {', '.join(ZOO)}, timm:NAME or torchvision:NAME")


def _near(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}" if close else ""


def _probe(net: nn.Module, shape: Shape) -> Shape:
    """Return the shape of the answer to one input; tensors without content tell it at next to no cost."""
    tensors = {key: tensor.to("meta") for key, tensor in net.state_dict().items()}
    was_training = net.training
    answer = torch.func.functional_call(net.eval(), tensors, (torch.empty(1, *shape, device="meta"),))
    net.train(was_training)
    return tuple(answer.shape)


_STAGES = {
    "CifarResNet": ("relu", "layer1", "layer2", "layer3"),
    "ResNet": ("relu", "layer1", "layer2", "layer3", "layer4"),
    "WideResNet": ("conv1", "layer1", "layer2", "layer3"),
    "CifarVGG": ("blocks.0", "blocks.1", "blocks.2", "blocks.3", "blocks.4"),
    "CifarMobileNetV2": ("stem", "blocks.1", "blocks.2", "blocks.4", "blocks.6"),
    "MobileNetV2": ("features.0", "features.3", "features.6", "features.13", "features.17"),
    "CifarShuffleNetV1": ("relu", "stage2", "stage3", "stage4"),
    "ShuffleNetV2": ("conv1", "stage2", "stage3", "stage4"),
}
"""Ends of the stages by class: ours, and ResNet, MobileNetV2 and ShuffleNetV2 of torchvision."""


def stages(net: nn.Module) -> list[str]:
    """Name the layers in which the stages of a network end, in the order of the pass; the stem's is the first, number 0.

    A stage ends after its last activation; those of WRN and MobileNetV2 have none at their end, by their papers. The stages of plain nets (mlp, cnn,
    tiles) end in their ReLUs. Networks of timm have the stages that timm lists: transformers one a block, and some no stem.

    Raises:
        ValueError: if nothing is known of this kind of network.
    """
    layers = dict(net.named_modules())
    if timm_stages := getattr(net, "feature_info", None):
        names = [stage["module"] for stage in timm_stages]
    elif isinstance(net, nn.Sequential):
        names = [name for name, layer in net.named_children() if isinstance(layer, nn.ReLU)]
    elif isinstance(net, models.VGG):
        names = [f"features.{number - 1}" for number, layer in enumerate(net.features) if isinstance(layer, nn.MaxPool2d)]
    else:
        names = list(_STAGES.get(type(net).__name__, ()))
    if not names or any(name not in layers for name in names):
        raise ValueError(f"where the stages of a {type(net).__name__} end is not known: name its layer (loss.student_layer, loss.teacher_layer)")
    return names


def classifier(net: nn.Module) -> str:
    """Name the last linear layer of a network, as in `named_modules`; what goes into it are the penultimate features.

    Raises:
        ValueError: if it has no linear layer.
    """
    names = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not names:
        raise ValueError(f"a {type(net).__name__} has no linear layer to take for its classifier: choose another network")
    return names[-1]
