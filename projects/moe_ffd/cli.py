"""MoE-FFD: detect forged faces by a frozen vision transformer with mixtures of experts, and test how far it generalises."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.moe_ffd.data import ForgeryData
from projects.moe_ffd.module import FaceForgeryDetection
from shared.cli import ProjectCLI, run
from shared.forgery.trainer import ForgeryTrainer
from shared.trainer import at_best

if TYPE_CHECKING:
    from projects.moe_ffd.export import Exported


class Trainer(ForgeryTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "convert", "pretrain", "reproduce"})
    resumable = frozenset({"fit", "reproduce"})
    follow_up = MappingProxyType({"fit": "predict FOLDER", "test": "robustness"})

    def fit(self, model: FaceForgeryDetection, datamodule: ForgeryData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train the detector, keep what was trained in a small file, and test the best epoch on every test set.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.moe_ffd.tasks import keep_delta

        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        keep_delta(self, at_best(self, model))
        self.test(model, datamodule)

    def test(self, model: FaceForgeryDetection, datamodule: ForgeryData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Test on every test set: AUC, EER, AP, accuracy and TPR at a low FPR, of frames and of videos, with intervals, and the experts' use.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.moe_ffd.tasks import report_usage

        super().test(model, datamodule, ckpt_path)
        report_usage(self, model, datamodule)

    def export(self, model: FaceForgeryDetection, datamodule: ForgeryData, ckpt_path: str | None = None) -> Exported:
        """Write the detector as detector.onnx for other runtimes, check it against this software, and time it on the CPU; needs the extra onnx.

        Args:
            model: supplied.
            datamodule: supplied; its data are not needed.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.moe_ffd.export import export
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        return export(self, with_weights(model, ckpt_path))

    def convert(self, model: FaceForgeryDetection, datamodule: ForgeryData, path: str) -> None:
        """Make a run of a delta checkpoint, or of the weights that the authors released (with --config released), for test and predict to work on.

        Args:
            model: supplied.
            datamodule: supplied.
            path: delta.safetensors, or the authors' tensors as .pth or .safetensors.
        """
        from projects.moe_ffd.tasks import convert

        convert(self.run, model, path)

    def pretrain(
        self,
        model: FaceForgeryDetection,
        datamodule: ForgeryData,
        backbone: Literal["tiny", "tiny_wide"] = "tiny",
        seed: int = 0,
        scenes: int = 1400,
        epochs: int = 10,
    ) -> None:
        """Pretrain a tiny backbone on drawn scenes without faces; name its file as model.weights of fit.

        Args:
            model: supplied; its options do not matter.
            datamodule: supplied.
            backbone: tiny, of 64 features a token, or tiny_wide, of 96.
            seed: seed of scenes and weights.
            scenes: scenes to train on.
            epochs: passes over them; trainer.max_epochs does not matter.
        """
        from projects.moe_ffd.pretraining import pretrain
        from shared.distributed import in_one_process
        from shared.messages import shown_path

        in_one_process(self)
        path = pretrain(self.run.artefacts("pretrain"), seed, epochs, scenes, backbone, enable_progress_bar=True)
        print(f"fit with it: lightning run projects/moe_ffd/cli.py fit --model.backbone {backbone} --model.weights {shown_path(path)}")

    def reproduce(
        self,
        model: FaceForgeryDetection,
        datamodule: ForgeryData,
        table: Literal["all", "adaptations", "crossover", "ablation", "routing", "robustness"] = "all",
        seeds: int | None = None,
        jobs: int | None = None,
        quick: bool = False,
        write: bool = False,
    ) -> None:
        """Reproduce the paper's claims on drawn faces over seeds.

        Args:
            model: supplied.
            datamodule: supplied.
            table: adaptations (experts beside full fine-tuning and others), crossover (over the number of images), ablation (which experts), routing
                (what gates learn), robustness (perturbed images), or all.
            seeds: number of seeds, from 0; five by default.
            jobs: computations at the same time, one thread each; the default is one a core, or one where there is a GPU.
            quick: one seed, little training and few rows, to see that everything runs.
            write: write the tables into the project's README.
        """
        from projects.moe_ffd.reproduction import TABLES
        from shared.tables import reproduce

        reproduce(self, __file__, TABLES, table, seeds, jobs, quick, write)


def main(args: Sequence[str] | None = None) -> ProjectCLI:
    """Run the command line with `args`, or with those of the process."""
    return run(FaceForgeryDetection, ForgeryData, Trainer, args)


if __name__ == "__main__":
    main()
