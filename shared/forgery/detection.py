"""What detectors of forged faces have in common: validation by videos, testing set by set, and the scores of sets in memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L
import torch
from torch import Tensor
from torch.nn import ModuleList

from shared.forgery.data import ForgeryData
from shared.forgery.evaluation import ForgeryMeasure, ForgeryRank, ForgeryScores, table
from shared.forgery.metrics import Scored
from shared.forgery.sets import ForgerySet
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed

Batch = dict[str, Tensor]
_Detection = TypeVar("_Detection", bound="ForgeryDetection")


class ForgeryDetection(L.LightningModule):
    """A detector whose `forward` maps (B, 3, H, W) images, uint8 or floats in [0, 1], to (B,) probabilities of being fake, float32.

    Its hyper-parameters have `size`, the side of the images in pixels, and `seed`.

    Attributes:
        test_rows: a row a test set and one of their mean, after testing.
    """

    monitor = ("val/rank", "max")

    if TYPE_CHECKING:
        hparams: Any  # the arguments of a subclass, by name

    def __init__(self) -> None:
        super().__init__()
        self.val_video, self.val_frame, self.val_rank = ForgeryMeasure("video_auroc"), ForgeryMeasure("frame_auroc"), ForgeryRank()
        self.test_scores = ModuleList()
        self.test_rows: list[dict[str, Any]] = []

    def explanation(self, images: Tensor) -> Tensor | None:
        """Return a sheet, (3, height, width) in [0, 1], of where the detector looks in (B, 3, H, W) uint8 images; None if it cannot tell."""
        return None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        scores = self(batch["image"])
        for name, metric in (("video_auroc", self.val_video), ("frame_auroc", self.val_frame), ("rank", self.val_rank)):
            metric.update(scores, batch["label"], batch["video"], batch["index"])
            self.log(f"val/{name}", metric, prog_bar=name == "video_auroc", batch_size=len(scores))

    def on_test_start(self) -> None:
        names = self.trainer.datamodule.test_names  # type: ignore[attr-defined]
        self.test_scores = ModuleList(ForgeryScores() for _ in names).to(self.device)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        metric = self.test_scores[dataloader_idx]
        assert isinstance(metric, ForgeryScores)
        metric.update(self(batch["image"]), batch["label"], batch["video"], batch["index"])

    def tested(self) -> dict[str, Scored]:
        """Return the scored frames of every test set, by its name; to be called by all processes after testing."""
        names = self.trainer.datamodule.test_names  # type: ignore[attr-defined]
        return {name: metric.scored() for name, metric in zip(names, self.test_scores, strict=True)}  # type: ignore[operator]

    def on_test_epoch_end(self) -> None:
        self.test_rows = table(self.tested())
        for row in self.test_rows:
            suffix = "" if row["set"] == self.test_rows[-1]["set"] else f"_{row['set']}"
            self.log_dict({f"test/{name}{suffix}": row[name] for name in ("frame_auroc", "video_auroc")}, rank_zero_only=True)


def fit_detector(module: _Detection, data: ForgeryData, epochs: int, **options: Any) -> _Detection:
    """Train a detector without a word and return it as it is after the last epoch, in evaluation mode, on the CPU; options: those of `L.Trainer`.

    What it draws follows from its hyper-parameter `seed`; the generator of the process is left as it was.
    """
    data.setup()
    with silence(), torch.random.fork_rng():
        torch.manual_seed(derive_seed(module.hparams.seed, "training"))
        quiet_trainer(epochs, limit_val_batches=0, **options).fit(module, data.train_dataloader(), data.val_dataloader())
    return module.eval().cpu()


@torch.inference_mode()
def score(
    module: ForgeryDetection,
    images: ForgerySet,
    batch_size: int = 128,
    change: Callable[[Tensor, Tensor], Tensor] = lambda images, indices: images,
) -> Scored:
    """Score every frame of a set in evaluation mode, on the module's device.

    Args:
        module: the detector.
        images: the set.
        batch_size: frames that are scored together.
        change: what is done to (B, 3, H, W) uint8 frames with the numbers (B,) before they are scored.
    """
    module.eval()
    scores = []
    for indices in torch.arange(len(images)).split(batch_size):
        batch = images.__getitems__(indices.tolist())
        scores.append(module(change(batch["image"], batch["index"]).to(module.device)).cpu())
    return Scored(torch.cat(scores), images.labels, images.video)
