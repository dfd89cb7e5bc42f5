"""Says what in a certification table cannot be, or does not follow from the number of draws, alpha and sigma that it was made with."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.smoothing.lattices import FORMS, SLACK, Form, Points, ceiling, cohen_points, distance, form_points, log_chance, pair_points
from shared.smoothing.tables import Table

Severity = Literal["unsound", "suspicious", "note"]
_COARSE = (100, 200, 250, 400, 500, 1000, 2000, 2500, 4000, 5000, 10_000, 20_000, 50_000)
_CHANCE = 1e-6
_ORDER = ("unsound", "suspicious", "note")


@dataclass(frozen=True)
class Finding:
    """Something that an audit found.

    Attributes:
        severity: "unsound" contradicts the declared settings; "suspicious" is most unlikely under them; "note" is worth knowing.
        message: what it is, in words, with numbers.
        rows: indices in the data set of the rows concerned, at most ten.
    """

    severity: Severity
    message: str
    rows: tuple[int, ...] = ()


def audit(table: Table, sigma: float, draws: int, alpha: float, branches: Literal[1, 2] = 1, rule: Form | None = None) -> list[Finding]:
    """Check a table against what n draws at failure probability alpha and noise sigma can give.

    Args:
        table: see `tables.read_table`.
        sigma: standard deviation of the noise, in the radii's units.
        draws: n of the estimation, in each branch.
        alpha: failure probability of a certificate.
        branches: 1 for randomized smoothing, 2 for two branches fused by their mean.
        rule: certificate of two branches, "main", "pooled" or "joint"; None: any of them.

    Returns:
        The findings, the gravest first; none where nothing speaks against the table.

    Raises:
        ValueError: if a setting is out of range.
    """
    if not (sigma > 0 and draws >= 1 and 0 < alpha < 1):
        raise ValueError(f"sigma and draws are positive and alpha lies in (0, 1), got {sigma}, {draws} and {alpha}")
    found = [*check_columns(table), *check_abstentions(table), *_check_ceiling(table, sigma, draws, alpha, branches, rule)]
    rows = (table.radius > 0) & table.radius.isfinite()
    if bool(rows.any()) and ceiling(sigma, draws, alpha, branches, rule) > 0:
        found += _check_lattice(table, rows, sigma, draws, alpha) if branches == 1 else _check_pairs(table, rows, sigma, draws, alpha, rule)
    return gravest_first([*found, *(Finding("note", note) for note in table.notes)])


def gravest_first(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by their severity."""
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))


def check_columns(table: Table) -> list[Finding]:
    """Check that columns go together, whatever the settings."""
    found = []
    images, times = table.index.unique(return_counts=True)
    if bool((times > 1).any()):
        found.append(Finding("unsound", f"{int((times > 1).sum())} images are counted more than once", _rows(images[times > 1])))
    stated = table.stated_correct
    known = ~stated.isnan()
    odd = known & (stated != 0) & (stated != 1)
    if bool(odd.any()):
        steps = stated.diff()
        kind = "a running total" if bool(((steps == 0) | (steps == 1)).all()) else "neither 0 nor 1"
        found.append(
            Finding("unsound", f"the column `correct` is {kind} in {int(odd.sum())} rows: a mean over it is no accuracy", _rows(table.index[odd]))
        )
    else:
        wrong = known & (stated.bool() != table.is_correct)
        if bool(wrong.any()):
            found.append(Finding("unsound", f"`correct` contradicts `predict` and `label` in {int(wrong.sum())} rows", _rows(table.index[wrong])))
    bad = ~table.radius.isfinite() | (table.radius < 0)
    if bool(bad.any()):
        found.append(Finding("unsound", f"{int(bad.sum())} radii are negative or no numbers", _rows(table.index[bad])))
    return found


def check_abstentions(table: Table) -> list[Finding]:
    """Check that abstentions, and only they, have radius 0."""
    found = []
    abstained = table.predicted == -1
    claimed = abstained & (table.radius > 0)
    if bool(claimed.any()):
        found.append(Finding("unsound", f"{int(claimed.sum())} abstentions have a positive radius", _rows(table.index[claimed])))
    empty = ~abstained & (table.radius == 0)
    if bool(empty.any()):
        right = int((empty & table.is_correct).sum())
        text = f"{int(empty.sum())} rows predict a class with radius 0, {right} of them count as correct at r = 0: these are abstentions"
        found.append(Finding("unsound", text, _rows(table.index[empty])))
    return found


def _check_ceiling(table: Table, sigma: float, draws: int, alpha: float, branches: Literal[1, 2], rule: Form | None) -> list[Finding]:
    top = max(0.0, ceiling(sigma, draws, alpha, branches, rule))
    exceeding = table.radius - top
    above = exceeding > table.digits / 2 + SLACK
    rounded = (exceeding > SLACK) & ~above
    found = []
    if bool(above.any()):
        highest = float(table.radius[above].max())
        text = f"{int(above.sum())} radii lie above {top:.4g}, the most that {_settings(sigma, draws, alpha, branches, rule)} can give"
        if branches == 1:
            level = float(torch.special.ndtr(torch.tensor(highest / sigma, dtype=torch.float64))) ** draws
            text += f"; the highest, {highest:.4g}, would need alpha >= {level:.2g}"
        else:
            text += f"; the highest is {highest:.4g}"
        found.append(Finding("unsound", text, _rows(table.index[above])))
    if bool(rounded.any()):
        text = (
            f"{int(rounded.sum())} radii were rounded up beyond the highest possible one, {top:.6g}: all may be too high by half of their last digit"
        )
        found.append(Finding("note", text, _rows(table.index[rounded])))
    if branches == 2 and rule is None:
        found += [
            Finding("note", f"{int(over.sum())} radii lie above {limit:.4g}, the most of the certificate {form!r}: they cannot be its")
            for form in FORMS
            if (limit := max(0.0, ceiling(sigma, draws, alpha, 2, form))) < top
            and bool((over := (table.radius > limit + table.digits / 2 + SLACK) & ~above).any())
        ]
    return found


def _settings(sigma: float, draws: int, alpha: float, branches: int, rule: Form | None) -> str:
    each = f"{draws} draws" if branches == 1 else f"{draws} draws of each of two branches"
    return f"{each} at alpha = {alpha:g} and sigma = {sigma:g}" + (f" with the certificate {rule!r}" if rule and branches == 2 else "")


def _check_lattice(table: Table, rows: Tensor, sigma: float, draws: int, alpha: float) -> list[Finding]:
    """Check the radii of one branch: all that n draws can give are known."""
    told = cohen_points(sigma, draws, alpha)
    found = []
    if bool((off := _off(table, rows, [told])).any()):
        text = f"{int(off.sum())} radii belong to no count of {draws} draws: another n, alpha, sigma or certificate made them"
        found.append(Finding("unsound", text, _rows(table.index[off])))
    supposed = ((counted, cohen_points(sigma, draws, alpha, counted)) for counted in _COARSE if counted < draws)
    chances = [(chance, counted) for counted, points in supposed if (chance := _chance(table, rows, [told], points)) is not None]
    if chances and min(chances)[0] < math.log(_CHANCE):
        counted = min(chances)[1]
        text = f"all radii are those of {counted} draws whose counts were multiplied by {draws / counted:g}: these are not {draws} draws"
        found.append(Finding("unsound", text, _rows(table.index[rows])))
    return found


def _check_pairs(table: Table, rows: Tensor, sigma: float, draws: int, alpha: float, rule: Form | None) -> list[Finding]:
    """Check the highest radii of two branches; further down any radius is near one that two counts can give."""
    told = [form_points(form, sigma, draws, alpha) for form in ([rule] if rule else FORMS)]
    found = []
    if bool((off := _off(table, rows, told)).any()):
        forms = f"the certificate {rule!r}" if rule else "any of the certificates main, pooled and joint"
        text = f"{int(off.sum())} radii belong to no two counts of {draws} draws by {forms}: another n, alpha, sigma or certificate made them"
        found.append(Finding("unsound" if rule else "suspicious", text, _rows(table.index[off])))
    chances = []
    for counted, share, is_sum in _suppositions(draws):
        points = pair_points("sum" if is_sum else "root of squares", sigma, draws, alpha * share, counted)
        chance = _chance(table, rows & (table.radius >= points.floor - table.digits), told, points)
        if chance is not None and chance < math.log(_CHANCE):
            chances.append((chance, counted, share, is_sum, points.floor))
    if chances:
        _, counted, share, is_sum, floor = min(chances)
        reasons = [f"{counted} draws of each branch whose counts were multiplied by {draws / counted:g}"] if counted < draws else []
        reasons += [] if is_sum else ["combined as sqrt(R_l^2 + R_r^2), which exceeds (R_l + R_r) / sqrt(2), and no proof supports it"]
        reasons += ["each branch bounded at alpha, not alpha / 2"] if share == 1 else []
        concerned = rows & (table.radius >= floor)
        text = f"all {int(concerned.sum())} radii above {floor:.3g} are those of: {'; '.join(reasons)}"
        found.append(Finding("unsound", text, _rows(table.index[concerned])))
    return found


def _suppositions(draws: int) -> Iterator[tuple[int, float, bool]]:
    """Yield what is unsound: draws that were made, share of alpha of each branch, and whether radii are added, or their squares."""
    for counted in (*(count for count in _COARSE if count < draws), draws):
        for share in (1.0, 0.5):
            yield counted, share, False
            if counted < draws or share == 1:
                yield counted, share, True


def _off(table: Table, rows: Tensor, told: list[Points]) -> Tensor:
    """Say which rows have a radius that none of these allow, though it is not above all of them, where the ceiling is concerned."""
    allowed = torch.stack([points.allow(table.radius, table.digits + SLACK) for points in told]).any(0)
    return rows & ~allowed & (table.radius <= max(float(points.radii[-1]) for points in told))


def _chance(table: Table, rows: Tensor, told: list[Points], supposed: Points) -> float | None:
    """Return the logarithm of the chance that these rows look like those of something coarser; None if they do not, or there is nothing to see."""
    radii, digits = table.radius[rows], table.digits[rows]
    if not len(radii) or len(supposed.radii) < 2 or bool((distance(radii, supposed.radii) > digits + SLACK).any()):
        return None
    return log_chance(radii, digits, told, supposed)


def _rows(index: Tensor) -> tuple[int, ...]:
    return tuple(index[:10].tolist())
