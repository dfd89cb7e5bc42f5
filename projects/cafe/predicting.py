"""The verb `predict`: the class of each test record, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from projects.cafe.data import FederatedRecords
from shared.vertical import predicting

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer


def log_predictions(trainer: ProjectTrainer, batches: Any, data: FederatedRecords) -> list[dict[str, Any]]:
    """Write the predictions; see `shared.vertical.predicting.log_predictions`, which is given the names of the classes and records."""
    return predicting.log_predictions(trainer, batches, data.test_records.class_names, data.test_records.ids)
