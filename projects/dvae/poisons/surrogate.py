"""The network through which an attack looks at the data, and how it is trained."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from shared.poisons import Loss
from shared.seeding import generator


class Surrogate:
    """A classifier with its optimiser: SGD with momentum 0.9, weight decay 5e-4 and gradients clipped to a norm of 5.

    Args:
        net: maps (B, C, H, W) images in [0, 1] to (B, K) logits.
        lr: learning rate.
        device: where it is trained.
    """

    def __init__(self, net: nn.Module, lr: float, device: str | torch.device = "cpu") -> None:
        self.net, self.lr, self.device = net.to(device), lr, device
        self.optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)

    def step(self, images: Tensor, labels: Tensor, rate: float = 1.0) -> None:
        """Take a training step on a batch, with `rate` times the learning rate."""
        self.net.train()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * self.lr
        self.optimizer.zero_grad()
        F.cross_entropy(self.net(images.to(self.device)), labels.to(self.device)).backward()
        nn.utils.clip_grad_norm_(self.net.parameters(), 5.0)
        self.optimizer.step()

    def loss(self, targets: Tensor) -> Loss:
        """Return the frozen network's cross-entropy to (B,) targets, as a function of the images."""
        return cross_entropy(self.net, targets)

    @torch.no_grad()
    def errors(self, images: Tensor, labels: Tensor) -> int:
        """Count the images that the network, in evaluation mode, does not give their label."""
        return int((self.net.eval()(images.to(self.device)).argmax(1) != labels.to(self.device)).sum())

    def snapshot(self) -> nn.Module:
        """Return a copy of the network as it is."""
        return copy.deepcopy(self.net)


def cross_entropy(net: nn.Module, targets: Tensor) -> Loss:
    """Return a network's summed cross-entropy to (B,) targets, in evaluation mode, as a function of the images."""

    def loss(images: Tensor) -> Tensor:
        return F.cross_entropy(net.eval()(images), targets.to(images.device), reduction="sum")

    return loss


def fixed_batches(count: int, batch_size: int, seed: int) -> list[Tensor]:
    """Cut a permutation of all indices into batches of about `batch_size`, none of them much smaller than the others."""
    order = torch.randperm(count, generator=generator(seed, "order of the attack"))
    return list(order.tensor_split(math.ceil(count / batch_size)))


def endless(batches: list[Tensor]) -> Iterator[Tensor]:
    """Repeat the batches in their fixed order for ever."""
    return itertools.cycle(batches)


def train_clean(
    surrogate: Surrogate,
    read: Callable[[Tensor], tuple[Tensor, Tensor]],
    count: int,
    batch_size: int,
    epochs: int,
    seed: int,
    progress: Callable[[int], None],
    keep: int = 1,
) -> list[nn.Module]:
    """Train on the clean set, the learning rate falling to 0 along a cosine, and keep evenly spaced snapshots (SEP's checkpoints).

    Args:
        surrogate: what is trained.
        read: maps indices to images, augmented, and labels.
        count: number of images N.
        batch_size: images of a step.
        epochs: passes over the set, each in an order of its own.
        seed: seed of the orders.
        progress: is called after every epoch with the number of epochs done.
        keep: number of snapshots; the last is the trained network.

    Returns:
        The snapshots, in the order of training.
    """
    kept = [round((number + 1) * epochs / keep) for number in range(keep)]
    snapshots: list[nn.Module] = []
    for epoch in range(epochs):
        rate = 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        order = torch.randperm(count, generator=generator(seed, "clean epoch", epoch))
        for indices in order.tensor_split(math.ceil(count / batch_size)):
            surrogate.step(*read(indices), rate)
        snapshots += [surrogate.snapshot() for number in kept if number == epoch + 1]
        progress(epoch + 1)
    return snapshots
