"""What the verbs fit and test do around the loops of the Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lightning as L

from projects.s3rp.figures import draw_fields
from projects.s3rp.outlook import estimate, ringing, too_fast
from projects.s3rp.physics import Wind
from shared.checkpoints import load_checkpoint, with_weights
from shared.loggers import log_figure
from shared.trainer import at_best

if TYPE_CHECKING:
    from projects.s3rp.data import PlumeData
    from projects.s3rp.module import PlumeSuperResolution
    from shared.cli import ProjectTrainer


class Pictures(L.Callback):
    """Draws a validation sequence at the end of the training's quarters."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        epochs = trainer.max_epochs or 0
        if trainer.sanity_checking or not trainer.is_global_zero or (trainer.current_epoch + 1) % max(1, epochs // 4):
            return
        module: PlumeSuperResolution = pl_module  # type: ignore[assignment]
        data: PlumeData = trainer.datamodule  # type: ignore[attr-defined]
        one = data.observations("val").select([0])
        made = estimate(trainer, module, one)[0]  # type: ignore[arg-type]
        figure = draw_fields(one.coarse[0], {"network": made}, mask=one.mask[0], wind=Wind(one.wind.u[0], one.wind.v[0]), unit=one.unit)
        log_figure(trainer, "validation", figure, trainer.global_step)


def train(trainer: ProjectTrainer, module: PlumeSuperResolution, data: PlumeData, ckpt_path: str | None) -> None:
    """Train on coarse frames, and leave the weights of the epoch with the least validation loss, which knows no truth, in the module."""
    known = data.observations("train")
    for remark in (ringing(known), too_fast(module, known)):
        if remark and trainer.is_global_zero:
            print(remark)
    trainer.callbacks.append(Pictures())  # type: ignore[attr-defined]
    L.Trainer.fit(trainer, module, datamodule=data, ckpt_path=ckpt_path)
    at_best(trainer, module)
    if (learnt := module.learnt(known.physics)) is not known.physics and trainer.is_global_zero:
        print(f"the diffusivity that was learnt is {learnt.diffusivity:.4g}, the data say {known.physics.diffusivity:.4g}")


def loaded(module: PlumeSuperResolution, ckpt_path: str | None) -> PlumeSuperResolution:
    """Load a checkpoint's weights to test or predict with.

    Raises:
        ValueError: if they were trained for another factor or boundary, which their shapes do not tell.
    """
    learnt = {} if ckpt_path is None else load_checkpoint(ckpt_path)["hyper_parameters"]
    for name in ("factor", "boundary"):
        if name in learnt and learnt[name] != module.hparams[name]:
            raise ValueError(
                f"the weights of {ckpt_path} were trained for the {name} {learnt[name]}, the data or settings have {module.hparams[name]}: "
                "take another checkpoint, or train one"
            )
    return with_weights(module, ckpt_path)
