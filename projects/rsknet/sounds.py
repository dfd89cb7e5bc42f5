"""Where augmentation takes noise, music, voices and rooms from: MUSAN and RIRS folders, or drawn ones without a download."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from projects.rsknet import audio, sound_layouts
from projects.rsknet.augmentation import Kind
from projects.rsknet.synthesis import coloured_noise, draw_speaker, room_response, say
from shared.seeding import derive_seed

ADDITIVE: tuple[Kind, ...] = ("noise", "music", "babble")
"""The kinds that MUSAN has sounds for."""

ROOMS = ("smallroom", "mediumroom")
"""Folders of simulated rooms that responses are taken from."""

_LONGEST_RESPONSE = 2.0  # seconds; what comes later is below hearing in small and medium rooms
_SCALE = np.array([0, 2, 4, 7, 9, 12, 14, 16, 19, 21])  # semitones of two pentatonic octaves: any of them sound well together


class SoundFiles:
    """Random parts of the files of MUSAN, and simulated responses of small and medium rooms; the file is drawn first, then the place in it.

    Args:
        musan: folder of MUSAN; None if there is none.
        rirs: folder of RIRS_NOISES; None if there is none.
        rate: samples per second that everything is brought to; files of another rate take some 3 ms more each, so better convert them once.

    Raises:
        FileNotFoundError: if a folder is missing or has not the layout.
        ValueError: if both are None.
    """

    def __init__(self, musan: Path | None, rirs: Path | None, rate: int) -> None:
        if musan is None and rirs is None:
            raise ValueError("sounds from files need the folder of MUSAN, of RIRS_NOISES, or of both")
        self.rate = rate
        self.files = sound_layouts.musan(musan) if musan is not None else {}
        self.responses = sound_layouts.rirs(rirs, ROOMS) if rirs is not None else []

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of augmentation that the folders have sounds for."""
        rooms: tuple[Kind, ...] = ("reverberation",) if self.responses else ()
        return rooms + (ADDITIVE if self.files else ())

    def noise(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of a file of noise; a short file is repeated."""
        return self._part("noise", rng, samples)

    def music(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of a file of music; a short file is repeated."""
        return self._part("music", rng, samples)

    def speech(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of a file of speech; a short file is repeated."""
        return self._part("speech", rng, samples)

    def response(self, rng: np.random.Generator) -> Tensor:
        """Return one (R,) impulse response, at most 2 s of it."""
        path = self.responses[rng.integers(len(self.responses))]
        there = audio.info(path).samples_at(self.rate)
        return audio.read(path, self.rate, 0, min(there, round(_LONGEST_RESPONSE * self.rate)), channel=0)

    def _part(self, what: Literal["noise", "music", "speech"], rng: np.random.Generator, samples: int) -> Tensor:
        files = self.files[what]
        path = files[rng.integers(len(files))]
        there = audio.info(path).samples_at(self.rate)
        start = int(rng.integers(max(there - samples, 0) + 1))
        return repeated(audio.read(path, self.rate, start, min(there, samples)), samples)


class DrawnSounds:
    """Coloured noise, melodies, drawn voices and drawn rooms.

    Melodies and voices come from pools, since they take longer to draw than to add; each is drawn when it is first asked for.

    Args:
        seed: seed of the pools; the voices belong to no split of `SynthVox`.
        rate: samples per second.
        pool: number of melodies, and of voices.
        seconds: length of each.
        t60: shortest and longest reverberation time in seconds.
    """

    kinds: tuple[Kind, ...] = ("reverberation", *ADDITIVE)

    def __init__(self, seed: int = 0, rate: int = 16000, pool: int = 24, seconds: float = 4.0, t60: tuple[float, float] = (0.1, 0.5)) -> None:
        self.seed, self.rate, self.pool, self.seconds, self.t60 = seed, rate, pool, seconds, t60
        self._drawn: dict[tuple[str, int], Tensor] = {}

    def noise(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of noise between white and brown."""
        return torch.from_numpy(coloured_noise(samples, rng)).float()

    def music(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of one of the melodies."""
        return self._part("music", lambda index, own: melody(self.seconds, self.rate, own), rng, samples)

    def speech(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of one of the voices."""
        return self._part("speech", lambda index, own: say(draw_speaker(self.seed, "babble", index), self.seconds, self.rate, own), rng, samples)

    def response(self, rng: np.random.Generator) -> Tensor:
        """Return the (R,) impulse response of a new room."""
        return torch.from_numpy(room_response(self.rate, rng.uniform(*self.t60), rng)).float()

    def _part(self, what: str, draw: Callable[[int, np.random.Generator], np.ndarray], rng: np.random.Generator, samples: int) -> Tensor:
        index = int(rng.integers(self.pool))
        if (what, index) not in self._drawn:
            own = np.random.default_rng(derive_seed(self.seed, "augmentation", what, index))
            self._drawn[what, index] = torch.from_numpy(draw(index, own)).float()
        sound = self._drawn[what, index]
        start = int(rng.integers(max(len(sound) - samples, 0) + 1))
        return repeated(sound[start:], samples)


def repeated(sound: Tensor, samples: int) -> Tensor:
    """Return the first `samples` of a (N,) sound that is played again and again."""
    return sound[:samples] if len(sound) >= samples else sound.repeat(-(-samples // len(sound)))[:samples]


def melody(seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Draw plucked chords of one to three notes in a steady beat.

    Args:
        seconds: length.
        rate: samples per second.
        rng: key, beat, timbre and notes.

    Returns:
        (N,) float32 of RMS 0.1, N = seconds * rate.
    """
    root, beat = 110 * 2 ** rng.uniform(0, 1), rng.uniform(0.15, 0.5)  # Hz, seconds
    decay, brightness = rng.uniform(2, 8), rng.uniform(0.5, 2)  # 1/s; the k-th harmonic has amplitude k^-brightness
    times = np.arange(round(1.5 * rate)) / rate
    sound = np.zeros(round(seconds * rate) + len(times))
    for onset in (np.arange(0, seconds, beat) * rate).astype(int):
        for step in rng.choice(_SCALE, rng.integers(1, 4), replace=False):
            pitch = root * 2 ** (step / 12)
            harmonics = np.arange(min(8, int(rate / 2 / pitch)), 0, -1)
            turns = np.exp(2j * np.pi * pitch * times)  # its k-th power is the k-th harmonic
            sound[onset : onset + len(times)] += np.exp(-decay * times) * np.polyval([*harmonics**-brightness, 0], turns).imag
    sound = sound[: round(seconds * rate)]
    return (0.1 * sound / np.sqrt(np.mean(sound**2))).astype(np.float32)
