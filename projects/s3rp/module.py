"""Training without high resolution, and super-resolving and forecasting with what was learnt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from projects.s3rp.calibration import crps
from projects.s3rp.hiding import shown_of
from projects.s3rp.layers import Cell, Propagator
from projects.s3rp.losses import coarse_loss, negativity, residual_loss, roughness, step_loss
from projects.s3rp.model import SRCNN, FineNet, Grid
from projects.s3rp.observing import block_mean
from projects.s3rp.options import Divergence, Form, Net, check_options
from projects.s3rp.physics import Boundary, Physics, Wind, at_frame, of_frames, together
from projects.s3rp.scaling import Scaled, scale, solver_of
from projects.s3rp.sets import Batch
from projects.s3rp.stochastic import LatentCritic, LatentNet, latent_discrepancy, pooled_pairs
from shared.distributed import rank
from shared.seeding import derive_seed, generator
from shared.training import check_finite, evaluating

if TYPE_CHECKING:
    from projects.s3rp.data import PlumeData

SHORT = 3
"""Frames of the sequences that a curriculum begins with."""
FALLS_TO = 0.05
"""Part of the learning rate that is left at the end."""


class PlumeSuperResolution(L.LightningModule):
    """Learns fine fields from coarse frames and winds alone: what it makes must average to the frames and move as the equation says.

    Args:
        net: s3rp_d (deterministic), s3rp_r (recurrent Wasserstein autoencoder, a distribution) or srcnn (PISR's, of single frames).
        factor: fine cells along a side of a coarse one; told by the data.
        boundary: periodic or open; told by the data.
        channels: maps of each layer.
        cell: gru or lstm.
        grid: fine or coarse, where an s3rp_d computes.
        mask_channel: shows an s3rp_d where there are observations.
        hybrid: lets an s3rp_d correct the solver's forecasts, in the place of bicubic frames: another method, to be reported apart.
        bidirectional: lets an s3rp_d look ahead.
        recurrent: false makes an s3rp_d of single frames without winds: a control.
        latents: latent maps of an s3rp_r.
        projection: part of the difference to the observations that is put right in each frame: 1 for noise-free ones, 0 for none.
        checkpointing: computes activations again in the backward pass: memory of one frame instead of all.
        physics: step (the solver's step from frame to frame) or residual (of the equation at mid-point).
        lambda_physics: weight of the physics.
        lambda_forecast: weight of last frames that are hidden in every other step, and compared with what was observed; a propagator learns better
            from the physics alone, an s3rp_r learns to forecast by nothing else.
        lambda_negative: weight of negative values; 0 for signed fields.
        lambda_smooth: weight of the first frame's slopes.
        lambda_source: weight of the mean release that is found.
        forecast: last frames that are hidden to learn forecasts by, or to validate them; 0 for a network that does not forecast.
        propagation: kernels that an s3rp_d applies to carry a field over one frame, of 3 cells reach each.
        hide: part of the observed pixels that are hidden from the network in every step, so that it learns to fill gaps.
        find_source: looks for unknown sources, constant in time.
        learn_diffusivity: learns D too, from the data's value on.
        curriculum: part of the training in which sequences have three frames only.
        beta: weight of the latents' divergence.
        divergence: mmd (inverse multi-quadratic kernels) or critic (adversarial).
        lambda_crps: weight of the scores of hidden pixels and of what comes `ahead`, which reward the right spread of an s3rp_r.
        ahead: frames over which the solver carries each draw of an s3rp_r, to be scored by what was observed then, which the draw did not see.
        members: fields that an s3rp_r draws of each sequence in a training step.
        lr: highest learning rate of Adam, which falls along a line to 5 %.
        warm_up: part of the training in which the learning rate rises from 0; forecasts and hidden pixels need some.
        seed: seed of the weights, of what is hidden and of the latents.
    """

    monitor = ("val/loss", "min")

    if TYPE_CHECKING:
        hparams: Any  # the arguments below, by name

    def __init__(
        self,
        net: Net = "s3rp_d",
        factor: int = 4,
        boundary: Boundary = "periodic",
        channels: int = 16,
        cell: Cell = "gru",
        grid: Grid = "fine",
        mask_channel: bool = True,
        hybrid: bool = False,
        bidirectional: bool = False,
        recurrent: bool = True,
        latents: int = 4,
        projection: float = 1.0,
        checkpointing: bool = False,
        physics: Form = "step",
        lambda_physics: float = 1.0,
        lambda_forecast: float = 0.0,
        lambda_negative: float = 0.1,
        lambda_smooth: float = 0.0,
        lambda_source: float = 1e-3,
        forecast: int = 0,
        propagation: int = 1,
        hide: float = 0.0,
        find_source: bool = False,
        learn_diffusivity: bool = False,
        curriculum: float = 0.0,
        beta: float = 1.0,
        divergence: Divergence = "mmd",
        lambda_crps: float = 1.0,
        ahead: int = 3,
        members: int = 2,
        lr: float = 3e-3,
        warm_up: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_options(self.hparams)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "s3rp weights"))
            self.net = self._build()
            self.critic = LatentCritic(latents) if net == "s3rp_r" and divergence == "critic" else None
        self.log_factor = nn.Parameter(torch.zeros(())) if learn_diffusivity else None

    def _build(self) -> FineNet | LatentNet | SRCNN:
        given = self.hparams
        if given.net == "srcnn":
            return SRCNN(given.factor, given.boundary, given.projection)
        if given.net == "s3rp_r":
            return LatentNet(given.factor, given.channels, given.latents, given.cell, given.boundary, given.projection)
        switches = {name: given[name] for name in ("mask_channel", "hybrid", "bidirectional", "recurrent", "checkpointing")}
        propagation = given.propagation if given.forecast and not given.hybrid else 0
        switches |= {"gain": given.projection, "source": given.find_source, "propagation": propagation}
        return FineNet(given.factor, given.channels, given.cell, given.boundary, given.grid, **switches)

    @property
    def is_stochastic(self) -> bool:
        """Whether it draws from a distribution."""
        return isinstance(self.net, LatentNet)

    @property
    def propagator(self) -> Propagator | None:
        """The part of an s3rp_d that forecasts; None without one."""
        return self.net.propagator if isinstance(self.net, FineNet) else None

    @property
    def factor(self) -> int:
        """R."""
        return cast(int, self.hparams.factor)

    # ---- what it does for its user

    @torch.no_grad()
    def forward(self, batch: Batch, physics: Physics) -> Tensor:
        """Super-resolve sequences; frames without observations are forecast or filled.

        Args:
            batch: see `Batch`.
            physics: of the sequences.

        Returns:
            (B, T, H, W) in the units of the frames; of a stochastic network one draw, a function of the seed.
        """
        if self.is_stochastic:
            return self.sample(batch, physics, 1, generator(self.hparams.seed, "forward", device=batch["coarse"].device))[0]
        with evaluating(self.net):
            scaled = scale(batch, physics)
            return self._fields(scaled, physics)[0] * scaled.scale

    @torch.no_grad()
    def sample(self, batch: Batch, physics: Physics, members: int, rng: torch.Generator) -> Tensor:
        """Draw fields from the stochastic network's distribution.

        Args:
            batch: see `Batch`.
            physics: of the sequences.
            members: M.
            rng: a generator of the batch's device.

        Returns:
            (M, B, T, H, W) in the units of the frames.

        Raises:
            TypeError: if the network is deterministic.
        """
        if not isinstance(self.net, LatentNet):
            raise TypeError("a deterministic network draws nothing: use ensembles.matheron for its spread, or train net s3rp_r")
        with evaluating(self.net):
            scaled = scale(batch, physics)
            return torch.stack([self.net(scaled.seen, rng).fields for _ in range(members)]) * scaled.scale

    def find_sources(self, batch: Batch, physics: Physics) -> Tensor:
        """Return the rates of release by area that were found, (B, 1, H, W), in the units of the frames by time.

        Raises:
            TypeError: if the network was not trained to look for sources.
        """
        if not self.hparams.find_source:
            raise TypeError("this network looks for no sources: train one with --model.find_source true")
        with torch.no_grad(), evaluating(self.net):
            scaled = scale(batch, physics)
            found = self._fields(scaled, physics)[1]
        assert found is not None
        return found * scaled.scale

    def _fields(self, scaled: Scaled, physics: Physics) -> tuple[Tensor, Tensor | None]:
        """Return fields and the rates of release that were found, in the batch's unit."""
        net = cast(nn.Module, self.net)
        found = net(scaled.seen, solver_of(scaled, physics) if self.hparams.hybrid else None)
        return found.fields, None if found.source is None else found.source / physics.interval

    # ---- training

    def _known(self, split: str) -> Physics:
        data: PlumeData = self.trainer.datamodule  # type: ignore[attr-defined]
        physics = data.observations(split).physics
        return physics if self.log_factor is None else physics.with_options(substeps=2 * (physics.substeps or 1))  # D may grow

    def diffusivity(self, physics: Physics) -> Tensor | None:
        """Return the D that was learnt; None where it is known."""
        return None if self.log_factor is None else physics.diffusivity * self.log_factor.exp()

    def learnt(self, physics: Physics) -> Physics:
        """Return physics with the D that was learnt in the place of the data's."""
        learnt = self.diffusivity(physics)
        return physics if learnt is None else physics.with_options(diffusivity=float(learnt.detach()), substeps=None)

    def training_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> Tensor:
        given, physics, batch = self.hparams, self._known("train"), self._shortened(batch)
        shown, ahead = shown_of(self.hparams, batch, self.global_step)
        scaled = scale(batch, physics, shown)
        parts = (self._stochastic_parts if self.is_stochastic else self._parts)(scaled, ahead, physics)
        weights = {
            "coarse": 1.0,
            "physics": given.lambda_physics,
            "forecast": given.lambda_forecast,
            "carried": given.lambda_physics,
            "negative": given.lambda_negative,
            "smooth": given.lambda_smooth,
            "source": given.lambda_source,
            "latents": given.beta,
            "crps": given.lambda_crps,
            "ahead": given.lambda_crps,
            "critic": 1.0,
        }
        loss = torch.stack([weights[name] * value for name, value in parts.items()]).sum()
        for name, value in {"loss": loss, **parts}.items():
            self.log(f"train/{name}", value.detach(), batch_size=len(shown), sync_dist=True)
        if (learnt := self.diffusivity(physics)) is not None:
            self.log("train/diffusivity", learnt.detach(), batch_size=len(shown))
        return loss

    def _shortened(self, batch: Batch) -> Batch:
        """Keep the first frames of sequences while the curriculum lasts."""
        given, steps = self.hparams, self.trainer.estimated_stepping_batches
        if self.global_step >= given.curriculum * (0 if math.isinf(steps) else steps):
            return batch
        return {name: value[:, :SHORT] if name != "index" else value for name, value in batch.items()}

    def _parts(self, scaled: Scaled, ahead: Tensor, physics: Physics) -> dict[str, Tensor]:
        """Return the terms of a deterministic network's loss, see `losses`."""
        fields, found = self._fields(scaled, physics)
        parts = self._terms(fields, scaled, found, ahead, physics)
        if self.propagator is not None and fields.shape[1] > 1:
            parts["carried"] = self._carried_loss(self.propagator, fields.detach(), scaled, physics)
        return parts if found is None else parts | {"source": found.mean() * physics.interval}

    def _carried_loss(self, propagator: Propagator, fields: Tensor, scaled: Scaled, physics: Physics) -> Tensor:
        """Return the mean of (P(c_t) - S_Delta(c_t))^2, by which the propagator learns the solver's step from the fields that there are."""
        frames = fields.shape[1] - 1
        wind, source = scaled.wind.frames(0, frames), of_frames(scaled.source, 0, frames)
        target = physics.advance(fields[:, :-1], wind, source, self.diffusivity(physics)).detach()
        courant, release = scaled.seen.courant, scaled.seen.release

        def loss(frame: int) -> Tensor:
            given = None if release is None else at_frame(release, frame)[:, None]
            carried = propagator(fields[:, frame, None], at_frame(courant, frame)[:, None], given)
            return (carried - target[:, frame, None]).square().mean()

        if self.hparams.checkpointing:
            return torch.stack([checkpoint(loss, frame, use_reentrant=False) for frame in range(frames)]).mean()
        return (propagator(fields[:, :-1], of_frames(courant, 0, frames), of_frames(release, 0, frames)) - target).square().mean()

    def _terms(self, fields: Tensor, scaled: Scaled, found: Tensor | None, ahead: Tensor, physics: Physics) -> dict[str, Tensor]:
        given = self.hparams
        parts = {"coarse": coarse_loss(fields, scaled.coarse, scaled.mask & ~ahead)}
        known = fields.shape[1] - (given.forecast if self.propagator is not None and bool(ahead.any()) else 0)
        if given.lambda_physics and known > 1:
            source = of_frames(together(scaled.source, found), 0, known)
            parts["physics"] = self.physics_loss(fields[:, :known], scaled.wind.frames(0, known), physics, source)
        if given.lambda_forecast and given.forecast:
            parts["forecast"] = coarse_loss(fields, scaled.coarse, ahead)
        if given.lambda_negative:
            parts["negative"] = negativity(fields)
        if given.lambda_smooth:
            parts["smooth"] = roughness(fields[:, :1], physics.boundary)
        return parts

    def physics_loss(self, fields: Tensor, wind: Wind, physics: Physics, source: Tensor | None) -> Tensor:
        """L_PDE, in the form that was chosen."""
        form = step_loss if self.hparams.physics == "step" else residual_loss
        return form(fields, wind, physics, source, self.diffusivity(physics))

    def _stochastic_parts(self, scaled: Scaled, ahead: Tensor, physics: Physics) -> dict[str, Tensor]:
        """Return the terms of a stochastic network's loss: those above in the mean over draws, the latents' divergence, and scores."""
        given, net = self.hparams, cast(LatentNet, self.net)
        rng = generator(given.seed, "latents", self.global_step, rank(), device=scaled.scale.device)
        draws = [net(scaled.seen, rng) for _ in range(given.members)]
        each = [self._terms(draw.fields, scaled, None, ahead, physics) for draw in draws]
        parts = {name: torch.stack([one[name] for one in each]).mean() for name in each[0]}
        if self.critic is None:
            parts["latents"] = torch.stack([latent_discrepancy(draw, rng) for draw in draws]).mean()
        else:
            pairs = [pair for draw in draws for pair in pooled_pairs(draw, rng)]
            parts |= {"latents": self.critic.divergence(pairs) / len(draws), "critic": self.critic.own_loss(pairs) / len(draws)}
        fields, hidden = torch.stack([draw.fields for draw in draws]), scaled.mask & ~scaled.seen.mask
        if given.lambda_crps and (given.hide or given.forecast):
            parts["crps"] = self._score(fields, scaled, scaled.coarse, hidden, rng)
        if given.lambda_crps and given.ahead and scaled.seen.frames > 1:
            parts["ahead"] = self._score_ahead(fields, scaled, physics, rng)
        return parts

    def _score_ahead(self, fields: Tensor, scaled: Scaled, physics: Physics, rng: torch.Generator) -> Tensor:
        """Return the mean score of draws (M, B, T, H, W) that the solver carries on, by observations that they did not see.

        A frame says nothing of what is finer than its pixels, but the wind brings that to light in later ones: a proper score of those rewards draws
        of c_t that differ by as much as y_1 .. y_t leave open, without any high resolution.
        """
        scores = []
        for step in range(1, min(self.hparams.ahead, fields.shape[2] - 1) + 1):
            begin, end = step - 1, step - 2 + fields.shape[2]
            fields = physics.advance(fields[:, :, :-1], scaled.wind.frames(begin, end), of_frames(scaled.source, begin, end))
            scores.append(self._score(fields, scaled, scaled.coarse[:, step:], scaled.mask[:, step:], rng))
        return torch.stack(scores).mean()

    def _score(self, fields: Tensor, scaled: Scaled, observed: Tensor, judged: Tensor, rng: torch.Generator) -> Tensor:
        """Return the mean score of observed pixels, (M, B, T, H, W) fields; the members are seen with the data's noise."""
        data: PlumeData = self.trainer.datamodule  # type: ignore[attr-defined]
        coarse = block_mean(fields, self.factor)
        noise = torch.randn(coarse.shape, generator=rng, device=coarse.device) * (data.observations("train").sigma / scaled.scale)
        return (crps(coarse + noise, observed, fair=True) * judged).sum() / judged.sum().clamp_min(1)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError("the learning rate falls to the end of the training: set trainer.max_epochs or trainer.max_steps")
        learnt = [] if self.log_factor is None else [self.log_factor]
        weights = [parameter for parameter in self.parameters() if parameter is not self.log_factor]
        groups: list[dict[str, Any]] = [{"params": weights}, *({"params": [one], "lr": 10 * self.hparams.lr} for one in learnt)]
        optimizer = torch.optim.Adam(groups, self.hparams.lr)  # a logarithm has far to go, in the steps that weights take
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.decay(step / steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def decay(self, part: float) -> float:
        """Return the factor of the learning rate after a part of the training."""
        rise = self.hparams.warm_up
        falling = 1 - (1 - FALLS_TO) * max(0.0, part - rise) / (1 - rise)
        return min(part / rise, falling) if rise else falling

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_finite(self)

    # ---- validation, without any truth

    def on_validation_epoch_start(self) -> None:
        check_finite(self)

    def validation_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        physics = self._known("val")
        shown, _ = shown_of(self.hparams, batch, None)
        scaled = scale(batch, physics, shown)
        hidden = scaled.mask & ~shown
        judged = hidden if bool(hidden.any()) else scaled.mask
        if isinstance(self.net, LatentNet):
            rng = generator(self.hparams.seed, "validation", batch_idx, rank(), device=shown.device)
            draws = torch.stack([self.net(scaled.seen, rng).fields for _ in range(max(4, self.hparams.members))])
            score, fields, found = self._score(draws, scaled, scaled.coarse, judged, rng), draws[0], None
            if self.hparams.ahead and scaled.seen.frames > 1:
                score = score + self._score_ahead(draws, scaled, physics, rng)
        else:
            fields, found = self._fields(scaled, physics)
            score = coarse_loss(fields, scaled.coarse, judged)
        size, loss = len(shown), score
        self.log("val/coarse", score, batch_size=size, sync_dist=True)
        if fields.shape[1] > 1:
            moved = self.physics_loss(fields, scaled.wind, physics, together(scaled.source, found))
            self.log("val/physics", moved, batch_size=size, sync_dist=True)
            loss = score + self.hparams.lambda_physics * moved
        self.log("val/loss", loss, batch_size=size, prog_bar=True, sync_dist=True)
