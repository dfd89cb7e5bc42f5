"""What a learned protection is set beside, at the same bound and on the integers that are stored, by name.

protected = make_baseline("em", train, epsilon_levels=4, seed=0)    # uint8 (N, C, H, W), like train.images
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from projects.umed.baselines.learned import Budget, Search, minimise, mislead
from projects.umed.baselines.patterns import Fields, autoregressive_fields, checkerboard, join_by_region, patch_fields, random_noise
from projects.umed.sets import SegmentationSet
from shared.poisons import add_on_grid, check_radius, find_processes
from shared.seeding import derive_seed

__all__ = ["BASELINES", "Baseline", "Budget", "make_baseline"]

_CHUNK = 256


@dataclass(frozen=True)
class Baseline:
    """A baseline in the registry.

    Attributes:
        description: what it does, in a line.
        protect: makes the set's protected images, uint8 (N, C, H, W).
        is_trained: whether it trains a network.
    """

    description: str
    protect: Callable[[Search], Tensor]
    is_trained: bool = False


def _add(search: Search, delta: Callable[[Tensor], Tensor], is_inside: bool) -> Tensor:
    """Add perturbations of the images at given indices, chunk by chunk, everywhere or in the region of interest."""
    data, protected = search.images, torch.empty_like(search.images.images)
    for indices in torch.arange(len(data)).split(_CHUNK):
        added = delta(indices)
        if is_inside:
            added = added * (data.mask_bytes[indices] > 0)[:, None]
        protected[indices] = add_on_grid(data.images[indices], added)
    return protected


def _random(search: Search, is_inside: bool) -> Tensor:
    return _add(search, lambda indices: random_noise(indices, search.images.image_shape, search.levels, search.seed), is_inside)


def _checkerboard(search: Search) -> Tensor:
    board = checkerboard(search.images.image_shape, search.levels)
    return _add(search, lambda indices: board.expand(len(indices), -1, -1, -1), is_inside=True)


def _by_region(search: Search, fields: Fields) -> Tensor:
    data = search.images

    def delta(indices: Tensor) -> Tensor:
        return join_by_region(fields, indices, data.mask_bytes[indices], data.classes, search.epsilon)

    return _add(search, delta, is_inside=False)


def _patches(search: Search) -> Tensor:
    data = search.images
    return _by_region(search, patch_fields(len(data), data.classes, data.image_shape, search.budget.patch, search.seed))


def _autoregressive(search: Search) -> Tensor:
    channels, height, width = search.images.image_shape
    processes = find_processes(search.images.classes + 1, channels, derive_seed(search.seed, "processes"), (height, width))
    return _by_region(search, autoregressive_fields(processes, (height, width), search.seed))


def _whole(protect: Callable[[Search], Tensor]) -> Callable[[Search], Tensor]:
    return lambda search: protect(replace(search, is_whole=True))


def _tap(search: Search) -> Tensor:
    return mislead(search, is_averaged=False)


def _sep(search: Search) -> Tensor:
    return mislead(search, is_averaged=True)


BASELINES = {
    "random": Baseline("uniform noise inside the mask", lambda search: _random(search, is_inside=True)),
    "random_whole": Baseline("uniform noise on the whole image", lambda search: _random(search, is_inside=False)),
    "checkerboard": Baseline("plus and minus epsilon in turn inside the mask", _checkerboard),
    "lsp_roi": Baseline("separable patches of colour, another cluster inside than outside", _patches),
    "ar_roi": Baseline("autoregressive fields, another process inside than outside", _autoregressive),
    "em": Baseline("error-minimising noise in band and interior", minimise, is_trained=True),
    "em_whole": Baseline("error-minimising noise on the whole image", _whole(minimise), is_trained=True),
    "tap": Baseline("noise in band and interior towards the mask rolled by half the image", _tap, is_trained=True),
    "tap_whole": Baseline("the same on the whole image", _whole(_tap), is_trained=True),
    "sep": Baseline("that of tap along the mean gradient over checkpoints", _sep, is_trained=True),
    "sep_whole": Baseline("the same on the whole image", _whole(_sep), is_trained=True),
}
"""The baselines by name."""


def make_baseline(
    name: str,
    images: SegmentationSet,
    epsilon_levels: float = 4,
    seed: int = 0,
    budget: Budget | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """Protect a set by a baseline.

    Args:
        name: one of `BASELINES`.
        images: the clean set.
        epsilon_levels: bound on every value in levels of 255, from 1 to 127; a fraction could not be stored and is dropped.
        seed: seed of everything that is random.
        budget: effort of the learned ones, and the patch of LSP; None is `Budget.quick()`.
        device: where the learned ones train.
        progress: is called with the work done and all the work.

    Returns:
        uint8 (N, C, H, W) images that differ from the clean ones by at most the bound.

    Raises:
        ValueError: for an unknown name or a bound out of range.
    """
    if name not in BASELINES:
        known = "; ".join(f"{key}: {each.description}" for key, each in BASELINES.items())
        raise ValueError(f"no baseline {name!r}; choose one of {known}")
    height, width = images.image_shape[1:]
    check_radius("linf", epsilon_levels, (height, width))
    report = progress or (lambda done, total: None)
    search = Search(images, int(epsilon_levels), seed, budget or Budget.quick(), False, device, report)
    return BASELINES[name].protect(search)
