"""Evaluations of a served training: clients embed their parts of the test records when they find the time, and nobody waits for that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from projects.vafl.frames import Frame, FrameError
from projects.vafl.recording import Recorder
from projects.vafl.server import Server
from projects.vafl.terms import check_finite


class Examination:
    """Collects the clients' embeddings of the test records, and judges them.

    Args:
        recorder: keeps the curve.
        labels: (N_test,) of the test records, on the head's device.
        widths: p_m of each client.

    Attributes:
        count: evaluations so far.
        moment: second of the training of the last one.
        missing: clients whose embeddings it still waits for; None where none is under way.
    """

    def __init__(self, recorder: Recorder, labels: Tensor, widths: list[int]) -> None:
        self.recorder, self.labels, self.widths = recorder, labels, widths
        self.count, self.moment = 0, 0.0
        self.missing: set[int] | None = None
        self._skipped = 0.0
        self._tests: list[Tensor | None] = [None] * len(widths)

    def due(self, every: float) -> float:
        """Return the second of the next evaluation, where one is made at 0 and after every so many seconds."""
        return 0.0 if self.count == 0 else (math.floor(max(self.moment, self._skipped) / every + 1e-9) + 1) * every

    def skip(self, moment: float) -> None:
        """Leave out the evaluations until now, for an earlier one is still being judged."""
        self._skipped = moment

    def ask(self, moment: float, numbers: Iterable[int]) -> Frame:
        """Begin an evaluation; returns what to send to these clients."""
        self.count, self.moment, self.missing = self.count + 1, moment, set(numbers)
        return Frame("evaluate", {"number": self.count})

    def note(self, number: int, frame: Frame) -> None:
        """Keep a client's embeddings.

        Raises:
            FrameError: if they cannot be used.
        """
        embeddings, width = frame.tensors.get("embeddings"), self.widths[number]
        if embeddings is None or embeddings.shape != (len(self.labels), width) or not embeddings.is_floating_point():
            raise FrameError(f"client {number} sent no embeddings of the {len(self.labels)} test records")
        own = embeddings.to(torch.float32, copy=True)  # a large number of 64 bits is infinite now
        check_finite(own, number)
        self._tests[number] = own
        if self.missing is not None and frame.fields.get("number") == self.count:
            self.missing.discard(number)

    def conclude(self, server: Server, up: int, down: int) -> Callable[[], Any]:
        """End the evaluation under way: returns what judges it, by the last embeddings of each client, those that are gone among them."""
        self.missing = None
        own = [part for part in self._tests if part is not None]
        if len(own) < len(self.widths):  # a client has never been heard
            return lambda: None
        noted, head, device = self.recorder.note(self.moment, server, up, down), deepcopy(server.head), self.labels.device
        return lambda: self.recorder.judge(noted, head, torch.cat(own, dim=1).to(device), self.labels)

    def state(self) -> dict[str, Any]:
        """Return what it takes to go on."""
        return {
            "count": self.count,
            "moment": self.moment,
            "tests": {str(number): part for number, part in enumerate(self._tests) if part is not None},
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.count, self.moment = state["count"], state["moment"]
        for number, part in state["tests"].items():
            self._tests[int(number)] = part
