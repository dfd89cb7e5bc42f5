"""Networks for use: what one costs, and a copy in which everything that can be is folded into plain convolutions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from projects.forgery_nas.network import FactorizedReduce
from projects.forgery_nas.operations import KernelConv2d, fold_

_Net = TypeVar("_Net", bound=nn.Module)


@dataclass(frozen=True)
class Cost:
    """What a network costs.

    Attributes:
        parameters: number of its parameters, without those of an auxiliary head.
        macs: multiplications with addition in convolutions and linear layers, for one image.
    """

    parameters: int
    macs: int


def count(net: nn.Module, size: int) -> Cost:
    """Count the parameters of a network, and the multiply-adds that one image of `size` x `size` pixels takes in evaluation mode."""
    macs = 0

    def add(layer: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        kernel = layer.kernel() if isinstance(layer, KernelConv2d) else layer.weight
        assert isinstance(kernel, Tensor)
        macs += output.numel() * kernel[0].numel()  # an output is a product with one filter or row

    layers = [layer for layer in net.modules() if isinstance(layer, (nn.Conv2d, KernelConv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    was_training = net.training
    try:
        with torch.no_grad():
            net.eval()(torch.zeros(1, 3, size, size, device=next(net.parameters()).device))
    finally:
        net.train(was_training)
        for hook in hooks:
            hook.remove()
    parameters = sum(parameter.numel() for name, parameter in net.named_parameters() if "auxiliary." not in name)
    return Cost(parameters, macs)


def say_cost(net: nn.Module, size: int) -> None:
    """Print what a network costs on images of `size` x `size` pixels."""
    cost = count(net, size)
    print(f"{cost.parameters:,} parameters, {cost.macs / 1e6:.1f} M multiply-adds an image of {size} x {size} pixels", flush=True)


def fold(net: _Net) -> _Net:
    """Return a copy in evaluation mode that computes the same with fewer layers, and cannot be trained on.

    Difference convolutions become ordinary ones, and every batch norm that follows a convolution in an `nn.Sequential` becomes part of it;
    subclasses, such as timm's norms with an activation inside, stay.
    """
    folded = copy.deepcopy(net).eval()
    fold_(folded)
    for module in list(folded.modules()):
        if isinstance(module, nn.Sequential):
            _absorb_norms(module)
    return folded.requires_grad_(False).to(memory_format=torch.channels_last)


def _absorb_norms(layers: nn.Sequential) -> None:
    number = 0
    while number + 1 < len(layers):
        layer, norm = layers[number], layers[number + 1]
        if type(norm) is nn.BatchNorm2d and isinstance(layer, (nn.Conv2d, FactorizedReduce)):
            _absorb(norm, layer)
            del layers[number + 1]
        number += 1


def _absorb(norm: nn.BatchNorm2d, layer: nn.Conv2d | FactorizedReduce) -> None:
    """Give each convolution of a layer the norm's part for its channels."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    start = 0
    for convolution in (layer,) if isinstance(layer, nn.Conv2d) else (layer.even, layer.odd):
        part = slice(start, start + convolution.out_channels)
        statistics = (norm.running_mean[part], norm.running_var[part], norm.eps, norm.weight[part], norm.bias[part])
        convolution.weight, convolution.bias = fusion.fuse_conv_bn_weights(convolution.weight, convolution.bias, *statistics)
        start = part.stop
