"""Messages between server and clients: a versioned JSON head and raw tensors. No pickle: nothing that arrives is executed."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Buffer = bytes | bytearray | memoryview
Field = int | float | str | bool | None | list[Any]

MAGIC = b"VAFL"
VERSION = 1
LIMIT = 1 << 30
"""A message has at most so many bytes."""
HEAD_LIMIT = 1 << 20
"""Its JSON head has at most so many."""
DEPTH = 4
"""Lists in fields are nested at most so deep."""
DIMENSIONS = 8
"""A tensor has at most so many."""
KINDS = {
    "hello": "client to server: who it is and what it holds, first message of a link",
    "welcome": "server to client: settings of the run and where it stands",
    "refuse": "server to client: why the client cannot take part",
    "ready": "client to server: it has set up its part and can begin",
    "start": "server to client: begin with the cycles; the second of the training",
    "upload": "client to server: embeddings of a batch and of further records, and the query for the batch's signal",
    "signal": "server to client: gradient of the batch's mean loss for the client's embeddings",
    "refresh": "server to client: records whose embeddings have grown too old",
    "refreshed": "client to server: their new embeddings",
    "evaluate": "server to client: split and records to embed for a measurement",
    "evaluated": "client to server: these embeddings",
    "beat": "both ways: still alive",
    "stop": "server to client: finish the step and send bye",
    "bye": "both ways: last message of a link",
}
"""Every kind of message, its direction and what it says."""

_PREFIX = struct.Struct("<4sHI")
_ALIGN = 8
_DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class FrameError(ValueError):
    """A message that cannot be written, or one that arrived and is not what it should be."""


@dataclass(frozen=True, eq=False)
class Frame:
    """One message.

    Args:
        kind: a key of `KINDS`.
        fields: numbers, texts and lists of them; numbers are finite and whole ones fit into 64 bits.
        tensors: by name; those of a decoded frame share the memory of its message, so `clone` one that is kept while the others go.
    """

    kind: str
    fields: dict[str, Field] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)


def encode(frame: Frame, limit: int = LIMIT) -> bytearray:
    """Write a message, little-endian: `VAFL`, version u16, length of the head u32, head, tensors.

    The head is JSON, `{"kind", "fields", "tensors": [[name, dtype, shape], ...]}`, filled up with blanks; it and every tensor end at a
    multiple of eight bytes.

    Raises:
        FrameError: if the frame is of no known kind, has a value that a message cannot hold, or is larger than `limit` bytes.
    """
    _check_kind(frame.kind)
    _check_fields(frame.fields)
    tensors = {name: _portable(name, tensor) for name, tensor in frame.tensors.items()}
    described = [[name, _NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in tensors.items()]
    head = json.dumps({"kind": frame.kind, "fields": frame.fields, "tensors": described}, separators=(",", ":")).encode()
    head += b" " * _gap(_PREFIX.size + len(head))
    size = _PREFIX.size + len(head) + sum(tensor.nbytes + _gap(tensor.nbytes) for tensor in tensors.values())
    _check_size(size, len(head), limit)
    message = bytearray(size)
    _PREFIX.pack_into(message, 0, MAGIC, VERSION, len(head))
    offset = _PREFIX.size + len(head)
    message[_PREFIX.size : offset] = head
    for tensor in tensors.values():
        if tensor.numel():  # an empty one of numpy's cannot be viewed as bytes
            message[offset : offset + tensor.nbytes] = tensor.reshape(-1).view(torch.uint8).numpy().data
        offset += tensor.nbytes + _gap(tensor.nbytes)
    return message


def decode(message: Buffer, limit: int = LIMIT) -> Frame:
    """Read a message that `encode` wrote; the tensors are views of it where it can be written to.

    Raises:
        FrameError: if it is not such a message; no other error, whatever the bytes.
    """
    view = memoryview(message).cast("B")
    if view.readonly:
        view = memoryview(bytearray(view))
    head, offset = _head(view, limit)
    kind, fields, described = _parse(head)
    tensors: dict[str, Tensor] = {}
    for entry in described:
        name, dtype, shape = _check_tensor(entry, limit)
        if name in tensors:
            raise FrameError(f"a message of kind {kind} with two tensors {name!r}")
        size = math.prod(shape) * dtype.itemsize
        after = offset + size + _gap(size)
        if after > len(view) or any(view[offset + size : after]):
            raise FrameError(f"tensor {name!r} of {size} bytes goes beyond the end of a message of {len(view)}, or is not filled up with zeros")
        tensors[name] = _tensor(view, offset, dtype, shape)
        offset = after
    if offset != len(view):
        raise FrameError(f"a message of {len(view)} bytes whose head speaks of {offset}")
    return Frame(kind, fields, tensors)


def _portable(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(name, str) or tensor.dtype not in _NAMES or tensor.layout != torch.strided or tensor.dim() > DIMENSIONS:
        held = f"{', '.join(_DTYPES)} of at most {DIMENSIONS} dimensions"
        raise FrameError(f"tensor {name!r} is {tensor.dtype} of {tensor.dim()} dimensions, {tensor.layout}; a message holds {held}")
    return tensor.detach().cpu().contiguous()


def _gap(size: int) -> int:
    return -size % _ALIGN


def _head(view: memoryview, limit: int) -> tuple[bytes, int]:
    """Return the head, and where the first tensor begins."""
    if len(view) < _PREFIX.size or view[:4] != MAGIC:
        raise FrameError(f"not a message of this project: it begins with {bytes(view[:4])!r} and has {len(view)} bytes")
    _, version, length = _PREFIX.unpack_from(view)
    if version != VERSION:
        raise FrameError(f"a message of version {version}, this side speaks {VERSION}: install the same release on both sides")
    _check_size(len(view), length, limit)
    start = _PREFIX.size + length
    if start > len(view) or _gap(start):
        raise FrameError(f"a message of {len(view)} bytes with a head of {length}")
    return bytes(view[_PREFIX.size : start]), start


def _parse(head: bytes) -> tuple[str, dict[str, Field], list[Any]]:
    try:
        found = json.loads(head.decode(), object_pairs_hook=_once, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise FrameError(f"a message whose head cannot be read: {error}") from error
    if not isinstance(found, dict) or found.keys() != {"kind", "fields", "tensors"}:
        raise FrameError("a message whose head is not made of kind, fields and tensors")
    _check_kind(found["kind"])
    _check_fields(found["fields"])
    if not isinstance(found["tensors"], list):
        raise FrameError("a message whose tensors are not a list")
    return found["kind"], found["fields"], found["tensors"]


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise FrameError("a name stands twice")
    return found


def _refuse_constant(text: str) -> None:
    raise FrameError(f"{text} is not a number that a message can hold")


def _check_kind(kind: Any) -> None:
    if not isinstance(kind, str) or kind not in KINDS:
        raise FrameError(f"a message of unknown kind {str(kind)[:40]!r}, expected one of {', '.join(KINDS)}: install the same release on both sides")


def _check_fields(fields: Any) -> None:
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise FrameError("the fields of a message are a dictionary from names to values")
    for name, value in fields.items():
        if not _is_plain(value, DEPTH):
            held = "texts, None, finite floats, whole numbers of 64 bits and lists of them; send other numbers as tensors"
            raise FrameError(f"field {name[:40]!r} is {str(value)[:40]}, a {type(value).__name__}; a message holds {held}")


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, str | bool) or (isinstance(value, int) and -(1 << 63) <= value < 1 << 63)


def _check_size(size: int, head: int, limit: int) -> None:
    if size > limit or head > HEAD_LIMIT:
        mend = "send smaller batches, and long lists as tensors"
        raise FrameError(f"a message of {size} bytes with a head of {head}, at most {limit} and {HEAD_LIMIT}: {mend}")


def _check_tensor(entry: Any, limit: int) -> tuple[str, torch.dtype, list[int]]:
    """Return name, dtype and shape out of the head's entry."""
    if not isinstance(entry, list) or len(entry) != 3 or not isinstance(entry[0], str) or not isinstance(entry[2], list):
        raise FrameError("a message with a tensor that is not given as [name, dtype, shape]")
    name, dtype, shape = entry
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise FrameError(f"tensor {name[:40]!r} of dtype {str(dtype)[:40]}: a message holds {', '.join(_DTYPES)}")
    whole = len(shape) <= DIMENSIONS and all(type(size) is int and 0 <= size <= limit for size in shape)
    if not whole or math.prod(max(size, 1) for size in shape) > limit:
        raise FrameError(f"tensor {name[:40]!r} has the shape {str(shape)[:80]}: at most {DIMENSIONS} dimensions and {limit} elements")
    return name, _DTYPES[dtype], shape


def _tensor(view: memoryview, offset: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    if dtype == torch.bool and bool((torch.frombuffer(view, dtype=torch.uint8, count=count, offset=offset) > 1).any()):
        raise FrameError("a tensor of truth values with a byte that is neither 0 nor 1")
    return torch.frombuffer(view, dtype=dtype, count=count, offset=offset).view(shape)
