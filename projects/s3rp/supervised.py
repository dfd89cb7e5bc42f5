"""The same network with high resolution as its target. No other file trains on truth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from projects.s3rp.module import PlumeSuperResolution, scale

if TYPE_CHECKING:
    from projects.s3rp.data import PlumeData


class SupervisedSuperResolution(PlumeSuperResolution):
    """Learns fine fields from the truth by the mean square; an upper bound, for data whose truth is known."""

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        data: PlumeData = self.trainer.datamodule  # type: ignore[attr-defined]
        truth, physics = data.truth("train"), self._known("train")
        if truth is None:
            raise ValueError("a supervised network needs the truth of the training split: expected truth/train.npz beside train.npz")
        scaled = scale(self._shortened(batch), physics)
        fields, _ = self._fields(scaled, physics)
        target = truth[batch["index"].cpu()].to(fields)[:, : fields.shape[1]] / scaled.scale
        loss = (fields - target).square().mean()
        self.log("train/loss", loss.detach(), batch_size=len(fields))
        return loss
