"""What an attack on a model with its records came to: the truth beside what was recovered, and figures of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from projects.cafe.data import FederatedRecords
from projects.cafe.metrics import attack_performance, label_accuracy, match, mean_guess, picture_report, psnr, rmse, table_report
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
        mean: (C, H, W) or (D,), the mean record, with which all is compared: see `mean_record`.
        origins: (n,) where each record comes from, such as a line of a file; empty where nobody knows.
    """

    places: Tensor
    truth: Tensor
    recovered: Tensor
    scores: Tensor | None
    labels: Tensor
    reasons: dict[int, str]
    seconds: dict[str, float]
    split: Callable[[Tensor], Sequence[Tensor]]
    mean: Tensor
    origins: tuple[str, ...] = ()

    @property
    def is_pictures(self) -> bool:
        """Whether these are pictures, not rows of a table."""
        return self.truth.ndim == 4

    @property
    def found(self) -> Tensor:
        """(n,) bool, true where a record was recovered, well or badly."""
        return self.recovered.flatten(1).isfinite().all(1)

    @property
    def completed(self) -> Tensor:
        """What was recovered, and values of the mean record where nothing was; pictures are brought to [0, 1]."""
        guess = torch.where(self.recovered.isfinite(), self.recovered, self.mean)
        return guess.clamp(0, 1) if self.is_pictures else guess

    @property
    def unit(self) -> str:
        """What errors are: psnr in dB of pictures, or rmse in standard deviations of rows."""
        return "psnr" if self.is_pictures else "rmse"

    @property
    def labelled(self) -> Tensor:
        """(n,) bool, true where a label was found, rightly or wrongly."""
        return torch.zeros(len(self.truth), dtype=torch.bool) if self.scores is None else self.scores.isfinite().all(1)

    def errors(self) -> Tensor:
        """Return PSNR in dB of pictures, or RMSE in standard deviations of rows, (n,) float64; NaN where nothing was recovered."""
        values = torch.full((len(self.truth),), torch.nan, dtype=torch.float64)
        measure = psnr if self.is_pictures else rmse
        if self.found.any():
            values[self.found] = measure(self.recovered[self.found], self.truth[self.found])
        return values

    def report(self) -> dict[str, float]:
        """Return what `picture_report` or `table_report` say of the records that were recovered, beside how many these are and their labels.

        Where none was recovered as a whole, errors are NaN, and baselines those of all records. `attack_performance` is over all records, if they
        differ from the mean record: what was not recovered counts as it, see `completed`.
        """
        found = self.found
        row: dict[str, float] = {"records": len(self.truth), "recovered": int(found.sum())}
        if found.any():
            row |= self._compared(self.recovered[found], self.truth[found])
        else:
            trivial = self._compared(mean_guess(self.truth, self.mean), self.truth)
            row |= {name: value if name.startswith("baseline_") else float("nan") for name, value in trivial.items()}
        if not torch.allclose(self.truth, self.mean.expand_as(self.truth)):
            row["attack_performance"] = attack_performance(self.completed, self.truth, self.mean)
        if self.scores is not None:
            known = self.labelled
            row["label_accuracy"] = label_accuracy(self.scores[known], self.labels[known]) if known.any() else float("nan")
        return row | {"seconds": sum(self.seconds.values())}

    def _compared(self, recovered: Tensor, truth: Tensor) -> dict[str, float]:
        if self.is_pictures:
            return picture_report(recovered, truth, self.split, mean=self.mean)
        return table_report(recovered, truth, self.mean)

    def parties(self) -> list[dict[str, Any]]:
        """Return a row a party: how many of its blocks were recovered, their mean PSNR, or RMSE, and that of its block of the mean record for them.

        The error is None where none was recovered; that of the mean block is over all then.
        """
        rows = []
        for party, (true, own, mean) in enumerate(zip(*map(self.split, (self.truth, self.recovered, self.mean[None])), strict=True)):
            found = own.flatten(1).isfinite().all(1)
            shown = found if found.any() else torch.ones_like(found)
            error = _mean_error(own[found], true[found]) if found.any() else None
            row = {"party": party, "records": len(true), "recovered": int(found.sum()), self.unit: error}
            rows.append(row | {f"{self.unit}_of_mean_block": _mean_error(mean_guess(true[shown], mean[0]), true[shown])})
        return rows

    def rows(self) -> list[dict[str, Any]]:
        """Return a row a record: its place, origin, label, label found, error and what is wrong with it."""
        scored = [] if self.scores is None else zip(self.labelled.tolist(), self.scores.argmax(1).tolist(), strict=True)
        found = [label if known else None for known, label in scored]
        rows = []
        for i, (place, label, error) in enumerate(zip(self.places.tolist(), self.labels.tolist(), self.errors().tolist(), strict=True)):
            row: dict[str, Any] = {"record": place} | ({"origin": self.origins[i]} if self.origins else {}) | {"label": label}
            row |= {} if self.scores is None else {"label_found": found[i]}
            rows.append(row | {self.unit: None if error != error else round(error, 4), "reason": self.reasons.get(place, "")})
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
    joined = torch.cat([joined for _, joined, _ in parts])
    origins = data.attacked.take(places).ids
    return Outcome(places, values[places], joined, scores, labels[places], reasons, seconds, data.blocks, mean_record(data), origins)


def mean_record(data: FederatedRecords) -> Tensor:
    """Return the mean of all records under attack, (C, H, W) or (D,); that of the training records where only one is under attack."""
    records = data.attacked if len(data.attacked) > 1 else data.train_records
    return records.values().mean(0)


def _mean_error(recovered: Tensor, truth: Tensor) -> float:
    """Return the mean PSNR of pictures, or the RMSE over all values of rows."""
    return float(psnr(recovered, truth).mean()) if truth.ndim == 4 else float(rmse(recovered, truth).square().mean().sqrt())
