"""Drawn faces, and the searches and trainings that are compared on them.

The weights of a search learn from swaps, its architecture from swaps too (in-dataset) or from self-blended faces (across sets), and reenacted
faces stay unseen. Faces of 48 x 48 pixels are cut down to their middle 32 x 32.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from projects.forgery_nas.data import Roles, SearchData
from projects.forgery_nas.genotype import Genotype, random_genotype
from projects.forgery_nas.inference import count, fold
from projects.forgery_nas.module import ForgeryNetTraining
from projects.forgery_nas.operations import SMALL_SPACE
from projects.forgery_nas.options import SearchOptions
from projects.forgery_nas.search import ArchitectureSearch
from shared.forgery.augmentation import TrainingFrames
from shared.forgery.detection import fit_detector, score
from shared.forgery.faces import faces
from shared.forgery.metrics import auroc, roc
from shared.forgery.sets import ForgerySet
from shared.jobs import kept
from shared.quiet import quiet_trainer, silence
from shared.seeding import derive_seed, generator

LEARNT, CHOOSING, UNSEEN = "swap", "self_blend", "reenact"
SIZE, MARGIN = 48, 8
IMAGES, TESTED = 800, 600
SHAPE: dict[str, Any] = {"channels": 8, "layers": 3}
TRAINING: dict[str, Any] = {"drop_path": 0.0, "lr": 0.05, "size": SIZE - 2 * MARGIN, **SHAPE}
EPOCHS = 5
"""Epochs of a training, of 25 steps each."""


class Budgeted(NamedTuple):
    """How much is spent: training images, those of a search before its people are divided, test images of a set, and epochs."""

    images: int = IMAGES
    searched: int = 1600
    tested: int = TESTED
    epochs: int = EPOCHS
    warmup: int = 3
    prune_every: int = 2


FULL, QUICK = Budgeted(), Budgeted(images=64, searched=160, tested=64, epochs=1, warmup=1, prune_every=1)


def options(budget: Budgeted, seed: int, **others: Any) -> SearchOptions:
    """Return how to search."""
    given: dict[str, Any] = {"space": "small", "k": 2, "lr": 0.05, "lr_architecture": 6e-3, "temperature": 1.0, **SHAPE}
    return SearchOptions(**(given | {"warmup": budget.warmup, "prune_every": budget.prune_every, "seed": seed} | others))


# ---- the faces


def middle(frames: ForgerySet) -> ForgerySet:
    """Cut frames down to their middle."""
    assert isinstance(frames.frames, torch.Tensor)
    return ForgerySet(frames.frames[..., MARGIN:-MARGIN, MARGIN:-MARGIN].contiguous(), frames.videos, frames.video)


def faces_to_learn(budget: Budgeted, seed: int, is_search: bool = False, is_cross: bool = False) -> SearchData:
    """Draw the faces of a training or of a search."""
    length, sets = budget.searched if is_search else budget.images, [CHOOSING] if is_cross else None
    data = SearchData(
        architecture_sets=sets, length=length, test_length=2, test_sets=[LEARNT], augmentation="flip", seed=seed, size=SIZE, video_frames=1
    )
    data.is_search = is_search
    data.setup()

    def cut(part: TrainingFrames) -> TrainingFrames:
        return TrainingFrames(middle(part.frames), "flip", False, seed)

    data.train_set = cut(data.train_set)
    if is_search:
        data.roles = Roles(*([cut(part) for part in role] for role in data.roles))
    return data


@lru_cache(maxsize=4)
def test_faces(manipulation: str, count: int, seed: int) -> ForgerySet:
    """Draw the faces that networks of a seed are judged on; kept for the next one."""
    return middle(faces("test", count, manipulation, seed, SIZE, 1))


# ---- what is compared


def supernet(given: SearchOptions, data: SearchData) -> ArchitectureSearch:
    """Search without a word, on data that are set up for it."""
    searched = ArchitectureSearch(given)
    with silence(), torch.random.fork_rng():
        torch.manual_seed(derive_seed(given.seed, "search"))
        quiet_trainer(given.length, limit_val_batches=0).fit(searched, data.train_dataloader())
    return searched


def train(genotype: Genotype | str, budget: Budgeted, seed: int, data: SearchData | None = None) -> ForgeryNetTraining:
    """Train cells, or a hand-made network of this name, on swaps."""
    what: dict[str, Any] = {"network": genotype} if isinstance(genotype, str) else {"genotype": genotype.to_json()}
    module = ForgeryNetTraining(seed=seed, **what, **TRAINING)
    return fit_detector(module, faces_to_learn(budget, seed) if data is None else data, budget.epochs, gradient_clip_val=5.0)


def judge(module: ForgeryNetTraining, budget: Budgeted, seed: int) -> dict[str, float]:
    """Return the AUC of frames of every manipulation, on people of whom nothing was learnt, thousands of parameters and millions of multiply-adds."""
    cost = count(module.net, module.hparams.size)
    module.net = fold(module.net)
    sets = {name: test_faces(name, budget.tested, seed) for name in (LEARNT, CHOOSING, UNSEEN)}
    found = {name: auroc(roc(*score(module, frames).columns)) for name, frames in sets.items()}
    return found | {"k parameters": cost.parameters / 1e3, "M multiply-adds": cost.macs / 1e6}


def random_cells(seed: int, number: int) -> Genotype:
    """Draw the cells of a number, other ones for every seed."""
    return random_genotype(SMALL_SPACE, generator(seed, "random cells", number))


def judged(folder: Path, genotype: Genotype | str, budget: Budgeted, seed: int) -> dict[str, float]:
    """Train and judge cells or a hand-made network; kept in a folder, for tables that share them."""
    key = genotype if isinstance(genotype, str) else genotype.to_json()
    file = folder / f"{derive_seed(key, str(budget), seed):x}.json"
    return kept(file, lambda: judge(train(genotype, budget, seed), budget, seed)).value
