"""What gradient matching compares: the gradients of dummy records with those that were uploaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Model = Callable[[list[Tensor]], Tensor]
"""Maps the parties' blocks, (B, ...) each, to logits (B, C). A horizontal worker is a single party that holds whole records."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits (B, C) and label probabilities (B, C) to the batch's mean loss."""
Distance = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Maps the dummies' gradients and the observed ones, parameter by parameter, to a scalar that is 0 where they agree."""


@dataclass(frozen=True)
class Attacked:
    """The model that an attack differentiates, jointly over all parties and the server.

    Attributes:
        model: the parties' blocks to logits; its networks are in eval mode, since batch statistics and dropout differ from call to call.
        parameters: the tensors whose gradients are uploaded, the server's last, so that the last one is the bias of the last layer.
        loss: the training loss, differentiable twice and with respect to soft labels.
    """

    model: Model
    parameters: list[Tensor]
    loss: Loss = F.cross_entropy

    def gradients(self, blocks: list[Tensor], labels: Tensor, differentiable: bool = False) -> list[Tensor]:
        """Return the gradients of the mean loss, one a parameter; zeros for a parameter that the loss does not use.

        Args:
            blocks: (B, ...) a party.
            labels: (B, C) probabilities.
            differentiable: whether the result can be differentiated with respect to blocks and labels.
        """
        loss = self.loss(self.model(blocks), labels)
        return list(torch.autograd.grad(loss, self.parameters, create_graph=differentiable, allow_unused=True, materialize_grads=True))

    def check(self, observed: Sequence[Tensor]) -> None:
        """Refuse observed gradients that are not these parameters'.

        Raises:
            ValueError: if their number or a shape differs, or a value is not finite.
        """
        if len(observed) != len(self.parameters):
            raise ValueError(f"{len(observed)} observed gradients for {len(self.parameters)} parameters: pass one a parameter, in the same order")
        for place, (gradient, parameter) in enumerate(zip(observed, self.parameters, strict=True)):
            if gradient.shape != parameter.shape:
                raise ValueError(f"observed gradient {place} has shape {tuple(gradient.shape)}, its parameter {tuple(parameter.shape)}")
            if not gradient.isfinite().all():
                raise ValueError(f"observed gradient {place} has values that are not finite: leave its round out")


def squared_distance(gradients: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
    """Sum over layers of ||g - g'||^2, of DLG (Zhu et al. 2019), iDLG and the α term of CAFE's own objective; at least 0."""
    return torch.stack([(ours - theirs).square().sum() for ours, theirs in zip(gradients, observed, strict=True)]).sum()


def cosine_distance(gradients: Sequence[Tensor], observed: Sequence[Tensor]) -> Tensor:
    """1 - <g, g'> / (|g| |g'|) over all layers as one vector (Inverting Gradients, Geiping et al. 2020), in [0, 2]; 1 if one of them is 0."""
    ours, theirs = (torch.cat([each.flatten() for each in some]) for some in (gradients, observed))
    return 1 - F.cosine_similarity(ours, theirs, dim=0)


def kernel_distance(gradients: Sequence[Tensor], observed: Sequence[Tensor], summed: bool = False) -> Tensor:
    """Sum over layers of 1 - exp(-||g - g'||^2 / var(g')), in [0, number of layers] (SAPAG, Wang et al. 2020).

    Read literally, the exponent of a layer of d entries is about -2d at a random start. exp(-2d) is 0 in floating point, and so is its derivative.
    By default the squared distance is therefore the mean over entries instead of their sum.

    Args:
        gradients: the dummies' gradients, one a parameter.
        observed: the observed ones. Layers whose observed gradient is constant have no scale and are left out.
        summed: sum the squared differences over a layer's entries, as the equation says.

    Raises:
        ValueError: if every layer is constant.
    """
    layers = []
    for ours, theirs in zip(gradients, observed, strict=True):
        variance = theirs.var(correction=0)
        if variance > 0:
            squares = (ours - theirs).square()
            layers.append(-torch.expm1(-(squares.sum() if summed else squares.mean()) / variance))
    if not layers:
        raise ValueError("every layer's observed gradient is constant: SAPAG's kernel has no scale, use another distance")
    return torch.stack(layers).sum()
