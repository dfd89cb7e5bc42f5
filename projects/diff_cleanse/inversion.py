"""Trigger inversion by gradient: move the starting noise until a short, differentiable sampler draws one and the same image from every noise.

Seen from the usual images the target is a far and narrow optimum: variance alone is lowered as well by drawing average images, where a descent may
end. But near a trigger some noises already draw the target. So constant patterns are probed first, by forward passes; if their samples repeat a
picture, it is the anchor to which the samples are then drawn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from projects.diff_cleanse.sampling import Prediction, Trojan, sample
from projects.diff_cleanse.schedule import NoiseSchedule
from projects.diff_cleanse.similarity import agreement_graph, guard_beside, tolerance_beside
from shared.seeding import generator

Network = Callable[[Tensor, Tensor], Any]
AVERAGED = 5
"""Iterations over which the loss of a start is averaged before starts are compared."""
PROBED = (-1.0, -0.85, -0.7, -0.55, -0.4)
"""Constant patterns that are probed for a repeated picture: triggers lie mostly on the background -1."""
PROBE_BATCH = 64


@dataclass(frozen=True)
class Inverted:
    """A trigger found by an inversion.

    Attributes:
        pattern: (C, H, W), what is added to the starting noise.
        curve: how far samples disagree, by the method's own measure, an entry an iteration; of the start that was kept.
        value: its final value.
        seconds: how long it took.
        gain: (C, H, W), the factor on the noise itself, in (0, 1]; None but for Trojan noise.
    """

    pattern: Tensor
    curve: list[float]
    value: float
    seconds: float
    gain: Tensor | None = None

    @property
    def trojan(self) -> Trojan | None:
        """The noise that Trojan samplers need; None where the trigger is found by benign ones."""
        return None if self.gain is None else Trojan(self.gain, self.pattern)

    def wear(self, eps: Tensor) -> Tensor:
        """Put the trigger on (B, C, H, W) standard normal noise."""
        return eps + self.pattern if self.trojan is None else self.trojan.bias(eps)


def contrast(images: Tensor) -> Tensor:
    """Variance over the pixels of each channel, averaged over channels, of (..., C, H, W) images; returns (...): 0 for any plain colour."""
    return images.flatten(-2).var(dim=-1, unbiased=False).mean(dim=-1)


def disagreement(images: Tensor) -> Tensor:
    """Variance over samples relative to the contrast of their mean: `mean_pixels Var_i(u_i) / (Var_pixels(mean_i u_i) + 0.02)`.

    The ratio is (nearly) free of scale: it cannot be won by shrinking contrast, nor by plain colours.

    Args:
        images: (..., B, C, H, W), nominally in [0, 1] but not clamped.

    Returns:
        (...) at least 0; 0 where all samples agree.
    """
    variance = images.var(dim=-4, unbiased=False).mean(dim=(-3, -2, -1))
    return variance / (contrast(images.mean(dim=-4)) + 0.02)


def out_of_range(images: Tensor) -> Tensor:
    """Mean distance of pixels beyond [-0.05, 1.05], for (..., B, C, H, W) images; returns (...)."""
    return (torch.relu(images - 1.05) + torch.relu(-0.05 - images)).mean(dim=(-4, -3, -2, -1))


def attraction(images: Tensor, anchor: Tensor) -> Tensor:
    """Mean squared distance of (..., B, C, H, W) images to one (C, H, W), relative to its contrast, as `disagreement`; returns (...)."""
    return (images - anchor).square().mean(dim=(-4, -3, -2, -1)) / (contrast(anchor) + 0.02)


def objective(
    unet: Network,
    schedule: NoiseSchedule,
    patterns: Tensor,
    eps: Tensor,
    anchor: Tensor | None = None,
    gains: Tensor | None = None,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """What `invert` minimises, and by which it compares: of the samples `x_0 / 2 + 1/2` that a DDIM draws from noise wearing each pattern.

    Args:
        unet: as in `sample`.
        schedule: as in `sample`.
        patterns: (K, C, H, W).
        eps: (B, C, H, W) noise, the same for all patterns.
        anchor: (C, H, W) picture that samples are drawn to; None draws them to each other.
        gains: (K, C, H, W) factors on the noise, for the Trojan sampler whose shifts are the patterns; None takes the benign one.
        **options: further arguments of `sample`.

    Returns:
        (K,) `attraction` or `disagreement` plus `out_of_range`, with gradients to the patterns; and (K,) `disagreement`, without.
    """
    if gains is None:
        x_T = (patterns[:, None] + eps).flatten(0, 1)
    else:
        trojan = Trojan(*(maps.repeat_interleave(len(eps), dim=0) for maps in (gains, patterns)))
        x_T, options = trojan.bias(eps.repeat(len(patterns), 1, 1, 1)), options | {"trojan": trojan}
    images = sample(unet, x_T, schedule, "ddim", **options).unflatten(0, (len(patterns), len(eps))) / 2 + 0.5
    ratio = disagreement(images)
    return (ratio if anchor is None else attraction(images, anchor)) + out_of_range(images), ratio.detach()


def find_anchor(
    unet: Network, schedule: NoiseSchedule, shape: tuple[int, int, int], probes: int, numbers: torch.Generator, **options: Any
) -> tuple[Tensor, float] | None:
    """Look for a picture that samples repeat when the noise wears constant patterns; how alike it must be follows from untriggered samples.

    Args:
        unet: as in `sample`.
        schedule: as in `sample`.
        shape: (C, H, W).
        probes: noises for each pattern in `PROBED`, and for none.
        numbers: source of the noise.
        **options: further arguments of `sample`.

    Returns:
        The (C, H, W) picture with the most like it, as the median of these, and the constant that drew most of them; None if no two are alike.
    """
    drawn = []
    with torch.inference_mode():
        for constant in (0.0, *PROBED):
            eps = torch.randn(probes, *shape, generator=numbers, device=numbers.device) + constant
            drawn += [sample(unet, part, schedule, "ddim", generator=numbers, **options) / 2 + 0.5 for part in eps.split(PROBE_BATCH)]
    images = torch.cat(drawn).clone()
    images, untriggered = images[probes:], images[:probes].clamp(0, 1)
    like = alike(images.clamp(0, 1), untriggered)
    if len(like) == 0:
        return None
    counts = like.div(probes, rounding_mode="floor").bincount(minlength=len(PROBED))
    return images[like.to(images.device)].median(dim=0).values, PROBED[int(counts.argmax())]


def alike(images: Tensor, untriggered: Tensor) -> Tensor:
    """Return the indices of the images that are like the one with the most like it, itself left out."""
    graph = agreement_graph(images, 1 - tolerance_beside(untriggered), guard_beside(untriggered))
    return graph[int(graph.sum(dim=1).argmax())].nonzero().squeeze(1)


def invert(
    unet: Network,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    eta: float = 0.0,
    steps: int | None = None,
    iterations: int = 45,
    starts: Sequence[float] = (-0.8, -0.5),
    batch: int = 12,
    lr: float = 0.1,
    bound: float = 1.0,
    probes: int = 256,
    seed: int = 0,
    prediction_type: Prediction = "epsilon",
    device: str | torch.device = "cpu",
    save_memory: bool = False,
) -> Inverted:
    """Invert a trigger with true gradients through a short DDIM (method `gradient`).

    Minimises `objective` over the pattern, with fresh noise in each iteration. If probing finds an anchor, the one start is the constant that drew it
    most often. Otherwise the starts are optimised side by side in one batch, on the same noise, by their `disagreement` alone; after half of the
    iterations only the best goes on. Triggers are pictures in [-1, 1]: hence the bound, far outside of which any diffusion model collapses.

    Args:
        unet: maps (B, C, H, W) and (B,) timesteps to (B, C, H, W), or to an object that holds this as `.sample`.
        schedule: the noise schedule of the network.
        shape: (C, H, W).
        eta: 0 finds the backdoors of deterministic samplers, 1 those of ancestral sampling.
        steps: steps of the sampler; None takes 5, or 10 with fresh noise.
        iterations: steps of Adam.
        starts: constant values that patterns start from.
        batch: noises in each iteration.
        lr: learning rate of Adam.
        bound: largest absolute value of the pattern.
        probes: noises for each constant that is probed for an anchor; 0 probes nothing.
        seed: seed of the noise.
        prediction_type: what the network predicts.
        device: device of the network.
        save_memory: recompute the network in the backward pass instead of keeping its activations: memory of one step instead of all.

    Raises:
        ValueError: if there are no starts or no iterations, or for options that `sample` refuses.
    """
    if not starts or iterations < 1:
        raise ValueError(f"an inversion needs a start and an iteration, got starts={list(starts)} and iterations={iterations}")
    began, numbers = time.monotonic(), generator(seed, "inversion", device=device)
    options: dict[str, Any] = {"steps": min(steps or (10 if eta else 5), len(schedule)), "eta": eta, "prediction_type": prediction_type}
    found = find_anchor(unet, schedule, shape, probes, generator(seed, "probes", device=device), **options) if probes else None
    anchor, starts = (None, starts) if found is None else (found[0], found[1:])
    network = recomputed(unet) if save_memory else unet
    patterns = torch.tensor(list(starts), device=device).view(-1, 1, 1, 1).expand(-1, *shape).clone()

    def evaluate(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        eps = torch.randn(batch, *shape, generator=numbers, device=device)
        return objective(network, schedule, parameters[0], eps, anchor, generator=numbers, **options)

    [pattern], curve, value = descend(evaluate, [patterns], [bound], iterations, lr)
    return Inverted(pattern, curve, value, time.monotonic() - began)


def descend(
    evaluate: Callable[[Sequence[Tensor]], tuple[Tensor, Tensor]],
    parameters: Sequence[Tensor],
    bounds: Sequence[float],
    iterations: int,
    lr: float,
) -> tuple[list[Tensor], list[float], float]:
    """Optimise several starts side by side by Adam, after half of the iterations only the best.

    Args:
        evaluate: maps the parameters to (K,) losses, with gradients, and (K,) values by which starts are compared.
        parameters: (K, C, H, W) each.
        bounds: largest absolute value of each parameter.
        iterations: steps of Adam.
        lr: learning rate of Adam.

    Returns:
        The best start's parameters, (C, H, W) each, its values, and its final value.
    """
    parameters = [parameter.clone().requires_grad_() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    curves: list[Tensor] = []
    for iteration in range(iterations):
        if iteration == iterations // 2 and len(parameters[0]) > 1:
            best = int(_recent(curves).argmin())
            curves = [ratios[best : best + 1] for ratios in curves]
            parameters, optimizer = _keep(parameters, optimizer, best)
        loss, ratio = evaluate(parameters)
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss.sum(), parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
        for parameter, bound in zip(parameters, bounds, strict=True):
            parameter.data.clamp_(-bound, bound)
        curves.append(ratio)
    best = int(_recent(curves).argmin())
    values = torch.stack(curves)[:, best].tolist()
    return [parameter.detach()[best].clone() for parameter in parameters], values, float(_recent(curves)[best])


def _recent(curves: list[Tensor]) -> Tensor:
    """Mean loss of each start over the last iterations; a loss that is not a number counts as infinite."""
    return torch.stack(curves[-AVERAGED:]).mean(dim=0).nan_to_num(nan=torch.inf)


def _keep(parameters: Sequence[Tensor], optimizer: torch.optim.Adam, best: int) -> tuple[list[Tensor], torch.optim.Adam]:
    """Go on with one of several starts, and with what Adam knows about it."""
    kept = [parameter.detach()[best : best + 1].clone().requires_grad_() for parameter in parameters]
    successor = torch.optim.Adam(kept, lr=optimizer.param_groups[0]["lr"])
    for old, new in zip(parameters, kept, strict=True):
        successor.state[new] = {name: value[best : best + 1].clone() if value.ndim else value for name, value in optimizer.state[old].items()}
    return kept, successor


def recomputed(unet: Network) -> Network:
    """Wrap a network so that its activations are computed again in the backward pass, instead of kept."""
    return lambda x, t: checkpoint(unet, x, t, use_reentrant=False)


@contextmanager
def frozen(unet: nn.Module) -> Iterator[nn.Module]:
    """Lend a network for inversion: in evaluation mode, without gradients of its weights, in channels-last layout; all is put back at the end."""
    wanted = [(parameter, parameter.requires_grad) for parameter in unet.parameters()]
    was_training = unet.training
    unet.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    try:
        yield unet
    finally:
        unet.train(was_training).to(memory_format=torch.contiguous_format)
        for parameter, requires_grad in wanted:
            parameter.requires_grad_(requires_grad)
