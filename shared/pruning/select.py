"""Chooses the channels to drop: lowest (or highest) scores first, until a budget is met, and never past a cap."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from shared.pruning.costs import Budget, Ledger
from shared.pruning.groups import Group, GroupIndex, NormMode
from shared.pruning.plan import Plan
from shared.pruning.units import HeadMode, Units, smallest_units

Scope = Literal["global", "local", "isomorphic"] | Mapping[str, str]


@dataclass
class _Queue:
    """A group's units in the order in which they would go."""

    group: Group
    units: Units
    scores: list[float]  # mean over each unit's channels; low goes first
    allowance: int  # channels that may still go
    in_order: bool  # a unit that may not go blocks those after it
    next: int = 0
    taken: list[Tensor] = field(default_factory=list)

    def has_next(self) -> bool:
        """Pass over units that are too large, and say whether one is left."""
        while self.next < len(self.units):
            if self.units.sizes[self.next] <= self.allowance:
                return True
            self.next = len(self.units) if self.in_order else self.next + 1
        return False

    def head(self) -> Tensor:
        """Return the unit that goes next; `has_next` must have said that there is one."""
        return self.units[self.next]

    def take(self, unit: Tensor) -> None:
        """Take the unit that `head` returned."""
        self.taken.append(unit)
        self.allowance -= len(unit)
        self.next += 1


def select(
    index: GroupIndex,
    scores: Mapping[str, Tensor],
    budget: Budget,
    *,
    scope: Scope = "global",
    drop: Literal["lowest", "highest"] = "lowest",
    order: Literal["score", "density"] = "score",
    cap: float = 0.5,
    floor: int = 1,
    at_least: int = 0,
    norm: NormMode = "per_offset",
    heads: HeadMode = "within",
    round_to: int = 1,
    protected: Iterable[str] = (),
    mode: Literal["cut", "mask"] = "cut",
) -> Plan:
    """Choose channels to drop. Nothing is changed; equal scores go in the order of the groups and of the channels in them.

    Args:
        index: the groups.
        scores: (C,) by group; groups without scores stay whole.
        budget: how much to remove. The result is the nearest to it that whole units give, or less where caps and floors bind; then `notes` says so.
        scope: who competes: all groups ("global"), each group for itself, each losing the budget's share ("local"), groups of the same make-up
            ("isomorphic"), or the groups that a mapping from group names gives the same label. All but "global" need a budget in channels.
        drop: which scores go first.
        order: go by "score", or by score per cost ("density") in the budget's measure.
        cap: hardest share of a group's original channels that may ever go, in [0, 1].
        floor: channels that each group keeps at least.
        at_least: units that each group loses at least, caps and floors permitting, whatever the budget says (only with scope "local").
        norm: see `Plan`.
        heads: see `smallest_units`.
        round_to: leave multiples of this many channels in each group that loses any; the nearest to what the budget asks for.
        protected: further layers whose outputs stay; see `GroupIndex.build`.
        mode: "cut" for plans that can be applied; "mask" makes every channel a unit of its own, for masks that leave all shapes as they are.

    Raises:
        ValueError: if scores are not finite or of the wrong length, or settings contradict each other.
    """
    if not 0 <= cap <= 1 or floor < 1 or round_to < 1:
        raise ValueError(f"cap must lie in [0, 1] and floor and round_to be at least 1, got cap={cap}, floor={floor}, round_to={round_to}")
    if scope != "global" and budget.measure != "channels":
        raise ValueError(f"a budget in {budget.measure} is one sum over the network: use scope='global', or a budget in channels")
    if at_least and scope != "local":
        raise ValueError("at_least counts units in each group: use scope='local'")
    index = index.protect(protected)
    queues = [_queue(index, group, scores, drop, cap, floor, norm, heads, round_to, mode) for name, group in index.free.items() if name in scores]
    ledger, notes = budget.ledger(index), []
    for label, members in _scopes(queues, scope).items():
        whole = ledger.total() if scope == "global" else float(sum(queue.group.channels for queue in members))
        removed = _fill(members, ledger, budget.share * whole, order, at_least)
        if members and not any(queue.has_next() for queue in members) and removed < budget.share * whole:
            notes.append(f"{label}: caps, floors and units allow {removed:.6g} of the {budget.share * whole:.6g} {budget.measure} asked for")
    notes += [f"{queue.group.name} is at its cap or floor" for queue in queues if queue.taken and not queue.has_next()]
    dropped = {queue.group.name: torch.cat(queue.taken).sort().values for queue in queues if queue.taken}
    return Plan(index, dropped, norm, mode, notes, scores)


def _queue(
    index: GroupIndex,
    group: Group,
    scores: Mapping[str, Tensor],
    drop: str,
    cap: float,
    floor: int,
    norm: NormMode,
    heads: HeadMode,
    round_to: int,
    mode: str,
) -> _Queue:
    values = scores[group.name].detach().to("cpu", torch.float64)
    if values.shape != (group.channels,):
        raise ValueError(f"the scores of {group.name} must be {group.channels} numbers, got shape {tuple(values.shape)}; score this index anew")
    if not values.isfinite().all():
        raise ValueError(f"the scores of {group.name} are not all finite numbers: are the network's weights and gradients?")
    values = values if drop == "lowest" else -values
    units = Units(torch.arange(group.channels), [1] * group.channels) if mode == "mask" else smallest_units(index, group, norm, heads)
    units = units.ordered(units.means(values).argsort(stable=True))  # ties go by index
    if round_to > 1:
        units = units.bundled(group.channels, round_to)
    allowance = min(math.floor(cap * group.original + 1e-9) - (group.original - group.channels), group.channels - floor)
    return _Queue(group, units, units.means(values).tolist(), allowance, in_order=round_to > 1)


def _scopes(queues: list[_Queue], scope: Scope) -> dict[str, list[_Queue]]:
    scopes: dict[str, list[_Queue]] = {}
    for queue in queues:
        name = queue.group.name
        if isinstance(scope, Mapping):
            label = scope.get(name, name)
        else:
            label = {"global": "all groups", "local": name, "isomorphic": queue.group.topology}[scope]
        scopes.setdefault(label, []).append(queue)
    return scopes


def _fill(queues: list[_Queue], ledger: Ledger, target: float, order: str, at_least: int) -> float:
    """Take units until the nearest to `target` is reached, and return what they cost."""
    removed = 0.0
    heap: list[tuple[float, int, int]] = []

    def key(number: int) -> float | None:
        queue = queues[number]
        if not queue.has_next():
            return None
        score = queue.scores[queue.next]
        return score if order == "score" else score * len(unit := queue.head()) / max(ledger.cost(queue.group.name, unit), 1e-12)

    def push(number: int) -> None:
        if (value := key(number)) is not None:
            heapq.heappush(heap, (value, number, queues[number].next))

    for number in range(len(queues)):
        push(number)
    while heap:
        value, number, _ = heapq.heappop(heap)
        if order == "density" and key(number) != value:
            push(number)  # other channels went meanwhile and made this unit cheaper
            continue
        queue = queues[number]
        unit = queue.head()
        cost = ledger.cost(queue.group.name, unit)
        if removed + cost - target > target - removed and len(queue.taken) >= at_least:
            break
        queue.take(unit)
        ledger.remove(queue.group.name, unit)
        removed += cost
        push(number)
    return removed
