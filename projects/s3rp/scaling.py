"""Batches without units, which is what networks and losses see."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from projects.s3rp.model import Carry, Seen
from projects.s3rp.physics import Physics, Wind, at_frame, centred
from projects.s3rp.sets import Batch


class Scaled(NamedTuple):
    """A batch without units.

    Attributes:
        seen: what a network is shown.
        coarse: (B, T, h, w) all frames, those that are hidden from the network too.
        mask: (B, T, h, w) bool, where there are observations.
        scale: (B, 1, 1, 1) unit of each sequence's field.
        source: (B, T or 1, H, W) known release, in that unit; None if there is none.
        wind: in the units of the data.
    """

    seen: Seen
    coarse: Tensor
    mask: Tensor
    scale: Tensor
    source: Tensor | None
    wind: Wind


def scale(batch: Batch, physics: Physics, shown: Tensor | None = None) -> Scaled:
    """Take the units off a batch: fields by the largest value that is shown of each sequence, winds in cells a frame.

    Args:
        batch: see `Batch`.
        physics: of the sequences.
        shown: (B, T, h, w) bool, what the network may see; None for all observations.
    """
    coarse, wind = batch["coarse"], Wind(batch["u"], batch["v"])
    mask = batch["mask"] if shown is None else shown
    unit = (coarse * mask).abs().amax((1, 2, 3), keepdim=True)
    unit = torch.where(unit > 0, unit, 1)
    courant = centred(wind.scaled(physics.interval / physics.spacing[1], physics.interval / physics.spacing[0]), physics.boundary)
    source = batch["source"] / unit if "source" in batch else None
    release = None if source is None else source * physics.interval
    return Scaled(Seen(coarse * mask / unit, mask, courant, release), coarse / unit, batch["mask"], unit, source, wind)


def solver_of(scaled: Scaled, physics: Physics) -> Carry:
    """Return the solver's step for a hybrid network."""

    def carry(field: Tensor, frame: int) -> Tensor:
        return physics.advance(field, scaled.wind.at(frame), at_frame(scaled.source, frame))

    return carry
