"""Gradient matching over rounds whose members are known: CAFE's α term without steps I and II."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from projects.cafe.rivals.attacks import Shapes
from projects.cafe.rivals.dummies import Dummies, Recovered, cosine_decay, descend_adam
from projects.cafe.rivals.matching import Attacked, squared_distance
from shared.seeding import generator

AtRound = Callable[[int], Attacked]
"""Maps a recorded round to the model as it was then; a static model is the same for all."""


def match_rounds(
    at_round: AtRound,
    observed: Sequence[Sequence[Tensor]],
    schedule: Tensor,
    shapes: Shapes,
    steps: int = 600,
    lr: float = 0.05,
    seed: int = 0,
    labels: Tensor | None = None,
) -> Recovered:
    """Find all N records from the gradients of T rounds by Adam on the squared distance of one round's gradients a step.

    The rounds are taken in random order, each once before any is taken again. The learning rate falls along half a cosine, and pictures are clamped
    to [0, 1].

    Args:
        at_round: the model in round t.
        observed: for each of T rounds the gradients of the batch's mean loss, as the model's parameters.
        schedule: (T, N) bool, row t the members of round t.
        shapes: shape of one record's block, a party.
        steps: steps of Adam.
        lr: learning rate at the start.
        seed: seed of the dummies and of the order of rounds.
        labels: (N,) known labels or (N, C) probabilities; None finds soft labels with the records.

    Returns:
        All N records in the order of the schedule's columns; the loss is the mean over rounds of the squared distance.

    Raises:
        ValueError: if the schedule has not one row for each round, a row is empty, the gradients are not of the model's parameters, or the labels
            are not of the records.
    """
    _check(at_round, observed, schedule)
    members = [row.nonzero().squeeze(1).to(observed[0][-1].device) for row in schedule]
    dummies = Dummies.draw(shapes, schedule.shape[1], len(observed[0][-1]), observed[0][-1], seed, labels)
    order = _rounds(len(observed), seed)

    def distance(t: int, differentiable: bool) -> Tensor:
        return squared_distance(at_round(t).gradients(*dummies.rows(members[t]), differentiable), observed[t])

    descend_adam(
        dummies.variables, lambda: distance(next(order), True), steps, lr, cosine_decay, boxed=[block for block in dummies.blocks if block.ndim == 4]
    )
    losses = [float(distance(t, False)) for t in range(len(observed))]
    return dummies.recovered(sum(losses) / len(losses))


def _rounds(count: int, seed: int) -> Iterator[int]:
    """Rounds in one random order after another, without end."""
    random = generator(seed, "rivals", "rounds")
    while True:
        yield from torch.randperm(count, generator=random).tolist()


def _check(at_round: AtRound, observed: Sequence[Sequence[Tensor]], schedule: Tensor) -> None:
    if not len(observed) or len(observed) != len(schedule):
        raise ValueError(
            f"{len(observed)} rounds of gradients for a schedule of {len(schedule)}: there must be a row for each round, and a round at least"
        )
    empty = (~schedule.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"no record is a member of rounds {empty}: leave them out of the schedule and the gradients")
    for t, gradients in enumerate(observed):
        at_round(t).check(gradients)
