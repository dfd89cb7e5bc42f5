"""The verbs `analyze` and `audit`: what certification tables show, and whether they can be believed; the tables may be anybody's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from projects.drs.tasks import OWN
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.runs import Run, write_json, write_text
from shared.smoothing.analysis import analyze as analyze_files
from shared.smoothing.audit_log import audit_file
from shared.smoothing.plots import figure, histogram
from shared.smoothing.writers import print_analysis, print_audit, to_latex

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer


@dataclass(frozen=True)
class Analysed:
    """What `analyze` returns: a row a table, and what heads the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Audited:
    """What `audit` returns: 1 as the exit code if the table is unsound, and what heads the run's page."""

    exit_code: int
    summary: dict[str, Any]


def own_tables(run: Run) -> list[Path]:
    """Return the tables that `certify` left in a run, the newest last; not those of a user's own images, which have no labels.

    Raises:
        FileNotFoundError: if there are none.
    """
    paths = [path for path in run.artefacts("certify").glob("*/certify.tsv") if not path.parent.name.startswith(OWN)]
    found = sorted(paths, key=lambda path: path.stat().st_mtime)
    if not found:
        raise FileNotFoundError(
            f"{run.path} holds no certification table of a data set (own pictures have no labels): run certify without a path, or name a table"
        )
    return found


def analyze(trainer: ProjectTrainer, tables: Sequence[str] | str | None, radii: list[float] | None, alpha: float | None) -> Analysed:
    """Print what tables show, and write it as CSV, JSON, LaTeX and figures.

    Args:
        trainer: the trainer, whose artefacts they become.
        tables: one or several files in Cohen's columns; None: those of the run.
        radii: radii of the table; None: every quarter.
        alpha: failure probability of the certificates, where the logs beside the tables do not say; None: 0.001.
    """
    files = [tables] if isinstance(tables, str) else tables or own_tables(trainer.run)
    found = analyze_files(files, radii, alpha)
    rows = found.rows()
    print_analysis(found)
    log_table(trainer, "analysis", rows)
    if trainer.is_global_zero:
        write_text(artefact_folder(trainer) / "analysis.tex", to_latex(rows))
    log_figure(trainer, "certified_accuracy", figure(found.tables, found.radii))
    if found.bounds:
        log_figure(trainer, "probability_bounds", histogram(found.bounds))
    print(f"table, LaTeX and figures: {shown_path(artefact_folder(trainer))}")
    return Analysed(rows, {"tables": len(found.tables)})


def audit(
    trainer: ProjectTrainer,
    table: str | None,
    sigma: float | None,
    draws: int | None,
    alpha: float | None,
    branches: Literal[1, 2] | None,
    rule: Literal["main", "pooled", "joint"] | None,
) -> Audited:
    """Print what in a table is unsound, and write it as JSON.

    Args:
        trainer: the trainer, whose artefact it becomes.
        table: file in Cohen's columns; None: the run's newest.
        sigma: standard deviation of the noise that it was made with; None: as the log beside it says, like all that follow.
        draws: draws that were counted.
        alpha: failure probability of a certificate.
        branches: 1 or 2.
        rule: certificate of two branches.
    """
    found = audit_file(table or own_tables(trainer.run)[-1], sigma, draws, alpha, branches, rule)
    print_audit(found)
    if trainer.is_global_zero:
        findings = [asdict(finding) for finding in found.findings]
        write_json(artefact_folder(trainer) / "audit.json", {"table": str(found.path), "settings": dict(found.settings), "findings": findings})
    unsound = sum(finding.severity == "unsound" for finding in found.findings)
    return Audited(0 if found.is_sound else 1, {"images": found.images, "unsound": unsound})
