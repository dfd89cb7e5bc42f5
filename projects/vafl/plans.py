"""How a server goes about it, and what it keeps in mind of a client's upload and answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from projects.vafl.client import Signal, Upload

Clock = Literal["wall", "virtual"]


@dataclass(frozen=True)
class Plan:
    """How a server goes about it.

    Attributes:
        seconds: after which it ends; None is until `updates`.
        updates: after which it ends; None is until `seconds`.
        every: seconds between two evaluations.
        clock: see the verb `launch`.
        silence: seconds without a sign of life after which a client counts as gone.
        patience: seconds to wait where nothing can go on: for all to join, or for anyone to come back (in virtual time for each).
    """

    seconds: float | None
    updates: int | None
    every: float
    clock: Clock = "wall"
    silence: float = 10.0
    patience: float = 600.0


@dataclass(frozen=True, eq=False)
class Waiting:
    """An upload that is not answered yet: when it came and its cycle began, and of which process of the client it is."""

    arrival: float
    number: int
    start: float
    upload: Upload
    incarnation: int = 0

    @property
    def turn(self) -> tuple[float, int]:
        """What sorts those who wait."""
        return self.arrival, self.number


@dataclass(frozen=True, eq=False)
class Answer:
    """The last answer to a client, kept in case it got lost on its way: to which cycle of which process, and when its next cycle begins."""

    incarnation: int
    cycle: int
    start: float
    signal: Signal
