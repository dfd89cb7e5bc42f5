"""A route made of checkpoints that another program left behind."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from projects.rco.anchors import ROUTE, Route, State, store_state, write_route
from shared.checkpoints import UNSAFE, describe_mismatch, is_table, load_checkpoint, load_tensors, unwrapped
from shared.data.files import BadFileError
from shared.runs import atomic, claim_folder

KEYS = ("state_dict", "model_state_dict", "model", "net", "network", "ema", "state_dict_ema", "model_ema")
"""Entries of a checkpoint under which weights are looked for, in this order."""


def collect(
    files: Sequence[str | Path],
    folder: str | Path,
    about: Mapping[str, Any],
    key: str | None = None,
    prefix: str = "",
    half: bool = False,
    net: nn.Module | None = None,
    counts_from: int | None = None,
) -> Route:
    """Make a complete route of checkpoints: the state of the highest epoch counts as the converged teacher.

    The epoch is the entry `epoch` of a checkpoint, else the number after "epoch" in its file's name, or at its end. Programs count differently: what
    Lightning (`epoch=12-step=999.ckpt`), timm (`checkpoint-12.pth.tar`) and torchvision's reference scripts (`model_12.pth`) call epoch 12 is the
    state after 13 epochs; what RepDistiller (`ckpt_epoch_40.pth`), mdistiller and most others call 40 is the one after 40, and so is a table of
    tensors `epoch_040.pt`. Metrics and learning rates are not taken over: the accuracy in such files is often that of the test set.

    Args:
        files: .safetensors, or what `torch.save` writes: a table of tensors, or a checkpoint with one inside.
        folder: of the route; an earlier route there is replaced, in one piece or not at all.
        about: plain values that say what was trained, see `Route`.
        key: entry that holds the weights; None looks for those of `KEYS`.
        prefix: of the wanted weights' names, which is cut off; others are left out. DataParallel's `module.` is cut off by itself.
        half: whether to store in half precision.
        net: network that the weights must fit; None does not check it.
        counts_from: number that the program gave its first epoch, 0 or 1; None knows it for the programs above.

    Raises:
        FileNotFoundError: if a file is missing.
        BadFileError: if a file holds no such weights, could execute code, or tells no epoch.
        ValueError: if two files are of one epoch, weights differ in names or shapes, or `folder` holds something else or the files themselves.
    """
    if not files:
        raise ValueError("no checkpoints were given to make a route of: name at least one file")
    if counts_from not in (None, 0, 1):
        raise ValueError(f"counts_from must be 0 or 1, got {counts_from}")
    target = claim_folder(folder, ROUTE)
    if inside := [file for file in files if Path(file).expanduser().resolve().is_relative_to(target)]:
        raise ValueError(f"{inside[0]} lies in {folder}, which the route replaces: name another folder")
    with atomic(target) as temporary:
        temporary.mkdir()
        states = _copied([Path(file).expanduser() for file in files], temporary, key, prefix, half, net, counts_from)
        write_route(Route(temporary, dict(about), states, states, is_complete=True, half=half))
    return Route.load(target)


def _copied(
    files: list[Path], folder: Path, key: str | None, prefix: str, half: bool, net: nn.Module | None, counts_from: int | None
) -> tuple[State, ...]:
    """Store one file after the other, so that one is in memory at a time."""
    sources: dict[int, Path] = {}
    states = []
    expected = None if net is None else _on_meta(net.state_dict())
    for file in files:
        content = _content(file)
        epoch, tensors = _epoch(content, file, counts_from), _weights(content, file, key, prefix)
        if epoch in sources:
            raise ValueError(f"{sources[epoch]} and {file} are both of the state after epoch {epoch}: leave one out")
        if unfit := [name for name, tensor in tensors.items() if tensor.is_floating_point() and not bool(tensor.isfinite().all())]:
            raise ValueError(f"{file} holds numbers that are not finite, in {unfit[0]}: its training diverged; leave it out")
        if expected is not None and (differences := describe_mismatch(expected, tensors)):
            other = "the network" if net is not None else f"{files[0]} (called the network here)"
            inner = _prefix_of(tensors, expected)
            advice = f"\nits weights are there under names that begin with {inner!r}: set prefix to {prefix + inner}" if inner else ""
            raise ValueError(f"the weights in {file} do not fit those of {other}:\n{differences}{advice}")
        expected = _on_meta(tensors) if expected is None else expected
        sources[epoch] = file
        states.append(State(epoch, store_state(folder, epoch, tensors, half), None, {}))
    return tuple(sorted(states, key=lambda state: state.epoch))


def _on_meta(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the shapes of tensors without their values."""
    return {name: tensor.to("meta") for name, tensor in tensors.items()}


def _content(file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors" or file.suffix in UNSAFE:
        return dict(load_tensors(file))
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # options, which timm and RepDistiller keep: attributes of plain values
            content = load_checkpoint(file)
    except ValueError as error:
        if "execute code" not in str(error):
            raise
        advice = "where you trust it, keep its weights alone: torch.save({'epoch': epoch, 'state_dict': net.state_dict()}, file)"
        raise BadFileError(f"{error}; {advice}") from error
    if not isinstance(content, dict):
        raise BadFileError(f"{file} holds a {type(content).__name__}, not a table of weights: save the network's state_dict()")
    return content


def _weights(content: dict[str, Any], file: Path, key: str | None, prefix: str) -> dict[str, Tensor]:
    if key is not None and key not in content:
        raise BadFileError(f"{file} has no entry {key!r}: choose key among {_names(content)}")
    tables = [content[key]] if key is not None else [content, *(content[name] for name in KEYS if name in content)]
    table = next((table for table in tables if is_table(table)), None)
    if table is None:
        where = f"entry {key!r}" if key is not None else f"entries {', '.join(KEYS)}"
        raise BadFileError(f"{file} holds no table of weights in {where}: name the right one of {_names(content)} as key")
    named = unwrapped(table)
    chosen = unwrapped({name.removeprefix(prefix): tensor for name, tensor in named.items() if name.startswith(prefix)})
    if not chosen:
        raise BadFileError(f"no weight in {file} has a name that begins with {prefix!r}: correct prefix; the names are {_names(named)}")
    return chosen


def _prefix_of(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """Return what begins the names of all expected weights in a file, or nothing if they are not there."""
    last = list(expected)[-1]
    prefixes = [name.removesuffix(last) for name in tensors if name.endswith(last)]
    return next((prefix for prefix in prefixes if all(prefix + name in tensors for name in expected)), "")


def _names(table: Mapping[str, Any]) -> str:
    names = [str(name) for name in table]
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _epoch(content: dict[str, Any], file: Path, counts_from: int | None) -> int:
    """Return the number of epochs that were trained, from 1."""
    stored = content.get("epoch")
    number = int(stored) if isinstance(stored, int | Tensor) and not isinstance(stored, bool) else _number(file.name)
    if number is None:
        raise BadFileError(f"{file} does not say of which epoch it is, neither inside nor by its name: rename it, such as epoch_0060{file.suffix}")
    if _is_amid(content):
        raise BadFileError(f"{file} was saved in the middle of an epoch: leave it out, and take checkpoints from the ends of epochs")
    first = counts_from if counts_from is not None else 0 if _counts_from_zero(content, file) else 1
    epoch = number + 1 - first
    if epoch < 1:
        raise BadFileError(f"{file} is of epoch {number}, before any training: leave it out, or set counts_from to 0 if its program counts from 0")
    return epoch


def _number(name: str) -> int | None:
    """Return the number after "epoch" in a file's name, else the one that ends its stem; not that of `resnet56.pth`."""
    found = re.search(r"epoch[=_\- ]?(\d+)", name, re.IGNORECASE) or re.search(r"(?:^|[^a-z0-9])(\d+)$", name.split(".")[0], re.IGNORECASE)
    return int(found[1]) if found else None


def _counts_from_zero(content: dict[str, Any], file: Path) -> bool:
    is_lightning = "pytorch-lightning_version" in content or "epoch=" in file.name
    is_timm = "arch" in content and isinstance(content.get("version"), int) and content["version"] > 1  # version 1 had added one already
    is_torchvision = {"model", "optimizer", "lr_scheduler", "epoch", "args"} <= set(content)
    return is_lightning or is_timm or is_torchvision


def _is_amid(content: dict[str, Any]) -> bool:
    """Tell whether Lightning's own record says that steps of the epoch were left."""
    try:
        progress = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        return progress["current"]["ready"] > 0 and not progress["is_last_batch"]
    except (KeyError, TypeError):
        return False
