"""The middle of a bottom net, h and v = dL/du, from the batch gradients of its first fully connected layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from projects.cafe.closed import Factors, Solved, factorise, membership, solve_inputs, solve_outputs
from projects.cafe.descent import Descended, MiddleDescent, RecordAdam, descend
from shared.seeding import derive_seed

__all__ = [
    "Descended",
    "Factors",
    "Middle",
    "MiddleDescent",
    "RecordAdam",
    "Solved",
    "Solver",
    "batch_gradients",
    "descend",
    "factorise",
    "membership",
    "recover_middle",
    "solve_inputs",
    "solve_outputs",
]

Solver = Literal["closed_form", "sgd_adam_nested", "sgd_adam_single"]
"""How steps I and II are taken."""


class Middle(NamedTuple):
    """V of (N, d2), H of (N, d1) and, from the closed form, the reports of steps I and II."""

    outputs: Tensor
    inputs: Tensor
    reports: tuple[Solved, Solved] | None


def batch_gradients(inputs: Tensor, outputs: Tensor, schedule: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two identities that are the whole attack: g_b = V^T s and G = H^T diag(s) V, transposed as torch stores it.

    Args:
        inputs: (N, d1) H.
        outputs: (N, d2) V, which includes the factor 1 / K of the batch mean.
        schedule: (T, N) bool, the members of each round.

    Returns:
        Gradients of the bias, (T, d2), and of the weight, (T, d2, d1).
    """
    weights = membership(schedule).to(outputs)
    return weights @ outputs, torch.einsum("tn,nj,ni->tji", weights, outputs, inputs)


def recover_middle(
    bias_gradients: Sequence[Tensor],
    weight_gradients: Sequence[Sequence[Tensor] | Tensor],
    schedule: Tensor,
    solver: Solver = "closed_form",
    partial: bool = False,
    rounds: int = 20000,
    lr_outputs: float = 5e-3,
    lr_inputs: float = 1e-2,
    reference: bool = False,
    seed: int = 0,
) -> list[Middle]:
    """Take steps I and II for every party.

    Args:
        bias_gradients: (T, d2) of each party.
        weight_gradients: T gradients of (d2, d1) of each party.
        schedule: (T, N) bool, the members of each round.
        solver: closed form, or descent in nested loops or a single one.
        partial: whether the closed form may leave records out, as rows of NaN, instead of refusing.
        rounds: rounds of descent.
        lr_outputs: step of SGD on V in descent.
        lr_inputs: learning rate of Adam on H in descent.
        reference: the reference's bias correction in descent.
        seed: seed of descent; party m draws from (seed, m).

    Raises:
        ValueError: if the solver is unknown, a gradient is missing or not finite, or, unless `partial`, a record is not recoverable by the closed
            form, with the rank: for too few rounds, records that are never apart, or records whose v is zero.
    """
    if solver not in get_args(Solver):
        raise ValueError(f"unknown solver {solver!r}: choose one of {', '.join(get_args(Solver))}")
    parties = list(zip(bias_gradients, weight_gradients, strict=True))
    if solver != "closed_form":
        loop: Literal["nested", "single"] = "nested" if solver == "sgd_adam_nested" else "single"
        found = [descend(b, w, schedule, rounds, loop, lr_outputs, lr_inputs, reference, derive_seed(seed, m)) for m, (b, w) in enumerate(parties)]
        return [Middle(outputs, inputs, None) for outputs, inputs in found]
    factors = factorise(schedule)
    return [_closed_form(b, w, schedule, factors, partial) for b, w in parties]


def _closed_form(bias_gradients: Tensor, weight_gradients: Sequence[Tensor] | Tensor, schedule: Tensor, factors: Factors, partial: bool) -> Middle:
    outputs = solve_outputs(bias_gradients, schedule, factors)
    if not partial:
        outputs.complete()
    inputs = solve_inputs(weight_gradients, schedule, outputs)
    if not partial:
        inputs.complete()
    return Middle(outputs.values, inputs.values, (outputs, inputs))
