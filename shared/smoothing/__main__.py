"""Certification tables, anybody's: python -m shared.smoothing analyze FILE ... | audit FILE --sigma 0.25 --draws 100000 --alpha 0.001."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.runs import write_text
from shared.smoothing.analysis import Analysis, analyze
from shared.smoothing.audit_log import Audit, audit_file
from shared.smoothing.lattices import FORMS
from shared.smoothing.writers import cells, to_csv, to_latex, to_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console

_COLOURS = {"unsound": "bold red", "suspicious": "yellow", "note": "dim"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 if nothing speaks against the table, 1 if it is unsound, 2 if something is wrong with the files or the request."""
    options = _parser().parse_args(arguments)
    try:
        return int((_analyze if options.verb == "analyze" else _audit)(options))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m shared.smoothing", description="What certification tables show, and whether they are sound.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    text = "certified accuracy at radii, average certified radius, abstentions and the envelope of tables in Cohen's columns"
    one = verbs.add_parser("analyze", help=text, description=text)
    one.add_argument("files", nargs="+", type=Path, metavar="FILE", help="tab-separated table: idx, label, predict, radius, correct, time")
    one.add_argument("--radii", nargs="+", type=float, metavar="R", help="radii (default: every quarter up to the largest)")
    one.add_argument("--alpha", type=float, help="failure probability of the certificates (default: as the log beside says, else 0.001)")
    for form in ("csv", "latex", "markdown"):
        one.add_argument(f"--{form}", type=Path, metavar="FILE", help=f"write the table as {form.upper() if form == 'csv' else form} there")
    one.add_argument("--plot", type=Path, metavar="FILE", help="draw certified accuracy over the radius (.png, .pdf, .svg)")
    one.add_argument("--histogram", type=Path, metavar="FILE", help="draw the bounds of the top classes' probabilities, of tables with a log of ours")
    text = "say what in a table is unsound or cannot be; exit code 1 if something is"
    one = verbs.add_parser("audit", help=text, description=text)
    one.add_argument("file", type=Path, metavar="FILE", help="tab-separated table; a certify.jsonl of ours beside it makes the options needless")
    one.add_argument("--sigma", type=float, help="standard deviation of the noise, in the radii's units")
    one.add_argument("--draws", type=int, metavar="N", help="draws that were counted, in each branch")
    one.add_argument("--alpha", type=float, help="failure probability of a certificate")
    one.add_argument("--branches", type=int, choices=(1, 2), help="1: randomized smoothing (default); 2: two branches fused by their mean")
    one.add_argument("--rule", choices=FORMS, help="certificate of two branches, for a stricter audit (default: any of them)")
    return parser


def _analyze(options: argparse.Namespace) -> int:
    found = analyze(options.files, options.radii, options.alpha)
    print_analysis(found)
    for form, write in {"csv": to_csv, "latex": to_latex, "markdown": to_markdown}.items():
        if path := getattr(options, form):
            write_text(path, write(found.rows()).rstrip("\n") + "\n")
    if options.plot:
        from shared.smoothing.plots import figure

        _save(figure(found.tables, found.radii), options.plot)
    if options.histogram:
        from shared.smoothing.plots import histogram

        _save(histogram(found.bounds), options.histogram)
    return 0


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _audit(options: argparse.Namespace) -> int:
    found = audit_file(options.file, options.sigma, options.draws, options.alpha, options.branches, options.rule)
    print_audit(found)
    return 0 if found.is_sound else 1


def print_analysis(found: Analysis, console: Console | None = None) -> None:
    """Print the figures, a column a table and shares in per cent, and what to know when reading them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    rows, claims = found.rows(), {row["table"]: row for row in found.claims()}
    table = Table(title="certified accuracy (%), in brackets what holds with probability 0.999", title_justify="left", title_style="bold")
    table.add_column("")
    for row in rows:
        table.add_column(Text(row["table"]), justify="right", overflow="fold")
    columns = [_shown(row, claims.get(row["table"], {})) for row in rows]
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


if __name__ == "__main__":
    sys.exit(main())
