"""The nets of vertical federated learning: one bottom net a party, and the server's linear top net."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn

from shared.seeding import generator

Net = TypeVar("Net", bound=nn.Module)


class BottomNet(nn.Module):
    """A party's net: `body` makes h of a record, the fully connected layer `first` makes u of h, and `tail` makes the outputs o of u.

    Args:
        body: (B, ...) -> (B, d1), flattened.
        first: the first fully connected layer, d1 -> d2, with a bias, whose gradient step I of the attack reads.
        tail: (B, d2) -> (B, outputs).

    Raises:
        ValueError: if `first` has no bias.
    """

    def __init__(self, body: nn.Module, first: nn.Linear, tail: nn.Module) -> None:
        super().__init__()
        if first.bias is None:
            raise ValueError("the first fully connected layer has no bias, but step I of the attack reads the gradient of it: give it one")
        self.body = body
        self.first = first
        self.tail = tail

    def middle(self, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input h, (B, d1), and the output u, (B, d2), of the first fully connected layer."""
        h = self.body(blocks)
        return h, self.first(h)

    def forward(self, blocks: Tensor) -> Tensor:
        """Map (B, ...) blocks of features to (B, outputs)."""
        return self.tail(self.middle(blocks)[1])


class ServerNet(nn.Module):
    """The server's linear top net over the outputs of all parties, side by side.

    Args:
        parties: number of parties.
        outputs: outputs of each party's bottom net.
        classes: number of classes.
        seed: seed of the weights.
    """

    def __init__(self, parties: int, outputs: int, classes: int, seed: int) -> None:
        super().__init__()
        self.top = _initialised(lambda: nn.Linear(parties * outputs, classes), seed, "server")

    def forward(self, outputs: Sequence[Tensor]) -> Tensor:
        """Map one (B, outputs) a party to (B, classes) logits."""
        return self.top(torch.cat(list(outputs), dim=1))


def conv_bottom(
    channels: int,
    size: int | tuple[int, int],
    widths: Sequence[int],
    first: int,
    outputs: int,
    seed: int,
    stages: int | None = None,
    hidden: int | None = None,
    batch_norm: bool = False,
    rectified: bool = True,
) -> BottomNet:
    """Build the reference's kind of net: stages of 5 x 5 convolution, ReLU and 2 x 2 maximum, then three fully connected layers.

    Args:
        channels: channels of the images.
        size: height and width of the party's block in pixels; one number for a square.
        widths: channels of the stages.
        first: d2, outputs of the first fully connected layer.
        outputs: outputs of the net.
        seed: seed of the weights.
        stages: number of stages; those beyond `widths` repeat the last width. None takes one for each width.
        hidden: outputs of the second fully connected layer; None takes half of `first`.
        batch_norm: whether each convolution is followed by a batch norm, which the rival that matches batch statistics needs.
        rectified: whether a ReLU follows the outputs, as in the reference; a record whose outputs are all dead then leaves no gradient.

    Returns:
        A net for (B, channels, *size) blocks, where d1 is the last width times the sides halved, rounded up, once a stage.

    Raises:
        ValueError: if there is no stage, or fewer stages than widths.
    """
    height, width = (size, size) if isinstance(size, int) else size
    stages = len(widths) if stages is None else stages
    if not 0 < len(widths) <= stages:
        raise ValueError(
            f"{stages} stages cannot have the {len(widths)} widths {list(widths)}: give at least one width, and at least a stage for each"
        )
    repeated = [*widths, *[widths[-1]] * (stages - len(widths))]
    for _ in range(stages):
        height, width = -(-height // 2), -(-width // 2)
    sizes = (first, first // 2 if hidden is None else hidden, outputs)

    def build() -> BottomNet:
        pairs = zip([channels, *repeated], repeated, strict=False)
        body = nn.Sequential(*(_stage(inner, outer, batch_norm) for inner, outer in pairs), nn.Flatten())
        return BottomNet(body, nn.Linear(repeated[-1] * height * width, first), _tail(sizes, rectified))

    return _initialised(build, seed, "bottom")


def mnist_bottom(seed: int) -> BottomNet:
    """Build the reference's net for quarters of MNIST, (B, 1, 14, 14) -> (B, 10), where d1 = 2048 and d2 = 256."""
    return conv_bottom(1, 14, (64, 128), first=256, hidden=64, outputs=10, seed=seed)


def tabular_bottom(features: int, widths: Sequence[int], outputs: int, seed: int, rectified: bool = True) -> BottomNet:
    """Build a net whose first layer is fully connected, so that h is the record itself.

    Args:
        features: columns of the party's block.
        widths: outputs of the hidden layers; the first is d2.
        outputs: outputs of the net.
        seed: seed of the weights.
        rectified: see `conv_bottom`; with few outputs many records of standardised columns have only dead ones.

    Returns:
        A net for (B, features) blocks.

    Raises:
        ValueError: if there is no hidden layer.
    """
    if not widths:
        raise ValueError("a tabular net needs at least one hidden layer: give its width in `widths`")
    return _initialised(lambda: BottomNet(nn.Identity(), nn.Linear(features, widths[0]), _tail((*widths, outputs), rectified)), seed, "bottom")


@torch.no_grad()
def settle_norms(net: nn.Module, blocks: Tensor) -> None:
    """Set the batch norms of a net to the statistics of (N, ...) blocks and fix them, so that gradients are sums over records."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches, here of one
    net.train()(blocks)
    net.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def _stage(inner: int, outer: int, batch_norm: bool) -> nn.Sequential:
    """Build a stage, (B, I, H, W) -> (B, O, ceil(H / 2), ceil(W / 2)); both pads are those that TensorFlow calls same."""
    norm = [nn.BatchNorm2d(outer)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(inner, outer, 5, padding=2), *norm, nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True))


def _tail(sizes: Sequence[int], rectified: bool) -> nn.Sequential:
    """Build what follows the first fully connected layer: a ReLU before each further one, and one after the last if so said."""
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.ReLU(), nn.Linear(inner, outer)]
    return nn.Sequential(*layers, *([nn.ReLU()] if rectified else []))


def _initialised(build: Callable[[], Net], seed: int, part: str) -> Net:
    """Build a net without touching the global generator, with Keras's defaults: Glorot uniform weights and zero biases."""
    with torch.device("meta"):
        net = build()
    net.to_empty(device="cpu")
    chance = generator(seed, part)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight, generator=chance)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
    return net
