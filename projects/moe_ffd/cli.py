"""MoE-FFD: detect forged faces by a frozen vision transformer with mixtures of experts, and test how far it generalises."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from projects.moe_ffd.data import ForgeryData
from projects.moe_ffd.module import FaceForgeryDetection
from shared.cli import ProjectCLI, ProjectTrainer, run

if TYPE_CHECKING:
    from projects.moe_ffd.prediction import Predicted
    from projects.moe_ffd.tasks import Measured


class Trainer(ProjectTrainer):
    """Lightning's trainer with this project's verbs."""

    makes_run = frozenset({"fit", "convert", "pretrain", "reproduce"})
    reads = frozenset({"path", "file", "detector_weights"})
    resumable = frozenset({"fit", "reproduce"})
    follow_up = MappingProxyType({"fit": "predict", "test": "robustness"})

    def fit(self, model: FaceForgeryDetection, datamodule: ForgeryData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Train the detector, keep what was trained in a small file, and test the best epoch on every test set.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint to go on from; --resume finds the last one by itself.
        """
        from projects.moe_ffd.tasks import keep_delta, report_test, say_what_trains
        from shared.checkpoints import with_weights

        say_what_trains(model)
        super().fit(model, datamodule=datamodule, ckpt_path=ckpt_path)
        best = self.run.checkpoints / "best.ckpt"
        with_weights(model, str(best) if best.is_file() else None)
        keep_delta(self, model)
        super().test(model, datamodule=datamodule, verbose=False)
        report_test(self, model, datamodule)

    def test(self, model: FaceForgeryDetection, datamodule: ForgeryData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Test on every test set: AUC, EER, AP, accuracy and TPR at a low FPR, of frames and of videos, with intervals, and the experts' use.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.moe_ffd.tasks import report_test
        from shared.checkpoints import with_weights

        super().test(with_weights(model, ckpt_path), datamodule=datamodule, verbose=False)
        report_test(self, model, datamodule)

    def predict(  # type: ignore[override]
        self,
        model: FaceForgeryDetection,
        datamodule: ForgeryData,
        path: str,
        detector: Literal["cascade", "yunet", "none"] = "cascade",
        detector_weights: str | None = None,
        margin: float = 1.3,
        frames: int = 32,
        ckpt_path: str | None = None,
    ) -> Predicted:
        """Judge an image, a video, or a folder of images, videos and sub-folders of frames: how probably each is fake, frame by frame.

        Args:
            model: supplied.
            datamodule: supplied.
            path: the file or folder.
            detector: finds the faces: cascade (frontal faces), yunet (OpenCV's, with its file of weights) or none for images that are face crops.
            detector_weights: file of weights of yunet.
            margin: side of the face crop in sides of the face's box; take that of the training images.
            frames: frames of each video, evenly spaced.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.moe_ffd.prediction import predict
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process
        from shared.forgery.crops import face_detector

        in_one_process(self)
        finder = None if detector == "none" else face_detector(detector, detector_weights)
        return predict(self, with_weights(model, ckpt_path), path, finder, margin, frames)

    def robustness(
        self,
        model: FaceForgeryDetection,
        datamodule: ForgeryData,
        perturbations: list[str] | None = None,
        levels: list[int] | None = None,
        ckpt_path: str | None = None,
    ) -> Measured:
        """Measure the AUC after perturbations of the test images, and draw it over their levels.

        Args:
            model: supplied.
            datamodule: supplied.
            perturbations: any of saturation, contrast, blocks, noise, blur, pixelation, jpeg; all by default.
            levels: from 1 (mild) to 5 (strong); all by default.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from projects.moe_ffd.tasks import robustness
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process

        in_one_process(self)
        return robustness(self, with_weights(model, ckpt_path), datamodule, perturbations, levels)

    def convert(self, model: FaceForgeryDetection, datamodule: ForgeryData, file: str) -> None:
        """Make a run of a delta checkpoint, or of the weights that the authors released (with --config released), for test and predict to work on.

        Args:
            model: supplied.
            datamodule: supplied.
            file: delta.safetensors, or the authors' .pth file of tensors.
        """
        from projects.moe_ffd.tasks import convert

        convert(self.run, model, file)

    def pretrain(self, model: FaceForgeryDetection, datamodule: ForgeryData, seed: int = 0, scenes: int = 1400) -> None:
        """Pretrain the tiny backbone on drawn scenes without faces; name its file as model.weights of fit.

        Args:
            model: supplied; its options do not matter.
            datamodule: supplied.
            seed: seed of scenes and weights.
            scenes: scenes to train on.
        """
        from projects.moe_ffd.pretraining import pretrain
        from shared.distributed import in_one_process
        from shared.messages import shown_path

        in_one_process(self)
        path = pretrain(self.run.artefacts("pretrain"), seed, self.max_epochs or 10, scenes, enable_progress_bar=True)
        print(f"fit with it: lightning run projects/moe_ffd/cli.py fit --model.weights {shown_path(path)}")

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
