"""Fine-tuning of a pruned diffusion model on clean pictures, with the model as it was for a teacher (Diff-Cleanse, stage 2)."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any, Literal, get_args

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import Dataset

from projects.diff_cleanse.inspection import Wear
from projects.diff_cleanse.sampling import Prediction, as_epsilon
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.callbacks import ResumePoint
from shared.checkpoints import SafeCheckpointIO
from shared.data.base import ResumableDataLoader, training_loader
from shared.distributed import own_rows
from shared.pruning import Plan, hold
from shared.seeding import generator

Loss = Literal["dual", "plain", "elijah"]


def squared_distance(first: Tensor, second: Tensor) -> Tensor:
    """Sum over pixels and mean over the batch of `(first - second)^2`, for two (B, C, H, W) tensors; a scalar."""
    return (first - second).square().sum(dim=(1, 2, 3)).mean()


def dual_loss(predicted: Tensor, eps: Tensor, taught: Tensor, weight: float = 1.0) -> Tensor:
    """`|eps - eps_theta'|^2 + weight |eps_theta - eps_theta'|^2` on clean inputs.

    Args:
        predicted: (B, C, H, W) noise predicted by the pruned network.
        eps: (B, C, H, W) noise that was added.
        taught: (B, C, H, W) noise predicted by the network before pruning: on clean inputs a good teacher, backdoor or not.
        weight: of the teacher's term, lambda.
    """
    return squared_distance(eps, predicted) + weight * squared_distance(taught, predicted)


def antithetic_timesteps(drawn: Tensor, total: int) -> Tensor:
    """Pair each of the first half of (B,) timesteps t with T - 1 - t in the second half."""
    half = (len(drawn) + 1) // 2
    return torch.cat([drawn[:half], total - 1 - drawn[:half]])[: len(drawn)]


class Repair(L.LightningModule):
    """Fine-tunes a diffusion model on clean pictures while the channels of a plan stay at zero.

    Every random number of a step is drawn for the global batch from (seed, step), and each process takes its rows.

    Args:
        unet: the network to tune; with a plan of mode "mask", one that still has all channels.
        teacher: the network as it was; it is frozen.
        schedule: the noise schedule of both.
        pictures: clean pictures, items with `image` (C, H, W) in [-1, 1].
        batch: pictures in a step, over all processes together.
        plan: channels to hold at zero; None holds none.
        loss: `dual`, `plain` (without the teacher's term), or `elijah`: plain, and at the last timestep the teacher's answers to clean noise
            for clean and for triggered noise alike (An et al. 2024).
        wear: puts the trigger on noise; only for `elijah`.
        weight: of the teacher's term of `dual`.
        lr: learning rate of Adam, which falls to 0 as a cosine.
        ema_decay: decay of the running average of the weights, which is the outcome.
        prediction_type: what the networks predict.
        num_workers: processes that read pictures for each training process.
        seed: seed of noise, timesteps and the order of pictures.

    Raises:
        ValueError: for an unknown loss, or `elijah` without a trigger.
    """

    strict_loading = False  # checkpoints leave the teacher out

    def __init__(
        self,
        unet: nn.Module,
        teacher: nn.Module,
        schedule: NoiseSchedule,
        pictures: Dataset,
        batch: int,
        plan: Plan | None = None,
        loss: Loss = "dual",
        wear: Wear | None = None,
        weight: float = 1.0,
        lr: float = 2e-4,
        ema_decay: float = 0.999,
        prediction_type: Prediction = "epsilon",
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if loss not in get_args(Loss):
            raise ValueError(f"unknown loss {loss!r}; known are {', '.join(get_args(Loss))}")
        if loss == "elijah" and wear is None:
            raise ValueError("the loss elijah needs a trigger")
        if not any(parameter.requires_grad for parameter in unet.parameters()):  # else what is frozen, such as Fourier frequencies, stays so
            unet.requires_grad_(True)
        self.unet, self.ema = unet.train(), deepcopy(unet).eval().requires_grad_(False)
        self.teacher = teacher.eval().requires_grad_(False)
        self.schedule, self.plan, self.loss, self.wear, self.weight = schedule, plan, loss, wear, weight
        self.pictures, self.batch, self.num_workers = pictures, batch, num_workers
        self.lr, self.prediction_type, self.seed = lr, prediction_type, seed
        self._average = get_ema_multi_avg_fn(ema_decay)

    def train_dataloader(self) -> ResumableDataLoader:
        return training_loader(self.pictures, self.batch, self.seed, num_workers=self.num_workers, persistent_workers=self.num_workers > 0)

    def on_train_start(self) -> None:
        if self.plan is not None:
            self.plan = Plan(self.plan.index, self.trainer.strategy.broadcast(self.plan.dropped), self.plan.norm, self.plan.mode)
            self.held = hold(self.unet, self.plan, self.trainer.optimizers, [self.ema])

    def on_train_end(self) -> None:
        if self.plan is not None:
            self.held.release()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images, total = batch["image"], len(self.schedule)
        global_batch = len(images) * self.trainer.world_size
        random = generator(self.seed, "repair", self.global_step, device=self.device)
        drawn = torch.randint(total, (global_batch,), generator=random, device=self.device)
        t = own_rows(antithetic_timesteps(drawn, total))
        eps = own_rows(torch.randn(global_batch, *images.shape[1:], generator=random, device=self.device))
        loss = self._loss(self.schedule.add_noise(images, eps, t), eps, t)
        self.log("cleanse/loss", loss, prog_bar=True, batch_size=len(images), sync_dist=True)
        return loss

    def _loss(self, noisy: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        predicted = self._predict(self.unet, noisy, t)
        if self.loss == "dual":
            return dual_loss(predicted, eps, self._predict(self.teacher, noisy, t), self.weight)
        plain = squared_distance(eps, predicted)
        if self.loss == "plain":
            return plain
        assert self.wear is not None
        last = torch.full_like(t, len(self.schedule) - 1)
        wanted = self._predict(self.teacher, eps, last)
        answers = (self._predict(self.unet, start, last) for start in (self.wear(eps), eps))
        return plain + sum(squared_distance(answer, wanted) for answer in answers)

    def _predict(self, network: nn.Module, noisy: Tensor, t: Tensor) -> Tensor:
        with torch.set_grad_enabled(network is not self.teacher):
            return as_epsilon(network, self.schedule, self.prediction_type)(noisy, t).float()

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._average(list(self.ema.parameters()), list(self.unet.parameters()), 0)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.Adam(self.unet.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, int(self.trainer.estimated_stepping_batches))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if not name.startswith("teacher.")}


def fit(module: Repair, steps: int, trainer: L.Trainer | None = None, state: Path | None = None, every: int = 100) -> None:
    """Run a fine-tuning, or go on with an interrupted one.

    Args:
        module: what is tuned.
        steps: number of steps.
        trainer: its number of steps is set, whatever it did before; None makes one for a single process.
        state: the checkpoint to keep, and to go on from if it is there; None keeps none.
        every: steps between two saves of it.
    """
    if trainer is None:
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = L.Trainer(devices=1, gradient_clip_val=1.0, plugins=[SafeCheckpointIO()], **quiet)
    trainer.fit_loop = type(trainer.fit_loop)(trainer, max_epochs=-1)  # anew: an earlier tuning of the same trainer has used its steps up
    trainer.fit_loop.epoch_loop = type(trainer.fit_loop.epoch_loop)(trainer, max_steps=steps)
    others = [callback for callback in trainer.callbacks if not isinstance(callback, ResumePoint)]  # type: ignore[attr-defined]
    trainer.callbacks = others if state is None else [*others, ResumePoint(state.parent, every)]  # type: ignore[attr-defined]
    L.Trainer.fit(trainer, module, ckpt_path=str(state) if state is not None and state.is_file() else None, weights_only=True)
