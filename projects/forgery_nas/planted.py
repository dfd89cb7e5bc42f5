"""The search tested on problems whose answer is known: a planted one, and one whose ranking of operations is expected (point 4).

The images are striped, and the operations of the planted space are an ordinary convolution and three that carry nothing: `none`, fresh noise and
a constant. After a search every kept edge that carries the signal must have the convolution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from projects.forgery_nas.alive import edge_softmax
from projects.forgery_nas.genotype import CELLS, edge_number
from projects.forgery_nas.importance import Level
from projects.forgery_nas.operations import Builder
from projects.forgery_nas.options import Relaxation, SearchOptions
from projects.forgery_nas.search import ArchitectureSearch
from shared.data.base import training_loader
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed, generator

PLANTED = ("noise", "conv", "none", "constant")
"""The planted space; `conv` alone carries a signal."""
SHARE = 0.5
"""Least softmax of beta of an edge that carries the signal, as a part of what it were if all edges into its node had the same."""


class Noise(nn.Module):
    """Fresh noise of the strided size."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, features: Tensor) -> Tensor:
        return torch.randn_like(features[:, :, :: self.stride, :: self.stride])


class Constant(Noise):
    """The constant -1 of the strided size: where it is added, ReLU cuts a part of the signal off."""

    def forward(self, features: Tensor) -> Tensor:
        return torch.full_like(features[:, :, :: self.stride, :: self.stride], -1.0)


def _convolution(channels: int, stride: int, affine: bool) -> nn.Module:
    convolution = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(nn.ReLU(), convolution, nn.BatchNorm2d(channels, affine=affine))


REGISTRY: dict[str, Builder] = {
    "conv": _convolution,
    "noise": lambda channels, stride, affine: Noise(stride),
    "constant": lambda channels, stride, affine: Constant(stride),
}


class Drawn(Dataset):
    """Images of two classes in turn, {"image": (3, S, S) uint8, "label"}.

    Args:
        waves: (N, 3, S, S) deviations from a grey of 128.
        random: source of the noise.
        noise: its standard deviation.
    """

    def __init__(self, waves: Tensor, random: torch.Generator, noise: float) -> None:
        self.labels = _labels(len(waves))
        self.images = (128 + waves + noise * torch.randn(waves.shape, generator=random)).clamp(0, 255).byte()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "label": self.labels[index]}


def _labels(length: int) -> Tensor:
    return torch.arange(length) % 2


def stripes(length: int, random: torch.Generator, size: int = 8) -> Drawn:
    """Draw images of vertical (0) or horizontal (1) stripes, 4 pixels wide, of any phase and colour."""
    waves = (torch.arange(size) * torch.pi / 2 + 6.3 * torch.rand(length, 1, generator=random)).sin()
    is_horizontal = _labels(length).bool()[:, None, None]
    striped = torch.where(is_horizontal, waves[:, :, None], waves[:, None, :])
    colours = 0.3 + torch.rand(length, 3, 1, 1, generator=random)
    return Drawn(60 * colours * striped[:, None], random, noise=20)


def faint_patterns(length: int, random: torch.Generator, size: int = 16) -> Drawn:
    """Draw images of any brightness and slope, both large, and for class 1 a faint fixed checkerboard."""
    offset, across, down = (60 * torch.rand(3, length, 3, 1, 1, generator=random) - 30).unbind()
    place = torch.arange(size)
    checks = 4 * (-1.0) ** (place[:, None] + place)
    ramp = (place - (size - 1) / 2) * 2 / size
    waves = offset + across * ramp + down * ramp[:, None] + checks * _labels(length)[:, None, None, None]
    return Drawn(waves, random, noise=3)


def search_quietly(
    options: SearchOptions, draw: Callable[[int, torch.Generator], Dataset], registry: Mapping[str, Builder] | None = None
) -> ArchitectureSearch:
    """Search without a word on drawn images, 96 to train and as many to validate in batches of 16; all randomness comes from `options.seed`.

    Args:
        options: how to search.
        draw: draws as many images as it is told, from a generator.
        registry: further operations, see `build_operation`.

    Returns:
        The module when the search is over.
    """
    module = ArchitectureSearch(options, registry)
    loaders = {role: training_loader(draw(96, generator(options.seed, "planted images", role)), 16, options.seed) for role in ("train", "val")}
    with silence(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(options.seed, "planted noise"))
        quiet_trainer(options.length, accelerator="cpu").fit(module, loaders)
    return module


def signal_edges(module: ArchitectureSearch) -> list[str]:
    """Return the operations of the genotype's edges that carry the signal, those with a softmax of beta of at least `SHARE` of the uniform one."""
    shares, genotype = edge_softmax(module.net.beta.detach(), module.net.table.nodes), module.genotype
    return [
        operation
        for number, cell in enumerate(CELLS)
        for node, pairs in enumerate(getattr(genotype, cell))
        for operation, source in pairs
        if shares[number, edge_number(node, source)] * (2 + node) >= SHARE
    ]


def planted(level: Level, relaxation: Relaxation, seed: int) -> dict[str, float]:
    """Search the planted space with pruning: two normal cells and a reduction cell of one node, whose two edges are always kept.

    So every edge matters: the reduction cell reads the normal cells alone.

    Returns:
        `signal`, number of edges that carry the signal, `right`, how many of them have the convolution, and `accuracy` that the
        genotype's path through the supernet has on the validation images.
    """
    cells: dict[str, Any] = {"channels": 4, "layers": 3, "nodes": 1, "reductions": [2], "k": 1}
    schedule: dict[str, Any] = {"epochs": 20, "warmup": 4, "prune_every": 5, "lr": 0.04, "lr_architecture": 0.05, "temperature": 1.0}
    options = SearchOptions(space=list(PLANTED), level=level, relaxation=relaxation, perturb_samples=96, seed=seed, **cells, **schedule)
    module = search_quietly(options, stripes, REGISTRY)
    found, images = signal_edges(module), cast(dict[str, DataLoader], module.trainer.train_dataloader)["val"].dataset
    assert isinstance(images, Drawn)
    with torch.no_grad():
        is_right = module.net(images.images, module.net.path(module.genotype)).argmax(1) == images.labels
    return {"right": found.count("conv"), "signal": len(found), "accuracy": is_right.float().mean().item()}


def theta_ranking(seed: int) -> dict[str, float]:
    """Search among separable convolutions of theta 0, 0.7 and 0.9 and max pooling where a faint checkerboard is hidden under large gradients.

    One expects a high theta above theta 0, and pooling last: strong differences see the checkerboard and not the gradient.

    Returns:
        For each operation the mean of the softmax of alpha over the edges of both cells.
    """
    space = ["sep_cdc_3x3_0.0", "sep_cdc_3x3_0.7", "sep_cdc_3x3_0.9", "max_pool_3x3"]
    cells: dict[str, Any] = {"channels": 4, "layers": 3, "nodes": 1, "reductions": [2], "k": 1}
    schedule: dict[str, Any] = {"epochs": 20, "warmup": 2, "prune_every": 0, "lr": 0.05, "lr_architecture": 0.05}
    options = SearchOptions(space=space, level="alpha", relaxation="mixture", seed=seed, **cells, **schedule)
    means = search_quietly(options, faint_patterns).net.probabilities().mean((0, 1))
    return dict(zip(space, means.tolist(), strict=True))
