"""Networks that are trained alike on drawn plumes, and judged on others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from projects.s3rp.data import PlumeData
from projects.s3rp.metrics import FieldErrors
from projects.s3rp.module import PlumeSuperResolution
from projects.s3rp.physics import Physics, Wind
from projects.s3rp.sets import Estimator, Observations
from projects.s3rp.supervised import SupervisedSuperResolution
from projects.s3rp.worlds import Plumes, World, draw_plumes
from shared.jobs import kept_arrays
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed

Kind = Literal["own", "shuffled", "supervised"]
"""Trained as it is; with the winds of other sequences in the physics loss; or by the truth."""
AT_ONCE = 64
"""Sequences that a network computes at a time."""

PLUMES = World()
"""32 x 32 cells from 8 x 8, 6 frames, blobs, no noise."""
NOISY = World(sigma=0.02, missing=0.2)
RANDOM = World(size=24, start="random", frames=8, sigma=0.02)
"""Gaussian random fields, for which the exact posterior is known."""
QUICK = World(size=16, frames=3)


@dataclass(frozen=True)
class Setting:
    """A world, and how long networks learn in it.

    Attributes:
        world: what is drawn.
        train: sequences to train on.
        test: sequences to test on.
        epochs: of training.
        options: of the module, besides its defaults.
    """

    world: World = PLUMES
    train: int = 96
    test: int = 32
    epochs: int = 23
    options: Mapping[str, Any] = field(default_factory=dict)

    def quick(self) -> Setting:
        """Return a small one of its kind, to see that everything runs."""
        frames = min(self.world.frames, 4)
        return replace(self, world=replace(self.world, size=16, frames=frames), train=8, test=4, epochs=1)


class ShuffledSuperResolution(PlumeSuperResolution):
    """A control: the physics loss takes the winds of another sequence."""

    def physics_loss(self, fields: Tensor, wind: Wind, physics: Physics, source: Tensor | None) -> Tensor:
        return super().physics_loss(fields, Wind(wind.u.roll(1, 0), wind.v.roll(1, 0)), physics, source)


KINDS: dict[Kind, type[PlumeSuperResolution]] = {
    "own": PlumeSuperResolution,
    "shuffled": ShuffledSuperResolution,
    "supervised": SupervisedSuperResolution,
}


@lru_cache(maxsize=4)
def drawn(world: World, count: int, split: str) -> Plumes:
    """Draw sequences; kept for the next network."""
    return draw_plumes(world, count, split)


def tested(setting: Setting, seed: int) -> Plumes:
    """Return the test sequences of a seed."""
    return drawn(replace(setting.world, seed=seed), setting.test, "test")


def trained(kept: Path, setting: Setting, seed: int, kind: Kind = "own", options: Mapping[str, Any] | None = None) -> PlumeSuperResolution:
    """Train a network, or take the weights that an earlier call has kept; those of the last epoch are taken.

    Args:
        kept: folder of trained weights: no network is trained twice.
        setting: the world, and how long it learns.
        seed: of plumes and weights.
        kind: how it is trained.
        options: of the module, besides those of the setting.
    """
    given = {**setting.options, **(options or {})}
    module = KINDS[kind](factor=setting.world.factor, boundary=setting.world.boundary, seed=seed, **given)
    described = [kind, sorted(module.hparams.items()), asdict(setting.world), setting.train, setting.epochs, seed]
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]

    def fit() -> dict[str, Any]:
        data = PlumeData(world=replace(setting.world, seed=seed), train=setting.train, batch_size=min(8, setting.train), seed=seed)
        with silence(), torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "training"))
            quiet_trainer(setting.epochs, limit_val_batches=0, gradient_clip_val=1.0).fit(module, datamodule=data)
        return {name: value.cpu().numpy() for name, value in module.state_dict().items()}

    weights = kept_arrays(kept / f"{key}.npz", fit)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    return module.eval().cpu()


def estimator(module: PlumeSuperResolution) -> Estimator:
    """Return the network as a function of observations."""

    def estimate(observations: Observations) -> Tensor:
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(observations), AT_ONCE)]
        return torch.cat([module(observations.batch(part), observations.physics) for part in parts])

    return estimate


def measured(fields: Tensor, plumes: Plumes, references: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Return what `FieldErrors` tells of fields."""
    seen, references = plumes.observations, references or {}
    errors = FieldErrors(seen.frames, seen.shape, tuple(references))
    errors.update(fields, plumes.truth, seen.batch(), seen.physics, references)
    return errors.compute()
