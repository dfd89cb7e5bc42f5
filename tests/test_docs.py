"""The documentation site's pages, gathered without MkDocs: `docs/pages.py` imports it only where MkDocs calls it."""

import ast
import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("docs_pages", ROOT / "docs" / "pages.py")
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)


@pytest.fixture(scope="module")
def gathered():
    return site.pages(ROOT)


def leaves(entry):
    if isinstance(entry, str):
        return [entry]
    return [leaf for part in (entry.values() if isinstance(entry, dict) else entry) for leaf in leaves(part)]


def test_every_project_has_a_page_with_its_picture_and_one_of_docstrings(gathered):
    projects = {path.parent.name for path in ROOT.glob("projects/*/cli.py")}
    assert set(site.projects(ROOT)) == projects
    for project in projects:
        assert gathered[f"projects/{project}/README.md"] == ROOT / "projects" / project / "README.md"
        assert any(address.startswith(f"projects/{project}/") and address.endswith(".png") for address in gathered), project
        assert f"::: projects.{project}.module\n" in gathered[f"api/{project}.md"]
        assert f"::: projects.{project}.data\n" in gathered[f"api/{project}.md"]


def test_every_page_is_in_the_navigation_once_and_every_file_is_there(gathered):
    shown = leaves(site.navigation(ROOT))
    assert sorted(shown) == sorted(address for address in gathered if address.endswith(".md"))
    assert all(content.is_file() for content in gathered.values() if isinstance(content, Path))


def test_listed_modules_exist_and_have_a_docstring(gathered):
    listed = [line[4:] for content in gathered.values() if isinstance(content, str) for line in content.splitlines() if line.startswith("::: ")]
    assert len(listed) == len(set(listed)) > 100
    for module in listed:
        path = ROOT.joinpath(*module.split("."))
        file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        assert ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))), f"{module} has no docstring: its page would say nothing"


def test_pictures_of_both_notations_are_taken_and_a_broken_link_is_named(tmp_path):
    folder = tmp_path / "projects" / "demo"
    folder.mkdir(parents=True)
    (folder / "a.png").write_bytes(b"")
    (folder / "b.png").write_bytes(b"")
    page = folder / "README.md"
    page.write_text(
        '![one](a.png "title") <img src="b.png" width="9"> `[not](code.png)` [out](https://example.org/x) [here](#data)\n```\n![](c.png)\n```\n'
    )
    assert set(site.linked_files(tmp_path, "projects/demo/README.md")) == {"projects/demo/a.png", "projects/demo/b.png"}
    page.write_text("![gone](../other/c.png)")
    with pytest.raises(FileNotFoundError, match=r"projects/demo/README.md links to \.\./other/c\.png, and there is no such file: mend the link"):
        site.linked_files(tmp_path, "projects/demo/README.md")


def test_the_site_asks_for_nothing_from_elsewhere():
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert settings["theme"]["font"] is False
    assert not any("//" in str(settings.get(key, "")) for key in ("extra_css", "extra_javascript"))
    assert settings["hooks"] == ["docs/pages.py"]
