"""The class of each test record, as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from shared.distributed import gather_objects
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer


def log_predictions(trainer: ProjectTrainer, batches: Any, class_names: Sequence[str], ids: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Write `predictions.csv`, print how many are right, and return the rows; to be called by all processes.

    Args:
        trainer: the trainer that made the predictions.
        batches: what `predict_step` returned for each batch, on this process: index and label, (B,), and probabilities, (B, K).
        class_names: name of each label.
        ids: name of each test record; without them a record is named by its place.

    Returns:
        A row a test record: its name, label, predicted class, and the probabilities of that class and of each.
    """
    rows = sorted(gather_objects([row for batch in batches for row in _rows(batch, class_names)]), key=lambda row: row["record"])
    rows = [row | {"record": ids[row["record"]]} for row in rows] if ids else rows
    if trainer.is_global_zero:
        path = log_table(trainer, "predictions", rows) or artefact_folder(trainer)
        right = sum(row["label"] == row["predicted"] for row in rows)
        print(f"{right} of {len(rows)} test records are classified correctly ({right / len(rows):.1%}); the table: {shown_path(path)}")
    return rows


def _rows(batch: dict[str, Any], names: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for place, label, probabilities in zip(batch["index"].tolist(), batch["label"].tolist(), batch["probabilities"].tolist(), strict=True):
        best = max(range(len(probabilities)), key=probabilities.__getitem__)
        row = {"record": place, "label": names[label], "predicted": names[best], "probability": round(probabilities[best], 6)}
        rows.append(row | {f"p({name})": round(value, 6) for name, value in zip(names, probabilities, strict=True)})
    return rows
