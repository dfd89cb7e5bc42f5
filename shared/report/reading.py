"""Reads a run folder as far as it can be read; what cannot be read becomes a note for the page."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from shared.report.values import Table, make_table

ROWS, COLUMNS = 50, 40  # a table shows at most so many
FAULTS = (OSError, ValueError, csv.Error, RecursionError)  # ValueError includes broken JSON and broken UTF-8


@dataclass(frozen=True)
class Stage:
    """One entry of the manifest's stages; `seconds` is None while the stage has not ended."""

    verb: str
    status: str
    started: str
    seconds: float | None
    command: str
    inputs: dict[str, Any]
    outputs: list[str]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Series:
    """What one metric was at which step, in order of steps; values may be nan or infinite."""

    name: str
    steps: list[float]
    values: list[float]

    @cached_property
    def finite(self) -> list[tuple[float, float]]:
        """The (step, value) pairs that can be drawn."""
        return [(step, value) for step, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]


@dataclass(frozen=True)
class Results:
    """What `reproduce` found, and what the paper says, as rows of cells by column name."""

    title: str
    claim: str
    columns: list[str]
    rows: list[dict[str, Any]]
    paper: list[dict[str, Any]]
    facts: dict[str, Any]
    expectations: dict[str, bool]


@dataclass
class RunRecord:
    """A run folder, read."""

    path: Path
    manifest: dict[str, Any]
    stages: list[Stage]
    settings_text: str
    results: list[Results]
    notes: list[str] = field(default_factory=list)

    @property
    def project(self) -> str:
        """Name of the project."""
        return str(self.manifest.get("project") or self.path.parent.name)

    @property
    def name(self) -> str:
        """Name of the run."""
        return str(self.manifest.get("run") or self.path.name)

    @property
    def versions(self) -> dict[str, Any]:
        """Versions of the libraries that the run used."""
        return as_dict(self.manifest.get("versions"))

    @property
    def verbs(self) -> list[str]:
        """The verbs of the manifest in order of their last run, then those that only left files."""
        recorded = list(dict.fromkeys(stage.verb for stage in reversed(self.stages)))[::-1]
        left = [file.parent.name for file in self.path.glob("*/metrics.csv")] + [folder.name for folder in self.path.glob("artefacts/*/")]
        return list(dict.fromkeys(recorded + sorted(left)))

    @property
    def status(self) -> str:
        """How the last verb ended; what it was is said too where it did not end well."""
        if not self.stages:
            return "unknown"
        last = self.stages[-1]
        return last.status if last.status == "done" else f"{last.verb} {last.status}"

    @property
    def headline(self) -> Stage | None:
        """The stage that heads the page: the last one that measured something (`test/auroc`) and did not only count, else the last with numbers."""
        told = [stage for stage in reversed(self.stages) if stage.summary]
        measured = (stage for stage in told if any("/" in name and isinstance(value, float) for name, value in stage.summary.items()))
        return next(measured, told[0] if told else None)

    def last(self, verb: str) -> Stage | None:
        """Return the last stage of `verb`, or None if the manifest has none."""
        return next((stage for stage in reversed(self.stages) if stage.verb == verb), None)


def read_run(path: Path) -> RunRecord:
    """Read a run folder.

    Args:
        path: the run folder.

    Returns:
        What could be read, with a note for each file that could not.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"no run folder {path}: give a folder that `lightning run` made, such as runs/<project>/<run>")
    notes: list[str] = []
    manifest = _read_json(path / "manifest.json", notes)
    stages = [_stage(record) for record in as_list(manifest.get("stages")) if isinstance(record, dict)]
    results = [_results(content) for file in sorted(path.glob("results*.json")) if (content := _read_json(file, notes))]
    try:
        settings = (path / "config.yaml").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        settings = ""
        notes.append(f"config.yaml cannot be read ({error.strerror}): the settings are not shown.")
    return RunRecord(path, manifest, stages, settings, results, notes)


def as_dict(value: Any) -> dict[str, Any]:
    """Return `value` if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return `value` if it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def _read_json(file: Path, notes: list[str]) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FAULTS as error:
        notes.append(f"{file.name} cannot be read ({getattr(error, 'strerror', None) or error}): what it holds is not shown.")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{file.name} is not a JSON object: what it holds is not shown.")
    return as_dict(content)


def _stage(record: dict[str, Any]) -> Stage:
    seconds = record.get("seconds")
    return Stage(
        verb=Path(str(record.get("verb"))).name,
        status=str(record.get("status", "unknown")),
        started=str(record.get("started", "")),
        seconds=float(seconds) if isinstance(seconds, int | float) and 0 <= seconds < 1e12 else None,
        command=str(record.get("command", "")),
        inputs=as_dict(record.get("inputs")),
        outputs=[str(output) for output in as_list(record.get("outputs"))],
        summary=as_dict(record.get("summary")),
    )


def _results(content: dict[str, Any]) -> Results:
    rows, paper = ([row for row in as_list(content.get(key)) if isinstance(row, dict)] for key in ("rows", "paper"))
    named = [str(column) for column in as_list(content.get("columns"))] or [column for row in rows for column in row]
    columns = list(dict.fromkeys(named + [column for row in paper for column in row]))
    facts = {key: content[key] for key in ("seeds", "minutes", "device") if content.get(key) is not None}
    expectations = {str(name): bool(held) for name, held in as_dict(content.get("expectations")).items()}
    return Results(str(content.get("title", "")), str(content.get("claim", "")), columns, rows, paper, facts, expectations)


def read_metrics(file: Path, notes: list[str]) -> dict[str, Series]:
    """Read the metrics that Lightning's CSV logger wrote.

    Args:
        file: metrics.csv with the columns `step`, `epoch` and one for each metric; cells are empty where nothing was logged.
        notes: takes what could not be read.

    Returns:
        Series by metric; of two values at one step the later one stays. A last line without its end is left out, as a number may be cut in it.
    """
    found: dict[str, dict[float, float]] = {}
    unread = 0
    try:
        lines = _whole_lines(file, notes)
        header = next(lines, [])
        at_step = header.index("step") if "step" in header else None
        metrics = [(position, name) for position, name in enumerate(header) if name not in ("step", "epoch", "")]
        for index, row in enumerate(lines):
            step = _float(row[at_step]) if at_step is not None and at_step < len(row) else None
            at = index if step is None or not math.isfinite(step) else step
            for position, name in metrics:
                if position >= len(row) or not row[position].strip():
                    continue
                value = _float(row[position])
                if value is None:
                    unread += 1
                else:
                    found.setdefault(name, {})[at] = value
    except FileNotFoundError:
        return {}
    except FAULTS as error:
        notes.append(f"{_local(file)} cannot be read to its end ({error}).")
    if unread:
        notes.append(f"{_local(file)}: {unread} {'cells are' if unread > 1 else 'cell is'} not a number and left out.")
    if not found:
        notes.append(f"{_local(file)} holds no values.")
    return {name: Series(name, sorted(points), [points[step] for step in sorted(points)]) for name, points in found.items()}


def read_table(file: Path, link: str, notes: list[str]) -> Table | None:
    """Read the first rows of a CSV table; None, and a note, if there is nothing to show."""
    rows: list[list[str]] = []
    total = 0
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="replace") as opened:
            for row in csv.reader(opened):
                total += bool(row)
                if row and len(rows) <= ROWS:
                    rows.append(row)
    except FAULTS as error:
        notes.append(f"{_local(file)} cannot be read to its end ({error}).")
    if not rows:
        notes.append(f"{_local(file)} is empty.")
        return None
    omitted = [f"the first {ROWS} of {total - 1} rows"] if total - 1 > ROWS else []
    omitted += [f"the first {COLUMNS} of {len(rows[0])} columns"] if len(rows[0]) > COLUMNS else []
    rows = [row[:COLUMNS] for row in rows]
    return make_table(rows[0], rows[1:], caption=file.stem, link=link, note=" and ".join(omitted))


def _whole_lines(file: Path, notes: list[str]) -> Iterator[list[str]]:
    with file.open("rb") as opened:
        content = opened.read().decode("utf-8-sig", errors="replace")
    whole, end, cut = content.rpartition("\n")
    if cut:
        notes.append(f"{_local(file)}: the last line is cut off and left out.")
    return csv.reader(io.StringIO(whole + end, newline=""))


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _local(file: Path) -> str:
    return f"{file.parent.name}/{file.name}"
