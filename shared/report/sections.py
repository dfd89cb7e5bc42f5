"""The parts of a page: what one verb left behind, and tables over several runs."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from shared.report.curves import Plot, draw, families
from shared.report.pictures import PictureSeries, find_series, read_series
from shared.report.reading import Results, RunRecord, Series, Stage, read_metrics, read_table
from shared.report.values import MEASURED, Table, make_table, size, text

PLOTS, PICTURES, TABLES, LINKS = 24, 24, 12, 12  # a section shows at most so many; LINKS counts files of one folder
CURVE = "curve.csv"  # holds the points of curves, which are drawn from metrics.csv: no table to read


@dataclass(frozen=True)
class Link:
    """A file or a folder's files, by address relative to the page; the address is empty if there is nothing there."""

    label: str
    address: str
    detail: str


@dataclass(frozen=True)
class Section:
    """What a page shows of one verb."""

    verb: str
    stage: Stage | None
    history: str
    values: Table | None
    plots: list[Plot]
    pictures: list[PictureSeries]
    tables: list[Table]
    links: list[Link]
    notes: list[str]


def address(path: Path, page: Path) -> str:
    """Return the address of a file relative to the folder of the page, safe inside an attribute."""
    try:
        return quote(Path(os.path.relpath(path, page)).as_posix(), errors="surrogatepass")
    except ValueError:  # Windows: on another drive
        return path.as_uri()


def build_section(record: RunRecord, verb: str, headline: dict[str, Any]) -> Section:
    """Gather what a verb left: numbers that are not in the headline already, curves, pictures, tables and links.

    Args:
        record: the run.
        verb: the verb.
        headline: numbers that stand at the top of the page.
    """
    notes: list[str] = []
    stage, folder = record.last(verb), record.path / "artefacts" / verb
    series = read_metrics(record.path / verb / "metrics.csv", notes)
    notes += not_finite(series.values())
    values = final_values(series, stage, single_only=True)
    rows = [(name, value) for name, value in values.items() if name not in headline]
    plots = draw_all(families(series.values()), notes)
    found = find_series(folder)
    pictures = [read_series(name, found[name]) for name in list(found)[:PICTURES]]
    files = sorted(file for file in folder.glob("*.csv") if file.name != CURVE)
    tables = [table for file in files[:TABLES] if (table := read_table(file, address(file, record.path), notes))]
    for count, limit, what in ((len(found), PICTURES, "pictures"), (len(files), TABLES, "tables")):
        notes += [f"{count - limit} more {what} are not shown."] if count > limit else []
    links = list_links(record, verb, {one.file for shown in pictures for one in shown.pictures} | set(files[:TABLES]))
    if not (values or plots or pictures or tables or links):
        notes.append(f"No metrics, pictures or tables were found in {verb}/ and artefacts/{verb}/.")
    table = make_table(["metric", "value"], rows, caption="values") if rows else None
    return Section(verb, stage, history(record, verb), table, plots, pictures, tables, links, notes)


def history(record: RunRecord, verb: str) -> str:
    """Say how often a verb was run before, and how that ended; empty if it was run once."""
    earlier = Counter([stage.status for stage in record.stages if stage.verb == verb][:-1])
    return ", ".join(f"{count} {status}" for status, count in earlier.items())


def final_values(series: dict[str, Series], stage: Stage | None, single_only: bool = False) -> dict[str, Any]:
    """Return the last value of each metric, and the stage's summary; if asked, without the metrics that have a curve."""
    curves = {name for name, one in series.items() if len(one.finite) > 1} if single_only else set()
    last = {name: one.values[-1] for name, one in series.items()} | (stage.summary if stage else {})
    return {name: value for name, value in last.items() if name not in curves}


def breakable(name: str) -> Markup:
    """Let a name of a metric break into lines behind its slashes and underscores."""
    return Markup(re.sub(r"([/_])", r"\1<wbr>", str(escape(name))))


def draw_all(groups: dict[str, list[Series]], notes: list[str]) -> list[Plot]:
    """Draw a plot for each group of metrics that has a curve; at most `PLOTS`, and a note on the others."""
    drawable = [title for title, group in groups.items() if any(len(series.finite) > 1 for series in group)]
    curves = {title: groups[title] for title in sorted(drawable, key=lambda title: title != "loss")}  # the loss comes first
    if len(curves) > PLOTS:
        notes.append(f"{len(curves) - PLOTS} more curves are not drawn: {', '.join(list(curves)[PLOTS:])}.")
    drawn = (draw(title, {series.name: series for series in group}) for title, group in list(curves.items())[:PLOTS])
    return [plot for plot in drawn if plot]


def not_finite(series: Iterable[Series]) -> list[str]:
    """Say which metrics have values that are nan or infinite, and from which step on."""
    notes = []
    for one in series:
        drawn = {step for step, _ in one.finite}
        bad = [step for step in one.steps if step not in drawn]
        if bad:
            notes.append(f"{one.name}: {len(bad)} of {len(one.steps)} values are nan or infinite, the first at step {bad[0]:.0f}.")
    return notes


def list_links(record: RunRecord, verb: str, shown: set[Path]) -> list[Link]:
    """List the artefacts and outputs of a verb that the page does not show; folders with many files stand as one line."""
    stage, folder = record.last(verb), record.path / "artefacts" / verb
    hidden = shown | {file.with_suffix(".json") for file in shown if file.suffix == ".csv"} | {record.path / verb / "metrics.csv"}
    paths = sorted(folder.rglob("*")) + [record.path / output for output in (stage.outputs if stage else [])]
    by_folder: dict[Path, list[Path]] = {}
    for path in dict.fromkeys(paths):
        if path not in hidden and not path.is_dir():
            by_folder.setdefault(path.parent, []).append(path)
    links = []
    for parent, files in by_folder.items():
        links += [_link(record.path, [file]) for file in files] if len(files) <= LINKS else [_link(record.path, files, parent)]
    return links


def _link(run: Path, files: list[Path], folder: Path | None = None) -> Link:
    path = folder or files[0]
    inside = Path(os.path.normpath(path)).is_relative_to(run)
    there = [file for file in files if inside and file.is_file()]
    label = (path.relative_to(run).as_posix() if inside else str(path)) + ("/" if folder else "")
    if not there:
        return Link(label, "", "missing")
    count = f"{len(there)} files, " if folder else ""
    return Link(label, address(path, run), count + size(sum(file.stat().st_size for file in there)))


def results_tables(found: dict[str, list[Results]]) -> list[tuple[Results, Table]]:
    """Put results with one title into one table, with the paper's rows beside the rows that bear the same labels.

    Args:
        found: results by the name of their run.
    """
    by_title: dict[str, dict[str, Results]] = {}
    for run, tables in found.items():
        for results in tables:
            by_title.setdefault(results.title, {})[run] = results
    return [(next(iter(group.values())), _results_table(group)) for group in by_title.values()]


def _results_table(group: dict[str, Results]) -> Table:
    columns = list(dict.fromkeys(column for results in group.values() for column in results.columns))
    paper = {json.dumps(row, sort_keys=True): row for results in group.values() for row in results.paper}
    rows = [(run, row) for run, results in group.items() for row in results.rows] + [("paper", row) for row in paper.values()]
    shared = [column for column in columns if all(column in row for _, row in rows)]
    labels = [tuple(text(row[column]) for column in shared if _is_label(row[column])) for _, row in rows]
    groups = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    order = sorted(range(len(rows)), key=lambda index: groups[labels[index]])
    cells = [[rows[index][0], *[rows[index][1].get(column, "") for column in columns]] for index in order]
    has_sources = len(group) > 1 or bool(paper)
    return make_table(["from", *columns], cells) if has_sources else make_table(columns, [row[1:] for row in cells])


def _is_label(value: Any) -> bool:
    return (isinstance(value, str) and not MEASURED.match(value)) or isinstance(value, int)


def differences(columns: list[dict[str, Any]], labels: list[str], heading: str) -> Table:
    """Make a table of the keys whose values are not the same in all columns."""
    keys = dict.fromkeys(key for column in columns for key in column)
    rows = [[key, *[text(column[key]) if key in column else "-" for column in columns]] for key in keys]
    return make_table([heading, *labels], [row for row in rows if len(set(row[1:])) > 1])


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Name every leaf of nested settings by its dotted path."""
    items = settings.items() if isinstance(settings, dict) else enumerate(settings) if isinstance(settings, list) else ()
    flat: dict[str, Any] = {}
    for key, value in items:
        is_branch = isinstance(value, dict | list) and value
        flat |= flatten(value, f"{prefix}{key}.") if is_branch else {f"{prefix}{key}": value}
    return flat
