"""Steps I and II by descent, as the reference takes them: a step a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shared.seeding import generator

Loop = Literal["nested", "single"]
"""`nested` ends step I before step II begins, and draws the rounds in shuffled passes; `single` takes both in every round, as they were recorded."""
OUTPUT_SPAN, INPUT_SPAN = 8e-4, 8e-2
"""V begins uniform in [-8e-4, 8e-4], H in [0, 8e-2]; they fit the reference's small gradients."""


class RecordAdam:
    """Adam whose moments belong to records, so that a round moves its members alone (Keras' epsilon of 1e-7).

    Args:
        shape: (N, ...) of what is optimised.
        lr: learning rate.
        reference: correct the bias twice and by the number of the round, as the reference does, not once by the steps of the record.
        betas: decay of the moments.
        eps: added to the root of the second moment.
        dtype: of the moments.
        device: of the moments.
    """

    def __init__(
        self,
        shape: Sequence[int],
        lr: float,
        reference: bool = False,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-7,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.lr, self.reference, self.betas, self.eps = lr, reference, betas, eps
        self.rounds = torch.zeros((), dtype=dtype, device=device)
        self.first = torch.zeros(*shape, dtype=dtype, device=device)
        self.second = torch.zeros_like(self.first)
        self.steps = torch.zeros(shape[0], *[1] * (len(shape) - 1), dtype=dtype, device=device)

    def step(self, values: Tensor, members: Tensor, gradient: Tensor) -> None:
        """Move the rows `members` of `values`, (K,) different indices, against their `gradient` of (K, ...), in place."""
        self.rounds += 1
        self.steps[members] += 1
        first = self.first.index_select(0, members).lerp_(gradient, 1 - self.betas[0])
        second = self.second.index_select(0, members).mul_(self.betas[1]).addcmul_(gradient, gradient, value=1 - self.betas[1])
        self.first.index_copy_(0, members, first)
        self.second.index_copy_(0, members, second)
        steps = self.rounds.expand_as(self.steps[:1]) if self.reference else self.steps.index_select(0, members)
        first_share, second_share = 1 - self.betas[0] ** steps, 1 - self.betas[1] ** steps
        update = (first / first_share) / ((second / second_share).sqrt() + self.eps)
        if self.reference:
            update *= second_share.sqrt() / first_share
        values.index_add_(0, members, update, alpha=-self.lr)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, by name."""
        return {"first": self.first, "second": self.second, "steps": self.steps, "rounds": self.rounds}


class MiddleDescent:
    """Steps I and II of one party, a round at a time; it can follow a model that trains.

    Args:
        records: N.
        widths: (d1, d2), the dimensions of h and u.
        lr_outputs: step of SGD on V. 1 / (2 K) is the fastest, and from 1 / K on it diverges.
        lr_inputs: learning rate of Adam on H.
        reference: the reference's bias correction, see `RecordAdam`.
        seed: seed of the first V and H.
        dtype: of V and H.
        device: of V and H.
    """

    def __init__(
        self,
        records: int,
        widths: tuple[int, int],
        lr_outputs: float = 5e-3,
        lr_inputs: float = 1e-2,
        reference: bool = False,
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        d1, d2 = widths
        self.lr_outputs = lr_outputs
        self.outputs = ((2 * torch.rand(records, d2, generator=generator(seed, "outputs")) - 1) * OUTPUT_SPAN).to(device, dtype)
        self.inputs = (torch.rand(records, d1, generator=generator(seed, "inputs")) * INPUT_SPAN).to(device, dtype)
        self.adam = RecordAdam((records, d1), lr_inputs, reference, dtype=dtype, device=device)

    def step_outputs(self, members: Tensor, bias_gradient: Tensor) -> Tensor:
        """Take a step of SGD on ||V^T s - g||^2 for the members, (K,) indices, and g of (d2,); return that loss before it.

        Raises:
            ValueError: if the step diverges because lr_outputs >= 1 / K.
        """
        if self.lr_outputs * len(members) >= 1:
            raise ValueError(f"lr_outputs {self.lr_outputs} diverges for {len(members)} members: take less than 1 / K, at best 1 / (2 K)")
        error = self.outputs.index_select(0, members).sum(dim=0) - bias_gradient
        self.outputs[members] -= 2 * self.lr_outputs * error  # the gradient is the same for every member
        return error.square().sum()

    def step_inputs(self, members: Tensor, weight_gradient: Tensor) -> Tensor:
        """Take a step of Adam on ||H^T diag(s) V - G||^2 for the members and G^T of (d2, d1); return that loss before it."""
        outputs = self.outputs.index_select(0, members)
        error = outputs.T @ self.inputs.index_select(0, members) - weight_gradient  # (d2, d1)
        self.adam.step(self.inputs, members, 2 * outputs @ error)
        return error.square().sum()

    def tensors(self) -> dict[str, Tensor]:
        """Return the state, by name."""
        return {"outputs": self.outputs, "inputs": self.inputs} | {f"adam.{name}": value for name, value in self.adam.tensors().items()}


class Descended(NamedTuple):
    """V of (N, d2) and H of (N, d1) after descent."""

    outputs: Tensor
    inputs: Tensor


def descend(
    bias_gradients: Tensor,
    weight_gradients: Sequence[Tensor] | Tensor,
    schedule: Tensor,
    rounds: int = 20000,
    loop: Loop = "nested",
    lr_outputs: float = 5e-3,
    lr_inputs: float = 1e-2,
    reference: bool = False,
    seed: int = 0,
) -> Descended:
    """Recover V and H of a static model from recorded rounds, which are visited again and again.

    Args:
        bias_gradients: (T, d2) gradients of the first FC layer's bias.
        weight_gradients: T gradients of its weight, (d2, d1) each.
        schedule: (T, N) bool, the members of each round.
        rounds: steps of I and steps of II.
        loop: nested or single, see `Loop`.
        lr_outputs: step of SGD on V, see `MiddleDescent`.
        lr_inputs: learning rate of Adam on H.
        reference: the reference's bias correction.
        seed: seed of the first values and of the order of the rounds.

    Raises:
        ValueError: if there is not one gradient a round, or lr_outputs >= 1 / K.
    """
    if not len(bias_gradients) == len(weight_gradients) == len(schedule) > 0:
        raise ValueError(
            f"{len(bias_gradients)} bias and {len(weight_gradients)} weight gradients for {len(schedule)} rounds: there must be one of each a round"
        )
    d2, d1 = weight_gradients[0].shape
    descent = MiddleDescent(schedule.shape[1], (d1, d2), lr_outputs, lr_inputs, reference, seed, bias_gradients.dtype, bias_gradients.device)
    members = [row.nonzero().flatten() for row in schedule]
    if loop == "single":
        for t in (t % len(schedule) for t in range(rounds)):
            descent.step_outputs(members[t], bias_gradients[t])
            descent.step_inputs(members[t], weight_gradients[t])
    else:
        for t in _shuffled(len(schedule), rounds, seed, "outputs"):
            descent.step_outputs(members[t], bias_gradients[t])
        for t in _shuffled(len(schedule), rounds, seed, "inputs"):
            descent.step_inputs(members[t], weight_gradients[t])
    return Descended(descent.outputs, descent.inputs)


def _shuffled(recorded: int, rounds: int, seed: int, step: str) -> Iterator[int]:
    """Yield `rounds` numbers of recorded rounds, in shuffled passes."""
    draw = generator(seed, "rounds", step)
    passes = (int(t) for _ in range(-(-rounds // recorded)) for t in torch.randperm(recorded, generator=draw))
    for _, t in zip(range(rounds), passes, strict=False):
        yield t
