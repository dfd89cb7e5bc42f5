"""What the verbs fit and test do around the loops of the Trainer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import lightning as L

from projects.s3rp.figures import draw_fields
from projects.s3rp.outlook import estimate
from projects.s3rp.physics import RINGING, Wind
from shared.checkpoints import load_checkpoint, with_weights
from shared.loggers import log_figure

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
    if (peclet := known.physics.peclet(known.wind)) > RINGING and trainer.is_global_zero:
        print(f"the cells' Peclet number is {peclet:.0f}: the central scheme of the physics loss rings above {RINGING:g}; take a finer grid")
    _check_reach(module, data, trainer.is_global_zero)
    trainer.callbacks.append(Pictures())  # type: ignore[attr-defined]
    L.Trainer.fit(trainer, module, datamodule=data, ckpt_path=ckpt_path)
    best = trainer.run.checkpoints / "best.ckpt"
    with_weights(module, best if best.is_file() else None)


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


def _check_reach(module: PlumeSuperResolution, data: PlumeData, is_told: bool) -> None:
    """Say if winds carry fields further in a frame than a propagator reaches."""
    propagator, known = module.propagator, data.observations("train")
    (dy, dx), interval = known.physics.spacing, known.physics.interval
    cells = max(float(known.wind.u.abs().amax()) * interval / dx, float(known.wind.v.abs().amax()) * interval / dy)
    if is_told and propagator is not None and cells > propagator.reach * propagator.steps:
        reach, wanted = propagator.reach * propagator.steps, math.ceil(cells / propagator.reach)
        print(f"winds carry up to {cells:.1f} cells a frame, forecasts reach {reach}: set model.propagation {wanted}")
