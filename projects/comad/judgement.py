"""What an engineer may set without fitting anew: weights and names of components, rules, what is fused, and when a picture alarms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from projects.comad.fusion import How
from projects.comad.naming import Rule

FUSED = ("logical", "patches")
"""Scores that are fused unless told otherwise: ComAD's, and that of a structural detector."""


@dataclass(frozen=True)
class Judgement:
    """How measures and maps become a verdict.

    Attributes:
        parts: scores that are fused.
        fusion: how.
        quantile: of the validation scores, above which a picture alarms.
        background: weight of the clusters that are no components; 0 silences dirt on the belt.
        weights: of components, and of further clusters; others weigh 1.
        names: of components, for reports.
        rules: intervals, checked beside the learned score.
        changes: what was changed after fitting, in order.

    Raises:
        ValueError: if a value is out of its range, or there is no such fusion.
    """

    parts: tuple[str, ...] = FUSED
    fusion: How = "trimmed-z"
    quantile: float = 0.95
    background: float = 1.0
    weights: dict[int, float] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    changes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("there is nothing to judge by: name at least one of the parts, such as logical")
        if self.fusion not in get_args(How):
            raise ValueError(f"fusion must be one of {', '.join(get_args(How))}, got {self.fusion!r}")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile must be in [0, 1], got {self.quantile}")
        if len(set(self.parts)) < len(self.parts):
            raise ValueError(f"a part is named twice in {', '.join(self.parts)}")
        if any(not 0 <= weight < math.inf for weight in (self.background, *self.weights.values())):
            raise ValueError(f"weights must be finite and not negative, got {self.weights}, background {self.background}")
        if len(set(self.names.values())) < len(self.names) or not all(self.names.values()):
            raise ValueError(f"each component needs a name of its own, got {self.names}")

    def changed(self, changes: Sequence[str]) -> Judgement:
        """Return the judgement after changes of the form `name=value`.

        Args:
            changes: `component.3.weight=0`, `component.3.name=nuts`, `background.weight=0`, `quantile=0.99`, `fusion=max`,
                `parts=logical,patches`, `rule=3:number:2:2` (one more, or another interval of that measure) or `rule=none` (all gone).

        Raises:
            ValueError: if one has another form or a value that does not fit; it names the change.
        """
        changed = self
        for change in changes:
            name, equals, value = (part.strip() for part in change.partition("="))
            try:
                if not equals:
                    raise ValueError("there is no '='")
                changed = changed._with(name.split("."), value)
            except ValueError as error:
                forms = "component.3.weight=0, component.3.name=nuts, background.weight=0, quantile=0.99, fusion=max, parts=logical,patches, "
                raise ValueError(f"cannot set {change!r}: {error}. Forms: {forms}rule=3:number:2:2, rule=none") from error
        return replace(changed, changes=(*self.changes, *changes))

    def _with(self, name: Sequence[str], value: str) -> Judgement:
        if name == ["rule"]:
            return replace(self, rules=() if value == "none" else self._ruled(Rule.parse(value)))
        if name == ["parts"]:
            return replace(self, parts=tuple(part.strip() for part in value.split(",")))
        if name == ["fusion"]:
            return replace(self, fusion=value)  # type: ignore[arg-type]  # checked there
        if name == ["quantile"]:
            return replace(self, quantile=_number(value))
        if name == ["background", "weight"]:
            return replace(self, background=_number(value))
        if len(name) == 3 and name[0] == "component" and name[1].isdigit():
            if name[2] == "weight":
                return replace(self, weights={**self.weights, int(name[1]): _number(value)})
            if name[2] == "name":
                return replace(self, names={**self.names, int(name[1]): value})
        raise ValueError("there is no such setting")

    def _ruled(self, rule: Rule) -> tuple[Rule, ...]:
        """Return the rules with one more, which takes the place of that about the same measure."""
        others = [other for other in self.rules if (other.component, other.measure) != (rule.component, rule.measure)]
        return (*others, rule)

    def called(self, component: int) -> str:
        """Return the name of a component, or its number in words."""
        return self.names.get(component, f"component {component}")

    def state(self) -> dict[str, Any]:
        """Return plain values that `from_state` takes."""
        pairs = {name: [[k, value] for k, value in sorted(getattr(self, name).items())] for name in ("weights", "names")}
        return asdict(self) | pairs | {"parts": list(self.parts), "changes": list(self.changes), "rules": [asdict(rule) for rule in self.rules]}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Judgement:
        """Restore what `state` returned."""
        maps = {name: dict(state[name]) for name in ("weights", "names")}
        sequences = {"parts": tuple(state["parts"]), "changes": tuple(state["changes"]), "rules": tuple(Rule(**rule) for rule in state["rules"])}
        return cls(**(state | maps | sequences))


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is no number") from error
