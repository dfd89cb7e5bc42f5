"""Dummy records and labels: what attacks move, how they descend, and what they return."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.seeding import generator

EPSILON = 1e-12
"""Adam's ε: gradients of squared distances of gradients are often below 1e-8, torch's default."""
SCALE = 1e6
"""What L-BFGS sees of the objective at its start: torch's leaves out curvature below 1e-10, which small objectives never exceed."""

REACH = 0.5
"""Farthest that a step of L-BFGS moves a pixel or a label's logit; pixels are in [0, 1]."""


@dataclass(frozen=True)
class Recovered:
    """What an attack found.

    Attributes:
        blocks: (B, ...) a party, in no particular order of records unless the attack knows indices.
        labels: (B, C) probabilities.
        loss: the objective at these dummies, the lowest that was met.
    """

    blocks: list[Tensor]
    labels: Tensor
    loss: float


@dataclass(frozen=True)
class Dummies:
    """Records, and labels where unknown, as leaves of the graph.

    Attributes:
        blocks: (B, ...) a party.
        labels: (B, C) logits of unknown labels, or probabilities of known ones.
        are_labels_known: whether the labels are kept as they are.
    """

    blocks: list[Tensor]
    labels: Tensor
    are_labels_known: bool

    @classmethod
    def draw(cls, shapes: Sequence[Sequence[int]], count: int, classes: int, like: Tensor, seed: int, labels: Tensor | None = None) -> Dummies:
        """Draw pixels and label logits from U(0, 1), as the reference does, on the CPU so that every device sees the same.

        Args:
            shapes: shape of one record's block, a party.
            count: B.
            classes: C.
            like: a tensor whose device and type the dummies take.
            seed: seed of parties and labels, each with its own generator.
            labels: (B,) known labels or (B, C) known probabilities; None leaves them to be found.

        Raises:
            ValueError: if the labels are not of `count` records and `classes` classes.
        """
        blocks = [_uniform((count, *shape), like, seed, "party", party) for party, shape in enumerate(shapes)]
        if labels is None:
            return cls(blocks, _uniform((count, classes), like, seed, "labels"), are_labels_known=False)
        known = _probabilities(labels, classes).to(like)
        if known.shape != (count, classes):
            raise ValueError(f"known labels are of {tuple(known.shape)} records and classes, expected {(count, classes)}")
        return cls(blocks, known, are_labels_known=True)

    @property
    def variables(self) -> list[Tensor]:
        """The leaves that an attack moves."""
        return self.blocks if self.are_labels_known else [*self.blocks, self.labels]

    def targets(self) -> Tensor:
        """Label probabilities, (B, C)."""
        return self.labels if self.are_labels_known else self.labels.softmax(1)

    def rows(self, index: Tensor) -> tuple[list[Tensor], Tensor]:
        """Blocks and label probabilities of the records in `index`, (K,) int64."""
        return [block.index_select(0, index) for block in self.blocks], self.targets().index_select(0, index)

    def recovered(self, loss: float) -> Recovered:
        """Copy the dummies as they are now."""
        return Recovered([block.detach().clone() for block in self.blocks], self.targets().detach().clone(), loss)


def _uniform(shape: tuple[int, ...], like: Tensor, *key: int | str) -> Tensor:
    return torch.rand(shape, generator=generator(*key, "rivals")).to(like).requires_grad_()


def _probabilities(labels: Tensor, classes: int) -> Tensor:
    return labels if labels.is_floating_point() else F.one_hot(labels, classes)


class Best:
    """Keeps a copy of the dummies at which the objective was lowest.

    Args:
        dummies: what is moved; several members of a group are kept together.
    """

    def __init__(self, dummies: Sequence[Dummies]) -> None:
        self.dummies, self.loss = dummies, math.inf
        self.kept = [each.recovered(math.inf) for each in dummies]

    def offer(self, loss: float, members: Sequence[float] | None = None) -> None:
        """Keep the dummies as they are now if `loss` is the lowest yet; `members` are the losses of each, by default `loss` itself."""
        if loss < self.loss:
            losses = [loss] * len(self.dummies) if members is None else members
            self.loss, self.kept = loss, [each.recovered(own) for each, own in zip(self.dummies, losses, strict=True)]


def descend_lbfgs(dummies: Dummies, objective: Callable[[], Tensor], steps: int, lr: float = 1.0) -> Recovered:
    """Lower `objective` by L-BFGS without line search, and end early where it is no longer finite.

    A step that would move an entry by more than `REACH` is shortened. Unbounded, as DLG was published, the second step already throws a batch's
    pixels to 10^4 on digits; and a line search gets stuck, since the gradient of a net with ReLUs jumps.

    Args:
        dummies: moved in place.
        objective: the scalar to lower, at the dummies as they are.
        steps: number of iterations.
        lr: length of the quasi-Newton step.

    Returns:
        The best dummies met.
    """
    best = Best([dummies])
    start = float(objective().detach())
    scale = SCALE / start if start > 0 and math.isfinite(start) else 1.0
    optimiser = torch.optim.LBFGS(dummies.variables, lr=lr, max_iter=1, history_size=100, tolerance_grad=0, tolerance_change=0)

    def closure() -> Tensor:
        loss = objective()
        best.offer(float(loss.detach()))
        return _differentiate(scale * loss, dummies.variables)

    for _ in range(steps):
        before = [variable.detach().clone() for variable in dummies.variables]
        if not optimiser.step(closure).isfinite():
            break
        _shorten(optimiser, dummies.variables, before)
    return best.kept[0]


def _shorten(optimiser: torch.optim.LBFGS, variables: Sequence[Tensor], before: Sequence[Tensor]) -> None:
    """Draw the variables back to `REACH` from where they were, and tell the optimiser, which learns curvature from the step it took."""
    with torch.no_grad():
        farthest = max(float((variable - old).abs().max()) for variable, old in zip(variables, before, strict=True))
        if farthest > REACH:
            part = REACH / farthest
            for variable, old in zip(variables, before, strict=True):
                variable.copy_(old + part * (variable - old))
            optimiser.state[variables[0]]["t"] *= part


def descend_adam(
    variables: Sequence[Tensor],
    objective: Callable[[], Tensor],
    steps: int,
    lr: float,
    decay: Callable[[float], float],
    signed: bool = False,
    boxed: Sequence[Tensor] = (),
) -> None:
    """Lower `objective` by Adam.

    Args:
        variables: leaves, moved in place.
        objective: the scalar to lower, at the variables as they are.
        steps: number of steps.
        lr: learning rate at the start.
        decay: maps the part of the steps that is over, in [0, 1), to the factor of the learning rate.
        signed: give Adam the sign of the gradient (Geiping et al. 2020).
        boxed: those variables that are clamped to [0, 1] after every step.
    """
    optimiser = torch.optim.Adam(variables, lr=lr, eps=EPSILON)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * decay(step / steps)
        _differentiate(objective(), variables, signed)
        optimiser.step()
        with torch.no_grad():
            for variable in boxed:
                variable.clamp_(0, 1)


def step_decay(part: float) -> float:
    """A tenth of the learning rate from each of 3/8, 5/8 and 7/8 of the steps on (Geiping et al. 2020)."""
    return 0.1 ** sum(part >= edge for edge in (3 / 8, 5 / 8, 7 / 8))


def cosine_decay(part: float) -> float:
    """Half a cosine from 1 to 0."""
    return (1 + math.cos(math.pi * part)) / 2


def _differentiate(loss: Tensor, variables: Sequence[Tensor], signed: bool = False) -> Tensor:
    """Set the variables' gradients, or their signs, and return the loss without its graph."""
    for variable, gradient in zip(variables, torch.autograd.grad(loss, variables), strict=True):
        variable.grad = gradient.sign() if signed else gradient
    return loss.detach()
