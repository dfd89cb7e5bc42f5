"""Other defences' inversions and scores: Elijah (An et al., AAAI 2024) and TERD (Mo et al., ICML 2024)."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from projects.diff_cleanse.inversion import Inverted, Network
from projects.diff_cleanse.samplers import as_epsilon
from projects.diff_cleanse.sampling import Prediction, sample
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.seeding import generator

Distance = Callable[[Tensor, Tensor], Tensor]


def elijah(
    unet: Network,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    strength: float = 0.5,
    iterations: int = 100,
    batch: int = 100,
    lr: float = 0.1,
    seed: int = 0,
    prediction_type: Prediction = "epsilon",
    device: str | torch.device = "cpu",
) -> Inverted:
    """Invert a trigger from the shift of the distribution at the last timestep: minimise `mean |E_B[eps_theta(eps + tau, T - 1)] - lambda tau|`.

    A weakness that no implementation cures: near T a clean network, too, answers with about its input, so with `lambda = 1` every tau is a solution.

    Args:
        unet: maps (B, C, H, W) and (B,) timesteps to (B, C, H, W), or to an object that holds this as `.sample`.
        schedule: the noise schedule of the network.
        shape: (C, H, W).
        strength: lambda, 0.5 for stochastic samplers and 1 for deterministic ones.
        iterations: steps of Adam (published: 100, and 10 for deterministic samplers).
        batch: noises in each iteration.
        lr: learning rate of Adam.
        seed: seed of the noise and of the start, -U(0, 1).
        prediction_type: what the network predicts.
        device: device of the network.
    """
    began, numbers = time.monotonic(), generator(seed, "elijah", device=device)
    predict = as_epsilon(unet, schedule, prediction_type)
    tau = (-torch.rand(shape, generator=numbers, device=device)).requires_grad_()
    optimizer, curve = torch.optim.Adam([tau], lr=lr), []
    t = torch.full((batch,), len(schedule) - 1, device=device)
    for _ in range(iterations):
        eps = torch.randn(batch, *shape, generator=numbers, device=device)
        loss = (predict(eps + tau, t).mean(dim=0) - strength * tau).abs().mean()
        [tau.grad] = torch.autograd.grad(loss, [tau])
        optimizer.step()
        curve.append(loss.detach())
    losses = torch.stack(curve).tolist()
    return Inverted(tau.detach().clone(), losses, losses[-1], time.monotonic() - began)


def pixel_mse(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of (N, C, H, W) images pair by pair, (N,): the stand-in for LPIPS, whose network's weights are not shipped."""
    return (first - second).square().mean(dim=(1, 2, 3))


def uniformity(images: Tensor, distance: Distance = pixel_mse, trim: int = 4) -> float:
    """Trimmed mean of the pairwise distances of images, Elijah's first feature: small where all samples are alike.

    Of each row of the distance matrix, the distance to itself included, the `trim` lowest and highest are dropped, and of what is left those of each
    column.

    Args:
        images: (B, C, H, W) in [0, 1].
        distance: maps two (N, C, H, W) batches to (N,) distances. Elijah's is LPIPS; values under another distance compare only with their like.
        trim: how many are dropped at each end.

    Raises:
        ValueError: if trimming leaves nothing.
    """
    count = len(images)
    if count <= 2 * trim:
        raise ValueError(f"uniformity drops {2 * trim} distances a row: it needs more than {2 * trim} images, got {count}")
    distances = torch.stack([distance(image.expand_as(images), images) for image in images])
    rows = distances.sort(dim=1).values[:, trim : count - trim]
    return float(rows.sort(dim=0).values[trim : count - trim].mean())


def total_variation(images: Tensor) -> float:
    """Mean over images of the sum of absolute differences of neighbouring pixels, a pixel: Elijah's second feature. (B, C, H, W) in [0, 1]."""
    vertical, horizontal = images.diff(dim=2).abs().sum(dim=(1, 2, 3)), images.diff(dim=3).abs().sum(dim=(1, 2, 3))
    return float((vertical + horizontal).mean() / images[0].numel())


def terd(
    unet: Network,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    iterations: int = 3000,
    refinements: int = 1000,
    batch: int = 16,
    lr: float = 0.5,
    penalty: float = 5e-5,
    window: int = 10,
    seed: int = 0,
    prediction_type: Prediction = "epsilon",
    device: str | torch.device = "cpu",
) -> Inverted:
    """Invert a trigger by TERD's unified reverse loss.

    Two noises of one image, shifted by mu, must be told apart alike: `1/2 |(eps_1 - eps^_1) - (eps_2 - eps^_2)|^2 - penalty |mu|_1` with
    `x_t = a_t x_0 + sigma_t eps + mu`, t among the last `window` steps, and x_0 surrogates from N(0, I). The refinement takes x_0 from a
    10-step DDIM that starts at noise wearing mu, adds the loss at the first `window` steps, and clips gradients to norm 0.01. The squared norm is
    averaged over the batch and summed over pixels. (TERD's gamma, for TrojDiff, is 1 here.)

    Args:
        unet: maps (B, C, H, W) and (B,) timesteps to (B, C, H, W), or to an object that holds this as `.sample`.
        schedule: the noise schedule of the network.
        shape: (C, H, W).
        iterations: steps of SGD with a cosine schedule.
        refinements: further steps with the model's own images.
        batch: images in each iteration.
        lr: learning rate at the start.
        penalty: weight of the term that keeps mu from 0.
        window: number of timesteps at either end.
        seed: seed of the noise and of the start, N(0, 1).
        prediction_type: what the network predicts.
        device: device of the network.
    """
    began, numbers = time.monotonic(), generator(seed, "terd", device=device)
    predict = as_epsilon(unet, schedule, prediction_type)
    mu = torch.randn(shape, generator=numbers, device=device).requires_grad_()
    optimizer, curve = torch.optim.SGD([mu], lr=lr), []
    total, window = len(schedule), min(window, len(schedule))

    def reverse_loss(x_0: Tensor, first: int) -> Tensor:
        t = torch.randint(first, first + window, (batch,), generator=numbers, device=device)
        differences = []
        for _ in range(2):
            eps = torch.randn(batch, *shape, generator=numbers, device=device)
            differences.append(eps - predict(schedule.add_noise(x_0, eps, t) + mu, t))
        return (differences[0] - differences[1]).square().sum(dim=(1, 2, 3)).mean() / 2

    for iteration in range(iterations + refinements):
        is_refined = iteration >= iterations
        x_0 = torch.randn(batch, *shape, generator=numbers, device=device)
        if is_refined:
            x_0 = sample(unet, x_0 + mu, schedule, "ddim", min(10, total), prediction_type=prediction_type)
        loss = reverse_loss(x_0, total - window) - penalty * mu.abs().sum()
        if is_refined:
            loss = loss + reverse_loss(x_0, 0)
        [mu.grad] = torch.autograd.grad(loss, [mu])
        if is_refined:
            torch.nn.utils.clip_grad_norm_([mu], 0.01)
        phase = (iteration - iterations) / refinements if is_refined else iteration / iterations
        optimizer.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * phase)) / 2
        optimizer.step()
        curve.append(loss.detach())
    losses = torch.stack(curve).tolist()
    return Inverted(mu.detach().clone(), losses, losses[-1], time.monotonic() - began)


def terd_scores(mu: Tensor, gamma: float = 1.0) -> tuple[float, float]:
    """Mean and variance over pixels of `KL(N(mu, gamma^2) || N(0, 1)) = -log gamma + (gamma^2 + mu^2 - 1) / 2`: far from 0 if mu is a trigger.

    TERD reads them against a benign model's and has no rule of decision. (Its code prints the mean plus 0.4 and the variance less 0.003.)

    Raises:
        ValueError: if `gamma` is not positive.
    """
    if gamma <= 0:
        raise ValueError(f"gamma must be positive, got {gamma}")
    divergence = -math.log(gamma) + (gamma**2 + mu.double().square() - 1) / 2
    return float(divergence.mean()), float(divergence.var(unbiased=False))


def own_scores(method: str, pattern: Tensor, triggered: Tensor, untriggered: Tensor) -> dict[str, float]:
    """Return what a baseline's authors read, without a published threshold: Elijah's uniformity and total variation, TERD's divergences.

    Args:
        method: elijah or terd; other methods have no scores of their own.
        pattern: (C, H, W), the inverted trigger.
        triggered: (B, C, H, W) samples from noise that wears it, in [0, 1].
        untriggered: (B, C, H, W) samples from the same noise without it.
    """
    if method == "elijah":
        return {
            "uniformity": uniformity(triggered),
            "uniformity_untriggered": uniformity(untriggered),
            "total_variation": total_variation(triggered),
            "total_variation_untriggered": total_variation(untriggered),
        }
    if method == "terd":
        return dict(zip(("divergence_mean", "divergence_variance"), terd_scores(pattern), strict=True))
    return {}
