"""Speakers to learn from, others held out, and trial lists of yet others."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from torch.utils.data import DataLoader

from projects.rsknet.augmentation import Augmentation
from projects.rsknet.layouts import LAYOUTS, Corpus, folder, kaldi, sitw, voxceleb
from projects.rsknet.leaks import check_leaks, hold_out, read_overlap, without_speakers
from projects.rsknet.lists import Trials, Utterance, all_pairs, drawn_pairs
from projects.rsknet.recordings import Crops, DrawnRecordings, FileRecordings, Recordings, Strings, numbered, whole_loader
from projects.rsknet.sounds import DrawnSounds, SoundFiles
from projects.rsknet.synthesis import synthvox
from shared.data.base import DataModule
from shared.data.folders import OnBadFile
from shared.distributed import EpochKeys, world_size
from shared.seeding import derive_seed

Added = Literal["none", "drawn", "files"]
BACKGROUND = 20
"""Recordings of each training speaker that the back-ends learn from."""


class SpeakerData(DataModule):
    """Recordings by speaker. No speaker is in two of: training, held out (to choose the epoch and to calibrate), trial lists.

    Args:
        source: synthvox (drawn voices, the default), voxceleb, sitw, kaldi or folder.
        root: folder of the files.
        sitw: folder of SITW to test on too; speakers of VoxCeleb1 who occur there are not trained on.
        corpora: sets of VoxCeleb to train on: voxceleb1, voxceleb2, both or none; the lists Vox1-E and Vox1-H draw on all of VoxCeleb1.
        train_list: list of training files of VoxCeleb instead, `speaker file` lines, files below the folders of speakers; null scans these folders.
        lists: names of the trial lists to test on; null takes all that are there.
        rate: samples a second; recordings are resampled.
        seconds: of a training crop.
        speed: plays crops at 0.9 and 1.1 of the speed too, each as further speakers: three times the classes.
        added: to crops: none, drawn (noise, music, voices and rooms) or files (of musan and rirs).
        musan: folder of MUSAN, with noise/, music/ and speech/.
        rirs: folder of RIRS_NOISES, with simulated_rirs/.
        probability: part of the crops that something is added to.
        held_speakers: speakers that are held out of training.
        held_trials: trials among them; as many of one speaker as of two.
        speakers: drawn speakers to train on.
        utterances: of each of them.
        test_speakers: drawn speakers of the trial list, which has all pairs of their recordings.
        test_utterances: of each of them, and of held-out ones.
        length: of a drawn recording, in seconds.
        on_bad_file: refuse stops at a training file that cannot be read, skip takes another of its speaker and says so.
        batch_size: crops of a training step, over all processes together.
        num_workers: processes that read files for each training process.
        seed: of drawn speakers, of what is held out, and of crops.

    Attributes:
        remarks: what a user should know of the lists.
    """

    sources: ClassVar = {"synthvox": "drawn voices", **LAYOUTS}

    def __init__(
        self,
        source: str = "synthvox",
        root: str | None = None,
        sitw: str | None = None,
        corpora: Literal["voxceleb1", "voxceleb2", "both", "none"] = "voxceleb2",
        train_list: str | None = None,
        lists: list[str] | None = None,
        rate: int = 8000,
        seconds: float = 1.2625,
        speed: bool = False,
        added: Added = "none",
        musan: str | None = None,
        rirs: str | None = None,
        probability: float = 0.6,
        held_speakers: int = 20,
        held_trials: int = 4000,
        speakers: int = 160,
        utterances: int = 14,
        test_speakers: int = 50,
        test_utterances: int = 8,
        length: float = 2.0,
        on_bad_file: OnBadFile = "refuse",
        batch_size: int = 50,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.corpora, self.train_list, self.lists, self.sitw = corpora, train_list, lists, sitw
        self.rate, self.seconds, self.speed = rate, seconds, speed
        self.added, self.musan, self.rirs, self.probability = added, musan, rirs, probability
        self.held_speakers, self.held_count = held_speakers, held_trials
        self.drawn, self.drawn_test, self.length = (speakers, utterances), (test_speakers, test_utterances), length
        self.on_bad_file: OnBadFile = on_bad_file
        self.remarks: list[str] = []
        if seconds <= 0 or length <= 0 or min(held_speakers, *self.drawn, *self.drawn_test) < 2:
            raise ValueError("data: lengths in seconds are positive, and there are two speakers or more of each kind, with two recordings or more")
        if sitw is not None and source in ("synthvox", "sitw"):
            raise ValueError("data.sitw is for tests beside other data: with data.source sitw, give its folder as data.root")
        if train_list is not None and source != "voxceleb":
            raise ValueError(f"data.train_list is for data.source voxceleb, not {source}: leave it out")
        if held_trials < 2 or not 0 <= probability <= 1:
            raise ValueError("data.held_trials is at least 2, and data.probability lies in [0, 1]")

    # ---- what is there

    @cached_property
    def corpus(self) -> Corpus:
        """The files of a layout, checked: all are there, and no speaker is both trained on and tested."""
        root = self.root
        if self.source == "voxceleb":
            found = voxceleb(root, self.corpora, self.lists, self.train_list)
        elif self.source == "sitw":
            found = sitw(root)
        else:
            found = (kaldi if self.source == "kaldi" else folder)(root)
        if self.sitw is not None:
            found = found + sitw(Path(self.sitw).expanduser())
            found.train = without_speakers(found.train, self.overlap)
        self.remarks = check_leaks(found.train, found.tests, found.speakers, self.overlap)
        return found

    @cached_property
    def overlap(self) -> frozenset[str]:
        """Speakers of VoxCeleb1 who occur in SITW, if that is tested on and the list of them is there."""
        places = [self.root] if self.source == "sitw" else [] if self.sitw is None else [Path(self.sitw).expanduser(), self.root]
        return frozenset().union(*map(read_overlap, places))

    @property
    def tested_names(self) -> list[str]:
        """Who speaks in the trial lists, as far as that is known: of SITW, `overlap`."""
        if self.source == "synthvox":
            return [one.speaker for one in drawn_utterances("test", *self.drawn_test)]
        return [*self.corpus.speakers.values(), *self.overlap]

    @cached_property
    def _split(self) -> tuple[FileRecordings, Sequence[str], list[Utterance]]:
        """Recordings to learn from and who speaks in each, and the utterances of speakers held out; the corpus gives its list up, which is large."""
        if not self.corpus.train:
            raise ValueError(
                f"{self.root} has nothing to train on: expected {LAYOUTS[self.source]}; trained networks are tested on it with the verb test"
            )
        learnt, held = hold_out(self.corpus.train, self.held_speakers, self.seed)
        self.corpus.train = []
        return self._files(learnt), Strings((one.speaker for one in learnt), str), held

    @cached_property
    def train(self) -> Recordings:
        """Recordings to learn from."""
        return self._drawn("train", *self.drawn) if self.source == "synthvox" else self._split[0]

    @cached_property
    def train_speakers(self) -> Sequence[str]:
        """Who speaks in each recording of `train`."""
        return _drawn_names("train", *self.drawn)[1] if self.source == "synthvox" else self._split[1]

    @cached_property
    def held(self) -> Recordings:
        """Recordings of speakers who are held out of training."""
        return self._drawn("held", self.held_speakers, self.drawn_test[1]) if self.source == "synthvox" else self._files(self._split[2])

    @cached_property
    def held_names(self) -> list[str]:
        """Who speaks in each recording of `held`."""
        return [one.speaker for one in self._held_utterances]

    @property
    def _held_utterances(self) -> list[Utterance]:
        return drawn_utterances("held", self.held_speakers, self.drawn_test[1]) if self.source == "synthvox" else self._split[2]

    @cached_property
    def held_trials(self) -> Trials:
        """Pairs of held-out recordings, half of them of one speaker."""
        return drawn_pairs(self._held_utterances, self.held_count, self.seed, "held-out speakers")

    @cached_property
    def trials(self) -> list[Trials]:
        """The trial lists to test on; there may be none."""
        if self.source == "synthvox":
            return [all_pairs(drawn_utterances("test", *self.drawn_test), "SynthVox")]
        return self.corpus.tests

    @cached_property
    def test(self) -> Recordings:
        """Recordings of all trial lists."""
        if self.source == "synthvox":
            return self._drawn("test", *self.drawn_test)
        files = {name: self.corpus.files[name] for trials in self.trials for name in trials.files}
        return FileRecordings(files, self.rate, self.corpus.cuts)

    @property
    def classes(self) -> int:
        """Speakers that are learnt to be told apart, at each speed."""
        return self.crops.classes

    @cached_property
    def crops(self) -> Crops:
        """Training crops."""
        return Crops(self.train, self.train_speakers, self.seconds, self.seed, self._augmentation(), self.speed, self.on_bad_file)

    def _files(self, utterances: Sequence[Utterance]) -> FileRecordings:
        return FileRecordings([(one.name, one.file) for one in utterances], self.rate)

    def _drawn(self, split: str, speakers: int, utterances: int) -> DrawnRecordings:
        waveforms = synthvox(self.seed, split, speakers, utterances, self.length, self.rate)
        return DrawnRecordings(_drawn_names(split, speakers, utterances)[0], waveforms.flatten(0, 1), self.rate)

    def _augmentation(self) -> Augmentation | None:
        if self.added == "none":
            return None
        places = [Path(place).expanduser() if place else None for place in (self.musan, self.rirs)]
        sounds = DrawnSounds(self.seed, self.rate) if self.added == "drawn" else SoundFiles(places[0], places[1], self.rate)
        return Augmentation(sounds, self.probability)

    # ---- loaders

    def setup(self, stage: str) -> None:
        if stage == "fit" and self.crops.speakers < 2:
            raise ValueError(f"data.held_speakers {self.held_speakers} leaves one speaker to train on: lower it, or add speakers")
        if stage == "fit" and self.batch_size < 2 * world_size():
            raise ValueError(f"data.batch_size must be at least {2 * world_size()}, two a process: batch norms average over its crops")

    def train_dataloader(self) -> DataLoader:
        return self.training_loader(self.crops, sampler=EpochKeys(self.crops, self.seed))

    def val_dataloader(self) -> DataLoader:
        return self.whole(self.held)

    def test_dataloader(self) -> DataLoader:
        return self.whole(self.test)

    def background(self) -> tuple[list[int], list[str]]:
        """Choose recordings of training speakers, at most `BACKGROUND` each, for the back-ends; returns their numbers in `train`, and who speaks."""
        names, labels = numbered(self.train_speakers)
        rng = np.random.default_rng(derive_seed(self.seed, "background"))
        by_speaker = np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])
        chosen = np.concatenate([np.sort(rng.permutation(own)[:BACKGROUND]) for own in by_speaker])
        return chosen.tolist(), [names[number] for number in labels[chosen]]

    def whole(self, recordings: Recordings, seconds: float | None = None, indices: Sequence[int] | None = None) -> DataLoader:
        """Return a loader of whole recordings, of like lengths in a batch; `seconds` keeps so much from the middle of each."""
        return whole_loader(recordings, seconds, indices, self.batch_size, **self._workers())


def _drawn_names(split: str, speakers: int, utterances: int) -> tuple[list[str], list[str]]:
    """Return names of drawn recordings, and who speaks in them."""
    names = [f"{split}{speaker:04d}/{utterance:05d}.wav" for speaker in range(speakers) for utterance in range(utterances)]
    return names, [name.partition("/")[0] for name in names]


def drawn_utterances(split: str, speakers: int, utterances: int) -> list[Utterance]:
    """Return the utterances of drawn speakers, which lie in no file."""
    return [Utterance(name, speaker, name, Path(name)) for name, speaker in zip(*_drawn_names(split, speakers, utterances), strict=True)]
