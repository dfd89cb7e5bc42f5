"""Builds the pages: `build_report` for one run, `compare_runs` for several."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.report.curves import COLOURS, Plot, draw
from shared.report.pictures import PictureSeries, find_series, read_series
from shared.report.reading import RunRecord, Series, read_metrics, read_run
from shared.report.sections import PICTURES, PLOTS, address, breakable, build_section, differences, final_values, flatten, not_finite, results_tables
from shared.report.values import Table, duration, make_table, moment, text
from shared.runs import write_text

if TYPE_CHECKING:
    from jinja2 import Environment


def build_report(run: Path) -> Path:
    """Write `report.html` into a run folder: settings, curves, tables and pictures in one file that needs no other.

    What is missing or broken in the folder is said on the page and stops nothing.

    Args:
        run: the run folder.

    Returns:
        The page's path.

    Raises:
        FileNotFoundError: if there is no such folder.
        OSError: if the page cannot be written; an earlier page then stays as it is.
    """
    record = read_run(run := run.resolve())
    headline = record.headline
    summary = headline.summary if headline else {}
    content = _render(
        "report.html.jinja",
        folder=run,
        record=record,
        facts=_facts(record),
        headline=headline,
        sections=[build_section(record, verb, summary if headline and verb == headline.verb else {}) for verb in record.verbs],
        results=results_tables({"ours": record.results}),
    )
    write_text(run / "report.html", content)
    return run / "report.html"


def compare_runs(runs: list[Path], out: Path) -> Path:
    """Write one page that shows runs side by side: settings that differ, results beside the paper's, final metrics, curves and pictures.

    Args:
        runs: run folders.
        out: the page to write.

    Returns:
        The page's path.

    Raises:
        ValueError: if there are no runs.
        FileNotFoundError: if a run folder does not exist.
        IsADirectoryError: if `out` is a folder.
        OSError: if the page cannot be written.
    """
    if not runs:
        raise ValueError("no runs to compare: give at least one run folder")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder: give the file to write, such as {out / 'comparison.html'}")
    out = out.resolve()
    records = {record.path: record for record in (read_run(run.resolve()) for run in runs)}  # a run that is named twice is shown once
    by_label = dict(zip(_labels(list(records.values())), records.values(), strict=True))
    notes = [f"{label}: {note}" for label, record in by_label.items() for note in record.notes]
    metrics = _all_metrics(by_label, notes)
    content = _render(
        "compare.html.jinja",
        folder=out.parent,
        notes=notes,
        runs=[_run_entry(label, record, out.parent, index) for index, (label, record) in enumerate(by_label.items())],
        facts=differences([_facts(record) | record.versions for record in by_label.values()], list(by_label), ""),
        settings=_differing_settings(by_label, notes),
        results=results_tables({label: record.results for label, record in by_label.items()}),
        finals=_final_table(by_label, metrics),
        plots=_overlaid(list(by_label), metrics, notes),
        pictures=_pictures_side_by_side(by_label, notes),
    )
    write_text(out, content)
    return out


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"text": text, "duration": duration, "moment": moment, "breakable": breakable}
    environment.globals |= {"address": address}
    return environment


def _render(template: str, **context: Any) -> str:
    return _environment().get_template(template).render(context).encode("utf-8", "replace").decode("utf-8")  # lone surrogates cannot be written


def _facts(record: RunRecord) -> dict[str, str]:
    seconds = [stage.seconds for stage in record.stages if stage.seconds is not None]
    facts = {
        "Created": moment(text(record.manifest.get("created", ""))),
        "Took": duration(sum(seconds)) if seconds else "",
        "Device": text(record.manifest.get("device", "")),
        "Seed": text(record.manifest.get("seed", "")),
        "Commit": text(record.manifest.get("commit", "")),
    }
    return {name: value for name, value in facts.items() if value}


def _labels(records: list[RunRecord]) -> list[str]:
    for names in ([record.name for record in records], [f"{record.project}/{record.name}" for record in records]):
        if len(set(names)) == len(names):
            return names
    return [str(record.path) for record in records]


def _run_entry(label: str, record: RunRecord, page: Path, index: int) -> dict[str, Any]:
    report = record.path / "report.html"
    return {
        "label": label,
        "project": record.project,
        "record": record,
        "colour": index % COLOURS,
        "dashed": index // COLOURS % 2 == 1,
        "address": address(report, page) if report.is_file() else "",
    }


def _differing_settings(runs: dict[str, RunRecord], notes: list[str]) -> list[Table]:
    """Compare the settings of runs of one project: those of different projects have little in common."""
    by_project: dict[str, list[str]] = {}
    for label, record in runs.items():
        by_project.setdefault(record.project, []).append(label)
    groups = [labels for labels in by_project.values() if len(labels) > 1]
    return [differences([_settings(label, runs[label], notes) for label in labels], labels, "setting") for labels in groups]


def _settings(label: str, record: RunRecord, notes: list[str]) -> dict[str, Any]:
    """Flatten a run's settings; the run's own folder, in which all runs differ, is taken out."""
    import yaml

    try:
        settings = flatten(yaml.safe_load(record.settings_text))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        notes.append(f"{label}: config.yaml is not valid YAML ({str(error).splitlines()[0]}); its settings are not compared.")
        return {}
    own = (str(record.path), f"{record.project}/{record.name}")
    return {key: text(value).replace(own[0], "(the run)").replace(own[1], "(the run)") for key, value in settings.items()}


def _all_metrics(runs: dict[str, RunRecord], notes: list[str]) -> dict[str, dict[str, dict[str, Series]]]:
    """Read all metrics of all runs: by verb, then run, then metric."""
    found: dict[str, dict[str, dict[str, Series]]] = {}
    for label, record in runs.items():
        for verb in record.verbs:
            own: list[str] = []
            series = read_metrics(record.path / verb / "metrics.csv", own)
            found.setdefault(verb, {})[label] = series
            notes += [f"{label}: {note}" for note in own + not_finite(series.values())]
    return found


def _final_table(runs: dict[str, RunRecord], metrics: dict[str, dict[str, dict[str, Series]]]) -> Table:
    """Give the last value of each metric; those that most runs have come first."""
    rows: list[list[Any]] = []
    for verb, by_run in metrics.items():
        values = {label: final_values(by_run.get(label, {}), record.last(verb)) for label, record in runs.items()}
        names = dict.fromkeys(name for of_run in values.values() for name in of_run)
        rows += [[verb, name, *[of_run.get(name, "-") for of_run in values.values()]] for name in names]
    rows.sort(key=lambda row: row.count("-"))
    return make_table(["stage", "metric", *runs], rows)


def _overlaid(labels: list[str], metrics: dict[str, dict[str, dict[str, Series]]], notes: list[str]) -> list[Plot]:
    groups: dict[str, dict[str, Series]] = {}
    for verb, by_run in metrics.items():
        for name in dict.fromkeys(name for series in by_run.values() for name in series):
            curves = {label: by_run.get(label, {}).get(name, Series(name, [], [])) for label in labels}
            if any(len(series.finite) > 1 for series in curves.values()):
                groups[f"{verb}: {name}"] = curves
    if len(groups) > PLOTS:
        notes.append(f"{len(groups) - PLOTS} more curves are not drawn: {', '.join(list(groups)[PLOTS:])}.")
    return [plot for title, curves in list(groups.items())[:PLOTS] if (plot := draw(title, curves))]


def _pictures_side_by_side(runs: dict[str, RunRecord], notes: list[str]) -> list[tuple[str, list[tuple[str, PictureSeries | None]]]]:
    """Find the last picture of each name in each run."""
    found = {
        label: {(verb, name): files for verb in record.verbs for name, files in find_series(record.path / "artefacts" / verb).items()}
        for label, record in runs.items()
    }
    names = list(dict.fromkeys(name for of_run in found.values() for name in of_run))
    if len(names) > PICTURES:
        notes.append(f"{len(names) - PICTURES} more pictures are not shown.")
    rows = []
    for verb, name in names[:PICTURES]:
        last = {label: read_series(name, of_run[verb, name], last=1) if (verb, name) in of_run else None for label, of_run in found.items()}
        rows.append((f"{verb}: {name}", list(last.items())))
    return rows
