"""Says what in a certification table cannot be, or does not follow from the number of draws, alpha and sigma that it was made with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from shared.smoothing.bounds import clopper_pearson_lower, normal_quantile
from shared.smoothing.tables import Table

Severity = Literal["unsound", "suspicious", "note"]
_COARSE = (100, 200, 250, 400, 500, 1000, 2000, 2500, 4000, 5000, 10_000, 20_000, 50_000)
_CHANCE = 1e-6
_SLACK = 1e-9


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


def audit(table: Table, sigma: float, draws: int, alpha: float, branches: Literal[1, 2] = 1) -> list[Finding]:
    """Check a table against what n draws at failure probability alpha and noise sigma can give.

    Args:
        table: see `tables.read_table`.
        sigma: standard deviation of the noise, in the radii's units.
        draws: n of the estimation, in each branch.
        alpha: failure probability of a certificate.
        branches: 1 for randomized smoothing, 2 for two branches fused by their mean.

    Returns:
        The findings, the gravest first; none where nothing speaks against the table.
    """
    found = [*_check_columns(table), *_check_abstentions(table), *_check_ceiling(table, sigma, draws, alpha, branches)]
    if branches == 1:
        found += _check_lattice(table, sigma, draws, alpha)
    found += [Finding("note", note) for note in table.notes]
    order = ("unsound", "suspicious", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def ceiling(sigma: float, draws: int, alpha: float, branches: Literal[1, 2] = 1) -> float:
    """Radius when all draws hit, sigma Phi^-1(alpha^(1/n)); of two branches the highest, the pooled form's sqrt(2) sigma Phi^-1(alpha^(1/2n))."""
    return math.sqrt(branches) * sigma * float(normal_quantile(alpha ** (1 / (branches * draws))))


def lattice(sigma: float, draws: int, alpha: float, counted: int | None = None) -> Tensor:
    """Return the radii that Cohen's certificate can have after n draws, ascending, from the first positive one.

    Args:
        sigma: standard deviation of the noise.
        draws: n that Clopper-Pearson is told.
        alpha: failure probability.
        counted: draws that were really made, their counts scaled up to `draws`; None: all of them.
    """
    made = counted or draws
    hits = torch.arange(made // 2, made + 1, dtype=torch.float64) * (draws / made)
    radii = sigma * normal_quantile(clopper_pearson_lower(hits, draws, alpha))
    return radii[radii > 0]


def _check_columns(table: Table) -> list[Finding]:
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


def _check_abstentions(table: Table) -> list[Finding]:
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


def _check_ceiling(table: Table, sigma: float, draws: int, alpha: float, branches: Literal[1, 2]) -> list[Finding]:
    top = ceiling(sigma, draws, alpha, branches)
    exceeding = table.radius - top
    above = exceeding > table.digits / 2 + _SLACK
    rounded = (exceeding > _SLACK) & ~above
    found = []
    if bool(above.any()):
        highest = float(table.radius[above].max())
        level = float(torch.special.ndtr(torch.tensor(highest / sigma / math.sqrt(branches), dtype=torch.float64))) ** (branches * draws)
        text = f"{int(above.sum())} radii lie above {top:.4g}, the most that {draws} draws at alpha = {alpha} and sigma = {sigma} can give"
        found.append(Finding("unsound", f"{text}; the highest, {highest:.4g}, would need alpha >= {level:.2g}", _rows(table.index[above])))
    if bool(rounded.any()):
        text = f"{int(rounded.sum())} radii were rounded up beyond the highest possible one, {top:.6g}"
        found.append(Finding("unsound", text, _rows(table.index[rounded])))
    return found


def _check_lattice(table: Table, sigma: float, draws: int, alpha: float) -> list[Finding]:
    rows = (table.radius > 0) & (table.radius.isfinite())
    radii, digits = table.radius[rows], table.digits[rows]
    if not len(radii):
        return []
    full = lattice(sigma, draws, alpha)
    off = (_distance(radii, full) > digits + _SLACK) & (radii <= full[-1])
    found = []
    if bool(off.any()):
        text = f"{int(off.sum())} radii belong to no count of {draws} draws: another n, alpha, sigma or certificate made them"
        found.append(Finding("unsound", text, _rows(table.index[rows][off])))
    for counted in _COARSE:
        coarse = lattice(sigma, draws, alpha, counted) if counted < draws else radii[:0]
        if len(coarse) < 2 or bool((_distance(radii, coarse) > digits + _SLACK).any()):
            continue
        if float(_chance(radii, digits, coarse).log().sum()) < math.log(_CHANCE):
            text = f"all radii are those of {counted} draws whose counts were multiplied by {draws / counted:g}: these are not {draws} draws"
            found.append(Finding("unsound", text, _rows(table.index[rows])))
            break
    return found


def _distance(radii: Tensor, points: Tensor) -> Tensor:
    """Return how far each radius is from the nearest of the ascending points."""
    right = torch.searchsorted(points, radii).clamp(max=len(points) - 1)
    left = (right - 1).clamp_min(0)
    return torch.minimum((points[right] - radii).abs(), (radii - points[left]).abs())


def _chance(radii: Tensor, digits: Tensor, points: Tensor) -> Tensor:
    """Return the chance that a radius anywhere between its neighbouring points looks like one of them, as it is written."""
    right = torch.searchsorted(points, radii).clamp(1, len(points) - 1)
    return (2 * digits / (points[right] - points[right - 1])).clamp(max=1.0)


def _rows(index: Tensor) -> tuple[int, ...]:
    return tuple(index[:10].tolist())
