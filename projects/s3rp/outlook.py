"""Fields, their spread, and how well that spread fits, for observations whose truth nobody knows."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from projects.s3rp.classical import last_observed
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import RINGING
from projects.s3rp.sets import Observations
from shared.seeding import generator

if TYPE_CHECKING:
    from projects.s3rp.fields import FieldPrior
    from projects.s3rp.module import PlumeSuperResolution
    from shared.cli import ProjectTrainer

CELLS = 2**23
"""Cells of fields that the network computes at a time."""
HIDDEN = 0.2
"""Part of the observed values that are hidden to fit the spread."""
JUDGED = 8
"""Sequences that the spread is fitted on at most."""
RAISED = 0.3
"""Part of the largest value above which, if all lie there, a background is asked for."""
HELD = 1e-6
"""Part of the largest speed up to which winds count as the same."""
EMPTY = 0.1
"""Part of the deviation of all frames below which the first ones are empty."""
GROWTH = 3
"""Times the largest observed value from which on fields are not to be trusted."""


@dataclass(frozen=True)
class Outlook:
    """What is said of sequences.

    Attributes:
        mean: (B, T, H, W) fields: of a deterministic network its own, of a stochastic one the members' mean.
        deviation: (B, T, H, W) standard deviation of the members; None without.
        members: (M, B, T, H, W); None without.
        source: (B, 1, H, W) rates of release that a network which looks for them found.
    """

    mean: Tensor
    deviation: Tensor | None = None
    members: Tensor | None = None
    source: Tensor | None = None


def estimate(trainer: ProjectTrainer, module: PlumeSuperResolution, observations: Observations) -> Tensor:
    """Return the network's fields, (B, T, H, W) float32 on the CPU, computed a few sequences at a time.

    Raises:
        ValueError: if they are not finite.
    """
    cells = observations.frames * observations.shape[0] * observations.shape[1]
    step, parts = max(1, CELLS // cells), []
    for start in range(0, len(observations), step):
        batch = {name: value.to(module.device) for name, value in observations.batch(slice(start, start + step)).items()}
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            parts.append(module(batch, observations.physics).float().cpu())
    return _finite(torch.cat(parts))


def prior_of(module: PlumeSuperResolution, observations: Observations) -> FieldPrior | None:
    """Fit the prior of Matheron's rule to coarse observations; a stochastic network has one of its own.

    It is that of the first frames, or of all frames where the first ones are empty, as before a release.

    Raises:
        ValueError: if hardly anything is observed in the first frames.
    """
    if module.is_stochastic:
        return None
    from projects.s3rp.fields import fit_field

    prior = fit_field(observations)
    is_empty = prior.deviation < EMPTY * float(observations.coarse[observations.mask].std(correction=0))
    return fit_field(observations, frames=None) if is_empty else prior


def draw_members(
    trainer: ProjectTrainer, module: PlumeSuperResolution, observations: Observations, prior: FieldPrior | None, members: int, *key: int | str
) -> tuple[Tensor, Tensor]:
    """Return fields and an ensemble around them: a stochastic network's draws and their mean, or a deterministic one's field and Matheron's rule.

    That rule's members lie around a mean of their own, which the network made of differences; its own field, made of what it has learnt from, is
    nearer to the truth, so that the members are moved there.

    Args:
        trainer: the trainer.
        module: the network.
        observations: of the sequences.
        prior: see `prior_of`.
        members: M.
        key: of the random numbers.

    Returns:
        (B, T, H, W) and (M, B, T, H, W), float32 on the CPU.
    """
    if module.is_stochastic:
        batch = {name: value.to(module.device) for name, value in observations.batch().items()}
        rng = generator("s3rp predict", *key, device=module.device)
        with torch.inference_mode(), trainer.precision_plugin.forward_context():
            drawn = _finite(module.sample(batch, observations.physics, members, rng).float().cpu())
        return drawn.mean(0), drawn
    from projects.s3rp.ensembles import matheron

    assert prior is not None
    known = replace(observations, physics=module.learnt(observations.physics))
    fields = estimate(trainer, module, known)
    drawn = matheron(lambda some: estimate(trainer, module, some), known, prior, members, generator("s3rp predict", *key)).float()
    return fields, _finite(drawn + (fields - drawn.mean(0)))


def find_release(module: PlumeSuperResolution, one: Observations) -> Tensor | None:
    """Return the rates of release, (B, 1, H, W), that a network finds which looks for them; None of another one."""
    if not module.hparams.find_source:
        return None
    return _finite(module.find_sources({name: value.to(module.device) for name, value in one.batch().items()}, one.physics).float().cpu())


def look_out(
    trainer: ProjectTrainer, module: PlumeSuperResolution, one: Observations, prior: FieldPrior | None, members: int, kappa: float, key: str
) -> Outlook:
    """Say what is known of sequences.

    Args:
        trainer: the trainer.
        module: the network.
        one: the sequences.
        prior: see `prior_of`.
        members: M; 0 for the fields alone.
        kappa: by which the spread is multiplied, see `inflation_of`.
        key: of the random numbers, together with the sequences' names.
    """
    source = find_release(module, one)
    if not members:
        return Outlook(estimate(trainer, module, one), source=source)
    mean, drawn = draw_members(trainer, module, one, prior, members, key, *one.names)
    drawn = mean + kappa * (drawn - mean)
    return Outlook(mean, drawn.std(0), drawn, source)


def can_tell_hidden(module: PlumeSuperResolution) -> bool:
    """Tell whether a network has learnt to say what is hidden from it, so that its spread can be fitted to that."""
    return bool(module.hparams.hide)


def inflation_of(trainer: ProjectTrainer, module: PlumeSuperResolution, observations: Observations, members: int) -> tuple[float, str]:
    """Return kappa, by which the spread is to be multiplied so that hidden observations lie in its 90 % interval as often, and a remark if it fails.

    Some values of some sequences are hidden from the network, which then tells what they could be; no truth is used.
    """
    from projects.s3rp.calibration import hide, inflation

    some = observations.select(slice(0, JUDGED))
    try:
        shown, hidden = hide(some, HIDDEN, generator("s3rp hidden"))
        _, drawn = draw_members(trainer, module, shown, prior_of(module, shown), members, "hidden")
        coarse = block_mean(drawn, observations.factor)
        return inflation(coarse, some.coarse, hidden, some.sigma, generator("s3rp noise")), ""
    except ValueError as error:
        return 1.0, f"the spread is as drawn, not calibrated: {error}"


def _finite(fields: Tensor) -> Tensor:
    if not bool(fields.isfinite().all()):
        raise ValueError(
            "what the network says is not finite: use --trainer.precision 32, another checkpoint, or a larger unit for values as large as 1e38"
        )
    return fields


# ---- remarks


def cautions(module: PlumeSuperResolution, observations: Observations, background: float) -> list[str]:
    """Say what a user should know before trusting a network's fields: of ringing, inflow, forecasts and winds."""
    reach = "" if bool(observations.mask.flatten(2).any(2).all()) else too_fast(module, observations)
    found = (ringing(observations), _inflow(observations, background), _beyond(module, observations), reach, _held(observations))
    return [text for text in found if text]


def _inflow(observations: Observations, background: float) -> str:
    """Remark on values that all lie far above the 0 that flows in through open boundaries."""
    seen = observations.coarse[observations.mask]
    lowest, largest = float(seen.min()), float(seen.abs().max())
    if background or observations.physics.boundary != "open" or lowest <= RAISED * largest:
        return ""
    return f"the lowest value is {lowest:.4g}: what flows in counts as clean, 0; say --background {lowest:.4g}"


def _beyond(module: PlumeSuperResolution, observations: Observations) -> str:
    """Remark on forecasts of more frames than the network learnt; one that corrects the solver's has none to learn."""
    learnt, ahead = module.hparams.forecast, forecast_frames(observations)
    if ahead <= learnt or module.hparams.hybrid:
        return ""
    if not learnt:
        return "this network has not learnt to forecast (model.forecast)"
    return f"{ahead} frames of forecast, and the network learnt {learnt} (model.forecast): the later ones are less sure"


def _held(observations: Observations) -> str:
    """Remark on winds that change, and hold after the last one that is known."""
    parts = [part.flatten(2) for part in observations.wind]
    if parts[0].shape[1] == 1:
        return ""
    apart = torch.stack([(part - part[:, -1:]).abs().amax((0, 2)) for part in parts]).amax(0)
    differing = (apart > HELD * max(float(part.abs().max()) for part in parts)).nonzero()
    count = observations.frames - 3 - int(differing.max()) if len(differing) else 0  # the last wind carries nothing, that before it is known
    return f"the last wind is held for {count} frame{'' if count == 1 else 's'} more, beyond what the file has" if count > 0 else ""


def growth(one: Observations, outlook: Outlook) -> list[str]:
    """Remark on fields far above all that was observed."""
    grown = float(outlook.mean.abs().max()) > GROWTH * float(one.coarse.abs().max())
    return ["values grow beyond what was observed: not to be trusted"] if grown else []


def too_fast(module: PlumeSuperResolution, observations: Observations) -> str:
    """Remark on winds that carry fields further in a frame than a propagator reaches; without one there is nothing to say."""
    propagator, physics, wind = module.propagator, observations.physics, observations.wind
    if propagator is None:
        return ""
    cells = physics.interval * max(float(part.abs().amax()) / step for part, step in zip(wind, reversed(physics.spacing), strict=True))
    reach = propagator.reach * propagator.steps
    if cells <= reach:
        return ""
    wanted = math.ceil(cells / propagator.reach)
    return f"winds carry up to {cells:.1f} cells a frame, forecasts reach {reach}: train with model.propagation {wanted}"


def ringing(observations: Observations) -> str:
    """Remark on cells that are many diffusion lengths wide, where the physics' central scheme rings."""
    peclet = observations.physics.peclet(observations.wind)
    if peclet <= RINGING:
        return ""
    if not math.isfinite(peclet):
        return "no diffusion: fields may ring (some diffusion mends it)"
    return f"cell Peclet number {peclet:.3g} above {RINGING:g}: fields may ring (more diffusion or finer cells mend it)"


def forecast_frames(observations: Observations) -> int:
    """Return the frames after a sequence's last one with an observation, the most that one has."""
    return observations.frames - 1 - int(last_observed(observations).min())
