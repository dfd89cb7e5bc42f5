"""Horizontal federated learning: every party has whole records of its own, and all share one net."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor

from projects.cafe.checks import check_rounds
from projects.cafe.federation import (
    AttackerView,
    Defence,
    Federation,
    Gradients,
    Named,
    Record,
    defended,
    update,
)


def observe_horizontal(
    federation: Federation,
    blocks: Sequence[Tensor],
    labels: Sequence[Tensor],
    schedules: Sequence[Tensor],
    optimiser: torch.optim.Optimizer | None = None,
    defence: Defence | None = None,
    known_labels: bool = False,
    secure_sum: bool = False,
    recent: int | None = None,
    names: Collection[str] | None = None,
) -> list[AttackerView]:
    """Run the rounds of horizontal learning, where each party has records of its own and all have the same net.

    Args:
        federation: model of one party, whose net and top net all share.
        blocks: one (N_m, ...) a party.
        labels: one (N_m,) a party.
        schedules: one (T, N_m) bool a party.
        optimiser: see `observe`; it takes the mean of the uploads, each weighted by its batch.
        defence: see `observe`; the gradients of the top net are uploaded too, with names that begin with "server.".
        known_labels: see `observe`.
        secure_sum: whether the server sees only that mean, as if one party had all records.
        recent: see `observe`.
        names: see `observe`.

    Returns:
        One view a party; with `secure_sum` a single view, whose records are those of all parties, one party after the other.
        If every party keeps its batch size, the schedule of that view lacks a rank for each party but one, and step I settles no record: what is
        added to all records of one party can be taken from another's. Batch sizes that change from round to round lift this.

    Raises:
        ValueError: as `observe`, or if `federation` has several nets or the parties differ in number or in rounds.
    """
    rounds = {len(schedule) for schedule in schedules}
    if len(federation.bottoms) != 1 or not len(blocks) == len(labels) == len(schedules) > 0 or len(rounds) != 1:
        raise ValueError(
            f"horizontal learning needs one shared net, and blocks, labels and a schedule of the same rounds for each party: got "
            f"{len(federation.bottoms)} nets, {len(blocks)} blocks, {len(labels)} labels and {len(schedules)} schedules of {sorted(rounds)} rounds"
        )
    for own in zip(blocks, labels, schedules, strict=True):
        check_rounds(federation, [own[0]], own[1], own[2], optimiser)
    stacked = torch.cat(list(schedules), dim=1)
    record = Record(len(stacked), optimiser is not None, recent, names)
    for number in range(len(stacked)):
        uploads, sizes = [], []
        for party, (block, label, schedule) in enumerate(zip(blocks, labels, schedules, strict=True)):
            members = schedule[number].to(block.device)
            gradients = federation.gradients([block[members]], label[members])
            uploads.append(_split(defended(_merged(gradients), defence, number, party)))
            sizes.append(int(members.sum()))
        mean = _mean(uploads, [size / sum(sizes) for size in sizes])
        record.add(number, federation, [mean] if secure_sum else uploads)
        if optimiser is not None:
            update(federation, optimiser, mean)
    told = list(labels) if known_labels else [None] * len(labels)
    shape = [blocks[0].shape[1:]]
    if secure_sum:
        return [record.view(0, stacked, shape, torch.cat(list(labels)) if known_labels else None)]
    return [record.view(party, schedule, shape, told[party]) for party, schedule in enumerate(schedules)]


def _merged(gradients: Gradients) -> Named:
    """Return the gradients of one party's net and of the top net as one upload."""
    return gradients.parties[0] | {f"server.{name}": gradient for name, gradient in gradients.server.items()}


def _split(upload: Named) -> Gradients:
    """Undo `_merged`."""
    server = {name.removeprefix("server."): gradient for name, gradient in upload.items() if name.startswith("server.")}
    return Gradients([{name: gradient for name, gradient in upload.items() if not name.startswith("server.")}], server)


def _mean(uploads: list[Gradients], weights: list[float]) -> Gradients:
    """Return the weighted mean of the uploads of parties that share one net."""
    merged = [_merged(upload) for upload in uploads]
    pairs = list(zip(weights, merged, strict=True))
    return _split({name: cast("Tensor", sum(weight * upload[name] for weight, upload in pairs)) for name in merged[0]})
