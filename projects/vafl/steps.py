"""Rules of step sizes, by name and settings as command lines write them: `constant`, `decay:offset=100`."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


@dataclass(frozen=True)
class StepSizes(ABC):
    """A rule of step sizes.

    Args:
        lr: the number that the rule scales.
    """

    lr: float

    @abstractmethod
    def at(self, k: int, age: float = 0.0) -> float:
        """Return the step size eta.

        Args:
            k: updates of the server so far.
            age: mean age of the embeddings behind the gradient, in updates of the server.
        """

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"lr must be 0 or more and finite, got {self.lr}")

    @staticmethod
    def parse(text: str, lr: float) -> StepSizes:
        """Read a rule: `constant`, `sqrt:total=10000,cap=0.5`, `decay:offset=100` or `stale:power=0.5`.

        Args:
            text: kind and settings of the rule; see `Constant`, `Root`, `Decay` and `Stale`.
            lr: what the rule scales.

        Raises:
            ValueError: if the kind or a setting is unknown, one is missing or said twice, or a value will not do.
        """
        kind, _, settings = text.strip().partition(":")
        if kind not in RULES:
            raise ValueError(f"unknown rule of step sizes {text!r}: choose one of {', '.join(map(_usage, RULES))}")
        fields = {field.name: field for field in dataclasses.fields(RULES[kind]) if field.name != "lr"}
        given: dict[str, float] = {}
        for part in filter(None, (part.strip() for part in settings.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if name not in fields or not equals:
                raise ValueError(f"{part!r} is no setting of the step sizes {text!r}: write {_usage(kind)}")
            if name in given:
                raise ValueError(f"the step sizes {text!r} say {name} twice: leave one out")
            try:
                given[name] = float(value)
            except ValueError:
                raise ValueError(f"{name} of the step sizes {text!r} must be a number, got {value!r}") from None
        missing = [name for name, field in fields.items() if field.default is dataclasses.MISSING and name not in given]
        if missing:
            raise ValueError(f"the step sizes {text!r} lack {', '.join(missing)}: write {_usage(kind)}")
        try:
            return RULES[kind](lr, **given)
        except ValueError as error:
            raise ValueError(f"the step sizes {text!r} cannot be: {error}") from None


@dataclass(frozen=True)
class Constant(StepSizes):
    """Always `lr`, as in the paper's experiments."""

    def at(self, k: int, age: float = 0.0) -> float:
        """Return lr."""
        return self.lr


@dataclass(frozen=True)
class Root(StepSizes):
    """min{cap, c_eta / sqrt(K)} throughout, as in Theorems 1 and 3.

    Args:
        lr: c_eta.
        total: planned updates of the server, K.
        cap: largest step size; see `theory.largest_step` for the theorems' own.
    """

    total: float
    cap: float = math.inf

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.total >= 1 and self.cap > 0):
            raise ValueError(f"total must be at least 1 and cap positive, got {self.total:g} and {self.cap:g}")

    def at(self, k: int, age: float = 0.0) -> float:
        """Return min{cap, lr / sqrt(total)}."""
        return min(self.cap, self.lr / math.sqrt(self.total))


@dataclass(frozen=True)
class Decay(StepSizes):
    """lr K0 / (k + K0), the form of Theorems 2 and 4; `theory.theorem2_steps` and `theory.theorem4_steps` choose both numbers.

    Args:
        lr: step size of the first update.
        offset: K0, the updates after which it has halved.
    """

    offset: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.offset < math.inf:
            raise ValueError(f"offset must be positive and finite, got {self.offset:g}")

    def at(self, k: int, age: float = 0.0) -> float:
        """Return lr offset / (k + offset)."""
        return self.lr * self.offset / (k + self.offset)


@dataclass(frozen=True)
class Stale(StepSizes):
    """lr / (1 + age)^power: the older the embeddings behind a gradient, the shorter the step. Not the paper's, but its peers'.

    Args:
        lr: step size of a fresh gradient.
        power: 0 ignores ages.
    """

    power: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.power < math.inf:
            raise ValueError(f"power must be 0 or more and finite, got {self.power:g}")

    def at(self, k: int, age: float = 0.0) -> float:
        """Return lr / (1 + age)^power."""
        return float(self.lr / (1 + age) ** self.power)


RULES: dict[str, type[StepSizes]] = {"constant": Constant, "sqrt": Root, "decay": Decay, "stale": Stale}


def _usage(kind: str) -> str:
    fields = dataclasses.fields(RULES[kind])[1:]
    settings = [f"{field.name}={'...' if field.default is dataclasses.MISSING else field.default}" for field in fields]
    return f"{kind}:{','.join(settings)}" if settings else kind
