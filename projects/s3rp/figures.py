"""Pictures of fields, ensembles and their errors; every function returns a matplotlib figure that needs no display."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from projects.s3rp.metrics import LEVELS, reliability
from projects.s3rp.physics import Boundary, Wind, centred

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

FRAMES = 8
"""Most frames that a sheet shows; of more it shows some, evenly."""
ARROWS = 8
"""Most arrows of the wind along a side."""
FAINT = 1e-6
"""Part of the strongest wave's power below which a wave is too faint for a ratio."""
SIGNED = 0.1
"""Part of the largest |value| below zero from which on a field is shown as signed."""
RAISED = 0.5
"""Part of the largest value above which, if all lie there, colours begin at the lowest value instead of 0."""
_LEFT = {"rotation": 0, "ha": "right", "va": "center"}

# ---- fields


def draw_fields(
    coarse: Tensor,
    fields: Mapping[str, Tensor],
    truth: Tensor | None = None,
    deviation: Tensor | None = None,
    mask: Tensor | None = None,
    wind: Wind | None = None,
    unit: str = "",
    title: str = "",
    times: Sequence[str] | None = None,
) -> Figure:
    """Draw a sequence: a column a frame; rows for the truth, what was observed, fields, the last one's error, and its standard deviation.

    Args:
        coarse: (T, h, w).
        fields: (T, H, W) by name, such as bicubic and S3RP-D; the error and the deviation are those of the last one.
        truth: (T, H, W), if it is known.
        deviation: (T, H, W) standard deviation of an ensemble.
        mask: (T, h, w) False where `coarse` is missing, which is hatched; frames without any observation are marked as forecasts or gaps.
        wind: velocities at the faces, (T or 1, ...), drawn over the first row.
        unit: of the fields.
        title: of the sheet.
        times: of the frames, below their numbers.
    """
    shown = chosen_frames(len(coarse))
    seen = coarse if mask is None else coarse.where(mask, torch.nan)
    values = ({} if truth is None else {"truth": truth}) | {"observed": seen} | dict(fields)
    name, best = list(fields.items())[-1]
    groups: list[tuple[str, dict[str, Tensor], dict[str, Any]]] = [("value", values, _scale(fields.values() if truth is None else [truth]))]
    if truth is not None:
        error = best - truth
        largest = float(error[shown].abs().max()) or 1.0
        groups.append(("error", {f"error of\n{name}": error}, {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}))
    if deviation is not None:
        groups.append(
            ("deviation", {f"deviation of\n{name}": deviation}, {"cmap": "magma", "vmin": 0.0, "vmax": float(deviation[shown].max()) or 1.0})
        )
    rows = sum(len(group) for _, group, _ in groups)
    aspect = coarse.shape[-2] / coarse.shape[-1]
    figure, axes = _sheet(rows, len(shown), aspect)
    start = 0
    for label, group, scale in groups:
        part = axes[start : start + len(group)]
        images = [
            _show(axis, field[frame], scale) for row, field in zip(part, group.values(), strict=True) for axis, frame in zip(row, shown, strict=True)
        ]
        for row, heading in zip(part, group, strict=True):
            row[0].set_ylabel(heading, **_LEFT)
        _bar(figure, images, part, list(group.values()), label + (f" [{unit}]" if unit else ""))
        start += len(group)
    kinds = frame_kinds(seen.isfinite())
    for axis, frame in zip(axes[0], shown, strict=True):
        axis.set_title(f"frame {frame + 1}{kinds[frame]}" + (f"\n{times[frame]}" if times else ""), fontsize="medium")
        if wind is not None:
            _arrows(axis, wind, frame, "white" if groups[0][2]["cmap"] == "viridis" else "black")
    if title:
        figure.suptitle(title)
    return figure


def draw_members(members: Tensor, truth: Tensor | None = None, count: int = 7, unit: str = "", title: str = "") -> Figure:
    """Draw an ensemble of one frame: the truth if it is known, mean, standard deviation, and some members.

    Args:
        members: (M, H, W), two or more.
        truth: (H, W).
        count: members that are shown at most.
        unit: of the fields.
        title: of the sheet.
    """
    mean, deviation, some = members.mean(0), members.std(0), members[:count]
    values = ({} if truth is None else {"truth": truth}) | {"mean": mean} | {f"member {number + 1}": field for number, field in enumerate(some)}
    columns = min(5, len(values) + 1)
    rows = math.ceil((len(values) + 1) / columns)
    figure, axes = _sheet(rows, columns, members.shape[-2] / members.shape[-1], titled=True)
    scale = _scale([truth] if truth is not None else [some])
    places = list(axes.flat)
    for axis in places[len(values) + 1 :]:
        axis.set_visible(False)
    spread = places.pop(2 if truth is not None else 1)
    images = []
    for axis, (name, field) in zip(places, values.items(), strict=False):
        images.append(_show(axis, field, scale))
        axis.set_title(name, fontsize="medium")
    of_spread = _show(spread, deviation, {"cmap": "magma", "vmin": 0.0, "vmax": float(deviation.max()) or 1.0})
    spread.set_title("standard deviation", fontsize="medium")
    suffix = f" [{unit}]" if unit else ""
    _bar(figure, images, axes, list(values.values()), "value" + suffix)
    _bar(figure, [of_spread], axes, [deviation], "standard deviation" + suffix)
    if title:
        figure.suptitle(title)
    return figure


def frame_kinds(seen: Tensor) -> list[str]:
    """Say of (T, h, w) frames, True where there is an observation, which have none: after the last one " (forecast)", else " (gap)"."""
    observed = seen.flatten(1).any(1).tolist()
    last = max((frame for frame, is_seen in enumerate(observed) if is_seen), default=-1)
    return ["" if is_seen else " (forecast)" if frame > last else " (gap)" for frame, is_seen in enumerate(observed)]


def chosen_frames(frames: int, most: int = FRAMES) -> list[int]:
    """Return the numbers of at most so many frames, evenly from the first to the last."""
    return sorted({round(place) for place in np.linspace(0, frames - 1, min(frames, most)).tolist()})


def _sheet(rows: int, columns: int, aspect: float, titled: bool = False) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes, (rows, columns), without ticks."""
    from matplotlib.figure import Figure

    side = 1.5
    figure = Figure(figsize=(2.4 + side * columns, 0.7 + (side * aspect + 0.25 * titled) * rows), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    return figure, axes


def _scale(fields: Any) -> dict[str, Any]:
    """Return the colours of fields, all finite."""
    parts = list(fields)
    return colours(min(float(part.min()) for part in parts), max(float(part.max()) for part in parts))


def colours(low: float, high: float) -> dict[str, Any]:
    """Return the colours of values: from 0 to the largest, from the lowest where it is far above 0, or to both sides of 0 for signed ones."""
    largest = max(-low, high) or 1.0
    if -low > SIGNED * largest:
        return {"cmap": "PuOr_r", "vmin": -largest, "vmax": largest}
    is_raised = RAISED * high < low < (1 - FAINT) * high
    return {"cmap": "viridis", "vmin": low if is_raised else 0.0, "vmax": largest}


def _show(axis: Axes, field: Tensor, scale: Mapping[str, Any]) -> AxesImage:
    """Draw a field with y upward; what is missing is hatched."""
    axis.set_facecolor("0.9")
    axis.patch.set(hatch="////", edgecolor="0.6")
    return axis.imshow(field.cpu().numpy(), origin="lower", extent=(0, field.shape[-1] / field.shape[-2], 0, 1), interpolation="nearest", **scale)


def _bar(figure: Figure, images: Sequence[AxesImage], axes: np.ndarray, fields: Sequence[Tensor], label: str) -> None:
    """Draw one colour bar beside axes, whose ends tell whether values go beyond it."""
    low, high = images[0].get_clim()
    slack = 0.01 * (high - low)
    below = any(bool((field < low - slack).any()) for field in fields)
    above = any(bool((field > high + slack).any()) for field in fields)
    extend = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}[below, above]
    figure.colorbar(images[0], ax=axes, label=label, extend=extend, pad=0.01, aspect=max(6, 9 * len(axes)), fraction=0.05)


def _arrows(axis: Axes, wind: Wind, frame: int, colour: str) -> None:
    """Draw the wind of a frame over a field, its longest arrow somewhat longer than two arrows are apart."""
    number = min(frame, len(wind.u) - 1)
    u, v = wind.u[number], wind.v[number]
    boundary: Boundary = "open" if u.shape[-1] > v.shape[-1] else "periodic"
    along_x, along_y = centred(Wind(u, v), boundary).cpu().numpy()
    height, width = along_x.shape
    step = max(1, -(-max(height, width) // ARROWS))
    rows, columns = np.arange(step // 2, height, step), np.arange(step // 2, width, step)
    x, y = np.meshgrid((columns + 0.5) / height, (rows + 0.5) / height)
    longest = float(np.hypot(along_x, along_y).max()) or 1.0
    at = np.ix_(rows, columns)
    scale = longest * len(columns) / 1.2
    axis.quiver(x, y, along_x[at], along_y[at], color=colour, angles="xy", scale_units="width", scale=scale, width=0.008, alpha=0.7)


# ---- numbers


def draw_by_frame(errors: Mapping[str, Sequence[float]], label: str = "relative L2 error", observed: int | None = None) -> Figure:
    """Draw a measure over the frames, a line a method.

    Args:
        errors: values of all frames, by method; NaN where there is none.
        label: of the measure.
        observed: frames that were observed; the later ones are forecasts, in a shade.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.5, 3.6), layout="constrained")
    axis = figure.subplots()
    frames = max(len(values) for values in errors.values())
    for name, values in errors.items():
        axis.plot(range(1, len(values) + 1), [float(value) for value in values], marker="o", markersize=4, label=name)
    if observed is not None and observed < frames:
        axis.axvspan(observed + 0.5, frames + 0.5, color="0.92", linewidth=0, zorder=0)
        axis.text(observed + 0.6, 0.98, "forecast", transform=axis.get_xaxis_transform(), va="top", fontsize="small", color="0.3")
    axis.set(xlabel="frame", ylabel=label, ylim=(0, None), xlim=(0.5, frames + 0.5))
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def draw_spectra(spectra: Mapping[str, Tensor], coarse_size: int) -> Figure:
    """Draw radial spectra, and the shares of the first one's power that the others have.

    Args:
        spectra: (K,) mean powers for wave numbers 0, 1, ... by name, the truth first, as `metrics.radial_spectrum` gives.
        coarse_size: coarse cells along a side: waves shorter than two of them are not seen in a single frame.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    reference, *others = spectra
    true = spectra[reference][1:].double().cpu()
    waves = range(1, len(true) + 1)
    left.plot(waves, true, color="black", linewidth=2, label=reference)
    for name in others:
        power = spectra[name][1:].double().cpu()
        left.plot(waves, power, marker=".", label=name)
        right.plot(waves, (power / true).where(true > FAINT * true.max(), torch.nan), marker=".", label=name)
    right.axhline(1, color="black", linewidth=2)
    floor = float(true.max()) * 1e-10
    left.set(yscale="log", ylabel="power of a wave", ylim=(max(floor, 0.3 * float(true[true > 0].min())) if bool((true > 0).any()) else None, None))
    right.set(ylabel=f"power by that of {reference}", ylim=(0, 2))
    for axis in (left, right):
        axis.axvline(coarse_size / 2, color="grey", linestyle=":", label="coarse grid's finest wave" if axis is left else None)
        axis.set(xscale="log", xlabel="wave number [waves a side]")
        ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128, 256) if tick <= len(true)]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    left.legend(frameon=False, fontsize="small")
    return figure


def draw_calibration(counts: Mapping[str, Tensor]) -> Figure:
    """Draw histograms of the truth's ranks among the members, flat if the spread is right, and what central intervals hold by what they should.

    Args:
        counts: (M + 1,) of ranks 0 .. M, by ensemble, such as before and after calibration.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 + 3.6 * len(counts), 3.6), layout="constrained")
    *histograms, right = figure.subplots(1, len(counts) + 1, width_ratios=[3] * len(counts) + [3])
    heights = {name: count.double().cpu() / count.double().mean().cpu() for name, count in counts.items()}
    highest = 1.1 * max(float(height.max()) for height in heights.values())
    for number, (axis, (name, height)) in enumerate(zip(histograms, heights.items(), strict=True)):
        axis.bar(range(len(height)), height.tolist(), width=1.0, color=f"C{number}", edgecolor="white", linewidth=0.3)
        axis.axhline(1, color="black", linestyle="--", linewidth=1)
        axis.set(xlabel="members below the truth", ylabel="" if number else "part of the cells by a flat one's", ylim=(0, highest))
        axis.set_title(name, fontsize="medium")
        levels, covered = reliability(counts[name].cpu())
        right.plot(levels, covered, marker=".", label=name)
    right.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="ideal")
    right.vlines(LEVELS, 0, 1, color="0.8", linewidth=1, zorder=0)
    right.set(xlabel="central interval", ylabel="part of the truth inside", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    right.legend(frameon=False, fontsize="small", loc="lower right")
    return figure
