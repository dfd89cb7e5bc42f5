"""Lists of utterances and of trials, in the forms that people hold them in.

trials = read_trials(Path("veri_test2.txt"))      # VoxCeleb, Kaldi or CSV: told by what is in it
train = read_training_list(Path("train_list.txt"), Path("voxceleb2/dev/wav"))
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from shared.data.files import BadFileError, first_few
from shared.runs import write_text
from shared.seeding import derive_seed

MAX_PAIRS = 50_000_000
"""Most pairs that `all_pairs` makes, about 1 GB."""

_TRUTH = {"1": True, "0": False, "target": True, "nontarget": False, "tgt": True, "imp": False}
_TRIAL = "'1 file file' (or 0), 'file file target' (or nontarget, tgt, imp, 1, 0)"
_TRAINING = "'speaker folder/file.wav', all lines in this order or all in the other"


class Utterance(NamedTuple):
    """A recording of one speaker.

    Attributes:
        name: as lists name it, such as `id10001/1zcIwhmdeo4/00001.wav`.
        speaker: who speaks.
        session: the video or recording that it was cut from; utterances of one session share room and microphone, and are not independent.
        file: where it lies.
    """

    name: str
    speaker: str
    session: str
    file: Path


@dataclass(frozen=True, eq=False)
class Trials:
    """A list of N questions: does this model's speaker speak in that file?

    Attributes:
        name: of the list, such as `Vox1-O`.
        models: files that each enrolment model is made of; VoxCeleb's have one.
        tests: files that are compared with models.
        enrol: (N,) int64 indices into `models`.
        test: (N,) int64 indices into `tests`.
        is_target: (N,) bool, true where both are of one speaker.
    """

    name: str
    models: tuple[tuple[str, ...], ...]
    tests: tuple[str, ...]
    enrol: Tensor
    test: Tensor
    is_target: Tensor

    def __len__(self) -> int:
        return len(self.is_target)

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Names of all files of models and tests, sorted, each once."""
        return tuple(sorted({name for model in self.models for name in model}.union(self.tests)))

    @property
    def targets(self) -> int:
        """Number of target trials."""
        return int(self.is_target.sum())

    def subset(self, mask: Tensor) -> Trials:
        """Return the trials where the (N,) bool `mask` is true, with the models and tests that they use."""
        models, enrol = np.unique(self.enrol[mask].numpy(), return_inverse=True)
        tests, test = np.unique(self.test[mask].numpy(), return_inverse=True)
        return Trials(
            name=self.name,
            models=tuple(self.models[index] for index in models),
            tests=tuple(self.tests[index] for index in tests),
            enrol=torch.from_numpy(enrol.astype(np.int64)),
            test=torch.from_numpy(test.astype(np.int64)),
            is_target=self.is_target[mask],
        )


def read_trials(path: Path, name: str | None = None, models: Mapping[str, tuple[str, ...]] | None = None) -> Trials:
    """Read a trial list, telling its form by what is in it: labels 1 and 0 in front (VoxCeleb), or labels of any kind at the end (Kaldi, SITW).

    Fields are separated by white space, or by commas, with a header or none; names may hold spaces between commas or tabs. Empty lines are passed
    over, backslashes are read as slashes, and a trial that is listed twice counts twice.

    Args:
        path: the list.
        name: what to call it; the file's name without its ending if None.
        models: files of each model that the list's first file column names; None if that column names files.

    Raises:
        BadFileError: if a line has another form, or there are no targets or no nontargets, without which there is no error rate.
        FileNotFoundError: if there is no such list.
    """
    columns, numbers = _columns(path, 3, _TRIAL)
    labels = columns.pop(_label_column(path, columns, numbers))
    enrol_names, enrol = _indexed(columns[0])
    tests, test = _indexed(columns[1])
    is_target = torch.from_numpy(np.fromiter((_TRUTH[label.lower()] for label in labels), bool, len(labels)))
    trials = Trials(name or path.stem, _models(path, enrol_names, models), tests, enrol, test, is_target)
    return _with_both(trials, path)


def write_trials(path: Path, trials: Trials) -> None:
    """Write a trial list in VoxCeleb's form, `1 file file`, or with commas if `path` ends in `.csv`.

    Raises:
        ValueError: if a model has several files, or a name holds what separates names.
    """
    separator = "," if path.suffix.lower() == ".csv" else " "
    if several := [model for model in trials.models if len(model) > 1]:
        raise ValueError(f"{trials.name} has models of several files, such as {', '.join(several[0])}, which {path} cannot hold: write pairs only")
    if bad := [name for name in trials.files if (separator == "," and "," in name) or (separator == " " and re.search(r"\s", name))]:
        raise ValueError(f"{path} cannot hold names with {'commas' if separator == ',' else 'spaces'} such as {bad[0]!r}: rename the files")
    rows = zip(trials.is_target.tolist(), trials.enrol.tolist(), trials.test.tolist(), strict=True)
    lines = [f"{int(truth)}{separator}{trials.models[model][0]}{separator}{trials.tests[test]}\n" for truth, model, test in rows]
    write_text(path, "".join(lines))


def all_pairs(utterances: Sequence[Utterance], name: str) -> Trials:
    """Make trials of every unordered pair of utterances, each once, those of one session too.

    Raises:
        ValueError: if there are more than `MAX_PAIRS`, names occur twice, or no speaker or every one speaks both sides.
    """
    count = len(utterances)
    if count * (count - 1) // 2 > MAX_PAIRS:
        raise ValueError(f"{count} utterances have more than {MAX_PAIRS} pairs: take fewer utterances, or draw pairs of them")
    enrol, test = np.triu_indices(count, 1)
    return _paired(utterances, enrol, test, name)


def drawn_pairs(utterances: Sequence[Utterance], count: int, seed: int, name: str) -> Trials:
    """Draw trials, half of them targets, from all unordered pairs, each pair at most once and all equally likely.

    Targets are of two sessions, unless no speaker has two. Where there are fewer pairs of a kind than asked for, all of them are taken.

    Args:
        utterances: what to draw from; their order does not matter.
        count: number of trials, at least 2.
        seed: of the draw.
        name: what to call the list.

    Raises:
        ValueError: if `count` is below 2, names occur twice, or there are no targets or no nontargets to draw.
    """
    if count < 2:
        raise ValueError(f"count must be at least 2, a target and a nontarget, got {count}")
    utterances = sorted(utterances, key=lambda utterance: (utterance.speaker, utterance.session, utterance.name))
    speaker_ends = _block_ends([utterance.speaker for utterance in utterances])
    session_ends = _block_ends([(utterance.speaker, utterance.session) for utterance in utterances])
    if (speaker_ends == session_ends).all():
        session_ends = np.arange(1, len(utterances) + 1)
    draw = np.random.default_rng(derive_seed(seed, "pairs"))
    targets = _draw(session_ends, speaker_ends, count // 2, draw)
    others = _draw(speaker_ends, np.full(len(utterances), len(utterances)), count - count // 2, draw)
    enrol, test = np.concatenate([targets, others], axis=1)
    return _paired(utterances, enrol, test, name)


def read_training_list(path: Path, root: Path | None) -> list[Utterance]:
    """Read lines of `speaker file` or `file speaker`: the column with slashes holds the files.

    Args:
        path: the list.
        root: folder that the files are relative to; None does not look for them.

    Raises:
        BadFileError: if a line has another form, or a file occurs twice.
        FileNotFoundError: if the list, or files that it names, are missing.
    """
    columns, numbers = _columns(path, 2, _TRAINING)
    where = 0 if "/" in columns[0][0] else 1
    rows = list(zip(columns[where], columns[1 - where], strict=True))
    seen: set[str] = set()
    for number, (file, speaker) in zip(numbers, rows, strict=True):
        if "/" not in file or "/" in speaker:
            raise BadFileError(f"{path}, line {number}: {speaker!r} and {file!r} are not like {_TRAINING}; correct it")
        if file in seen:
            raise BadFileError(f"{path}, line {number}: {file!r} is listed for the second time; remove the line")
        seen.add(file)
    utterances = [Utterance(file, sys.intern(speaker), session_of(file, speaker), (root or Path()) / file) for file, speaker in rows]
    if root is not None:
        check_there({utterance.name: utterance.file for utterance in utterances}, path)
    return utterances


def read_kaldi(folder: Path, root: Path | None = None) -> list[Utterance]:
    """Read a Kaldi data folder: `wav.scp` (`utterance path`) and `utt2spk` (`utterance speaker`).

    Commands in `wav.scp`, which Kaldi would run, are refused, as are archives and `segments`.

    Args:
        folder: the data folder.
        root: folder that relative paths are relative to; `folder` if None.

    Raises:
        BadFileError: if a line is a command or has another form, or an utterance has no speaker.
        FileNotFoundError: if a list, or files that it names, are missing.
    """
    if (folder / "segments").is_file():
        raise BadFileError(f"{folder / 'segments'} cuts recordings into parts, which is not supported: write the parts to files of their own")
    scp, speakers = folder / "wav.scp", read_pairs(folder / "utt2spk")
    files = read_pairs(scp)
    for number, (name, file) in enumerate(files.items(), start=1):
        if file.endswith("|") or file.startswith("|"):
            raise BadFileError(
                f"{scp}, entry {number} ({name}): {file!r} is a command, and commands are not run; write its output to a file, and name that"
            )
        if re.search(r"\.ark:\d+$", file):
            raise BadFileError(f"{scp}, entry {number} ({name}): {file!r} lies in an archive; copy it to a file of its own, and name that")
    if lost := [name for name in files if name not in speakers]:
        raise BadFileError(
            f"{folder / 'utt2spk'} has no speaker for {len(lost)} utterances of wav.scp, such as {', '.join(first_few(lost, 3))}: add them"
        )
    home = root or folder
    utterances = [Utterance(name, speakers[name], session_of(name, speakers[name]), home / file) for name, file in files.items()]
    check_there({utterance.name: utterance.file for utterance in utterances}, scp)
    return utterances


def read_text(path: Path) -> str:
    """Read a list in UTF-8, its backslashes as slashes.

    Raises:
        BadFileError: if it is in another encoding.
        FileNotFoundError: if there is no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no list {path}: correct the path, or put the file there")
    try:
        return path.read_text(encoding="utf-8-sig").replace("\\", "/")
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not UTF-8 (at byte {error.start}): save it as UTF-8") from error


def read_pairs(path: Path) -> dict[str, str]:
    """Read lines of `key value`, where the value may hold spaces; backslashes are read as slashes.

    Raises:
        BadFileError: if a line has no value, or a key occurs twice.
        FileNotFoundError: if there is no such file.
    """
    pairs: dict[str, str] = {}
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        fields = line.strip().split(maxsplit=1)
        if len(fields) == 1 or (fields and fields[0] in pairs):
            problem = "has no second column" if len(fields) == 1 else "names an entry for the second time"
            raise BadFileError(f"{path}, line {number}: {line.strip()!r} {problem}; expected lines of 'key value', correct it")
        if fields:
            pairs[fields[0]] = fields[1]
    if not pairs:
        raise BadFileError(f"{path} is empty: expected lines of 'key value'")
    return pairs


def session_of(name: str, speaker: str) -> str:
    """Tell the session by an utterance's name: `abc` for `id1/abc/00001.wav` and `id1-abc-00001`; a name without one is a session of its own."""
    parts = name.split("/")
    if len(parts) >= 3:
        return parts[-2]
    rest = parts[-1].removeprefix(speaker)
    if rest != parts[-1] and rest[:1] in ("-", "_"):
        return rest[1:].rpartition(rest[0])[0] or name
    return name


def check_there(files: Mapping[str, Path], source: Path) -> None:
    """Check that files exist, listing each folder once.

    Args:
        files: the files by the names that `source` gives to them.
        source: the list, for the message.

    Raises:
        FileNotFoundError: naming the first few that are missing, and how many there are.
    """
    there: dict[str, set[str]] = {}
    missing = []
    for file in files.values():
        folder, name = os.path.split(file)
        if folder not in there:
            there[folder] = _names_in(folder)
        if name not in there[folder]:
            missing.append(str(file))
    if missing:
        advice = "add them, correct the root, or name another list"
        raise FileNotFoundError("\n  ".join([f"{len(missing)} of the {len(files)} files of {source} are missing:", *first_few(missing, 5), advice]))


def _names_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries}
    except PermissionError:
        raise
    except OSError:  # it is no folder, or its name is too long for one
        return set()


def _columns(path: Path, width: int, form: str) -> tuple[list[list[str]], list[int]]:
    """Return the columns of a list of `width` fields a line, and the number of each line that is not empty."""
    lines = read_text(path).split("\n")
    has_commas = "," in next((line for line in lines if line.strip()), "")
    rows: Iterable[list[str]] = csv.reader(lines, skipinitialspace=True) if has_commas else (_fields(line, width) for line in lines)
    cells: list[str] = []  # one flat list: half a million short ones would keep the garbage collector busy
    numbers: list[int] = []
    for number, row in enumerate(rows, start=1):
        if len(row) == width:
            cells += row
            numbers.append(number)
        elif any(row):
            raise BadFileError(f"{path}, line {number}: {' '.join(row)!r} is not like {form}; correct it, or use commas or tabs if names have spaces")
    if not numbers:
        raise BadFileError(f"{path} is empty: expected lines like {form}")
    columns = [[cell.strip() for cell in cells[index::width]] for index in range(width)]
    is_headed = has_commas and len(numbers) > 1 and not any("/" in cell or "." in cell or cell.lower() in _TRUTH for cell in cells[:width])
    return ([column[1:] for column in columns], numbers[1:]) if is_headed else (columns, numbers)


def _fields(line: str, width: int) -> list[str]:
    fields = line.split()
    return fields if len(fields) <= width else line.strip().split("\t")  # between tabs names may hold spaces


def _label_column(path: Path, columns: Sequence[Sequence[str]], numbers: Sequence[int]) -> int:
    """Find the column of labels, the first or the last."""
    fits = [index for index in (0, 2) if {label.lower() for label in set(columns[index])} <= _TRUTH.keys()]
    if len(fits) == 1:
        return fits[0]
    if fits:
        raise BadFileError(
            f"{path}: its first and last column could both be labels; write target and nontarget in the last, and name files otherwise"
        )
    labels = columns[0 if columns[0][0].lower() in _TRUTH else 2]
    row = next(row for row, label in enumerate(labels) if label.lower() not in _TRUTH)
    raise BadFileError(f"{path}, line {numbers[row]}: {' '.join(column[row] for column in columns)!r} is not like {_TRIAL}; correct it")


def _indexed(names: Sequence[str]) -> tuple[tuple[str, ...], Tensor]:
    """Return the names, each once in order of appearance, and the (N,) index of each."""
    index: defaultdict[str, int] = defaultdict()
    index.default_factory = index.__len__  # a name that is new gets the next number
    numbers = np.fromiter(map(index.__getitem__, names), np.int64, len(names))
    return tuple(index), torch.from_numpy(numbers)


def _models(path: Path, names: Sequence[str], models: Mapping[str, tuple[str, ...]] | None) -> tuple[tuple[str, ...], ...]:
    if models is None:
        return tuple((name,) for name in names)
    if lost := [name for name in names if name not in models]:
        few = ", ".join(first_few(lost, 3))
        raise BadFileError(f"{path} names {len(lost)} models that were never enrolled, such as {few}: add them to the enrolment list")
    return tuple(models[name] for name in names)


def _with_both(trials: Trials, source: object) -> Trials:
    if trials.targets in (0, len(trials)):
        kind = "targets" if trials.targets == 0 else "nontargets"
        raise BadFileError(f"{source} has no {kind} among its {len(trials)} trials, and the error rate needs both; add some")
    return trials


def _paired(utterances: Sequence[Utterance], enrol: np.ndarray, test: np.ndarray, name: str) -> Trials:
    """Make trials of utterances given by indices, those that are used being their models and tests."""
    names = tuple(utterance.name for utterance in utterances)
    if len(set(names)) < len(names):
        twice = next(each for each, times in Counter(names).items() if times > 1)
        raise ValueError(f"utterances of {name} have names that occur twice, such as {twice!r}: each needs its own")
    _, speakers = _indexed([utterance.speaker for utterance in utterances])
    first, second = torch.from_numpy(enrol).long(), torch.from_numpy(test).long()
    trials = Trials(name, tuple((each,) for each in names), names, first, second, speakers[first] == speakers[second])
    return _with_both(trials.subset(torch.ones(len(first), dtype=torch.bool)), f"the list {name}")


def _block_ends(keys: Sequence[object]) -> np.ndarray:
    """Return, for each place of a sorted list, where the run of its key ends."""
    starts = [index for index, key in enumerate(keys) if index == 0 or key != keys[index - 1]] + [len(keys)]
    return np.repeat(starts[1:], np.diff(starts))


def _draw(first: np.ndarray, last: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
    """Draw `count` pairs (i, j) with first[i] <= j < last[i] without repetition, (2, count); all of them if there are fewer."""
    ends = np.cumsum(last - first)  # pairs are numbered by i, then j
    total = int(ends[-1]) if len(ends) else 0
    numbers = np.sort(draw.choice(total, min(count, total), replace=False)) if total else np.zeros(0, np.int64)
    left = np.searchsorted(ends, numbers, side="right")
    return np.stack([left, last[left] - (ends[left] - numbers)])
