"""What every project owes, checked over all of them."""

import re
from pathlib import Path

import pytest
import yaml

from shared.dashboards import validate
from shared.launch.projects import find_projects

ROOT = Path(__file__).parent.parent
HEADINGS = ["Commands", "Data", "Results", "Speed", "How it differs from the paper", "Limits"]
PROJECTS = sorted(path.parent for path in (ROOT / "projects").glob("*/cli.py"))


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_a_project_is_complete(project):
    for name in ("README.md", "module.py", "data.py", "configs/tiny.yaml", "configs/paper.yaml", "dashboard.yaml"):
        assert (project / name).is_file(), f"{project.name} lacks {name}"
    assert len((project / "cli.py").read_text().splitlines()) <= 240


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_readmes_have_one_shape(project):
    text = (project / "README.md").read_text()
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)  # code has comments that look like headings
    headings = re.findall(r"^(#+) (.+)$", text, flags=re.MULTILINE)
    assert headings[0] == ("#", project.name)
    assert [title for level, title in headings[1:] if level != "###"] == HEADINGS
    if ("###", "Beside published figures") in headings:
        assert headings.index(("###", "Beside published figures")) == headings.index(("##", "Speed")) - 1


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_configurations_open_with_their_command(project):
    for file in (project / "configs").glob("*.yaml"):
        text = file.read_text()
        assert text.startswith(f"# lightning run projects/{project.name}/cli.py "), file
        assert yaml.safe_load(text).keys() <= {"seed_everything", "trainer", "model", "data"}, file


@pytest.mark.parametrize("project", PROJECTS, ids=lambda path: path.name)
def test_the_dashboard_is_valid(project):
    assert validate(project / "dashboard.yaml").metrics


def test_projects_are_listed_with_their_verbs():
    listed = {project.name: project.verbs for project in find_projects()}
    assert set(listed) == {project.name for project in PROJECTS}
    assert {"fit", "test", "predict", "reproduce"} <= set(listed["diff_cleanse"])
