"""DRS: certify classifiers by dual randomized smoothing, or by randomized smoothing; train them, and audit certification tables of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.drs.data import CertificationData
from projects.drs.module import DualSmoothing
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.drs.tasks import Certified, Predicted
    from projects.drs.verdicts import Analysed, Audited


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "convert", "reproduce"})
    outside = frozenset({"tables", "table"})
    reads = frozenset({"path", "left", "right", "denoiser"})
    independent = frozenset({"analyze", "audit"})
    resumable = frozenset({"fit", "certify", "reproduce"})
    follow_up = MappingProxyType({"fit": "certify", "convert": "certify", "test": "certify", "certify": "analyze", "analyze": "audit"})

    def fit(self, model: DualSmoothing, datamodule: CertificationData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train the branches' classifiers under noise, and measure them.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        super().test(model, datamodule=datamodule, verbose=False)

    def test(self, model: DualSmoothing, datamodule: CertificationData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Measure accuracy under one noise an image: of each branch's network, and of the mean of their probabilities.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from projects.drs.tasks import restored

        super().test(restored(model, ckpt_path), datamodule=datamodule, verbose=False)

    def certify(
        self,
        model: DualSmoothing,
        datamodule: CertificationData,
        path: str | None = None,
        ckpt_path: str | None = None,
        sigma: float | None = None,
        draws: int = 10_000,
        selection: int = 100,
        alpha: float = 0.001,
        certificate: Literal["auto", "joint", "main", "pooled", "selected", "runner_up"] = "auto",
        radii: list[float] | None = None,
        tolerance: float | None = None,
        sound_grid: bool = False,
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        compiled: bool = False,
        denoiser: str | None = None,
        denoising: Literal["per_branch", "shared"] = "per_branch",
        batch_size: int | None = None,
        seed: int = 0,
    ) -> Certified:
        """Certify images: a class and the l2 radius within which the smoothed classifier keeps it, each wrong with probability at most alpha.

        Args:
            model: supplied.
            datamodule: supplied.
            path: image or folder of images to certify instead of the data set's (data.split, skip, start, stop and limit choose among those).
            ckpt_path: checkpoint; last (the default) or a file.
            sigma: standard deviation of the noise of each branch, in units of [0, 1] images; the default is model.sigma.
            draws: draws of each branch that are counted (n), or the most of them where radii or a tolerance end them earlier.
            selection: draws of each branch that choose the class (n0).
            alpha: failure probability of each certificate.
            certificate: joint (both branches at once), main (alpha / 2 each), pooled (their mean), selected (of both by n0), runner_up, auto (joint).
            radii: stop as soon as it is settled which of these radii are certified: saves most draws, and makes average radii too low.
            tolerance: stop as soon as the radius is within this of the highest it could become.
            sound_grid: noise on the grid of 8-bit images: the certificate then holds in floating point, too.
            precision: floating type of weights and images; another type is another classifier, which the log names.
            compiled: compile the networks (torch.compile).
            denoiser: folder of a diffusers pipeline, one step of which denoises before the classifiers (diffusion denoised smoothing), or checkpoint
                of a DnCNN of denoised smoothing, which was trained under this sigma.
            denoising: per_branch denoises each noised sub-image; shared the whole image before it is split, with that case's smaller radius.
            batch_size: noised copies in a forward pass; results do not depend on it.
            seed: seed of the noise.
        """
        from projects.drs.tasks import Plan, certify

        early, sigma = tuple(radii or ()), model.hparams.sigma if sigma is None else sigma
        plan = Plan(sigma, draws, selection, alpha, certificate, early, tolerance, sound_grid, precision, compiled)
        plan = replace(plan, denoiser=denoiser, denoising=denoising, seed=seed)
        return certify(self, model, datamodule, ckpt_path, plan, path, batch_size)

    def predict(  # type: ignore[override]
        self,
        model: DualSmoothing,
        datamodule: CertificationData,
        path: str | None = None,
        ckpt_path: str | None = None,
        sigma: float | None = None,
        draws: int = 1000,
        alpha: float = 0.001,
        sound_grid: bool = False,
        precision: Literal["float32", "bfloat16", "float16"] = "float32",
        denoiser: str | None = None,
        denoising: Literal["per_branch", "shared"] = "per_branch",
        seed: int | None = None,
    ) -> Predicted:
        """Classify images by the smoothed classifier (PREDICT), or abstain: a class is wrong for it with probability at most alpha.

        Args:
            model: supplied.
            datamodule: supplied.
            path: image or folder of images; the default is the data set's, as data.split, skip, start, stop and limit choose them.
            ckpt_path: checkpoint; last (the default) or a file.
            sigma: standard deviation of the noise of each branch; the default is model.sigma.
            draws: draws of an image, over all branches.
            alpha: failure probability of each prediction.
            sound_grid: as certify has it: the same classifier is to be asked.
            precision: likewise.
            denoiser: likewise.
            denoising: likewise.
            seed: seed of the noise; the default draws a fresh key, so that nobody can fit an image to the noise.
        """
        from projects.drs.tasks import Plan, predict

        plan = Plan(
            model.hparams.sigma if sigma is None else sigma, sound_grid=sound_grid, precision=precision, denoiser=denoiser, denoising=denoising
        )
        return predict(self, model, datamodule, ckpt_path, plan, path, draws, alpha, seed)

    def analyze(
        self,
        model: DualSmoothing,
        datamodule: CertificationData,
        tables: Sequence[str] | str | None = None,
        radii: list[float] | None = None,
        alpha: float | None = None,
    ) -> Analysed:
        """Say what certification tables show: certified accuracy at radii, average radius, abstentions, the envelope; as table, CSV, LaTeX, figure.

        Args:
            model: supplied.
            datamodule: supplied.
            tables: one or several certify.tsv files in Cohen's columns, anybody's; the default is those of the latest run.
            radii: radii of the table; by default every quarter up to the largest.
            alpha: failure probability that certificates were made with, if the file beside the table does not say; default 0.001.
        """
        from projects.drs.verdicts import analyze

        return analyze(self, tables, radii, alpha)

    def audit(
        self,
        model: DualSmoothing,
        datamodule: CertificationData,
        table: str | None = None,
        sigma: float | None = None,
        draws: int | None = None,
        alpha: float | None = None,
        branches: Literal[1, 2] | None = None,
        rule: Literal["main", "pooled", "joint"] | None = None,
    ) -> Audited:
        """Say what in a certification table is unsound or cannot be. Exit code 1 if something is.

        Args:
            model: supplied.
            datamodule: supplied.
            table: certify.tsv in Cohen's columns, anybody's; the default is the newest of the latest run.
            sigma: standard deviation of the noise that it was made with, if the file beside it does not say.
            draws: draws that were counted (n), likewise.
            alpha: failure probability, likewise.
            branches: 1 for randomized smoothing, 2 for dual, likewise.
            rule: certificate of two branches, for a stricter audit of tables of others.
        """
        from projects.drs.verdicts import audit

        return audit(self, table, sigma, draws, alpha, branches, rule)

    def convert(self, model: DualSmoothing, datamodule: CertificationData, left: str, right: str | None = None) -> None:
        """Turn branch networks as the authors' code saves them into a run that certify works on; use with --config released.

        Args:
            model: supplied.
            datamodule: supplied.
            left: checkpoint of the left branch's network, a file of tensors (.pth.tar, .pth, .safetensors).
            right: checkpoint of the right branch's network; none for a classifier of whole images (--config released --config rs).
        """
        from projects.drs.released import convert

        convert(self.run, model, model.net, [left] if right is None else [left, right])

    def reproduce(
        self,
        model: DualSmoothing,
        datamodule: CertificationData,
        table: Literal["all", "matched", "halves", "rules", "stopping"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's comparison on small data, and what is claimed of the engine, over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: matched (DRS and RS at one ceiling), halves (partitions), rules (that over-claim), stopping (draws it saves), or all four.
            seeds: number of seeds, from 0; by default five for matched and rules, three for the others.
            jobs: models in work at the same time, one thread each; the default is one a core, or one where there is a GPU.
            quick: one seed, little training and few images, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.drs.reproduction import TABLES
        from projects.drs.reproduction.models import Models
        from shared.tables import reproduce

        models = Models(self.run.artefacts("reproduce"), dict(model.hparams), dict(datamodule.hparams), self.max_epochs or 1, quick)
        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write, models)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(DualSmoothing, CertificationData, Trainer, args)


if __name__ == "__main__":
    main()
