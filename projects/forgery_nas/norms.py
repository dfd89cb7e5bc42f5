"""Statistics of batch norms, measured anew."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def measure_norms(net: nn.Module, batches: Iterable[Tensor]) -> None:
    """Set the running mean and variance of every batch norm to the means of those of batches, weighted equally.

    This is what `torch.optim.swa_utils.update_bn` does, but nothing besides the norms is in training mode, so that no unit and no path is dropped.
    Norms that the batches do not reach, as those of an auxiliary head, keep what they have.

    Args:
        net: the network; it stays in the mode that it is in.
        batches: its inputs, on its device.
    """
    norms = [layer for layer in net.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.track_running_stats]
    momenta, modes = [norm.momentum for norm in norms], [(layer, layer.training) for layer in net.modules()]
    net.eval()
    for norm in norms:
        norm.momentum = None  # a cumulative average, whose first batch replaces everything
        norm.num_batches_tracked.zero_()  # type: ignore[union-attr]
        norm.train()
    try:
        for batch in batches:
            net(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for layer, mode in modes:
            layer.training = mode
