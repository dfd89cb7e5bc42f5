"""What an attack on a model with its records came to: the truth beside what was recovered, and figures of it (section 5 of the sheet)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projects.cafe.data import FederatedRecords
from projects.cafe.metrics import attack_performance, label_accuracy, match, picture_report, psnr, rmse, table_report
from projects.cafe.recovery import Recovery
from projects.cafe.watching import Watched


@dataclass(frozen=True)
class Outcome:
    """Records under attack beside what was recovered of them; only here does the truth meet the attack.

    Attributes:
        places: (n,) which of the records under attack.
        truth: (n, C, H, W) in [0, 1], or (n, D) standardised.
        recovered: of the same shape; NaN where nothing was.
        scores: (n, K) of labels; None where they were known, or in no order.
        labels: (n,) true ones.
        reasons: what is wrong with a record, by its place.
        seconds: by step, summed over views.
        split: splits records into the parties' blocks.
    """

    places: Tensor
    truth: Tensor
    recovered: Tensor
    scores: Tensor | None
    labels: Tensor
    reasons: dict[int, str]
    seconds: dict[str, float]
    split: Callable[[Tensor], Sequence[Tensor]]

    @property
    def is_pictures(self) -> bool:
        """Whether these are pictures, not rows of a table."""
        return self.truth.ndim == 4

    @property
    def found(self) -> Tensor:
        """(n,) bool, true where a record was recovered, well or badly."""
        return self.recovered.flatten(1).isfinite().all(1)

    def errors(self) -> Tensor:
        """Return PSNR in dB of pictures, or RMSE in standard deviations of rows, (n,) float64; NaN where nothing was recovered."""
        values = torch.full((len(self.truth),), torch.nan, dtype=torch.float64)
        measure = psnr if self.is_pictures else rmse
        if self.found.any():
            values[self.found] = measure(self.recovered[self.found], self.truth[self.found])
        return values

    def report(self) -> dict[str, float]:
        """Return what `picture_report` or `table_report` say of the records that were recovered, beside how many these are and their labels.

        `attack_performance` is over all records, if they differ: those without recovery count as their mean.
        """
        found = self.found
        row: dict[str, float] = {"records": len(self.truth), "recovered": int(found.sum())}
        truth, recovered = self.truth[found], self.recovered[found]
        row |= picture_report(recovered, truth, self.split) if self.is_pictures else table_report(recovered, truth)
        if (self.truth != self.truth[:1]).any():
            guess = torch.where(found.reshape(-1, *[1] * (self.truth.ndim - 1)), self.recovered, self.truth.mean(0, keepdim=True))
            row["attack_performance"] = attack_performance(guess.clamp(0, 1) if self.is_pictures else guess, self.truth)
        if self.scores is not None:
            known = self.scores.isfinite().all(1)
            row["label_accuracy"] = label_accuracy(self.scores[known], self.labels[known]) if known.any() else float("nan")
        return row | {"seconds": sum(self.seconds.values())}

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a record: its place, label, label found, error and what is wrong with it."""
        unit = "psnr" if self.is_pictures else "rmse"
        found = [None] * len(self.truth) if self.scores is None else self.scores.argmax(1).tolist()
        rows = []
        for i, (place, label, error) in enumerate(zip(self.places.tolist(), self.labels.tolist(), self.errors().tolist(), strict=True)):
            row: dict[str, Any] = {"record": place, "label": label} | ({} if self.scores is None else {"label_found": found[i]})
            rows.append(row | {unit: None if error != error else round(error, 4), "reason": self.reasons.get(place, "")})
        return rows


def judge(recoveries: Sequence[tuple[Watched, Recovery]], data: FederatedRecords) -> Outcome:
    """Put what was recovered from each view beside the truth; records in no order are matched so that their errors are least.

    Args:
        recoveries: a view and what was made of it, one or more.
        data: holds the truth.
    """
    values, labels = data.attacked.values(), data.attacked.labels
    parts: list[tuple[Tensor, Tensor, Tensor | None]] = []
    reasons: dict[int, str] = {}
    seconds: dict[str, float] = {}
    for (_, places), recovery in recoveries:
        own = places[recovery.rows]
        joined, scores = data.join([block.cpu() for block in recovery.blocks]), recovery.labels
        if not recovery.is_ordered:
            joined, scores = joined[match(joined, values[own])], None
        parts.append((own, joined, None if scores is None else scores.cpu()))
        reasons |= {int(places[row]): reason for row, reason in recovery.reasons.items()}
        seconds |= {step: seconds.get(step, 0.0) + taken for step, taken in recovery.seconds.items()}
    places = torch.cat([own for own, _, _ in parts])
    found = [scores for _, _, scores in parts if scores is not None]
    scores = torch.cat(found) if len(found) == len(parts) else None
    return Outcome(places, values[places], torch.cat([joined for _, joined, _ in parts]), scores, labels[places], reasons, seconds, data.blocks)
