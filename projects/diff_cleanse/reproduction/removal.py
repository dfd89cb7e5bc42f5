"""Removal: what each repair leaves of a backdoor, and what it costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from projects.diff_cleanse.cleanse import RECIPES, CleanReport, Recipe, cleanse
from projects.diff_cleanse.inspection import Trigger, draw
from projects.diff_cleanse.metrics import attack_success_rate, mse_to_target, to_unit_range
from projects.diff_cleanse.reproduction.zoo import QUICK_RECIPE, MemberJob, Yardstick, attacked
from projects.diff_cleanse.scan import scan
from projects.diff_cleanse.tasks import Setting, Subject

if TYPE_CHECKING:
    from diffusers import UNet2DModel
    from matplotlib.figure import Figure

CLAIM = "Pruning the channels that an inverted trigger points at, and a short tuning, removes a backdoor; tuning alone does not."
ATTACKS = (attacked("ODE"), attacked("SDE"), attacked("TrojDiff", "glasses"))
REPAIRS: dict[str, dict[str, Any]] = {
    "fine-tuning only": {"criterion": None},
    "random + tuning": {"criterion": "random"},
    "magnitude + tuning": {"criterion": "magnitude"},
    "ANP + tuning": {"criterion": "anp"},
    "Elijah removal": {"criterion": None, "loss": "elijah"},
    "Diff-Cleanse": {},
}
OURS, TUNING = "Diff-Cleanse", "fine-tuning only"
"""These are made on every seed; the other repairs stand beside them on the first."""


class RemovalJob(MemberJob):
    """One backdoored model, repaired in every way."""

    def make(self) -> list[dict[str, Any]]:
        self.zoo.train(self.member, self.seed)
        unet, config = self.zoo.load(self.member, self.seed)
        amount = "quick" if self.zoo.is_quick else "fast"
        found = scan(unet, config, samplers=(self.member.sampler,), recipe=amount, seed=self.seed)
        trigger = Trigger.of(found.leading)
        yardstick = Yardstick(self.zoo.datamodule(self.member, self.seed))
        base = self._measure(unet, yardstick, trigger)
        about = {"attack": self.member.name, "seed": self.seed}
        rows: list[dict[str, Any]] = [about | {"repair": "none"} | base | {"fd_ratio": 1.0, "score": round(found.leading.score, 4), "seconds": None}]
        rows.append(
            about | {"repair": "clipping when sampling"} | self._measure(unet, yardstick, trigger, clip=True) | {"score": None, "seconds": None}
        )
        repairs = REPAIRS if self.seed == 0 and not self.zoo.is_quick else {name: REPAIRS[name] for name in (TUNING, OURS)}
        for name, changes in repairs.items():
            began = time.monotonic()
            report = cleanse(unet, config, trigger, recipe=self._recipe(changes), seed=self.seed, rescan=name == OURS and not self.zoo.is_quick)
            seconds = round(time.monotonic() - began, 1)
            measured = self._measure(report.unet, yardstick, trigger) | self._again(report)
            rows.append(about | {"repair": name} | measured | {"seconds": seconds})
        for row in rows:
            row["fd_ratio"] = round(row["fd"] / base["fd"], 4)
        columns = (
            "attack",
            "seed",
            "repair",
            "asr",
            "asr_other",
            "mse",
            "asr_inverted",
            "asr_new",
            "fd",
            "fd_ratio",
            "score",
            "says_clean",
            "seconds",
        )
        return [{column: row.get(column) for column in columns} for row in rows]

    def _recipe(self, changes: Mapping[str, Any]) -> Recipe:
        return replace(RECIPES["fast"], **changes, **(QUICK_RECIPE if self.zoo.is_quick else {}))

    @torch.inference_mode()
    def _measure(self, unet: UNet2DModel, yardstick: Yardstick, trigger: Trigger, clip: bool = False) -> dict[str, float]:
        """Measure a network with the true trigger, under the attack's own family of samplers and the other, and with the inverted trigger."""
        subject = self.zoo.subject(self.member, self.seed, unet)
        samples = 32 if self.zoo.is_quick else 128
        own, other = (_setting(subject, family, clip) for family in (("ddpm", "ddim") if self.member.sampler == "ddpm" else ("ddim", "ddpm")))
        errors, errors_other = (self._errors(subject, setting, samples) for setting in (own, other))
        clean = subject.draw(replace(_setting(subject, "ddim", clip), is_triggered=False, sampler="ddim"), range(samples), self.seed)
        values = {"asr": attack_success_rate(errors), "asr_other": attack_success_rate(errors_other), "mse": errors.mean()}
        values |= {"asr_inverted": self._success(unet, subject, trigger)} if not clip else {}
        return {name: round(float(value), 5) for name, value in values.items()} | {"fd": round(yardstick.distance(clean), 4)}

    def _errors(self, subject: Subject, setting: Setting, samples: int) -> torch.Tensor:
        assert subject.target is not None
        return mse_to_target(to_unit_range(subject.draw(setting, range(samples), self.seed)), to_unit_range(subject.target))

    def _success(self, unet: UNet2DModel, subject: Subject, trigger: Trigger) -> torch.Tensor:
        """Success of an inverted trigger in drawing the true target."""
        assert subject.target is not None
        images = draw(unet, self.zoo.load(self.member, self.seed)[1], trigger.sampler, 64, self.seed, tuple(trigger.pattern.shape), trigger)
        return attack_success_rate(mse_to_target(images, to_unit_range(subject.target)))

    def _again(self, report: CleanReport) -> dict[str, Any]:
        """What a new scan of the repaired model finds, and whether any trigger that it inverts draws the target."""
        if report.rescan is None:
            return {"score": None}
        subject = self.zoo.subject(self.member, self.seed, report.unet)
        new = max(float(self._success(subject.unet, subject, Trigger.of(finding))) for finding in report.rescan.findings)
        return {"score": round(report.rescan.leading.score, 4), "asr_new": round(new, 5), "says_clean": float(report.rescan.verdict == "clean")}


def _setting(subject: Subject, family: Any, clip: bool) -> Setting:
    steps = min(20, len(subject.schedule)) if family == "ddim" else len(subject.schedule)
    return Setting(subject.sampler(family, True), steps, True, clip)


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""

    def means(column: str, repair: str) -> list[float]:
        return [row[column]["mean"] for row in summary if row["repair"] == repair]

    ours = {column: means(column, OURS) for column in ("asr", "asr_other", "asr_inverted", "asr_new", "fd_ratio", "says_clean")}
    return {
        "before, the attacks succeed (ASR at least 0.8)": min(means("asr", "none")) >= 0.8,
        "Diff-Cleanse: ASR at most 0.05 with the true trigger, under both families of samplers": max(ours["asr"] + ours["asr_other"]) <= 0.05,
        "Diff-Cleanse: ASR at most 0.05 with the inverted trigger and with newly inverted ones": max(ours["asr_inverted"] + ours["asr_new"]) <= 0.05,
        "Diff-Cleanse: FD at most 1.6 times that before": max(ours["fd_ratio"]) <= 1.6,
        "Diff-Cleanse: a new scan with other seeds says clean, for every model": min(ours["says_clean"]) == 1,
        "fine-tuning alone fails: ASR above 0.05 with the true or the inverted trigger, for every attack": all(
            max(values) > 0.05 for values in zip(*(means(column, TUNING) for column in ("asr", "asr_inverted")), strict=True)
        ),
    }


def plot(summary: list[dict[str, Any]]) -> Figure:
    """Draw what each repair leaves of each attack, and what it costs."""
    import matplotlib.pyplot as plt

    repairs, attacks = (list(dict.fromkeys(row[column] for row in summary)) for column in ("repair", "attack"))
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True)
    height = 0.8 / len(attacks)
    for panel, (column, label) in zip(panels, (("asr", "ASR (MSE < 1e-2), true trigger"), ("fd_ratio", "FD of clean samples / before")), strict=True):
        for number, attack in enumerate(attacks):
            rows = [row for row in summary if row["attack"] == attack]
            places = [repairs.index(row["repair"]) + height * (number - (len(attacks) - 1) / 2) for row in rows]
            values = [row[column] for row in rows]
            panel.barh(places, [v["mean"] for v in values], height, xerr=[v["std"] for v in values], label=attack, error_kw={"capsize": 2})
        panel.set(xlabel=label, yticks=range(len(repairs)), yticklabels=repairs)
    panels[0].axvline(0.05, color="grey", linestyle="--", linewidth=1)
    panels[1].axvline(1.6, color="grey", linestyle="--", linewidth=1)
    panels[0].invert_yaxis()
    panels[1].legend(frameon=False)
    return figure
