"""From waveforms to what the networks see: log-mel features or MFCC by Kaldi's definition, mean subtraction, and an energy rule for speech.

Kaldi's definition (`compute-fbank-feats`, `compute-mfcc-feats`) fixes every detail that the paper leaves open, so that features agree with those of
the public recipes. Frames lie wholly inside the recording ("snip edges"); each has its mean subtracted, is pre-emphasised, windowed and transformed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, overload

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Window = Literal["hamming", "povey", "hanning"]
"""Window of a frame; "povey" is Kaldi's own, the Hann window to the power 0.85."""

_SCALE = 32768.0  # Kaldi's samples are 16-bit integers
_FLOOR = float(np.finfo(np.float32).eps)  # of powers and energies, before the logarithm
_CHUNK = 512  # frames that are worked on at a time on a CPU: they stay in its cache
_CHUNK_GPU = 65536
_GROUPS = 4  # of neighbouring mel filters, each multiplied only with the bins that it covers
_LIFTER = 22


class Fbank(nn.Module):
    """Log-mel features, or MFCC, as Kaldi computes them from frames that lie wholly inside the recording.

    The result is float32 whatever the precision around it. Dither is not added here, but to waveforms, by who trains.

    Args:
        sample_rate: of the waveforms, in Hz.
        bins: number of mel filters, triangles in mel(f) = 1127 ln(1 + f / 700).
        frame_length: of a frame, in milliseconds.
        frame_shift: from frame to frame, in milliseconds.
        window: "hamming", "povey" or "hanning".
        preemphasis: c of x[n] - c x[n-1].
        low: lower edge of the first filter, in Hz.
        high: upper edge of the last filter, in Hz; zero or less counts from half the sample rate.
        coefficients: None gives log-mel features; a number gives so many MFCC, with liftering, the zeroth being the sum of the log-mel ones.

    Raises:
        ValueError: if an argument is out of range, or a filter would cover no frequency of the transform.
    """

    window: Tensor
    mel: Tensor
    transform: Tensor
    cosine: Tensor | None

    def __init__(
        self,
        sample_rate: int = 16000,
        bins: int = 80,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        window: Window = "hamming",
        preemphasis: float = 0.97,
        low: float = 20.0,
        high: float = 0.0,
        coefficients: int | None = None,
    ) -> None:
        super().__init__()
        self.sample_rate, self.preemphasis = sample_rate, preemphasis
        self.length, self.shift = int(sample_rate * frame_length / 1000), int(sample_rate * frame_shift / 1000)
        if self.length < 2 or self.shift < 1:
            raise ValueError(f"frames of {frame_length} ms every {frame_shift} ms hold too few samples at {sample_rate} Hz: make them longer")
        if coefficients is not None and not 1 <= coefficients <= bins:
            raise ValueError(f"coefficients must be from 1 to the number of mel filters, {bins}, got {coefficients}")
        self.size = 1 << (self.length - 1).bit_length()  # of the Fourier transform
        self.features = coefficients or bins
        mel = _mel_filters(sample_rate, self.size, bins, low, high)
        used = np.flatnonzero(mel.any(axis=0))
        window_values = _window(window, self.length) * _SCALE
        self._spans = []  # of real and imaginary parts, which alternate, for each group of filters
        for number, rows in enumerate(np.array_split(mel, min(_GROUPS, bins))):
            covered = np.flatnonzero(rows.any(axis=0))
            first, last = int(covered[0]), int(covered[-1]) + 1
            self._spans.append((2 * first, 2 * last))
            self._keep(f"mel{number}", rows[:, first:last].repeat(2, axis=1))
        self._keep("window", window_values)
        self._keep("mel", mel[:, used])
        self._keep("transform", _transform(window_values, preemphasis, self.size, used)[:, None])
        self._keep("cosine", None if coefficients is None else _liftered_cosines(coefficients, bins))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Map waveforms (B, N) or (N,) in [-1, 1] to features (B, F, T) or (F, T), T being `frames(N)`.

        Raises:
            ValueError: if the waveforms are shorter than one frame.
        """
        waveforms = waveforms.float()
        if torch.compiler.is_exporting():
            return self._by_matrices(waveforms)
        if not torch.is_autocast_enabled(waveforms.device.type):
            return self._in_chunks(waveforms, self._features)
        with torch.autocast(waveforms.device.type, enabled=False):
            return self._in_chunks(waveforms, self._features)

    @overload
    def frames(self, samples: int) -> int: ...
    @overload
    def frames(self, samples: Tensor) -> Tensor: ...
    def frames(self, samples: int | Tensor) -> int | Tensor:
        """Return how many frames lie in so many samples, a number or a tensor of them."""
        if isinstance(samples, Tensor):
            return ((samples - self.length) // self.shift + 1).clamp_min(0)
        return max((samples - self.length) // self.shift + 1, 0)

    def log_energy(self, waveforms: Tensor) -> Tensor:
        """Return the log-energies (B, T) or (T,) of the frames of waveforms (B, N) or (N,), for `energy_vad`."""
        return self._in_chunks(waveforms.float(), lambda frames: log_energy(frames)[..., None, :]).squeeze(-2)

    def _in_chunks(self, waveforms: Tensor, work: Callable[[Tensor], Tensor]) -> Tensor:
        """Put frames (b, t, length) through `work`, which gives (b, F, t), some at a time so that memory does not grow with the recording."""
        if waveforms.shape[-1] < self.length:
            milliseconds = 1000 * self.length / self.sample_rate
            raise ValueError(
                f"a waveform of {waveforms.shape[-1]} samples is shorter than one frame: at least {self.length} samples "
                f"({milliseconds:g} ms at {self.sample_rate} Hz) are needed"
            )
        frames = waveforms.reshape(-1, waveforms.shape[-1]).unfold(-1, self.length, self.shift)
        limit = _CHUNK if waveforms.device.type == "cpu" else _CHUNK_GPU
        count = frames.shape[1]
        rows = [torch.cat([work(part) for part in some.split(limit, dim=1)], dim=2) for some in frames.split(max(1, limit // count))]
        return torch.cat(rows).reshape(*waveforms.shape[:-1], -1, count)

    def _features(self, frames: Tensor) -> Tensor:
        centred = frames - frames.mean(dim=-1, keepdim=True)
        shaped = centred * self.window
        shaped[..., 1:].addcmul_(centred[..., :-1], self.window[1:], value=-self.preemphasis)
        shaped[..., 0] *= 1 - self.preemphasis
        spectrum = torch.view_as_real(torch.fft.rfft(shaped, n=self.size)).square().flatten(-2)  # (b, t, 2K); the filters add the two parts
        parts = [getattr(self, f"mel{number}") @ spectrum[..., a:b].mT for number, (a, b) in enumerate(self._spans)]
        return self._logarithm(torch.cat(parts, dim=-2))

    def _by_matrices(self, waveforms: Tensor) -> Tensor:
        """The same by one convolution, as formats for stored networks have neither views of frames nor, on all devices, Fourier transforms."""
        spectrum = F.conv1d(waveforms.reshape(-1, 1, waveforms.shape[-1]), self.transform, stride=self.shift).square()
        real, imaginary = spectrum.chunk(2, dim=1)
        features = self._logarithm(self.mel @ (real + imaginary))
        return features if waveforms.dim() == 2 else features[0]

    def _logarithm(self, energies: Tensor) -> Tensor:
        features = energies.clamp_min(_FLOOR).log()
        return features if self.cosine is None else self.cosine @ features

    def _keep(self, name: str, values: np.ndarray | None) -> None:
        self.register_buffer(name, None if values is None else torch.from_numpy(values).float().contiguous(), persistent=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fbank:
        """Follow to another device, but stay in float32."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)


def subtract_mean(features: Tensor, lengths: Tensor | None = None, window: int | None = None) -> Tensor:
    """Subtract from each feature its mean over time: of the utterance, or of the frames around, as Kaldi's `apply-cmvn-sliding --center=true` does.

    Args:
        features: (B, F, T).
        lengths: (B,) valid frames, at least one; the rest takes no part and is zero in the result. None means that all are valid.
        window: number of frames whose mean is subtracted from the one in their middle; at the ends the window is moved inwards. None takes the
            utterance.

    Returns:
        (B, F, T) float32.

    Raises:
        ValueError: if `window` is not positive.
    """
    if window is not None and window < 1:
        raise ValueError(f"window must be a positive number of frames, or null for the whole utterance, got {window}")
    features = features.float()
    if lengths is None and window is None:
        return features - features.mean(dim=-1, keepdim=True)
    frames = features.shape[-1]
    lengths = features.new_full((len(features),), frames, dtype=torch.int64) if lengths is None else lengths
    valid = _valid(lengths, frames)[:, None]
    features = features.where(valid, 0)
    mean = features.sum(dim=-1, keepdim=True) / lengths[:, None, None] if window is None else _sliding_mean(features, lengths, window)
    return (features - mean).where(valid, 0)


def log_energy(frames: Tensor) -> Tensor:
    """Log-energy of frames (..., L) in [-1, 1] as Kaldi's "raw energy": of 16-bit samples without their mean, before anything else is done; (...)."""
    frames = frames - frames.mean(dim=-1, keepdim=True)
    return (frames.square().sum(dim=-1) * _SCALE**2).clamp_min(_FLOOR).log()


def energy_vad(
    energies: Tensor,
    lengths: Tensor | None = None,
    threshold: float = 5.5,
    mean_scale: float = 0.5,
    context: int = 2,
    proportion: float = 0.12,
) -> Tensor:
    """Tell speech from silence by energy, as Kaldi's `compute-vad`; the defaults are those of its speaker recipes.

    Args:
        energies: (B, T) log-energies as from `Fbank.log_energy`.
        lengths: (B,) valid frames; None means all.
        threshold: log-energy above which a frame is loud ...
        mean_scale: ... to which this many times the utterance's mean log-energy is added.
        context: frames on either side that are looked at too.
        proportion: share of the frames looked at that must be loud.

    Returns:
        (B, T) bool, True for speech; False where padded.
    """
    frames = energies.shape[-1]
    lengths = torch.full_like(energies[:, 0], frames, dtype=torch.int64) if lengths is None else lengths
    valid = _valid(lengths, frames)
    level = threshold + mean_scale * energies.float().where(valid, 0).sum(dim=-1) / lengths
    loud = (energies > level[:, None]) & valid
    near = [F.pad(flags.int(), (context, context)).unfold(-1, 2 * context + 1, 1).sum(dim=-1) for flags in (loud, valid)]
    return (near[0] >= near[1] * proportion) & valid


def _valid(lengths: Tensor, frames: int) -> Tensor:
    return torch.arange(frames, device=lengths.device) < lengths[:, None]


def _sliding_mean(features: Tensor, lengths: Tensor, window: int) -> Tensor:
    start = torch.arange(features.shape[-1], device=features.device) - window // 2
    last = (lengths[:, None] - window).clamp_min(0)  # where a window may begin at most
    start = torch.minimum(start.clamp_min(0), last)  # (B, T)
    end = torch.minimum(start + window, lengths[:, None])
    sums = F.pad(features.double().cumsum(dim=-1), (1, 0))  # in double precision: a sum over hours is large beside one window
    indices = [index[:, None].expand_as(features) for index in (start, end)]
    return ((sums.gather(-1, indices[1]) - sums.gather(-1, indices[0])) / (end - start)[:, None]).float()


def _window(name: str, length: int) -> np.ndarray:
    cosine = np.cos(2 * math.pi * np.arange(length) / (length - 1))
    shapes = {"hamming": 0.54 - 0.46 * cosine, "hanning": 0.5 - 0.5 * cosine, "povey": np.maximum(0.5 - 0.5 * cosine, 0) ** 0.85}
    if name not in shapes:
        raise ValueError(f"window must be one of {', '.join(shapes)}, got {name!r}")
    return shapes[name]


def _mel_filters(sample_rate: int, size: int, bins: int, low: float, high: float) -> np.ndarray:
    """Weights (bins, size / 2 + 1) of the mel filters; that of the highest frequency is zero, as in Kaldi."""
    high = high if high > 0 else sample_rate / 2 + high
    if bins < 1 or not 0 <= low < high <= sample_rate / 2:
        raise ValueError(f"expected at least one filter and 0 <= low < high <= {sample_rate / 2:g} Hz, got {bins} from {low:g} to {high:g} Hz")
    edges = np.linspace(_mel(low), _mel(high), bins + 2)[:, None]
    points = _mel(np.arange(size // 2 + 1) * sample_rate / size)
    rising = (points - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - points) / (edges[2:] - edges[1:-1])
    filters = np.minimum(rising, falling).clip(min=0)
    filters[:, -1] = 0
    if not filters.any(axis=1).all():
        raise ValueError(f"{bins} mel filters are too many for {size // 2} frequencies at {sample_rate} Hz: take fewer, or longer frames")
    return filters


def _mel(frequency: float | np.ndarray) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(frequency) / 700)


def _transform(window: np.ndarray, preemphasis: float, size: int, used: np.ndarray) -> np.ndarray:
    """Matrix (2K, L) from a frame to the real, then the imaginary parts of the used frequencies: mean, pre-emphasis, window, transform in one."""
    length = len(window)
    shaping = np.eye(length) - preemphasis * np.eye(length, k=-1)
    shaping[0, 0] -= preemphasis
    shaping = window[:, None] * (shaping - shaping.mean(axis=1, keepdims=True))
    angles = 2 * math.pi / size * np.outer(used, np.arange(length))
    return np.concatenate([np.cos(angles), -np.sin(angles)]) @ shaping


def _liftered_cosines(coefficients: int, bins: int) -> np.ndarray:
    """Orthonormal cosine transform (coefficients, bins), its rows weighted by 1 + 11 sin(pi k / 22)."""
    order = np.arange(coefficients)[:, None]
    cosines = np.sqrt(np.where(order == 0, 1, 2) / bins) * np.cos(math.pi / bins * (np.arange(bins) + 0.5) * order)
    return cosines * (1 + _LIFTER / 2 * np.sin(math.pi * order / _LIFTER))
