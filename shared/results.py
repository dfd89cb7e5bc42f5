"""What verbs end with: tables of means and spreads over seeds, as JSON for machines and Markdown for READMEs; and what was left out."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.runs import Run, write_json, write_text

if TYPE_CHECKING:
    import lightning as L
    from matplotlib.figure import Figure


LEFT_OUT = 3
"""Exit code of `predict` where files were left out."""


def report_left_out(trainer: L.Trainer, bad: Sequence[dict[str, str]]) -> tuple[dict[str, int], int]:
    """List the files that could not be read in left_out.csv, and say so; without any, take away the list of an earlier run.

    Args:
        trainer: the trainer, with its run.
        bad: `file` and `reason` of each.

    Returns:
        How many there are, for the figures that head the run's page, which is empty without any; and the exit code: 0, or `LEFT_OUT`.
    """
    from shared.data.files import first_few
    from shared.loggers import artefact_folder, log_table

    if not bad:
        for ending in ("csv", "json"):
            (artefact_folder(trainer) / f"left_out.{ending}").unlink(missing_ok=True)
        return {}, 0
    log_table(trainer, "left_out", bad)
    print("\n  ".join([f"{len(bad)} files cannot be read and were left out (left_out.csv):", *first_few(one["reason"] for one in bad)]))
    return {"left out": len(bad)}, LEFT_OUT


def markers(name: str = "") -> tuple[str, str]:
    """Return the lines of a README between which `reproduce --write` writes a table, for the project's only table or one of several."""
    which = f" of {name}" if name else ""
    return f"<!-- results{which}: written by `reproduce --write`, do not edit by hand -->", f"<!-- end of results{which} -->"


def summarise(rows: Sequence[dict[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """Reduce rows of several seeds to one row a setting.

    Args:
        rows: one row a setting and seed; all with the same columns.
        by: columns that name a setting; `seed` is left out, every other column holds numbers or None.

    Returns:
        Rows in order of first appearance; each number has become `{"mean": m, "std": s, "n": n}`, with the sample standard deviation
        (0 for a single seed), or None where no seed has one.
    """
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[column] for column in by), []).append(row)
    columns = [column for column in rows[0] if column not in by and column != "seed"]
    return [
        dict(zip(by, setting, strict=True)) | {column: _spread([row[column] for row in group if row[column] is not None]) for column in columns}
        for setting, group in groups.items()
    ]


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"mean": statistics.fmean(values), "std": statistics.stdev(values) if len(values) > 1 else 0.0, "n": len(values)}


def shown(value: Any) -> str:
    """Write a cell for people: `0.95 ± 0.02`, an empty cell for None, text as it is; the spread has the digits of the mean."""
    if value is None:
        return ""
    if isinstance(value, dict):
        mean, spread = value["mean"], value["std"]
        return f"{_digits(mean, mean)} ± {_digits(spread, mean)}" if value["n"] > 1 else _digits(mean, mean)
    return _digits(value, value) if isinstance(value, float) else str(value)


def _digits(value: float, scale: float) -> str:
    """Write `value` with two decimals where numbers are about as large as `scale`, with more where that is below 0.1."""
    if scale == 0 or abs(scale) >= 0.1 or not math.isfinite(scale):
        return f"{value:.2f}"
    return f"{value:.{1 - math.floor(math.log10(abs(scale)))}f}"


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as a Markdown table; the keys of the first row are the columns, but for those that begin with `_`, which are for figures."""
    columns = [column for column in rows[0] if not column.startswith("_")]
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return "\n".join(lines + ["| " + " | ".join(shown(row[column]) for column in columns) + " |" for row in rows])


def write_results(
    run: Run,
    title: str,
    claim: str,
    rows: Sequence[dict[str, Any]],
    seeds: Sequence[int],
    seconds: float,
    verdicts: dict[str, bool],
    name: str = "",
) -> dict[str, Any]:
    """Write `results.json` of a reproduction into its run folder, or `results-<name>.json` for one of several tables.

    Args:
        run: the run.
        title: what was compared.
        claim: the paper's claim in a sentence.
        rows: what `summarise` returned.
        seeds: the seeds.
        seconds: how long it took.
        verdicts: each expectation, and whether it held.
        name: of the table, where the reproduction has several.

    Returns:
        What was written.
    """
    results = {
        "title": title,
        "claim": claim,
        "columns": list(rows[0]),
        "rows": list(rows),
        "seeds": list(seeds),
        "minutes": round(seconds / 60, 1),
        "device": device_name(),
        "expectations": verdicts,
    }
    write_json(run.path / (f"results-{name}.json" if name else "results.json"), results)
    return results


def device_name() -> str:
    """Say what the numbers were made on: the graphics card, or the number of processor cores."""
    import torch

    return (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} CPU cores"
    )


def publish(trainer: L.Trainer, results: dict[str, Any], figures: dict[str, Figure], project: Path | None, command: str, name: str = "") -> None:
    """Log the figures of a reproduction, and put them and its table into the project's README.

    Args:
        trainer: the running trainer.
        results: what `write_results` returned.
        figures: by name; `<name>.png` is the file in the project's folder.
        project: the project's folder; None leaves the README as it is.
        command: that made them.
        name: of the table, where the README has several.
    """
    from shared.loggers import log_figure

    for title, figure in figures.items():
        picture = log_figure(trainer, title, figure)
        if project is not None and picture is not None:
            (project / f"{title}.png").write_bytes(picture.read_bytes())
    if project is not None:
        write_into_readme(project / "README.md", results, command, name)


def write_into_readme(readme: Path, results: dict[str, Any], command: str, name: str = "") -> None:
    """Replace the table between the results markers of a README.

    Args:
        readme: the file.
        results: what `write_results` returned.
        command: that made them.
        name: of the table, where the README has several.

    Raises:
        ValueError: if the README has no such markers.
    """
    about = f"`{command}`: seeds {', '.join(map(str, results['seeds']))}, {results['minutes']} minutes on {results['device']}."
    expectations = "\n".join(f"- {'holds' if held else '**does not hold**'}: {name}" for name, held in results["expectations"].items())
    write_between(readme, markers(name), f"{markdown(results['rows'])}\n\n{about}\n\n{expectations}")


def write_between(readme: Path, lines: tuple[str, str], content: str) -> None:
    """Replace what stands between two lines of a README.

    Raises:
        ValueError: if the README has no such lines.
    """
    text, (begin, end) = readme.read_text(encoding="utf-8"), lines
    if begin not in text or end not in text:
        raise ValueError(f"{readme} has no place for results: add the lines {begin!r} and {end!r} where the table belongs")
    before, rest = text.split(begin, 1)
    after = rest.split(end, 1)[1]
    write_text(readme, f"{before}{begin}\n{content}\n{end}{after}")
