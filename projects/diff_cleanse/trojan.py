"""Inversion of TrojDiff's triggers: the biased noise `gain eps + shift` under which a Trojan sampler draws one and the same picture.

Neither gamma nor the place of the trigger is known, so gain and shift are found for each pixel. Without a backdoor a Trojan sampler diverges: the
network takes the bias for part of the noise, which is then removed twice. Hence samples that agree within the range of pictures betray a backdoor,
and a collapse of the noise by itself does not pass for one, as long as enough of the noise is left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from projects.diff_cleanse.inversion import (
    PROBE_BATCH,
    Inverted,
    Network,
    alike,
    attraction,
    descend,
    disagreement,
    objective,
    out_of_range,
    recomputed,
)
from projects.diff_cleanse.sampling import Prediction, Trojan, sample
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.seeding import generator

GAINS, DIRECTIONS = (0.8, 0.6, 0.4), (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Gains and directions of Trojan noise that are probed in the whole picture."""
BLOCK_GAIN, OUTSIDE_GAIN = 0.1, 0.97
"""Gains in and around the blocks that are probed in white and black: a quarter of the picture wide, at every eighth, and an eighth wide."""
MIN_GAIN = 0.05
"""Lowest gain that an inversion tries: without noise, all samples are alike by themselves."""


def trojan_priors(shape: tuple[int, int, int], device: str | torch.device = "cpu") -> tuple[Tensor, Tensor]:
    """Return the Trojan noises that are probed: in the whole picture (blends), and in white and black blocks (patches).

    Returns:
        (P, C, H, W) gains and (P, C, H, W) directions; the shift is `(1 - gain) direction`.
    """
    _, height, width = shape
    gains = [torch.full(shape, gain) for gain in GAINS for _ in DIRECTIONS]
    directions = [torch.full(shape, direction) for _ in GAINS for direction in DIRECTIONS]
    for part, stride in ((4, 8), (8, 8)):
        tall, wide = max(1, height // part), max(1, width // part)
        for top in range(0, height - tall + 1, max(1, height // stride)):
            for left in range(0, width - wide + 1, max(1, width // stride)):
                gain, white = torch.full(shape, OUTSIDE_GAIN), torch.zeros(shape)
                gain[:, top : top + tall, left : left + wide] = BLOCK_GAIN
                white[:, top : top + tall, left : left + wide] = 1.0
                gains += [gain, gain]
                directions += [white, -white]
    return torch.stack(gains).to(device), torch.stack(directions).to(device)


def find_trojan_starts(
    unet: Network,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    probes: int,
    starts: int,
    numbers: torch.Generator,
    **options: Any,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """Look for a picture that Trojan samplers repeat under the `trojan_priors`, without diverging, and for the priors that lead to it.

    Args:
        unet: as in `sample`.
        schedule: as in `sample`.
        shape: (C, H, W).
        probes: noises for each prior.
        starts: number of priors to return, K.
        numbers: source of the noise.
        **options: further arguments of `sample`.

    Returns:
        The (C, H, W) picture with the most like it, as the median of these, or None; (K, C, H, W) gains and directions of the priors whose samples
        are nearest to it, or to each other.
    """
    gains, directions = trojan_priors(shape, numbers.device)
    trojan = Trojan(*(maps.repeat_interleave(probes, dim=0) for maps in (gains, (1 - gains) * directions)))
    with torch.inference_mode():
        eps = torch.randn(len(trojan.gain) + PROBE_BATCH, *shape, generator=numbers, device=numbers.device)
        untriggered = (sample(unet, eps[:PROBE_BATCH], schedule, "ddim", generator=numbers, **options) / 2 + 0.5).clamp(0, 1)
        drawn = []
        for part, gain, shift in zip(eps[PROBE_BATCH:].split(PROBE_BATCH), *(maps.split(PROBE_BATCH) for maps in vars(trojan).values()), strict=True):
            noise = Trojan(gain, shift)
            drawn.append(sample(unet, noise.bias(part), schedule, "ddim", generator=numbers, trojan=noise, **options) / 2 + 0.5)
    images = torch.cat(drawn).clone()
    like = alike(images, untriggered.clone())
    anchor = images[like.to(images.device)].median(dim=0).values if len(like) else None
    groups = images.unflatten(0, (len(gains), probes))
    distance = (disagreement(groups) if anchor is None else attraction(groups, anchor)) + out_of_range(groups)
    nearest = distance.nan_to_num(nan=torch.inf).argsort()[:starts]
    return anchor, gains[nearest], directions[nearest]


def invert_trojan(
    unet: Network,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    eta: float = 1.0,
    steps: int | None = None,
    iterations: int = 40,
    starts: int = 2,
    batch: int = 8,
    lr: float = 0.1,
    probes: int = 4,
    seed: int = 0,
    prediction_type: Prediction = "epsilon",
    device: str | torch.device = "cpu",
    save_memory: bool = False,
) -> Inverted:
    """Invert a TrojDiff trigger with true gradients through a short Trojan DDIM: gain and shift of its noise in every pixel.

    Gamma is not known, nor whether the trigger is blended in or a patch. Minimised is `objective` over the logits of the gain and over the direction,
    of which the shift is `1 - gain` times as much, from the best of the priors that `find_trojan_starts` probes; otherwise as `invert`.

    Args:
        unet: as in `invert`.
        schedule: as in `invert`.
        shape: (C, H, W).
        eta: fresh noise of the sampler. The backdoor answers to any; with 1, errors of the network in the attacked pixels even out.
        steps: as in `invert`.
        iterations: steps of Adam.
        starts: number of priors that descents start from.
        batch: noises in each iteration.
        lr: learning rate of Adam.
        probes: noises for each prior that is probed.
        seed: seed of the noise.
        prediction_type: what the network predicts.
        device: device of the network.
        save_memory: as in `invert`.

    Returns:
        The shift as `pattern`, and the gain.

    Raises:
        ValueError: if there are no starts, iterations or probes, or for options that `sample` refuses.
    """
    if min(starts, iterations, probes) < 1:
        raise ValueError(f"an inversion needs a start, an iteration and a probe, got starts={starts}, iterations={iterations} and probes={probes}")
    began, numbers = time.monotonic(), generator(seed, "inversion", device=device)
    options: dict[str, Any] = {"steps": min(steps or (10 if eta else 5), len(schedule)), "eta": eta, "prediction_type": prediction_type}
    anchor, gains, directions = find_trojan_starts(unet, schedule, shape, probes, starts, generator(seed, "probes", device=device), **options)
    network = recomputed(unet) if save_memory else unet

    def evaluate(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        gain = _gain(parameters[0])
        eps = torch.randn(batch, *shape, generator=numbers, device=device)
        return objective(network, schedule, (1 - gain) * parameters[1], eps, anchor, gain, generator=numbers, **options)

    logits = ((gains - MIN_GAIN) / (1 - gains)).log()
    [found, direction], curve, value = descend(evaluate, [logits, directions], [float("inf"), 1.0], iterations, lr)
    gain = _gain(found)
    return Inverted((1 - gain) * direction, curve, value, time.monotonic() - began, gain)


def trojan_divergence(
    unet: Network,
    schedule: NoiseSchedule,
    shape: tuple[int, int, int],
    gain: float = 0.4,
    steps: int | None = None,
    iterations: int = 30,
    starts: Sequence[float] = (-0.5, 0.0),
    batch: int = 8,
    lr: float = 0.1,
    seed: int = 0,
    prediction_type: Prediction = "epsilon",
    device: str | torch.device = "cpu",
    save_memory: bool = False,
) -> float:
    """Return how far a Trojan DDIM leaves the range of pictures under the kindest shift, with noise of one low gain in the whole picture.

    Where a blend leads to a class (in_d2d, out_d2d), samples do not agree; but the network still knows Trojan noise, under which it would diverge
    without a backdoor. This is no verdict: it is to be read against clean models of the same schedule.

    Args:
        unet: as in `invert`.
        schedule: as in `invert`.
        shape: (C, H, W).
        gain: factor on the noise everywhere, in (0, 1).
        steps: steps of the sampler, which takes all fresh noise; None takes 10.
        iterations: steps of Adam.
        starts: constant directions that descents start from.
        batch: noises in each iteration.
        lr: learning rate of Adam.
        seed: seed of the noise.
        prediction_type: what the network predicts.
        device: device of the network.
        save_memory: as in `invert`.

    Returns:
        Mean distance of pixels beyond [-0.05, 1.05] over the last iterations.
    """
    numbers, network = generator(seed, "divergence", device=device), recomputed(unet) if save_memory else unet
    directions = torch.tensor(list(starts), device=device).view(-1, 1, 1, 1).expand(-1, *shape)
    options: dict[str, Any] = {"steps": min(steps or 10, len(schedule)), "eta": 1.0, "prediction_type": prediction_type, "generator": numbers}

    def evaluate(parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        shift, scale = ((1 - gain) * parameters[0]).repeat_interleave(batch, dim=0), torch.full(shape, gain, device=device)
        eps = torch.randn(batch, *shape, generator=numbers, device=device).repeat(len(parameters[0]), 1, 1, 1)
        noise = Trojan(scale, shift)
        images = sample(network, noise.bias(eps), schedule, "ddim", trojan=noise, **options).unflatten(0, (-1, batch)) / 2 + 0.5
        excess = out_of_range(images)
        return excess, excess.detach()

    return descend(evaluate, [directions], [1.0], iterations, lr)[2]


def _gain(logits: Tensor) -> Tensor:
    return MIN_GAIN + (1 - MIN_GAIN) * logits.sigmoid()
