"""What can be run: the projects of the repository, read without importing them."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from shared.runs import REPOSITORY

LIGHTNING_VERBS = ("fit", "validate", "test", "predict")


@dataclass(frozen=True)
class Project:
    """A project that can be run."""

    name: str
    title: str
    script: str
    """The project's command line, relative to the repository."""
    verbs: list[str]


def find_projects(root: Path = REPOSITORY) -> list[Project]:
    """List the projects under `root/projects` that have a command line; nothing is imported."""
    return [
        Project(script.parent.name, _title(script.parent), script.relative_to(root).as_posix(), _verbs(script))
        for script in sorted(root.glob("projects/*/cli.py"))
    ]


def _title(folder: Path) -> str:
    """Return the first clause of the README's first paragraph; without README, the package's first line."""
    readme, package = folder / "README.md", folder / "__init__.py"
    if readme.is_file():
        blocks = re.split(r"\n\s*\n", readme.read_text(encoding="utf-8"))
        paragraph = next((block for block in blocks if block.strip()[:1].isalnum()), "")
        return re.split(r"[.:;](?:\s|$)", " ".join(paragraph.split()), maxsplit=1)[0]
    docstring = ast.get_docstring(ast.parse(package.read_text(encoding="utf-8"))) if package.is_file() else None
    return (docstring or "").partition("\n")[0].rstrip(".")


def _verbs(script: Path) -> list[str]:
    """Return Lightning's verbs and the public methods of the script's Trainer class, with those that it has from a Trainer in `shared`."""
    try:
        tree = ast.parse(script.read_text(encoding="utf-8"))
    except SyntaxError:
        return []
    trainers = [node for node in tree.body if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("Trainer") for base in node.bases)]
    methods = [node for trainer in trainers for node in trainer.body if isinstance(node, ast.FunctionDef) and not node.decorator_list]
    bases = {ast.unparse(base) for trainer in trainers for base in trainer.bases} - {"ProjectTrainer"}
    sources = [node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module and bases & {name.name for name in node.names}]
    files = [REPOSITORY.joinpath(*source.split(".")).with_suffix(".py") for source in sources if source.startswith("shared.")]
    inherited = [verb for file in files for verb in _verbs(file)]
    return list(dict.fromkeys([*LIGHTNING_VERBS, *inherited, *(method.name for method in methods if not method.name.startswith("_"))]))


def script_owners() -> list[str]:
    """Return the installed distributions that declare a console script `lightning`; it should be ours alone."""
    return sorted({entry.dist.name if entry.dist else "unknown" for entry in entry_points(group="console_scripts", name="lightning")})
