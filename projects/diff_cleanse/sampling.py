"""Sampling with an explicit `x_T`: DDIM (Song et al. 2021, equation 12) and DDPM (Ho et al. 2020, equations 6 and 7) in one loop.

Backdoors answer to the noise a sampler starts from and to the family it belongs to, so the scanner owns the loop. With the default, consecutive
timesteps and `eta=1`, DDIM is DDPM. TrojDiff's backdoors answer to samplers of their own, the same two with `Trojan` noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from projects.diff_cleanse.schedule import NoiseSchedule
from shared.seeding import generator as seeded_generator

Sampler = Literal["ddim", "ddpm"]
Prediction = Literal["epsilon", "v_prediction", "sample"]
Spacing = Literal["trailing", "leading", "linspace"]
Variance = Literal["fixed_small", "fixed_large"]
Callback = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class Step:
    """One update `x_s = x0_weight x0 + x_weight x_t + output_weight f + noise_weight z`, where f is the network's output at (x_t, t).

    The estimate of the image is `x0 = x0_from_x x_t + x0_from_output f`. `shift_weight` is what lacks to sigma_s in the weights of x_t and of the
    predicted noise together: of a bias `mu` of the noise, that much must be added. All numbers are computed in float64.
    """

    t: int
    x0_from_x: float
    x0_from_output: float
    x0_weight: float
    x_weight: float
    output_weight: float
    noise_weight: float
    shift_weight: float


@dataclass(frozen=True)
class Trojan:
    """The biased noise `gain eps + shift` of TrojDiff (Chen et al. 2023), which takes the place of eps in its process and in its samplers.

    The Trojan process is `x_t = a_t x_0 + sigma_t (gain eps + shift)`. Its samplers are the benign ones with the predicted noise f replaced by
    `gain f + shift` (the network predicts eps), fresh noise z by `gain z`, and `shift` added as often as holds the mean on the path: not at all in
    deterministic DDIM, `sigma_s - c_2` times in DDIM with fresh noise, `m_t / sigma_t^2` times in DDPM.

    Attributes:
        gain: broadcastable to (B, C, H, W), gamma in (0, 1) where the attack is, 1 elsewhere.
        shift: broadcastable to (B, C, H, W), `mu = (1 - gamma) g` where the attack is, 0 elsewhere.
    """

    gain: Tensor
    shift: Tensor

    @classmethod
    def of(cls, trigger: Tensor, gamma: float, region: Tensor | None = None) -> Trojan:
        """Return the noise of a (C, H, W) trigger picture in [-1, 1], in the whole picture (blend) or where `region`, bool, says (patch)."""
        everywhere = torch.ones_like(trigger, dtype=torch.bool) if region is None else region
        return cls(torch.where(everywhere, gamma, torch.ones_like(trigger)), torch.where(everywhere, (1 - gamma) * trigger, 0.0))

    def bias(self, eps: Tensor) -> Tensor:
        """Return `gain eps + shift` for (B, C, H, W) noise: the start `x_T` of a triggered sample, or what the predicted noise stands for."""
        return self.gain.to(eps) * eps + self.shift.to(eps)

    def network(self, unet: Callable[[Tensor, Tensor], Any]) -> Callable[[Tensor, Tensor], Tensor]:
        """Wrap a network that predicts eps: any deterministic sampler that runs on the result is the Trojan one."""
        return lambda x, t: self.bias(_call(unet, x, t))


def timesteps(total: int, steps: int, spacing: Spacing = "trailing") -> list[int]:
    """Choose `steps` of `total` timesteps, latest first, as diffusers schedulers do without an offset (Lin et al. 2024, table 2).

    Only `trailing` and `linspace` begin at the last timestep, where the noise wears the trigger.

    Raises:
        ValueError: if `steps` is not between 1 and `total` or the spacing is unknown.
    """
    if not 1 <= steps <= total:
        raise ValueError(f"steps must lie between 1 and the schedule's {total}, got {steps}")
    _check("spacing", spacing, Spacing)
    if spacing == "trailing":
        chosen = np.round(np.arange(total, 0, -total / steps))[:steps] - 1
    elif spacing == "leading":
        chosen = np.arange(steps)[::-1] * (total // steps)
    else:
        chosen = np.linspace(0, total - 1, steps).round()[::-1]
    return [int(t) for t in chosen]


def plan(
    schedule: NoiseSchedule,
    sampler: Sampler = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    prediction_type: Prediction = "epsilon",
    spacing: Spacing = "trailing",
    variance: Variance = "fixed_small",
) -> list[Step]:
    """Compute the coefficients of a whole sampling run; arguments as in `sample`.

    Raises:
        ValueError: for an unknown option, `steps` out of range, or `eta` outside [0, 1].
    """
    _check("sampler", sampler, Sampler)
    _check("prediction_type", prediction_type, Prediction)
    _check("variance", variance, Variance)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1], got {eta}")
    chosen = timesteps(len(schedule), len(schedule) if steps is None else steps, spacing)
    a, sigma = schedule.a.tolist(), schedule.sigma.tolist()
    times = [*((t, a[t], sigma[t]) for t in chosen), (-1, 1.0, 0.0)]
    return [
        _step(t, (a_t, sigma_t), (a_s, sigma_s), sampler, eta, prediction_type, variance) for (t, a_t, sigma_t), (_, a_s, sigma_s) in pairwise(times)
    ]


def _step(
    t: int,
    now: tuple[float, float],
    then: tuple[float, float],
    sampler: Sampler,
    eta: float,
    prediction_type: Prediction,
    variance: Variance,
) -> Step:
    (a_t, sigma_t), (a_s, sigma_s) = now, then
    x0_from, eps_from = {  # both as (factor of x_t, factor of the network's output)
        "epsilon": ((1 / a_t, -sigma_t / a_t), (0.0, 1.0)),
        "v_prediction": ((a_t, -sigma_t), (sigma_t, a_t)),
        "sample": ((0.0, 1.0), (1 / sigma_t, -a_t / sigma_t)),
    }[prediction_type]
    ratio = (a_t / a_s) ** 2  # alpha of the step from t to s
    posterior = (sigma_s / sigma_t) * (1 - ratio) ** 0.5  # standard deviation of q(x_s | x_t, x_0)
    if sampler == "ddim":
        noise = eta * posterior
        direction = (sigma_s**2 - noise**2) ** 0.5
        return Step(t, *x0_from, a_s, direction * eps_from[0], direction * eps_from[1], noise, sigma_s - direction)
    noise = posterior if variance == "fixed_small" or sigma_s == 0 else (1 - ratio) ** 0.5
    x_weight = ratio**0.5 * (sigma_s / sigma_t) ** 2
    return Step(t, *x0_from, a_s * (1 - ratio) / sigma_t**2, x_weight, 0.0, noise, sigma_s - x_weight * sigma_t)


def sample(
    unet: Callable[[Tensor, Tensor], Any],
    x_T: Tensor,  # noqa: N803
    schedule: NoiseSchedule,
    sampler: Sampler = "ddim",
    steps: int | None = None,
    eta: float = 0.0,
    clip: bool = False,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    prediction_type: Prediction = "epsilon",
    spacing: Spacing = "trailing",
    variance: Variance = "fixed_small",
    callback: Callback | None = None,
    trojan: Trojan | None = None,
) -> Tensor:
    """Run the reverse process from `x_T` and return `x_0`.

    Gradients flow from `x_0` to `x_T` and the network unless the caller runs this under `torch.inference_mode()` or `no_grad()`. The state is kept in
    float32 (float64 for float64 noise), the network is called in the precision of `x_T`. Each step goes to the next chosen timestep, the last one to
    the clean image, without noise. (diffusers' DDIM goes to `t - T // steps` instead, the same unless the spacing is linspace or `steps` does not
    divide T; diffusers' DDPM adds noise to the final image if fixed_large is combined with a last timestep above 0.)

    Args:
        unet: maps (B, C, H, W) and (B,) int64 timesteps to (B, C, H, W), or to an object that holds this as `.sample`.
        x_T: (B, C, H, W) noise to start from, with or without a trigger.
        schedule: the noise schedule the network was trained with.
        sampler: ddim or ddpm (ancestral).
        steps: number of network calls; None takes every timestep.
        eta: ddim's share of fresh noise, 0 (deterministic) to 1 (ancestral).
        clip: clamp every estimate of the image to [-1, 1], as pipelines do by default. Off by default here: clipping hides backdoors.
        generator: source of the fresh noise: one for the batch, when a sample depends on its neighbours, or one per sample, when its noise is the
            same in any batch. None draws from torch's global state. A generator lives on the device of `x_T`.
        prediction_type: what the network predicts: epsilon, v_prediction or sample.
        spacing: which timesteps are taken, see `timesteps`.
        variance: ddpm's noise: fixed_small (the posterior's) or fixed_large (beta).
        callback: called after each step with its number from 0, its timestep and the new state.
        trojan: sample as TrojDiff's attacker does, with this noise; `x_T` is then usually `trojan.bias(eps)`. None samples benignly.

    Returns:
        (B, C, H, W) in the network's range, not clamped.

    Raises:
        ValueError: for an unknown option, a wrong number of generators, or a network whose output has another shape than its input.
    """
    if isinstance(generator, Sequence) and len(generator) != len(x_T):
        raise ValueError(f"{len(generator)} generators for {len(x_T)} samples: pass one per sample, or a single one")
    if trojan is not None:
        unet, prediction_type = as_epsilon(unet, schedule, prediction_type), "epsilon"
    run = plan(schedule, sampler, steps, eta, prediction_type, spacing, variance)
    times = torch.tensor([step.t for step in run], device=x_T.device)
    x = x_T.to(torch.promote_types(x_T.dtype, torch.float32))
    for number, step in enumerate(run):
        output = _call(unet, x.to(x_T.dtype), times[number].expand(len(x_T))).to(x.dtype)
        x = _update(x, output if trojan is None else trojan.bias(output), step, clip)
        if step.noise_weight > 0:
            fresh = _noise_like(x, generator)
            x = x + step.noise_weight * (fresh if trojan is None else trojan.gain.to(x) * fresh)
        if trojan is not None:
            x = x + step.shift_weight * trojan.shift.to(x)
        if callback is not None:
            callback(number, step.t, x)
    return x


def sample_many(
    unet: Callable[[Tensor, Tensor], Any],
    schedule: NoiseSchedule,
    indices: Sequence[int],
    shape: tuple[int, int, int],
    batch_size: int = 64,
    seed: int = 0,
    start: Callable[[Tensor], Tensor] | None = None,
    device: str | torch.device = "cpu",
    **options: Any,
) -> Iterator[Tensor]:
    """Yield samples batch by batch, so that memory does not grow with their number.

    Sample i draws its starting and its fresh noise from a generator of its own, keyed by (seed, i): it is the same sample in any batch, order or
    process, on a given kind of device and up to the rounding of the network's arithmetic.

    Args:
        unet: as in `sample`.
        schedule: as in `sample`.
        indices: numbers of the wanted samples, for example `range(1000)` or one process's share of it.
        shape: (C, H, W) of one sample.
        batch_size: samples per call of the network.
        seed: seed of the whole set.
        start: maps (B, C, H, W) standard normal noise to `x_T`, for example by putting a trigger on it; None leaves it as it is.
        device: device of the network.
        **options: further arguments of `sample`, such as `sampler`, `steps`, `eta`, `clip`.

    Yields:
        (at most `batch_size`, C, H, W) samples in the order of `indices`.
    """
    for first in range(0, len(indices), batch_size):
        generators = [seeded_generator(seed, "sample", index, device=device) for index in indices[first : first + batch_size]]
        eps = torch.stack([torch.randn(shape, generator=own, device=device) for own in generators])
        yield sample(unet, eps if start is None else start(eps), schedule, generator=generators, **options)


def as_epsilon(unet: Callable[[Tensor, Tensor], Any], schedule: NoiseSchedule, prediction: Prediction) -> Callable[[Tensor, Tensor], Tensor]:
    """Wrap a network so that it predicts the noise, which every scheduler of diffusers takes."""
    _check("prediction_type", prediction, Prediction)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        output = _call(unet, x, t)
        if prediction == "epsilon":
            return output
        a, sigma = schedule.at("a", t, x), schedule.at("sigma", t, x)
        return a * output + sigma * x if prediction == "v_prediction" else (x - a * output) / sigma

    return predict


def _update(x: Tensor, output: Tensor, step: Step, clip: bool) -> Tensor:
    """Deterministic part of a step; without clipping everything is linear in the state and the output and two products suffice."""
    if clip:
        x0 = (step.x0_from_x * x + step.x0_from_output * output).clamp(-1, 1)
        return step.x0_weight * x0 + step.x_weight * x + step.output_weight * output
    x_weight = step.x_weight + step.x0_weight * step.x0_from_x
    return torch.add(x_weight * x, output, alpha=step.output_weight + step.x0_weight * step.x0_from_output)


def _noise_like(x: Tensor, generator: torch.Generator | Sequence[torch.Generator] | None) -> Tensor:
    if isinstance(generator, Sequence):
        return torch.stack([torch.randn(x.shape[1:], generator=own, device=x.device, dtype=x.dtype) for own in generator])
    return torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)


def _call(unet: Callable[[Tensor, Tensor], Any], x: Tensor, t: Tensor) -> Tensor:
    output = unet(x, t)
    output = output if isinstance(output, Tensor) else output.sample
    if output.shape != x.shape:
        hint = "; learned variances are not supported" if output.shape[1] == 2 * x.shape[1] else ""
        raise ValueError(f"the network maps {tuple(x.shape)} to {tuple(output.shape)}, expected the same shape{hint}")
    return output


def _check(option: str, value: str, allowed: Any) -> None:
    if value not in get_args(allowed):
        raise ValueError(f"unknown {option} {value!r}; known are {', '.join(get_args(allowed))}")
