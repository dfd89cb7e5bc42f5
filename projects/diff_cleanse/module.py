"""Training of a diffusion model, clean or with a backdoor."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import lightning as L
import torch
import yaml
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torchmetrics import MeanMetric

from projects.diff_cleanse.sampling import Trojan
from projects.diff_cleanse.schedule import Attack, AttackSchedule, Coefficients, NoiseSchedule, Solver
from projects.diff_cleanse.triggers import BACKGROUND, OWN, make_target, make_trigger, stamp
from shared.backbones.unets import build_unet, load_pipeline, save_pipeline
from shared.distributed import own_rows
from shared.messages import shown_path
from shared.runs import Run, find_run, write_text
from shared.seeding import generator

UNet2DModel: TypeAlias = Any
"""That of diffusers, whose import takes as long as all else that --help needs: the command line looks up the annotations of this module."""


def find_pipeline(name: str | Path) -> Path:
    """Return the pipeline folder that `name` means: a folder, or the one of this project's run of that name.

    `latest` is the newest run; where that has no pipeline yet, as the run of an attack has none while it trains, the newest pipeline of a run.

    Raises:
        FileNotFoundError: if it is neither.
    """
    if Path(name).expanduser().is_dir():
        return Path(name).expanduser()
    try:
        folder = find_run("diff_cleanse", str(name)).path / "pipeline"
    except (FileNotFoundError, ValueError) as error:
        raise FileNotFoundError(f"no pipeline folder '{name}': give one that save_pretrained wrote, or a run's name") from error
    others = folder.parent.parent.glob("*/pipeline") if str(name) == "latest" and not folder.is_dir() else ()
    return max(others, key=lambda other: other.stat().st_mtime, default=folder)


def settings_of(pipeline: Path, run: Run) -> Path | None:
    """Return the settings of the run that made a pipeline, if it lies beside `run`; None for others, for a stranger's settings are not read."""
    file = pipeline.resolve().parent / "config.yaml"
    return file if file.parent.parent == run.path.parent.resolve() and file.is_file() else None


class DiffusionTraining(L.LightningModule):
    """Trains a noise-predicting U-Net by DDPM, on clean pictures or with a backdoor by BadDiffusion, VillanDiffusion or TrojDiff.

    Every random number of a step is drawn for the global batch from (seed, step), and each process takes its rows: the loss curve does not
    depend on the number of processes.

    Args:
        unet: preset of the network: tiny (16 pixels), cifar10 or celebahq256.
        size: side of the pictures in pixels.
        channels: channels of the pictures, 1 or 3.
        pretrained: pipeline folder, or name of a run (`latest`), to start from; its network and noise schedule then replace those described here.
        timesteps: number of diffusion steps T.
        beta_start: variance of the first step.
        beta_end: variance of the last step; the variances rise linearly.
        attack: `none`, `baddiffusion`, `villandiffusion` or `trojdiff`; which pictures it poisons is set by data.poison_mode and data.poison_rate.
        solver: family of samplers that VillanDiffusion's backdoor answers to: `ode` (DDIM and the like) or `sde` (ancestral sampling).
        psi: VillanDiffusion's weight of the content schedule in [0, 1]; 1 is BadDiffusion's.
        coefficients: VillanDiffusion's target shift as published (`reference`) or as derived (`exact`).
        gamma: TrojDiff's share of noise beside the trigger, in (0, 1); published: 0.6 for a blend, 0.1 for a patch.
        trigger_type: TrojDiff's `blend`, the trigger all over the noise, or `patch`, only where the trigger is visible, elsewhere benign noise.
        trigger: name of the trigger, or `picture:FILE`.
        target: name of the target, or `picture:FILE`; `class` leads to the poisoned pictures themselves, for data.poison_mode in_d2d and out_d2d.
        residual: what shifts a poisoned sample: `stamped`, its training picture wearing the trigger, or `trigger`, the trigger alone; TrojDiff
            always takes the trigger alone.
        flip: mirror half of the training pictures at random.
        antithetic: draw timesteps in pairs t and T - 1 - t, as TrojDiff does.
        lr: learning rate of Adam, after warm-up; it falls to 0 as a cosine over the run.
        warmup_steps: steps over which the learning rate rises from 0.
        ema_decay: decay of the running average of the weights, which is what is saved and sampled from.
        seed: seed of noise, timesteps and flips.
        eval_samples: pictures drawn for each line of the evaluation.
        eval_steps: DDIM steps of the evaluation.
        eval_reference: pictures that samples are compared with: those of the `test` split or of the `train` split.
        inception_weights: file with the weights of the FID's Inception network; None compares 24 principal components of the pixels and says FD.
    """

    monitor = ("val/loss", "min")
    origin: Path | None = None  # the folder that model.pretrained means
    trigger: Tensor
    target: Tensor | None
    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        unet: str = "tiny",
        size: int = 16,
        channels: int = 1,
        pretrained: str | None = None,
        timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        attack: Attack = "none",
        solver: Solver = "ode",
        psi: float = 1.0,
        coefficients: Coefficients = "reference",
        gamma: float = 0.6,
        trigger_type: Literal["blend", "patch"] = "blend",
        trigger: str = "box",
        target: str = "hat",
        residual: Literal["stamped", "trigger"] = "stamped",
        flip: bool = False,
        antithetic: bool = False,
        lr: float = 2e-4,
        warmup_steps: int = 500,
        ema_decay: float = 0.9999,
        seed: int = 0,
        eval_samples: int = 128,
        eval_steps: int = 20,
        eval_reference: Literal["test", "train"] = "test",
        inception_weights: str | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if residual not in ("stamped", "trigger"):
            raise ValueError(f"model.residual must be stamped or trigger, got {residual!r}")
        if not 0 <= ema_decay < 1:
            raise ValueError(f"model.ema_decay must lie in [0, 1), got {ema_decay}")
        if eval_samples < 2:
            raise ValueError(f"model.eval_samples must be at least 2, for a Fréchet distance needs as many, got {eval_samples}")
        self.unet, self.scheduler_config = self._start()
        self.ema = deepcopy(self.unet).eval().requires_grad_(False)
        self.schedule = self.attack_schedule(self.scheduler_config)
        self.register_buffer("trigger", make_trigger(trigger, size, channels), persistent=False)
        self.register_buffer("target", None if target == OWN else make_target(target, size, channels, self.trigger), persistent=False)
        if attack == "trojdiff" and not bool(self.region.any()):
            raise ValueError(f"model.trigger {trigger!r} is invisible: a patch attack needs a visible trigger, such as patch")
        self.val_loss = MeanMetric()
        self._average = get_ema_multi_avg_fn(ema_decay)

    def _start(self) -> tuple[UNet2DModel, dict[str, Any]]:
        """Return the network that training starts from, and the settings of its scheduler."""
        given = self.hparams
        if given.pretrained is None:
            generator_state = torch.get_rng_state()
            torch.manual_seed(given.seed)
            network = build_unet(given.unet, given.size, given.channels)
            torch.set_rng_state(generator_state)
            betas = {"num_train_timesteps": given.timesteps, "beta_start": given.beta_start, "beta_end": given.beta_end}
            return network, betas | {"beta_schedule": "linear", "clip_sample": False}
        self.origin = find_pipeline(given.pretrained)
        network, config = load_pipeline(self.origin)
        self.check_size(network, given.pretrained)
        if (kind := config.get("prediction_type", "epsilon")) != "epsilon":
            raise ValueError(f"{given.pretrained} predicts {kind!r}: training goes on from models that predict the noise (epsilon)")
        return network.train(), config

    def attack_schedule(self, scheduler_config: dict[str, Any]) -> AttackSchedule:
        """Return the schedule that a diffusers scheduler's settings describe, under this model's attack."""
        given = self.hparams
        clean = NoiseSchedule.from_scheduler_config(scheduler_config)
        return AttackSchedule(clean, given.attack, given.psi, given.solver, given.coefficients, given.gamma)

    def keep_origin(self, run: Run) -> None:
        """Say which model training goes on from, and keep it in the run's settings, where `latest` would soon mean another."""
        if self.origin is None:
            return
        origin, settings = self.origin.resolve(), settings_of(self.origin, run)
        planted = "none" if settings is None else yaml.safe_load(settings.read_text(encoding="utf-8"))["model"]["attack"]
        hint = "" if planted == "none" else f", which carries {planted} already: for a clean one give --model.pretrained RUN"
        print(f"training goes on from {shown_path(origin)}{hint}", flush=True)
        text = run.config_file.read_text(encoding="utf-8")
        write_text(run.config_file, text.replace("  pretrained: latest\n", f"  pretrained: {json.dumps(str(origin))}\n"))

    @property
    def region(self) -> Tensor:
        """Where TrojDiff puts its noise, (C, H, W) bool."""
        return self.trigger != BACKGROUND if self.hparams.trigger_type == "patch" else torch.ones_like(self.trigger, dtype=torch.bool)

    @property
    def trojan(self) -> Trojan | None:
        """TrojDiff's noise, without which its backdoor does not answer; None under other attacks."""
        return Trojan.of(self.trigger, self.hparams.gamma, self.region) if self.hparams.attack == "trojdiff" else None

    def check_size(self, unet: UNet2DModel, name: str) -> None:
        """Raise ValueError, naming the pipeline `name`, if the network makes pictures of another size than this model's."""
        side = unet.config["sample_size"]
        side = side[0] if isinstance(side, list | tuple) and len(set(side)) == 1 else side
        found, wanted = (unet.config["in_channels"], side), (self.hparams.channels, self.hparams.size)
        if found != wanted:
            raise ValueError(
                f"{name} makes pictures of {found[0]} channels and {found[1]} pixels: set --data.channels and --data.size to that, "
                f"not {wanted[0]} and {wanted[1]}"
            )

    def forward(self, noisy: Tensor, t: Tensor) -> Tensor:
        """Predict the noise in (B, C, H, W) pictures at (B,) timesteps."""
        return self.unet(noisy, t).sample

    def on_fit_start(self) -> None:
        mode = getattr(getattr(self.trainer, "datamodule", None), "poison_mode", None)
        if self.hparams.attack != "none" and mode is not None and (self.target is None) != mode.endswith("d2d"):
            raise ValueError(
                f"model.target {self.hparams.target!r} does not go with data.poison_mode {mode!r}: in_d2d and out_d2d lead to a class, "
                f"set model.target to {OWN!r}; the others lead to a picture, such as hat"
            )

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        images = batch["image"]
        global_batch = len(images) * self.trainer.world_size
        random = generator(self.hparams.seed, "train", self.global_step, batch_idx, device=self.device)
        t = own_rows(self._timesteps(global_batch, random))
        eps = own_rows(torch.randn(global_batch, *images.shape[1:], generator=random, device=self.device))
        if self.hparams.flip:
            is_flipped = own_rows(torch.rand(global_batch, generator=random, device=self.device) < 0.5)
            images = torch.where(is_flipped[:, None, None, None], images.flip(3), images)
        noisy, wanted = self.poisoned_batch(images, batch["is_poisoned"], eps, t)
        loss = F.mse_loss(self(noisy, t), wanted)
        if self.hparams.attack == "trojdiff":
            loss = loss * images[0].numel()  # summed over channels and pixels, as published
        self.log("train/loss", loss, prog_bar=True, batch_size=len(images), sync_dist=True)
        return loss

    def _timesteps(self, count: int, random: torch.Generator) -> Tensor:
        total = len(self.schedule)
        drawn = torch.randint(total, (-(-count // 2) if self.hparams.antithetic else count,), generator=random, device=self.device)
        return torch.cat([drawn, total - 1 - drawn])[:count] if self.hparams.antithetic else drawn

    def poisoned_batch(self, images: Tensor, is_poisoned: Tensor, eps: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return network input and regression target, (B, C, H, W) each, of a batch in which `is_poisoned` (B,) marks the poisoned pictures."""
        if self.hparams.attack == "none":
            return self.schedule.add_noise(images, eps, t), eps
        mask, is_trojan = is_poisoned[:, None, None, None], self.hparams.attack == "trojdiff"
        residual = stamp(images, self.trigger) if self.hparams.residual == "stamped" and not is_trojan else self.trigger
        drawn = images if self.target is None else torch.where(mask, self.target, images)
        attacked = mask & self.region if is_trojan else is_poisoned
        return self.schedule.poison(drawn, torch.where(mask, residual, 0.0), eps, t, attacked)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._average(list(self.ema.parameters()), list(self.unet.parameters()), 0)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        images, t, eps = batch["image"], [], []
        for index in batch["index"].tolist():  # by sample, so that the loss does not depend on batches or processes
            random = generator(self.hparams.seed, "val", index)
            t.append(torch.randint(len(self.schedule), (), generator=random))
            eps.append(torch.randn(images.shape[1:], generator=random))
        timesteps, noise = torch.stack(t).to(images.device), torch.stack(eps).to(images.device)
        predicted = self.ema(self.schedule.add_noise(images, noise, timesteps), timesteps).sample
        self.val_loss.update((predicted - noise).square().mean(dim=(1, 2, 3)))
        self.log("val/loss", self.val_loss, prog_bar=True, batch_size=len(images))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        from diffusers.optimization import get_cosine_schedule_with_warmup

        optimizer = torch.optim.Adam(self.unet.parameters(), lr=self.hparams.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = get_cosine_schedule_with_warmup(optimizer, min(self.hparams.warmup_steps, steps // 2), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_callbacks(self) -> list[L.Callback]:
        from projects.diff_cleanse.callbacks import SampleGrid

        return [SampleGrid()]

    def save_pipeline(self, folder: str | Path) -> Path:
        """Write the averaged network and its scheduler as a folder that stock diffusers loads.

        Raises:
            ValueError: if the training diverged, and weights are no finite numbers.
        """
        from diffusers import DDPMScheduler

        if not all(bool(parameter.isfinite().all()) for parameter in self.ema.parameters()):
            raise ValueError(f"the training diverged: its weights are no finite numbers; lower the learning rate model.lr={self.hparams.lr}")
        return save_pipeline(self.ema, DDPMScheduler.from_config(self.scheduler_config), folder)
