"""Networks that are trained alike on drawn speakers, and judged on others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from projects.rsknet.data import SpeakerData, drawn_utterances
from projects.rsknet.judging import Embedded, embed, fit_scorer
from projects.rsknet.model import parameters
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.recordings import DrawnRecordings
from projects.rsknet.scoring import Scorer
from projects.rsknet.synthesis import STANDARD, Conditions, synthvox
from shared.jobs import kept_arrays
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed

XVECTOR, RESNET, RSKNET, LIGHT = "x-vector", "ResNet", "RSKNet-MTSP", "RSKNet-MTSP-L"
NETS: dict[str, tuple[str, dict[str, Any]]] = {
    XVECTOR: ("tiny_xvector", {}),
    RESNET: ("tiny_resnet", {}),
    "ResNet-MTSP": ("tiny_resnet", {"scales": [1, 2, 3]}),
    "RSKNet": ("tiny_rsknet_mtsp", {"scales": [3]}),
    RSKNET: ("tiny_rsknet_mtsp", {}),
    LIGHT: ("tiny_rsknet_mtsp_l", {}),
}
"""Networks by their names in tables: the name and the options of each. Those without MTSP pool the last stage alone."""


@dataclass(frozen=True)
class World:
    """How many drawn speakers there are, and how long networks learn.

    Attributes:
        speakers: to train on.
        tested: new speakers, of 8 recordings each.
        epochs: of training.
        options: of the module, besides its defaults.
    """

    speakers: int = 160
    tested: int = 50
    epochs: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)


FULL, QUICK = World(), World(speakers=12, tested=6, epochs=1)
POWERED = World(speakers=400, tested=200, epochs=20, options={"spec_augment": True, "weight_decay": 1e-2})


@lru_cache(maxsize=1)
def drawn(seed: int, speakers: int, tested: int) -> SpeakerData:
    """Return the world of a seed; kept for the next network."""
    return SpeakerData(seed=seed, speakers=speakers, test_speakers=tested, held_speakers=min(20, speakers))


@lru_cache(maxsize=16)
def said(seed: int, speakers: int, utterances: int, length: float, rate: int, conditions: Conditions) -> DrawnRecordings:
    """Return what test speakers say under some conditions; kept for the next network."""
    names = [one.name for one in drawn_utterances("test", speakers, utterances)]
    return DrawnRecordings(names, synthvox(seed, "test", speakers, utterances, length, rate, conditions).flatten(0, 1), rate)


@dataclass(frozen=True)
class Trained:
    """A network, its back-ends, and its data."""

    module: SpeakerVerification
    scorer: Scorer
    data: SpeakerData

    @property
    def thousands(self) -> float:
        """Parameters in thousands."""
        return parameters(self.module.net) / 1e3

    def heard(self, conditions: Conditions = STANDARD, length: float = 2.0, seconds: float | None = None) -> Embedded:
        """Embed what the test speakers say in `length` seconds under some conditions, or `seconds` from the middle of it."""
        data = self.data
        recordings = said(data.seed, *data.drawn_test, length, data.rate, conditions)
        with silence():
            return embed(quiet_trainer(1), self.module, data.whole(recordings, seconds), recordings)


def trained(kept: Path, name: str, world: World, seed: int) -> Trained:
    """Train a network, or take what an earlier call has kept; the last epoch is taken.

    Args:
        kept: folder of trained weights and scorers: no network is trained twice.
        name: of `NETS`.
        world: speakers and training.
        seed: of speakers and weights.
    """
    net, options = NETS[name]
    given = {"net": net, "options": options or None, "ramp": [0.13, 0.27], **world.options}
    key = hashlib.sha256(json.dumps([given, asdict(world), seed], sort_keys=True).encode()).hexdigest()[:16]
    module, data = SpeakerVerification(seed=seed, **given), drawn(seed, world.speakers, world.tested)

    def fit() -> dict[str, Any]:
        with silence(), torch.random.fork_rng():
            torch.manual_seed(derive_seed(seed, "training"))
            quiet_trainer(world.epochs, limit_val_batches=0).fit(module, datamodule=data)
        return {name: value.numpy() for name, value in module.cpu().state_dict().items()}

    weights = kept_arrays(kept / f"{key}.npz", fit)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    file = kept / f"scorer-{key}.safetensors"
    if not file.is_file():
        with silence():
            fit_scorer(quiet_trainer(1), module.eval(), data).save(file)
    return Trained(module.eval(), Scorer.load(file), data)
