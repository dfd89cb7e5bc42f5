"""CAFE tried on a deployment by its auditor, who has the truth, while the model stands still and while it moves."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from projects.cafe.campaign import Campaign
from projects.cafe.closed import Factors, Solved, factorise, solve_inputs, solve_outputs
from projects.cafe.data import FederatedRecords
from projects.cafe.defences import FakeGradients
from projects.cafe.federation import CHUNK, AttackerView, Federation, adam, observe
from projects.cafe.inversion import invert
from projects.cafe.judging import mean_record
from projects.cafe.leaks import Leaks, last_rounds_needed
from projects.cafe.metrics import mse, psnr, rmse
from projects.cafe.nets import BottomNet
from projects.cafe.protection import Protection
from projects.cafe.recovery import h_is_record
from projects.cafe.schedule_files import SPARE
from projects.cafe.verdicts import known
from projects.cafe.watching import FIRST
from shared.data.selection import evenly_spaced
from shared.seeding import derive_seed

UNDEFENDED, STANDING, MOVING = "standing still, without defence", "standing still", "moving"
_RANKS = ", fake gradients undone by their ranks"
UNDONE, MOVING_UNDONE = STANDING + _RANKS, MOVING + _RANKS
"""Names of trials; those of the last rounds begin with `MOVING`, too."""
TAKEN = 0.5
"""Part of a guess's squared error that must be taken away for a record to count as leaked, 3 dB. Guesses are the mean record and zeros, which for a
table is the mean of all training records: what noise makes of a table is near zero too."""

TAKEN_OF_PART = 0.99
"""The same for the part of one party alone, whose few columns noise may meet by luck."""
NEAR = 1e-2
"""Relative error of h below which records that are not in the sample fare as those of the sample that leaked."""


@dataclass(frozen=True)
class Effort:
    """What an auditor spends on step III.

    Args:
        steps: steps of Adam, see `invert`.
        sample: records that it is tried on, at most.
        seed: of the first values.

    Raises:
        ValueError: if a number is below 1.
    """

    steps: int = 150
    sample: int = 40
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.sample) < 1:
            raise ValueError(f"steps and sample must be at least 1, got {self.steps} and {self.sample}")


@dataclass(frozen=True)
class Trial:
    """CAFE on rounds that were recorded in one way, beside the truth, which no attacker has.

    Attributes:
        row: its figures, with those of the mean record.
        parties: a row a party.
        errors: (N,) PSNR in dB, or RMSE of rows of a table; NaN for records that are not in the sample. A party's block that was not recovered
            counts as the mean of all records' blocks.
        found: (N,) bool, records of which some party's h was recovered, well or badly.
        leaked: (N,) bool: in the sample, records of which more is known than the better guess tells, see `TAKEN`; outside of it, where one
            leaked, those whose h is as near to the true one as that of such a one, or as `NEAR`.
        reasons: why some party's h was not recovered, by the record's number.
    """

    row: dict[str, Any]
    parties: list[dict[str, Any]]
    errors: Tensor
    found: Tensor
    leaked: Tensor
    reasons: dict[int, str]


class _Part(NamedTuple):
    """One party's share of a trial: reports of steps I and II, (N, d1) recovered h (0 where it was not) and true h, and (n, ...) sampled blocks."""

    outputs: Solved
    inputs: Solved
    guess: Tensor
    h: Tensor
    blocks: Tensor


def try_deployment(
    federation: Federation, data: FederatedRecords, leaks: Leaks, protection: Protection, lr: float, effort: Effort | None = None
) -> list[Trial]:
    """Try CAFE while the model stands still, without the defence, with it and against it, and while it moves, by all rounds and by the last ones.

    Args:
        federation: model at the first round; it is not changed.
        data: the records.
        leaks: the schedule, which settles a record at least.
        protection: the parties' defence.
        lr: learning rate of the deployment's Adam; 0 leaves out the trials with a model that moves.
        effort: what is spent on step III.

    Raises:
        ValueError: see `observe`, or if gradients are not finite.
    """
    effort, places = effort or Effort(), leaks.settled.nonzero().flatten()
    sample = places[evenly_spaced(len(places), effort.sample)]
    views = partial(_views, federation, data, leaks.schedule, protection, effort.seed)
    trials = []
    if protection.rule is not None:
        trials.append(trial(UNDEFENDED, record_rounds(federation, data, leaks.schedule, 0.0, Protection()), data, sample, effort))
    trials += [trial(name, view, data, sample, effort) for name, view in zip((STANDING, UNDONE), views(0.0), strict=False)]
    if lr:
        last = math.ceil(SPARE * last_rounds_needed(leaks.schedule))
        for name, view in zip((MOVING, MOVING_UNDONE), views(lr), strict=False):
            trials.append(trial(name, view, data, sample, effort))
            if last < leaks.rounds:
                trials.append(trial(f"{name}, last rounds", view.window(leaks.rounds - last, leaks.rounds), data, sample, effort))
    return trials


def _views(federation: Federation, data: FederatedRecords, schedule: Tensor, protection: Protection, seed: int, lr: float) -> list[AttackerView]:
    """Return what CAFE's server records and, where there are fake gradients, what one makes of it that knows of them, see `RankAttacker`."""
    if not isinstance(protection.rule, FakeGradients):
        return [record_rounds(federation, data, schedule, lr, protection)]
    every = {name for bottom in federation.bottoms for name, _ in bottom.named_parameters()}  # by name, so that of models only the last is kept
    view = record_rounds(federation, data, schedule, lr, protection, every)
    return [view, Campaign(seed=seed).undone(view, data, protection)]


def record_rounds(
    federation: Federation, data: FederatedRecords, schedule: Tensor, lr: float, protection: Protection, names: Collection[str] | None = FIRST
) -> AttackerView:
    """Play the rounds on a copy of the model, and return what the closed form needs of them, or gradients of other `names`; see `observe`."""
    federation = deepcopy(federation)
    device = next(federation.parameters()).device
    blocks, labels = [block.to(device) for block in data.blocks(data.attacked.values())], data.attacked.labels.to(device)
    optimiser = adam(federation, lr) if lr else None
    return observe(federation, blocks, labels, schedule, optimiser, protection.defence, True, protection.local, None, names)


def trial(name: str, view: AttackerView, data: FederatedRecords, sample: Tensor, effort: Effort) -> Trial:
    """Take steps I to III by the closed form, the last on a sample, and hold what comes of it against the truth.

    Args:
        name: of the trial.
        view: what was recorded.
        data: the records.
        sample: (n,) numbers of the records that step III is tried on.
        effort: what is spent on it.
    """
    measure, unit = _measure(data)
    truth, bottoms = data.attacked.values(), cast("list[BottomNet]", list(view.federation().bottoms))
    factors = factorise(view.schedule.to(view.gradients[0].server["top.bias"].device))
    blocks = data.blocks(truth)
    parts = [_part(view, m, bottoms[m], block, sample, effort, factors) for m, block in enumerate(blocks)]
    wrong = torch.stack([(part.guess - part.h).square().sum(1) for part in parts]).sum(0)
    distance = (wrong / torch.stack([part.h.square().sum(1) for part in parts]).sum(0).clamp_min(1e-30)).sqrt()
    found = torch.stack([part.inputs.recoverable.cpu() for part in parts]).any(0)
    average = mean_record(data)[None]
    recovered, mean = data.join([part.blocks for part in parts]), average.expand_as(truth[sample])
    good = mse(recovered, truth[sample]) < (1 - TAKEN) * _guess(average, truth[sample])
    for part, block, typical in zip(parts, blocks, data.blocks(average), strict=True):
        known_well = mse(part.blocks, block[sample]) < (1 - TAKEN_OF_PART) * _guess(typical, block[sample])
        good |= known_well & part.inputs.recoverable.cpu()[sample]
    leaked = _leaked(good, distance, found, sample)
    errors = measure(recovered, truth[sample])
    row = {"trial": name, "rounds": len(view.schedule), "sampled": len(sample), "leaked": int(leaked[sample].sum())}
    row |= {"h_error": known(float(distance[found].median())) if found.any() else None, unit: float(errors.mean())}
    row |= {f"{unit}_worst": float(errors.min() if unit == "psnr" else errors.max()), "mean_record": float(measure(mean, truth[sample]).mean())}
    rows = [_party_row(m, bottoms[m], block, part, sample, data) for m, (block, part) in enumerate(zip(blocks, parts, strict=True))]
    spread = torch.full((len(truth),), torch.nan, dtype=torch.float64).index_put((sample,), errors)
    return Trial(row, rows, spread, found, leaked, _reasons(parts))


def _measure(data: FederatedRecords) -> tuple[Callable[[Tensor, Tensor], Tensor], str]:
    return (psnr, "psnr") if data.attacked.is_pictures else (rmse, "rmse")


def _guess(mean: Tensor, truth: Tensor) -> Tensor:
    """Return the squared error of the better guess, see `TAKEN`, (n,)."""
    return torch.minimum(mse(mean.expand_as(truth), truth), mse(torch.zeros_like(truth), truth))


def _leaked(good: Tensor, distance: Tensor, found: Tensor, sample: Tensor) -> Tensor:
    """Return (N,) bool, see `Trial`, from the (n,) judgement of the sample and the (N,) relative error of h."""
    good = good & found[sample]
    leaked = found & (distance <= distance[sample][good].max().clamp_min(NEAR)) if good.any() else torch.zeros_like(found)
    leaked[sample] = good
    return leaked


def _part(view: AttackerView, party: int, bottom: BottomNet, block: Tensor, sample: Tensor, effort: Effort, factors: Factors) -> _Part:
    schedule = view.schedule.to(factors.weights.device)
    outputs = solve_outputs(view.bias_gradients(party), schedule, factors)
    inputs = solve_inputs(view.weight_rounds(party), schedule, outputs)
    with torch.no_grad():
        h = torch.cat([bottom.body(some) for some in block.to(schedule.device).split(CHUNK)]).cpu().double()
    shown, shape, box = inputs.values[sample.to(schedule.device)].float(), block.shape[1:], (0.0, 1.0) if block.ndim == 4 else None
    if h_is_record(bottom):
        found = shown.reshape(-1, *shape)
    else:
        found = invert(bottom.body, shown, shape, effort.steps, seed=derive_seed(effort.seed, party), box=box)
    found = torch.where(found.isfinite().cpu(), found.cpu(), block.mean(0, keepdim=True))
    return _Part(outputs, inputs, inputs.values.nan_to_num(0, 0, 0).cpu(), h, found)


def _reasons(parts: list[_Part]) -> dict[int, str]:
    reasons: dict[int, str] = {}
    for party, part in enumerate(parts):
        for record in (part.outputs.recoverable & ~part.inputs.recoverable).nonzero().flatten().tolist():
            reasons.setdefault(record, f"party {party}: {part.inputs.reasons[record]}")
    return reasons


def _party_row(party: int, bottom: BottomNet, block: Tensor, part: _Part, sample: Tensor, data: FederatedRecords) -> dict[str, Any]:
    """Return the figures of a party: of its net, of the records that its gradients give away, and of what h gives away of them."""
    measure, unit = _measure(data)
    entries, alive = block[0].numel(), part.inputs.recoverable.cpu()
    row: dict[str, Any] = {"party": party, "block": " x ".join(map(str, block.shape[1:])), "entries": entries}
    row |= {"d1": bottom.first.in_features, "d2": bottom.first.out_features, "d1_per_entry": round(bottom.first.in_features / entries, 3)}
    row |= {"h_is_record": h_is_record(bottom), "dead": int((part.outputs.recoverable & ~part.inputs.recoverable).sum())}
    row |= {"rank_step_two": part.inputs.rank, "condition_step_two": known(part.inputs.condition)}
    error = float((part.guess - part.h)[alive].norm() / part.h[alive].norm()) if alive.any() else math.nan
    mean = data.blocks(mean_record(data)[None])[party].expand_as(block[sample])
    row |= {"h_error": known(error), unit: float(measure(part.blocks, block[sample]).mean())}
    return row | {"mean_record": float(measure(mean, block[sample]).mean())}
