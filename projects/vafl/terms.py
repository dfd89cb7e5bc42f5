"""What a client tells the server when it joins, and what both must agree on."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.vafl.client import Signal, Upload
from projects.vafl.federation import Setting
from projects.vafl.frames import Field, Frame, FrameError

LARGEST = 1e6
"""Embeddings with a larger entry are not taken: a training that goes well has none, and one of them would spoil the server's net."""
_MENDS = {
    "clock": "give both the same --clock",
    "clients": "give both the same data.parties",
    "records": "both must hold the same subjects",
    "tests": "both must hold the same subjects",
    "ids": "both must hold the same subjects in their files, with the same ids and data.seed",
}


@dataclass(frozen=True)
class Terms:
    """What is the same at the server and at all clients.

    Attributes:
        clients: M.
        records: N, training records.
        tests: test records.
        ids: digest of the names of all records in their order: both sides mean the same subjects.
        settings: the protocol, the protection, the batches and the step sizes, as JSON.
        clock: wall or virtual; in virtual time the noise is the simulator's, and not secret.
    """

    clients: int
    records: int
    tests: int
    ids: str
    settings: str
    clock: str = "wall"

    @classmethod
    def of(cls, setting: Setting, clients: int, records: int, tests: int, ids: str, clock: str = "wall") -> Terms:
        """Return the terms of a setting; delays are each party's own."""
        agreed = {name: value for name, value in asdict(setting).items() if name != "delays"}
        return cls(clients, records, tests, ids, json.dumps(_flat(agreed), sort_keys=True), clock)

    def limit(self, width: int) -> int:
        """Return how many bytes a message of a client has at most, whose embeddings have `width` entries."""
        return (1 << 16) + 2 * max(self.records, self.tests) * (4 * width + 8)

    def difference(self, fields: dict[str, Field]) -> str:
        """Say how what a client told differs; empty if it agrees."""
        for name, mend in _MENDS.items():
            if fields.get(name) != getattr(self, name):
                verb = "is" if name == "clock" else "are"
                return f"its {name} {verb} {shown(fields.get(name), 80)}, the server's {getattr(self, name)}: {mend}"
        if (told := fields.get("settings")) == self.settings:
            return ""
        own, theirs = json.loads(self.settings), _settings(told)
        differing = [name for name in own if name not in theirs or theirs[name] != own[name]]
        pairs = "; ".join(f"{name} is {shown(theirs.get(name))} there and {own[name]} here" for name in differing[:3])
        return f"its settings differ ({pairs or 'of another release'}): give both the same configuration"


def shown(value: Any, length: int = 40) -> str:
    """Shorten what another party wrote, and take out what would do something to a terminal."""
    return "".join(sign if sign.isprintable() else "?" for sign in str(value)[:length])


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _settings(told: Field) -> dict[str, Any]:
    try:
        found = json.loads(told) if isinstance(told, str) else None
    except (ValueError, RecursionError):
        found = None
    return found if isinstance(found, dict) else {}


def upload_frame(upload: Upload, start: float, arrival: float) -> Frame:
    """Write an upload as a message; `start` and `arrival` are the seconds of its cycle on the client's clock."""
    goes_first = len(upload.query) > 0 and np.array_equal(upload.query, upload.rows[: len(upload.query)])
    tensors = {"embeddings": upload.embeddings}
    if len(upload.rows):
        tensors["rows"] = torch.from_numpy(upload.rows.astype(np.int32))
    if len(upload.query) and not goes_first:
        tensors["query"] = torch.from_numpy(upload.query.astype(np.int32))
    fields: dict[str, Field] = {"cycle": upload.cycle, "start": start, "arrival": arrival, "first": len(upload.query) if goes_first else 0}
    return Frame("upload", fields, tensors)


def read_upload(frame: Frame, client: int, records: int, width: int, batch: int) -> Upload:
    """Read an upload, or new embeddings that were asked for, trusting nothing of it.

    Args:
        frame: what came.
        client: from whom.
        records: N.
        width: p_m.
        batch: records that a query has, if it has any.

    Raises:
        FrameError: if it is not what a client of this federation sends.
    """
    rows, query = (_rows(frame, name, client, records) for name in ("rows", "query"))
    embeddings = frame.tensors.get("embeddings")
    if embeddings is None or embeddings.shape != (len(rows), width) or embeddings.dtype not in (torch.float32, torch.float16):
        raise FrameError(f"client {client} sent no embeddings of shape {(len(rows), width)}")
    check_finite(embeddings, client)
    first, cycle = frame.fields.get("first", 0), frame.fields.get("cycle", -1)
    if first not in (0, batch) or first > len(rows) or type(cycle) is not int:
        raise FrameError(f"client {client} sent an upload with the fields {shown(frame.fields, 200)}")
    query = rows[:batch] if first else query
    if len(query) not in (0, batch):
        raise FrameError(f"client {client} asked for {len(query)} records, expected a batch of {batch}")
    return Upload(client, cycle, rows, embeddings, query)


def check_finite(embeddings: Tensor, client: int) -> None:
    """Raise FrameError where a client's embeddings are not finite, or larger than `LARGEST`."""
    if not embeddings.numel() or float(largest := embeddings.abs().max()) <= LARGEST:
        return
    said = f"as large as {float(largest):g}" if bool(embeddings.isfinite().all()) else "that are not finite"
    raise FrameError(f"client {client} sent embeddings {said}: its training has diverged; lower model.lr")


def read_times(frame: Frame, client: int) -> tuple[float, float]:
    """Read the seconds at which a cycle began and its message arrives, on the client's clock.

    Raises:
        FrameError: if these are no such times.
    """
    start, arrival = frame.fields.get("start", 0.0), frame.fields.get("arrival", 0.0)
    if not is_second(start) or not is_second(arrival) or start > arrival:  # type: ignore[operator]
        raise FrameError(f"client {client} sent a cycle from {shown(start)} to {shown(arrival)} s")
    return float(start), float(arrival)  # type: ignore[arg-type]


def is_second(value: Any) -> bool:
    """Say whether this is a second of a training."""
    return type(value) in (int, float) and math.isfinite(value) and value >= 0


def _rows(frame: Frame, name: str, client: int, records: int) -> np.ndarray:
    return read_rows(frame, name, records, f"client {client}") if name in frame.tensors else np.empty(0, np.int64)


def read_rows(frame: Frame, name: str, records: int, sender: str) -> np.ndarray:
    """Read numbers of records, (R,) int64.

    Raises:
        FrameError: if these are not different records.
    """
    tensor = frame.tensors.get(name)
    fits = tensor is not None and tensor.dim() == 1 and tensor.dtype == torch.int32 and len(tensor) <= records
    rows = tensor.to(torch.int64).numpy() if fits else None  # type: ignore[union-attr]
    if rows is None or (len(rows) and (rows.min() < 0 or rows.max() >= records or np.bincount(rows, minlength=records).max() > 1)):
        raise FrameError(f"{sender} sent a message whose {name} are not different records from 0 to {records - 1}")
    return rows


def read_releases(frame: Frame, records: int, sender: str) -> Tensor:
    """Read how often each record was released, (N,) int64.

    Raises:
        FrameError: if these are no such counts.
    """
    counts = frame.tensors.get("releases")
    if counts is None or counts.shape != (records,) or counts.dtype != torch.int64 or bool(((counts < 0) | (counts > 1 << 40)).any()):
        raise FrameError(f"{sender} sent no counts of the releases of {records} records")
    return counts.clone()


def signal_frame(signal: Signal, cycle: int, start: float) -> Frame:
    """Write an answer as a message; `start` is the second at which the client's next cycle begins, in virtual time."""
    fields: dict[str, Field] = {"cycle": cycle, "updates": signal.updates, "age": signal.age, "start": start}
    return Frame("signal", fields, {"gradient": signal.gradient})


def read_signal(frame: Frame, batch: int, width: int) -> Signal:
    """Read an answer.

    Raises:
        FrameError: if it is none to a query of `batch` records with embeddings of `width` entries, or is not finite.
    """
    gradient, updates, age = frame.tensors.get("gradient"), frame.fields.get("updates"), frame.fields.get("age")
    if gradient is None or gradient.shape != (batch, width) or type(updates) is not int or not is_second(age):
        raise FrameError(f"the server answered with no gradient of shape {(batch, width)}")
    if not bool(gradient.isfinite().all()):
        raise FrameError("the server answered with a gradient that is not finite: the training has diverged; lower model.lr")
    return Signal(gradient.clone(), updates, float(age))  # type: ignore[arg-type]
