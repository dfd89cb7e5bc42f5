"""Runs every command of every README as written, in a fresh clone and an empty environment: `uv run python tests/readmes.py [--only PROJECT ...]`.

The clone has an environment of its own, installed as the README says (`pip install uv`, then `uv run`), and commands run one
after the other in its folder, so that later ones find what `fit` left. Files that a reader would bring are drawn (`readme_inputs/drawn.py`).
Each command ends in one of four states: `ok`; `runs` (no error within the limit, then stopped); `failed` (another exit code than its README
says, a traceback, an error message); `left out`, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from readme_inputs.commands import ROOT, Command, all_commands  # noqa: E402 - a script has to say first where they lie
from readme_inputs.reasons import allowed_codes, reason_to_leave_out  # noqa: E402
from readme_inputs.sketches import whole  # noqa: E402

PASSED_ON = (
    *("OMP_NUM_THREADS", "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTPS_PROXY", "https_proxy"),
    *("PIP_CERT", "PIP_INDEX_URL", "PIP_FIND_LINKS", "UV_CACHE_DIR", "UV_DEFAULT_INDEX"),
)
"""How many threads to use, how this machine reaches the package index, where packages lie already: nothing else of the environment is passed on."""
PATIENCE = 60.0
"""Seconds that a command has to end once it was asked to."""


@dataclass
class Outcome:
    """What became of a command: its state, seconds, exit code, and the last line it printed or the reason why it was left out."""

    command: Command
    state: str
    seconds: float = 0.0
    code: int | None = None
    last: str = ""

    def line(self) -> str:
        """A line for the terminal."""
        code = f" ({self.code})" if self.code else ""
        return f"{self.state + code:<12} {self.seconds:6.0f} s  {self.command.part:<13} {self.command.short[:150]}" + (
            f"\n{'':25}{self.last[:220]}" if self.state != "ok" else ""
        )


class Clone:
    """A fresh clone with an environment of its own.

    Args:
        folder: where to put both; what lies there already is used again.
        is_working_tree: take the files as they lie in the working tree, rather than those of the last commit.
    """

    def __init__(self, folder: Path, is_working_tree: bool = False) -> None:
        self.folder, self.path, self.home = folder, folder / "clone", folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.path)], check=True)
        if is_working_tree:
            self._take_over()
        if not (folder / "python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder / "python")], check=True)

    def _take_over(self) -> None:
        listed = subprocess.run(["git", "ls-files", "-z", "-m", "-o", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (self.path / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(ROOT / name, self.path / name)
            else:
                (self.path / name).unlink(missing_ok=True)

    def environment(self, is_activated: bool) -> dict[str, str]:
        """Return the environment of a command: the clone's own virtual environment comes first on the path where a command leaves out `uv run`."""
        places = [self.path / ".venv/bin"] * is_activated + [self.folder / "python/bin", Path("/usr/local/bin"), Path("/usr/bin"), Path("/bin")]
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        return {"PATH": ":".join(map(str, places)), "HOME": str(self.home), "LANG": "C.UTF-8", "TERM": "dumb", **passed}

    def run(self, command: Command, output: Path, limit: float, is_quick: bool = False) -> Outcome:
        """Run a command in the clone's folder, and stop it gently at the limit in seconds; `output` is the file to write what it prints into."""
        text, script = command.text, self.path / "of_readme.py"
        if command.kind == "python":
            script.write_text(whole(command), encoding="utf-8")
            text = f"uv run python {script.name}"
        elif is_quick:
            text = re.sub(r"(cli\.py reproduce\b(?: \w+)?)", r"\1 --quick", text)
        environment = self.environment(command.kind == "inline" and not text.startswith("uv"))
        code, seconds = execute(text, self.path, environment, output, limit)
        script.unlink(missing_ok=True)  # the repository's checks are commands too
        return judge(command, code, seconds, output.read_text(encoding="utf-8", errors="replace"))


def execute(text: str, folder: Path, environment: dict[str, str], output: Path, limit: float) -> tuple[int | None, float]:
    """Run a line of a shell; returns its exit code, None where it was stopped at the limit, and the seconds that it took.

    Args:
        text: the line.
        folder: where it runs.
        environment: all variables that it sees.
        output: the file to write what it prints into.
        limit: seconds after which it, and all that it started, is asked to end.
    """
    began = time.monotonic()
    with output.open("w", encoding="utf-8") as file:
        file.write(f"$ {text}\n")
        file.flush()
        kept = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        process = subprocess.Popen(["bash", "-c", text], cwd=folder, env=environment, start_new_session=True, **kept)
        try:
            return process.wait(limit), time.monotonic() - began
        except subprocess.TimeoutExpired:
            return None, time.monotonic() - began
        finally:
            stop(process)


def stop(process: subprocess.Popen) -> None:
    """Ask a command and all that it started to end, and end what has not after a minute."""
    for number, seconds in ((signal.SIGTERM, PATIENCE), (signal.SIGKILL, 5.0)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.2)


def judge(command: Command, code: int | None, seconds: float, output: str) -> Outcome:
    """Say what became of a command by its exit code (None: it was stopped at the limit) and what it printed."""
    lines = [line.strip() for part in output.splitlines()[1:] if (line := re.split(r"[\r\x1b]", part)[-1]).strip()] or ["(nothing was printed)"]
    errors = [line for line in lines if re.match(r"(\w+Error\b|error:|lightning \w+: error:|Traceback \(most)", line)]
    if errors or (code is not None and code not in allowed_codes(command)):
        return Outcome(command, "failed", seconds, code, (errors or lines)[-1])
    return Outcome(command, "runs" if code is None else "ok", seconds, code, lines[-1])


def run_all(commands: Sequence[Command], clone: Clone, results: Path, limit: float, is_quick: bool) -> list[Outcome]:
    """Run commands in order, draw what they take beforehand, and write each outcome down as it comes."""
    from readme_inputs.drawn import Drawer

    drawer, outcomes = Drawer(clone.path), []
    for number, command in enumerate(commands):
        reason = reason_to_leave_out(command, is_quick) or drawer.prepare(command)
        output = results / f"{number:03d}-{command.part}-{command.line}.txt"
        outcomes.append(Outcome(command, "left out", last=reason) if reason else clone.run(command, output, limit, is_quick))
        print(outcomes[-1].line(), flush=True)
        (results / "readmes.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1), encoding="utf-8")
    return outcomes


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return a table of states by project, and what failed."""
    states = ("ok", "runs", "failed", "left out")
    rows = [["part", *states]]
    for part in dict.fromkeys(outcome.command.part for outcome in outcomes):
        rows.append([part, *(str(sum(o.state == state and o.command.part == part for o in outcomes)) for state in states)])
    lines = ["".join(f"{cell:<14}" for cell in row) for row in rows]
    return "\n".join(
        [*lines, *(f"FAILED {o.command.file}:{o.command.line}: {o.command.short}\n       {o.last}" for o in outcomes if o.state == "failed")]
    )


def choose(commands: Sequence[Command], options: argparse.Namespace) -> list[Command]:
    """Return the commands that the options ask for."""
    chosen = [command for command in commands if not options.only or command.part in options.only]
    chosen = [command for command in chosen if not options.kinds or command.kind in options.kinds]
    return [command for command in chosen if not options.lines or command.line in options.lines]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or list the commands; returns 1 if one of them failed."""
    parser = argparse.ArgumentParser("readmes.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="PROJECT", help="parts to run: names of projects, root, contributing")
    parser.add_argument(
        "--kinds", nargs="+", choices=("bash", "python", "inline"), help="commands of blocks, Python, commands in running text and tables"
    )
    parser.add_argument("--lines", nargs="+", type=int, metavar="N", help="only the commands that begin at these lines")
    parser.add_argument("--list", action="store_true", help="print the commands, and run nothing")
    parser.add_argument("--limit", type=float, default=600.0, metavar="SECONDS", help="time of a command, after which it is stopped (600)")
    parser.add_argument("--quick", action="store_true", help="add --quick to reproduce, and leave out suites and benchmarks")
    parser.add_argument("--here", action="store_true", help="take the files of the working tree rather than the last commit")
    parser.add_argument("--folder", type=Path, help="keep clone, environment and results there, and use again what lies there")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a command in progress is stopped with this script
    if options.list:
        for command in choose(all_commands(), options):
            reason = reason_to_leave_out(command, options.quick)
            print(f"{command.file}:{command.line}: {command.short}" + (f"    [left out: {reason}]" if reason else ""))
        return 0
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="readmes-"))).resolve()
    results = folder / "results" / "-".join(options.only or ["all"])
    results.mkdir(parents=True, exist_ok=True)
    print(f"clone and results: {folder}", flush=True)
    clone = Clone(folder, options.here)
    installed = clone.run(Command("root", "README.md", 7, "pip install uv && uv run lightning list"), results / "installation.txt", 3600.0)
    print(installed.line(), flush=True)
    if installed.state != "ok":
        return 1
    outcomes = run_all(choose(all_commands(clone.path), options), clone, results, options.limit, options.quick)
    print("\n" + summary(outcomes))
    return int(any(outcome.state == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
