"""Writes what was found of certification tables: to the terminal, and for READMEs, papers and spreadsheets."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from shared.results import markdown
from shared.smoothing.analysis import Analysis
from shared.smoothing.audit_log import Audit

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {"unsound": "bold red", "suspicious": "yellow", "note": "dim"}


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


_ABREAST = 3  # tables that are printed beside each other; more get a line each


def print_analysis(found: Analysis, console: Console | None = None) -> None:
    """Print the figures, a column a table (a line each if there are many) and shares in per cent, and what to know when reading them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    rows, claims = found.rows(), {row["table"]: row for row in found.claims()}
    table = Table(title="certified accuracy (%), in brackets what holds with probability 0.999", title_justify="left", title_style="bold")
    table.add_column("")
    columns = [_shown(row, claims.get(row["table"], {})) for row in rows]
    if len(rows) > _ABREAST:
        for name in list(rows[0])[1:]:
            table.add_column(name, justify="right", overflow="fold")
        for row, column in zip(rows, columns, strict=True):
            table.add_row(Text(row["table"]), *map(Text, column))
    else:
        for row in rows:
            table.add_column(Text(row["table"]), justify="right", overflow="fold")
        for number, name in enumerate(list(rows[0])[1:]):
            table.add_row(name, *(Text(column[number]) for column in columns))
    console.print(table)
    for note in found.notes:
        console.print(Text(f"note: {note}", style=_COLOURS["note"]))


def _shown(row: Mapping[str, Any], claims: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row but for its name, each radius's accuracy together with the claim about the data set."""
    shown = [f"{cell} ({100 * claims[name]:.1f})" if name.startswith("r=") and claims else cell for name, cell in zip(row, cells(row), strict=True)]
    return shown[1:]


def print_audit(found: Audit, console: Console | None = None) -> None:
    """Print what was audited against what, the findings, and the verdict."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    named = ", ".join(f"{name} = {value:g}" if isinstance(value, float) else f"{name} = {value}" for name, value in found.settings.items())
    beside = ", and against the counts in the log beside it" if found.is_ours else ""
    console.print(Text(f"{found.path}: {found.images} images, held against {named}{beside}"), soft_wrap=True)
    for finding in found.findings:
        which = f" (idx {', '.join(map(str, finding.rows))}{', ...' if len(finding.rows) == 10 else ''})" if finding.rows else ""
        console.print(Text.assemble((f"{finding.severity}: ", _COLOURS[finding.severity]), finding.message, (which, "dim")), soft_wrap=True)
    if found.settings["branches"] == 2 and found.settings.get("rule") is None:
        console.print(
            Text("Of two branches more can be said if the certificate is known: give --rule main, pooled or joint.", style="dim"), soft_wrap=True
        )
    if found.is_sound:
        console.print(Text("Nothing contradicts these settings.", style="green"))
    else:
        console.print(Text("The table is unsound: it claims what these settings cannot prove.", style="bold red"))
