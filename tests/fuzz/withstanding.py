"""The one test of every reader: damaged files are read into something, or refused by a clear error that names the file."""

from __future__ import annotations

import contextlib
import resource
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz.damage import SPRUNG, damaged
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

FEW, MANY = 10, 400
"""Damaged files a reader: by default, and in the slow test."""

_MEMORY = 1536 * 2**20
_SECONDS = 20
_FORBIDDEN = {"pickle.find_class", "socket.connect", "socket.getaddrinfo", "os.system", "subprocess.Popen"}
_forbidden_seen: list[str] | None = None


def _watch(event: str, details: Any) -> None:
    if _forbidden_seen is not None and event in _FORBIDDEN and details[:1] != ("uname",):  # which `platform` asks when libraries are imported
        _forbidden_seen.append(f"{event} {details}")
        raise PermissionError(f"{event} {details}")


sys.addaudithook(_watch)


@dataclass(frozen=True)
class Reader:
    """A reader of files and how to make valid ones.

    Attributes:
        name: of the test.
        make: writes valid files into an empty folder.
        read: reads them all from that folder.
        files: pattern of the files to damage.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Any]
    files: str = "**/*"


def withstand(reader: Reader, home: Path, examples: int) -> None:
    """Damage files one by one.

    Raises:
        AssertionError: if a reader raises anything but a clear error, runs code, or takes much memory or time.
    """
    reader.make(home)
    reader.read(home)
    files = sorted(path for path in home.glob(reader.files) if path.is_file())[:12]
    contents = {file: file.read_bytes() for file in files}

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        print_blob=False,
    )
    @given(data=st.data())
    def attempt(data: Any) -> None:
        file = data.draw(st.sampled_from(files), label="file")
        damage = data.draw(damaged(contents[file]), label="damage")
        file.write_bytes(damage.content)
        try:
            judge(reader, home, file)
        finally:
            file.write_bytes(contents[file])

    attempt()


def judge(reader: Reader, home: Path, file: Path) -> None:
    """Read once, and see how that ends."""
    SPRUNG.clear()
    refused: Exception | None = None
    try:
        with limited(), watched() as seen:
            reader.read(home)
    except (ValueError, FileNotFoundError) as error:
        refused = error
    finally:
        assert not SPRUNG, f"{file.name} ran code"
        assert not seen, f"{file.name} led to {seen}"
    if refused is not None and file.name not in str(refused) and str(home) not in str(refused):
        raise AssertionError(f"{type(refused).__name__} does not name {file.name}: {str(refused)[:300]}") from refused


@contextlib.contextmanager
def watched() -> Iterator[list[str]]:
    """Refuse, and collect, what no file may lead to: programs, connections, and classes of pickles."""
    global _forbidden_seen
    _forbidden_seen = seen = []
    try:
        yield seen
    finally:
        _forbidden_seen = None


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Let what is read take little memory and time, where the system can tell: too much of either ends in an error that no reader may raise."""
    if not sys.platform.startswith("linux") or threading.current_thread() is not threading.main_thread():
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    previous = signal.signal(signal.SIGALRM, _too_long)
    signal.setitimer(signal.ITIMER_REAL, _SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def _too_long(*_: object) -> None:
    raise TimeoutError(f"reading takes more than {_SECONDS} s")
