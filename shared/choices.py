"""Things that are chosen by a name and, after a colon, a number: `jpeg:10`, `none`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

Made = TypeVar("Made")


@dataclass(frozen=True)
class Choice(Generic[Made]):
    """What may be chosen.

    Attributes:
        description: what it is, in a line.
        build: makes it from its parameter, where one is given.
        parameter: what may follow its name after a colon, with its default; None for nothing.
    """

    description: str
    build: Callable[..., Made]
    parameter: str | None = None


def choose(text: str, choices: Mapping[str, Choice[Made]], what: str) -> tuple[str, list[float]]:
    """Read a name and its parameter.

    Args:
        text: the name, with or without a parameter.
        choices: by name.
        what: the word for one of them, for messages.

    Returns:
        The name, and the parameter if there is one: what `build` of the choice is to be called with.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or a parameter that the choice does not take.
    """
    name, colon, given = text.strip().partition(":")
    if name not in choices:
        known = ", ".join(f"{key} ({each.parameter})" if each.parameter else key for key, each in choices.items())
        raise ValueError(f"no {what} {name!r}; choose one of {known}")
    parameter = choices[name].parameter
    if not colon:
        return name, []
    if parameter is None:
        raise ValueError(f"the {what} {name!r} takes no parameter, got {text!r}")
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the parameter of {name!r} ({parameter}) must be a number, got {given!r}")
    return name, [value]
