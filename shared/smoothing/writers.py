"""Writes the figures of certification tables for READMEs, papers and spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shared.results import markdown


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of an `Analysis` as a Markdown table, shares in per cent."""
    return markdown([dict(zip(row, cells(row), strict=True)) for row in rows])


def to_latex(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of an `Analysis` as a LaTeX tabular (with the package booktabs), shares in per cent."""
    lines = [" & ".join(map(_escaped, rows[0])), *(" & ".join(map(_escaped, cells(row))) for row in rows)]
    header, *body = (line + r" \\" for line in lines)
    columns = "l" + "r" * (len(rows[0]) - 1)
    return "\n".join([rf"\begin{{tabular}}{{{columns}}}", r"\toprule", header, r"\midrule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows of an `Analysis` as CSV, shares in [0, 1] with all digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row for people: shares in per cent with one digit, the average radius with three."""
    return [
        "" if value is None else f"{value:.3f}" if name == "ACR" else f"{100 * value:.1f}" if isinstance(value, float) else str(value)
        for name, value in row.items()
    ]


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)
