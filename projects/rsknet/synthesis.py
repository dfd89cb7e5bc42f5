"""`SynthVox`: a world of drawn speakers, every sample a function of (seed, split, speaker, utterance).

waveforms = synthvox(0, "train", speakers=160, utterances=14)    # (160, 14, 16000), two seconds each at 8 kHz
write_world(Path("world"), seed=0)                               # the same voices as files in VoxCeleb1's layout
"""

from __future__ import annotations

import string
from collections.abc import Iterable, Iterator
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from projects.rsknet.audio import write
from projects.rsknet.lists import Utterance, drawn_pairs, write_trials
from projects.rsknet.rooms import STANDARD, Conditions, coloured_noise, record, room_response
from projects.rsknet.voices import Speaker, draw_speaker, say
from shared.runs import atomic, write_text
from shared.seeding import derive_seed

__all__ = [
    "STANDARD",
    "Conditions",
    "Speaker",
    "coloured_noise",
    "draw_speaker",
    "record",
    "room_response",
    "say",
    "synthvox",
    "utterance",
    "write_tree",
    "write_world",
]

_TEST_IDS = range(10270, 10310)  # VoxCeleb1's test speakers, which readers of the layout know by these numbers


def utterance(seed: int, split: str, speaker: int, index: int, seconds: float = 2.0, rate: int = 8000, conditions: Conditions = STANDARD) -> Tensor:
    """Draw one utterance: what is said does not depend on the conditions, and these do not depend on the speaker's voice.

    Args:
        seed: of the world.
        split: name of the part of the world, such as "train"; splits have no speaker in common.
        speaker: number of the speaker.
        index: number of the speaker's utterance.
        seconds: length.
        rate: samples per second.
        conditions: how it is recorded.

    Returns:
        (N,) float32 in [-1, 1], N = seconds * rate rounded.
    """
    voice, place = (np.random.default_rng(derive_seed(seed, "synthvox", split, speaker, index, part)) for part in ("voice", "place"))
    return torch.from_numpy(record(say(draw_speaker(seed, split, speaker), seconds, rate, voice), rate, conditions, place))


def synthvox(
    seed: int, split: str, speakers: int, utterances: int, seconds: float = 2.0, rate: int = 8000, conditions: Conditions = STANDARD
) -> Tensor:
    """Draw `utterances` of each of `speakers`: (speakers, utterances, N) float32; the arguments are those of `utterance`."""
    rows = [torch.stack([utterance(seed, split, s, u, seconds, rate, conditions) for u in range(utterances)]) for s in range(speakers)]
    return torch.stack(rows)


def write_world(
    root: Path,
    seed: int = 0,
    speakers: tuple[int, int] = (20, 10),
    utterances: int = 6,
    seconds: float = 2.0,
    rate: int = 16000,
    trials: int = 1000,
    conditions: Conditions = STANDARD,
) -> Path:
    """Write drawn speakers as `write_tree` does; the test speakers are those of the split "test", the others those of "train".

    Args:
        root: folder to write, absent or empty.
        seed: of the world.
        speakers: numbers of training and of test speakers, the latter 2 to 40.
        utterances: of each speaker; at least 4 make two videos.
        seconds: length of each.
        rate: samples per second; VoxCeleb has 16000.
        trials: number of trials, half of them targets, fewer where there are not so many pairs.
        conditions: how the utterances are recorded.

    Returns:
        The folder `root / "voxceleb1"`.

    Raises:
        FileExistsError: if `root` holds anything.
        ValueError: if there are more than 40 test speakers, as VoxCeleb1 has, or too few to make trials.
    """

    def waveforms(split: str, people: int) -> Iterator[Iterable[Tensor]]:
        for speaker in range(people):
            yield (utterance(seed, split, speaker, index, seconds, rate, conditions) for index in range(utterances))

    return write_tree(root, waveforms("train", speakers[0]), waveforms("test", speakers[1]), rate, seed, trials)


def write_tree(root: Path, dev: Iterable[Iterable[Tensor]], test: Iterable[Iterable[Tensor]], rate: int, seed: int = 0, trials: int = 1000) -> Path:
    """Write waveforms in the layout of VoxCeleb1, all of it or, on failure, nothing.

    `voxceleb1/{dev,test}/wav/id10001/<video>/00001.wav`, two or three files a video, `voxceleb1/train_list.txt` (`speaker file`, of dev)
    and `voxceleb1/veri_test2.txt` (`label file file`, of test; targets are of two videos).

    Args:
        root: folder to write, absent or empty.
        dev: for each training speaker, waveforms (N,) in [-1, 1].
        test: the same of the test speakers.
        rate: samples per second.
        seed: of the videos' names and the trials.
        trials: number of trials.

    Returns:
        The folder `root / "voxceleb1"`.

    Raises:
        FileExistsError: if `root` holds anything.
        ValueError: if there are more than 40 test speakers, as VoxCeleb1 has, or too few to make trials.
    """
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise FileExistsError(f"{root} is not an empty folder, and what it holds is not replaced: name another folder, or empty it")
    rng = np.random.default_rng(derive_seed(seed, "videos"))
    with atomic(root) as folder:
        tree = folder / "voxceleb1"
        training = _write_speakers(tree / "dev/wav", chain(range(10001, _TEST_IDS.start), count(_TEST_IDS.stop)), dev, rate, rng)
        testing = _write_speakers(tree / "test/wav", iter(_TEST_IDS), test, rate, rng)
        write_text(tree / "train_list.txt", "".join(f"{row.speaker} {row.name}\n" for row in training))
        write_trials(tree / "veri_test2.txt", drawn_pairs(testing, trials, seed, "veri_test2"))
    return root / "voxceleb1"


def _write_speakers(
    folder: Path, numbers: Iterator[int], speakers: Iterable[Iterable[Tensor]], rate: int, rng: np.random.Generator
) -> list[Utterance]:
    """Write each speaker's waveforms under the next of `numbers`, and list them."""
    rows = []
    for waveforms in speakers:
        number = next(numbers, None)
        if number is None:
            raise ValueError(f"VoxCeleb1 has {len(_TEST_IDS)} numbers for test speakers: write no more of them")
        speaker, left = f"id{number}", 0
        for waveform in waveforms:
            if left == 0:
                video, size = _video(rng), int(rng.integers(2, 4))
                left = size
            name = f"{speaker}/{video}/{size - left + 1:05d}.wav"
            left -= 1
            write(folder / name, waveform, rate)
            rows.append(Utterance(name, speaker, video, folder / name))
    return rows


def _video(rng: np.random.Generator) -> str:
    """Draw a name of eleven letters and digits, as YouTube gives to videos."""
    return "".join(rng.choice(list(string.ascii_letters + string.digits), 11))
