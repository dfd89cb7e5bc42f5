"""What a training crop goes through: noise, music, babble or a room, another speed, and masks on its features.

Every random choice comes from a generator that the caller keys by (seed, epoch, index): so a result depends neither on the batch nor on the
number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

Kind = Literal["reverberation", "noise", "music", "babble"]
"""One way to spoil a waveform."""

Additive = Literal["noise", "music", "babble"]
"""The kinds that add a sound."""

SNRS: Mapping[Additive, tuple[float, float]] = {"noise": (0.0, 15.0), "music": (5.0, 15.0), "babble": (13.0, 20.0)}
"""Lowest and highest signal-to-noise ratio in dB; for babble that of each single voice, as in Kaldi's recipe."""

VOICES = (3, 7)
"""Fewest and most voices in a babble."""

SPEEDS = (1.0, 0.9, 1.1)
"""Factors of the speed perturbation; the first leaves a waveform, and therefore its label, as it is."""


class Sounds(Protocol):
    """Where an augmentation takes its sounds from; see `projects.rsknet.sounds`."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of augmentation that there are sounds for."""

    def noise(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of some noise."""

    def music(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of some music."""

    def speech(self, rng: np.random.Generator, samples: int) -> Tensor:
        """Return (samples,) of one voice of a babble."""

    def response(self, rng: np.random.Generator) -> Tensor:
        """Return the (R,) impulse response of some room."""


class Augmentation:
    """With some probability, does one thing to a waveform; each kind is as likely as the others.

    Args:
        sounds: where noise, music, voices and rooms come from.
        probability: chance that a waveform is changed at all, in [0, 1].
        kinds: which kinds; None for all that `sounds` has.
        snrs: lowest and highest signal-to-noise ratio in dB of the kinds for which `SNRS` is not right.

    Raises:
        ValueError: if one of these is out of range, or `sounds` has nothing for one of the kinds.
    """

    def __init__(
        self,
        sounds: Sounds,
        probability: float = 0.6,
        kinds: Sequence[Kind] | None = None,
        snrs: Mapping[Additive, tuple[float, float]] | None = None,
    ) -> None:
        self.sounds, self.probability = sounds, probability
        self.kinds: tuple[Kind, ...] = sounds.kinds if kinds is None else tuple(kinds)
        self.snrs = {**SNRS, **(snrs or {})}
        _check(self, sounds.kinds)

    def __call__(self, waveform: Tensor, rng: np.random.Generator) -> Tensor:
        """Change (N,) float32 speech into as many samples, of which some may lie outside [-1, 1]; `rng` decides everything."""
        if rng.random() >= self.probability:
            return waveform
        kind = self.kinds[rng.integers(len(self.kinds))]
        if kind == "reverberation":
            return reverberate(waveform, self.sounds.response(rng))
        if kind == "babble":
            voices = [self.sounds.speech(rng, len(waveform)) for _ in range(rng.integers(VOICES[0], VOICES[1] + 1))]
            return babble(waveform, voices, rng.uniform(*self.snrs["babble"], size=len(voices)).tolist())
        sound = self.sounds.noise if kind == "noise" else self.sounds.music
        return mix(waveform, sound(rng, len(waveform)), rng.uniform(*self.snrs[kind]))


def mix(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Add a noise at a signal-to-noise ratio, by the mean powers of both over the whole crop.

    Args:
        speech: (N,) waveform.
        noise: (N,) waveform.
        snr_db: ratio of the speech's power to that of the noise as it is added, in dB.

    Returns:
        (N,) the sum; `speech` itself where one of the two is silent, since no gain reaches the ratio then.
    """
    return babble(speech, [noise], [snr_db])


def babble(speech: Tensor, voices: Sequence[Tensor], snrs_db: Sequence[float]) -> Tensor:
    """Add several voices, each at its own signal-to-noise ratio; arguments are those of `mix`, a list of each."""
    power = float(speech.square().mean())
    mixed = speech
    for voice, snr_db in zip(voices, snrs_db, strict=True):
        other = float(voice.square().mean())
        if power > 0 and other > 0:
            mixed = mixed + math.sqrt(power / other / 10 ** (snr_db / 10)) * voice
    return mixed


def reverberate(speech: Tensor, response: Tensor) -> Tensor:
    """Put speech into a room.

    Args:
        speech: (N,) waveform.
        response: (R,) impulse response; its largest magnitude is taken for the direct sound.

    Returns:
        (N,) the convolution from the direct sound on, so that nothing is delayed, at the energy of `speech`.
    """
    from scipy.fft import next_fast_len

    longest, whole = max(len(speech), len(response)), len(speech) + len(response) - 1
    pair = speech.new_zeros(2, longest)
    pair[0, : len(speech)], pair[1, : len(response)] = speech, response
    size = next_fast_len(whole, real=True)
    convolved = torch.fft.irfft(torch.fft.rfft(pair, size).prod(0), size)
    direct = int(response.abs().argmax())
    heard = convolved[direct : direct + len(speech)]
    energy = float(heard.square().sum())
    return heard * math.sqrt(float(speech.square().sum()) / energy) if energy > 0 else speech


def source_samples(samples: int, factor: float) -> int:
    """Return how many samples `change_speed` needs to give at least `samples`: samples x factor, rounded up."""
    return math.ceil(samples * _fraction(factor))


def change_speed(waveform: Tensor, factor: float) -> Tensor:
    """Play a waveform faster or slower, by resampling: pitch and formants move along, so the speaker becomes another one.

    Args:
        waveform: (N,) samples.
        factor: above 1 is faster and higher, below slower and lower; taken as a fraction with a denominator of at most 100.

    Returns:
        (ceil(N / factor),) samples.
    """
    from scipy.signal import resample_poly

    ratio = _fraction(factor)
    if ratio == 1:
        return waveform
    return torch.from_numpy(resample_poly(waveform.numpy(), ratio.denominator, ratio.numerator))


def speed_label(label: int, speed_index: int, speakers: int) -> int:
    """Return the class of a speaker at a speed: `label` in [0, speakers), plus `speakers` for each step of `speed_index` in `SPEEDS`.

    Raises:
        ValueError: if the label is not below the number of speakers, or one of the numbers is negative.
    """
    if not 0 <= label < speakers or speed_index < 0:
        raise ValueError(f"a label lies in [0, speakers) and a speed's index is not negative, got {label} of {speakers} at speed {speed_index}")
    return label + speakers * speed_index


def spec_augment(
    features: Tensor,
    rng: torch.Generator,
    time_masks: int = 1,
    time_width: int = 10,
    frequency_masks: int = 1,
    frequency_width: int = 8,
) -> Tensor:
    """Blank random bands of time and of frequency, other ones for each item (Park et al. 2019, without the warping).

    Args:
        features: (B, F, T) log-mel features after mean subtraction, so that 0 is the mean.
        rng: generator on the CPU.
        time_masks: bands of frames for each item.
        time_width: most frames in a band; its width is uniform from 0 on.
        frequency_masks: bands of mel channels for each item.
        frequency_width: most channels in a band.

    Returns:
        (B, F, T) features, 0 where blanked, on their device.
    """
    items, channels, frames = features.shape
    rows = _kept(items, channels, frequency_masks, frequency_width, rng).to(features)  # (B, F)
    columns = _kept(items, frames, time_masks, time_width, rng).to(features)  # (B, T)
    return features * (rows[:, :, None] * columns[:, None, :])


def _kept(items: int, size: int, masks: int, width: int, rng: torch.Generator) -> Tensor:
    """Draw which of `size` places no mask covers, (items, size) of booleans."""
    widths = torch.randint(min(width, size) + 1, (items, masks, 1), generator=rng)
    starts = (torch.rand(items, masks, 1, generator=rng) * (size - widths + 1)).long()
    places = torch.arange(size)
    return ((places < starts) | (places >= starts + widths)).all(1)


def _fraction(factor: float) -> Fraction:
    if not 0.1 <= factor <= 10:
        raise ValueError(f"a factor of speed lies in [0.1, 10], 1 being unchanged, got {factor}")
    return Fraction(factor).limit_denominator(100)


def _check(augmentation: Augmentation, available: Sequence[Kind]) -> None:
    kinds = augmentation.kinds
    if not 0 <= augmentation.probability <= 1:
        raise ValueError(f"probability must lie in [0, 1], got {augmentation.probability}")
    if unknown := [kind for kind in kinds if kind not in get_args(Kind)]:
        raise ValueError(f"kinds must be among {', '.join(get_args(Kind))}, got {', '.join(map(str, unknown))}")
    if missing := [kind for kind in kinds if kind not in available]:
        mend = "reverberation needs the RIRS folder, the other kinds MUSAN; give it, or leave the kind out"
        raise ValueError(f"no sounds for {', '.join(missing)}: {mend}")
    if not kinds and augmentation.probability > 0:
        raise ValueError("no kind of augmentation is left: name one in kinds, or set probability to 0")
    for kind, (low, high) in augmentation.snrs.items():
        if kind not in get_args(Additive) or not low <= high:
            raise ValueError(f"snrs holds a lowest and a highest ratio in dB for {', '.join(get_args(Additive))}, got {kind}: {low}, {high}")
