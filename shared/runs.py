"""The run folder: where everything that a command makes lies, and what made it.

runs/<project>/<run>/
config.yaml      settings, written once, readable by every verb
manifest.json    versions, commit, device, seed and the stages that were run
checkpoints/     best.ckpt, last.ckpt
<verb>/          metrics.csv
artefacts/<verb>/...
report.html  wandb/
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
INTERRUPTED = (130, 143)
"""Exit codes after Ctrl-C and SIGTERM."""
LIBRARIES = ("touchstone", "lightning", "torch", "torchmetrics", "diffusers", "timm", "wandb")


def runs_root() -> Path:
    """Return the folder of all runs: `$TOUCHSTONE_RUNS`, else `runs/` of the checkout, else `runs/` of the current folder."""
    if named := os.environ.get("TOUCHSTONE_RUNS"):
        return Path(named).expanduser().resolve()
    return (REPOSITORY if (REPOSITORY / "pyproject.toml").is_file() else Path.cwd()) / "runs"


def check_run_name(name: str) -> str:
    """Return `name` if it can be a folder's name.

    Raises:
        ValueError: if it is empty, `latest`, starts with a dot or holds a character that is not a letter, digit, `.`, `_` or `-`.
    """
    if not name or name == "latest" or name.startswith(".") or not all(c.isalnum() or c in "._-" for c in name):
        raise ValueError(f"run name {name!r} will not do: use letters, digits, '.', '_' and '-' (and not 'latest', which points to the newest run)")
    return name


@contextlib.contextmanager
def atomic(path: Path | str, private: bool = False) -> Iterator[Path]:
    """Give a temporary path beside `path`; what is written there takes the place of `path` at the end, or disappears if writing fails.

    The temporary path keeps the suffix of `path`, and may be made a file or a folder. A private file is for its owner alone to read, others are for
    whom the user's umask lets, however the library that wrote them left them.

    Raises:
        OSError: with a message that names `path`, if the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    remove(temporary)
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            remove(path)
        _give_rights(temporary, private)
        temporary.replace(path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "free some space there, then run the command again; training goes on with --resume"
            raise OSError(error.errno, f"no room left to write {path}: {advice}") from error
        raise
    finally:
        remove(temporary)


def _give_rights(path: Path, private: bool) -> None:
    mask = os.umask(0)
    os.umask(mask)
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file() and not file.is_symlink():
            file.chmod(0o600 if private else file.stat().st_mode | (0o666 & ~mask))


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    import shutil

    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def claim_folder(folder: Path | str, mark: str, source: Path | str | None = None) -> Path:
    """Check, before any work, that a result may be written as the folder that a user named: nothing else may be lost by it.

    Args:
        folder: the folder; it may be absent, empty, or an earlier result.
        mark: file that tells an earlier result, which is replaced.
        source: folder that the result is made from.

    Returns:
        The folder's absolute path.

    Raises:
        ValueError: if the folder is, holds or lies in `source`, is a file, or holds something else than an earlier result.
        OSError: if it cannot be written.
    """
    path = Path(folder).expanduser().resolve()
    origin = None if source is None else Path(source).expanduser().resolve()
    if origin is not None and (path == origin or path in origin.parents or origin in path.parents):
        raise ValueError(f"{folder} is, holds or lies in the folder that is read ({source}): name another one")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    if path.is_dir() and any(path.iterdir()) and not (path / mark).is_file():
        raise ValueError(f"{folder} is not empty and no earlier result (it has no {mark}), so it is not replaced: name another folder")
    check_writable(path.parent, "choose another folder")
    return path


def check_writable(folder: Path, advice: str) -> None:
    """Make a folder, if need be, and see that files can be written there.

    Raises:
        OSError: if not, with the advice.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise OSError(f"cannot write into {folder} ({error.strerror}): {advice}") from error


def write_text(path: Path | str, text: str) -> None:
    """Write a text file in one piece or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON in one piece or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def digest(path: Path) -> str:
    """Return the first 16 hexadecimal digits of the SHA-256 of a file, or of a folder's files and their names."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    parts = [f"{file.relative_to(path).as_posix()}={digest(file)}" for file in sorted(path.rglob("*")) if file.is_file()]
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def git_commit() -> str | None:
    """Return the checkout's commit, with `+changes` if files differ from it; None outside a checkout or without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--abbrev=12", "--exclude=*"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that numbers depend on."""
    found = {"python": sys.version.split()[0]}
    for library in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[library] = metadata.version(library)
    return found


@dataclass(frozen=True)
class Run:
    """One run folder."""

    path: Path

    @property
    def project(self) -> str:
        """Name of the project that the run belongs to."""
        return self.path.parent.name

    @property
    def name(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """Settings of the run."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """Folder of best.ckpt and last.ckpt."""
        return self.path / "checkpoints"

    def artefacts(self, verb: str) -> Path:
        """Folder of what `verb` makes."""
        return self.path / "artefacts" / verb

    def manifest(self) -> dict[str, Any]:
        """Read manifest.json; an empty manifest if there is none yet."""
        file = self.path / "manifest.json"
        if not file.is_file():
            return {"project": self.project, "run": self.name, "stages": []}
        return json.loads(file.read_text(encoding="utf-8"))

    def checkpoint(self, which: str) -> Path:
        """Resolve `best`, `last` or a path to a checkpoint file.

        Raises:
            FileNotFoundError: if there is no such file; the message lists what there is.
        """
        path = self.checkpoints / f"{which}.ckpt" if which in ("best", "last") else Path(which).expanduser()
        if not path.is_file():
            there = ", ".join(sorted(file.name for file in self.checkpoints.glob("*.ckpt")))
            mend = f"has {there}; give --ckpt_path best, last or a file" if there else "has none: run fit first, or give --ckpt_path a file"
            raise FileNotFoundError(f"no checkpoint {path}: the run {self.project}/{self.name} {mend}")
        return path

    def discard_if_empty(self, latest: str | None) -> None:
        """Remove the folder if nothing but its description is in it, and let `latest` point to the run named `latest` again."""
        kept = [path for path in self.path.rglob("*") if path.is_file() and path.name not in ("config.yaml", "hparams.yaml", "manifest.json")]
        if kept:
            return
        remove(self.path)
        pointer = self.path.parent / "latest"
        if latest is not None:
            write_text(pointer, latest)
        elif pointer.is_file() and pointer.read_text(encoding="utf-8").strip() == self.name:
            pointer.unlink()

    def is_done(self, verb: str, fingerprint: str) -> bool:
        """Say whether `verb`, when it last ran, came to its end on the same settings and inputs, and what it made is still there."""
        *_, last = [stage for stage in self.manifest()["stages"] if stage["verb"] == verb] or [None]
        is_same = last is not None and (last["status"], last.get("fingerprint")) == ("done", fingerprint)
        return is_same and all((self.path / output).exists() for output in last["outputs"])

    @contextlib.contextmanager
    def stage(
        self, verb: str, command: Sequence[str], device: str, seed: int | None, inputs: dict[str, Path] | None = None, latest: bool = False
    ) -> Iterator[dict[str, Any]]:
        """Record in manifest.json that `verb` runs, how it ends, what it read and made, and how long it took.

        Args:
            verb: name of the stage.
            command: script and arguments.
            device: what it runs on.
            seed: the run's seed.
            inputs: files or folders that the stage reads; their hashes are recorded.
            latest: let `latest` of the project point to this run.

        Yields:
            The stage's record; put numbers worth a headline into its `summary`.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        if latest:
            write_text(self.path.parent / "latest", self.name + "\n")
        record: dict[str, Any] = {
            "verb": verb,
            "status": "running",
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": shlex.join(["lightning", "run", *[_relative(part) for part in command]]),
            "inputs": {name: digest(path) for name, path in (inputs or {}).items()},
            "summary": {},
        }
        about = {"commit": git_commit(), "device": device, "seed": seed, "versions": versions()}
        self._record(record, about)
        start, before = time.monotonic(), time.time()
        try:
            yield record
            record["status"] = "done"
        except KeyboardInterrupt:
            record["status"] = "interrupted"
            raise
        except BaseException as error:
            record["status"] = "interrupted" if getattr(error, "code", None) in INTERRUPTED else "failed"
            raise
        finally:
            record["seconds"] = round(time.monotonic() - start, 1)
            record["outputs"] = self._changed_since(before, verb)
            self._record(record, about)

    def _changed_since(self, moment: float, verb: str) -> list[str]:
        folders = (self.checkpoints, self.path / verb, self.artefacts(verb), self.path / "pipeline")
        files = (file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file())
        return [file.relative_to(self.path).as_posix() for file in files if file.stat().st_mtime >= moment - 1]

    def _record(self, stage: dict[str, Any], about: dict[str, Any]) -> None:
        manifest = self.manifest()
        manifest.setdefault("created", stage["started"])
        same = [i for i, other in enumerate(manifest["stages"]) if (other["verb"], other["started"]) == (stage["verb"], stage["started"])]
        manifest["stages"] = [other for i, other in enumerate(manifest["stages"]) if i not in same] + [stage]
        write_json(self.path / "manifest.json", manifest | about)


def _relative(argument: str) -> str:
    """Shorten paths inside the checkout, so that a recorded command works in any checkout."""
    path = Path(argument)
    return path.relative_to(REPOSITORY).as_posix() if path.is_absolute() and path.is_relative_to(REPOSITORY) else argument


def new_run(project: str, name: str | None = None, stamp: str | None = None) -> Run:
    """Choose the folder of a new run, without making it: `name`, or the time in UTC with a counter if two begin in one second."""
    if name:
        return Run(runs_root() / project / check_run_name(name))
    stamp = stamp or datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder, candidate, count = runs_root() / project, stamp, 2
    while (folder / candidate).exists():
        candidate, count = f"{stamp}-{count}", count + 1
    return Run(folder / candidate)


def find_run(project: str, name: str | None = None) -> Run:
    """Find a project's run by its name, or its latest run.

    Raises:
        FileNotFoundError: if there is none; the message says how to make one and which there are.
    """
    folder = runs_root() / project
    if name is None or name == "latest":
        pointer = folder / "latest"
        name = pointer.read_text(encoding="utf-8").strip() if pointer.is_file() else None
        if name is None or not (folder / name).is_dir():
            raise FileNotFoundError(
                f"{project} has no run in {folder} yet: make one with `lightning run projects/{project}/cli.py fit`, or name one with --run"
            )
    elif not (folder / check_run_name(name)).is_dir():
        others = ", ".join(sorted(path.name for path in folder.glob("*/"))[-8:]) or "none"
        raise FileNotFoundError(f"{project} has no run {name!r} in {folder}; its runs: {others}")
    return Run(folder / name)


def resolve_run(text: str) -> Path:
    """Resolve what a user calls a run: a folder, `project/run`, or `project` for its latest run.

    Raises:
        FileNotFoundError: if it is none of these.
    """
    if (Path(text) / "manifest.json").is_file():
        return Path(text).resolve()
    project, _, name = text.strip("/").partition("/")
    if not (runs_root() / project).is_dir():
        raise FileNotFoundError(f"no run {text!r}: give a run folder, project/run or a project with runs in {runs_root()}")
    return find_run(project, name or None).path
