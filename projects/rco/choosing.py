"""Choosing anchors before the student is trained."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from projects.rco.anchors import DROP, Route
from shared.seeding import generator

if TYPE_CHECKING:
    from projects.rco.walking import Walk


def choose(walk: Walk, route: Route, seed: int) -> list[int]:
    """Choose anchors of the route.

    Args:
        walk: how; not greedy.
        route: the teacher's.
        seed: of walk.choice random.

    Returns:
        Rising teacher epochs of stored states, of which the last is the route's final one; for walk.choice single one state alone.

    Raises:
        ValueError: if the route lacks the states or the history that the choice needs, or if the choice is greedy.
    """
    final = route.final
    if walk.choice == "eei":
        return _stored_from(route, (-(-k * final // walk.anchors) for k in range(1, walk.anchors + 1)), f"walk.anchors {walk.anchors}")
    if walk.choice == "interval":
        return _stored_from(route, [*range(walk.interval, final, walk.interval), final], f"walk.interval {walk.interval}")
    if walk.choice == "one_by_one":
        return list(route.epochs)
    if walk.choice == "random":
        return _random(walk.anchors, route, seed)
    if walk.choice == "lr_drop":
        return _before_drops(route)
    if walk.choice == "phase":
        return [_steepest(route), final]
    if walk.choice == "explicit":
        return sorted({*_known(walk.epochs or [], route), final})
    if walk.choice == "single":
        return _known(walk.epochs, route) if walk.epochs else [_halfway(route)]
    raise ValueError("walk.choice greedy finds its anchors while the student is trained: follow a RouteScheduler")


def listed(epochs: Sequence[int]) -> str:
    """Write epochs for a message, those in the middle of many left out."""
    shown = [str(epoch) for epoch in epochs]
    return ", ".join(shown if len(shown) <= 12 else [*shown[:9], "...", shown[-1]])


_FEWER = "take fewer anchors, store more states, or take them all by walk.choice one_by_one"


def _has(route: Route) -> str:
    """Say in words which states a route has."""
    return f"the route has {len(route.epochs)} stored state{'s' if len(route.epochs) > 1 else ''}, after epochs {listed(route.epochs)}"


def _stored_from(route: Route, wanted: Iterable[int], option: str) -> list[int]:
    """Return for each wanted epoch the first stored one at or after it; all distinct."""
    wanted = list(wanted)
    found = [route.epochs[bisect_left(route.epochs, epoch)] for epoch in wanted]
    if len(set(found)) < len(wanted):
        asked = f"{option} asks for {len(wanted)} distinct states, at or after epochs {listed(wanted)}"
        raise ValueError(f"{asked}, but {_has(route)}: {_FEWER}")
    return found


def _known(epochs: Sequence[int], route: Route) -> list[int]:
    unknown = sorted(set(epochs) - set(route.epochs))
    if unknown:
        raise ValueError(f"walk.epochs names {listed(unknown)}, but {_has(route)}")
    return list(epochs)


def _random(n: int, route: Route, seed: int) -> list[int]:
    import torch

    earlier = route.epochs[:-1]
    if n - 1 > len(earlier):
        raise ValueError(f"walk.anchors {n} asks for {n} distinct states, but {_has(route)}: {_FEWER}")
    drawn = torch.randperm(len(earlier), generator=generator(seed, "anchors"))[: n - 1].tolist()
    return [*sorted(earlier[place] for place in drawn), route.final]


def _before_drops(route: Route) -> list[int]:
    """Return the state before each fall of the learning rate that the teacher was trained with, the last one stored by then, and the final one."""
    known = [(state.epoch, state.lr) for state in route.history if state.lr is not None and state.epoch <= route.final]
    falls = [epoch for (epoch, lr), (_, after) in pairwise(known) if after < lr and after <= DROP * lr]
    if not falls:
        why = "never fell" if known else "is not recorded in the route's history"
        raise ValueError(f"walk.choice lr_drop: the teacher's learning rate {why}; take another choice")
    places = [bisect_right(route.epochs, epoch) - 1 for epoch in falls]
    if places[0] < 0 or len(set(places)) < len(places):
        fell = f"the learning rate fell after epochs {listed(falls)}"
        raise ValueError(f"walk.choice lr_drop: {fell}, but {_has(route)}: store the states before the falls")
    return [*(route.epochs[place] for place in places), route.final]


def _steepest(route: Route) -> int:
    """Return the stored state before the final one around which accuracy rises most, from the epoch before it to the one after it."""
    accuracy = route.accuracy()
    known = sorted(accuracy)
    rises = {
        epoch: accuracy[known[bisect_right(known, epoch)]] - accuracy[known[bisect_left(known, epoch) - 1]]
        for epoch in route.epochs[:-1]
        if known and known[0] < epoch < known[-1]
    }
    if not rises or max(rises.values()) <= 0:
        why = f"no accuracy is recorded around a state before the final one; {_has(route)}" if not rises else "the teacher's accuracy never rose"
        raise ValueError(f"walk.choice phase: {why}; name the anchor by walk.choice explicit and walk.epochs")
    return max(rises, key=lambda epoch: (rises[epoch], epoch))  # of equal ones the later: a state before the rise teaches nothing of it


def _halfway(route: Route) -> int:
    half = route.epochs[bisect_left(route.epochs, -(-route.final // 2))]
    if half == route.final:
        raise ValueError(f"walk.choice single: {_has(route)}, none of them in the second half and before the end: name one by walk.epochs")
    return half
