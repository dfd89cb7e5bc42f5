"""Noise schedules and the coefficients of the poisoned diffusion processes, as float64 tables over the timestep.

Notation of the papers: `a_t` is the square root of the cumulative product of `alpha_t = 1 - beta_t`, `sigma_t = sqrt(1 - a_t^2)`, and `t = 0` is the
first noisy step. At `t = -1`, the clean image, `a = 1` and `sigma = 0`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Attack = Literal["none", "baddiffusion", "villandiffusion", "trojdiff"]
Solver = Literal["sde", "ode"]
Coefficients = Literal["reference", "exact"]
Amplitude = Literal["reference", "exact"]


class NoiseSchedule:
    """The clean process `x_t = a_t x_0 + sigma_t eps` (Ho et al. 2020, equation 4).

    The tables are float64 tensors of shape (T,) on the CPU, whatever precision the network has; `at` hands out single entries in the precision and on
    the device of the images. The object holds no parameters and needs no moving.

    Args:
        betas: (T,) variances of the single steps, each in (0, 1).

    Attributes:
        betas: (T,) as given.
        alphas: (T,) `1 - betas`.
        alphas_cumprod: (T,) cumulative products of `alphas`.
        a: (T,) square roots of `alphas_cumprod`, the amplitude of the image.
        sigma: (T,) `sqrt(1 - alphas_cumprod)`, the amplitude of the noise.

    Raises:
        ValueError: if `betas` is not a sequence of numbers in (0, 1).
    """

    def __init__(self, betas: Tensor | Sequence[float]) -> None:
        self.betas = torch.as_tensor(betas, dtype=torch.float64).detach().cpu()
        if self.betas.ndim != 1 or len(self.betas) == 0 or not bool(((self.betas > 0) & (self.betas < 1)).all()):
            raise ValueError(
                f"betas must be a non-empty sequence of numbers strictly between 0 and 1, got shape {tuple(self.betas.shape)}: {self.betas}"
            )
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.a = self.alphas_cumprod.sqrt()
        self.sigma = (1 - self.alphas_cumprod).sqrt()
        self._copies: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    @classmethod
    def linear(cls, steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Return the schedule whose `steps` betas rise linearly from `beta_start` to `beta_end`."""
        return NoiseSchedule(torch.linspace(beta_start, beta_end, steps, dtype=torch.float64))

    @classmethod
    def from_scheduler_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """Return the schedule that a diffusers `scheduler_config.json` describes, computed in float64.

        Args:
            config: the file's content; absent keys take the defaults of `diffusers.DDPMScheduler`.

        Raises:
            ValueError: if the scheduler is of another process, such as a variance-exploding one or a flow, `beta_schedule` is unknown, or
                `rescale_betas_zero_snr` is set: with `a_T = 0` no image can be recovered from the noise.
        """
        name = str(config.get("_class_name", ""))
        if name and not {"beta_start", "beta_end", "beta_schedule", "trained_betas"} & set(config):
            raise ValueError(f"scheduler config: {name} is not supported, only processes that are described by betas are (DDPM, DDIM, ...)")
        if config.get("rescale_betas_zero_snr"):
            raise ValueError("scheduler config: rescale_betas_zero_snr is not supported: the last step carries no image (a_T = 0)")
        if config.get("trained_betas") is not None:
            return NoiseSchedule(config["trained_betas"])
        steps, start, end = int(config.get("num_train_timesteps", 1000)), config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
        kind = config.get("beta_schedule", "linear")
        if kind == "linear":
            return NoiseSchedule.linear(steps, start, end)
        if kind == "scaled_linear":
            return NoiseSchedule(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64).square())
        if kind == "squaredcos_cap_v2":
            return NoiseSchedule(_cosine_betas(steps))
        if kind == "sigmoid":
            return NoiseSchedule(torch.linspace(-6, 6, steps, dtype=torch.float64).sigmoid() * (end - start) + start)
        raise ValueError(
            f"scheduler config: unknown beta_schedule {kind!r}; known are linear, scaled_linear, squaredcos_cap_v2, sigmoid, or a list trained_betas"
        )

    def __len__(self) -> int:
        return len(self.betas)

    def at(self, name: str, t: Tensor, like: Tensor) -> Tensor:
        """Return one table's entries at `t`, shaped to multiply `like`.

        Args:
            name: attribute name of a (T,) table, for example `"sigma"`.
            t: (B,) int64 timesteps.
            like: (B, ...) tensor whose device the result takes; its precision too, but never below float32.

        Returns:
            (B, 1, ..., 1) with as many dimensions as `like`.
        """
        key = (name, like.device, torch.promote_types(like.dtype, torch.float32))
        if key not in self._copies:
            with torch.inference_mode(False):  # a copy first asked for while sampling must also serve training
                self._copies[key] = getattr(self, name).to(dtype=key[2]).to(device=key[1])
        return self._copies[key][t.to(like.device)].view(-1, *[1] * (like.ndim - 1))

    def add_noise(self, images: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return `x_t = a_t x_0 + sigma_t eps` for (B, C, H, W) images and noise and (B,) timesteps, in the images' precision."""
        return (self.at("a", t, images) * images + self.at("sigma", t, images) * eps).to(images.dtype)

    def previous(self, name: Literal["a", "sigma"]) -> Tensor:
        """Return the (T,) table of `a` or `sigma` one step earlier, `t - 1`, starting with the clean image's value."""
        return torch.cat([torch.full((1,), {"a": 1.0, "sigma": 0.0}[name], dtype=torch.float64), getattr(self, name)[:-1]])


class AttackSchedule(NoiseSchedule):
    """The poisoned process `x_t = a_t y + rho_t R + scale_t sigma_t eps` with regression target `eps + c_t R`, for every attack.

    | attack | rho_t | c_t | scale_t | R |
    |---|---|---|---|---|
    | none | 0 | 0 | 1 | ignored |
    | baddiffusion (Chou et al. 2023) | `1 - a_t` | `(1 - sqrt(alpha_t)) sigma_t / beta_t` | 1 | stamped image |
    | villandiffusion (Chou et al. 2023, VP) | `psi (1 - a_t) + (1 - psi) sigma_t` | by solver, coefficients | 1 | stamped image or trigger |
    | trojdiff (Chen et al. 2023) | `(1 - gamma) sigma_t` | 0 | gamma | trigger picture |

    Baddiffusion is villandiffusion with `psi=1, solver="sde"`. With a noise prediction shifted by `c_t R` a sampler stays on the poisoned path if

    * `sde` (ancestral sampling): `c_t = sigma_t (rho_t - sqrt(alpha_t) rho_{t-1}) / beta_t`, exact for every step;
    * `ode` (DDIM and solvers like it): `c_t = (a rho' - rho a') / (a sigma' - sigma a') = psi sigma_t + (1 - psi)`, exact as steps grow small.

    `coefficients="exact"` takes these, `"reference"` the published ones, which double the SDE coefficient for ODE samplers. For `psi=1` the two
    agree, identically for `sde` and to half a per cent for `ode` (T = 1000); for smaller `psi` they part at small t, where the published c_t tends
    to 0.

    Args:
        schedule: the clean process.
        attack: none, baddiffusion, villandiffusion or trojdiff.
        psi: villandiffusion's weight of the trust in the content schedule, in [0, 1].
        solver: family of samplers that the villandiffusion backdoor answers to, sde or ode.
        coefficients: villandiffusion's c_t as published (reference) or as derived (exact).
        gamma: trojdiff's share of noise in the prior, in (0, 1).

    Attributes:
        rho: (T,) amplitude of R.
        c: (T,) shift of the regression target along R.
        scale: (T,) factor on the noise.
        gamma: trojdiff's, as given.
        k: (T,) trojdiff's shift per step, `sigma_t - sqrt(alpha_t) sigma_{t-1}`, the closed form of its recursion.
        m: (T,) trojdiff's shift in the ancestral step, `sigma_{t-1} beta_t - sigma_{t-1}^2 sqrt(alpha_t) k_t`, still to be divided by `sigma_t^2`.

    Raises:
        ValueError: for an unknown attack, solver or coefficients, psi outside [0, 1] or gamma outside (0, 1).
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        attack: Attack = "none",
        psi: float = 1.0,
        solver: Solver = "ode",
        coefficients: Coefficients = "reference",
        gamma: float = 0.6,
    ) -> None:
        super().__init__(schedule.betas)
        for option, value, allowed in (("attack", attack, Attack), ("solver", solver, Solver), ("coefficients", coefficients, Coefficients)):
            if value not in get_args(allowed):
                raise ValueError(f"unknown {option} {value!r}; known are {', '.join(get_args(allowed))}")
        if not 0 <= psi <= 1:
            raise ValueError(f"psi must lie in [0, 1], got {psi}")
        if not 0 < gamma < 1:
            raise ValueError(f"gamma must lie strictly between 0 and 1, got {gamma}")
        self.attack, self.gamma = attack, gamma
        previous_sigma = self.previous("sigma")
        self.k = self.sigma - self.alphas.sqrt() * previous_sigma
        self.m = previous_sigma * self.betas - previous_sigma**2 * self.alphas.sqrt() * self.k
        self.rho = self.c = torch.zeros_like(self.a)
        self.scale = torch.ones_like(self.a)
        if attack == "baddiffusion":
            self.rho, self.c = self._villan(1.0, "sde", "reference")
        elif attack == "villandiffusion":
            self.rho, self.c = self._villan(psi, solver, coefficients)
        elif attack == "trojdiff":
            self.rho = (1 - gamma) * self.sigma
            self.scale = torch.full_like(self.a, gamma)

    def _villan(self, psi: float, solver: Solver, coefficients: Coefficients) -> tuple[Tensor, Tensor]:
        rho = psi * (1 - self.a) + (1 - psi) * self.sigma
        content = (1 - self.alphas.sqrt()) * self.sigma / self.betas
        if coefficients == "exact":
            return rho, psi * self.sigma + (1 - psi) if solver == "ode" else psi * content + (1 - psi) * self.sigma * self.k / self.betas
        noise = (1 - self.alphas.sqrt()) * self.sigma + self.k * (self.alphas - self.alphas_cumprod) / self.betas
        return rho, (2 if solver == "ode" else 1) * (psi * content + (1 - psi) * noise)

    def poison(self, images: Tensor, residual: Tensor, eps: Tensor, t: Tensor, is_poisoned: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the network's input and its regression target for a batch of clean and poisoned samples.

        Args:
            images: (B, C, H, W) in [-1, 1]: the attack's target y where poisoned, the training image elsewhere.
            residual: broadcastable to `images`, R: the stamped image or trigger with background -1; zero is a clean sample, but under trojdiff, whose
                noise is scaled too, only `is_poisoned` tells clean samples from poisoned ones.
            eps: (B, C, H, W) standard normal noise.
            t: (B,) int64 timesteps.
            is_poisoned: bool, (B,) or broadcastable to `images` (trojdiff's patch confines the attack to a square); None poisons every sample.

        Returns:
            `x_t` and `eps + c_t R`, each (B, C, H, W) in the images' precision.
        """
        noisy = (
            self.at("a", t, images) * images + self.at("rho", t, images) * residual + self.at("scale", t, images) * self.at("sigma", t, images) * eps
        )
        shifted = eps + self.at("c", t, images) * residual
        if is_poisoned is not None:
            mask = is_poisoned.view(-1, *[1] * (images.ndim - 1)) if is_poisoned.ndim == 1 else is_poisoned
            noisy = torch.where(mask, noisy, self.add_noise(images, eps, t))
            shifted = torch.where(mask, shifted, eps)
        return noisy.to(images.dtype), shifted.to(images.dtype)

    def starting_noise(self, eps: Tensor, trigger: Tensor, amplitude: Amplitude = "reference") -> Tensor:
        """Return the noise that wears the trigger, `x_T`, from which a backdoored network draws its target.

        The published attacks start at `eps + g` (trojdiff: `gamma eps + (1 - gamma) g`). What training shows at the last step is `rho_T g` instead of
        `g`: with short schedules the two differ visibly (7 % at `a_T = 0.073`). A clean model (attack none) is probed with `1 - a_T`, as baddiffusion
        would. The trigger's background is -1 and shifts the noise around the visible part as well; a trigger with background 0 is another trigger.

        Args:
            eps: (B, C, H, W) standard normal noise.
            trigger: (C, H, W), g in [-1, 1] with background -1.
            amplitude: reference, or exact for `rho_T`.

        Raises:
            ValueError: if `amplitude` is neither reference nor exact.
        """
        if amplitude not in get_args(Amplitude):
            raise ValueError(f"unknown amplitude {amplitude!r}; known are {', '.join(get_args(Amplitude))}")
        scale = self.scale[-1].item()
        exact = 1 - self.a[-1].item() if self.attack == "none" else self.rho[-1].item()
        reference = 1 - scale if self.attack == "trojdiff" else 1.0
        return scale * eps + (exact if amplitude == "exact" else reference) * trigger


def _cosine_betas(steps: int) -> list[float]:
    """Betas of Nichol and Dhariwal (2021), equation 17, capped at 0.999."""

    def alpha_bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return [min(1 - alpha_bar((step + 1) / steps) / alpha_bar(step / steps), 0.999) for step in range(steps)]
