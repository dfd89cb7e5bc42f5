"""Command lines that must fail as a user should see it, and cases that are slow."""

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


def slow(*values: Any, **options: Any) -> Any:
    """Return a case of a parametrised test that runs with the slow ones."""
    return pytest.param(*values, marks=pytest.mark.slow, **options)
