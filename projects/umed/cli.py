"""UMed: protect a medical segmentation data set before it is published, and prove that it is protected."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.umed.data import ProtectionData
from projects.umed.module import Protector
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.umed.tasks import Attacked, Published, Verified


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "bench", "reproduce"})
    reads = frozenset({"path"})
    resumable = frozenset({"fit", "protect", "predict", "bench", "reproduce"})
    follow_up = MappingProxyType({"fit": "protect"})

    def fit(self, model: Protector, datamodule: ProtectionData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train the generators and their surrogate by turns, and measure the protected test images.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.umed.callbacks import Protections

        self.callbacks.append(Protections())  # type: ignore[attr-defined]
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        self._measure(model, datamodule)

    def test(self, model: Protector, datamodule: ProtectionData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Measure protected test images on the integers that are stored: PSNR, SSIM, largest change, and what the surrogate makes of them.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from shared.checkpoints import with_weights

        self._measure(with_weights(model, ckpt_path), datamodule)

    def _measure(self, model: Protector, datamodule: ProtectionData) -> None:
        super().test(model, datamodule=datamodule, verbose=False)
        found = {name.removeprefix("test/"): float(value) for name, value in self.callback_metrics.items() if name.startswith("test/")}
        if self.is_global_zero and found:
            print("protected test images: " + ", ".join(f"{name} {value:.4g}" for name, value in found.items()))

    def protect(
        self,
        model: Protector,
        datamodule: ProtectionData,
        path: str | None = None,
        out: str | None = None,
        ckpt_path: str | None = None,
    ) -> Published:
        """Write protected copies of images with masks: lossless PNG under the old names, masks beside them, and what was measured on them.

        Args:
            model: supplied.
            datamodule: supplied.
            path: your FOLDER/images/* and FOLDER/masks/* with the same names; by default all images of the data source.
            out: folder to write to; by default among the run's artefacts.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        from projects.umed.tasks import protect
        from shared.checkpoints import with_weights

        return protect(self, with_weights(model, ckpt_path), datamodule, path, out)

    def predict(  # type: ignore[override]
        self,
        model: Protector,
        datamodule: ProtectionData,
        path: str | None = None,
        out: str | None = None,
        ckpt_path: str | None = None,
    ) -> Published:
        """Protect, under the name that every project has.

        Args:
            model: supplied.
            datamodule: supplied.
            path: your FOLDER/images/* and FOLDER/masks/* with the same names; by default all images of the data source.
            out: folder to write to; by default among the run's artefacts.
            ckpt_path: checkpoint; last (the default) or a file.
        """
        return self.protect(model, datamodule, path, out, ckpt_path)

    def verify(
        self,
        model: Protector,
        datamodule: ProtectionData,
        path: str | None = None,
        exploiter: str = "unet",
        recipe: Literal["auto", "paper", "quick"] = "auto",
        epochs: int | None = None,
        limit: float = 30.0,
        seed: int = 0,
    ) -> Verified:
        """Train an exploiter on the clean and on the protected copy, and test both on clean images. Exit code 1 unless the set is protected.

        Args:
            model: supplied.
            datamodule: supplied.
            path: what protect wrote for this data source; by default what it wrote in this run.
            exploiter: unet, attention_unet, unetpp, resunet, transunet or swinunet.
            recipe: paper (100 epochs of the full network), quick (for small images on a CPU), or auto: quick for drawn images.
            epochs: epochs; the default is the recipe's.
            limit: largest DSC on clean test images, in %, of a set that counts as protected.
            seed: seed of the exploiter.
        """
        from projects.umed.tasks import verify

        return verify(self, datamodule, path, exploiter, recipe, epochs, limit, seed)

    def attack(
        self,
        model: Protector,
        datamodule: ProtectionData,
        path: str | None = None,
        exploiter: str = "unet",
        defence: str = "none",
        recipe: Literal["auto", "paper", "quick"] = "auto",
        epochs: int | None = None,
        seed: int = 0,
    ) -> Attacked:
        """Train an exploiter with a defence on the protected copy, and test it on clean images.

        Args:
            model: supplied.
            datamodule: supplied.
            path: what protect wrote for this data source; by default what it wrote in this run.
            exploiter: unet, attention_unet, unetpp, resunet, transunet or swinunet.
            defence: none, jpeg:Q, blur:SIGMA, median:SIDE, bits:B, gamma:G, resize:PART, affine:DEGREES, at:LEVELS or mix:SHARE;
                jpeg to resize may end in +test, such as blur:1+test, which maps test images as well.
            recipe: paper (100 epochs of the full network), quick (for small images on a CPU), or auto: quick for drawn images.
            epochs: epochs; the default is the recipe's.
            seed: seed of the exploiter.
        """
        from projects.umed.tasks import attack

        return attack(self, datamodule, path, exploiter, defence, recipe, epochs, seed)

    def bench(
        self,
        model: Protector,
        datamodule: ProtectionData,
        methods: list[str] | None = None,
        exploiters: list[str] | None = None,
        defences: list[str] | None = None,
        seeds: int = 3,
        jobs: int | None = None,
        recipe: Literal["auto", "paper", "quick"] = "auto",
    ) -> None:
        """Compare protections against exploiters and defences over seeds on the data source; goes on where it stopped with --resume.

        Args:
            model: supplied; its options are those of the method umed.
            datamodule: supplied.
            methods: clean, umed, random, random_whole, checkerboard, lsp_roi, ar_roi, em, tap, sep, em_whole, tap_whole or sep_whole; the default is
                clean, umed and checkerboard.
            exploiters: networks; the default is unet and attention_unet.
            defences: defences; the default is none, jpeg:50 and blur:1.
            seeds: number of seeds, from 0.
            jobs: computations at the same time; the default is one a core, or one where there is a GPU.
            recipe: paper, quick, or auto: quick for drawn images.
        """
        from projects.umed.benchmark import bench

        bench(self, model, datamodule, methods, exploiters, defences, seeds, jobs, recipe)

    def reproduce(
        self,
        model: Protector,
        datamodule: ProtectionData,
        table: Literal["all", "protection", "ablation", "baselines"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on small data over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: protection (exploiters and blur, beside a checkerboard), ablation (parts, convolutions, ratios, bounds, shares), baselines, or all.
            seeds: number of seeds, from 0; three by default.
            jobs: computations at the same time, one thread each; the default is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.umed.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(Protector, ProtectionData, Trainer, args)


if __name__ == "__main__":
    main()
