"""Samplers: which family a backdoor answers to, what it costs in quality, and what clipping hides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from projects.diff_cleanse.module import DiffusionTraining
from projects.diff_cleanse.reproduction.zoo import CLEAN, Zoo, attacked
from projects.diff_cleanse.tasks import Evaluation, Subject
from shared.jobs import Kept, kept

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "A backdoor answers to one family of samplers only, costs little quality, and is hidden by clipping."
MEMBERS = {
    "clean": CLEAN,
    "VillanDiffusion ODE": attacked("ODE"),
    "BadDiffusion (SDE)": attacked("SDE"),
    "TrojDiff": attacked("TrojDiff", "glasses"),
}
BACKDOORED = tuple(MEMBERS)[1:]


@dataclass(frozen=True)
class SamplerJob:
    """One model, measured under both families of samplers."""

    zoo: Zoo
    name: str
    seed: int
    rows: Path

    def __call__(self) -> Kept[list[dict[str, Any]]]:
        return kept(self.rows / f"{self.folder}-{self.seed}.json", self._make)

    @property
    def folder(self) -> str:
        """Name of the model in file names."""
        return self.name.split()[0].lower()

    def _make(self) -> list[dict[str, Any]]:
        import lightning as L

        member = MEMBERS[self.name]
        self.zoo.train(member, self.seed)
        asked = member if member.is_backdoored else MEMBERS["BadDiffusion (SDE)"]  # the clean model is asked what backdoored ones are asked
        model = DiffusionTraining(**(self.zoo.settings(asked, self.seed) | {"pretrained": None}))
        subject = Subject.of(model, self.zoo.path(member, self.seed))
        samples = model.hparams["eval_samples"] // (4 if self.zoo.is_quick else 1)
        task = Evaluation(subject, self.zoo.datamodule(member, self.seed), samples, model.hparams["eval_steps"], triggered=True, seed=self.seed)
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        L.Trainer(default_root_dir=self.rows / f"seed-{self.seed}" / self.folder, devices=1, **quiet).test(task, verbose=False)
        return [{"model": self.name, "seed": self.seed} | row for row in task.rows]


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""

    def mean(column: str, model: str, noise: str, family: str, clipping: str = "off") -> float:
        wanted = (model, noise, clipping)
        rows = [row for row in summary if (row["model"], row["noise"], row["clipping"]) == wanted and row["sampler"].startswith(family)]
        return rows[0][column]["mean"]

    def asr(model: str, family: str, clipping: str = "off") -> float:
        return mean("asr_1e-2", model, "triggered", family, clipping)

    def cost(model: str) -> float:
        return max(mean("fd", model, "clean", family) / mean("fd", "clean", "clean", family) for family in ("DDIM", "DDPM"))

    ode, sde, trojan = BACKDOORED
    return {
        "the clean model never draws the target: ASR 0 under both samplers": asr("clean", "DDIM") == asr("clean", "DDPM") == 0,
        "the ODE backdoor answers to DDIM (ASR at least 0.8), not to DDPM (at most 0.2)": asr(ode, "DDIM") >= 0.8 and asr(ode, "DDPM") <= 0.2,
        "the SDE backdoor answers to DDPM (ASR at least 0.8), not to DDIM (at most 0.2)": asr(sde, "DDPM") >= 0.8 and asr(sde, "DDIM") <= 0.2,
        "the TrojDiff backdoor answers to its own samplers (ASR at least 0.8), not to benign DDIM (at most 0.2)": asr(trojan, "DDIM") <= 0.2
        and min(asr(trojan, f"Trojan {family}") for family in ("DDIM", "DDPM")) >= 0.8,
        "a backdoor costs little quality: FD at most 1.15 times the clean model's": max(map(cost, BACKDOORED)) <= 1.15,
        "clipping lowers the ASR of the SDE backdoor under DDPM": asr(sde, "DDPM", "on") < asr(sde, "DDPM"),
        "clipping lowers the ASR of the ODE backdoor under DDIM": asr(ode, "DDIM", "on") < asr(ode, "DDIM"),
    }


def plot(summary: list[dict[str, Any]]) -> Figure:
    """Draw the success of each backdoor under each sampler, with and without clipping."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(BACKDOORED), figsize=(13, 3), sharey=True)
    for panel, name in zip(axes, BACKDOORED, strict=True):
        rows = [row for row in summary if row["model"] == name and row["noise"] == "triggered"]
        labels = [row["sampler"].replace(" ", "\n") + ("\nclipped" if row["clipping"] == "on" else "") for row in rows]
        panel.bar(labels, [row["asr_1e-2"]["mean"] for row in rows], yerr=[row["asr_1e-2"]["std"] for row in rows], color="tab:red", capsize=3)
        panel.set(title=name, ylim=(0, 1.05))
    axes[0].set_ylabel("ASR (MSE < 1e-2)")
    return figure


def show_samples(folder: Path) -> Figure:
    """Draw the first rows of the samples that one seed's models made, with and without the trigger.

    Args:
        folder: a seed's folder, `seed-0` among the artefacts.
    """
    import matplotlib.pyplot as plt

    shown = [
        ("clean model", "clean", "clean_ddim"),
        ("ODE backdoor, clean noise", "villandiffusion", "clean_ddim"),
        ("ODE backdoor, triggered, DDIM", "villandiffusion", "triggered_ddim"),
        ("ODE backdoor, triggered, DDPM", "villandiffusion", "triggered_ddpm"),
        ("SDE backdoor, triggered, DDIM", "baddiffusion", "triggered_ddim"),
        ("SDE backdoor, triggered, DDPM", "baddiffusion", "triggered_ddpm"),
        ("TrojDiff, triggered, DDIM", "trojdiff", "triggered_ddim"),
        ("TrojDiff, triggered, its own DDIM", "trojdiff", "triggered_trojan_ddim"),
    ]
    figure, panels = plt.subplots(2, 4, figsize=(12.8, 3.9))
    for panel, (title, model, name) in zip(panels.flat, shown, strict=True):
        picture = plt.imread(folder / model / "artefacts" / "fit" / f"samples_{name}.png")
        panel.imshow(picture[: len(picture) // 2])  # four of eight rows
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    return figure
