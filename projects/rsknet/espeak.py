"""Voices of the program espeak-ng, where it is installed: nearer to speech than drawn voices, though fewer.

espeak_world(Path("world"), speakers=(40, 20))    # VoxCeleb1's layout, as `synthesis.write_world` writes it
"""

from __future__ import annotations

import io
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from projects.rsknet.rooms import STANDARD, Conditions, record
from projects.rsknet.synthesis import write_tree
from shared.seeding import derive_seed

VARIANTS = ("m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "f1", "f2", "f3", "f4", "f5")
"""The program's own changes of a voice, men's and women's."""

_TIMEOUT = 60  # seconds for one sentence
_WHO = ("the old captain", "my neighbour", "a young doctor", "nobody here", "her brother", "the tall woman", "our teacher", "every visitor")
_DOES = ("has forgotten", "would gladly buy", "never found", "is looking for", "once painted", "talks about", "will carry", "cannot repair")
_WHAT = ("the yellow boat", "seven wooden chairs", "a letter from home", "that strange machine", "the garden gate", "fresh bread", "two good horses")
_WHEN = ("before breakfast", "in the long winter", "on a quiet Thursday", "after the concert", "near the harbour", "without a word", "as usual")


@dataclass(frozen=True)
class EspeakSpeaker:
    """A voice of the program: name as `voices` gives it, variant of `VARIANTS`, pitch in 0..99 and speed in words a minute."""

    voice: str
    variant: str
    pitch: int
    speed: int


def available() -> bool:
    """Tell whether espeak-ng, or the older espeak, is installed."""
    return _program() is not None


def voices(language: str = "en") -> list[str]:
    """List the installed voices of a language that need no other data, sorted.

    Raises:
        FileNotFoundError: if the program is not installed.
    """
    table = _run([f"--voices={language}"]).decode("utf-8", "replace")
    files = (line.split()[4] for line in table.splitlines()[1:] if len(line.split()) > 4)
    return sorted({file for file in files if not file.startswith(("mb/", "!v/"))})


def say_with_espeak(text: str, voice: str = "en", variant: str = "m1", pitch: int = 50, speed: int = 160, rate: int = 16000) -> Tensor:
    """Let the program read a text.

    Args:
        text: what to say.
        voice: one of `voices`, or a language such as "en".
        variant: one of `VARIANTS`.
        pitch: 0 to 99.
        speed: words a minute, 80 to 450.
        rate: samples per second to resample to.

    Returns:
        (N,) float32 in [-1, 1].

    Raises:
        FileNotFoundError: if the program is not installed.
        ValueError: if there is no such voice or variant, a number is out of range, or nothing is said.
    """
    import soundfile
    from scipy.signal import resample_poly

    if variant not in VARIANTS:  # which the program would pass over in silence
        raise ValueError(f"no variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    if not 0 <= pitch <= 99 or not 80 <= speed <= 450:
        raise ValueError(f"pitch must be in 0..99 and speed in 80..450 words a minute, got {pitch} and {speed}")
    sound = _run(["-v", f"{voice}+{variant}", "-p", str(pitch), "-s", str(speed), "--stdin", "--stdout"], text)
    if not sound:
        raise ValueError(f"espeak-ng said nothing for {text!r}: give it words")
    samples, given = soundfile.read(io.BytesIO(sound), dtype="float32")
    shared = int(np.gcd(rate, given))
    return torch.from_numpy(resample_poly(samples, rate // shared, given // shared).astype(np.float32)).clamp(-1, 1)


def sentence(rng: np.random.Generator) -> str:
    """Draw one of some three thousand plain sentences."""
    return " ".join(str(rng.choice(part)) for part in (_WHO, _DOES, _WHAT, _WHEN)).capitalize() + "."


def draw_espeak_speakers(count: int, seed: int) -> list[EspeakSpeaker]:
    """Draw `count` speakers; every combination of voice and variant is used once before any is used again, at another pitch and speed.

    Raises:
        FileNotFoundError: if the program is not installed.
    """
    rng = np.random.default_rng(derive_seed(seed, "espeak"))
    pairs = [(voice, variant) for voice in voices() for variant in VARIANTS]
    order = [pairs[index] for _ in range(-(-count // len(pairs))) for index in rng.permutation(len(pairs))]
    return [EspeakSpeaker(voice, variant, int(rng.integers(20, 80)), int(rng.integers(130, 200))) for voice, variant in order[:count]]


def espeak_world(
    root: Path,
    seed: int = 0,
    speakers: tuple[int, int] = (40, 20),
    utterances: int = 6,
    rate: int = 16000,
    trials: int = 1000,
    conditions: Conditions = STANDARD,
) -> Path:
    """Write sentences read by the program's voices in VoxCeleb1's layout, as `synthesis.write_tree` does; arguments are those of `write_world`.

    Raises:
        FileExistsError: if `root` holds anything.
        FileNotFoundError: if the program is not installed.
        ValueError: if there are more than 40 test speakers.
    """
    people = draw_espeak_speakers(sum(speakers), seed)

    def waveforms(first: int, count: int) -> Iterator[Iterable[Tensor]]:
        for index in range(first, first + count):
            yield (_utterance(people[index], seed, index, number, rate, conditions) for number in range(utterances))

    return write_tree(root, waveforms(0, speakers[0]), waveforms(speakers[0], speakers[1]), rate, seed, trials)


def _utterance(speaker: EspeakSpeaker, seed: int, index: int, number: int, rate: int, conditions: Conditions) -> Tensor:
    words, place = (np.random.default_rng(derive_seed(seed, "espeak", index, number, part)) for part in ("words", "place"))
    dry = say_with_espeak(sentence(words), speaker.voice, speaker.variant, speaker.pitch, speaker.speed, rate)
    return torch.from_numpy(record(dry.numpy(), rate, conditions, place))


def _program() -> str | None:
    return shutil.which("espeak-ng") or shutil.which("espeak")


def _run(options: list[str], text: str = "") -> bytes:
    """Run the program, never through a shell, with `text` on its standard input."""
    program = _program()
    if program is None:
        raise FileNotFoundError("espeak-ng is not installed: `apt install espeak-ng` (or brew, dnf), or use drawn voices, which need no program")
    done = subprocess.run([program, *options], input=text.encode(), capture_output=True, timeout=_TIMEOUT, check=False)
    if done.returncode:
        raise ValueError(f"espeak-ng refused {' '.join(options)}: {done.stderr.decode(errors='replace').strip() or 'no reason given'}")
    return done.stdout
