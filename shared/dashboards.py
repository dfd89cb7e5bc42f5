"""A project's `dashboard.yaml` as a W&B workspace: read, checked, and sent to the server or printed."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shared.wandb_key import wandb_key_source

KINDS = {
    "line": "curves over training steps",
    "scalar": "the last value of one metric",
    "bar": "last values as bars",
    "image": "pictures",
    "table": "one table",
}
SINGLE = ("scalar", "table")
STEP = "trainer/global_step"  # the axis that Lightning's WandbLogger writes beside every metric


@dataclass(frozen=True)
class Panel:
    """One picture of a dashboard."""

    kind: str
    metrics: tuple[str, ...]
    title: str | None = None
    x: str = STEP
    """Metric on the horizontal axis of a line."""


@dataclass(frozen=True)
class Section:
    """A named group of panels."""

    name: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Dashboard:
    """What a project shows on W&B."""

    project: str
    description: str
    sections: tuple[Section, ...]

    @property
    def metrics(self) -> set[str]:
        """Names that the project has to log for its panels to show something."""
        return {metric for section in self.sections for panel in section.panels for metric in panel.metrics}


def validate(spec_path: Path) -> Dashboard:
    """Read a `dashboard.yaml` and check it.

    Args:
        spec_path: the file; its folder bears the project's name.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not as it should be; the message names the file and the key.
    """
    if not spec_path.is_file():
        raise FileNotFoundError(f"no dashboard {spec_path}: write one with the keys project, description and sections")
    try:
        content = yaml.safe_load(spec_path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{spec_path} is not YAML: {error}") from error
    spec = _Node(spec_path, "", content).mapping(required=("project", "sections"), optional=("description",))
    project = spec["project"].text()
    expected = f"touchstone-{spec_path.resolve().parent.name}"
    if project != expected:
        raise spec["project"].error(f"is {project!r}, but the project logs to {expected!r}")
    description = spec["description"].text() if "description" in spec else ""
    return Dashboard(project, description, tuple(_section(node) for node in spec["sections"].items()))


def _section(node: _Node) -> Section:
    spec = node.mapping(required=("name", "panels"))
    return Section(spec["name"].text(), tuple(_panel(panel) for panel in spec["panels"].items()))


def _panel(node: _Node) -> Panel:
    spec = node.mapping(required=("kind", "metrics"), optional=("title", "x"))
    kind = spec["kind"].text()
    if kind not in KINDS:
        raise spec["kind"].error(f"is {kind!r}; use one of {', '.join(KINDS)}")
    metrics = tuple(metric.text() for metric in spec["metrics"].items())
    if kind in SINGLE and len(metrics) > 1:
        raise spec["metrics"].error(f"has {len(metrics)} names, but a {kind} shows one: make a panel of each")
    if "x" in spec and kind != "line":
        raise spec["x"].error(f"belongs to a line, not to kind {kind}")
    if "title" in spec and kind == "table":
        raise spec["title"].error("cannot be shown: W&B heads a table with its metric's name")
    return Panel(kind, metrics, spec["title"].text() if "title" in spec else None, spec["x"].text() if "x" in spec else STEP)


@dataclass(frozen=True)
class _Node:
    """A value of the file and the key it stands at, for messages."""

    file: Path
    key: str
    value: Any

    def error(self, problem: str) -> ValueError:
        return ValueError(f"{self.file}: {self.key or 'the file'} {problem}")

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.error(f"must be text, got {self.value!r}")
        return self.value.strip()

    def items(self) -> list[_Node]:
        if not isinstance(self.value, list) or not self.value:
            raise self.error(f"must be a list with at least one entry, got {self.value!r}")
        return [_Node(self.file, f"{self.key}[{index}]", value) for index, value in enumerate(self.value)]

    def mapping(self, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, _Node]:
        known = (*required, *optional)
        if not isinstance(self.value, dict):
            raise self.error(f"must have the keys {', '.join(known)}, got {self.value!r}")
        if missing := [key for key in required if key not in self.value]:
            raise self.error(f"lacks {', '.join(missing)}")
        if unknown := [str(key) for key in self.value if key not in known]:
            raise self.error(f"has {', '.join(unknown)}, which is not known; the keys are {', '.join(known)}")
        return {key: _Node(self.file, f"{self.key}.{key}".lstrip("."), value) for key, value in self.value.items()}


def workspace(dashboard: Dashboard, entity: str = "") -> Any:
    """Build the W&B workspace (`wandb_workspaces.workspaces.Workspace`) without touching the network.

    Args:
        dashboard: what to show; the description stands as text before the first panel.
        entity: W&B user or team; may stay empty for a workspace that is only printed.

    Raises:
        ValueError: if the library is not installed.
    """
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ValueError("wandb-workspaces is not installed: `uv sync --extra dashboards` or `pip install wandb-workspaces`") from error
    sections = [
        workspaces.Section(name=section.name, panels=[_draw(panel) for panel in section.panels], is_open=True) for section in dashboard.sections
    ]
    if dashboard.description:
        sections[0].panels = [panels.MarkdownPanel(markdown=dashboard.description), *sections[0].panels]
    return workspaces.Workspace(entity=entity, project=dashboard.project, name=dashboard.project, sections=sections)


def _draw(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as panels

    match panel.kind:
        case "line":
            return panels.LinePlot(title=panel.title, x=panel.x, y=list(panel.metrics))
        case "bar":
            return panels.BarPlot(title=panel.title, metrics=list(panel.metrics))
        case "scalar":
            return panels.ScalarChart(title=panel.title, metric=panel.metrics[0])
        case "image":
            return panels.MediaBrowser(title=panel.title, media_keys=list(panel.metrics))
        case _:
            return panels.WeavePanelSummaryTable(table_name=panel.metrics[0])


def as_json(workspace: Any) -> str:
    """Return what would be sent to the server, as indented JSON."""
    model = workspace._to_model()  # the library has no public way to dump a workspace
    return json.dumps(model.model_dump(mode="json", by_alias=True, exclude_none=True), indent=2)


def publish(spec_path: Path, entity: str | None = None, dry_run: bool = False) -> int:
    """Save a project's dashboard on the W&B server, or print it as JSON.

    Args:
        spec_path: the project's `dashboard.yaml`.
        entity: W&B user or team; None takes $WANDB_ENTITY, else the default of the API key.
        dry_run: print only.

    Returns:
        0 if saved or printed as asked; 1 if it could only be printed, with what is missing on standard error.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is wrong, the library is not installed, or the server refuses.
    """
    dashboard = validate(spec_path)
    entity = entity or os.environ.get("WANDB_ENTITY") or ""
    missing = missing_for_saving()
    if dry_run or missing:
        print(as_json(workspace(dashboard, entity)))
        if not dry_run:
            print(f"lightning dashboard: printed, not saved: {missing}", file=sys.stderr)
        return 0 if dry_run else 1
    print(_save(dashboard, entity))
    return 0


def _save(dashboard: Dashboard, entity: str) -> str:
    """Save the workspace and return its address."""
    import wandb

    try:
        view = workspace(dashboard, entity or wandb.Api().default_entity or "")
        view.save()
        return str(view.url)
    except Exception as error:  # wandb and its transport raise many kinds
        hint = "check the API key, --entity, and that the project exists: the first online run makes it"
        raise ValueError(f"W&B did not save {dashboard.project}: {error}\n{hint}") from error


def missing_for_saving() -> str | None:
    """Say what keeps a dashboard from being saved on the server; None if nothing is known to."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        return f"WANDB_MODE is {mode}; unset it"
    if wandb_key_source() is None:
        return "there is no W&B API key; set WANDB_API_KEY or run `wandb login`"
    return None
