"""What is written down of a federation's training, simulated or real: the curve, the trace, the clients, and the ledger."""

from __future__ import annotations

import csv
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from projects.vafl.heads import Head
from projects.vafl.module import metrics, update
from projects.vafl.server import Server
from projects.vafl.simulator import Event
from shared.loggers import artefact_folder
from shared.messages import Interval
from shared.runs import atomic

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

SHOWN_EVENTS = 400
"""Events at the beginning that the timeline is drawn of."""
TRACE_COLUMNS = ("client", "seconds", "start", "arrival", "answered", "update", "loss", "age")


@torch.no_grad()
def judge(head: Head, embeddings: Tensor, labels: Tensor, classes: int) -> dict[str, float]:
    """Return loss, accuracy and, with two classes, auroc of embeddings, (N, sum of p_m)."""
    logits = head(embeddings)
    collection = metrics(classes, "").to(logits.device)
    update(collection, logits, labels)
    return {"loss": float(F.cross_entropy(logits, labels)), **{name: float(value) for name, value in collection.compute().items()}}


class Recorder:
    """Collects the curve of a training, logs it, and says now and then where it is.

    Args:
        trainer: whose loggers are used; None logs nothing and says nothing.
        classes: K.
        seconds: of the whole training, for progress; None is unknown.
        updates: of the whole training, for progress; None is unknown.

    Attributes:
        curve: a row an evaluation.
        events: the first steps of the server.
    """

    def __init__(self, trainer: ProjectTrainer | None, classes: int, seconds: float | None = None, updates: int | None = None) -> None:
        self.trainer, self.classes, self.seconds, self.updates = trainer, classes, seconds, updates
        self.curve: list[dict[str, Any]] = []
        self.events: list[Event] = []
        self._losses: list[float] = []
        self._progress = Interval()
        self._bar: Callable[[float, str], None] | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show a live bar instead of lines now and then, as long as this lasts, where the trainer has one: on a terminal."""
        if self.trainer is None or self.trainer.progress_bar_callback is None:
            yield
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        with Progress(BarColumn(), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.description}"), transient=True) as progress:
            task = progress.add_task("", total=self.updates if self.seconds is None else self.seconds)
            self._bar = lambda done, said: progress.update(task, completed=done, description=said)
            try:
                yield
            finally:
                self._bar = None

    def restore(self, curve: list[dict[str, Any]], events: list[dict[str, Any]]) -> None:
        """Go on from what a checkpoint kept."""
        self.curve, self.events = curve, [Event(**event) for event in events]

    def watch(self, event: Event) -> None:
        """Take a step of the server into account."""
        self._losses.append(event.loss)
        if len(self.events) < SHOWN_EVENTS:
            self.events.append(event)

    def evaluate(self, seconds: float, server: Server, embeddings: Tensor, labels: Tensor, up: int, down: int) -> dict[str, Any]:
        """Judge the present model by embeddings of test records, (N, sum of p_m); log and keep the row."""
        return self.judge(self.note(seconds, server, up, down), server.head, embeddings, labels)

    def note(self, seconds: float, server: Server, up: int, down: int) -> dict[str, Any]:
        """Return what a row tells besides the judgement, as it is now."""
        noted = {
            "seconds": round(seconds, 6),
            "updates": server.updates,
            "train_loss": sum(self._losses) / len(self._losses) if self._losses else None,
            "mean_age": server.mean_age,
            "oldest": server.oldest,
            "bytes_up": up,
            "bytes_down": down,
            "releases": int(server.releases.max()),
        }
        self._losses.clear()
        return noted

    def judge(self, noted: dict[str, Any], head: Head, embeddings: Tensor, labels: Tensor) -> dict[str, Any]:
        """Judge a head that was noted; log and keep the row."""
        judged = judge(head, embeddings, labels, self.classes)
        row = {name: noted[name] for name in ("seconds", "updates", "train_loss")} | judged | noted
        self.curve.append(row)
        if self.trainer is not None:
            self._log(self.trainer, row, judged)
        return row

    def _log(self, trainer: ProjectTrainer, row: dict[str, Any], judged: dict[str, float]) -> None:
        values = {f"val/{name}": value for name, value in judged.items()}
        values |= {f"train/{name}": float(row[name]) for name in ("seconds", "mean_age", "bytes_up", "bytes_down", "releases")}
        if row["train_loss"] is not None:
            values["train/loss"] = row["train_loss"]
        for logger in trainer.loggers:
            logger.log_metrics(values, step=row["updates"])
        self._say(row)

    def _say(self, row: dict[str, Any]) -> None:
        end = f" of {self.seconds:g}" if self.seconds is not None else ""
        steps = f" of {self.updates}" if self.updates is not None else ""
        said = f"second {row['seconds']:g}{end}, update {row['updates']}{steps}: accuracy {row['accuracy']:.3f}"
        if self._bar is not None:
            self._bar(row["updates"] if self.seconds is None else row["seconds"], said)
        elif self._progress.is_over():
            print(said, flush=True)

    def first_time(self, quantity: str, level: float) -> float | None:
        """Return the seconds of the first evaluation at which a quantity reached a level."""
        return next((row["seconds"] for row in self.curve if row[quantity] >= level), None)


class Trace:
    """Writes each message that the server answered into `trace.csv`, a file that `delays.compute=trace:FILE` plays again.

    The columns are client, seconds (from the beginning of its cycle to its arrival), start, arrival, answered, update, loss, age.

    Args:
        trainer: among whose artefacts the file lies; None writes none.
    """

    def __init__(self, trainer: ProjectTrainer | None) -> None:
        self.path = None if trainer is None else artefact_folder(trainer) / "trace.csv"
        self._values = array("d")  # row by row: far quicker to copy into a checkpoint than tuples

    def watch(self, event: Event, update: int) -> None:
        """Take a step of the server into account."""
        for client, start, arrival in zip(event.clients, event.starts, event.arrivals, strict=True):
            times = (round(value, 9) for value in (arrival - start, start, arrival, event.time))
            self._values.extend((client, *times, update, round(event.loss, 6), round(event.age, 3)))

    @property
    def rows(self) -> list[tuple[Any, ...]]:
        """The lines of the file."""
        lines = zip(*[iter(self._values)] * len(TRACE_COLUMNS), strict=True)
        return [(int(client), *times, int(update), loss, age) for client, *times, update, loss, age in lines]

    def write(self) -> None:
        """Write the file."""
        if self.path is None:
            return
        with atomic(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(TRACE_COLUMNS)
            writer.writerows(self.rows)

    def state(self) -> Tensor:
        """Return what it takes to go on, (lines, columns)."""
        return torch.from_numpy(np.array(self._values)).view(-1, len(TRACE_COLUMNS))

    def load_state(self, state: Tensor) -> None:
        """Go on from a state."""
        self._values = array("d", state.double().flatten().tolist())


def client_rows(server: Server, cycles: Sequence[int], busy: Sequence[float], seconds: float, gaps: Sequence[float]) -> list[dict[str, Any]]:
    """Return a row a client: how often it came, how busy it was, and how old its embeddings are.

    Args:
        server: at the end.
        cycles: of each client.
        busy: seconds that each was at work or its messages on the way.
        seconds: of the whole training.
        gaps: mean seconds of each client's cycles, lambda_m.
    """
    rates = [1 / gap if gap > 0 else 0.0 for gap in gaps]
    return [
        {
            "client": number,
            "cycles": cycles[number],
            "mean_gap": round(gaps[number], 4),
            "q": round(rates[number] / sum(rates), 4) if sum(rates) else None,
            "utilisation": round(busy[number] / seconds, 3) if seconds else None,
            "age_at_end": round(float((server.updates - server.stamps[number]).mean()), 1),
            "releases_max": int(server.releases[number].max()),
            "releases_mean": round(float(server.releases[number].mean()), 1),
        }
        for number in range(server.clients)
    ]
