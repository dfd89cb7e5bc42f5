"""The samplers that a scan probes a pipeline with: DDPM and DDIM by this project's loop, the others by diffusers' own schedulers.

A backdoor answers to one family of samplers, so each is built from the pipeline's own noise schedule, with clipping and thresholding off, which
hide backdoors, and with trailing timesteps, so that the first call of the network sees the last timestep, where the trigger was trained.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from projects.diff_cleanse.inversion import Network
from projects.diff_cleanse.sampling import Prediction, Trojan, as_epsilon, sample
from projects.diff_cleanse.schedule import NoiseSchedule


@dataclass(frozen=True)
class Kind:
    """One kind of sampler.

    Attributes:
        scheduler: its class in diffusers; None for those of `projects.diff_cleanse.sampling`.
        options: settings of that class.
        steps: customary number of steps; None takes every timestep.
        is_stochastic: whether fresh noise enters at each step. Backdoors of stochastic samplers are not triggered by the others, nor theirs by these.
        is_trojan: whether it is to run with `Trojan` noise. TrojDiff's backdoors answer to the stochastic and the deterministic one alike.
    """

    scheduler: str | None
    options: Mapping[str, Any]
    steps: int | None
    is_stochastic: bool = False
    is_trojan: bool = False


SAMPLERS: dict[str, Kind] = {
    "ddim": Kind(None, {"sampler": "ddim"}, 50),
    "ddpm": Kind(None, {"sampler": "ddpm"}, None, is_stochastic=True),
    "dpmsolver": Kind("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "solver_order": 2, "final_sigmas_type": "sigma_min"}, 20),
    "dpmsolver++": Kind("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}, 20),
    "unipc": Kind("UniPCMultistepScheduler", {"solver_order": 2}, 20),
    "pndm": Kind("PNDMScheduler", {"skip_prk_steps": True}, 50),
    "deis": Kind("DEISMultistepScheduler", {"solver_order": 2}, 20),
    "heun": Kind("HeunDiscreteScheduler", {}, 50),
    "lms": Kind("LMSDiscreteScheduler", {}, 50),
    "trojan_ddim": Kind(None, {"sampler": "ddim"}, 50, is_trojan=True),
    "trojan_ddpm": Kind(None, {"sampler": "ddpm"}, None, is_stochastic=True, is_trojan=True),
}


@dataclass(frozen=True)
class ScanSampler:
    """A sampler for one pipeline.

    Attributes:
        name: a key of `SAMPLERS`.
        scheduler_config: content of the pipeline's `scheduler_config.json`.
        steps: number of steps; None takes the customary number, at most every timestep. (Heun calls the network twice a step.)
        eta: DDIM's share of fresh noise, 0 to 1.

    Raises:
        ValueError: for an unknown name, `steps` out of range, or an `eta` that the sampler has no use for.
    """

    name: str
    scheduler_config: Mapping[str, Any]
    steps: int | None = None
    eta: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.name!r}; known are {', '.join(SAMPLERS)}")
        if self.eta and self.name != "ddim":
            raise ValueError(f"eta is an option of ddim; {self.name} has no use for eta={self.eta}")
        if self.steps is not None and not 1 <= self.steps <= len(self.schedule):
            raise ValueError(f"steps must lie between 1 and the schedule's {len(self.schedule)}, got {self.steps}")
        prediction_of(self.scheduler_config)

    @property
    def schedule(self) -> NoiseSchedule:
        """The pipeline's noise schedule."""
        return NoiseSchedule.from_scheduler_config(self.scheduler_config)

    @property
    def is_stochastic(self) -> bool:
        """Whether fresh noise enters at each step."""
        return SAMPLERS[self.name].is_stochastic or self.eta > 0

    @property
    def is_trojan(self) -> bool:
        """Whether the sampler is to run with `Trojan` noise."""
        return SAMPLERS[self.name].is_trojan

    @property
    def step_count(self) -> int:
        """Number of steps that are taken."""
        total = len(self.schedule)
        return min(self.steps or SAMPLERS[self.name].steps or total, total)

    def __call__(self, unet: Network, x_T: Tensor, generator: torch.Generator | None = None, trojan: Trojan | None = None) -> Tensor:  # noqa: N803
        """Run the reverse process from `x_T` and return `x_0`, not clamped; the arguments are those of `sampling.sample`.

        Args:
            unet: maps (B, C, H, W) and (B,) timesteps to (B, C, H, W), or to an object that holds this as `.sample`.
            x_T: (B, C, H, W) noise to start from; samplers that work at another scale (Heun, LMS) scale it themselves.
            generator: source of the fresh noise of stochastic samplers, on the device of `x_T`.
            trojan: noise of TrojDiff's attacker, under any sampler; None samples benignly, `trojan_ddim` and `trojan_ddpm` too.
        """
        kind, prediction = SAMPLERS[self.name], prediction_of(self.scheduler_config)
        if kind.scheduler is None:
            variance: Any = self.scheduler_config.get("variance_type") or "fixed_small"
            known = {"variance": variance} if variance in ("fixed_small", "fixed_large") else {}
            options = {"steps": self.step_count, "eta": self.eta, "generator": generator, "prediction_type": prediction, "trojan": trojan} | known
            return sample(unet, x_T, self.schedule, **kind.options, **options)
        epsilon = as_epsilon(unet, self.schedule, prediction)
        return _run(self._scheduler(kind), epsilon if trojan is None else trojan.network(epsilon), x_T, self.step_count)

    def _scheduler(self, kind: Kind) -> Any:
        import diffusers

        betas = {"trained_betas": self.schedule.betas.tolist(), "num_train_timesteps": len(self.schedule)}
        options = {"prediction_type": "epsilon", "timestep_spacing": "trailing"} | dict(kind.options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*algorithm_types? dpmsolver", FutureWarning)  # backdoors are published with numbers for it
            return getattr(diffusers, str(kind.scheduler))(**betas, **options)  # built anew: clipping and thresholding keep their defaults, off


def prediction_of(scheduler_config: Mapping[str, Any]) -> Prediction:
    """Return what a scheduler's settings say the network predicts.

    Raises:
        ValueError: if it is none of epsilon, v_prediction and sample.
    """
    prediction: Any = scheduler_config.get("prediction_type") or "epsilon"
    if prediction not in get_args(Prediction):
        raise ValueError(f"scheduler config: unknown prediction_type {prediction!r}; known are {', '.join(get_args(Prediction))}")
    return prediction


def _run(scheduler: Any, epsilon: Callable[[Tensor, Tensor], Tensor], x_T: Tensor, steps: int) -> Tensor:  # noqa: N803
    scheduler.set_timesteps(steps, device=x_T.device)
    x = x_T.to(torch.promote_types(x_T.dtype, torch.float32)) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        output = epsilon(seen.to(x_T.dtype), t.round().long().expand(len(x_T)).to(x_T.device))
        x = scheduler.step(output.to(x.dtype), t, x).prev_sample
    return x
