"""The import rules of the house, read off the syntax trees."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECTS = sorted(path.parent.name for path in (ROOT / "projects").glob("*/cli.py"))
SHARED = sorted((ROOT / "shared").rglob("*.py"))
OURS = SHARED + sorted((ROOT / "projects").rglob("*.py"))


def imported(file, top_level_only=False):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    nodes = tree.body if top_level_only else [node for node in ast.walk(tree) if id(node) not in typing_only]
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names.add(node.module)
    return names


@pytest.mark.parametrize("file", SHARED, ids=lambda file: str(file.relative_to(ROOT)))
def test_shared_never_imports_a_project(file):
    assert not {name for name in imported(file) if name.split(".")[0] == "projects"}


@pytest.mark.parametrize("project", PROJECTS)
def test_a_project_imports_only_shared_and_itself(project):
    for file in (ROOT / "projects" / project).rglob("*.py"):
        foreign = {name for name in imported(file) if name.split(".")[0] == "projects" and name.split(".")[1] != project}
        assert not foreign, f"{file} imports {foreign}"


@pytest.mark.parametrize("project", PROJECTS)
def test_no_file_of_a_project_shadows_the_standard_library(project):
    names = {path.stem for path in (ROOT / "projects" / project).iterdir()}
    assert not names & set(sys.stdlib_module_names)


@pytest.mark.parametrize("project", PROJECTS)
def test_networks_and_losses_know_nothing_of_lightning(project):
    for name in ("model.py", "losses.py", "schedule.py", "sampling.py", "triggers.py"):
        file = ROOT / "projects" / project / name
        if file.is_file():
            assert not {module for module in imported(file) if module.split(".")[0] == "lightning"}


def test_each_service_stands_behind_one_door():
    doors = {
        "wandb": {"shared/loggers.py", "shared/dashboards.py"},
        "wandb_workspaces": {"shared/dashboards.py"},
        "opacus": {"shared/privacy"},
        "omegaconf": {"shared/doctor.py"},
    }
    for file in OURS:
        for name in imported(file):
            allowed = doors.get(name.split(".")[0])
            place = file.relative_to(ROOT).as_posix()
            assert allowed is None or any(place.startswith(door) for door in allowed), f"{place} imports {name}"


def test_light_modules_stay_light():
    for name in ("launch/__init__.py", "launch/planning.py", "launch/projects.py", "runs.py", "wandb_key.py", "report/__init__.py"):
        heavy = {
            module
            for module in imported(ROOT / "shared" / name, top_level_only=True)
            if module.split(".")[0] in {"torch", "lightning", "wandb", "matplotlib"}
        }
        assert not heavy, f"{name} imports {heavy}"
