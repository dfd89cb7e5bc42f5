"""Data of searches and of training what they found: who learns the weights, who chooses the architecture, and what is still unseen."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from shared.distributed import EpochSampler
from shared.forgery.augmentation import TrainingFrames
from shared.forgery.data import ForgeryData, of_kinds
from shared.forgery.faces import MANIPULATIONS, faces
from shared.forgery.sets import REAL, Clip, ForgerySet, check_kinds, frames_of, identity
from shared.forgery.splits import divide, family_of, guard, shown
from shared.seeding import derive_seed, generator

MARK = " (searched)"
"""What follows the name of a test set that the search has seen."""

_log = logging.getLogger(__name__)


class Roles(NamedTuple):
    """Who learns what in a search; the sets of a role take turns from epoch to epoch, and nobody is seen in both roles.

    Attributes:
        weights: sets that the supernet's weights learn from.
        architecture: sets that choose the architecture.
    """

    weights: list[TrainingFrames]
    architecture: list[TrainingFrames]


class SearchData(ForgeryData):
    """The data of `ForgeryData`; in a search, training batches are {"train": for the weights, "val": for the architecture}.

    Both come from training splits: what is for validation or testing, in any of the sets, no search sees. Nobody whom the weights learn from
    chooses the architecture: people who are seen in both roles, all of them where one set plays both, are divided into halves. An epoch is as long
    as the training set; a smaller one is gone through again, in a new order.

    Args:
        architecture_sets: sets that choose the architecture, named as in test_sets; several take turns from epoch to epoch. Null is the training set
            (in-dataset search). Unless real_frames is given, so many frames of their real videos are taken that both classes have as many.
        rotate: whether the training set takes turns too: the weights learn from one of all the sets, and the next one chooses.
        searched: sets that the search for the genotype in training saw; null is architecture_sets. Test sets among them that are not learnt are
            called `<set> (searched)`, since they are no longer unseen.
        **options: see `ForgeryData`.

    Attributes:
        is_search: whether training batches are those of a search; whoever searches sets it.
        roles: who learns what in a search, once it is set up.

    Raises:
        ValueError: if options do not fit, a set has nothing to learn from, or its people cannot be divided.
    """

    roles: Roles

    def __init__(self, architecture_sets: list[str] | None = None, rotate: bool = False, searched: list[str] | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.architecture_sets, self.rotate = architecture_sets or [], rotate
        self.searched = self.architecture_sets if searched is None else searched
        self.is_search = False
        if rotate and not architecture_sets:
            raise ValueError("data.rotate needs sets that take turns with the training set: name them in data.architecture_sets")
        if len(set(self.architecture_sets)) < len(self.architecture_sets):
            raise ValueError(f"data.architecture_sets names a set twice: {', '.join(self.architecture_sets)}")

    def setup(self, stage: str | None = None) -> None:
        if not hasattr(self, "test_sets"):
            super().setup(stage)
            self._mark()
        if self.is_search and not hasattr(self, "roles"):
            self.roles = self._divided()

    # ---- what is still unseen

    @property
    def learnt(self) -> list[str]:
        """Names, as in `test_sets`, of the manipulations that are learnt."""
        kinds = self.train_set.frames.kinds
        return [f"{self.train_name}:{kind}" for kind in kinds] if self._has_sets else list(kinds)

    def _mark(self) -> None:
        seen = [name for name in self.test_names if self._is_among(name, self.searched) and not self._is_among(name, self.learnt)]
        if not seen:
            return
        unseen = [name for name in self.test_names if not self._is_among(name, [*self.searched, *self.learnt])]
        rest = f"unseen: {', '.join(unseen)}" if unseen else "no test set is unseen: name one in data.test_sets that nothing was learnt from"
        _log.warning("the search saw %s: tests call them%s, and they tell nothing about unseen sets; %s", ", ".join(seen), MARK, rest)
        self.test_names = [name + MARK if name in seen else name for name in self.test_names]

    def _is_among(self, name: str, others: Sequence[str]) -> bool:
        family, kind = self._family(name)
        return any(family == other and (not kind or not part or kind == part) for other, part in map(self._family, others))

    def _family(self, name: str) -> tuple[str, str]:
        """Return the family of sets and the manipulation that a name stands for, "" being all manipulations."""
        dataset, kind = self._parsed(name)
        return family_of(dataset), kind

    # ---- who learns what

    def _divided(self) -> Roles:
        own, others = (self.train_set.frames, self.self_blended), [(self._training_frames(name), False) for name in self.architecture_sets]
        weights = [own, *others] if self.rotate else [own]
        architecture = [*others, own] if self.rotate else others or [own]
        parts = apart([frames for frames, _ in weights], [frames for frames, _ in architecture], self.seed)

        def training(part: list[ForgerySet], role: list[tuple[ForgerySet, bool]]) -> list[TrainingFrames]:
            return [TrainingFrames(frames, self.augmentation, blended, self.seed) for frames, (_, blended) in zip(part, role, strict=True)]

        return Roles(training(parts[0], weights), training(parts[1], architecture))

    def _training_frames(self, name: str) -> ForgerySet:
        """Return the training frames of a set, without videos and people of what is for validation or testing."""
        if self.source == "faces":
            check_kinds([name], MANIPULATIONS)
            return faces("train", self.length, name, self.seed, self.size, self.video_frames)
        dataset, kind = self._parsed(name)
        found = self._to_learn(dataset, "leave it out of data.architecture_sets")
        kinds = sorted({clip.video.manipulation for clip in found["train"]} - {REAL})
        wanted = [kind] if kind else kinds
        check_kinds(wanted, kinds)
        val = self.val_set.frames if isinstance(self.val_set, TrainingFrames) else self.val_set
        held_out = [Clip(video, ()) for frames in (val, *self.test_sets) for video in frames.videos]
        held_out += [clip for split in ("val", "test") for clip in found.get(split, [])]
        clips = guard(of_kinds(found["train"], wanted), held_out, self.on_leak, "architecture")
        videos = Counter(clip.video.label for clip in clips)
        if len(videos) < 2:
            lacking = "fake" if videos[0] else "real"
            raise ValueError(f"{self._called(dataset)} has no {lacking} videos but held out ones to choose by: leave it out of architecture_sets")
        real = self.real_frames or max(1, round(self.train_frames * videos[1] / videos[0]))
        return frames_of(clips, self.train_frames, self.size, real, repeat=True, reader=self._reader(dataset))

    def train_dataloader(self) -> DataLoader | dict[str, DataLoader]:  # type: ignore[override]
        """Return the loader of `ForgeryData`, or in a search `train` and `val`, of equally many batches."""
        if not self.is_search:
            return super().train_dataloader()
        self.setup()
        length = len(self.roles.weights[0])
        turns = {"train": Turns(self.roles.weights, length), "val": Turns(self.roles.architecture, length)}
        return {name: self.training_loader(sets, identity, TurnSampler(sets, derive_seed(self.seed, name))) for name, sets in turns.items()}


def apart(first: Sequence[ForgerySet], second: Sequence[ForgerySet], seed: int) -> tuple[list[ForgerySet], list[ForgerySet]]:
    """Divide the people who are seen in two lists of sets between them, and leave the frames of each list that show people of the other one.

    Args:
        first: sets of the first role.
        second: sets of the second role; the same sets may be in both.
        seed: seed of the division.

    Raises:
        ValueError: if the videos cannot be divided, or a part would lack real or fake frames that it has.
    """
    people = [{person for frames in role for video in frames.videos for person in shown(video)} for role in (first, second)]
    both = people[0] & people[1]
    clips = {video.key: Clip(video, ()) for frames in (*first, *second) for video in frames.videos if both.intersection(shown(video))}
    if not clips:
        return list(first), list(second)
    sides = [{clip.video.key for clip in side} for side in divide(list(clips.values()), 0.5, seed)]
    kept = [[_without(frames, clips.keys() - side) for frames in role] for role, side in zip((first, second), sides, strict=True)]
    return kept[0], kept[1]


def _without(frames: ForgerySet, keys: set[tuple[str, str, str]]) -> ForgerySet:
    kept = torch.tensor([video.key not in keys for video in frames.videos])[frames.video].nonzero()[:, 0]
    if frames.labels[kept].unique().tolist() != frames.labels.unique().tolist():
        names = ", ".join(sorted({video.dataset for video in frames.videos}))
        raise ValueError(f"without the people whom the other role learns from, {names} lacks a class: take more videos, or another set")
    return frames.subset(kept)


class Turns(Dataset):
    """Sets that take turns, an epoch each; a key is (number of the set, index in it), and the keys of a batch are of one set."""

    def __init__(self, sets: Sequence[TrainingFrames], length: int) -> None:
        self.sets, self.length = sets, length

    def __len__(self) -> int:
        """Return the number of frames of an epoch."""
        return self.length

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        return self.sets[keys[0][0]].__getitems__([index for _, index in keys])


class TurnSampler(EpochSampler):
    """Deals the keys of one set an epoch; a set goes on where its last turn ended, and begins again, in a new order, when it has ended."""

    dataset: Turns

    def __iter__(self) -> Iterator[Any]:
        sets, length = self.dataset.sets, len(self.dataset)
        number, start = self.epoch % len(sets), self.epoch // len(sets) * length
        count = len(sets[number])
        passes = range(start // count, (start + length - 1) // count + 1)
        orders = [one * count + torch.randperm(count, generator=generator(self.seed, "order", number, one)) for one in passes]
        indices = torch.cat(orders)[start % count :][:length]
        own = indices[: self.total_size][self.rank :: self.num_replicas].tolist()
        skip, self.skip = self.skip, 0
        return iter([(number, index) for index in own[skip:]])
