"""The commands that READMEs tell their readers to run, taken out of the Markdown text as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\s*$")
INLINE = re.compile(r"`((?:uv run|uv sync|pip install|lightning \w+|python -m) ?[^`]*)`")
PROJECT = re.compile(r"projects/(\w+)/cli\.py")
JOINTS = {"&&", "||", ";", "|", "&", ";;"}
KINDS = ("bash", "python", "inline")
KEYWORDS = {"for", "do", "done", "while", "if", "then", "fi"}


@dataclass(frozen=True)
class Command:
    """A command of a README.

    Args:
        part: the project that it belongs to, or `root` or `contributing`.
        file: the README, from the repository's root.
        line: where it begins there, from 1.
        text: the command as written, with its comment; of a Python block, the block.
        kind: `bash` of a block of commands, `inline` of a running text or table, `python` of a block of Python.
    """

    part: str
    file: str
    line: int
    text: str
    kind: str = "bash"

    @property
    def short(self) -> str:
        """The command in one line without its comment; of Python, where it stands."""
        if self.kind == "python":
            return f"the Python of {self.file}:{self.line}"
        return re.sub(r"\s+", " ", without_comment(self.text))

    @property
    def plain(self) -> str:
        """What two ways of writing the same command have in common."""
        return self.short.removeprefix("uv run ").removesuffix(" --write")


def readmes(root: Path = ROOT) -> list[Path]:
    """Return the files with commands: the repository's own, then those of projects and tests."""
    return [root / "README.md", root / "CONTRIBUTING.md", *sorted(root.glob("projects/*/README.md")), *sorted(root.glob("tests/*/README.md"))]


def all_commands(root: Path = ROOT) -> list[Command]:
    """Return the commands of all READMEs in the order in which they are to run.

    Those in blocks come first; then, as they need what the blocks left behind, Python, and what running text and tables name beside them.
    """
    found = [command for file in readmes(root) for command in commands_of(file.read_text(encoding="utf-8"), str(file.relative_to(root)))]
    parts = list(dict.fromkeys(command.part for command in found))
    ordered = sorted(found, key=lambda command: (parts.index(command.part), KINDS.index(command.kind)))
    kept, known = [], set()
    for command in ordered:
        if command.kind != "inline" or command.plain not in known:
            kept.append(command)
        known.add(command.plain)
    return kept


def commands_of(text: str, file: str) -> Iterator[Command]:
    """Yield the commands of a README in order.

    Args:
        text: the README.
        file: where it lies, from the repository's root: `projects/NAME/README.md` belongs to a project.
    """
    own = Path(file).parent.name or Path(file).stem.lower()
    part = "root" if own == "readme" else own
    lines, number = text.splitlines(), 0
    while number < len(lines):
        if fence := FENCE.match(lines[number]):
            end = next((n for n in range(number + 1, len(lines)) if lines[n].startswith("```")), len(lines))
            block, first = lines[number + 1 : end], number + 2
            if fence[1] == "bash" and not block[0].startswith("#!"):  # else it is a file
                yield from (Command(part, file, first + line, statement) for line, statement in statements(block))
            elif fence[1] == "python" and not block[0].startswith("# file:"):  # files of CONTRIBUTING.md have a test of their own
                yield Command(part, file, first, "\n".join(block), "python")
            number = end
        else:
            for inline in INLINE.findall(lines[number]):
                named = PROJECT.search(inline)
                yield Command(named[1] if named else part, file, number + 1, inline.strip(), "inline")
        number += 1


def statements(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the statements of a block with the line on which each begins; what is left in the background goes with what follows it in the block."""
    pending, begin = "", 0
    for number, line in enumerate(lines):
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begin = begin if pending else number
        pending += ("\n" if pending else "") + line
        if is_complete(pending) and not (without_comment(pending).endswith("&") and number + 1 < len(lines)):
            yield begin, pending.strip()
            pending = ""
    if pending:
        yield begin, pending.strip()


def is_complete(text: str) -> bool:
    """Say whether a shell would run a text, rather than wait for a further line."""
    try:
        shlex.split(text, comments=True)
    except ValueError:  # a quotation that is still open
        return False
    return not text.rstrip().endswith("\\")


def without_comment(text: str) -> str:
    """Return a statement without the comment at its end."""
    cut = next((match.start() for match in re.finditer(r"\s#", text) if is_complete(text[: match.start()])), len(text))
    return text[:cut].strip()


def simple_commands(text: str) -> list[list[str]]:
    """Return the words of each simple command of a statement: what stands between `&&`, `;`, `|`, `&`, and without `for`, `do`, `done`."""
    reader = shlex.shlex(text.replace("\\\n", " "), posix=True, punctuation_chars=";&|")
    reader.whitespace_split = True
    found: list[list[str]] = [[]]
    for word in reader:
        if word in JOINTS or (word in KEYWORDS and not found[-1]):
            found.append([])
        else:
            found[-1].append(word)
    return [words for words in found if words]


def project_calls(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the project and the arguments of each `lightning run projects/NAME/cli.py ARGUMENTS` of a statement."""
    for words in simple_commands(text):
        for position, word in enumerate(words):
            if (named := PROJECT.fullmatch(word)) and "run" in words[:position]:
                yield named[1], words[position + 1 :]
