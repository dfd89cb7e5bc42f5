"""Greedy search of anchors: as few as possible, each as hard as the student can take."""

from __future__ import annotations

import math
from collections.abc import Mapping

FLOOR = 0.2 * math.log(2)
"""Mismatch that counts as none where nothing else is said: 0.14 nats, or such a part of the variance of embeddings."""


def hardness(congruence: Mapping[int, float], anchor: int, floor: float = FLOOR) -> dict[int, float]:
    """Say how hard the teacher's states are for a student that has just learnt from one of them: r_ij.

    Args:
        congruence: by teacher epoch j the mean congruence loss between state j and the student on the held-out part of the training set, from 0, in
            nats or as part of the variance of embeddings.
        anchor: i, teacher epoch of the state that the student has just learnt from.
        floor: added to both losses, so that r_ij is finite where the student matches anchor i perfectly, and near 1 for states that differ from it by
            noise alone.

    Returns:
        r_ij by j, in rising order of j, with r_ii = 1.

    Raises:
        ValueError: if the anchor's loss is missing, or a loss is not finite.
    """
    if anchor not in congruence:
        raise ValueError(f"hardness needs the congruence loss to the anchor, epoch {anchor}, and got those to {sorted(congruence)}")
    unfit = {epoch: loss for epoch, loss in congruence.items() if not math.isfinite(loss)}
    if unfit:
        raise ValueError(f"congruence losses must be finite, got {unfit} by teacher epoch: the student has diverged; lower its learning rate")
    sums = {epoch: max(float(congruence[epoch]), 0.0) + floor for epoch in sorted(congruence)}  # rounding can leave a KL a little below 0
    return {epoch: value / sums[anchor] for epoch, value in sums.items()}


def next_anchor(ratios: Mapping[int, float], anchor: int, delta: float) -> int:
    """Choose the next anchor: the last state before the first one that is too hard, r_ij > 1 + delta.

    Args:
        ratios: r_ij by teacher epoch j, of all stored states after the anchor.
        anchor: i, teacher epoch of the present anchor.
        delta: how much harder than the present anchor the next one may be.

    Returns:
        The stored state before the first one that is too hard, or that one itself if it follows the anchor; the last state if none is too hard.
    """
    later = sorted(epoch for epoch in ratios if epoch > anchor)
    for place, epoch in enumerate(later):
        if ratios[epoch] > 1 + delta:
            return later[max(place - 1, 0)]
    return later[-1]


def part_of(ratios: Mapping[int, float], anchor: int) -> float:
    """Return how much of the way to the final teacher a state is, (r_ij - 1) / (r_iE - 1), in [0, 1]; 1 where nothing is harder than anchor i.

    As r_ij - 1 is in proportion to the loss to j less the loss to i, these are parts of what the student has still to learn.
    """
    ahead = ratios[max(ratios)] - 1
    return min(max((ratios[anchor] - 1) / ahead, 0.0), 1.0) if ahead > 0 else 1.0


def share(remaining: int, part: float) -> int:
    """Return the student epochs, of at least 2 that remain, of a leg that is a part of the way ahead: at least 1, leaving at least 1."""
    return min(max(int(remaining * part), 1), remaining - 1)
