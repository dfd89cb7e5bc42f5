"""Which channels carry a backdoor: what each is worth at late timesteps, on clean and on triggered inputs (Diff-Cleanse, stage 2).

The published code removes the channels with the largest sum of both importances, though it means those with the largest difference: `difference` is
the default here and `sum` the published effect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from projects.diff_cleanse.inspection import Wear
from projects.diff_cleanse.inversion import Network
from projects.diff_cleanse.sampling import Prediction, as_epsilon
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.pruning import GroupIndex, LearnableMasks, Scores, backward_over, differential, magnitude, random, taylor

Criterion = Literal["difference", "sum", "backdoor", "ratio", "clean", "random", "magnitude", "anp"]
DIFFERENTIAL = ("difference", "sum", "backdoor", "ratio", "clean")
"""Criteria made of the two passes of `two_pass_importance`; the others stand beside them for comparison."""


def group_channels(unet: nn.Module, shape: tuple[int, int, int]) -> GroupIndex:
    """Trace the groups of a U-Net's channels; those of the first and of the last convolution stay whole.

    Args:
        unet: a `UNet2DModel`.
        shape: (C, H, W) of its pictures.
    """
    device = next(unet.parameters()).device
    example = {"sample": torch.zeros(1, *shape, device=device), "timestep": torch.zeros(1, dtype=torch.int64, device=device)}
    return GroupIndex.build(unet, example, protected=["conv_in", "conv_out"])


def late_timesteps(total: int, share: float = 0.1, every: int = 1) -> range:
    """Return the last timesteps, where a trigger is strongest, every `every`-th of them: the last tenth, as published for T = 1000.

    For TrojDiff the published code takes the last twentieth; here the tenth serves all attacks, of which a defender does not know which it is.
    """
    return range(total - 1, total - 1 - max(1, round(share * total)), -every)[::-1]


@dataclass(frozen=True)
class Probe:
    """What channels are scored on: a network, and one fixed batch of pictures and noise over some timesteps.

    Attributes:
        unet: the network; scoring leaves it as it was, gradients included.
        schedule: its noise schedule.
        images: (B, C, H, W) clean pictures in [-1, 1].
        eps: (B, C, H, W) noise.
        timesteps: see `late_timesteps`.
        prediction_type: what the network predicts.
    """

    unet: nn.Module
    schedule: NoiseSchedule
    images: Tensor
    eps: Tensor
    timesteps: Sequence[int]
    prediction_type: Prediction = "epsilon"

    def loss_at(self, timestep: int, noise: Tensor, unet: Network | None = None) -> Tensor:
        """Return `mean (eps_theta(x_t, t) - eps)^2` at `x_t = a_t x + sigma_t noise`, a scalar.

        Args:
            timestep: t.
            noise: (B, C, H, W), `eps` itself or with a trigger on it.
            unet: another network in place of the own one.
        """
        t = torch.full((len(self.images),), timestep, device=self.images.device)
        noisy = self.schedule.add_noise(self.images, noise, t)
        return F.mse_loss(as_epsilon(unet or self.unet, self.schedule, self.prediction_type)(noisy, t).float(), self.eps)


def two_pass_importance(index: GroupIndex, probe: Probe, wear: Wear) -> tuple[Scores, Scores]:
    """Score channels for clean and for triggered inputs by accumulated first-order Taylor terms.

    Gradients of the loss are summed over the timesteps, from `x_t = a_t x + sigma_t eps` and from `x_t = a_t x + sigma_t wear(eps)`, with the same
    pictures and the same noise. A channel's score is the sum of |w dL/dw| over its slices of the layers of its group.

    Args:
        index: groups of the network's channels.
        probe: network, pictures, noise and timesteps.
        wear: puts the trigger on noise, as for a sampler's start: `eps + g` for most attacks.

    Returns:
        Scores of the clean and of the triggered pass, each with mean 1 within a group.
    """

    def importance(noise: Tensor) -> Scores:
        probe.unet.zero_grad()
        backward_over(lambda timestep: probe.loss_at(timestep, noise), probe.timesteps)
        return taylor(index, probe.unet)

    with _differentiable(probe.unet):
        return importance(probe.eps), importance(wear(probe.eps))


def score_channels(criterion: Criterion, index: GroupIndex, probe: Probe, wear: Wear, seed: int = 0) -> Scores:
    """Score channels by a criterion; the highest are to go.

    Args:
        criterion: `difference` (triggered - clean importance, the stated intent), `sum` (the published code's effect), `backdoor` (triggered alone),
            `ratio` (triggered / clean), `clean` (least important to clean inputs), `random`, `magnitude` (smallest weights), or `anp` (most
            vulnerable to perturbation, see `vulnerability`).
        index: groups of the network's channels.
        probe: network, pictures, noise and timesteps.
        wear: puts the trigger on noise.
        seed: seed of the criterion `random`.

    Raises:
        ValueError: for an unknown criterion.
    """
    if criterion not in get_args(Criterion):
        raise ValueError(f"unknown criterion {criterion!r}; known are {', '.join(get_args(Criterion))}")
    if criterion == "random":
        return random(index, seed)
    if criterion == "magnitude":
        return Scores({name: -scores for name, scores in magnitude(index, probe.unet).items()})
    if criterion == "anp":
        return vulnerability(index, probe)
    return differential(*two_pass_importance(index, probe, wear), form=criterion)


def vulnerability(index: GroupIndex, probe: Probe, budget: float = 0.4, trade_off: float = 0.2, iterations: int = 40, lr: float = 0.1) -> Scores:
    """Score channels by adversarial neuron pruning, which needs clean pictures and no trigger (Wu and Wang 2021, equation 4).

    The affine parameters of the normalisations are perturbed in the direction that raises the loss, by at most `budget` of their size; factors on the
    channels are then moved to lower `trade_off * loss + (1 - trade_off) * perturbed loss`. Channels whose factor falls are vulnerable and go first.

    Args:
        index: groups of the network's channels.
        probe: network, pictures, noise and timesteps.
        budget: largest relative change of an affine parameter.
        trade_off: weight of the loss without perturbation, in [0, 1].
        iterations: steps of the factors; each visits the next of the timesteps.
        lr: learning rate of the factors.
    """
    unet, masks = probe.unet, LearnableMasks(index).to(probe.images.device)
    norms = {name for name, module in unet.named_modules() if isinstance(module, nn.GroupNorm)}
    affine = {name: parameter for name, parameter in unet.named_parameters() if name.rpartition(".")[0] in norms}
    optimizer = torch.optim.SGD(masks.parameters(), lr=lr, momentum=0.9)
    with _differentiable(unet), masks.attached(unet):
        for iteration in range(iterations):
            timestep = probe.timesteps[iteration % len(probe.timesteps)]
            gradients = torch.autograd.grad(probe.loss_at(timestep, probe.eps), list(affine.values()))
            steps = (budget * parameter.abs() * gradient.sign() for parameter, gradient in zip(affine.values(), gradients, strict=True))
            worse = {name: (parameter + step).detach() for (name, parameter), step in zip(affine.items(), steps, strict=True)}
            perturbed = partial(functional_call, unet, worse)
            loss = trade_off * probe.loss_at(timestep, probe.eps)
            loss = loss + (1 - trade_off) * probe.loss_at(timestep, probe.eps, lambda x, t, call=perturbed: call((x, t)))  # type: ignore[misc]
            optimizer.zero_grad()
            loss.backward(inputs=list(masks.parameters()))
            optimizer.step()
            for mask in masks.parameters():
                mask.data.clamp_(0, 1)
    return Scores({name: -scores for name, scores in masks.scores().items()})


@contextmanager
def _differentiable(unet: nn.Module) -> Iterator[None]:
    """Lend a network for gradients of its weights: in evaluation mode (no dropout); modes and gradients are put back at the end."""
    was_training, held = unet.training, [(p, p.requires_grad, p.grad) for p in unet.parameters()]
    unet.eval().requires_grad_(True)
    try:
        yield
    finally:
        unet.train(was_training)
        for parameter, requires_grad, gradient in held:
            parameter.requires_grad_(requires_grad).grad = gradient
