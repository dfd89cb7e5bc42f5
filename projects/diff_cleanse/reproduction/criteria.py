"""Criteria: by which importance channels are best chosen, at equal shares and with the same tuning."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from projects.diff_cleanse.cleanse import RECIPES, SURVIVING, Recipe, choose, cleanse, generate, prune, rank_channels
from projects.diff_cleanse.data import stacked
from projects.diff_cleanse.importance import Criterion
from projects.diff_cleanse.inspection import Inspection, Trigger
from projects.diff_cleanse.metrics import to_unit_range
from projects.diff_cleanse.reproduction.zoo import QUICK_RECIPE, MemberJob, attacked
from projects.diff_cleanse.scan import scan
from shared.seeding import derive_seed

CLAIM = "The difference of triggered and clean importance finds the channels that carry a backdoor at the least cost."
ATTACKS = (attacked("ODE"),)
CRITERIA: tuple[Criterion, ...] = ("difference", "ratio", "backdoor", "sum", "magnitude", "random")
SHARE = 0.06
SHARES = (0.02, 0.04, 0.06, 0.08, 0.1, 0.13, 0.17, 0.22, 0.28, 0.36, 0.5)
"""Shares among which the smallest that suffices without tuning is looked for."""


class CriteriaJob(MemberJob):
    """One backdoored model, pruned by every criterion."""

    def make(self) -> list[dict[str, Any]]:
        self.zoo.train(self.member, self.seed)
        unet, config = self.zoo.load(self.member, self.seed)
        amount = "quick" if self.zoo.is_quick else "fast"
        trigger = Trigger.of(scan(unet, config, samplers=(self.member.sampler,), recipe=amount, seed=self.seed).leading)
        changes: dict[str, Any] = {"shares": (SHARE,)} | (QUICK_RECIPE if self.zoo.is_quick else {})
        base = replace(RECIPES["fast"], **changes)
        pictures, _ = generate(unet, config, trigger, base.generated, self.seed)
        rows = []
        for criterion in CRITERIA[:2] if self.zoo.is_quick else CRITERIA:
            recipe = replace(base, criterion=criterion)
            report = cleanse(unet, config, trigger, pictures, recipe=recipe, seed=self.seed, rescan=False)
            before, pruned, after = report.rows
            row: dict[str, Any] = {"attack": self.member.name.split()[0], "seed": self.seed, "criterion": criterion}
            row |= {name: report.pruned[name] for name in ("nominal", "channels", "parameters")}
            row |= {"mse_pruned": pruned["mse"], "fd_pruned": pruned["fd"], "mse": after["mse"], "near_target": after["near_target"]}
            row["fd_ratio"] = round(after["fd"] / before["fd"], 4)
            rows.append(row | self._needed(unet, config, trigger, pictures, recipe))
        return rows

    def _needed(self, unet: nn.Module, config: Mapping[str, Any], trigger: Trigger, pictures: Dataset, recipe: Recipe) -> dict[str, float]:
        """Find the smallest share without which the untuned network no longer draws the target, and the Fréchet distance that it costs."""
        images = stacked(pictures)
        inspection = Inspection(config, trigger, to_unit_range(images), recipe.samples, derive_seed(self.seed, "inspection"))
        inspection.measure("before", unet)
        ranked = rank_channels(unet, config, trigger, images[: recipe.pictures], recipe, self.seed)
        for share in SHARES:
            pruned = deepcopy(unet)
            prune(pruned, choose(*ranked, recipe, share))
            row = inspection.measure("pruned", pruned, share)
            if row["near_target"] <= SURVIVING:
                return {"share_needed": share, "fd_needed": row["fd"]}
        return {"share_needed": 1.0, "fd_needed": row["fd"]}


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""

    def mean(column: str, criterion: str) -> float:
        values = [row[column]["mean"] for row in summary if row["criterion"] == criterion]
        return sum(values) / len(values)

    tuned, pruned, needed, cost = ({name: mean(column, name) for name in CRITERIA} for column in ("mse", "fd_pruned", "share_needed", "fd_needed"))
    others: tuple[Criterion, ...] = ("backdoor", "sum", "magnitude", "random")
    return {
        "difference leaves less of the backdoor than random pruning: larger MSE to the target after tuning": tuned["difference"] > tuned["random"],
        "difference leaves less of the backdoor than magnitude pruning": tuned["difference"] > tuned["magnitude"],
        "difference costs less before tuning than random pruning: smaller FD": pruned["difference"] < pruned["random"],
        "difference costs less before tuning than the published code's sum: smaller FD": pruned["difference"] < pruned["sum"],
        "without tuning, difference needs no larger a share than random pruning until no more than 1 in 20 triggered samples show the target": (
            needed["difference"] <= needed["random"]
        ),
        "at that share, difference costs less than backdoor, sum, magnitude and random pruning: smaller FD": all(
            cost["difference"] < cost[name] for name in others
        ),
    }
