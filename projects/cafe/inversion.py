"""Step III: the data, and the labels, from the inputs of the first fully connected layer that step II recovered."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from projects.cafe.descent import RecordAdam
from shared.seeding import generator

LABEL_WEIGHT = 100.0
"""Weight of the gradient distance for the labels, which the reference does not scale by alpha."""


class Upload(Protocol):
    """Gradients of one round, by the names of `named_parameters`."""

    @property
    def parties(self) -> Sequence[Mapping[str, Tensor]]:
        """Of each party's bottom net."""

    @property
    def server(self) -> Mapping[str, Tensor]:
        """Of the server's net."""


@dataclass(frozen=True)
class Weights:
    """Weights of F3; the defaults are the reference's for MNIST.

    Attributes:
        alpha: of the gradient distance. It buys the labels.
        beta: of the truncated total variation.
        gamma: of the representation. It buys the pixels.
        xi: level of the mean total variation, in units of a block's pixels summed, up to which it is not counted.
    """

    alpha: float = 1e-2
    beta: float = 1e-4
    gamma: float = 1e-3
    xi: float = 25.0

    def __post_init__(self) -> None:
        if min(self.alpha, self.beta, self.gamma) < 0 or self.alpha + self.gamma == 0:
            raise ValueError(f"alpha {self.alpha}, beta {self.beta} and gamma {self.gamma} must be 0 or more, and alpha or gamma above 0")


def total_variation(images: Tensor) -> Tensor:
    """Return the sum of |dx| + |dy| over pixels and channels, (B, C, H, W) -> (B,), as TensorFlow's function of that name."""
    return images.diff(dim=-1).abs().sum((1, 2, 3)) + images.diff(dim=-2).abs().sum((1, 2, 3))


def truncated_variation(blocks: Sequence[Tensor], xi: float) -> Tensor:
    """Return TV_xi: the sum over parties of the batch's mean total variation while their mean is above `xi`, and 0 below it."""
    variations = torch.stack([total_variation(block).mean() for block in blocks])
    return torch.where(variations.mean() > xi, variations.sum(), 0.0)


def representation_distance(middle: Tensor, inputs: Tensor) -> Tensor:
    """Return the sum over records of ||h(x_n) - H_n||^2, both (B, d1); records that step II could not recover, NaN in `inputs`, do not count."""
    return torch.where(inputs.isfinite(), middle - inputs, 0.0).square().sum()


def gradient_distance(loss: Tensor, nets: Sequence[nn.Module], gradients: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """Return the sum over tensors of ||grad - gradient||^2 for the gradients of `loss` in `nets`, differentiable in what `loss` depends on."""
    pairs = [(value, named[name]) for net, named in zip(nets, gradients, strict=True) for name, value in net.named_parameters()]
    found = torch.autograd.grad(loss, [value for value, _ in pairs], create_graph=True)
    return torch.stack([(mine - theirs).square().sum() for mine, (_, theirs) in zip(found, pairs, strict=True)]).sum()


def invert(
    body: Callable[[Tensor], Tensor],
    inputs: Tensor,
    shape: Sequence[int],
    steps: int = 150,
    lr: float = 0.05,
    beta: float = 0.0,
    xi: float = 25.0,
    chunk: int = 128,
    seed: int = 0,
    box: tuple[float, float] | None = (0.0, 1.0),
) -> Tensor:
    """Find one party's blocks from H alone: minimise sum_n ||h(x_n) - H_n||^2 + beta TV_xi by Adam with cosine decay and clamping.

    The net is static and every record stands alone, so that rounds, labels and the other parties play no part.

    Args:
        body: the part of the bottom net that makes h, (B, *shape) -> (B, d1), in a fixed mode.
        inputs: (N, d1) recovered H; rows of NaN are skipped.
        shape: shape of a record's block.
        steps: steps of Adam.
        lr: learning rate of the first step; it falls to 0 along half a cosine.
        beta: weight of the total variation beside a representation weight of 1.
        xi: level of total variation, in the mean over a chunk, up to which it is not counted.
        chunk: records at a time; it bounds the memory, and changes nothing else where beta is 0.
        seed: seed of the first blocks, uniform in [0, 1].
        box: least and largest value of a record, to which every step clamps; None for tables.

    Returns:
        (N, *shape) float32 in the box, NaN where `inputs` is.
    """
    blocks = torch.rand(len(inputs), *shape, generator=generator(seed, "blocks")).to(inputs.device)
    known = inputs.isfinite().all(dim=1)
    for records in known.nonzero().flatten().split(chunk):
        blocks[records] = _descend_blocks(body, inputs[records].float(), blocks[records], steps, lr, beta, xi, box)
    blocks[~known] = torch.nan
    return blocks


def _descend_blocks(
    body: Callable[[Tensor], Tensor], inputs: Tensor, blocks: Tensor, steps: int, lr: float, beta: float, xi: float, box: tuple[float, float] | None
) -> Tensor:
    blocks = blocks.requires_grad_()
    adam = torch.optim.Adam([blocks], lr=lr)
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
        loss = representation_distance(body(blocks), inputs)
        if beta:
            loss = loss + beta * truncated_variation([blocks], xi)
        (blocks.grad,) = torch.autograd.grad(loss, [blocks])
        adam.step()
        if box is not None:
            with torch.no_grad():
                blocks.clamp_(*box)
    return blocks.detach()


class Terms(NamedTuple):
    """The unweighted terms of F3 before a step: gradient distance, truncated variation (0 where beta is) and representation distance."""

    gradient: float
    variation: float
    representation: float


class DataDescent:
    """Step III as the reference takes it, a round at a time over all parties; it can follow a model that trains.

    Args:
        records: N.
        shapes: shape of each party's block of a record.
        classes: number of classes.
        labels: (N,) labels where the attacker knows them; None recovers them too, which needs alpha above 0.
        weights: weights of F3.
        lr: learning rate of the per-record Adam.
        reference: the reference's bias correction, see `RecordAdam`.
        reference_loss: whether the federation applies softmax before a loss that applies it again.
        seed: seed of the first blocks and label logits, uniform in [0, 1].
        device: of the blocks and labels.
    """

    def __init__(
        self,
        records: int,
        shapes: Sequence[Sequence[int]],
        classes: int,
        labels: Tensor | None = None,
        weights: Weights | None = None,
        lr: float = 0.01,
        reference: bool = False,
        reference_loss: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.weights = weights or Weights()
        self.reference_loss = reference_loss
        self.blocks = [torch.rand(records, *shape, generator=generator(seed, "blocks", m)).to(device) for m, shape in enumerate(shapes)]
        self.adams = [RecordAdam(block.shape, lr, reference, device=device) for block in self.blocks]
        self.labels = labels
        self.logits = torch.rand(records, classes, generator=generator(seed, "labels")).to(device)
        self.label_adam = RecordAdam((records, classes), lr, reference, device=device)

    def step(self, bottoms: Iterable[nn.Module], server: nn.Module, members: Tensor, upload: Upload, inputs: Sequence[Tensor]) -> Terms:
        """Move the blocks, and labels, of a round's members.

        Args:
            bottoms: the `BottomNet` of each party at this round; their parameters require gradients where alpha is above 0.
            server: the server's net at this round, list of (B, outputs) -> (B, classes).
            members: (K,) indices of the round's records.
            upload: gradients that the server holds of this round.
            inputs: (N, d1) recovered H of each party.

        Returns:
            The terms of F3 before the step.
        """
        bottoms, weights = list(bottoms), self.weights
        blocks = [block.index_select(0, members).requires_grad_() for block in self.blocks]
        logits = self.logits.index_select(0, members).requires_grad_()
        middle = [bottom.get_submodule("body")(block) for bottom, block in zip(bottoms, blocks, strict=True)]
        near = torch.stack([representation_distance(h, given.index_select(0, members)) for h, given in zip(middle, inputs, strict=True)]).sum()
        pictures = [block for block in blocks if block.ndim == 4]
        rough = truncated_variation(pictures, weights.xi) if weights.beta and pictures else near.new_zeros(())
        matched = self._matched(bottoms, server, middle, logits, members, upload) if weights.alpha else near.new_zeros(())
        loss = weights.alpha * matched + weights.beta * rough + weights.gamma * near
        *gradients, label_gradient = torch.autograd.grad(loss, [*blocks, logits], allow_unused=True, materialize_grads=True)
        for adam, values, gradient in zip(self.adams, self.blocks, gradients, strict=True):
            adam.step(values, members, gradient)
        if self.labels is None and weights.alpha:
            self.label_adam.step(self.logits, members, label_gradient * (LABEL_WEIGHT / weights.alpha))
        return Terms(matched.item(), rough.item(), near.item())

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, by name."""
        parts = [*zip(map(str, range(len(self.blocks))), self.blocks, self.adams, strict=True), ("labels", self.logits, self.label_adam)]
        state = {name: values for name, values, _ in parts}
        return state | {f"{name}.{key}": value for name, _, adam in parts for key, value in adam.tensors().items()}

    def label_probabilities(self) -> Tensor:
        """Return (N, classes): the softmax of the label logits, or the known labels one-hot."""
        return self.logits.softmax(dim=1) if self.labels is None else F.one_hot(self.labels, self.logits.shape[1]).to(self.logits)

    def _matched(
        self, bottoms: Sequence[nn.Module], server: nn.Module, middle: Sequence[Tensor], logits: Tensor, members: Tensor, upload: Upload
    ) -> Tensor:
        outputs = [bottom.get_submodule("tail")(bottom.get_submodule("first")(h)) for bottom, h in zip(bottoms, middle, strict=True)]
        targets = logits.softmax(dim=1) if self.labels is None else F.one_hot(self.labels[members], logits.shape[1]).to(logits)
        predicted = server(outputs)
        loss = F.cross_entropy(predicted.softmax(dim=1) if self.reference_loss else predicted, targets)
        return gradient_distance(loss, [*bottoms, server], [*upload.parties, upload.server])
