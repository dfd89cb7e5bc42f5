"""Drawn speakers and their dry voices: glottal pulses through the formants of a moving vocal tract."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from projects.rsknet.rooms import convolve
from shared.seeding import derive_seed

VOWELS = np.array(
    [
        [270, 2290, 3010],
        [390, 1990, 2550],
        [530, 1840, 2480],
        [660, 1720, 2410],
        [730, 1090, 2440],
        [570, 840, 2410],
        [440, 1020, 2240],
        [300, 870, 2240],
        [640, 1190, 2390],
        [490, 1350, 1690],
    ],
    dtype=np.float64,
)
"""(10, 3) mean F1-F3 in Hz of men's vowels in heed, hid, head, had, hod, hawed, hood, who'd, hud, heard (Peterson and Barney 1952, table II)."""

FRICATIVES = 0.18
"""Share of syllables that are noise instead of a vowel."""

_HOP = 0.010  # seconds between two shapes of the vocal tract
_HOPS = 8  # of a frame and of the ringing after it; a formant of 45 Hz bandwidth has fallen by 70 dB
_GLIDE = 0.025  # seconds from a syllable's border to its full formants and level
_HIGHEST = 3900.0  # Hz, F1-F4 stay below half of 8 kHz
_TOP_BANDWIDTH = 250.0  # Hz, of F4 and above


@dataclass(frozen=True)
class Speaker:
    """What stays with a person from one utterance to the next.

    Args:
        female: sex, which sets the means of pitch and vocal tract.
        f0: mean fundamental frequency in Hz.
        tract: factor on all of F1-F3 (a shorter vocal tract has a larger one).
        formants: ten rows (F1, F2, F3) in Hz, one a vowel, all factors included.
        f4: fourth formant in Hz.
        bandwidths: of F1-F3, in Hz.
        tilt: pole of the glottal low-pass filter at 8 kHz.
        breath: standard deviation of the noise beside pulses of height 1.
        syllable: length of an unstressed syllable in seconds.
        jitter: relative standard deviation of one glottal period.
        pitch_range: standard deviation of the slow contour of log f0.
        rhythm: every `rhythm`-th syllable is stressed.
        longer: factor on the length of a stressed syllable.
        louder: factor on its level.
        higher: factor on its f0.
    """

    female: bool
    f0: float
    tract: float
    formants: tuple[tuple[float, float, float], ...]
    f4: float
    bandwidths: tuple[float, float, float]
    tilt: float
    breath: float
    syllable: float
    jitter: float
    pitch_range: float
    rhythm: int
    longer: float
    louder: float
    higher: float


def draw_speaker(seed: int, split: str, index: int) -> Speaker:
    """Draw the speaker that (seed, split, index) names; splits have no speaker in common."""
    rng = np.random.default_rng(derive_seed(seed, "synthvox", split, index))
    female = bool(rng.random() < 0.5)
    tract = (1.16 if female else 1.0) * np.exp(rng.normal(0, 0.05))
    formants = VOWELS * tract * (1 + rng.normal(0, 0.035, VOWELS.shape))
    return Speaker(
        female=female,
        f0=float((205 if female else 120) * np.exp(rng.normal(0, 0.12))),
        tract=float(tract),
        formants=tuple((f1, f2, f3) for f1, f2, f3 in formants.tolist()),
        f4=float(rng.uniform(3100, 3700)),
        bandwidths=tuple((np.array([70, 100, 140]) * np.exp(rng.normal(0, 0.25, 3))).tolist()),
        tilt=float(rng.uniform(0.75, 0.97)),
        breath=float(np.exp(rng.normal(np.log(0.03), 0.5))),
        syllable=float(0.13 * np.exp(rng.normal(0, 0.15))),
        jitter=float(np.exp(rng.normal(np.log(0.012), 0.4))),
        pitch_range=float(np.exp(rng.normal(np.log(0.12), 0.3))),
        rhythm=int(rng.integers(2, 6)),
        longer=float(np.exp(rng.uniform(0.3, 1.1))),
        louder=float(np.exp(rng.uniform(0.2, 0.9))),
        higher=float(np.exp(rng.uniform(-0.25, 0.25))),
    )


@dataclass(frozen=True)
class _Syllables:
    """S syllables: `edges` (S + 1,) in seconds, `stressed` and `hissing` (S,) booleans, `formants` (S, 3) and `hiss` (S,), a share of Nyquist."""

    edges: np.ndarray
    stressed: np.ndarray
    hissing: np.ndarray
    formants: np.ndarray
    hiss: np.ndarray

    def track(self, values: np.ndarray, times: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
        """Values (S,) of the `kept` syllables as a contour at `times`: level inside a syllable, a straight glide across each border."""
        start = self.edges[:-1] + _GLIDE
        knots = np.stack([start, np.maximum(self.edges[1:] - _GLIDE, start)], 1)
        kept = np.ones(len(values), bool) if kept is None else kept
        return np.interp(times, knots[kept].ravel(), np.repeat(values[kept], 2))

    def swell(self, times: np.ndarray) -> np.ndarray:
        """Loudness at `times`: 0.4 at each border, 1 inside a syllable."""
        inner = np.stack([self.edges[:-1], self.edges[:-1] + _GLIDE, self.edges[1:] - _GLIDE], 1).ravel()
        return np.interp(times, inner, np.tile([0.4, 1, 1], len(self.edges) - 1))


def say(speaker: Speaker, seconds: float, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Let a speaker utter random syllables, with nothing between mouth and ear.

    Args:
        speaker: who speaks.
        seconds: length.
        rate: samples per second, 8000 or more; above 8 kHz fixed formants at 4500, 5500, ... Hz fill the band.
        rng: what is said and how.

    Returns:
        (N,) float32 of RMS 0.1, N = seconds * rate.

    Raises:
        ValueError: if the rate is below 8000, or nothing is left of the time.
    """
    samples, hop = round(seconds * rate), round(_HOP * rate)
    if rate < 8000 or samples < 1:
        raise ValueError(f"a voice needs some time and 8000 samples per second or more, got {seconds} s at {rate}")
    syllables = _draw_syllables(speaker, seconds, rng)
    source = _source(speaker, syllables, np.arange(samples) / rate, rate, rng)
    times = np.arange(-(-samples // hop) + 1) * hop / rate
    sound = _resonate(source, _vocal_tract(speaker, syllables, times, rate), hop)
    return (0.1 * sound / np.sqrt(np.mean(sound**2) + 1e-20)).astype(np.float32)


def _draw_syllables(speaker: Speaker, seconds: float, rng: np.random.Generator) -> _Syllables:
    """Draw enough syllables to fill `seconds`: a random vowel each, or noise, with the speaker's stress on every P-th."""
    count = int(seconds / speaker.syllable * 1.5) + 4
    stressed = (np.arange(count) + rng.integers(speaker.rhythm)) % speaker.rhythm == 0
    lengths = speaker.syllable * np.exp(rng.normal(0, 0.1, count)) * np.where(stressed, speaker.longer, 1)
    formants = np.array(speaker.formants)[rng.integers(len(VOWELS), size=count)] * (1 + rng.normal(0, 0.015, (count, 3)))
    hissing = rng.random(count) < FRICATIVES
    hissing[:2] = False  # a vowel at least, whose formants the glides start from
    edges = np.cumsum([0, *lengths]) - rng.random() * lengths[0]
    return _Syllables(edges, stressed, hissing, np.minimum(formants, _HIGHEST), rng.uniform(0.6, 0.9, count))


def _source(speaker: Speaker, syllables: _Syllables, times: np.ndarray, rate: int, rng: np.random.Generator) -> np.ndarray:
    """Glottal pulses with jitter and tilt plus breath where a vowel is spoken, noise where a fricative is; (N,)."""
    knots = np.arange(0, times[-1] + 0.6, 0.3)
    contour = speaker.pitch_range * np.interp(times, knots, rng.normal(0, 1, len(knots)))
    stress = syllables.track(syllables.stressed.astype(float), times)
    steps = speaker.f0 / rate * np.exp(contour + stress * np.log(speaker.higher))  # glottal periods per sample
    phase = np.cumsum(steps)
    periods = int(phase[-1] * 1.2) + 10
    beats = rng.random() + np.cumsum(1 + speaker.jitter * rng.normal(0, 1, periods))
    places = np.interp(beats[beats < phase[-1]], phase, np.arange(len(times)))
    before, share = places.astype(int), places % 1
    pulses = np.bincount(before, 1 - share, len(times) + 1) + np.bincount(before + 1, share, len(times) + 1)
    flow = _tilted(pulses[:-1] - steps, speaker.tilt, rate)  # without its mean, which no microphone hears
    voiced = syllables.track(1.0 - syllables.hissing, times)
    noise = rng.normal(0, 1, len(times))
    level = np.exp(stress * np.log(speaker.louder)) * syllables.swell(times)
    return level * (voiced * (flow + speaker.breath * noise) + 0.1 * (1 - voiced) * noise)


def _tilted(pulses: np.ndarray, tilt: float, rate: int) -> np.ndarray:
    """Pulses (N,) through the one-pole glottal low-pass filter, its impulse response cut where it has decayed by 80 dB or more."""
    decay = tilt ** (8000 / rate)
    return convolve(pulses, decay ** np.arange(int(np.log(1e-4) / np.log(decay)) + 1))


def _vocal_tract(speaker: Speaker, syllables: _Syllables, times: np.ndarray, rate: int) -> np.ndarray:
    """All-pole filters at each of K times: (K, P + 1) denominators of the cascaded two-pole resonators, divided by their gain at 0 Hz."""
    vowels = ~syllables.hissing
    low = np.stack([syllables.track(formant, times, vowels) for formant in syllables.formants.T], 1)
    high = np.array([speaker.f4, *np.arange(4500, 0.95 * rate / 2, 1000)])
    centres = np.concatenate([low, np.broadcast_to(high, (len(times), len(high)))], 1)
    widths = np.broadcast_to([*speaker.bandwidths, *np.full(len(high), _TOP_BANDWIDTH)], centres.shape)
    denominators = np.ones((len(times), 1))
    for centre, width in zip(centres.T, widths.T, strict=True):
        denominators = _product(denominators, _resonator(centre, width, rate))
    current = np.clip(np.searchsorted(syllables.edges, times, side="right") - 1, 0, len(vowels) - 1)
    hissing = syllables.hissing[current]
    hiss = _resonator(syllables.hiss[current] * rate / 2, np.full(len(times), 0.1 * rate), rate)
    denominators[hissing] = 0
    denominators[hissing, :3] = hiss[hissing]
    return denominators


def _resonator(centre: np.ndarray, width: np.ndarray, rate: int) -> np.ndarray:
    """Two-pole resonators of gain 1 at 0 Hz: (K,) centres and bandwidths in Hz -> (K, 3) denominators."""
    radius = np.exp(-np.pi * width / rate)
    bare = np.stack([np.ones_like(radius), -2 * radius * np.cos(2 * np.pi * centre / rate), radius**2], 1)
    return bare / bare.sum(1, keepdims=True)


def _product(polynomials: np.ndarray, quadratics: np.ndarray) -> np.ndarray:
    """Multiply K polynomials (K, P) by K quadratics (K, 3), giving (K, P + 2)."""
    padded = np.pad(polynomials, ((0, 0), (2, 2)))
    return sum(quadratics[:, k : k + 1] * padded[:, 2 - k : padded.shape[1] - k] for k in range(3))


def _resonate(source: np.ndarray, denominators: np.ndarray, hop: int) -> np.ndarray:
    """Filter (N,) by a moving filter: each triangular frame of two hops goes through its own one of K and rings on; the frames are added up."""
    frames, ringing = len(denominators), _HOPS * hop
    padded = np.zeros((frames + 1) * hop)
    padded[hop : hop + len(source)] = source[: frames * hop]
    halves = padded.reshape(-1, hop)
    ramp = np.arange(hop) / hop
    pieces = np.concatenate([halves[:-1] * ramp, halves[1:] * (1 - ramp)], 1).astype(np.float32)
    delays = np.exp(-2j * np.pi / ringing * np.outer(np.arange(denominators.shape[1]), np.arange(ringing // 2 + 1)))
    gains = 1 / (denominators @ delays.view(np.float64)).view(np.complex128).astype(np.complex64)
    rung = np.fft.irfft(np.fft.rfft(pieces, ringing) * gains, ringing).reshape(frames, _HOPS, hop)
    total = np.zeros((frames + _HOPS, hop), np.float32)
    for k in range(_HOPS):
        total[k : k + frames] += rung[:, k]
    return total.ravel()[hop : hop + len(source)]
