"""Faces to train and test detectors of forgeries on, from drawn faces and from the layouts that data sets are shared in."""

from __future__ import annotations

import logging
from typing import ClassVar, get_args

from torch.utils.data import DataLoader

from shared.data.base import DataModule
from shared.data.folders import OnBadFile
from shared.data.selection import OnLeak
from shared.distributed import EpochKeys
from shared.forgery import layouts
from shared.forgery.augmentation import Augmentation, TrainingFrames
from shared.forgery.benchmark_json import benchmark, find_places, stored
from shared.forgery.confounds import confounds
from shared.forgery.faces import MANIPULATIONS, faces
from shared.forgery.listing import Clips
from shared.forgery.npy_lists import npy_lists
from shared.forgery.sets import REAL, Clip, ForgerySet, FrameFiles, Reader, check_kinds, frames_of, identity
from shared.forgery.splits import divide, guard

_VAL_FRACTION = 0.125
_log = logging.getLogger(__name__)


class ForgeryData(DataModule):
    """Real and fake faces; batches are `image` (B, 3, H, W) uint8, `label` (B,) 0 real or 1 fake, `video` (B,) and `index` (B,).

    Validation frames show the manipulations of training alone, so that nothing unseen chooses a model. A layout without a validation split gives an
    eighth of its training videos for it, divided by people. Files are read in the same way whatever their class; where formats or sizes of files tell
    the classes apart, a warning says so.

    Args:
        source: `faces` needs no files; the others read what lies in `root`.
        root: folder of the data, or for `csv` the list.
        batch_size: frames of one training step over all processes together.
        num_workers: processes that read and augment frames for each training process.
        seed: seed of the order of frames, of drawn faces, of augmentation and of divisions.
        size: side of the square that frames are stretched to, in pixels; by default 48 for faces and 224 for files.
        train_set: name of the training set; only `reference`, `deepfakebench` and `npy` have several.
        test_sets: test sets, by default the training set's: `NAME`, or `NAME:MANIPULATION` for its real frames and one manipulation; for sources
            with one set, a manipulation's name.
        manipulations: manipulations to learn; null is all there are, and swap for faces.
        compression: level of compression, for sets that have several.
        train_frames: frames of each training video, evenly spaced; short videos repeat some.
        real_frames: frames of each real training video; null balances the classes, as many times more as there are manipulations to learn.
        test_frames: frames of each test video, evenly spaced; short videos give fewer.
        val_frames: frames of each validation video; null takes as many as of test videos.
        length: training frames of faces.
        test_length: frames of each test set of faces, and at most so many of validation.
        video_frames: frames of each video of faces; null draws 4 to 8 for each.
        augmentation: none, flip (left to right), vflip (upside down too), or deepfakebench.
        self_blended: adds a fake made of each real training frame; with manipulations [] they are all there is to learn.
        on_leak: what befalls training videos that show people of a test set: remove, refuse, or keep, which still removes the test videos themselves.
        rewrite: beginning of the paths in lists of deepfakebench, and what stands in its place below its rgb folder.
        in_store: reads deepfakebench's frames from its LMDB stores.
        on_bad_file: refuse stops at frames that cannot be read, skip leaves them out; null finds them when their turn comes.
    """

    sources: ClassVar[dict[str, str]] = {
        "faces": "drawn faces, forged in three ways",
        "reference": "FaceForensics++/c23/{train,valid,test}/<class>/<video>/* and <set>/<class>/<video>/*, or DFDC's own lists, in root",
        "deepfakebench": "dataset_json/<set>.json and rgb/ (or lmdb/) in root",
        "faceforensics": "original_sequences/, manipulated_sequences/ and the official {train,val,test}.json in root",
        "folder": "{train,val,test}/{real,fake/<manipulation>}/<video>/* in root",
        "csv": "path,label,video,method,split in a list, or in train.csv, val.csv and test.csv in root",
        "npy": "<set>/{train,val,test}.npy, rows of [path, label], in root",
    }

    train_set: TrainingFrames
    val_set: ForgerySet | TrainingFrames
    test_sets: list[ForgerySet]

    def __init__(
        self,
        source: str = "faces",
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        size: int | None = None,
        train_set: str = "FaceForensics++",
        test_sets: list[str] | None = None,
        manipulations: list[str] | None = None,
        compression: str = "c23",
        train_frames: int = 20,
        real_frames: int | None = None,
        test_frames: int = 32,
        val_frames: int | None = None,
        length: int = 800,
        test_length: int = 300,
        video_frames: int | None = None,
        augmentation: Augmentation = "none",
        self_blended: bool = False,
        on_leak: OnLeak = "remove",
        rewrite: tuple[str, str] | None = None,
        in_store: bool = False,
        on_bad_file: OnBadFile | None = None,
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.size = size or (48 if source == "faces" else 224)
        self.train_name, self.compression, self.manipulations = train_set, compression, manipulations
        self.train_frames, self.real_frames, self.test_frames, self.val_frames = train_frames, real_frames, test_frames, val_frames
        self.length, self.test_length, self.video_frames = length, test_length, video_frames
        self.augmentation, self.self_blended, self.on_leak = augmentation, self_blended, on_leak
        self.rewrite, self.in_store, self.on_bad_file = rewrite, in_store, on_bad_file
        self.test_names = test_sets or (list(MANIPULATIONS) if source == "faces" else [train_set] if self._has_sets else ["test"])
        self._read: dict[str, Clips] = {}
        self._check()

    @property
    def _has_sets(self) -> bool:
        return self.source in ("reference", "deepfakebench", "npy")

    def _check(self) -> None:
        counts = {"train_frames": self.train_frames, "test_frames": self.test_frames, "length": self.length, "test_length": self.test_length}
        counts |= {name: 1 if (value := getattr(self, name)) is None else value for name in ("real_frames", "val_frames", "video_frames")}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"data.{name} must be at least 1, got {value}")
        if self.size < 16:
            raise ValueError(f"data.size must be at least 16, got {self.size}")
        if self.augmentation not in get_args(Augmentation) or self.on_leak not in get_args(OnLeak):
            known = f"augmentation: {', '.join(get_args(Augmentation))}; on_leak: {', '.join(get_args(OnLeak))}"
            raise ValueError(f"data.augmentation {self.augmentation!r} or data.on_leak {self.on_leak!r} is not known; there are {known}")
        if len(set(self.test_names)) < len(self.test_names):
            raise ValueError(f"data.test_sets names a set twice: {', '.join(self.test_names)}")
        if self.manipulations == [] and not self.self_blended:
            raise ValueError("data.manipulations is empty, so there is nothing to learn: name some, or set data.self_blended")
        if self.on_bad_file and (self.source == "faces" or self.in_store):
            raise ValueError("data.on_bad_file is for frames in files: leave it out")
        if self.source != "deepfakebench" and (self.rewrite or self.in_store):
            raise ValueError(f"data.rewrite and data.in_store are for data.source deepfakebench, not {self.source}")

    def prepare_data(self) -> None:
        """Check that files are there, before any work is done."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "test_sets"):
            return
        train, val, tests = self._drawn() if self.source == "faces" else self._files()
        self.train_set = TrainingFrames(train, self.augmentation, self.self_blended, self.seed)
        self.val_set = val if val.kinds else TrainingFrames(val, self_blended=True, seed=self.seed)
        self.test_sets = tests

    # ---- the sources

    def _drawn(self) -> tuple[ForgerySet, ForgerySet, list[ForgerySet]]:
        kinds = ["swap"] if self.manipulations is None else self.manipulations
        check_kinds([*kinds, *self.test_names], MANIPULATIONS)
        like = (self.seed, self.size, self.video_frames)
        train = faces("train", self.length if kinds else 2 * self.length, kinds or "swap", *like)
        val = faces("val", max(2, min(self.test_length, self.length // 2)), kinds or "swap", *like)
        if not kinds:
            train, val = train.select([]), val.select([])
        return train, val, [faces("test", self.test_length, name, *like) for name in self.test_names]

    def _files(self) -> tuple[ForgerySet, ForgerySet, list[ForgerySet]]:
        tests = {name: self._test_clips(name) for name in self.test_names}
        train, val = self._learnt([clip for clips in tests.values() for clip in clips])
        kinds = {clip.video.manipulation for clip in train} - {REAL}
        if not (kinds or self.self_blended) or all(clip.video.label for clip in train):
            lacking = "real videos to learn from: add them" if kinds else "fake videos to learn from: add them, or set data.self_blended"
            raise ValueError(f"{self._called(self.train_name)} has no {lacking}")
        real = self.real_frames or self.train_frames * max(1, len(kinds))
        return (
            frames_of(train, self.train_frames, self.size, real, repeat=True, reader=self._reader(self.train_name)),
            frames_of(val, self.val_frames or self.test_frames, self.size, reader=self._reader(self.train_name)),
            [frames_of(clips, self.test_frames, self.size, reader=self._reader(name.split(":")[0])) for name, clips in tests.items()],
        )

    def _learnt(self, tests: list[Clip]) -> tuple[list[Clip], list[Clip]]:
        """Return the clips of training and of validation, of the manipulations to learn and without what is held out."""
        found = self._to_learn(self.train_name, "choose another data.train_set" if self._has_sets else "add them")
        kinds = sorted({clip.video.manipulation for clip in found["train"]} - {REAL})
        wanted = kinds if self.manipulations is None else self.manipulations
        check_kinds(wanted, kinds)
        train, val = (of_kinds(found.get(split, []), wanted) for split in ("train", "val"))
        train = guard(train, tests, self.on_leak)
        val = guard(val, tests, self.on_leak, "validation") if val else []
        if val:
            train = guard(train, val, self.on_leak)
        else:
            _log.warning("%s has no validation split: an eighth of the training videos is taken, divided by people", self._called(self.train_name))
            train, val = divide(train, _VAL_FRACTION, self.seed)
        self._check_validation({clip.video.label for clip in train}, {clip.video.label for clip in val})
        return train, val

    def _to_learn(self, dataset: str, mend: str) -> Clips:
        """Return the clips of a set that has some to learn from; refuse another one, with what to do about it."""
        found = self._layout(dataset)
        if not found.get("train"):
            if self.source == "reference" and (lacking := layouts.lacking_list(self.root / dataset)):
                mend = f"put {lacking} beside its classes, or {mend}"
            raise ValueError(f"{self._called(dataset)} has no videos to learn from, only to test on: {mend}")
        return found

    def _check_validation(self, learnt: set[int], labels: set[int]) -> None:
        """Refuse a validation that could not tell good epochs from bad ones, and say where blends stand in for fakes."""
        if 0 not in labels and 0 in learnt:
            mend = "add some, or leave the split out, so that a part of the training videos is taken, which must show two people at least"
            raise ValueError(f"{self._called(self.train_name)} has no real videos to validate on: {mend}")
        if 1 not in labels and 1 in learnt:
            said = "%s has no fake videos of what is learnt to validate on: epochs are chosen by fakes that are blended of its real frames instead"
            _log.warning(said, self._called(self.train_name))

    def _test_clips(self, name: str) -> list[Clip]:
        """Return a test set by its name, with or without a manipulation."""
        dataset, kind = self._parsed(name)
        clips = self._layout(dataset).get("test", [])
        if kind:
            check_kinds([kind], sorted({clip.video.manipulation for clip in clips} - {REAL}))
            clips = of_kinds(clips, [kind])
        labels = {clip.video.label for clip in clips}
        if labels != {0, 1}:
            lacking = "no videos" if not labels else "no fake videos" if labels == {0} else "no real videos"
            raise ValueError(f"the test set {name} in {self.root} has {lacking}: add them, or leave it out of data.test_sets")
        return clips

    def _parsed(self, name: str) -> tuple[str, str]:
        """Return the set and the manipulation that the name of a test set stands for, "" being all manipulations."""
        dataset, _, kind = name.partition(":") if self._has_sets else (self.train_name, "", "" if name == "test" else name)
        return dataset, kind

    def _layout(self, dataset: str) -> Clips:
        if dataset not in self._read:
            found = self._read_layout(dataset)
            if check := self.on_bad_file:
                found = {split: layouts.readable(clips, check) for split, clips in found.items()}
            for split, clips in found.items() if not self.in_store else ():
                if differences := confounds(clips):
                    said = f"{self._called(dataset)}, {split}: {'; '.join(differences)}"
                    _log.warning("%s. Detectors learn this instead of forgeries: cut and save both classes from their videos in the same way", said)
            self._read[dataset] = found
        return self._read[dataset]

    def _called(self, dataset: str) -> str:
        return f"{dataset} in {self.root}" if self._has_sets else str(self.root)

    def _read_layout(self, dataset: str) -> Clips:
        match self.source:
            case "reference":
                return layouts.reference(self.root, dataset, self.compression)
            case "deepfakebench":
                return benchmark(find_places(self.root), dataset, self.compression, self.rewrite, self.in_store)
            case "faceforensics":
                return layouts.faceforensics(self.root, self.compression)
            case "folder":
                return layouts.folder(self.root)
            case "npy":
                return npy_lists(self.root, dataset)
            case _:
                return layouts.table(self.root)

    def _reader(self, dataset: str) -> Reader:
        return stored(find_places(self.root), dataset) if self.in_store else FrameFiles

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader, whose frames are augmented anew in every epoch."""
        return self.training_loader(self.train_set, identity, EpochKeys(self.train_set, self.seed))

    def val_dataloader(self) -> DataLoader:
        """Return a loader of every validation frame once, in order."""
        return self.evaluation_loader(self.val_set, collate=identity)

    def test_dataloader(self) -> list[DataLoader]:
        """Return one loader for each of `test_names`, of every frame once, in order."""
        return [self.evaluation_loader(frames, collate=identity) for frames in self.test_sets]


def of_kinds(clips: list[Clip], kinds: list[str]) -> list[Clip]:
    """Return the real clips and those of some manipulations."""
    return [clip for clip in clips if clip.video.manipulation in (REAL, *kinds)]
