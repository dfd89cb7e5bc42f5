"""Command lines that must fail as a user should see it, and cases that are slow."""

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest


def failing(main: Callable[[Sequence[str]], Any]) -> Callable[..., str]:
    """Return a function that runs a command which must end with an exit code and without a traceback, and returns its message."""

    def fails(arguments: Sequence[str], capsys: pytest.CaptureFixture[str], code: int = 1) -> str:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        message = capsys.readouterr().err
        assert stop.value.code == code, message
        assert "Traceback" not in message
        return message

    return fails


def check_help(main: Callable[[Sequence[str]], Any], verb: str, model: type, data: type, capsys: pytest.CaptureFixture[str]) -> None:
    """Check that --help of a verb lists every option of the module and of its data, with its default and what the class says of it."""
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for section, made in (("model", model), ("data", data)):
        for name in list(inspect.signature(made.__init__).parameters)[1:]:  # type: ignore[misc]
            says = re.search(rf"^    {name}: (.*)$", inspect.getdoc(made) or "", re.MULTILINE)
            assert says, f"{name} is not explained"
            option = re.search(rf"--{section}\.{name} .*?\(type: .*?default: (.*?)\)", text)
            assert option, f"{section}.{name} is not listed with its default"
            assert " ".join(says[1].split()[:3]) in option[0]


def slow(*values: Any, **options: Any) -> Any:
    """Return a case of a parametrised test that runs with the slow ones."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)
