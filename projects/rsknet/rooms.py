"""What lies between a mouth and a recording: a room, a channel and noise, drawn anew for every utterance."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Conditions:
    """How utterances are recorded; nothing here depends on who speaks.

    Args:
        reverberation: share of utterances spoken in a room, in [0, 1].
        t60: shortest and longest reverberation time in seconds.
        snr: smallest and largest signal-to-noise ratio in dB; (inf, inf) leaves the noise out.
        channel: whether a random first-order filter colours the recording.

    Raises:
        ValueError: if a range is empty or a share is outside [0, 1].
    """

    reverberation: float = 0.6
    t60: tuple[float, float] = (0.1, 0.5)
    snr: tuple[float, float] = (5.0, 20.0)
    channel: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.reverberation <= 1:
            raise ValueError(f"reverberation is a share of the utterances, between 0 and 1; got {self.reverberation}")
        if not 0 < self.t60[0] <= self.t60[1]:
            raise ValueError(f"t60 is a range of seconds above 0, the smaller first; got {self.t60}")
        if not self.snr[0] <= self.snr[1] or math.isinf(self.snr[0]) != math.isinf(self.snr[1]):
            raise ValueError(f"snr is a range of dB, the smaller first, or (inf, inf) for no noise; got {self.snr}")


STANDARD = Conditions()
"""As they are built for."""


def convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """First N samples of the linear convolution of (N,) with (R,), by FFT."""
    size = 1 << (len(signal) + len(response) - 2).bit_length()
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[: len(signal)]


def room_response(rate: int, t60: float, rng: np.random.Generator) -> np.ndarray:
    """Draw an impulse response: direct sound at sample 0, then a tail of noise that falls by 60 dB in `t60` seconds.

    The tail holds between a half and the double of the direct sound's energy.

    Args:
        rate: samples per second.
        t60: reverberation time in seconds, above 0.
        rng: the room.

    Returns:
        (R,) float64 of energy 1, R = rate * t60 rounded up.

    Raises:
        ValueError: if `t60` is not positive.
    """
    if t60 <= 0:
        raise ValueError(f"t60 must be above 0 seconds, got {t60}")
    balance = rng.uniform(-3, 3)  # dB, of the tail over the direct sound
    times = np.arange(max(2, math.ceil(rate * t60))) / rate
    tail = rng.normal(0, 1, len(times)) * 10 ** (-3 * times / t60)
    tail[0] = 0
    tail *= np.sqrt(10 ** (balance / 10) / np.sum(tail**2))
    tail[0] = 1
    return tail / np.linalg.norm(tail)


def coloured_noise(samples: int, rng: np.random.Generator) -> np.ndarray:
    """Draw (N,) float64 noise of RMS 1 whose power falls as 1/f^a, a uniform in [0, 2] from white to brown."""
    slope = rng.uniform(0, 2)
    size = 1 << max(samples - 1, 1).bit_length()
    spectrum = np.fft.rfft(rng.normal(0, 1, size))
    bins = np.arange(len(spectrum))
    spectrum *= np.maximum(bins, size / 200) ** (-slope / 2)  # flat below a hundredth of Nyquist
    noise = np.fft.irfft(spectrum, size)[:samples]
    return noise / np.sqrt(np.mean(noise**2))


def record(dry: np.ndarray, rate: int, conditions: Conditions, rng: np.random.Generator) -> np.ndarray:
    """Carry a dry voice through a room and a channel, add noise and set the level.

    Args:
        dry: (N,) samples.
        rate: samples per second.
        conditions: what may happen on the way.
        rng: what does happen.

    Returns:
        (N,) float32 in [-1, 1], RMS 0.1 unless the peaks ask for less.
    """
    chance, where, colour, loud = rng.random(4)
    noise = coloured_noise(len(dry), rng)
    sound = np.asarray(dry, np.float64)
    if chance < conditions.reverberation:
        sound = convolve(sound, room_response(rate, conditions.t60[0] + where * (conditions.t60[1] - conditions.t60[0]), rng))
    if conditions.channel:
        sound = sound + (1.6 * colour - 0.8) * np.concatenate([[0], sound[:-1]])
    if math.isfinite(conditions.snr[0]):
        snr = conditions.snr[0] + loud * (conditions.snr[1] - conditions.snr[0])
        sound = sound + noise * np.sqrt(np.mean(sound**2)) * 10 ** (-snr / 20)
    sound = sound * 0.1 / np.sqrt(np.mean(sound**2) + 1e-20)
    return (sound / max(1.0, np.abs(sound).max())).astype(np.float32)
