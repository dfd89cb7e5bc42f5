"""What would flatter a result: speakers that are trained and tested on, and trials that a microphone or a copy decides."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from projects.rsknet.lists import Trials, Utterance, read_text, session_of
from shared.data.files import BadFileError, first_few
from shared.seeding import derive_seed

OVERLAP = "voxceleb1_sitw_overlap.txt"
"""List of the 60 speakers of VoxCeleb1 who occur in SITW, by number or by name."""

VOX2_META = "vox2_meta.csv"
"""VoxCeleb2's list of its speakers, of whom 118 are for testing."""

_VOX2_KNOWN = frozenset({"id00017", "id00061", "id00081", "id00154", "id00419", "id00562", "id00812", "id00817"})
"""The first of these 118: where one of them is to be learnt from, the others are, too."""


def check_leaks(train: Sequence[Utterance], trials: Sequence[Trials], speakers: Mapping[str, str], overlap: Collection[str] = ()) -> list[str]:
    """Refuse training speakers who are tested on, and remark on trials that are easier than they should be.

    Args:
        train: utterances to train on.
        trials: lists to test on.
        speakers: who speaks in the files of the lists, where that is known.
        overlap: speakers of VoxCeleb1 who occur in SITW, see `read_overlap`; empty if that is not known.

    Returns:
        Remarks, one a line, for the user to read.

    Raises:
        ValueError: if a training speaker occurs in a list.
    """
    trained = {utterance.speaker for utterance in train}
    remarks = []
    for each in trials:
        is_sitw = each.name.startswith("SITW")
        _check_speakers(trained, each, set(overlap) if is_sitw else {speakers[name] for name in each.files if name in speakers})
        remarks += _remarks(each, speakers)
        if is_sitw and not overlap and any(re.fullmatch(r"id1\d{4}", speaker) for speaker in trained):
            remarks.append(remark_on_overlap(each))
    return remarks


def remark_on_overlap(trials: Trials) -> str:
    """Say of a list of SITW that a network which knows VoxCeleb1 may know some of its speakers."""
    return f"{trials.name}: 60 speakers of VoxCeleb1 occur in SITW, and some may be trained on; put {OVERLAP} into the root to drop them"


def read_overlap(root: Path) -> frozenset[str]:
    """Read the speakers of VoxCeleb1 who occur in SITW, from `voxceleb1_sitw_overlap.txt` in the root or one folder below; empty if it is not there.

    The list may hold numbers (`id10001`) or names, which `vox1_meta.csv` in the same places turns into numbers.

    Raises:
        BadFileError: if names cannot be turned into numbers.
    """
    path = _find(root, OVERLAP)
    if path is None:
        return frozenset()
    entries = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    names = {entry for entry in entries if not re.fullmatch(r"id\d{5}", entry)}
    if not names:
        return frozenset(entries)
    meta = _find(root, "vox1_meta.csv")
    rows = [re.split(r"[\t,]", line) for line in read_text(meta).splitlines()] if meta else []
    numbers = {row[1].strip(): row[0].strip() for row in rows if len(row) > 1}
    if lost := sorted(names - numbers.keys()):
        few = ", ".join(first_few(lost, 3))
        raise BadFileError(f"{path} holds {len(lost)} names without a number, such as {few}: put VoxCeleb's vox1_meta.csv beside it")
    return frozenset(numbers.get(entry, entry) for entry in entries)


def read_voxceleb2_tested(path: Path) -> frozenset[str]:
    """Read who is for testing from `vox2_meta.csv`, `id00017 ,n000017 ,m ,test` in a line.

    Raises:
        BadFileError: if it names nobody.
    """
    rows = [[field.strip() for field in line.split(",")] for line in read_text(path).splitlines()]
    tested = frozenset(field for row in rows if row[-1] == "test" for field in row if re.fullmatch(r"id\d{5}", field))
    if not tested:
        raise BadFileError(f"{path} names no test speakers in lines like 'id00017 ,n000017 ,m ,test': take VoxCeleb2's anew")
    return tested


def check_voxceleb2(train: Sequence[Utterance], root: Path) -> None:
    """Refuse to learn from VoxCeleb2's test speakers, who cannot be told where its two parts lie in one folder.

    Raises:
        FileNotFoundError: if one of them is among those to train on.
    """
    if merged := next((utterance for utterance in train if utterance.speaker in _VOX2_KNOWN), None):
        raise FileNotFoundError(
            f"{merged.file} is of VoxCeleb2's test part, which lies among the folders to train on, and no {VOX2_META} in {root} says who else is: "
            f"put VoxCeleb2's {VOX2_META} there, or move the test speakers into a folder named test"
        )


def without_speakers(train: Sequence[Utterance], speakers: Collection[str]) -> list[Utterance]:
    """Return the utterances of all other speakers."""
    return [utterance for utterance in train if utterance.speaker not in speakers]


def hold_out(train: Sequence[Utterance], speakers: int, seed: int) -> tuple[list[Utterance], list[Utterance]]:
    """Split off speakers, to validate on.

    Args:
        train: utterances; their order does not decide who is held out.
        speakers: how many to hold out, at least 1; at least one must be left.
        seed: of the draw.

    Returns:
        Those to train on, and those held out, in their order.

    Raises:
        ValueError: if there are too few speakers.
    """
    everyone = sorted({utterance.speaker for utterance in train})
    if not 0 < speakers < len(everyone):
        raise ValueError(f"cannot hold out {speakers} of {len(everyone)} speakers: hold out at least one, and leave at least one to train on")
    drawn = np.random.default_rng(derive_seed(seed, "held out speakers")).choice(len(everyone), speakers, replace=False)
    held = {everyone[index] for index in drawn}
    return without_speakers(train, held), [utterance for utterance in train if utterance.speaker in held]


def _check_speakers(trained: set[str], trials: Trials, tested: set[str]) -> None:
    leaked = sorted(trained & tested)
    if not leaked:
        return
    if trials.name.startswith("SITW"):
        mend = f"drop those of {OVERLAP} from training"
    elif all(re.fullmatch(r"id1\d{4}", speaker) for speaker in leaked):
        mend = "train on voxceleb2 alone, or leave this list out (Vox1-E and Vox1-H draw on all of VoxCeleb1, Vox1-O on its test part)"
    else:
        mend = "take them out of training, or leave this list out"
    few = ", ".join(first_few(leaked, 3))
    raise ValueError(f"{len(leaked)} training speakers occur in the list {trials.name}, such as {few}, and its error rate would be too good: {mend}")


def _remarks(trials: Trials, speakers: Mapping[str, str]) -> list[str]:
    """Count trials of a file with itself, and target trials within one session, for models of one file."""
    firsts, tests = [model[0] if len(model) == 1 else "" for model in trials.models], trials.tests
    sessions = {name: (speakers[name], session_of(name, speakers[name])) for name in trials.files if name in speakers}
    is_same_file = _equal(firsts, tests, trials)
    is_same_session = _equal([sessions.get(name, 0) for name in firsts], [sessions.get(name, 1) for name in tests], trials)
    is_same_session &= trials.is_target.numpy() & ~is_same_file
    counts = (
        (int(is_same_file.sum()), "trials compare a file with itself; take them out"),
        (int(is_same_session.sum()), f"of {trials.targets} target trials are within one session, and the microphone gives them away"),
    )
    return [f"{trials.name}: {count} {what}" for count, what in counts if count]


def _equal(left: Sequence[object], right: Sequence[object], trials: Trials) -> np.ndarray:
    """Tell, for each trial, whether what is known of its model equals what is known of its test, (N,) bool."""
    number: dict[object, int] = {}
    models, tests = (np.array([number.setdefault(each, len(number)) for each in side]) for side in (left, right))
    return models[trials.enrol.numpy()] == tests[trials.test.numpy()]


def _find(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, *sorted(root.glob(f"*/{name}"))) if path.is_file()), None)
