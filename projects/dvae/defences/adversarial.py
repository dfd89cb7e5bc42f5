"""Adversarial training (Madry et al. 2018), as the paper's baseline has it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.dvae.defences.base import Defence

SMALL = 64
"""Largest side, in pixels, of images that get ten steps; larger ones get five."""


def find_adversaries(network: nn.Module, images: Tensor, labels: Tensor, epsilon: float, step: float, steps: int, random: torch.Generator) -> Tensor:
    """Climb the cross-entropy by signs of the gradient, in evaluation mode; the network's mode is as before afterwards.

    Args:
        network: (B, C, H, W) -> (B, K) logits.
        images: (B, C, H, W) in [0, 1].
        labels: (B,) int64.
        epsilon: radius of the l-infinity ball, in units of [0, 1] images.
        step: length of a step; the search starts from x + step · N(0, 1).
        steps: number of steps.
        random: generator of the start.

    Returns:
        (B, C, H, W) in the ball and in [0, 1].
    """
    training = network.training
    network.eval()
    found = images + step * torch.randn(images.shape, generator=random, device=images.device)
    for _ in range(steps):
        found = found.detach().requires_grad_(True)
        with torch.enable_grad():
            gradient = torch.autograd.grad(F.cross_entropy(network(found), labels, reduction="sum"), found)[0]
        found = torch.clamp(found + step * gradient.sign(), images - epsilon, images + epsilon).clamp(0, 1)
    network.train(training)
    return found.detach()


class AdversarialTraining(Defence):
    """Trains on adversaries of l-infinity radius `epsilon`, in pixels of 255: steps of a quarter, ten of them, or five above 64 pixels a side.

    Args:
        epsilon: radius in pixels of 255; published: 8.

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, epsilon: float = 8) -> None:
        if not 0 < epsilon <= 255:
            raise ValueError(f"the radius of at must lie in (0, 255], got {epsilon:g}")
        self.epsilon = epsilon / 255
        self.name = f"at:{epsilon:g}"

    def loss(self, network: nn.Module, images: Tensor, labels: Tensor, random: torch.Generator, progress: float) -> Tensor:
        steps = 10 if max(images.shape[2:]) <= SMALL else 5
        found = find_adversaries(network, images, labels, self.epsilon, self.epsilon / 4, steps, random)
        return F.cross_entropy(network(found), labels)
