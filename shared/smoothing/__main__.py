"""Certification tables, anybody's: python -m shared.smoothing analyze FILE ... | audit FILE --sigma 0.25 --draws 100000 --alpha 0.001."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shared.runs import write_text
from shared.smoothing.analysis import analyze
from shared.smoothing.audit_log import audit_file
from shared.smoothing.lattices import FORMS
from shared.smoothing.writers import print_analysis, print_audit, to_csv, to_latex, to_markdown

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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


if __name__ == "__main__":
    sys.exit(main())
