"""Judging otherwise without fitting anew: changes that fit, what comes of them for good pictures, and their file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from torch import Tensor

from projects.comad import store
from projects.comad.data import InspectionData
from projects.comad.inspector import Inspector
from projects.comad.judgement import Judgement
from projects.comad.learning import Calibration
from projects.comad.module import ComponentInspection
from projects.comad.naming import Rule, check_rules
from projects.comad.recipe import PATCHES

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

ADJUSTED = "adjusted.safetensors"
"""File of a run's adjusted inspector."""
_ALWAYS = 3
"""What is said of a judgement first is said even where it stays as it was."""


def judged(inspector: Inspector, changes: Sequence[str]) -> Judgement:
    """Return the inspector's judgement after changes, each of which is checked against what it learnt; it keeps its own.

    Raises:
        ValueError: if one does not fit, which the message names, or nothing could alarm any more.
    """
    own = changed = inspector.judgement
    for change in changes:
        changed = changed.changed([change])
        try:
            inspector.judged_by(changed)
        except ValueError as error:
            raise ValueError(f"cannot set {change!r}: {error}") from error
        finally:
            inspector.judged_by(own)
    is_silent = not any(changed.weights.get(k, 1.0) for k in inspector.metrology.components)
    if is_silent and (PATCHES not in changed.parts or not changed.background):
        raise ValueError("every weight would be 0, so that nothing could alarm: leave something that counts")
    return changed


def check_target(path: Path) -> Path:
    """Check, before any work, that an adjusted inspector may be written as a file: it may replace an adjusted one, and nothing else.

    Raises:
        ValueError: if there is a folder, something else than an inspector, or an inspector as it was fitted.
        OSError: if it cannot be written.
    """
    fitted = "holds an inspector as it was fitted"
    return store.check_target(path, ADJUSTED, lambda state: "" if Judgement.from_state(state["judgement"]).changes else fitted)


def dropped_changes(target: Path, judgement: Judgement) -> list[str]:
    """Return the changes of an adjusted inspector in a file, if there is one, that a judgement which takes its place has not."""
    earlier = Judgement.from_state(store.load_state(target)["judgement"]).changes if target.exists() else ()
    return [change for change in earlier if change not in judgement.changes]


def adjust(trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData, judgement: Judgement) -> list[dict[str, Any]]:
    """Judge otherwise: scales and threshold are set anew by the pictures of validation.

    Returns:
        What is different, and what comes of it, before and after.
    """
    inspector = module.inspector
    scores, weights = _validation_scores(trainer, module, data), inspector.weights
    before = _standing(inspector, scores)
    inspector.judged_by(judgement)
    if _differ(weights, inspector.weights):
        scores = _validation_scores(trainer, module, data)
    inspector.calibrate_with(scores)
    inspector.about["validation"] = len(data.val_set)
    after = _standing(inspector, scores)
    always = list(after)[:_ALWAYS]
    names = [name for name in dict.fromkeys([*after, *before]) if name in always or before.get(name) != after.get(name)]
    return [{"what": name, "before": before.get(name, ""), "after": after.get(name, "")} for name in names]


def rule_text(rule: Rule) -> str:
    """Write a rule as `--set rule=` takes it."""
    low, high = ("" if bound is None else f"{bound:g}" for bound in (rule.low, rule.high))
    return f"{rule.component}:{rule.measure}:{low}:{high}"


def _validation_scores(trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData) -> dict[str, Tensor]:
    task = Calibration(module)
    L.Trainer.predict(trainer, task, dataloaders=data.val_dataloader(), return_predictions=False)
    return task.gathered()


def _differ(one: Tensor | None, other: Tensor | None) -> bool:
    return (one is None) != (other is None) or (one is not None and other is not None and not one.equal(other))


def _standing(inspector: Inspector, scores: Mapping[str, Tensor]) -> dict[str, Any]:
    """Say how an inspector judges, and what comes of it for good pictures; the first three are worth saying always."""
    judgement, components = inspector.judgement, inspector.metrology.components
    alarms, pictures = int((inspector.fuse(scores) > inspector.threshold).sum()), len(next(iter(scores.values())))
    broken = sum(bool(found) for found in check_rules(inspector.scorer.training, judgement.rules))
    return {
        "threshold": inspector.threshold,
        "false alarms of validation": f"{alarms} of {pictures}",
        "training pictures that break a rule": f"{broken} of {len(inspector.scorer.training)}",
        "quantile": judgement.quantile,
        "fused scores": ", ".join(judgement.parts),
        "fusion": judgement.fusion,
        "weight of the background": judgement.background,
        **{f"weight of component {k}": judgement.weights.get(k, 1.0) for k in components},
        **{f"weight of cluster {k}, of the background": weight for k, weight in judgement.weights.items() if k not in components},
        **{f"name of component {k}": name for k, name in judgement.names.items()},
        "rules": "; ".join(rule_text(rule) for rule in judgement.rules),
    }
