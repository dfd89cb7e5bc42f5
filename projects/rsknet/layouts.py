"""Speaker corpora as they lie on people's disks.

corpus = voxceleb(Path("datasets"))       # trains on VoxCeleb2, tests on the lists of VoxCeleb1 that lie there
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from projects.rsknet.audio import EXTENSIONS
from projects.rsknet.leaks import VOX2_META, check_voxceleb2, read_voxceleb2_tested
from projects.rsknet.lists import (
    Trials,
    Utterance,
    all_pairs,
    check_there,
    read_kaldi,
    read_pairs,
    read_text,
    read_training_list,
    read_trials,
    session_of,
)
from shared.data.files import BadFileError, first_few

LAYOUTS: dict[str, str] = {
    "voxceleb": "voxceleb1/{dev,test}/wav/id10001/<video>/00001.wav, voxceleb2/dev/wav/id00012/<video>/00001.wav, with veri_test2.txt and the like",
    "sitw": "{dev,eval}/audio/*.flac with lists/enroll-core.lst and keys/core-core.lst in each",
    "kaldi": "{train,test,enroll}/ with wav.scp and utt2spk in each, and test/trials (a list, or a folder of lists); or these files in the root",
    "folder": "{train,test}/<speaker>/**/*.wav or <speaker>/**/*.wav, with trials*.txt if pairs are chosen",
}
"""What lies in the root."""

LISTS: dict[str, tuple[str, ...]] = {
    "Vox1-O": ("veri_test2.txt", "veri_test_cleaned.txt", "vox1_O_cleaned.kaldi", "vox1_O_cleaned.txt"),
    "Vox1-E": ("list_test_all2.txt", "list_test_all_cleaned.txt", "vox1_E_cleaned.kaldi", "vox1_E_cleaned.txt"),
    "Vox1-H": ("list_test_hard2.txt", "list_test_hard_cleaned.txt", "vox1_H_cleaned.kaldi", "vox1_H_cleaned.txt"),
    "Vox1-O uncleaned": ("veri_test.txt",),
    "Vox1-E uncleaned": ("list_test_all.txt",),
    "Vox1-H uncleaned": ("list_test_hard.txt",),
}
"""Files of VoxCeleb1's trial lists by their names in papers, which mean the cleaned ones."""

VoxCelebTrain = Literal["voxceleb1", "voxceleb2", "both", "none"]
"""What of VoxCeleb to train on; only `voxceleb2` leaves Vox1-E and Vox1-H to test on."""

_SPEAKER = re.compile(r"id\d{5}")
_BEGINNINGS = {"voxceleb1": "id1", "voxceleb2": "id0"}
_VOX1_TEST = frozenset(f"id{number}" for number in range(10270, 10310))
_TEST_PART = re.compile(r"(^|_)test(_|$)", re.IGNORECASE)  # test, or vox2_test_aac, as the archive of VoxCeleb2's is called
_DEEPEST = 4  # folders between the root and those of VoxCeleb's speakers
_UNREAD = ".m4a"  # as VoxCeleb2 is handed out
_CONVERT = "convert them into the same tree: ffmpeg -i 00001.m4a -ac 1 -ar 16000 00001.wav"
_log = logging.getLogger(__name__)


@dataclass
class Corpus:
    """What to train and to test on.

    Attributes:
        train: utterances to train on.
        tests: trial lists.
        files: where each file of the trial lists lies.
        speakers: who speaks in files of the trial lists, where that is known: not in SITW.
        cuts: beginning and end, in seconds, of names that stand for a part of a file, such as `dev/audio/x.flac#1.20-5.60`.

    Raises:
        BadFileError: if two files to train on have one name.
    """

    train: list[Utterance] = field(default_factory=list)
    tests: list[Trials] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    cuts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len({one.name for one in self.train}) < len(self.train):
            one, other = next(pair for pair in pairwise(sorted(self.train)) if pair[0].name == pair[1].name)
            raise BadFileError(f"{one.file} and {other.file} are both named {one.name}: remove or move one of them, or rename it if they differ")

    def __add__(self, other: Corpus) -> Corpus:
        """Join two corpora: train on both, test on all lists of both.

        Raises:
            ValueError: if both have a file of one name that lies in different places.
        """
        if clash := [name for name, file in self.files.items() if other.files.get(name, file) != file]:
            raise ValueError(f"{clash[0]} names both {self.files[clash[0]]} and {other.files[clash[0]]}: rename one of them")
        both = (self.files | other.files, self.speakers | other.speakers, self.cuts | other.cuts)
        return Corpus(self.train + other.train, self.tests + other.tests, *both)


def voxceleb(root: Path, train: VoxCelebTrain = "voxceleb2", lists: Sequence[str] | None = None, train_list: str | None = None) -> Corpus:
    """Read VoxCeleb1 and 2: folders of speakers up to four levels below the root, told apart by their numbers, with or without dev, test and wav.

    Args:
        root: folder above both, or one of them.
        train: what to train on; the 40 test speakers of VoxCeleb1 and the test part of VoxCeleb2, a folder or by `vox2_meta.csv`, are left out.
        lists: names of `LISTS`, or paths of other lists; None takes all cleaned ones that are there, or else the uncleaned ones.
        train_list: path of a list of `speaker file` lines, which are what to train on whatever `train` says; None scans the folders.

    Raises:
        FileNotFoundError: if what is asked for, or files that the lists name, are missing, or who is in the test part of VoxCeleb2 cannot be told.
        BadFileError: if a list is damaged, gives files to other speakers than their folders do, or all that is there are .m4a files.
        ValueError: if `train` is none of these.
    """
    if train not in ("voxceleb1", "voxceleb2", "both", "none"):
        raise ValueError(f"train must be voxceleb1, voxceleb2, both or none, got {train!r}")
    _check_root(root, "voxceleb")
    homes, lying = _voxceleb_places(root)
    tests = [read_trials(path, name) for name, path in _chosen_lists(root, lists, lying).items()]
    chosen = [name for name in ("voxceleb1", "voxceleb2") if train in (name, "both")] if train_list is None else []
    tested = _VOX1_TEST | (read_voxceleb2_tested(lying[VOX2_META]) if VOX2_META in lying else frozenset())
    utterances = [utterance for name in chosen for utterance in _voxceleb_train(root, name, homes, tested)]
    check_voxceleb2(utterances, root)
    utterances += [] if train_list is None else _voxceleb_listed(root, root / train_list, homes)
    files = _located_tests(tests, homes, root)
    return Corpus(utterances, tests, files, {name: name.split("/")[-3] for name in files if name.count("/") >= 2})


def sitw(root: Path, splits: Sequence[str] = ("dev", "eval"), condition: str = "core-core") -> Corpus:
    """Read Speakers in the Wild, to test on; the keys name the trials. Names of files begin with their split, `dev/audio/x.flac`.

    Args:
        root: folder with `dev` and `eval`, or the folder `sitw` beside others.
        splits: `dev`, `eval` or both; each is one list, `SITW-dev`.
        condition: enrolment and test, such as `core-core`, `core-multi`, `assist-core`; parts of files in `enroll-assist.lst` become `cuts`.

    Raises:
        FileNotFoundError: if lists or files are missing.
        BadFileError: if a list is damaged.
    """
    home = root / "sitw" if (root / "sitw").is_dir() else root
    _check_root(home, "sitw")
    corpus = Corpus()
    for split in splits:
        key, enrolment = home / split / "keys" / f"{condition}.lst", home / split / "lists" / f"enroll-{condition.split('-')[0]}.lst"
        if absent := [path for path in (key, enrolment) if not path.is_file()]:
            raise FileNotFoundError(f"no list {absent[0]}: expected {LAYOUTS['sitw']}; correct the root, the splits or the condition {condition!r}")
        models, cuts = _sitw_models(enrolment, split)
        name = f"SITW-{split}" if condition == "core-core" else f"SITW-{split} {condition}"
        read = read_trials(key, name, models)
        trials = replace(read, tests=tuple(f"{split}/{file}" for file in read.tests))
        files = {name: home / name.partition("#")[0] for name in trials.files}
        check_there(files, key)
        corpus += Corpus(tests=[trials], files=files, cuts={name: cut for name, cut in cuts.items() if name in files})
    return corpus


def kaldi(root: Path) -> Corpus:
    """Read Kaldi's data folders: `train`, `test` with `trials`, and perhaps `enroll`, whose speakers are the models that trials name.

    `trials` is a list, or a folder of lists. A root that is itself a data folder is tested on if it has `trials`, else trained on. Test utterances
    without `trials` are all paired. Relative paths are relative to the root.

    Raises:
        FileNotFoundError: if there is no data folder, or files are missing.
        BadFileError: if a list is damaged, holds commands, or trials name what is not there.
    """
    _check_root(root, "kaldi")
    if (root / "wav.scp").is_file():
        return _kaldi_test(root, root) if os.path.lexists(root / "trials") else Corpus(read_kaldi(root))
    train, test = root / "train", root / "test"
    if not train.is_dir() and not test.is_dir():
        raise FileNotFoundError(f"no data folder in {root}: expected {LAYOUTS['kaldi']}; correct the root")
    corpus = Corpus(read_kaldi(train, root) if train.is_dir() else [])
    return corpus + _kaldi_test(root, test) if test.is_dir() else corpus


def folder(root: Path) -> Corpus:
    """Read folders of speakers. Lists `trials*.txt` in the root or in `test` hold names below these folders.

    Without lists, all pairs of the speakers in `test` are tried. Where nothing is split, all speakers that no list names are trained on.

    Raises:
        FileNotFoundError: if there are no speakers, or files that lists name are missing.
        BadFileError: if a list is damaged.
        ValueError: if there are too many pairs.
    """
    _check_root(root, "folder")
    is_split = (root / "train").is_dir() or (root / "test").is_dir()
    train = list(scan(root / "train" if is_split else root)) if not is_split or (root / "train").is_dir() else []
    held = list(scan(root / "test")) if (root / "test").is_dir() else []
    if not train and not held:
        raise FileNotFoundError(f"no utterances in {root}: expected {LAYOUTS['folder']}, files ending in {', '.join(EXTENSIONS)}; put them there")
    paths = sorted(root.glob("trials*.txt")) + sorted((root / "test").glob("trials*.txt"))
    tests = [read_trials(path) for path in paths] or ([all_pairs(held, "test")] if held else [])
    files = _located_tests(tests, [home for home in (root / "test", root) if home.is_dir()], root)
    speakers = {name: name.removeprefix("test/").split("/")[0] for name in files}
    if not is_split:
        tested = set(speakers.values())
        train = [utterance for utterance in train if utterance.speaker not in tested]
    return Corpus(train, tests, files, speakers)


def scan(home: Path, beginning: str = "", endings: tuple[str, ...] = EXTENSIONS) -> Iterator[Utterance]:
    """Yield the utterances below `home/<speaker>/`, sorted in each folder; hidden files and folders are left out, links followed.

    Args:
        home: folder of speakers.
        beginning: of the names of speakers that are wanted.
        endings: of the files that are wanted, in lower case.
    """
    for speaker in _visible(home):
        if not speaker.name.startswith(beginning) or not speaker.is_dir():
            continue
        for path in audio_files(speaker.path, endings):
            name = path[len(speaker.path) - len(speaker.name) :].replace(os.sep, "/")
            yield Utterance(name, speaker.name, session_of(name, speaker.name), Path(path))


def _check_root(root: Path, layout: str) -> None:
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{root} {what}: expected {LAYOUTS[layout]}; correct the root")


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    """Return what is in a folder and not hidden, sorted by name."""
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def audio_files(folder: str | Path, endings: tuple[str, ...] = EXTENSIONS) -> Iterator[str]:
    """Yield files in a folder and below it; a link that leads back is not followed."""
    for entry in _visible(folder):
        if entry.name.lower().endswith(endings):
            yield entry.path
        elif entry.is_dir() and not (entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve())):
            yield from audio_files(entry.path, endings)


def _voxceleb_places(root: Path) -> tuple[list[Path], dict[str, Path]]:
    """Return the folders of speakers, and the files of lists by their names, nearest to the root first."""
    homes: list[Path] = []
    lying: dict[str, Path] = {}
    known = {VOX2_META, *(file for files in LISTS.values() for file in files)}
    level = [root]
    for _ in range(_DEEPEST + 1):
        below: list[Path] = []
        for place in level:
            visible = _visible(place)
            for entry in visible:
                if entry.name in known:
                    lying.setdefault(entry.name, Path(entry.path))
            folders = [Path(entry.path) for entry in visible if entry.is_dir()]
            homes += [place] if any(_SPEAKER.fullmatch(path.name) for path in folders) else []
            below += [path for path in folders if not _SPEAKER.fullmatch(path.name)]
        level = below
    return homes, lying


def _chosen_lists(root: Path, lists: Sequence[str] | None, lying: Mapping[str, Path]) -> dict[str, Path]:
    there = {name: lying[file] for name, files in LISTS.items() for file in files[::-1] if file in lying}
    if lists is None:
        cleaned = {name: path for name, path in there.items() if "uncleaned" not in name}
        if not there:
            files = ", ".join(files[0] for files in LISTS.values())
            raise FileNotFoundError(f"no trial list in {root}: expected one of {files}; put it there, or name the lists")
        return cleaned or there
    chosen = {}
    for name in lists:
        path = there.get(name, root / name)
        if not path.is_file():
            what = f"one of {', '.join(LISTS[name])} in {root}" if name in LISTS else f"a file, or one of {', '.join(LISTS)}"
            raise FileNotFoundError(f"no trial list {name}: expected {what}; correct the name, or put the file there")
        chosen[name if name in LISTS else path.stem] = path
    return chosen


def _voxceleb_train(root: Path, name: str, homes: Sequence[Path], tested: frozenset[str]) -> list[Utterance]:
    """List the training utterances of one of the two, in the order of their names; warns of .m4a files that were not converted."""
    parts = [home for home in homes if name == "voxceleb1" or not _is_test_part(home, root, homes)]
    found: list[Utterance] = []
    unread: list[str] = []
    for utterance in (each for home in parts for each in scan(home, _BEGINNINGS[name], (*EXTENSIONS, _UNREAD))):
        if utterance.name.lower().endswith(_UNREAD):
            unread.append(utterance.name)
        elif utterance.speaker not in tested:
            found.append(utterance)
    if found:
        if unread:
            _warn_of_unconverted(name, root, unread, found)
        return sorted(found)
    if unread:
        raise BadFileError(f"{name} in {root} has only .m4a files, which are not read; {_CONVERT}")
    raise FileNotFoundError(f"no {name} in {root} to train on: expected {LAYOUTS['voxceleb']}; correct the root, or set data.corpora")


def _is_test_part(home: Path, root: Path, homes: Sequence[Path]) -> bool:
    """Tell whether VoxCeleb2's test part lies in a folder: by its name, or as its archive's `aac/` beside `dev/aac/` of the other one."""
    return any(map(_TEST_PART.search, home.relative_to(root).parts)) or home.parent / "dev" / home.name in homes


def _warn_of_unconverted(name: str, root: Path, unread: Sequence[str], found: Sequence[Utterance]) -> None:
    there = {utterance.name.rpartition(".")[0] for utterance in found}
    if left := sorted(file for file in unread if file.rpartition(".")[0] not in there):
        few = ", ".join(first_few(left, 3))
        _log.warning("%s in %s has %d .m4a files without a converted one, which are left out, such as %s; %s", name, root, len(left), few, _CONVERT)


def _voxceleb_listed(root: Path, path: Path, homes: Sequence[Path]) -> list[Utterance]:
    """Find the utterances of a training list, whose speakers must be those that the files' folders are named by."""
    utterances = read_training_list(path, None)
    odd = [one for one in utterances if _SPEAKER.fullmatch(folder := one.name.split("/")[-3:][0]) and folder != one.speaker]
    if odd:
        told = f"{len(odd)} of {len(utterances)} files to other speakers than their folders do, such as {odd[0].name} to {odd[0].speaker}"
        mend = "write lines of 'id00012 id00012/21Uxsk56VDQ/00001.wav' (iden_split.txt numbers parts of the data, not speakers)"
        raise BadFileError(f"{path} gives {told}, and who is tested on could not be told from who is learnt: {mend}")
    files = _located({str(path): [utterance.name for utterance in utterances]}, homes, root)
    return [utterance._replace(file=files[utterance.name]) for utterance in utterances]


def _located_tests(tests: Sequence[Trials], homes: Sequence[Path], root: Path) -> dict[str, Path]:
    return _located({trials.name: trials.files for trials in tests}, homes, root)


def _located(lists: Mapping[str, Sequence[str]], homes: Sequence[Path], root: Path) -> dict[str, Path]:
    """Find the files of lists below one of `homes`, listing each folder once; lists say .wav where people may keep .flac."""
    inside: dict[str, dict[str, Path]] = {}
    files: dict[str, Path] = {}
    for title, names in lists.items():
        missing = []
        for name in names:
            place, _, file = name.rpartition("/")
            if place not in inside:
                inside[place] = {path.stem: path for home in reversed(homes) for path in _files_in(home / place)}
            path = inside[place].get(file.rpartition(".")[0] or file)
            if path is None:
                missing.append(name)
            else:
                files[name] = path
        if missing:
            what = f"{len(missing)} of the {len(names)} files of the list {title} are missing in {root}:"
            raise FileNotFoundError("\n  ".join([what, *first_few(missing, 5), "add them, correct the root, or leave this list out"]))
    return files


def _files_in(folder: Path) -> list[Path]:
    return [Path(entry.path) for entry in _visible(folder) if entry.name.lower().endswith(EXTENSIONS)] if folder.is_dir() else []


def _sitw_models(path: Path, split: str) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[float, float]]]:
    """Read an enrolment list: `model file`, or `model file start end` with several lines a model."""
    models: dict[str, tuple[str, ...]] = {}
    cuts: dict[str, tuple[float, float]] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        is_cut = len(fields) == 4 and all(re.fullmatch(r"\d+(\.\d*)?", part) for part in fields[2:]) and float(fields[2]) < float(fields[3])
        if len(fields) != 2 and not is_cut:
            raise BadFileError(f"{path}, line {number}: {line.strip()!r} is not like 'model file' or 'model file start end' in seconds; correct it")
        name = f"{split}/{fields[1]}"
        if is_cut:
            start, end = float(fields[2]), float(fields[3])
            name = f"{name}#{start:.2f}-{end:.2f}"
            cuts[name] = (start, end)
        models[fields[0]] = (*models.get(fields[0], ()), name)
    return models, cuts


def _kaldi_test(root: Path, test: Path) -> Corpus:
    utterances = read_kaldi(test, root)
    enroll = root / "enroll"
    models = _kaldi_models(enroll) if enroll.is_dir() else None
    enrolled = read_kaldi(enroll, root) if (enroll / "wav.scp").is_file() else []
    known = {utterance.name: utterance for utterance in [*utterances, *enrolled]}
    tests = [read_trials(path, name, models) for name, path in _kaldi_trials(test).items()] or [all_pairs(utterances, test.name)]
    for trials in tests:
        if lost := [name for name in trials.files if name not in known]:
            few = ", ".join(first_few(lost, 3))
            raise BadFileError(f"{test / 'trials'}: the list {trials.name} names {len(lost)} utterances that no wav.scp has, such as {few}: add them")
    files = {name: known[name].file for trials in tests for name in trials.files}
    return Corpus(tests=tests, files=files, speakers={name: known[name].speaker for name in files})


def _kaldi_trials(test: Path) -> dict[str, Path]:
    """Return the lists by name: `trials`, or those in the folder `trials`; none where there is nothing of this name."""
    place = test / "trials"
    if place.is_file():
        return {test.name: place}
    lists = {Path(entry.name).stem: Path(entry.path) for entry in _visible(place) if entry.is_file()} if place.is_dir() else {}
    if not lists and os.path.lexists(place):
        raise BadFileError(f"{place} is neither a list nor a folder of lists: put lists there, or remove it to try all pairs")
    return lists


def _kaldi_models(enroll: Path) -> dict[str, tuple[str, ...]]:
    if (enroll / "spk2utt").is_file():
        return {speaker: tuple(names.split()) for speaker, names in read_pairs(enroll / "spk2utt").items()}
    models: dict[str, tuple[str, ...]] = {}
    for name, speaker in read_pairs(enroll / "utt2spk").items():
        models[speaker] = (*models.get(speaker, ()), name)
    return models
