"""Diff-Cleanse: train diffusion models, clean or with a backdoor, and measure them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from projects.diff_cleanse.data import DiffusionData
from projects.diff_cleanse.module import DiffusionTraining
from shared.cli import ProjectCLI, ProjectTrainer, run


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    outside = frozenset({"pipeline"})
    follow_up = MappingProxyType({"fit": "test", "test": "predict"})

    def fit(self, model: DiffusionTraining, datamodule: DiffusionData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train a diffusion model, write it as a pipeline folder that diffusers loads, and measure it.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        if self.is_global_zero:
            model.save_pipeline(self.run.path / "pipeline")
        self.strategy.barrier("pipeline")
        self._evaluate(model, datamodule, None)

    def test(self, model: DiffusionTraining, datamodule: DiffusionData, pipeline: str | None = None) -> None:  # type: ignore[override]
        """Measure a pipeline under both sampler families: Fréchet distance, and success of the attack that model.attack describes.

        Args:
            model: supplied.
            datamodule: supplied.
            pipeline: folder written by save_pretrained; the default is the latest run's.
        """
        self._evaluate(model, datamodule, pipeline or str(self.run.path / "pipeline"))

    def predict(  # type: ignore[override]
        self,
        model: DiffusionTraining,
        datamodule: DiffusionData,
        pipeline: str | None = None,
        samples: int = 64,
        sampler: Literal["ddim", "ddpm"] = "ddim",
        steps: int | None = None,
        eta: float = 0.0,
        clip: bool = False,
        triggered: bool = False,
    ) -> None:
        """Draw samples from a pipeline: a PNG file each, a grid and a table.

        Args:
            model: supplied.
            datamodule: supplied.
            pipeline: folder written by save_pretrained; the default is the latest run's.
            samples: number of samples.
            sampler: ddim or ddpm (ancestral).
            steps: network calls per sample; the default is model.eval_steps for ddim and all steps for ddpm.
            eta: share of fresh noise of ddim, from 0 (none) to 1 (ancestral).
            clip: clip each estimate of the picture to its range.
            triggered: put the trigger on the starting noise.
        """
        from projects.diff_cleanse.tasks import Sampling, Setting, Subject

        subject = Subject.of(model, pipeline or self.run.path / "pipeline")
        steps = steps or (model.hparams["eval_steps"] if sampler == "ddim" else len(subject.schedule))
        super().predict(Sampling(subject, Setting(sampler, steps, triggered, clip, eta), samples, model.hparams["seed"]), return_predictions=False)

    def reproduce(self, model: DiffusionTraining, datamodule: DiffusionData, seeds: int = 3, quick: bool = False, write: bool = False) -> None:
        """Reproduce the papers' claims about backdoors and samplers: a clean, an ODE and an SDE model a seed, measured under both families.

        Args:
            model: supplied.
            datamodule: supplied.
            seeds: number of seeds, from 0.
            quick: one seed and a twentieth of the training steps, to see that everything runs.
            write: write the table into the project's README.
        """
        from projects.diff_cleanse.reproduction import SamplerTable, plot, show_samples
        from shared.loggers import log_figure
        from shared.results import markdown, write_into_readme

        chosen = [0] if quick else list(range(seeds))
        results = SamplerTable(self.run, model, datamodule, self.max_steps, quick).compare(chosen)
        log_figure(self, "asr", plot(results["rows"]))
        picture = log_figure(self, "samples", show_samples(self.run.artefacts("reproduce") / "seed-0"))
        print(markdown(results["rows"]))
        if write and picture:
            shutil.copyfile(picture, Path(__file__).with_name("samples.png"))
            write_into_readme(Path(__file__).with_name("README.md"), results, f"lightning run projects/diff_cleanse/cli.py reproduce --seeds {seeds}")

    def _evaluate(self, model: DiffusionTraining, datamodule: DiffusionData, pipeline: str | None) -> None:
        from projects.diff_cleanse.tasks import Evaluation, Subject

        given = model.hparams
        under_attack = given["attack"] != "none"
        subject = Subject.of(model, pipeline)
        options = {"reference": given["eval_reference"], "inception_weights": given["inception_weights"], "seed": given["seed"]}
        super().test(Evaluation(subject, datamodule, given["eval_samples"], given["eval_steps"], under_attack, **options), verbose=False)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(DiffusionTraining, DiffusionData, Trainer, args)


if __name__ == "__main__":
    main()
