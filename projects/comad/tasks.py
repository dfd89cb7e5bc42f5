"""What `test` writes and prints: how well pictures and places are told apart, and what that means on the line."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.comad.charts import draw_curves, draw_examples, draw_histograms
from projects.comad.layouts import Group
from projects.comad.metrics import GOOD, alarm_rates, image_aurocs
from projects.comad.module import Judged
from projects.comad.spro import OverlapCurve, SaturatedOverlap
from shared.distributed import gather_objects
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from projects.comad.data import InspectionData
    from projects.comad.inspector import Inspector
    from projects.comad.module import ComponentInspection
    from shared.cli import ProjectTrainer

LIMIT = "au_spro_0.05"
"""The area that papers quote."""
BAD: tuple[Group, ...] = ("logical", "structural", "other")


@dataclass(frozen=True)
class Tested:
    """What `test` returns: a row a score, and the figures that head the run's page.

    Of these `test/auroc` is the mean of the fused score's areas for logical and for structural anomalies, which follow-ups of the paper call total;
    `test/auroc_all` pools both kinds, as the reference's code does. `test/au_spro` is a mean in the same way, up to a false-positive rate of 0.05.
    """

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What all processes together found in the test pictures.

    Attributes:
        judged: N pictures in the order of their set.
        names: N, each kind and name of the file.
        groups: N.
        curves: overlap of maps with the defects of a group, in it and the good pictures, by map and group; none where nobody marked defects.
        defects: their number.
    """

    judged: list[Judged]
    names: list[str]
    groups: list[Group]
    curves: dict[tuple[str, str], OverlapCurve]
    defects: dict[tuple[str, str], int]

    @property
    def kinds(self) -> list[str]:
        """Kinds of the N pictures."""
        return [name.rpartition("/")[0] for name in self.names]

    @property
    def bad(self) -> list[Group]:
        """Groups of the anomalous pictures that there are."""
        return [group for group in BAD if group in self.groups]

    @property
    def is_bad(self) -> Tensor:
        """(N,) bool."""
        return torch.tensor([group != GOOD for group in self.groups])

    @property
    def alarms(self) -> Tensor:
        """(N,) bool."""
        return torch.tensor([one.alarm for one in self.judged])

    def scores(self, part: str) -> Tensor:
        """Return a score of all pictures, (N,) float64."""
        return torch.tensor([one.scores[part] for one in self.judged], dtype=torch.float64)


def report_test(trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData) -> Tested:
    """Write and print what was found in the test pictures; to be called by all processes.

    Raises:
        ValueError: if there are none.
    """
    outcome, inspector = gathered(module, data), module.inspector
    parts = [*inspector.judgement.parts, *(part for part in inspector.recipe.parts if part not in inspector.judgement.parts), "fused"]
    overlaps, alarms = overlap_rows(outcome, parts), alarm_rows(outcome, inspector)
    rows = score_rows(outcome, parts, overlaps, inspector.judgement.parts)
    summary = headline(rows[-1], alarms[0])
    if trainer.is_global_zero:
        tables = {"scores": rows, "kinds": kind_rows(outcome, parts), "overlap": overlaps, "alarms": alarms, "pictures": picture_rows(outcome, parts)}
        for name, table in tables.items():
            if table:
                log_table(trainer, name, table)
        for logger in trainer.loggers:
            logger.log_metrics(summary, 0)
            logger.save()
        _log_figures(trainer, module, data, outcome)
        short = ("score", *(name for name in rows[-1] if name.startswith("auroc_")), "au_spro_mean")
        print(markdown([{name: row[name] for name in short} for row in rows]))
        print("\n".join(sentences(alarms)))
        print(f"{', '.join(f'{name}.csv' for name, table in tables.items() if table)} and figures lie in {shown_path(artefact_folder(trainer))}")
        if module.maps_folder is not None:
            print(f"anomaly maps as TIFF, for MVTec's evaluation, lie in {shown_path(module.maps_folder)}")
    return Tested(rows, summary)


def gathered(module: ComponentInspection, data: InspectionData) -> Outcome:
    """Join what the processes found; overlaps go one after the other, so that a process never holds those of all others at once.

    Raises:
        ValueError: if no picture was tested.
    """
    judged = sorted(gather_objects(module.judged), key=lambda one: one.place)
    if not judged:
        raise ValueError(f"there are no test pictures of {data.name}: give data with some, good ones and, if there are, anomalous ones of each kind")
    overlaps: dict[tuple[str, str], SaturatedOverlap] = {}
    for key in sorted(set(gather_objects(list(module.overlaps)))):
        own = gather_objects([module.overlaps[key]] if key in module.overlaps else [])
        overlaps[key] = reduce(SaturatedOverlap.merged, own)
    bad = [key for key in overlaps if key[1] != GOOD and (key[0], GOOD) in overlaps]
    curves = {key: overlaps[key[0], GOOD].merged(overlaps[key]).curve() for key in bad}
    pictures = data.test_set
    names, groups = ([look(one.place) for one in judged] for look in (pictures.name, pictures.group))
    return Outcome(judged, names, groups, curves, {key: overlaps[key].defects for key in bad})  # type: ignore[arg-type]


# ---- the tables


def score_rows(outcome: Outcome, parts: Sequence[str], overlaps: Sequence[dict[str, Any]], fused: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row a score: areas under the ROC curve of good pictures against each group, their mean, and that of all anomalies pooled.

    Args:
        outcome: of the test.
        parts: scores, `fused` last.
        overlaps: rows of `overlap_rows`, whose areas for a false-positive rate up to 0.05 stand beside, for scores that have a map.
        fused: scores that `counts` says are in the verdict.
    """
    areas = {(row["map"], row["group"]): row[LIMIT] for row in overlaps}
    groups = list(dict.fromkeys((*BAD[:2], *outcome.bad)))
    rows = []
    for part in parts:
        found = image_aurocs(outcome.scores(part), outcome.groups)
        row = {"score": part, "counts": part in (*fused, "fused")}
        row |= {f"auroc_{name}": _known(found.get(name, math.nan)) for name in (*groups, "mean", "all")}
        rows.append(row | {f"au_spro_{name}": areas.get((part, name)) for name in (*groups, "mean")})
    return rows


def kind_rows(outcome: Outcome, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row a kind of anomalous pictures: the part that alarms, and each score's area against the good pictures."""
    rows, kinds, alarms = [], outcome.kinds, outcome.alarms
    for kind in dict.fromkeys(name for name, group in zip(kinds, outcome.groups, strict=True) if group != GOOD):
        own = torch.tensor([name == kind for name in kinds])
        chosen = own | ~outcome.is_bad
        groups = [group for group, is_chosen in zip(outcome.groups, chosen.tolist(), strict=True) if is_chosen]
        row = {"kind": kind, "group": outcome.groups[kinds.index(kind)], "pictures": int(own.sum()), "recall": float(alarms[own].double().mean())}
        rows.append(row | {part: _known(image_aurocs(outcome.scores(part)[chosen], groups)["all"]) for part in parts})
    return rows


def overlap_rows(outcome: Outcome, parts: Iterable[str]) -> list[dict[str, Any]]:
    """Return rows of each map: areas under the sPRO curve at the five limits for each group, and their mean.

    `uncertainty` is by how much the area up to 0.05 may be off because a curve of very many values has had its thresholds merged.
    """
    rows: list[dict[str, Any]] = []
    for part in parts:
        own: list[dict[str, Any]] = []
        for group in outcome.bad:
            if curve := outcome.curves.get((part, group)):
                counted = {"map": part, "group": group, "defects": outcome.defects[part, group]}
                own.append(counted | curve.areas() | {"uncertainty": curve.uncertainty(0.05)})
        if own:
            measured = {name: math.fsum(row[name] for row in own) / len(own) for name in own[0] if name not in ("map", "group", "defects")}
            own.append({"map": part, "group": "mean", "defects": sum(row["defects"] for row in own)} | measured)
        rows += own
    return [{name: _known(value) for name, value in row.items()} for row in rows]


def alarm_rows(outcome: Outcome, inspector: Inspector) -> list[dict[str, Any]]:
    """Return what the threshold, a quantile of the good validation pictures' scores, means on the line; in a second row, the user's rules if any."""
    validation = len(next(iter(inspector.fusion.references.values())))
    rows = [_alarm_row("score", outcome.alarms, outcome)]
    rows[0] |= {"threshold": inspector.threshold, "quantile": inspector.judgement.quantile, "validation": validation}
    if inspector.judgement.rules:
        broken = torch.tensor([one.rules > 0 for one in outcome.judged])
        rows.append(_alarm_row("rules", broken, outcome) | {"threshold": None, "quantile": None, "validation": None})
    return rows


def _alarm_row(by: str, called: Tensor, outcome: Outcome) -> dict[str, Any]:
    is_bad = outcome.is_bad
    row: dict[str, Any] = {"by": by, "good": int((~is_bad).sum()), "false_alarms": int(called[~is_bad].sum())}
    row |= {"bad": int(is_bad.sum()), "found": int(called[is_bad].sum())}
    row |= {name: _known(value) for name, value in alarm_rates(called, is_bad).items()}
    for group in dict.fromkeys((*BAD[:2], *outcome.bad)):
        own = torch.tensor([each == group for each in outcome.groups])
        row[f"recall_{group}"] = _known(float(called[own].double().mean()))
    return row


def picture_rows(outcome: Outcome, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row a picture: its scores, whether it alarms, how many rules it breaks, and what is said of it."""
    rows = []
    for one, name, kind, group in zip(outcome.judged, outcome.names, outcome.kinds, outcome.groups, strict=True):
        row = {"picture": name, "kind": kind, "group": group, "fused": one.scores["fused"], "alarm": one.alarm, "rules": one.rules}
        rows.append(row | {part: one.scores[part] for part in parts if part != "fused"} | {"text": one.text})
    return rows


def headline(fused: dict[str, Any], alarms: dict[str, Any]) -> dict[str, float]:
    """Return the figures that head the run's page, see `Tested`, of the fused score's rows; what is not known is left out."""
    names = {"auroc": "auroc_mean"} | {name: name for name in fused if name.startswith("auroc_") and name != "auroc_mean"}
    names |= {"au_spro": "au_spro_mean"} | {name: name for name in fused if name.startswith("au_spro_") and name != "au_spro_mean"}
    found = {name: fused[column] for name, column in names.items()} | {name: alarms[name] for name in ("false_alarm_rate", "recall", "f1")}
    return {f"test/{name}": round(value, 4) for name, value in found.items() if value is not None}


def sentences(alarms: Sequence[dict[str, Any]]) -> list[str]:
    """Say what the rows of `alarm_rows` mean."""
    said = []
    for row in alarms:
        does = "alarm" if row["by"] == "score" else "break a rule"
        where = f", at quantile {row['quantile']:g} of the scores of {row['validation']} validation pictures" if row["by"] == "score" else ""
        counts = {"good": (row["false_alarms"], row["good"]), "anomalous": (row["found"], row["bad"])}
        parts = [f"{some} of {whole} {what} ({100 * some / whole:.3g} %)" for what, (some, whole) in counts.items() if whole]
        said.append(f"{' and '.join(parts)} pictures {does}{where}")
    return said


def _log_figures(trainer: ProjectTrainer, module: ComponentInspection, data: InspectionData, outcome: Outcome) -> None:
    scores, groups = outcome.scores("fused"), outcome.groups
    by_group = {group: scores[torch.tensor([each == group for each in groups])] for group in dict.fromkeys(groups)}
    log_figure(trainer, "histograms", draw_histograms(by_group, module.inspector.threshold))
    if outcome.curves:
        log_figure(trainer, "curves", draw_curves(outcome.curves))
    module.to(trainer.strategy.root_device)  # Lightning has taken it away
    with trainer.precision_plugin.forward_context():
        log_figure(trainer, "examples", draw_examples(module, data.test_set, outcome.judged))


def _known(value: Any) -> Any:
    return None if isinstance(value, float) and math.isnan(value) else value
