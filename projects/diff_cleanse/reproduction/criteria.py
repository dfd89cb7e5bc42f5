"""Criteria: by which importance channels are best chosen, at equal shares and with the same tuning."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from projects.diff_cleanse.cleanse import RECIPES, cleanse
from projects.diff_cleanse.importance import Criterion
from projects.diff_cleanse.inspection import Trigger
from projects.diff_cleanse.reproduction.zoo import QUICK_RECIPE, MemberJob, attacked
from projects.diff_cleanse.scan import scan

CLAIM = "The difference of triggered and clean importance finds the channels that carry a backdoor at the least cost."
ATTACKS = (attacked("ODE"),)
CRITERIA: tuple[Criterion, ...] = ("difference", "ratio", "backdoor", "sum", "magnitude", "random")
SHARE = 0.06


class CriteriaJob(MemberJob):
    """One backdoored model, pruned by every criterion."""

    def make(self) -> list[dict[str, Any]]:
        self.zoo.train(self.member, self.seed)
        unet, config = self.zoo.load(self.member, self.seed)
        budget = "quick" if self.zoo.is_quick else "fast"
        trigger = Trigger.of(scan(unet, config, samplers=(self.member.sampler,), budget=budget, seed=self.seed).leading)
        rows = []
        for criterion in CRITERIA[:2] if self.zoo.is_quick else CRITERIA:
            recipe = replace(RECIPES["fast"], criterion=criterion, shares=(SHARE,))
            recipe = replace(recipe, **QUICK_RECIPE) if self.zoo.is_quick else recipe
            report = cleanse(unet, config, trigger, recipe=recipe, seed=self.seed, rescan=False)
            before, pruned, after = report.rows
            row: dict[str, Any] = {"attack": self.member.name.split()[0], "seed": self.seed, "criterion": criterion}
            row |= {name: report.pruned[name] for name in ("nominal", "channels", "parameters")}
            row |= {"mse_pruned": pruned["mse"], "fd_pruned": pruned["fd"], "mse": after["mse"], "near_target": after["near_target"]}
            rows.append(row | {"fd_ratio": round(after["fd"] / before["fd"], 4)})
        return rows


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""

    def mean(column: str, criterion: str) -> float:
        values = [row[column]["mean"] for row in summary if row["criterion"] == criterion]
        return sum(values) / len(values)

    return {
        "difference leaves less of the backdoor than random pruning: larger MSE to the target after tuning": mean("mse", "difference")
        > mean("mse", "random"),
        "difference costs less before tuning than random pruning: smaller FD": mean("fd_pruned", "difference") < mean("fd_pruned", "random"),
        "difference costs less before tuning than the published code's sum: smaller FD": mean("fd_pruned", "difference") < mean("fd_pruned", "sum"),
        "difference leaves less of the backdoor than magnitude pruning": mean("mse", "difference") > mean("mse", "magnitude"),
    }
