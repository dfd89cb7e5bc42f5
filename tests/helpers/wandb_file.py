"""Reading an offline W&B run back. The file is a LevelDB log of protocol buffers: 7 bytes of header, then blocks of 32 KiB with framed pieces."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32 * 1024
FULL, LAST = 1, 4


def pieces(content: bytes) -> Iterator[bytes]:
    """Yield the framed records of the log."""
    position, record = 7, b""
    while position + 7 <= len(content):
        if BLOCK - position % BLOCK < 7:
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + 7])
        if kind == 0 or position + 7 + length > len(content):  # not written yet
            return
        record += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (FULL, LAST):
            yield record
            record = b""


def records(file: Path) -> Iterator[Any]:
    from wandb.proto import wandb_internal_pb2

    for piece in pieces(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(piece)
        yield record


def read_run(file: Path) -> tuple[list[tuple[str, str]], Any]:
    """Return the logged (name, JSON value) pairs, and the run's description; W&B's service may write them a moment after the run's end."""
    deadline = time.monotonic() + 60
    while not any(record.WhichOneof("record_type") == "exit" for record in records(file)):
        assert time.monotonic() < deadline, f"{file} has no end"
        time.sleep(0.1)
    history: list[tuple[str, str]] = []
    description = None
    for record in records(file):
        match record.WhichOneof("record_type"):
            case "history":
                history += [("/".join(item.nested_key) or item.key, item.value_json) for item in record.history.item]
            case "run":
                description = record.run
    return history, description


def read_summary(file: Path) -> dict[str, str]:
    """Return the run's headline numbers as JSON values, by name, of a file that `read_run` has found to be whole."""
    return {
        "/".join(item.nested_key) or item.key: item.value_json
        for record in records(file)
        if record.WhichOneof("record_type") == "summary"
        for item in record.summary.update
    }
