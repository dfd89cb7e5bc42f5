"""One file for a fitted inspector: tensors in safetensors' format, and everything else as JSON in its header. Nothing in it can execute code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shared.data.files import blamed
from shared.runs import atomic, check_writable

FORMAT = "touchstone-comad"
VERSION = 1
_TENSOR = "$tensor"
_MEND = "give the model.safetensors that fit wrote, or fit again"


def save_state(state: dict[str, Any], path: str | Path) -> None:
    """Write a state, in one piece or not at all.

    Args:
        state: dictionaries with names for keys and lists, of tensors and of what JSON knows.
        path: the file, `.safetensors`.

    Raises:
        OSError: if it cannot be written; an earlier file stays as it was.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    content = json.dumps(_parted(state, "", tensors))
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"format": FORMAT, "version": str(VERSION), "state": content})


def load_state(path: str | Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, or no file of a fitted inspector.
    """
    from safetensors import safe_open

    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no inspector {path}: give the model.safetensors that fit wrote")
    with blamed(path, _MEND), safe_open(path, framework="pt") as file:
        about = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dictionary
    if about.get("format") != FORMAT:
        raise ValueError(f"{path} holds no inspector of comad: give the model.safetensors that fit wrote")
    if about.get("version") != str(VERSION):
        raise ValueError(f"{path} has the format {about.get('version')}, this software reads {VERSION}: fit again")
    with blamed(path, _MEND):
        return _joined(json.loads(about["state"]), tensors)


def check_target(path: Path, usual: str, complaint: Callable[[dict[str, Any]], str]) -> Path:
    """Check, before any work, that an inspector may be written as a file.

    Args:
        path: the file.
        usual: name of such a file, for a message.
        complaint: says of the state of an inspector that is there why it is not replaced, as `holds ...`; empty if it may be.

    Raises:
        ValueError: if there is a folder, something else than an inspector, or an inspector that is not replaced.
        OSError: if it cannot be written.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file, such as {path / usual}")
    if path.exists():
        try:
            said = complaint(load_state(path))
        except ValueError as error:
            raise ValueError(f"{path} is no inspector, so it is not replaced: name another file by --out ({error})") from error
        if said:
            raise ValueError(f"{path} {said}, which is not replaced: name another file by --out")
    check_writable(path.parent, "name another file by --out")
    return path


def _parted(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Return a value for JSON, its tensors put aside under their names."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name}
    if isinstance(value, dict):
        return {str(key): _parted(part, f"{name}.{key}" if name else str(key), tensors) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_parted(part, f"{name}.{place}", tensors) for place, part in enumerate(value)]
    return value


def _joined(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Undo `_parted`."""
    if isinstance(value, dict):
        return tensors[value[_TENSOR]] if set(value) == {_TENSOR} else {key: _joined(part, tensors) for key, part in value.items()}
    return [_joined(part, tensors) for part in value] if isinstance(value, list) else value
