"""The attacks by name, and poisoned copies of data sets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from projects.dvae.poisons.closed_form import (
    AutoregressivePattern,
    FilterPattern,
    NoisePattern,
    PatchPattern,
    draw_filters,
    search_pixels,
)
from projects.dvae.poisons.learned import Minimising, Robust, Search, Targeted, minimise, minimise_robustly, mislead
from projects.dvae.poisons.training_set import TrainingSet
from shared.poisons import Kind, check_radius, find_processes, patch_colours, patch_grid, to_levels
from shared.seeding import generator

RecipeName = Literal["paper", "quick"]
Choice = Literal["random", "classes"]
Progress = Callable[[int, int], None]


class Pattern(Protocol):
    """A poison that is ready to be put on images."""

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Poison a batch.

        Args:
            images: (B, C, H, W) clean images in [0, 1] on the 8-bit grid, on the CPU.
            labels: (B,) labels.
            indices: (B,) indices in the whole training set: what is put on an image depends on its index and label alone, not on the batch.

        Returns:
            (B, C, H, W) poisoned images in [0, 1], on the 8-bit grid.
        """


@dataclass(frozen=True)
class Attack:
    """What is known of an attack.

    Attributes:
        kind: norm of its bound.
        radius: the bound by default, in the kind's unit (linf: pixels of 255; l2: units of [0, 1] images; l0: pixels); None if there is none.
        description: one line for help texts.
        is_learned: whether it needs a surrogate network.
    """

    kind: Kind
    radius: float | None
    description: str
    is_learned: bool = False


ATTACKS: dict[str, Attack] = {
    "em": Attack("linf", 8.0, "error-minimising noise for each image (Huang et al. 2021)", is_learned=True),
    "em_class": Attack("linf", 8.0, "error-minimising noise for each class (Huang et al. 2021)", is_learned=True),
    "rem": Attack("linf", 8.0, "error-minimising noise that withstands adversarial training (Fu et al. 2022)", is_learned=True),
    "tap": Attack("linf", 8.0, "targeted adversarial noise, towards the next class (Fowl et al. 2021)", is_learned=True),
    "sep": Attack("linf", 8.0, "targeted adversarial noise through snapshots of one training (Chen et al. 2023)", is_learned=True),
    "lsp": Attack("l2", 1.0, "linearly separable patches of colour (Yu et al. 2022)"),
    "ar": Attack("l2", 1.0, "fields of class-wise autoregressive processes (Sandoval-Segura et al. 2022)"),
    "ops": Attack("l0", 1.0, "one pixel for each class, in an extreme colour (Wu et al. 2023)"),
    "cuda": Attack("unbounded", None, "a convolution for each class (Sadasivan et al. 2023)"),
    "random": Attack("linf", 8.0, "uniform noise for each image: a control that does not poison"),
}
"""Attacks that `make_pattern` knows; the bounds are those of the published tables."""

EFFORTS: dict[str, dict[RecipeName, Minimising | Robust | Targeted]] = {
    "em": {"paper": Minimising(), "quick": Minimising(batch_size=128, lr=0.02, steps=10, step=0.2, rounds=15)},
    "em_class": {
        "paper": Minimising(steps=1, stop_error=0.1),
        "quick": Minimising(batch_size=128, lr=0.02, steps=1, rounds=40, stop_error=0.1),
    },
    "rem": {
        "paper": Robust(),
        "quick": Robust(lr=0.02, train_steps=60, steps=5, step=0.4, views=1, inner_steps=2, inner_step=0.6, flip=False),
    },
    "tap": {"paper": Targeted(), "quick": Targeted(lr=0.02, epochs=20, steps=50, step=0.04, flip=False)},
    "sep": {
        "paper": Targeted(steps=30, step=0.125, is_augmented=False, checkpoints=30),
        "quick": Targeted(lr=0.02, epochs=20, steps=15, step=0.25, is_augmented=False, checkpoints=5, flip=False),
    },
}
"""Effort of each attack that learns: `paper` as published, `quick` for some thousand images of 16 x 16 pixels and a small network."""


def make_pattern(
    name: str,
    dataset: Dataset,
    classes: int,
    shape: tuple[int, int, int],
    seed: int = 0,
    radius: float | None = None,
    build: Callable[[int], nn.Module] | None = None,
    recipe: RecipeName = "paper",
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> Pattern:
    """Prepare a poison for a training set.

    Args:
        name: a key of `ATTACKS`.
        dataset: the whole clean training set; see `TrainingSet` for what its items are.
        classes: number of classes K.
        shape: (C, H, W) of the images.
        seed: seed of everything that is drawn.
        radius: bound in the unit of the attack's kind; None takes the attack's own.
        build: makes a surrogate network from a seed; needed by attacks that learn.
        recipe: effort of attacks that learn.
        device: where the surrogate is trained.
        progress: is called with the work done and all the work, by attacks that learn.

    Raises:
        ValueError: for an unknown name or recipe, a radius out of range, a missing `build`, or a set that is not as stated.
    """
    if name not in ATTACKS:
        raise ValueError(f"unknown attack {name!r}: known are {', '.join(ATTACKS)}")
    attack = ATTACKS[name]
    bound = attack.radius if radius is None else radius
    if bound is not None:
        check_radius(attack.kind, bound, shape[1:])
    training_set = TrainingSet(dataset, classes, shape)
    if bound is None or not attack.is_learned:
        return _closed_form(name, training_set, bound or 0.0, seed)
    if build is None:
        raise ValueError(f"the attack {name} learns through a surrogate network: give build")
    if recipe not in EFFORTS[name]:
        raise ValueError(f"unknown recipe {recipe!r}: known are {', '.join(EFFORTS[name])}")
    search = Search(training_set, bound, seed, build, device, progress or (lambda done, total: None))
    return _learned(name, search, EFFORTS[name][recipe])


def tell(name: str) -> Progress:
    """Return a `progress` that prints how far an attack has come, twenty times in all."""

    def progress(done: int, total: int) -> None:
        if 20 * done // total > 20 * (done - 1) // total:
            print(f"{name}: {done} of {total}", flush=True)

    return progress


def patch_side(size: tuple[int, int]) -> int:
    """Return the side of LSP's patches: a quarter of the shorter side, which is the published 8 for 32 x 32, but at most 8."""
    return min(8, max(1, min(size) // 4))


def _closed_form(name: str, data: TrainingSet, radius: float, seed: int) -> Pattern:
    channels, size = data.shape[0], data.shape[1:]
    match name:
        case "lsp":
            patch = patch_side(size)
            return PatchPattern(patch_colours(data.labels, data.classes, channels, patch_grid(size, patch), seed=seed), patch, radius)
        case "ar":
            return AutoregressivePattern(find_processes(data.classes, channels, seed, size), radius, seed)
        case "ops":
            return search_pixels(data, int(radius))
        case "cuda":
            return FilterPattern(draw_filters(data.classes, seed))
        case _:
            return NoisePattern(radius, seed)


def _learned(name: str, search: Search, effort: Minimising | Robust | Targeted) -> Pattern:
    if isinstance(effort, Minimising):
        return minimise(search, effort, class_wise=name == "em_class")
    if isinstance(effort, Robust):
        return minimise_robustly(search, effort)
    return mislead(search, effort, shift=1 if name == "tap" else search.training_set.classes // 2)  # SEP: y + 5 of 10


def poison_dataset(pattern: Pattern, dataset: Dataset, rate: float = 1.0, choice: Choice = "random", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a poisoned copy of a training set, or one that is poisoned in part.

    Args:
        pattern: the poison, made for this very set.
        dataset: the clean set.
        rate: part of the images, or of the classes, that is poisoned, in [0, 1].
        choice: `random` chooses images, `classes` whole classes.
        seed: seed of the choice.

    Returns:
        (N, C, H, W) uint8 images, and (N,) bool, true where an image was poisoned.

    Raises:
        ValueError: if the rate or the choice is unknown.
    """
    data = TrainingSet(dataset)
    is_poisoned = choose(data.labels, rate, choice, seed)
    poisoned = torch.empty(data.count, *data.shape, dtype=torch.uint8)
    for images, labels, indices in data.chunks():
        chosen = is_poisoned[indices]
        poisoned[indices] = images
        if bool(chosen.any()):
            clean = images[chosen].float() / 255
            poisoned[indices[chosen]] = to_levels(pattern.apply(clean, labels[chosen], indices[chosen]))
    return poisoned, is_poisoned


def choose(labels: Tensor, rate: float, choice: Choice, seed: int) -> Tensor:
    """Choose what is poisoned: (N,) bool, true for `rate` of the images, or for all images of `rate` of the classes."""
    if not 0 <= rate <= 1:
        raise ValueError(f"a poison rate is a part of the set, between 0 and 1, got {rate}")
    random = generator(seed, "poisoned part", choice)
    match choice:
        case "random":
            order = torch.randperm(len(labels), generator=random)
            return torch.zeros(len(labels), dtype=torch.bool).index_fill(0, order[: round(rate * len(labels))], True)
        case "classes":
            present = labels.unique()
            order = torch.randperm(len(present), generator=random)
            return torch.isin(labels, present[order[: round(rate * len(present))]])
        case _:
            raise ValueError(f"unknown choice {choice!r}: known are random and classes")
