"""The small models that claims are tried on: a clean one a seed, and forks of it, clean or with a backdoor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.diff_cleanse.data import DiffusionData, stacked
from projects.diff_cleanse.metrics import FeatureMoments, FeatureStatistics, PCAFeatures, frechet_distance, to_unit_range
from projects.diff_cleanse.module import DiffusionTraining
from projects.diff_cleanse.tasks import Subject
from shared.backbones.unets import load_pipeline
from shared.callbacks import ProgressLines
from shared.jobs import Kept, kept

if TYPE_CHECKING:
    from diffusers import UNet2DModel

QUICK = 20
"""The divisor of the steps of a quick run."""
QUICK_RECIPE: dict[str, Any] = {"shares": (0.1,), "generated": 48, "pictures": 4, "every": 5, "steps": 2, "samples": 32}
"""What is changed in the cleansing of a quick run."""
COMPONENTS = 24


@dataclass(frozen=True)
class Member:
    """A model of the zoo, and how it is made.

    Attributes:
        name: what it is called in tables.
        settings: options of `DiffusionTraining` in which it differs from the clean model.
        steps: of its training; None for those of the run's settings.
        is_fork: whether it starts from the seed's clean model.
        data: options of `DiffusionData` in which it differs.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    steps: int | None = None
    is_fork: bool = True
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_backdoored(self) -> bool:
        """Whether an attack was trained into it."""
        return self.settings.get("attack", "none") != "none"

    @property
    def sampler(self) -> str:
        """The sampler that its backdoor answers to, by its name in `samplers.SAMPLERS`; DDIM for clean models."""
        attack = self.settings.get("attack", "none")
        if attack == "trojdiff":
            return "trojan_ddpm"
        return "ddpm" if attack == "baddiffusion" or self.settings.get("solver") == "sde" else "ddim"


def attacked(kind: str, trigger: str = "box", target: str = "hat") -> Member:
    """Return a fork with a backdoor: `ODE` (VillanDiffusion), `SDE` (BadDiffusion) or `TrojDiff`."""
    settings: dict[str, dict[str, Any]] = {
        "ODE": {"attack": "villandiffusion", "solver": "ode"},
        "SDE": {"attack": "baddiffusion"},
        "TrojDiff": {"attack": "trojdiff", "trigger_type": "blend", "antithetic": True},
    }
    steps = {"ODE": 400, "SDE": 300, "TrojDiff": 600}
    return Member(f"{kind} {trigger}-{target}", settings[kind] | {"trigger": trigger, "target": target, "ema_decay": 0.98}, steps[kind])


CLEAN = Member("clean", is_fork=False)


@dataclass(frozen=True)
class Zoo:
    """Trains models when they are asked for, and keeps them as pipeline folders.

    Args:
        folder: where they are kept, `seed-<seed>/<name>`.
        model: settings of the clean model.
        data: settings of the data.
        steps: training steps of the clean model.
        is_quick: train a twentieth of the steps.
    """

    folder: Path
    model: dict[str, Any]
    data: dict[str, Any]
    steps: int
    is_quick: bool = False

    def path(self, member: Member, seed: int) -> Path:
        """Return the pipeline folder of a model."""
        return self.folder / f"{'quick-' if self.is_quick else ''}seed-{seed}" / member.name.replace(" ", "_")

    def settings(self, member: Member, seed: int) -> dict[str, Any]:
        """Return all options of `DiffusionTraining` for a model."""
        pretrained = str(self.path(CLEAN, seed)) if member.is_fork else None
        return self.model | dict(member.settings) | {"seed": seed, "pretrained": pretrained}

    def datamodule(self, member: Member, seed: int) -> DiffusionData:
        """Return the data of a model."""
        return DiffusionData(**(self.data | dict(member.data) | {"seed": seed}))

    def train(self, member: Member, seed: int) -> Path:
        """Train a model unless it is there; the clean one of its seed must be there for forks."""
        path = self.path(member, seed)
        if path.is_dir():
            return path
        import lightning as L

        model = DiffusionTraining(**self.settings(member, seed))
        steps = max(2, (self.steps if member.steps is None else member.steps) // (QUICK if self.is_quick else 1))
        quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
        trainer = L.Trainer(max_steps=steps, devices=1, gradient_clip_val=1.0, limit_val_batches=0, callbacks=[ProgressLines(30)], **quiet)
        if steps:
            trainer.fit(model, datamodule=self.datamodule(member, seed))
        return model.save_pipeline(path)

    def load(self, member: Member, seed: int) -> tuple[UNet2DModel, dict[str, Any]]:
        """Read a model's network and its scheduler's settings, as a defender finds them."""
        return load_pipeline(self.path(member, seed))

    def subject(self, member: Member, seed: int, unet: UNet2DModel | None = None) -> Subject:
        """Return a model under its own attack, as only the attacker could test it; with another network in its place if one is given."""
        model = DiffusionTraining(**(self.settings(member, seed) | {"pretrained": None}))
        found = Subject.of(model, self.path(member, seed))
        return found if unet is None else Subject(**(vars(found) | {"unet": unet}))


@dataclass(frozen=True)
class MemberJob:
    """What a table asks of one model; a subclass says what to do in `make`.

    Attributes:
        zoo: trains the model.
        member: the model.
        seed: of the model.
        rows: folder in which what was made is kept.
    """

    zoo: Zoo
    member: Member
    seed: int
    rows: Path

    def __call__(self) -> Kept[list[dict[str, Any]]]:
        """Make the rows of the model, or read those that an earlier call made."""
        return kept(self.rows / f"{self.member.name.replace(' ', '_')}-{self.seed}.json", self.make)

    def make(self) -> list[dict[str, Any]]:
        """Make the rows of the model."""
        raise NotImplementedError


@dataclass(frozen=True)
class Yardstick:
    """Fréchet distance to the test pictures of a data set, in principal components of the pixels of its training pictures."""

    data: DiffusionData

    @cached_property
    def features(self) -> PCAFeatures:
        """The components."""
        self.data.prepare_data()
        self.data.setup()
        return PCAFeatures(stacked(self.data.train_set), COMPONENTS)

    @cached_property
    def real(self) -> FeatureStatistics:
        """Statistics of the test pictures."""
        return self._statistics(stacked(self.data.test_set) if self.features else torch.empty(0))

    def distance(self, images: Tensor) -> float:
        """Return the distance of (N, C, H, W) pictures in [-1, 1]."""
        return float(frechet_distance(self.real, self._statistics(to_unit_range(images).cpu())))

    def _statistics(self, images: Tensor) -> FeatureStatistics:
        moments = FeatureMoments(self.features, COMPONENTS)
        moments.update(images)
        return moments.compute()
