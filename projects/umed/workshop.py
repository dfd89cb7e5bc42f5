"""Sets, protections and exploiters of a comparison, each made once and kept: what `bench` and `reproduce` share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from projects.umed.baselines import BASELINES, Budget, make_baseline
from projects.umed.data import ProtectionData
from projects.umed.defences import parse_defence
from projects.umed.exploiting import Outcome, Recipe, train_exploiter
from projects.umed.fitting import Settings, fit_protector, protect_set
from projects.umed.quality import max_change, psnr, touched_region
from projects.umed.sets import SegmentationSet
from shared.jobs import kept_arrays

CLEAN, UMED = "clean", "umed"
QUICK_IMAGES = 48
MAPS = ("random", "random_whole", "checkerboard")
"""Baselines that are a function of image and mask, so that other images can be protected in the same way; those of UMed are one too."""

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Workshop:
    """A data set with all that is compared on it.

    Attributes:
        folder: where protected images are kept.
        data: options of `ProtectionData`.
        settings: of the generators.
        recipe: of the exploiters; each comparison puts its own network in.
        epsilon: largest change in grey levels.
        variants: further protections by generators, by name, with the settings that make them.
        budget: effort of baselines that learn.
        is_quick: few images and a single epoch, to see that everything runs.
    """

    folder: Path
    data: dict[str, Any]
    settings: Settings
    recipe: Recipe
    epsilon: float = 4.0
    variants: dict[str, Settings] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget.quick)
    is_quick: bool = False

    def __post_init__(self) -> None:
        if self.is_quick:
            object.__setattr__(self, "settings", replace(self.settings, epochs=1))
            object.__setattr__(self, "variants", {name: replace(settings, epochs=1) for name, settings in self.variants.items()})
            object.__setattr__(self, "recipe", replace(self.recipe, epochs=1))
            counts = ("rounds", "train_steps", "steps", "epochs", "target_steps", "checkpoints", "checkpoint_steps")
            least: dict[str, Any] = dict.fromkeys(counts, 1)
            object.__setattr__(self, "budget", replace(self.budget, **least))

    def sets(self, seed: int) -> tuple[SegmentationSet, SegmentationSet]:
        """Return the clean training and test set."""
        data = ProtectionData(**(self.data | {"seed": seed}))
        data.setup()
        train, test = data.train_set.load(), data.test_set.load()
        return (train.subset(range(QUICK_IMAGES)), test.subset(range(QUICK_IMAGES))) if self.is_quick else (train, test)

    @property
    def methods(self) -> list[str]:
        """Names of all protections."""
        return [CLEAN, UMED, *self.variants, *BASELINES]

    def protected(self, method: str, seed: int, split: Split = "train") -> SegmentationSet:
        """Return a set as a method publishes it; `clean` changes nothing.

        Raises:
            ValueError: for an unknown method, or a test set that only an optimisation of its own could protect.
        """
        if method not in self.methods:
            raise ValueError(f"no protection {method!r}; choose one of {', '.join(self.methods)}")
        train, test = self.sets(seed)
        images = train if split == "train" else test
        if method == CLEAN:
            return images
        if not self.has_signature(method) and split == "test":
            raise ValueError(f"{method} protects the images that it is made on, not others")

        def make() -> dict[str, np.ndarray]:
            if method in BASELINES:
                return {split: make_baseline(method, images, self.epsilon, seed, self.budget).numpy()}
            settings = self.variants.get(method, self.settings)
            module = fit_protector(train, replace(settings, options={"epsilon": self.epsilon} | settings.options), seed)
            return {"train": protect_set(module, train).images.numpy(), "test": protect_set(module, test).images.numpy()}

        name = f"{method}-{seed}" + (f"-{split}" if method in BASELINES else "")
        return images.with_images(torch.from_numpy(kept_arrays(self.folder / f"{name}.npz", make)[split]))

    def has_signature(self, method: str) -> bool:
        """Whether test images can be protected in the same way, which tells a protection that is learnt from a training that failed."""
        return method not in BASELINES or method in MAPS

    def quality(self, method: str, seed: int, radius: int) -> dict[str, float]:
        """Return the means over the training set of the PSNR, whole and in contour and interior, in dB, and the largest change in levels."""
        clean, stored = self.sets(seed)[0], self.protected(method, seed)
        region = touched_region(clean.masks, radius)
        inside = psnr(clean.images, stored.images, region)
        return {
            "psnr": float(psnr(clean.images, stored.images).mean()),
            "psnr_roi": float(inside[inside.isfinite()].mean()),
            "max_change": float(max_change(clean.images, stored.images).max()),
        }

    def exploit(self, method: str, seed: int, exploiter: str = "unet", defence: str = "none", images: SegmentationSet | None = None) -> Outcome:
        """Train an exploiter on what a method publishes, or on other images, and test it on clean images.

        Args:
            method: the protection.
            seed: seed of sets, protection and exploiter.
            exploiter: its network.
            defence: what it tries.
            images: a training set to take instead, such as a partly protected one.
        """
        clean, test = self.sets(seed)
        train = self.protected(method, seed) if images is None else images
        signature = self.protected(method, seed, "test") if method != CLEAN and self.has_signature(method) else None
        return train_exploiter(train, test, replace(self.recipe, exploiter=exploiter), seed, parse_defence(defence), signature, clean)
