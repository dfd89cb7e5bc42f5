"""Sets, purifiers and victims of a comparison, each made once and kept: what `bench` and `reproduce` share."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.dvae.data import Choice, PurificationData
from projects.dvae.defences import Budget, Defence, parse_defence
from projects.dvae.fitting import Settings, fit_purifier, purify_set, subset
from projects.dvae.poisons import make_pattern, poison_dataset
from projects.dvae.sets import ImageSet
from projects.dvae.training import Outcome, Recipe, train_victim
from projects.dvae.victims import build_victim
from shared.jobs import kept_arrays

QUICK_IMAGES = 200
SURROGATE = "resnet18"
"""Network that published poisons are learnt through; what they do to other victims is transfer."""
GIVEN = "given"
"""The attack that the data's own options describe, such as a published poison."""


@dataclass(frozen=True)
class Workshop:
    """A data set with all that is compared on it.

    Attributes:
        folder: where sets and products are kept.
        data: options of `PurificationData`; the poison among them, if any, is the attack `given` alone.
        settings: of the purifier.
        recipe: of the victims.
        radii: bounds of attacks that differ from the customary ones, by the attack's name.
        rate: part of the images that attacks poison.
        choice: random images, or whole classes.
        attack_recipe: effort of attacks that learn: paper, through `SURROGATE` whatever the victim is, or quick, through the victim's network.
        is_paper: victims are trained by the published recipe of their defence, with the recipe's victim.
        is_quick: few images and a single epoch, to see that everything runs.
    """

    folder: Path
    data: dict[str, Any]
    settings: Settings
    recipe: Recipe
    radii: dict[str, float] = field(default_factory=dict)
    rate: float = 1.0
    choice: Choice = "random"
    attack_recipe: str = "quick"
    is_paper: bool = False
    is_quick: bool = False

    def __post_init__(self) -> None:
        if self.is_quick:
            object.__setattr__(self, "settings", replace(self.settings, epochs=(1,) * len(self.settings.epochs), width=8))
            object.__setattr__(self, "recipe", replace(self.recipe, epochs=1))

    def sets(self, seed: int) -> tuple[ImageSet, ImageSet]:
        """Return the clean training set and the clean test set."""
        data = PurificationData(**(self.data | {"seed": seed, "poison": "none", "perturbation": None}))
        data.setup()
        if data.test_set is None:
            raise ValueError("a comparison needs clean test images: name a folder of them with --data.test_root FOLDER")
        train, test = data.train_set.load(), data.test_set.load()
        if self.is_quick:
            train, test = (subset(images, torch.arange(min(QUICK_IMAGES, len(images)))) for images in (train, test))
        return ImageSet(train.images, train.labels, train.class_names, clean=train.images), test

    def poisoned(self, attack: str, seed: int, rate: float | None = None) -> ImageSet:
        """Return the training set after an attack: a key of `ATTACKS`, `clean` for none, or `given` for the poison among the data's options."""
        train, _ = self.sets(seed)
        if attack == "clean":
            return train
        share = self.rate if rate is None else rate

        def make() -> dict[str, np.ndarray]:
            if attack == GIVEN:
                data = PurificationData(**(self.data | {"seed": seed}))
                data.setup()
                return {"images": data.train_set.read(list(range(len(train)))).numpy()}
            classes, (channels, *size) = len(train.class_names), train.image_shape
            surrogate = self.recipe.victim if self.attack_recipe == "quick" else SURROGATE
            pattern = make_pattern(
                attack,
                train,
                classes,
                train.image_shape,
                seed,
                self.radii.get(attack),
                build=lambda key: build_victim(surrogate, classes, channels, max(size), key),
                recipe=self.attack_recipe,  # type: ignore[arg-type]
            )
            return {"images": poison_dataset(pattern, train, share, self.choice, seed)[0].numpy()}

        images = torch.from_numpy(kept_arrays(self.folder / f"{attack}-{share:g}-{self.choice}-{seed}.npz", make)["images"])
        return ImageSet(images, train.labels, train.class_names, clean=train.images)

    def purified(self, attack: str, seed: int, rate: float | None = None, settings: Settings | None = None, name: str = "dvae") -> dict[str, Tensor]:
        """Return what purification makes of a poisoned set: x1, x2, ... as uint8, p1, p2, ... as float32, and `seconds`, the time that it took."""
        used, share = settings or self.settings, self.rate if rate is None else rate

        def make() -> dict[str, np.ndarray]:
            images, began = self.poisoned(attack, seed, rate), time.perf_counter()
            made = purify_set(fit_purifier(images, used, seed), images)
            kept = {key: values.half().numpy() if key.startswith("p") else values.numpy() for key, values in made.items()}
            return kept | {"seconds": np.array(time.perf_counter() - began)}

        found = kept_arrays(self.folder / f"{name}-{attack}-{share:g}-{self.choice}-{seed}.npz", make)
        return {key: torch.from_numpy(values).float() if key.startswith("p") else torch.from_numpy(values) for key, values in found.items()}

    def train(self, images: Tensor, seed: int, defence: str = "none", labels: Tensor | None = None) -> Outcome:
        """Train a victim on (N, C, H, W) uint8 images with the training set's labels, or others, and test it on the clean test set."""
        train, test = self.sets(seed)
        own = train.labels if labels is None else labels
        classes, size = len(train.class_names), max(train.image_shape[1:])
        recipe = Recipe.paper(self.recipe.victim, classes, size, defence) if self.is_paper else self.recipe
        return train_victim(images, own, test.images, test.labels, classes, recipe, self.defence(defence), seed)

    def defence(self, text: str) -> Defence:
        """Return a defence by name, its networks trained as those of the purifier are."""
        return parse_defence(text, Budget(self.settings.epochs[0], self.settings.width, self.settings.batch_size))
