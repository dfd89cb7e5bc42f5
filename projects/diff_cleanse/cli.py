"""Diff-Cleanse: scan diffusion models for backdoors and clean them; train models, with a backdoor or without, and measure them.

`attack NAME` is `fit --config tiny --config NAME`: villandiffusion, baddiffusion or trojdiff planted in the latest run's model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.diff_cleanse.data import DiffusionData
from projects.diff_cleanse.module import DiffusionTraining
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.diff_cleanse.cleanse import CleanReport
    from projects.diff_cleanse.scan_report import ScanReport


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    outside = frozenset({"pipeline"})
    makes_run = frozenset({"fit", "convert", "reproduce"})
    independent = frozenset({"scan", "cleanse"})
    resumable = frozenset({"fit", "scan", "cleanse", "reproduce"})
    follow_up = MappingProxyType({"fit": "test", "test": "predict"})
    aliases = MappingProxyType({"attack": ("fit", ("tiny", "villandiffusion"))})

    def fit(self, model: DiffusionTraining, datamodule: DiffusionData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train a diffusion model, write it as a pipeline folder that diffusers loads, and measure it.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        if self.is_global_zero:
            model.keep_origin(self.run)
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        if self.is_global_zero:
            model.save_pipeline(self.run.path / "pipeline")
        self.strategy.barrier("pipeline")
        self._evaluate(model, datamodule, None)

    def convert(self, model: DiffusionTraining, datamodule: DiffusionData, path: str, size: int | None = None) -> None:
        """Make a run of a checkpoint of DDIM's or TrojDiff's code, for scan and cleanse; with --config paper or the like for predict and test too.

        Args:
            model: supplied.
            datamodule: supplied.
            path: the file, such as ckpt.pth; the running average of its weights is taken where there is one.
            size: side of the pictures in pixels; by default the one that the network's attention tells.
        """
        from projects.diff_cleanse.importing import convert_into
        from shared.distributed import in_one_process

        in_one_process(self)
        convert_into(self.run, model, path, size)

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
        sampler: Literal["ddim", "ddpm", "trojan_ddim", "trojan_ddpm"] | None = None,
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
            sampler: ddim, ddpm (ancestral), or TrojDiff's own, trojan_ddim and trojan_ddpm; the default is ddim, or trojan_ddim from noise that wears
                TrojDiff's trigger.
            steps: network calls per sample; the default is model.eval_steps for ddim and all steps for ddpm.
            eta: share of fresh noise of ddim, from 0 (none) to 1 (ancestral).
            clip: clip each estimate of the picture to its range.
            triggered: put the trigger on the starting noise.
        """
        from projects.diff_cleanse.tasks import Sampling, Setting, Subject

        subject = Subject.of(model, pipeline or self.run.path / "pipeline")
        chosen = sampler or subject.sampler("ddim", triggered)
        steps = steps or (model.hparams["eval_steps"] if chosen.endswith("ddim") else len(subject.schedule))
        super().predict(Sampling(subject, Setting(chosen, steps, triggered, clip, eta), samples, model.hparams["seed"]), return_predictions=False)

    def scan(
        self,
        model: DiffusionTraining,
        datamodule: DiffusionData,
        pipeline: str | None = None,
        methods: Sequence[str] | str = ("gradient",),
        samplers: Sequence[str] | str = ("ddim", "ddpm", "trojan_ddpm"),
        recipe: str = "fast",
        threshold: float = 0.5,
        seed: int = 0,
        save_memory: bool | None = None,
        out: str | None = None,
    ) -> ScanReport:
        """Scan a pipeline for a backdoor: exit code 0 clean, 1 backdoored, 2 undecided; errors exit with 1 or 2 too, but write no report.json.

        Args:
            model: supplied.
            datamodule: supplied.
            pipeline: folder written by save_pretrained, of which nothing but the U-Net and the scheduler is read; the default is the latest run's.
            methods: inversions: gradient and bbti decide; elijah, terd and bbti_released stand beside them.
            samplers: ddpm finds backdoors of stochastic samplers; ddim, dpmsolver, dpmsolver++, unipc, pndm, deis, heun and lms those of the others.
            recipe: fast (half a minute for 16 pixels on two cores) or full (ten times that and more).
            threshold: score in (0, 1] from which a model is backdoored; up to half of it it is clean.
            seed: seed of all noise.
            save_memory: compute activations twice instead of keeping them; by default above 2 GiB for a sampler (on a GPU half of the free memory).
            out: folder for the report besides the run's own artefacts/scan.
        """
        from projects.diff_cleanse.scan_task import scan_pipeline

        options = {"methods": methods, "samplers": samplers, "recipe": recipe, "threshold": threshold, "seed": seed, "save_memory": save_memory}
        return scan_pipeline(self, pipeline or self.run.path / "pipeline", out, **options)

    def cleanse(
        self,
        model: DiffusionTraining,
        datamodule: DiffusionData,
        pipeline: str | None = None,
        trigger: str | None = None,
        pictures: Literal["generated", "data"] = "generated",
        recipe: str = "fast",
        criterion: Literal["difference", "sum", "backdoor", "ratio", "clean", "random", "magnitude", "anp", "none"] = "difference",
        mode: Literal["mask", "cut"] = "mask",
        loss: Literal["dual", "plain", "elijah"] = "dual",
        shares: list[float] | None = None,
        generated: int | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        ema_decay: float | None = None,
        rescan: bool = True,
        seed: int = 0,
        out: str | None = None,
    ) -> CleanReport | ScanReport:
        """Remove a backdoor from a pipeline: prune the channels that carry it, tune, scan again.

        Exit code: 1 if the trigger still works, else that of the new scan.
        The outcome is a folder that loads exactly as the old one did, with cleaning.json beside the network.

        Args:
            model: supplied.
            datamodule: supplied.
            pipeline: folder written by save_pretrained, of which nothing but the U-Net and the scheduler is read; the default is the latest run's.
            trigger: trigger.safetensors of a scan; the default is to scan first, and to stop where that finds no backdoor.
            pictures: clean pictures to tune on: generated by the model itself, or the training pictures of --data.
            recipe: fast (for 16 pixels; a minute on two cores) or full (the paper's setting for 32 pixels): sets options that are not given, and
                is that of the scans.
            criterion: channels go by triggered less clean importance (difference), by their sum (as published), backdoor, ratio, clean, random,
                magnitude or anp; none prunes nothing.
            mode: mask holds the channels at zero and leaves all shapes, so that stock diffusers loads the folder; cut makes the network smaller.
            loss: of the tuning: dual (with the model as it was for a teacher), plain, or elijah's.
            shares: shares of each group's channels, tried one after the other until the trigger has no effect.
            generated: pictures that the model draws of itself.
            steps: steps of the tuning.
            batch_size: pictures in a step, over all processes together.
            lr: learning rate of the tuning.
            ema_decay: decay of the tuned weights' running average.
            rescan: scan the outcome with other seeds.
            seed: seed of everything random.
            out: folder for the cleansed pipeline besides the run's own artefacts/cleanse/pipeline.
        """
        from projects.diff_cleanse.cleanse_task import cleanse_pipeline, make_recipe

        changes = {"mode": mode, "loss": loss, "shares": tuple(shares) if shares else None, "generated": generated, "steps": steps}
        chosen = make_recipe(recipe, **changes, batch=batch_size, lr=lr, ema_decay=ema_decay)
        chosen = replace(chosen, criterion=None if criterion == "none" else criterion)
        return cleanse_pipeline(self, datamodule, pipeline or self.run.path / "pipeline", trigger, pictures, chosen, seed, rescan, out)

    def reproduce(
        self,
        model: DiffusionTraining,
        datamodule: DiffusionData,
        table: Literal["all", "samplers", "removal", "criteria", "detection"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the papers' claims on small models that it trains for the purpose, over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: samplers (which samplers a backdoor answers to), removal (what each repair leaves of a backdoor), criteria (by which channels
                are chosen), detection (a zoo scanned by every method), or all four, on the same models.
            seeds: number of seeds, from 0; by default three, five for criteria.
            jobs: models in work at the same time, one thread each; the default is one a core, or one where there is a GPU.
            quick: one seed, a twentieth of the training steps and few models, to see that everything runs.
            write: write the table into the project's README.
        """
        from projects.diff_cleanse.reproduction import TABLES, reproduce_table
        from shared.tables import show_tables

        settings = dict(model.hparams), dict(datamodule.hparams), self.max_steps, seeds, quick, jobs
        show_tables(self, __file__, TABLES, lambda name: reproduce_table(self.run, name, *settings), table, seeds, write)

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
