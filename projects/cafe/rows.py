"""What one round gives away with no schedule at all: a unit of the first layer that a single member of the batch moves.

Row j of the weight's gradient is the sum over members of v_nj h_n, and entry j of the bias's is that of v_nj. Where v_nj is zero for all members but
one, as behind a ReLU that is dead for the others, their quotient is that member's h.
"""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple, cast

import torch
from torch import Tensor

from projects.cafe.checks import check_rounds
from projects.cafe.data import FederatedRecords
from projects.cafe.federation import Federation, adam, update, uploads
from projects.cafe.nets import BottomNet
from projects.cafe.protection import Protection
from projects.cafe.recovery import h_is_record

SAME = 1e-3
"""Relative distance within which a quotient is a record's h."""


class Alone(NamedTuple):
    """The round after which a record's h stands alone at some party, (N,), 0 where none; and whether that h is a party's part of the record, (N,)."""

    after: Tensor
    is_record: Tensor


@torch.no_grad()
def alone_after(federation: Federation, data: FederatedRecords, schedule: Tensor, protection: Protection, lr: float = 0.0) -> Alone:
    """Play the rounds as the deployment does, and compare the quotients with every member's h; only an auditor, who has the truth, can.

    Args:
        federation: model at the first round; it is not changed.
        data: the records.
        schedule: (T, N) bool.
        protection: what the parties do to their gradients.
        lr: learning rate of the Adam that moves the model; 0 leaves it as it is.
    """
    federation = deepcopy(federation)
    device = next(federation.parameters()).device
    blocks, labels = [block.to(device) for block in data.blocks(data.attacked.values())], data.attacked.labels.to(device)
    optimiser = adam(federation, lr) if lr else None
    check_rounds(federation, blocks, labels, schedule, optimiser)
    after, is_record = torch.zeros(len(labels), dtype=torch.long), torch.zeros(len(labels), dtype=torch.bool)
    for number, members in enumerate(row.nonzero().flatten() for row in schedule):
        batch = [block[members.to(device)] for block in blocks]
        with torch.enable_grad():
            uploaded = uploads(federation, batch, labels[members.to(device)], number, protection.defence, protection.local)
        for bottom, block, own in zip(cast("list[BottomNet]", list(federation.bottoms)), batch, uploaded.parties, strict=True):
            found = members[_alone(bottom.body(block), own["first.bias"], own["first.weight"]).cpu()]
            after[found[after[found] == 0]] = number + 1
            is_record[found] |= h_is_record(bottom)
        if optimiser is not None:
            update(federation, optimiser, uploaded)
    return Alone(after, is_record)


def _alone(h: Tensor, bias: Tensor, weight: Tensor) -> Tensor:
    """Return (K,) bool: whose h, (K, d1), is the quotient of a row of the (d2, d1) gradient and its entry of the (d2,) one."""
    moved = bias != 0
    quotients = weight[moved] / bias[moved, None]
    if not len(quotients):
        return torch.zeros(len(h), dtype=torch.bool, device=h.device)
    norms = h.norm(dim=1)
    return (torch.cdist(quotients, h).amin(0) < SAME * norms) & (norms > 0)
