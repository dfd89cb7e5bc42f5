"""Naming of anomalies, and intervals that a user sets: which component, which measure, by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projects.comad.measures import Column, Measures

FLOORS = {"global": 0.01, "number": 0.25}
"""Least training deviation of area and colour, by the training mean, and of numbers; that of extensions is 1, as they are in deviations already."""
BOUND = 3.0
"""Deviations beyond which a measure stands out."""
PHRASES = 4
"""Measures of a component that a sentence names at most."""


class Finding(NamedTuple):
    """A measure that stands out: its component or components, deviations with sign, raw value, and the training pictures' median."""

    measure: str
    components: tuple[int, ...]
    deviations: float
    value: float
    usual: float


def z_scores(values: Tensor, training: Tensor, floor: float, leave_out: bool = False) -> Tensor:
    """Return by how many training deviations values lie off the training mean.

    Args:
        values: (B, D).
        training: (N, D).
        floor: least deviation.
        leave_out: values are the training ones, each compared with the others.

    Returns:
        (B, D) float64.

    Raises:
        ValueError: if nothing is left to compare with.
    """
    others = len(training) - leave_out
    if others < 1:
        raise ValueError(f"{len(training)} training pictures leave none to compare with: give at least {1 + leave_out}")
    mean = training.double().mean(0)
    known, own = training.double() - mean, values.double() - mean
    total, squares = known.sum(0), (known**2).sum(0)
    middle = (total - own * leave_out) / others
    variance = (squares - own**2 * leave_out) / others - middle**2
    return (own - middle) / variance.clamp_min(0).sqrt().clamp_min(floor)


def deviations(measures: Measures, training: Measures, leave_out: bool = False) -> tuple[list[Column], Tensor, Tensor, Tensor]:
    """Compare every single measure, but for shares of the grid, with the training pictures'.

    Args:
        measures: of B pictures.
        training: of the good pictures.
        leave_out: they are the same, and each is compared with the others.

    Returns:
        The D measures, numbers in all and of each size class among them; (B, D) z-scores; (B, D) raw values; (D,) medians of training.
    """
    columns: list[Column] = []
    z, raw, usual = [], [], []
    for name, group in measures.groups.items():
        if name != "grid":
            columns += group.columns
            z.append(z_scores(group.normalised, training.groups[name].normalised, FLOORS.get(name, 1.0), leave_out))
            raw.append(group.raw)
            usual.append(training.groups[name].raw.nanmedian(0).values)
    for index, k in enumerate(measures.components):
        counts, known = measures.histograms[index].double(), training.histograms[index].double()
        sized = counts.shape[1] > 1
        columns += [Column("number", (k,)), *(Column(f"number of size {c}", (k,)) for c in range(counts.shape[1]) if sized)]
        counts, known = (torch.cat([part.sum(1, keepdim=True), part[:, : part.shape[1] * sized]], dim=1) for part in (counts, known))
        z.append(z_scores(counts, known, FLOORS["number"], leave_out))
        raw.append(counts)
        usual.append(known.median(0).values)
    return columns, torch.cat(z, dim=1), torch.cat(raw, dim=1), torch.cat(usual)


def name_anomalies(
    measures: Measures, training: Measures, weights: Tensor | None = None, bound: float = BOUND, leave_out: bool = False
) -> list[list[Finding]]:
    """List, for each picture, the measures that stand out, the farthest first; relations of two components after all others, which they follow from.

    Args:
        measures: of B pictures.
        training: of the good pictures.
        weights: (K,) of all clusters, which deviations are multiplied by for the order; 0 silences a component.
        bound: deviations, before weighting, beyond which a measure stands out.
        leave_out: the pictures are the training ones.
    """
    columns, z, raw, usual = deviations(measures, training, leave_out)
    by = torch.ones(len(columns), dtype=torch.float64)
    if weights is not None:
        by = torch.stack([weights[list(column.components)].double().prod() for column in columns])
    strength = z.abs() * by
    found = []
    for row, places in enumerate(strength.argsort(dim=1, descending=True, stable=True).tolist()):
        order = sorted(places, key=lambda place: len(columns[place].components))
        chosen = [index for index in order if strength[row, index] > 0 and abs(float(z[row, index])) > bound]
        found.append(
            [
                Finding(columns[index].measure, columns[index].components, float(z[row, index]), float(raw[row, index]), float(usual[index]))
                for index in chosen
            ]
        )
    return found


def sentence(findings: Sequence[Finding], names: Mapping[int, str] | None = None) -> str:
    """Say in words what stands out most, and what else does of the same component: `component 3: area +4.1 sd; number 3 instead of 2`.

    Args:
        findings: of one picture, the farthest first.
        names: of components; others are called by their number.
    """
    if not findings:
        return "nothing stands out"
    components = findings[0].components
    called = [(names or {}).get(k, f"component {k}") for k in components]
    parts: dict[str, str] = {}
    for finding in findings:
        if finding.components == components:
            parts.setdefault(finding.measure, _phrase(finding))
    if "number" in parts:
        parts = {measure: phrase for measure, phrase in parts.items() if not measure.startswith("number of size")}
    return f"{' and '.join(called)}: {'; '.join(list(parts.values())[:PHRASES])}"


def _phrase(finding: Finding) -> str:
    if finding.measure.startswith("number"):
        colon = ":" * finding.measure.startswith("number of size")
        return f"{finding.measure}{colon} {finding.value:g} instead of {finding.usual:g}"
    return f"{finding.measure} {finding.deviations:+.1f} sd"


def as_rows(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return findings as dictionaries for JSON, None for what is undefined."""
    rows = []
    for finding in findings:
        row = finding._asdict() | {"components": list(finding.components)}
        rows.append({key: None if isinstance(value, float) and math.isnan(value) else value for key, value in row.items()})
    return rows


@dataclass(frozen=True)
class Rule:
    """An interval that a user sets.

    Attributes:
        component: cluster that it is about.
        measure: `number`; `area` or `colour`, by the training mean; `pixels`; or another measure of the component, raw.
        low: least value allowed; None for none.
        high: largest value allowed.
    """

    component: int
    measure: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        if not low <= high or (self.low is None and self.high is None):
            raise ValueError(f"rule of component {self.component}: {self.measure} has no interval from {self.low} to {self.high}")

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Read `component:measure:low:high`, as `3:number:2:2` or `1:area::1.2`.

        Raises:
            ValueError: if it is anything else.
        """
        try:
            component, measure, low, high = text.split(":")
            return cls(int(component), measure.strip(), float(low) if low else None, float(high) if high else None)
        except ValueError as error:
            raise ValueError(f"rule {text!r} will not do: write component:measure:low:high, as 3:number:2:2 or 1:area::1.2 ({error})") from error


class Violation(NamedTuple):
    """A rule that a picture breaks: its value (None where undefined), and a sentence."""

    rule: Rule
    value: float | None
    text: str


def check_rules(measures: Measures, rules: Sequence[Rule], names: Mapping[int, str] | None = None) -> list[list[Violation]]:
    """List the rules that each picture breaks, in words with the components' names; a value that is undefined breaks none.

    Raises:
        ValueError: if a rule is about a component or a measure that there is not.
    """
    broken = []
    for row in range(len(measures)):
        table = {entry["component"]: entry for entry in measures.table(row)}
        found = [(rule, _value(table, rule)) for rule in rules]
        said = [(rule, value, _breach(rule, value, names or {})) for rule, value in found if value is not None]
        broken.append([Violation(*each) for each in said if each[2]])
    return broken


def _value(table: dict[int, dict[str, Any]], rule: Rule) -> float | None:
    if rule.component not in table:
        raise ValueError(f"rule about component {rule.component}: components are {', '.join(map(str, table))}")
    entry = table[rule.component]
    values = entry | {"pixels": entry["area"], "area": entry["relative"]["area"]}
    values["colour"] = None if entry["colour"] is None else entry["relative"]["colour"]
    known = [key for key in values if key not in ("component", "pieces", "relative")]
    if rule.measure not in known:
        raise ValueError(f"rule about {rule.measure!r} of component {rule.component}: measures are {', '.join(known)}")
    return values[rule.measure]


def _breach(rule: Rule, value: float, names: Mapping[int, str]) -> str:
    """Say how a value breaks a rule; nothing if it does not."""
    called = names.get(rule.component, f"component {rule.component}")
    if rule.low is not None and value < rule.low:
        return f"{called}: {rule.measure} {value:g} is below {rule.low:g}"
    if rule.high is not None and value > rule.high:
        return f"{called}: {rule.measure} {value:g} is above {rule.high:g}"
    return ""
