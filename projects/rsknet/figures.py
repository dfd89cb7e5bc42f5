"""Pictures of a user's recordings: spectra with what of them is speech, who sounds like whom, and where a pair stands among impostors."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from shared.pictures import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 60
"""Recordings whose names are written beside a matrix at most."""
_LONGEST = 150  # bytes of a picture's name: file systems take 255, with all that is put before and after it
_BINS = 60  # of a histogram
_DECIBELS = 10 / np.log(10)  # in a natural logarithm of an energy


def picture_name(name: str) -> str:
    """Return the name, in the folder pictures, of the picture of a recording; too long a name is cut, and ends with a digest of the whole."""
    folders, _, own = f"pictures/{name}".rpartition("/")
    raw = os.fsencode(own)
    if len(raw) > _LONGEST:
        own = f"{raw[:_LONGEST].decode(errors='ignore')}-{hashlib.sha256(raw).hexdigest()[:8]}"
    return f"{folders}/{own}"


def draw_recording(title: str, features: Tensor, energies: Tensor, is_speech: Tensor, shift: float) -> Figure:
    """Draw a recording's features over time, and its energy, in which speech is marked.

    Args:
        title: of the figure.
        features: (F, T).
        energies: (T,) natural logarithms of energies of frames.
        is_speech: (T,) bool.
        shift: seconds from frame to frame.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _spectrum(above, features, shift)
    times, levels = shift * np.arange(len(energies)), _DECIBELS * (energies - energies.max()).numpy()
    below.plot(times, levels, color="black", linewidth=0.8)
    below.fill_between(times, levels.min(), levels, where=is_speech.numpy(), color="tab:orange", alpha=0.5, linewidth=0, label="speech")
    below.set(xlabel="seconds", ylabel="energy, dB")
    below.legend(loc="lower right", fontsize="small", frameon=False)
    above.set_title(title, fontsize=9, parse_math=False)
    return figure


def draw_similarity(probabilities: np.ndarray, names: Sequence[str], groups: Sequence[int]) -> Figure:
    """Draw the probabilities that recordings are of the same person, with lines between groups that seem to be of one.

    Args:
        probabilities: (N, N) in [0, 1].
        names: (N,) in the same order.
        groups: (N,) numbers.
    """
    from matplotlib.figure import Figure

    count = len(names)
    side = 3.5 + 0.16 * min(count, NAMED)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axis = figure.subplots()
    picture = axis.imshow(probabilities, vmin=0, vmax=1, cmap="viridis", interpolation="nearest")
    figure.colorbar(picture, ax=axis, label="probability of the same person", shrink=0.8)
    for place in range(1, count):
        if groups[place] != groups[place - 1]:
            axis.axhline(place - 0.5, color="white", linewidth=0.6)
            axis.axvline(place - 0.5, color="white", linewidth=0.6)
    axis.set_xticks([])
    axis.set_yticks([])
    if count <= NAMED:
        labels = [f"{shortened(name, 30)}  {group}" for name, group in zip(names, groups, strict=True)]
        axis.set_yticks(range(count), labels, fontsize=7, parse_math=False)
    axis.set_title(f"{count} recordings, in {len(set(groups))} groups that seem to be of one person each", fontsize=9)
    return figure


def draw_pair(title: str, recordings: Sequence[tuple[str, Tensor]], shift: float, impostors: Tensor, threshold: float, llr: float) -> Figure:
    """Draw the recordings of a pair, and its log-likelihood ratio among those of held-out impostors.

    Args:
        title: of the figure.
        recordings: names and (F, T) features: two, or one where the other side is an enrolled voice.
        shift: seconds from frame to frame.
        impostors: (I,) natural logarithms of likelihood ratios.
        threshold: ratio from which a pair is accepted.
        llr: of this pair.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 1.2 + 1.7 * len(recordings)), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(3, 2))[0]
    for axis, (name, features) in zip(left.subplots(len(recordings), 1, squeeze=False)[:, 0], recordings, strict=True):
        _spectrum(axis, features, shift)
        axis.set_title(shortened(name), fontsize=8, parse_math=False)
        axis.set_xlabel("seconds", fontsize=8)
    axis = right.subplots()
    axis.hist(impostors.numpy(), bins=_BINS, density=True, color="tab:red", alpha=0.5, label=f"{len(impostors)} impostors held out")
    axis.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.2f}")
    axis.axvline(llr, color="tab:blue", linewidth=2, label=f"this pair {llr:.2f}")
    axis.set(xlabel="log-likelihood ratio", yticks=[])
    right.legend(loc="outside upper center", fontsize=8, frameon=False)
    figure.suptitle(title, fontsize=9, parse_math=False)
    return figure


def _spectrum(axis: Axes, features: Tensor, shift: float) -> None:
    values = features.float().cpu().numpy()
    low, high = np.percentile(values, (2, 99.8))
    span = (0, shift * values.shape[1], 0, values.shape[0])
    axis.imshow(values, origin="lower", aspect="auto", extent=span, vmin=low, vmax=max(high, low + 1e-6), cmap="magma", interpolation="nearest")
    axis.set_ylabel("filter", fontsize=8)
