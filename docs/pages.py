"""The pages of the documentation site: READMEs, pictures and docstrings of the repository, under the addresses that they have in it.

MkDocs calls `on_config` and `on_files` (see `hooks` in mkdocs.yml); nothing is copied into `docs/`, and no project is imported.
A file keeps its path, so that links between READMEs and to pictures hold as they are written.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

REPOSITORY = Path(__file__).resolve().parent.parent
ROOT_PAGES = {"Start": "README.md", "Benchmarks": "tests/bench/RESULTS.md", "Contributing": "CONTRIBUTING.md", "Changes": "CHANGELOG.md"}
CORE = ("module", "model", "losses", "data", "tasks")  # the files that every project has, as far as it has them
LINK = re.compile(r"""\]\(\s*([^)\s]+)[^)]*\)|(?:src|href)=["']([^"']+)["']""")
IMPORT = re.compile(r"^\s*(?:from|import) +projects\.(\w+)\.(\w+)", re.MULTILINE)


def projects(root: Path = REPOSITORY) -> list[str]:
    """Name the projects: folders under `root/projects` with a README."""
    return sorted(readme.parent.name for readme in root.glob("projects/*/README.md"))


def pages(root: Path = REPOSITORY) -> dict[str, Path | str]:
    """Gather what the site holds.

    Args:
        root: the repository.

    Returns:
        By address in the site, relative to its top: a file of the repository, or the text of a page that lists docstrings.

    Raises:
        FileNotFoundError: if a page links to a file that is not there.
    """
    names = projects(root)
    readmes = [*ROOT_PAGES.values(), *(f"projects/{name}/README.md" for name in names)]
    found: dict[str, Path | str] = {readme: root / readme for readme in readmes}
    for readme in readmes:
        found |= linked_files(root, readme)
    found |= {f"api/{name}.md": api_page(name, modules(root, name)) for name in names}
    return found | {f"api/shared/{name}.md": api_page(f"shared.{name}", listed) for name, listed in shared_modules(root).items()}


def linked_files(root: Path, page: str) -> dict[str, Path]:
    """Return the files of the repository that a page shows or links to, by their path in it; pages themselves are left out.

    Raises:
        FileNotFoundError: if one is not there, or lies outside the repository.
    """
    found: dict[str, Path] = {}
    for match in LINK.finditer(without_code((root / page).read_text(encoding="utf-8"))):
        target = (match[1] or match[2]).partition("#")[0]
        if not target or "://" in target or target.startswith("mailto:"):
            continue
        file = (root / page).parent.joinpath(target).resolve()
        if not file.is_relative_to(root.resolve()) or not file.is_file():
            raise FileNotFoundError(f"{page} links to {target}, and there is no such file: mend the link")
        if file.suffix != ".md":
            found[file.relative_to(root.resolve()).as_posix()] = file
    return found


def without_code(text: str) -> str:
    """Blank out fenced blocks and code between backticks, in which brackets are no links."""
    return re.sub(r"^ *```.*?^ *```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)


def modules(root: Path, project: str) -> list[str]:
    """Name the modules whose docstrings a project's page lists: the files of every project, then those that its README's examples import."""
    folder = root / "projects" / project
    shown = [module for owner, module in IMPORT.findall((folder / "README.md").read_text(encoding="utf-8")) if owner == project]
    names = dict.fromkeys([*CORE, *sorted(shown)])
    return [f"projects.{project}.{name}" for name in names if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file()]


def shared_modules(root: Path) -> dict[str, list[str]]:
    """Name the modules of `shared` that have a docstring, by the package or module directly below it."""
    found: dict[str, list[str]] = {}
    for file in sorted(root.glob("shared/**/*.py")):
        *folders, name = file.relative_to(root / "shared").with_suffix("").parts
        parts = folders if name == "__init__" else [*folders, name]
        if parts and name != "__main__" and ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))):
            found.setdefault(parts[0], []).append(".".join(["shared", *parts]))
    return found


def api_page(title: str, names: list[str]) -> str:
    """Write the page that mkdocstrings fills with the docstrings of modules."""
    return "\n\n".join([f"# {title}: Python", *(f"::: {name}" for name in names)]) + "\n"


def navigation(root: Path = REPOSITORY) -> list[dict[str, Any]]:
    """Return the site's navigation in the form of mkdocs.yml."""
    names = projects(root)
    start, *others = ({title: page} for title, page in ROOT_PAGES.items())
    return [
        start,
        {"Projects": [{name: f"projects/{name}/README.md"} for name in names]},
        {"Python": [*({name: f"api/{name}.md"} for name in names), {"shared": [{name: f"api/shared/{name}.md"} for name in shared_modules(root)]}]},
        *others,
    ]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Set the navigation."""
    config.nav = navigation()
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages to what lies in `docs/`."""
    from mkdocs.structure.files import File

    for address, source in pages().items():
        where = {"content": source} if isinstance(source, str) else {"abs_src_path": str(source)}
        files.append(File.generated(config, address, **where))
    return files
