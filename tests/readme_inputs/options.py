"""Reads a command of a project against the signatures that its parser is made of: verbs, options, values of a few words, names of configurations."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from functools import cache
from importlib import import_module
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import lightning as L
from readme_inputs.commands import ROOT, Command, project_calls

from shared.arguments import SUPPLIED, verbs_of

OWN = {"run", "wandb", "force", "resume", "save_every", "seed_everything", "debug", "help", "print_config"}
"""Options that every verb of every project has."""


@cache
def classes_of(project: str) -> tuple[type, type, Any]:
    """Return what a project's `main` hands to the command line: its module, its data module and its trainer."""
    module, found = import_module(f"projects.{project}.cli"), []
    original = module.run
    module.run = lambda *classes: found.append(classes[:3])
    try:
        module.main([])
    finally:
        module.run = original
    return found[0]


def complaints(command: Command) -> list[str]:
    """Return what of a command its project does not know; empty if all is well."""
    calls = project_calls(command.text) if command.kind != "python" else ()
    return [complaint for project, arguments in calls for complaint in _complaints(project, arguments)]


def _complaints(project: str, arguments: list[str]) -> Iterator[str]:
    if not (ROOT / "projects" / project).is_dir():
        yield f"there is no project {project}"
        return
    model, data, trainer = classes_of(project)
    verb, *rest = arguments or ["(none)"]
    bare = next((place for place, word in enumerate(rest) if word.startswith("-")), len(rest))
    values = rest[:bare]
    if verb in trainer.aliases:
        verb = trainer.aliases[verb][0]
        yield from (_unknown_config(project, name) for name in values if _unknown_config(project, name))
        values = values[1:]
    if verb not in verbs_of(trainer):
        yield f"{project} has no verb {verb}"
        return
    own = {name: hint for name, hint in _parameters(getattr(trainer, verb)).items() if name not in SUPPLIED}
    names = list(own)[: trainer.unnamed.get(verb, 1)]
    if len(values) > len(names):
        yield f"{verb} takes {len(names)} options without a name, not {' '.join(values)}"
    given = [*zip(names, values, strict=False), *_options(rest[bare:])]
    for name, value in given:
        first, _, below = name.partition(".")
        if name in ("config", "c"):
            yield from filter(None, [_unknown_config(project, value)])
        elif below and first in ("model", "data", "trainer"):
            kind = {"model": model, "data": data, "trainer": L.Trainer}[first]
            yield from filter(None, [_unknown_setting(kind.__init__, below, value, name)])
        elif name not in OWN:
            yield from filter(None, [_unfit(own[name], value, name)] if name in own else [f"{project} {verb} has no option --{name}"])


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    """Yield the options with their values; a switch has the value `true`."""
    for word, after in zip(words, [*words[1:], "--"], strict=False):
        if word.startswith("-"):
            name, equals, value = word.lstrip("-").partition("=")
            yield name, value if equals else "true" if after.startswith("--") else after


def _unknown_config(project: str, name: str) -> str:
    known = (ROOT / "projects" / project / "configs" / f"{name}.yaml").is_file() or (ROOT / name).is_file()
    return "" if known else f"{project} has no configuration {name}"


def _unknown_setting(function: Callable[..., Any], path: str, value: str, name: str) -> str:
    """Follow `walk.anchors` from the parameters of a class to those of the settings that one of them is."""
    first, _, below = path.partition(".")
    known = _parameters(function)
    if first not in known:
        return f"no setting --{name}: {first} is none of {', '.join(known)}"
    if not below:
        return _unfit(known[first], value, name)
    nested = next((kind for kind in (known[first], *get_args(known[first])) if is_dataclass(kind)), None)
    return _unknown_setting(nested.__init__, below, value, name) if nested else ""


def _parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's parameters with their types; None where a type is known to type checkers alone."""
    found = {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        if parameter.kind is parameter.VAR_KEYWORD:  # handed on to the class below
            owner = vars(sys.modules[function.__module__])[function.__qualname__.partition(".")[0]]
            found |= _parameters(owner.__mro__[1].__init__)
            continue
        hint = parameter.annotation
        if isinstance(hint, str):
            try:
                hint = eval(hint, vars(sys.modules[function.__module__]))
            except NameError:
                hint = None
        found[name] = hint
    return found


def _unfit(hint: Any, value: str, name: str) -> str:
    """Say that a word or number is none that an option takes; lists and other structures are left to the parser, `$m` to the shell."""
    others = [kind for kind in get_args(hint) if kind is not type(None)]
    if value.startswith("$") or (value == "null" and len(others) < len(get_args(hint))):
        return ""
    if isinstance(hint, UnionType) and len(others) == 1:
        hint = others[0]
    if get_origin(hint) is Literal and value not in map(str, get_args(hint)):
        return f"--{name} is one of {', '.join(map(str, get_args(hint)))}, not {value}"
    if hint in (int, float):
        try:
            hint(value)
        except ValueError:
            return f"--{name} is a number, not {value}"
    return f"--{name} is true or false, not {value}" if hint is bool and value not in ("true", "false") else ""
