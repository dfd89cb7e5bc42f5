"""What the rounds of a federation need, checked before the first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

if TYPE_CHECKING:
    from projects.cafe.federation import Federation


def batch_dependent(net: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules of a net, with their names, that depend on the batch or on chance while they train."""
    return [(name, module) for name, module in net.named_modules() if isinstance(module, (_BatchNorm, _DropoutNd))]


def check_rounds(federation: Federation, blocks: Sequence[Tensor], labels: Tensor, schedule: Tensor, optimiser: torch.optim.Optimizer | None) -> None:
    """Refuse what `observe` cannot run.

    Raises:
        ValueError: see `observe`.
    """
    if len(blocks) != len(federation.bottoms):
        raise ValueError(f"{len(blocks)} blocks cannot be given to {len(federation.bottoms)} parties: give one a party")
    sizes = {len(labels), schedule.shape[-1], *(len(block) for block in blocks)}
    if schedule.dim() != 2 or schedule.dtype != torch.bool or len(sizes) != 1:
        raise ValueError(
            f"the blocks hold {[len(block) for block in blocks]} records and there are {len(labels)} labels, but the schedule is "
            f"{schedule.dtype} of shape {tuple(schedule.shape)}: expected bool of (rounds, records)"
        )
    empty = (~schedule.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{len(empty)} rounds have no records, the first is round {empty[0]}: leave them out of the schedule")
    dependent = [name for name, module in batch_dependent(federation) if module.training]
    if dependent:
        raise ValueError(f"{', '.join(dependent)} depends on the batch or on chance while it trains, which no schedule can undo: call eval() first")
    own = set(federation.parameters())
    if optimiser is not None and own != {parameter for group in optimiser.param_groups for parameter in group["params"]}:
        raise ValueError("the optimiser is not of this federation's parameters: make it from federation.parameters()")
