"""Audits files: tables of others against settings that are given, our own against the log beside them, whose counts are counted again."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shared.smoothing.audit import Finding, audit, check_abstentions, check_columns, gravest_first
from shared.smoothing.certificates import Smoothing, choose_class
from shared.smoothing.lattices import FORMS, SLACK, Form
from shared.smoothing.log import Row, dense
from shared.smoothing.tables import Table, read_sidecar, read_table


@dataclass(frozen=True)
class Audit:
    """What was audited, and what was found.

    Attributes:
        path: the table.
        images: its rows.
        settings: what it was held against: sigma, draws, alpha, branches and, if known, rule.
        is_ours: a log of ours lies beside it, whose counts were checked as well.
        findings: the gravest first.
    """

    path: Path
    images: int
    settings: dict[str, Any]
    is_ours: bool
    findings: list[Finding]

    @property
    def is_sound(self) -> bool:
        """Whether nothing contradicts the settings."""
        return not any(finding.severity == "unsound" for finding in self.findings)


def audit_file(
    path: str | Path,
    sigma: float | None = None,
    draws: int | None = None,
    alpha: float | None = None,
    branches: Literal[1, 2] | None = None,
    rule: Form | None = None,
) -> Audit:
    """Audit a table against given settings, or against those of the certify.jsonl beside it, whose counts are then checked, too.

    Args:
        path: the table.
        sigma: standard deviation of the noise, in the radii's units; None: as the log says.
        draws: n of the estimation, in each branch; None: as the log says.
        alpha: failure probability of a certificate; None: as the log says.
        branches: 1 for randomized smoothing, 2 for two branches fused by their mean; None: as the log says, else 1.
        rule: certificate of two branches; None: as the log says, else any of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no table, or a setting is neither given nor in a log.
    """
    table, sidecar = read_table(path), read_sidecar(path)
    given: dict[str, Any] = {"sigma": sigma, "draws": draws, "alpha": alpha, "branches": branches, "rule": rule}
    given = {name: value for name, value in given.items() if value is not None}
    if sidecar is None:
        if missing := [name for name in ("sigma", "draws", "alpha") if name not in given]:
            raise ValueError(f"no log lies beside {path} that says how it was made: give {', '.join('--' + name for name in missing)}")
        settings = {name: given[name] for name in ("sigma", "draws", "alpha")} | {"branches": 1} | given
        return Audit(Path(path), len(table), settings, False, audit(table, **settings))
    logged, rows = sidecar
    settings = _declared(logged)
    found = [
        Finding("unsound", f"the log beside the table says {name} = {_text(settings[name])}, not {_text(value)}")
        for name, value in given.items()
        if settings[name] != value
    ]
    return Audit(Path(path), len(table), settings, True, gravest_first([*found, *audit_log(table, logged, rows)]))


def _declared(logged: Mapping[str, Any]) -> dict[str, Any]:
    sigmas = list(logged["sigmas"])
    sigma = sigmas[0] if len(set(sigmas)) == 1 else sigmas
    return {"sigma": sigma, "draws": logged["draws"], "alpha": logged["alpha"], "branches": len(sigmas), "rule": logged["rule"]}


def audit_log(table: Table, settings: Mapping[str, Any], rows: Sequence[Row]) -> list[Finding]:
    """Check a table of ours against its log: that it claims no more than the log, and the log no more than follows from its counts.

    Args:
        table: the table.
        settings: settings of the log, as `SmoothedClassifier.settings` gives them.
        rows: rows of the log.

    Returns:
        The findings, the gravest first.
    """
    names = {field.name for field in dataclasses.fields(Smoothing)}
    fields: dict[str, Any] = {name: value for name, value in settings.items() if name in names}
    smoothing = Smoothing(**fields | {"sigmas": tuple(settings["sigmas"])})
    found = [*_check_against_log(table, rows), *_check_counts(smoothing, settings["draws"], settings["classes"], rows)]
    is_plain = not (smoothing.anytime or smoothing.randomised or smoothing.anisotropic)
    if is_plain and len(set(smoothing.sigmas)) == 1 and len(smoothing.sigmas) <= 2 and smoothing.rule in FORMS:
        branches: Literal[1, 2] = 1 if len(smoothing.sigmas) == 1 else 2
        return gravest_first([*found, *audit(table, smoothing.sigmas[0], settings["draws"], smoothing.alpha, branches, smoothing.rule)])
    notes = [Finding("note", note) for note in table.notes]
    if smoothing.anytime:
        notes.append(Finding("note", "draws ended early, so average radii are too low to compare"))
    return gravest_first([*found, *check_columns(table), *check_abstentions(table), *notes])


def _check_against_log(table: Table, rows: Sequence[Row]) -> list[Finding]:
    logged = {row.index: row for row in rows}
    listed = list(zip(table.index.tolist(), table.label.tolist(), table.predicted.tolist(), table.radius.tolist(), strict=True))
    strange = [index for index, *_ in listed if index not in logged]
    other = [
        index for index, label, predicted, _ in listed if index in logged and (logged[index].label, logged[index].predicted) != (label, predicted)
    ]
    above = [index for index, *_, radius in listed if index in logged and radius > logged[index].radius * (1 + SLACK)]
    lost = sorted(set(logged) - {index for index, *_ in listed})
    texts = {
        "images are in the table and not in the log": strange,
        "rows have another label or class than in the log": other,
        "radii of the table are above those of the log": above,
        "images of the log are not in the table": lost,
    }
    return [Finding("unsound", f"{len(which)} {text}", tuple(which[:10])) for text, which in texts.items() if which]


def _check_counts(smoothing: Smoothing, draws: int, classes: int, rows: Sequence[Row]) -> list[Finding]:
    wrong: dict[str, list[int]] = {}
    for row in (row for row in rows if row.predicted != -1):
        told, votes = row.details["draws"], dense(row.details["estimation"], classes)
        certified = row.details.get("certified", {"draws": told, "votes": row.details["estimation"]})
        counted, best = certified["draws"], dense(certified["votes"], classes)
        is_whole = bool((votes.sum(1) == told).all() and (best.sum(1) == counted).all())
        if not is_whole or told > draws or counted > told or (counted < draws and not smoothing.anytime):
            wrong.setdefault(f"rows of the log count another number of draws than the settings' {draws}", []).append(row.index)
        elif bool((best > votes).any()):
            wrong.setdefault("rows of the log certify by votes that they did not get", []).append(row.index)
        elif row.radius > _radius(smoothing, best[:, :-1], counted, row) * (1 + SLACK):
            wrong.setdefault("radii of the log are above what their counts give", []).append(row.index)
        if choose_class(dense(row.details["selection"], classes)[:, :-1]) != row.predicted:
            wrong.setdefault("classes of the log are not those that the selection draws chose", []).append(row.index)
    return [Finding("unsound", f"{len(which)} {text}", tuple(which[:10])) for text, which in wrong.items()]


def _radius(smoothing: Smoothing, counts: Tensor, draws: int, row: Row) -> float:
    chosen = smoothing.decided(dense(row.details["selection"], counts.shape[1])[:, :-1], draws, row.predicted)
    coins = row.details.get("coins")
    return chosen.radius(counts, draws, row.predicted, None if coins is None else torch.tensor(coins, dtype=torch.float64))


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
