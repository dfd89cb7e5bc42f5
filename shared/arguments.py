"""Helpers of the command line: which verbs and options a trainer has, and what users may leave out."""

from __future__ import annotations

import glob
import hashlib
import inspect
import json
from collections.abc import Collection
from itertools import takewhile
from pathlib import Path
from typing import Any

import lightning as L
import yaml

from shared.runs import digest

LIGHTNING_VERBS = ("fit", "validate", "test", "predict")
SUPPLIED = {"model", "datamodule", "train_dataloaders", "val_dataloaders", "dataloaders", "weights_only"}


def verbs_of(trainer: type) -> list[str]:
    """Return Lightning's verbs and the public methods that a project's trainer and its bases below Lightning's add, in order of definition."""
    own = [base for base in reversed(trainer.__mro__) if issubclass(base, L.Trainer) and base is not L.Trainer]
    added = {name: None for base in own for name, member in vars(base).items() if inspect.isfunction(member) and not name.startswith("_")}
    return [*LIGHTNING_VERBS, *(name for name in added if name not in LIGHTNING_VERBS)]


def with_names(trainer: type, verb: str, options: list[str], count: int = 1) -> list[str]:
    """Name up to `count` values that stand in front without a name, in the order of the verb's options: `scan FOLDER`, `verify A B`."""
    names = [name for name in list(inspect.signature(getattr(trainer, verb)).parameters)[1:] if name not in SUPPLIED]
    bare = list(takewhile(lambda option: not option.startswith("-"), options))[:count]
    return [part for name, value in zip(names, bare, strict=False) for part in (f"--{name}", value)] + options[len(bare) :]


def switches_of(trainer: type, verb: str) -> set[str]:
    """Return the options of a verb that are switches: `--quick` means `--quick=true`."""
    hints = inspect.signature(getattr(trainer, verb)).parameters.values()
    return {f"--{parameter.name}" for parameter in hints if parameter.annotation in (bool, "bool")}


def outside_of(names: Collection[str], verb: str) -> set[str]:
    """Return those of a trainer's options from outside that a verb has: of `pipeline` and `purify.path`, path for purify, but not for train."""
    owned = {name.rpartition(".")[2]: name.rpartition(".")[0] for name in names}
    return {name for name, owner in owned.items() if owner in ("", verb)}


def fingerprint_of(settings: dict[str, Any], options: dict[str, Any], inputs: dict[str, Path]) -> str:
    """Hash everything that a verb's outcome depends on."""
    content = repr((settings, sorted(options.items()), {name: digest(path) for name, path in inputs.items()}))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def files_of(settings: dict[str, Any], names: Collection[str]) -> dict[str, Path]:
    """Return the files that settings such as `data.root` name, by the setting; folders, which hold whole data sets, are not looked into."""
    values = {name: settings[name.partition(".")[0]].get(name.partition(".")[2]) for name in sorted(names)}
    paths = {name: [Path(text).expanduser() for text in (str(value), str(value).rpartition(":")[0])] for name, value in values.items() if value}
    return {name: file for name, both in paths.items() for file in both if file.is_file()}


def extract(options: list[str], *names: str) -> tuple[list[str], list[str]]:
    """Split `--name value` and `--name=value` off a list of options; returns the other options and the values."""
    others, values, pending = [], [], False
    for option in options:
        name, equals, value = option.partition("=")
        if pending or (equals and name in names):
            values.append(option if pending else value)
            pending = False
        elif option in names:
            pending = True
        else:
            others.append(option)
    return others, values


def joined(options: list[str], repeated: Collection[str]) -> list[str]:
    """Write an option that is given several times, with a value or a list of values, once with a list of all, as `--set a --set '[b, c]'`."""
    for name in sorted(repeated):
        options, values = extract(options, f"--{name}")
        if values:
            parts = [part for value in values for part in (yaml.safe_load(value) if value.startswith("[") else [value])]
            options = [*options, f"--{name}={json.dumps(parts)}"]
    return options


def spell_out(options: list[str], switches: set[str]) -> list[str]:
    """Write switches that are given without a value as `--name=true`."""
    following = [*options[1:], "--"][: len(options)]
    return [f"{option}=true" if option in switches and after.startswith("-") else option for option, after in zip(options, following, strict=True)]


def named(value: str | Path) -> list[Path]:
    """Return the file or folder that a user names, or the files that a pattern such as `inbox/*.jpg` matches, in order."""
    path = Path(value).expanduser()
    if path.exists() or not glob.has_magic(str(path)):
        return [path]
    found = (Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - the pattern may be absolute
    return sorted(match for match in found if match.is_file()) or [path]


def as_list(value: Any) -> list[Any]:
    """Return no, one or several values as a list."""
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
