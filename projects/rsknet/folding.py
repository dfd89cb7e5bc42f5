"""Networks to use and not to train: batch norms, whose statistics are fixed by then, become part of the layers before them."""

from __future__ import annotations

import copy
from typing import cast

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from projects.rsknet.blocks import BasicBlock, BranchGate, RSKBlock

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def folded(net: nn.Module) -> nn.Module:
    """Copy a network of `model.NETS` for evaluation, without the batch norms that follow a convolution or a linear layer; it gives the same.

    Those behind a ReLU (`TDNNLayer`) or a weighted sum (`RSKBlock.bn`) stay: the next convolution pads with zeros behind the norm, so that they could
    only be folded into it away from the ends.

    Args:
        net: is left as it is.

    Returns:
        A network in evaluation mode that needs no gradients.
    """
    net = copy.deepcopy(net).eval().requires_grad_(False)
    for module in list(net.modules()):
        if isinstance(module, nn.Sequential):
            _fold_neighbours(module)
        elif isinstance(module, BranchGate):
            module.squeeze = fuse_linear_bn_eval(module.squeeze, module.bn)
            module.bn = cast(nn.BatchNorm1d, nn.Identity())
        elif isinstance(module, (RSKBlock, BasicBlock)) and module.shortcut is not None:
            _step_by_convolution(module)
    return net.requires_grad_(False)


def _step_by_convolution(block: RSKBlock | BasicBlock) -> None:
    """Let the shortcut's convolution take the steps, not slices before it: there is no backward pass, and exporters see that lengths are equal."""
    assert block.shortcut is not None
    cast(nn.Conv2d, block.shortcut[0]).stride = (block.stride, block.stride)
    block.stride = 1


def _fold_neighbours(layers: nn.Sequential) -> None:
    """Fold each norm into the convolution straight before it."""
    for place in range(len(layers) - 1, 0, -1):
        before, norm = layers[place - 1], layers[place]
        if isinstance(before, _CONVOLUTIONS) and isinstance(norm, _NORMS):
            layers[place - 1] = fuse_conv_bn_eval(before, norm)
            del layers[place]
