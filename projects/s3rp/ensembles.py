"""Ensembles from an estimator of single fields, by perturbation.

members = matheron(estimator, observations, prior, 32, rng)       # (32, B, T, H, W)
mean, deviation = members.mean(0), members.std(0)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Wind, at_frame
from projects.s3rp.sets import Estimator, Observations

CELLS = 2**22
"""Cells of members that are computed at a time."""


class Prior(Protocol):
    """What is believed of the first frame's field before anything is observed."""

    def draw(self, shape: tuple[int, int], count: int, rng: torch.Generator) -> Tensor:
        """Draw fields, (count, H, W) float64."""


@torch.no_grad()
def matheron(estimator: Estimator, observations: Observations, prior: Prior, members: int, rng: torch.Generator) -> Tensor:
    """Draw from the posterior by Matheron's rule: member m = xi_m + f(y + eps_m - A xi_m).

    Where f is the best linear estimate of differences from the prior's mean, the members are draws of the posterior; where it is not, the error of
    f enters their spread as it enters their mean, so that they stay calibrated if the prior and the noise are right. f sees differences: signed, of
    mean zero and without sources, which are in xi_m already.

    Args:
        estimator: f, best if linear or trained on signed fields of mean zero.
        observations: y, with the known sources.
        prior: of the first frame's field; xi_m is a draw carried along by the physics.
        members: M.
        rng: generator of the CPU; the draws of a member do not depend on how many are computed at a time.

    Returns:
        (M, B, T, H, W).

    Raises:
        ValueError: if no member is asked for.
    """
    if members < 1:
        raise ValueError(f"an ensemble takes at least one member, got {members}")
    count, frames, (height, width) = len(observations), observations.frames, observations.shape
    drawn = observations.coarse.new_empty(members, count, frames, height, width)
    at_once = max(1, CELLS // (count * frames * height * width))
    for begin in range(0, members, at_once):
        chunk = drawn[begin : begin + at_once]
        noise = torch.empty(len(chunk), *observations.coarse.shape)
        for number in range(len(chunk)):
            chunk[number, :, 0] = prior.draw((height, width), count, rng)
            noise[number] = observations.sigma * torch.randn(noise.shape[1:], generator=rng)
        _roll_out(chunk, observations)
        differences = observations.coarse + noise.to(drawn) - block_mean(chunk, observations.factor)
        chunk += estimator(_perturbed(observations, differences)).view_as(chunk)
    return drawn


def _roll_out(fields: Tensor, observations: Observations) -> None:
    """Carry the first frames of fields (M, B, T, H, W) through the others, in place."""
    source = observations.source
    for frame in range(observations.frames - 1):
        wind = observations.wind.at(frame).to(fields)
        release = None if source is None else at_frame(source, frame).to(fields)
        fields[:, :, frame + 1] = observations.physics.advance(fields[:, :, frame], wind, release)


def _perturbed(observations: Observations, differences: Tensor) -> Observations:
    """Return observations of M times B sequences, (M, B, T, h, w), under the same masks and winds and without sources."""
    members = len(differences)

    def repeated(values: Tensor) -> Tensor:
        return values.expand(members, *values.shape).flatten(0, 1)

    mask, wind = repeated(observations.mask), Wind(repeated(observations.wind.u), repeated(observations.wind.v))
    return replace(observations, coarse=differences.flatten(0, 1) * mask, mask=mask, wind=wind, source=None, names=list(observations.names) * members)
