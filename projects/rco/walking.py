"""Walking the teacher's route: which of its states teaches which student epochs."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

from projects.rco.anchors import Route
from projects.rco.choosing import choose, listed
from projects.rco.greedy import FLOOR, hardness, next_anchor, part_of, share

Choice = Literal["eei", "interval", "one_by_one", "greedy", "random", "lr_drop", "phase", "explicit", "single"]
Budget = Literal["mirror", "restart"]
Order = Literal["forward", "reversed"]


@dataclass(frozen=True)
class Walk:
    """How the student follows the teacher's route.

    Args:
        choice: how anchors are chosen: eei (equal epoch intervals), interval, one_by_one (every stored state), greedy (as hard as the student can
            take), random, lr_drop (before each fall of the teacher's learning rate, and the end), phase (inside the teacher's steepest rise of
            accuracy, and the end), explicit (as `epochs` says) or single (one state alone; a baseline).
        anchors: n, number of anchors of eei and random, with the final teacher; 1 is plain distillation.
        interval: K, teacher epochs between anchors of interval.
        epochs: teacher epochs of explicit, to which the final one is added; the one of single, null for the half-way state.
        delta: by what share the next anchor of greedy may be harder than the present one; a smaller one gives more anchors.
        floor: mismatch that greedy takes for none, in nats, or as part of the variance of embeddings: what noise in early states makes of it.
        budget: mirror (anchors share the student's epochs under one learning-rate schedule) or restart (each anchor has all epochs, a schedule of
            its own and a fresh optimiser; compare it with plain distillation over as many epochs in all).
        order: forward, or reversed (hard to easy; a control for experiments).

    Raises:
        ValueError: if an option does not fit.
    """

    choice: Choice = "eei"
    anchors: int = 4
    interval: int = 5
    epochs: list[int] | None = None
    delta: float = 0.8
    floor: float = FLOOR
    budget: Budget = "mirror"
    order: Order = "forward"

    def __post_init__(self) -> None:
        for name, known in (("choice", get_args(Choice)), ("budget", get_args(Budget)), ("order", get_args(Order))):
            if getattr(self, name) not in known:
                raise ValueError(f"walk.{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        for name in ("anchors", "interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"walk.{name} must be at least 1, got {getattr(self, name)}")
        if not (math.isfinite(self.delta) and self.delta >= 0):
            raise ValueError(f"walk.delta must be 0 or more, got {self.delta}")
        if self.choice == "greedy" and self.order == "reversed":
            raise ValueError("walk.order reversed needs anchors that are known beforehand; walk.choice greedy finds them on the way")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise ValueError(f"walk.floor must be above 0, got {self.floor}")
        self._check_epochs()

    def _check_epochs(self) -> None:
        if self.epochs is not None and self.choice not in ("explicit", "single"):
            raise ValueError(f"walk.epochs is for walk.choice explicit and single; leave it out for {self.choice}")
        if self.choice == "explicit" and not self.epochs:
            raise ValueError("walk.epochs must list the anchors' teacher epochs for walk.choice explicit")
        if self.choice == "single" and self.epochs is not None and len(self.epochs) != 1:
            raise ValueError(f"walk.epochs must hold one teacher epoch for walk.choice single, or null for the half-way one, got {self.epochs}")


class Leg(NamedTuple):
    """A stretch of the student's training under one anchor.

    Attributes:
        number: of the leg, from 1.
        anchor: teacher epoch of its anchor, from 1.
        start: its first student epoch, from 0.
        stop: the student epoch after its last one.
    """

    number: int
    anchor: int
    start: int
    stop: int


def legs(anchors: Sequence[int], epochs: int, budget: Budget) -> list[Leg]:
    """Deal the student's epochs out to n anchors.

    Args:
        anchors: teacher epochs in the order in which they teach.
        epochs: E_s, student epochs of the whole walk (mirror) or of each leg (restart), at least 1.
        budget: mirror or restart.

    Returns:
        Legs that follow on each other from student epoch 0. With mirror the i-th anchor teaches the student epochs, counted from 1, of
        (E_s (i - 1) / n, E_s i / n]: all anchors the same share, wherever they lie on the route. An anchor whose share holds no whole epoch is left
        out; the last never is. With restart each teaches E_s epochs.
    """
    n = len(anchors)
    ends = [epochs * i if budget == "restart" else epochs * i // n for i in range(n + 1)]
    taught = [(anchor, start, stop) for anchor, (start, stop) in zip(anchors, pairwise(ends), strict=True) if start < stop]
    return [Leg(number, *stretch) for number, stretch in enumerate(taught, start=1)]


class RouteScheduler:
    """Tells for each student epoch which state of the teacher teaches it; grows while the student is trained if the choice is greedy.

    Args:
        walk: how the student follows the route.
        route: the teacher's.
        epochs: student epochs of the whole walk (mirror) or of each leg (restart).
        seed: of walk.choice random.

    Attributes:
        legs: known so far.
        hardness: for greedy, of each leg after which the next one was chosen r_ij by teacher epoch j: of the leg's anchor i (r_ii = 1) and of all
            later states.

    Raises:
        ValueError: if there is no epoch, or the route does not have the anchors.
    """

    def __init__(self, walk: Walk, route: Route, epochs: int, seed: int) -> None:
        if epochs < 1:
            raise ValueError(f"a walk takes at least 1 student epoch, got {epochs}")
        self.walk = walk
        self.epochs = epochs
        self.hardness: list[dict[int, float]] = []
        self._stored, self._final = list(route.epochs), route.final
        if self.is_greedy:
            self.legs: list[Leg] = []
            self._append(self._stored[0], self._stored[0] / self._final)
            return
        self.legs = legs(choose(walk, route, seed), epochs, walk.budget)
        if walk.order == "reversed":  # the same anchors as forward, where some of them are left out
            self.legs = legs([leg.anchor for leg in reversed(self.legs)], epochs, walk.budget)

    @property
    def total(self) -> int:
        """Student epochs of the whole walk; with restart those of the legs that are known, and of one more where another one is sure to follow."""
        return self.epochs * (len(self.legs) + self._grows) if self.walk.budget == "restart" else self.epochs

    @property
    def is_greedy(self) -> bool:
        """Whether legs are chosen while the student is trained."""
        return self.walk.choice == "greedy"

    @property
    def _grows(self) -> bool:
        return self.is_greedy and self.legs[-1].anchor != self._final

    def leg(self, epoch: int) -> Leg:
        """Return the leg that a student epoch, from 0, is in.

        Raises:
            ValueError: if the epoch is beyond the walk, or its leg is not chosen yet.
        """
        for leg in self.legs:
            if leg.start <= epoch < leg.stop:
                return leg
        if self.needs_choice(epoch):
            raise ValueError(f"the leg of student epoch {epoch} is not chosen yet: call advance after epoch {self.legs[-1].stop - 1}")
        raise ValueError(f"student epoch {epoch} is not among the walk's, 0 to {self.total - 1}")

    def starts(self, epoch: int) -> bool:
        """Whether a leg begins with this student epoch."""
        return self.leg(epoch).start == epoch

    def resets(self, epoch: int) -> bool:
        """Whether the optimiser starts afresh with this student epoch."""
        return self.walk.budget == "restart" and self.starts(epoch)

    def epoch_in_schedule(self, epoch: int) -> tuple[int, int]:
        """Return the place of a student epoch in the learning-rate schedule, from 0, and that schedule's length, in epochs.

        The epoch after the walk's last one, for which a scheduler asks after its last step, is the end of the last schedule; the one after the last
        known leg of a walk that goes on begins a schedule, whichever anchor is chosen.
        """
        if self.walk.budget == "mirror":
            return epoch, self.epochs
        return (self.epochs if epoch == self.total else epoch % self.epochs), self.epochs

    def needs_choice(self, epoch: int) -> bool:
        """Whether all known legs are over before this student epoch and, the choice being greedy, another one is to be chosen."""
        return self._grows and epoch >= self.legs[-1].stop

    def candidates(self) -> list[int]:
        """Return the rising teacher epochs of stored states after the last known anchor; for another choice than greedy there are none."""
        return [epoch for epoch in self._stored if epoch > self.legs[-1].anchor] if self.is_greedy else []

    def advance(self, congruence: Mapping[int, float]) -> Leg:
        """Choose the next leg of a greedy walk, when the student has finished the known ones.

        With mirror the first leg takes C_1 / E_t of the student's epochs. A later one, from anchor i to j, takes of those that remain what j is
        harder than i as part of what the final teacher is, (r_ij - 1) / (r_iE - 1), rounded down but at least 1. That is ours: (j - i) / (E_t - i),
        which one might choose, spends most epochs on the states of a standstill. The last leg takes all that remain, and where only 1 remains
        it is the final teacher's.

        Args:
            congruence: by teacher epoch the student's mean congruence loss on the held-out part of the training set, in nats or as part of the
                variance of embeddings, to the last known anchor and to every candidate.

        Raises:
            ValueError: if there is nothing to choose, or a loss is missing or not finite.
        """
        if not self.candidates():
            last = self.legs[-1].anchor
            raise ValueError(f"no leg is left to choose: walk.choice is {self.walk.choice}, and the last known anchor is of epoch {last}")
        judged = [self.legs[-1].anchor, *self.candidates()]
        missing = [epoch for epoch in judged if epoch not in congruence]
        if missing:
            raise ValueError(f"the next anchor needs the congruence losses to the teacher epochs {listed(judged)}; missing: {listed(missing)}")
        return self._extend(hardness({epoch: congruence[epoch] for epoch in judged}, judged[0], self.walk.floor))

    def state_dict(self) -> dict[str, Any]:
        """Return the legs and the hardness as plain lists, and what they depend on."""
        return {
            "choice": self.walk.choice,
            "budget": self.walk.budget,
            "epochs": self.epochs,
            "anchors": [leg.anchor for leg in self.legs],
            "starts": [leg.start for leg in self.legs],
            "stops": [leg.stop for leg in self.legs],
            "states": [list(row) for row in self.hardness],
            "ratios": [list(row.values()) for row in self.hardness],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on along the legs of a stored walk, if this walk would have come to the same ones.

        Raises:
            ValueError: if the walks differ; this one is then left as it was.
        """
        replay = copy.copy(self)
        if self.is_greedy:
            replay.legs, replay.hardness = self.legs[:1], []
            for states, ratios in zip(state["states"], state["ratios"], strict=True):
                if states != [replay.legs[-1].anchor, *replay.candidates()] or len(states) == 1:
                    break  # another route's: the legs differ
                replay._extend(dict(zip(states, ratios, strict=True)))
        found = replay.state_dict()
        names = ("choice", "budget", "epochs", "anchors", "starts", "stops")
        differing = [f"{name} {_shown(state[name])} there, {_shown(found[name])} here" for name in names if state[name] != found[name]]
        if differing:
            mend = "go on with the same walk, route, epochs and seed, or start a new run"
            raise ValueError(f"the checkpoint's walk differs ({'; '.join(differing)}): {mend}")
        self.legs, self.hardness = replay.legs, replay.hardness

    def _extend(self, ratios: dict[int, float]) -> Leg:
        self.hardness.append(ratios)
        anchor = next_anchor(ratios, self.legs[-1].anchor, self.walk.delta)
        return self._append(anchor, part_of(ratios, anchor))

    def _append(self, anchor: int, part: float) -> Leg:
        start = self.legs[-1].stop if self.legs else 0
        length = self.epochs
        if self.walk.budget == "mirror":
            remaining = self.epochs - start
            anchor = self._final if remaining == 1 else anchor
            length = remaining if anchor == self._final else share(remaining, part)
        self.legs.append(Leg(len(self.legs) + 1, anchor, start, start + length))
        return self.legs[-1]


def _shown(value: int | str | list[int]) -> str:
    return listed(value) if isinstance(value, list) else str(value)
