"""A defence by its name and settings, as command lines and tables write it: `fake:mode=absclip`, `noise:std=1e-3`, `prune:keep=0.1`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar, get_args, get_type_hints

from torch import Tensor

from projects.cafe.defences import Defence, FakeGradients, GaussianNoise, Pruning
from projects.cafe.federation import LocalGradient
from projects.cafe.privacy import Guarantee, PrivateGradients, account, most_rounds

Number = TypeVar("Number", int, float)
Rule = FakeGradients | GaussianNoise | Pruning | PrivateGradients
KINDS: Mapping[str, type[Rule]] = MappingProxyType(
    {"fake": FakeGradients, "noise": GaussianNoise, "prune": Pruning, "private": PrivateGradients},
)
NONE = "none"
DELTA = 1e-5
"""Probability that epsilon may be exceeded, in reports."""


@dataclass(frozen=True)
class Protection:
    """What all parties do to their gradients before the upload.

    Attributes:
        text: name and settings.
        rule: the defence; None uploads the gradients as they are.
    """

    text: str = NONE
    rule: Rule | None = None

    @classmethod
    def parse(cls, text: str, seed: int = 0) -> Protection:
        """Read `none`, or `kind` or `kind:name=value,...`, where kinds and names are those of `KINDS` and of their arguments.

        Args:
            text: the defence.
            seed: its seed, unless the text says one.

        Raises:
            ValueError: if the kind or a setting is unknown, one is missing or said twice, or a value will not do.
        """
        kind, _, settings = text.strip().partition(":")
        if kind == NONE and not settings:
            return cls()
        if kind not in KINDS:
            raise ValueError(f"unknown defence {text!r}: choose {NONE}, or one of {', '.join(map(_usage, KINDS))}")
        known = {field.name: field for field in dataclasses.fields(KINDS[kind])}
        given: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in settings.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if name not in known or not equals:
                raise ValueError(f"{part!r} is no setting of the defence {text!r}: write {_usage(kind)}")
            if name in given:
                raise ValueError(f"the defence {text!r} says {name} twice: leave one out")
            given[name] = _value(KINDS[kind], name, value, text)
        missing = [name for name, field in known.items() if field.default is dataclasses.MISSING and name not in given]
        if missing:
            raise ValueError(f"the defence {text!r} lacks {', '.join(missing)}: write {_usage(kind)}")
        own = {"seed": seed} if "seed" in known else {}
        try:
            return cls(text.strip(), KINDS[kind](**own | given))
        except ValueError as error:
            raise ValueError(f"the defence {text!r} cannot be: {error}") from None

    @property
    def defence(self) -> Defence | None:
        """The rule as `observe(defence=)` takes it, if it changes a gradient that is there."""
        return None if self.rule is None or isinstance(self.rule, PrivateGradients) else self.rule

    @property
    def local(self) -> LocalGradient | None:
        """The rule as `observe(local=)` takes it, if it makes the gradient itself."""
        return self.rule if isinstance(self.rule, PrivateGradients) else None

    def guarantee(self, schedule: Tensor, parties: int, delta: float = DELTA) -> Guarantee | None:
        """Account for the record that takes part in most rounds of a schedule, (T, N) bool; None for defences without a formal promise."""
        if not isinstance(self.rule, PrivateGradients):
            return None
        return account(most_rounds(schedule), self.rule.noise_multiplier, delta, uploads=parties)


def _value(kind: type[Rule], name: str, text: str, defence: str) -> Any:
    """Read a setting's value as its type; words of a fixed choice are judged by the rule itself."""
    hint = get_type_hints(kind)[name]
    wanted = get_args(hint) or (hint,)
    if type(None) in wanted and text in ("null", "None"):
        return None
    if float in wanted:
        number = _number(float, text)
        if number is None or not math.isfinite(number):
            raise ValueError(f"{name} of the defence {defence!r} must be a number, got {text!r}")
        return number
    if int in wanted:
        whole = _number(int, text)
        if whole is None:
            raise ValueError(f"{name} of the defence {defence!r} must be a whole number, got {text!r}")
        return whole
    return text


def _number(kind: type[Number], text: str) -> Number | None:
    try:
        return kind(text)
    except ValueError:
        return None


def _usage(kind: str) -> str:
    """Write how a kind is given: those of its settings first that it needs."""
    fields = dataclasses.fields(KINDS[kind])
    return f"{kind}:" + ",".join(f"{field.name}={'...' if field.default is dataclasses.MISSING else field.default}" for field in fields)
