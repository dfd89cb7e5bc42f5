"""CAFE from a view to records: the middle of each bottom net, then the data, then the labels."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from projects.cafe.closed import factorise, rank_reasons, solve_outputs
from projects.cafe.federation import AttackerView
from projects.cafe.inversion import DataDescent, Weights, invert
from projects.cafe.middle import Middle, Solver, recover_middle
from projects.cafe.nets import BottomNet
from shared.seeding import derive_seed

Data = Literal["representation", "reference"]
"""Step III by the representation of all records alone, or round by round with all terms as the reference takes it."""
Keep = Callable[[str, Callable[[], dict[str, Tensor]]], dict[str, Tensor]]
"""Makes what has a name, or reads what an interrupted attack made."""


@dataclass(frozen=True)
class Cafe:
    """Settings of the attack; the defaults are the closed form's, `REFERENCE` those of the authors' code.

    Args:
        solver: how steps I and II are taken; `sgd_adam_single` takes step III in the same loop if `data` is reference, see `online.follow`.
        rounds: rounds of descent in steps I and II, which visit the recorded ones again and again.
        lr_outputs: step of SGD in step I; None is the fastest, 1 / (2 K).
        lr_inputs: learning rate of Adam in step II.
        data: how step III is taken.
        steps: steps of Adam in step III, a round each with `reference`.
        lr: learning rate of step III.
        weights: of the terms of F3; `representation` takes beta / gamma and xi.
        parity: corrects Adam's bias as the reference does, see `RecordAdam`.
        chunk: records at a time in step III, which bounds the memory.
        seed: of the first values.

    Raises:
        ValueError: if an argument is unknown or out of its range.
    """

    solver: Solver = "closed_form"
    rounds: int = 20000
    lr_outputs: float | None = None
    lr_inputs: float = 1e-2
    data: Data = "representation"
    steps: int = 150
    lr: float = 0.05
    weights: Weights = field(default_factory=lambda: Weights(beta=0.0))
    parity: bool = False
    chunk: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver) or self.data not in get_args(Data):
            raise ValueError(
                f"solver is one of {', '.join(get_args(Solver))} and data one of {', '.join(get_args(Data))}: got {self.solver}, {self.data}"
            )
        if min(self.rounds, self.steps, self.chunk) < 1 or min(self.lr, self.lr_inputs, self.lr_outputs or 1) <= 0:
            raise ValueError("rounds, steps and chunk must be at least 1, and learning rates positive")
        if self.data == "representation" and self.weights.gamma == 0:
            raise ValueError("step III by representation needs gamma above 0: choose data=reference")

    @property
    def is_online(self) -> bool:
        """Whether all three steps are taken in every round, as it is played."""
        return self.solver == "sgd_adam_single" and self.data == "reference"


REFERENCE = Cafe("sgd_adam_single", lr_outputs=5e-3, data="reference", steps=20000, lr=0.01, weights=Weights(), parity=True)


@dataclass(frozen=True)
class Recovery:
    """What an attack made of a view.

    Attributes:
        rows: (n,) which of the view's records these are, in order, or of which in no order if `is_ordered` is false.
        blocks: (n, ...) of each party; rows of NaN where a record is not recoverable.
        labels: (n, C) probabilities, or scores of which the largest is the label's; None where they were known.
        is_ordered: whether row i is record `rows[i]`.
        middle: V and H of each party, where the attack has them.
        reasons: what is wrong with a record of the view, by its number.
        seconds: by step.
    """

    rows: Tensor
    blocks: list[Tensor]
    labels: Tensor | None
    is_ordered: bool
    middle: list[Middle] = field(default_factory=list)
    reasons: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


class UnrecoverableError(ValueError):
    """No record of a view can be recovered; the message says why."""


class Clock:
    """Seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Add what is done inside to a step."""
        began = time.monotonic()
        yield
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - began


def recover(view: AttackerView, cafe: Cafe | None = None, keep: Keep | None = None) -> Recovery:
    """Attack a view.

    Args:
        view: what the server saw; with `data` reference and alpha above 0, of all gradients.
        cafe: settings.
        keep: see `Keep`; step III of each party is what takes long.

    Raises:
        UnrecoverableError: if no record is recoverable, with the rank of the recorded rounds.
        ValueError: see `recover_middle` and `DataDescent`.
    """
    cafe, clock = cafe or Cafe(), Clock()
    if cafe.is_online:
        raise ValueError("the single loop with step III follows the rounds as they are played: see online.follow")
    with clock("middle"):
        middle = _middle(view, cafe)
        reasons = _reasons(middle, len(view.schedule.T))
    with clock("data"):
        if cafe.data == "reference" and not all(h_is_record(cast("BottomNet", bottom)) for bottom in view.federation().bottoms):
            return _by_rounds(view, cafe, middle, reasons, clock)
        blocks = [_blocks(view, cafe, party, own, keep or unkept) for party, own in enumerate(middle)]
    with clock("labels"):
        labels = None if view.labels is not None else recover_labels(view)
    return Recovery(torch.arange(len(view.schedule.T)), blocks, labels, True, middle, reasons, clock.seconds)


def recover_labels(view: AttackerView) -> Tensor:
    """Recover the labels from the server's own bias gradient, by the linear system of step I (ours).

    For record n it is (p_n - y_n) / K, which is negative for the label alone. After the reference's second softmax the label's is the least near the
    start of training, and may not be for a model that is sure of a wrong class.

    Returns:
        (N, C) float64 of scores, the largest being the label's; rows of NaN where the rounds do not tell.
    """
    return -solve_outputs(view.server_bias_gradients(), view.schedule.to(_device(view))).values


def h_is_record(bottom: BottomNet) -> bool:
    """Whether the input of the first fully connected layer is the record itself, so that step II ends the attack."""
    return all(isinstance(module, (nn.Identity, nn.Flatten, nn.Sequential)) for module in bottom.body.modules())


def _middle(view: AttackerView, cafe: Cafe) -> list[Middle]:
    parties = range(len(view.shapes))
    lr_outputs = cafe.lr_outputs or 1 / (2 * int(view.schedule.sum(1).max()))
    return recover_middle(
        [view.bias_gradients(m) for m in parties],
        [view.weight_rounds(m) for m in parties],
        view.schedule.to(_device(view)),
        cafe.solver,
        partial=True,
        rounds=cafe.rounds,
        lr_outputs=lr_outputs,
        lr_inputs=cafe.lr_inputs,
        reference=cafe.parity,
        seed=cafe.seed,
    )


def _reasons(middle: list[Middle], records: int) -> dict[int, str]:
    """Collect what is wrong with each record, at whichever party; refuse where nothing is recoverable."""
    reports = [own.reports[1] for own in middle if own.reports is not None]
    reasons: dict[int, str] = {}
    for party, report in enumerate(reports):
        for record, reason in report.reasons.items():
            reasons.setdefault(record, reason if len(reports) == 1 else f"party {party}: {reason}")
    if reports and not any(bool(report.recoverable.any()) for report in reports):
        rank = next(own.reports[0].rank for own in middle if own.reports is not None)
        raise UnrecoverableError(
            f"none of the {records} records is recoverable: the recorded rounds have rank {rank} of {records}; {next(iter(reasons.values()))}"
        )
    return reasons


def _blocks(view: AttackerView, cafe: Cafe, party: int, middle: Middle, keep: Keep) -> Tensor:
    """Find one party's blocks from its H, (N, *shape)."""
    bottom, shape = cast("BottomNet", view.federation().bottoms[party]), view.shapes[party]
    if h_is_record(bottom):
        return middle.inputs.reshape(-1, *shape)
    weights, seed = cafe.weights, derive_seed(cafe.seed, party)
    beta = weights.beta / weights.gamma
    inputs = middle.inputs.float()
    box = (0.0, 1.0) if len(shape) == 3 else None
    return keep(
        f"party-{party}", lambda: {"blocks": invert(bottom.body, inputs, shape, cafe.steps, cafe.lr, beta, weights.xi, cafe.chunk, seed, box)}
    )["blocks"]


def unkept(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Make what has a name, and keep nothing; see `Keep`."""
    return make()


def _descent(view: AttackerView, cafe: Cafe) -> DataDescent:
    classes = len(view.server[0].top.bias)
    return DataDescent(
        view.schedule.shape[1], view.shapes, classes, view.labels, cafe.weights, cafe.lr, cafe.parity, view.reference_loss, cafe.seed, _device(view)
    )


def _by_rounds(view: AttackerView, cafe: Cafe, middle: list[Middle], reasons: dict[int, str], clock: Clock) -> Recovery:
    """Take step III of the nested loops: recorded rounds again and again, with the H that step II has found."""
    descent, inputs = _descent(view, cafe), [own.inputs.float() for own in middle]
    members = [row.nonzero().flatten() for row in view.schedule.to(_device(view))]
    for t in (step % len(members) for step in range(cafe.steps)):
        model = view.federation(t)
        descent.step(model.bottoms, model.server, members[t], view.gradients[t], inputs)
    return descended(view, descent, middle, clock, reasons)


def descended(
    view: AttackerView, descent: DataDescent, middle: list[Middle], clock: Clock, reasons: Mapping[int, str] = MappingProxyType({})
) -> Recovery:
    """Return what step III has found round by round; records that were in no round are still what they began as, and so not recovered."""
    absent = ~view.schedule.any(0).to(descent.logits.device)
    blocks = [block.masked_fill(absent.reshape(-1, *[1] * (block.ndim - 1)), torch.nan) for block in descent.blocks]
    labels = None if view.labels is not None else descent.label_probabilities().masked_fill(absent[:, None], torch.nan)
    return Recovery(torch.arange(len(absent)), blocks, labels, True, middle, rank_reasons(factorise(view.schedule)) | dict(reasons), clock.seconds)


def _device(view: AttackerView) -> torch.device:
    return view.gradients[0].server["top.bias"].device
