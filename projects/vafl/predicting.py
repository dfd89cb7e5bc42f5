"""The verbs `test` and `predict`: how good the trained nets are, also where a client is missing, and the class of each test record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projects.vafl.data import VerticalRecords
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.vertical import predicting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer


def log_predictions(trainer: ProjectTrainer, batches: Any, data: VerticalRecords) -> list[dict[str, Any]]:
    """Write the predictions; see `shared.vertical.predicting.log_predictions`, which is given the names of classes and records."""
    return predicting.log_predictions(trainer, batches, data.class_names, data.test.ids)


def log_quality(trainer: ProjectTrainer) -> list[dict[str, Any]]:
    """Print what a test came to, and write the quality where a client is missing: the table `missing`, a row a client, and the picture `without_one`.

    A missing client's embeddings are those of the mean training record, see `VerticalFederation.absent`.

    Args:
        trainer: after its test.

    Returns:
        The rows: client, and for each metric its value and how much lower it is than with all clients.
    """
    found = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    rows = missing_rows(found)
    print(quality_line("all clients", found, ""))
    if "noisy_accuracy" in found:
        print(quality_line("all clients, with the noise of protection", found, "noisy_"))
    log_table(trainer, "missing", rows)
    log_figure(trainer, "without_one", draw_missing(rows, found))
    if trainer.is_global_zero:
        print(f"without one of them:\n{markdown(rows)}\nthe table and a picture: {shown_path(artefact_folder(trainer))}")
    return rows


def quality_line(who: str, found: dict[str, float], prefix: str) -> str:
    """Return a line that says accuracy, AUROC where there is one, and loss of a test.

    Args:
        who: took part.
        found: metrics by name, without their stage.
        prefix: of the names.
    """
    shown = (("accuracy", "accuracy"), ("auroc", "AUROC"), ("loss", "loss"))
    parts = [f"{word} {found[prefix + name]:.4f}" for name, word in shown if prefix + name in found]
    return f"{who}: {', '.join(parts)}"


def missing_rows(found: dict[str, float]) -> list[dict[str, Any]]:
    """Return a row a client that is missing: client, accuracy, accuracy_lost and, with two classes, auroc and auroc_lost.

    Args:
        found: metrics by name, without their stage.
    """
    measures = [name for name in ("accuracy", "auroc") if name in found]
    rows: list[dict[str, Any]] = []
    while f"without_{len(rows)}_accuracy" in found:
        own = {name: found[f"without_{len(rows)}_{name}"] for name in measures}
        told = {key: value for name in measures for key, value in ((name, own[name]), (f"{name}_lost", found[name] - own[name]))}
        rows.append({"client": len(rows)} | {name: round(value, 6) for name, value in told.items()})
    return rows


def draw_missing(rows: list[dict[str, Any]], found: dict[str, float]) -> Figure:
    """Draw how much quality is lost without each client, a panel a metric; it may be less than nothing.

    Args:
        rows: what `missing_rows` returned.
        found: metrics by name, without their stage.
    """
    from matplotlib.figure import Figure

    measures = [name for name in ("accuracy", "auroc") if name in rows[0]]
    figure = Figure(figsize=(5.5 * len(measures), 3.2), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(measures), squeeze=False)[0], measures, strict=True):
        axis.bar([row["client"] for row in rows], [row[f"{name}_lost"] for row in rows], color="tab:blue")
        axis.axhline(0, color="grey", linewidth=1)
        axis.set(xlabel="client that is missing", ylabel=f"test {name} lost", xticks=range(len(rows)), title=f"of {found[name]:.3f} with all clients")
    return figure
