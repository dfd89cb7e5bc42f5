"""The comparison that the attacks' papers make: which sampler a backdoor answers to, what it costs in quality, and what clipping hides."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L

from projects.diff_cleanse.data import DiffusionData
from projects.diff_cleanse.module import DiffusionTraining
from projects.diff_cleanse.tasks import Evaluation, Subject
from shared.callbacks import ProgressLines
from shared.results import summarise, write_results
from shared.runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CLAIM = "A backdoor answers to one family of samplers only, costs little quality, and is hidden by clipping."
ATTACKS: dict[str, dict[str, Any]] = {
    "VillanDiffusion ODE": {"attack": "villandiffusion", "solver": "ode", "max_steps": 400},
    "BadDiffusion (SDE)": {"attack": "baddiffusion", "max_steps": 300},
}
QUICK = 20  # the divisor of the steps of a quick run


class SamplerTable:
    """Trains a clean model and one backdoored model an attack for each seed, and measures all of them under both sampler families.

    Args:
        run: run folder; the models are kept as pipeline folders in its artefacts.
        model: settings of the clean model.
        data: settings of the data.
        max_steps: training steps of the clean model.
        quick: train only a twentieth of the steps, to see that everything runs.
    """

    def __init__(self, run: Run, model: DiffusionTraining, data: DiffusionData, max_steps: int, quick: bool) -> None:
        self.folder, self.run, self.model, self.data = run.artefacts("reproduce"), run, model, data
        self.max_steps, self.divisor = max_steps, QUICK if quick else 1

    def compare(self, seeds: list[int]) -> dict[str, Any]:
        """Run the comparison over `seeds`; returns and writes the results."""
        started = time.monotonic()
        rows = [row for seed in seeds for row in self._seed(seed)]
        summary = summarise(rows, by=("model", "noise", "sampler", "clipping"))
        return write_results(self.run, "sampler table", CLAIM, summary, seeds, time.monotonic() - started, expectations(summary))

    def _seed(self, seed: int) -> list[dict[str, Any]]:
        clean = self._train("clean", seed, {}, self.max_steps)
        rows = self._measure("clean", seed, clean, clean.hparams | {"attack": "baddiffusion"})
        for name, options in ATTACKS.items():
            settings = {key: value for key, value in options.items() if key != "max_steps"}
            settings |= {"pretrained": str(self._pipeline("clean", seed)), "ema_decay": 0.98}
            attacked = self._train(name, seed, settings, options["max_steps"])
            rows += self._measure(name, seed, attacked, attacked.hparams)
        return rows

    def _pipeline(self, name: str, seed: int) -> Path:
        return self.folder / f"seed-{seed}" / name.split()[0].lower()

    def _train(self, name: str, seed: int, options: dict[str, Any], steps: int) -> DiffusionTraining:
        print(f"seed {seed}: training {name}", flush=True)
        model = DiffusionTraining(**(self.model.hparams | options | {"seed": seed}))
        self._trainer(max_steps=max(2, steps // self.divisor), limit_val_batches=0).fit(model, datamodule=self._data(seed))
        model.save_pipeline(self._pipeline(name, seed))
        return model

    def _measure(self, name: str, seed: int, trained: DiffusionTraining, settings: dict[str, Any]) -> list[dict[str, Any]]:
        subject = Subject.of(DiffusionTraining(**(settings | {"pretrained": None})), self._pipeline(name, seed))
        samples = trained.hparams["eval_samples"] // (4 if self.divisor > 1 else 1)
        task = Evaluation(subject, self._data(seed), samples, trained.hparams["eval_steps"], triggered=True, seed=seed)
        self._trainer(name=f"seed-{seed}/{name.split()[0].lower()}-measured").test(task, verbose=False)
        return [{"model": name, "seed": seed} | row for row in task.rows]

    def _data(self, seed: int) -> DiffusionData:
        return DiffusionData(**(dict(self.data.hparams) | {"seed": seed}))

    def _trainer(self, name: str = "training", **options: Any) -> L.Trainer:
        return L.Trainer(
            default_root_dir=self.folder / name,
            devices=1,
            gradient_clip_val=1.0 if "max_steps" in options else None,
            callbacks=[ProgressLines(30)],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )


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

    ode, sde = ATTACKS
    return {
        "the clean model never draws the target: ASR 0 under both samplers": asr("clean", "DDIM") == asr("clean", "DDPM") == 0,
        "the ODE backdoor answers to DDIM (ASR at least 0.8), not to DDPM (at most 0.2)": asr(ode, "DDIM") >= 0.8 and asr(ode, "DDPM") <= 0.2,
        "the SDE backdoor answers to DDPM (ASR at least 0.8), not to DDIM (at most 0.2)": asr(sde, "DDPM") >= 0.8 and asr(sde, "DDIM") <= 0.2,
        "a backdoor costs little quality: FD at most 1.15 times the clean model's": max(cost(ode), cost(sde)) <= 1.15,
        "clipping lowers the ASR of the SDE backdoor under DDPM": asr(sde, "DDPM", "on") < asr(sde, "DDPM"),
        "clipping lowers the ASR of the ODE backdoor under DDIM": asr(ode, "DDIM", "on") < asr(ode, "DDIM"),
    }


def plot(summary: list[dict[str, Any]]) -> Figure:
    """Draw the success of each backdoor under each sampler, with and without clipping."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(ATTACKS), figsize=(8, 3), sharey=True)
    for panel, name in zip(axes, ATTACKS, strict=True):
        rows = [row for row in summary if row["model"] == name and row["noise"] == "triggered"]
        labels = [row["sampler"] + ("\nclipped" if row["clipping"] == "on" else "") for row in rows]
        panel.bar(labels, [row["asr_1e-2"]["mean"] for row in rows], yerr=[row["asr_1e-2"]["std"] for row in rows], color="tab:red", capsize=3)
        panel.set(title=name, ylim=(0, 1.05))
    axes[0].set_ylabel("ASR (MSE < 1e-2)")
    return figure


def show_samples(folder: Path) -> Figure:
    """Draw the first rows of the samples that one seed's models made, with and without the trigger.

    Args:
        folder: a seed's folder, such as `artefacts/reproduce/seed-0`.
    """
    import matplotlib.pyplot as plt

    shown = [
        ("clean model", "clean", "clean_ddim"),
        ("ODE backdoor, clean noise", "villandiffusion", "clean_ddim"),
        ("ODE backdoor, triggered, DDIM", "villandiffusion", "triggered_ddim"),
        ("ODE backdoor, triggered, DDPM", "villandiffusion", "triggered_ddpm"),
        ("SDE backdoor, triggered, DDIM", "baddiffusion", "triggered_ddim"),
        ("SDE backdoor, triggered, DDPM", "baddiffusion", "triggered_ddpm"),
    ]
    figure, panels = plt.subplots(2, 3, figsize=(9.6, 3.9))
    for panel, (title, model, name) in zip(panels.flat, shown, strict=True):
        picture = plt.imread(folder / f"{model}-measured" / "artefacts" / "fit" / f"samples_{name}.png")
        panel.imshow(picture[: len(picture) // 2])  # four of eight rows
        panel.set_title(title, fontsize=10)
        panel.axis("off")
    figure.tight_layout()
    return figure
