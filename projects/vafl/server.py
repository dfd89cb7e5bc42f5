"""The server of the federation, without any input or output: a table of the last embeddings, their ages, and the head (Algorithms 1 and 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.vafl.client import Signal, Upload
from projects.vafl.heads import Head
from projects.vafl.steps import StepSizes

AGES = 24
"""Bins of the histogram of ages: 0, 1, 2 to 3, 4 to 7, and so on."""


SANE = 1e4
"""No embedding of a training that goes well has an entry as large."""


class Diverged(ArithmeticError):  # noqa: N818
    """A step was not taken, for the net or the answers would not have been finite.

    Attributes:
        client: whose embeddings are the largest among those used.
        size: of their largest entry.
    """

    def __init__(self, client: int, size: float) -> None:
        super().__init__(f"the training has diverged: embeddings of client {client} are as large as {size:g}")
        self.client, self.size = client, size


class Server:
    """The part of the server.

    Args:
        head: its net, with parameters theta_0.
        labels: (N,) int64 labels of the training records, on the head's device.
        steps: step sizes eta_0.
        max_age: D, the bound on delays; None lets ages grow.
        message_bits: bits of an answered number.

    Attributes:
        table: (N, sum of p_m) last embeddings that came from each client, side by side.
        stamps: (M, N) int64 counter at which each came.
        updates: k.
        releases: (M, N) int64 number of embeddings that came of each record.
        ages: (AGES,) int64 histogram of the ages of the others' embeddings that were used.
    """

    def __init__(self, head: Head, labels: Tensor, steps: StepSizes, max_age: int | None = None, message_bits: int = 32) -> None:
        self.head, self.labels, self.steps, self.max_age = head, labels, steps, max_age
        self.dtype = torch.float16 if message_bits == 16 else torch.float32
        self.clients, self.records = len(head.widths), len(labels)
        ends = np.cumsum(head.widths).tolist()
        self._columns = [slice(end - width, end) for end, width in zip(ends, head.widths, strict=True)]
        self._parameters = list(head.parameters())
        like = self._parameters[0] if self._parameters else torch.zeros(())
        self.table = torch.zeros(self.records, ends[-1], dtype=like.dtype, device=labels.device)
        self._shares = [self.table[:, columns] for columns in self._columns]
        self.stamps = np.zeros((self.clients, self.records), np.int64)
        self.releases = np.zeros((self.clients, self.records), np.int64)
        self.updates, self.ages = 0, np.zeros(AGES, np.int64)
        self.loss: Tensor | float = float("nan")
        self.oldest, self._age_sum, self._age_count = 0, 0, 0

    def store(self, upload: Upload) -> None:
        """Take the embeddings of a message into the table.

        Raises:
            ValueError: if the embeddings are not of this federation's shape.
        """
        if not len(upload.rows):
            return
        rows, width = upload.rows, self.head.widths[upload.client]
        if upload.embeddings.shape != (len(rows), width):
            raise ValueError(f"client {upload.client} sent embeddings of shape {tuple(upload.embeddings.shape)}, expected {(len(rows), width)}")
        self._shares[upload.client].index_copy_(0, torch.from_numpy(rows).to(self.table.device), upload.embeddings.to(self.table))
        self.stamps[upload.client, rows] = self.updates
        self.releases[upload.client, rows] += 1

    def overdue(self, uploads: Sequence[Upload]) -> dict[int, np.ndarray]:
        """Return, by client, the records that are needed to answer the others' messages, but whose embeddings are older than D."""
        if self.max_age is None:
            return {}
        found = {}
        for client in range(self.clients):
            queries = [upload.query for upload in uploads if upload.client != client]
            needed = np.unique(np.concatenate(queries)) if queries else np.empty(0, np.int64)
            late = needed[self.updates - self.stamps[client, needed] > self.max_age]
            late = np.setdiff1d(late, [row for upload in uploads if upload.client == client for row in upload.rows])
            if len(late):
                found[client] = late
        return found

    def step(self, uploads: Sequence[Upload], checks: bool = False) -> list[Signal]:
        """Take the embeddings of a group of messages, one update of theta_0, and answer the queries (equations 2 and 4).

        Both gradients are at the same theta_0, as in equation 2. Of several messages theta_0 gets the average gradient (Algorithm 2).

        Args:
            uploads: each from another client and with a query of the same length.
            checks: whether to take no step that is not finite.

        Returns:
            The answers, in this order.

        Raises:
            Diverged: with `checks`, before the head or a counter has changed; the uploads may be given again.
        """
        for upload in uploads:
            self.store(upload)
        is_shared = len(uploads) > 1 and all(np.array_equal(upload.query, uploads[0].query) for upload in uploads[1:])
        queries = [uploads[0].query] if is_shared else [upload.query for upload in uploads]
        rows = torch.from_numpy(queries[0] if len(queries) == 1 else np.concatenate(queries)).to(self.labels.device)
        loss, signal, gradients = self.head.pullback(self.table.index_select(0, rows), self.labels.index_select(0, rows))
        if checks and not all(bool(part.isfinite().all()) for part in (loss, signal, *gradients)):
            raise self._undone(uploads, rows)
        ages = [self._note_ages(upload.client, upload.query) for upload in uploads]
        self._descend(gradients, self.steps.at(self.updates, sum(ages) / len(ages)))
        self.updates += 1
        self.loss = loss
        return [self._answer(signal, number, upload, len(queries), age) for number, (upload, age) in enumerate(zip(uploads, ages, strict=True))]

    def _undone(self, uploads: Sequence[Upload], rows: Tensor) -> Diverged:
        """Say whose embeddings are the largest; those of the others are not counted, for they come again."""
        sizes = [float(share[rows].abs().max()) for share in self._shares]
        worst = int(np.argmax(sizes))
        for upload in uploads:
            if upload.client != worst:
                self.releases[upload.client, upload.rows] -= 1
        return Diverged(worst, sizes[worst])

    def forget_large(self, client: int) -> None:
        """Take a client's embeddings beyond `SANE` out of the table."""
        share = self._shares[client]
        share[(share.abs() > SANE).any(dim=1)] = 0.0

    def _answer(self, signal: Tensor, number: int, upload: Upload, groups: int, age: float) -> Signal:
        """Cut a client's gradient of its own batch's mean loss out of that of the whole group's."""
        start = number * len(upload.query) if groups > 1 else 0
        own = signal[start : start + len(upload.query), self._columns[upload.client]]
        return Signal((own * groups if groups > 1 else own).to(self.dtype), self.updates - 1, age)

    def _note_ages(self, client: int, rows: np.ndarray) -> float:
        """Keep the ages of the others' embeddings that are used, tau of equation 3; returns their mean."""
        ages = self.updates - self.stamps[:, rows]  # (M, B); the client's own are 0
        ages[client] = 0
        total, count = int(ages.sum()), ages.size - len(rows)
        bins = np.frexp(ages)[1]  # 0, 1, 2 for 2 to 3, 3 for 4 to 7
        self.ages += np.bincount(bins.ravel(), minlength=AGES)[:AGES]
        self.ages[0] -= len(rows)
        self.oldest = max(self.oldest, int(ages.max()))
        self._age_sum, self._age_count = self._age_sum + total, self._age_count + count
        return total / count if count else 0.0

    @property
    def mean_age(self) -> float:
        """Mean age of the others' embeddings that were used, in updates."""
        return self._age_sum / self._age_count if self._age_count else 0.0

    def mean_embeddings(self) -> Tensor:
        """Return the mean of the embeddings that came from each client, side by side, (sum of p_m,); zero where none came."""
        came = torch.from_numpy(self.releases > 0).to(self.table)
        means = [share.t() @ own / own.sum().clamp_min(1) for share, own in zip(self._shares, came, strict=True)]
        return torch.cat(means)

    @torch.no_grad()
    def _descend(self, gradients: list[Tensor], eta: float) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.sub_(gradient, alpha=eta)

    def state(self) -> dict[str, Any]:
        """Return what it takes to go on."""
        arrays = {name: torch.from_numpy(getattr(self, name).copy()) for name in ("stamps", "releases", "ages")}
        numbers = {"updates": self.updates, "oldest": self.oldest, "age_sum": self._age_sum, "age_count": self._age_count}
        head = {name: value.clone() for name, value in self.head.state_dict().items()}  # it is written aside, while training goes on
        return {"head": head, "table": self.table.clone(), **arrays, **numbers}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.head.load_state_dict(state["head"])
        self.table.copy_(state["table"])
        for name in ("stamps", "releases", "ages"):
            getattr(self, name)[...] = state[name].numpy()
        self.updates, self.oldest = int(state["updates"]), int(state["oldest"])
        self._age_sum, self._age_count = int(state["age_sum"]), int(state["age_count"])
