"""The verb `inspect`: shows what was learnt, a page for each component, and writes an inspector that judges otherwise."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projects.comad.adjusting import ADJUSTED, adjust, check_target, dropped_changes, judged
from projects.comad.data import InspectionData
from projects.comad.distributions import distributions
from projects.comad.figures import Examples, component_rows, take_examples
from projects.comad.inspector import Inspector
from projects.comad.module import ComponentInspection
from projects.comad.pages import INDEX, Adjusted, Content, write_pages
from shared.loggers import artefact_folder, log_table
from shared.messages import shown_path
from shared.runs import write_json

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

COMMAND = "lightning run projects/comad/cli.py"
_DIFFERENT = 0.05
"""Part of the pixels of example pictures' components beyond which they are other pictures than those that were learnt."""


@dataclass(frozen=True)
class Inspected:
    """What `inspect` returns: a row a component; and if something was changed: what, the file, and what heads the run's page."""

    rows: list[dict[str, Any]]
    compared: list[dict[str, Any]]
    adjusted: Path | None
    summary: dict[str, Any]


def inspect(
    trainer: ProjectTrainer,
    module: ComponentInspection,
    data: InspectionData,
    changes: Sequence[str],
    out: str | None = None,
    inspector: str | None = None,
) -> Inspected:
    """Write pages of what an inspector learnt; with changes, write an adjusted inspector, and its pages.

    Args:
        trainer: the trainer, with its device and run.
        module: the inspector; it judges by the changes afterwards.
        data: the pictures that it was fitted to; those of validation set scales and threshold anew.
        changes: see `Judgement.changed`.
        out: file of the adjusted inspector; None is adjusted.safetensors in the run.
        inspector: file of the inspector, for the commands on the pages; None is that of the run.

    Raises:
        FileNotFoundError, BadFileError: if the pictures are not there, or cannot be read.
        ValueError: if a change does not fit, the file must not be replaced, or the pictures are others.
        OSError: if something cannot be written.
    """
    fitted, target = module.inspector, None
    judgement = judged(fitted, changes)
    if changes:
        target = check_target(Path(out).expanduser() if out else trainer.run.path / ADJUSTED)
    elif out is not None:
        raise ValueError("--out is the file of an adjusted inspector: say by --set what is changed")
    data.prepare_data()
    data.setup()
    examples = check_pictures(fitted, data, take_examples(fitted, data.train_set, trainer.strategy.root_device))
    compared = []
    if target:
        lost = dropped_changes(target, judgement)
        compared = adjust(trainer, module, data, judgement)
        fitted.save(target)
        if lost:
            again = " ".join(f"--set {shlex.quote(change)}" for change in lost)
            print(f"note: {shown_path(target)} was adjusted before, and holds no more: {again} (--inspector begins with an adjusted inspector)")
    source = shown_path(target) if target else inspector
    return _show(trainer, fitted, data, examples, target, compared, f"--inspector {shlex.quote(source)}" if source else f"--run {trainer.run.name}")


def _show(
    trainer: ProjectTrainer,
    inspector: Inspector,
    data: InspectionData,
    examples: Examples,
    target: Path | None,
    compared: list[dict[str, Any]],
    option: str,
) -> Inspected:
    """Write pages and tables, and print the components; `option` names the inspector in commands."""
    folder, rows = artefact_folder(trainer), component_rows(inspector)
    measured = distributions(inspector.metrology, inspector.scorer.training)
    adjusted = Adjusted(shown_path(target), compared, f"{COMMAND} predict PICTURES {option}") if target else None
    write_pages(folder, Content(inspector, data.train_set, examples, measured, adjusted, f"{COMMAND} inspect {option} --set"))
    keep_judgement(folder, inspector)
    tables = {"components": rows, "measures": [one.row for one in measured]} | ({"adjusted": compared} if target else {})
    for name, table in tables.items():
        log_table(trainer, name, table)
    _say(inspector, rows, adjusted, folder)
    return Inspected(rows, compared, target, {"threshold": inspector.threshold, "adjusted": target.name} if target else {})


def check_pictures(inspector: Inspector, data: InspectionData, examples: Examples) -> Examples:
    """Check that data are those that an inspector was fitted to: as many training pictures, and examples whose components are the known ones.

    Raises:
        ValueError: if they are others.
    """
    training, product = inspector.scorer.training, inspector.about.get("product", "its product")
    mend = "give those that it was fitted to by data.source, data.root and data.category, or their settings by --config"
    if len(training) != len(data.train_set):
        raise ValueError(f"the inspector learnt {len(training)} pictures of {product}, and the data are {len(data.train_set)} of {data.name}: {mend}")
    found, known = inspector.metrology.masks(examples.levels).cpu(), training.unpacked(examples.places)
    if int((found ^ known).sum()) > _DIFFERENT * int((found | known).sum()):
        raise ValueError(f"the training pictures of {data.name} are not those of {product} that the inspector learnt: {mend}")
    return examples


def keep_judgement(folder: Path, inspector: Inspector) -> Path:
    """Write the judgement that the pages show as `judgement-<digest>.json`; its name tells judgements apart, and no other one is kept."""
    content = {"threshold": inspector.threshold, "judgement": inspector.judgement.state()}
    for earlier in folder.glob("judgement-*.json"):
        earlier.unlink()
    path = folder / f"judgement-{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:8]}.json"
    write_json(path, content)
    return path


def _say(inspector: Inspector, rows: Sequence[Mapping[str, Any]], adjusted: Adjusted | None, folder: Path) -> None:
    """Print the components, what changed, and where the pages lie."""
    print(f"{len(rows)} components of {inspector.about.get('product', 'the product')}:")
    for row in rows:
        name = f" {row['name']}" if row["name"] else ""
        sizes = f", {row['pieces']} pieces: {row['size classes']}" if row["size classes"] else ""
        print(f"  {row['component']}{name}: weight {row['weight']:g}, {row['area %']:.3g} % of the picture{sizes}")
    if adjusted:
        for change in adjusted.compared:
            print(f"  {change['what']}: {_shown(change['before'])} -> {_shown(change['after'])}")
        print(f"the adjusted inspector: {adjusted.file}\nuse it: {adjusted.command}")
    print(f"pages: {shown_path(folder / INDEX)}", flush=True)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "none"
