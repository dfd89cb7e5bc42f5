"""The verbs that every detector of forged faces has: test, predict and robustness."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from shared.cli import ProjectTrainer
from shared.forgery.data import ForgeryData
from shared.forgery.detection import ForgeryDetection

if TYPE_CHECKING:
    from shared.forgery.prediction import Predicted
    from shared.forgery.testing import Measured


class ForgeryTrainer(ProjectTrainer):
    """Lightning's trainer with the verbs of detectors."""

    reads = frozenset({"path", "detector_weights"})

    def test(self, model: ForgeryDetection, datamodule: ForgeryData, ckpt_path: str | None = None) -> None:  # type: ignore[override]
        """Test on every test set: AUC, EER, AP, accuracy and TPR at a low FPR, of frames and of videos, with intervals.

        Args:
            model: supplied.
            datamodule: supplied.
            ckpt_path: checkpoint; best (the default), last or a file.
        """
        from shared.checkpoints import with_weights
        from shared.forgery.testing import report_test

        super().test(with_weights(model, ckpt_path), datamodule=datamodule, verbose=False)
        report_test(self, model, datamodule)

    def predict(  # type: ignore[override]
        self,
        model: ForgeryDetection,
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
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process
        from shared.forgery.crops import face_detector
        from shared.forgery.prediction import predict

        in_one_process(self)
        finder = None if detector == "none" else face_detector(detector, detector_weights)
        return predict(self, with_weights(model, ckpt_path), path, finder, margin, frames)

    def robustness(
        self,
        model: ForgeryDetection,
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
        from shared.checkpoints import with_weights
        from shared.distributed import in_one_process
        from shared.forgery.testing import robustness

        in_one_process(self)
        return robustness(self, with_weights(model, ckpt_path), datamodule, perturbations, levels)
