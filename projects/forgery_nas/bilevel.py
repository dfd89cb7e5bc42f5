"""The two gradients of the bilevel problem min_alpha L_val(w*(alpha), alpha), w*(alpha) = argmin_w L_train(w, alpha).

Gradients are taken by `torch.autograd.grad` and averaged over processes here, not by DDP's hooks: two losses with different parameters, candidates
that are not computed or deleted, and the unrolled step then all work with one plain rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from shared.distributed import world_size

Loss = Callable[[], Tensor]
RADIUS = 0.01
"""Length by which the weights are moved, r = 0.01 / |v|."""


class Unrolling(NamedTuple):
    """The step of SGD that is unrolled: w' = w - rate (momentum buffer + g + decay w).

    Attributes:
        rate: its learning rate.
        momentum: its momentum.
        decay: its weight decay.
        buffers: momentum buffers of the weights, None where there is none yet.
    """

    rate: float
    momentum: float
    decay: float
    buffers: Sequence[Tensor | None]


def averaged(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Average tensors over all processes, which must have None in the same places."""
    present = [tensor for tensor in tensors if tensor is not None]
    if world_size() == 1 or not present:
        return list(tensors)
    flat = torch.cat([tensor.flatten() for tensor in present])
    dist.all_reduce(flat)
    parts = iter((flat / world_size()).split([tensor.numel() for tensor in present]))
    return [None if tensor is None else next(parts).view_as(tensor) for tensor in tensors]


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of a loss, averaged over processes; None for what it does not depend on."""
    return averaged(torch.autograd.grad(loss, list(parameters), allow_unused=True))


def unrolled_gradients(
    train_loss: Loss, val_loss: Loss, weights: Sequence[Tensor], architecture: Sequence[Tensor], unrolling: Unrolling
) -> list[Tensor]:
    """Return the second-order gradient of the architecture, that of L_val(w'(alpha), alpha) with w' one step of training from w.

    The product of the mixed second derivative and v = dL_val(w', alpha) / dw' is a central difference,
    (dL_train(w + r v, alpha) / dalpha - dL_train(w - r v, alpha) / dalpha) / 2r with r = 0.01 / |v|.

    Args:
        train_loss: computes L_train from what weights and architecture are at the time.
        val_loss: computes L_val.
        weights: w; moved in between, and put back.
        architecture: alpha and beta.
        unrolling: the step.

    Returns:
        The gradients, averaged over processes.
    """
    kept = [weight.detach().clone() for weight in weights]
    steps = [gradient + unrolling.decay * weight for gradient, weight in zip(_full(train_loss(), weights), kept, strict=True)]
    for step, buffer in zip(steps, unrolling.buffers, strict=True):
        if buffer is not None:
            step.add_(buffer, alpha=unrolling.momentum)
    _place(weights, kept, steps, -unrolling.rate)
    found = _full(val_loss(), [*architecture, *weights])
    first, v = found[: len(architecture)], found[len(architecture) :]
    radius = RADIUS / torch.cat([each.flatten() for each in v]).norm().clamp_min(1e-12).item()
    _place(weights, kept, v, radius)
    above = _full(train_loss(), architecture)
    _place(weights, kept, v, -radius)
    below = _full(train_loss(), architecture)
    _place(weights, kept, v, 0)
    return [each - unrolling.rate * (up - down) / (2 * radius) for each, up, down in zip(first, above, below, strict=True)]


def _full(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the averaged gradients, zero for what the loss does not depend on."""
    found = averaged(torch.autograd.grad(loss, list(parameters), allow_unused=True, materialize_grads=True))
    return [gradient for gradient in found if gradient is not None]


@torch.no_grad()
def _place(weights: Sequence[Tensor], centre: Sequence[Tensor], direction: Sequence[Tensor], length: float) -> None:
    """Set the weights to centre + length direction."""
    for weight, middle, towards in zip(weights, centre, direction, strict=True):
        weight.copy_(torch.add(middle, towards, alpha=length))
