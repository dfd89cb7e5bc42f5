"""Moving pictures of a sequence: what was observed beside the super-resolved fields, their spread and the truth, in colours that do not change."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.s3rp.figures import colours, frame_kinds
from shared.data.selection import evenly_spaced
from shared.runs import atomic

FRAMES = 120
"""Frames of an animation at most; of longer sequences they are evenly spaced."""
MILLISECONDS = 350
"""Time that a frame is shown."""
PIXELS = 220
"""Least width of a panel."""
GREYS = 32
"""Greys among the 256 colours of an animation."""


def animate(
    path: Path,
    coarse: Tensor,
    fields: Tensor,
    deviation: Tensor | None = None,
    truth: Tensor | None = None,
    mask: Tensor | None = None,
    times: Sequence[str] | None = None,
    unit: str = "",
    name: str = "super-resolved",
) -> Path:
    """Write a GIF that shows panels side by side, frame by frame, in one piece or not at all.

    Args:
        path: file, ending in .gif.
        coarse: (T, h, w) observations.
        fields: (T, H, W).
        deviation: (T, H, W) standard deviation of the fields.
        truth: (T, H, W), if it is known.
        mask: (T, h, w) False where `coarse` is missing; frames without any observation are marked as forecasts or gaps.
        times: of the frames, for the title; their numbers otherwise.
        unit: of the fields.
        name: of the fields' panel.

    Returns:
        The file.
    """
    seen = coarse.clone().float() if mask is None else coarse.float().masked_fill(~mask, torch.nan)
    panels: list[tuple[str, Tensor, dict[str, Any]]] = []
    shared = _colours([part for part in (seen, fields, truth) if part is not None])
    panels += [("observed", seen, shared), (name, fields, shared)]
    if truth is not None:
        panels.append(("truth", truth, shared))
    if deviation is not None:
        panels.append(("standard deviation", deviation, {"cmap": "magma", "vmin": 0.0, "vmax": float(deviation.max()) or 1.0}))
    pictures = _rendered(panels, _titles(seen, times), unit)
    first, *others = _with_one_palette(pictures, list(dict.fromkeys(scale["cmap"] for _, _, scale in panels)))
    with atomic(path) as temporary:
        first.save(temporary, save_all=True, append_images=others, duration=MILLISECONDS, loop=0, optimize=False)
    return path


def _colours(parts: Sequence[Tensor]) -> dict[str, Any]:
    """Return one scale for all."""
    finite = torch.cat([part[part.isfinite()].flatten() for part in parts])
    return colours(float(finite.min()), float(finite.max()))


def _titles(seen: Tensor, times: Sequence[str] | None) -> list[str]:
    """Return a frame's number or time, and whether it was observed."""
    kinds = frame_kinds(seen.isfinite())
    return [f"frame {frame + 1} of {len(seen)}" + (f", {times[frame]}" if times else "") + kind for frame, kind in enumerate(kinds)]


def _rendered(panels: Sequence[tuple[str, Tensor, dict[str, Any]]], titles: Sequence[str], unit: str) -> list[np.ndarray]:
    """Draw the frames, (height, width, 3) uint8 each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = panels[0][1].shape[-2:]
    side = 2.4
    figure = Figure(figsize=(len(panels) * (side * max(1.0, width / height) + 0.75), side * max(1.0, height / width) + 0.75), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    images = []
    for axis, (name, field, scale) in zip(axes, panels, strict=True):
        axis.set(xticks=[], yticks=[])
        axis.set_title(name, fontsize=10)
        axis.set_facecolor("0.85")
        extent = (0, width / height, 0, 1)
        images.append(axis.imshow(field[0].cpu().numpy(), origin="lower", extent=extent, interpolation="nearest", **scale))
    alike = sum(scale is panels[0][2] for _, _, scale in panels)
    for place, part in ((alike - 1, axes[:alike]), (len(panels) - 1, axes[alike:])):
        if len(part):
            figure.colorbar(images[place], ax=list(part), shrink=0.8, label=unit)
    heading, pictures = figure.suptitle(titles[0], fontsize=10), []
    figure.set_dpi(max(72, math.ceil(PIXELS / side)))
    canvas.draw()
    figure.set_layout_engine("none")  # the axes stand where they are: to lay them out takes longer than to draw a frame
    for frame in evenly_spaced(len(titles), FRAMES):
        heading.set_text(titles[frame])
        for image, (_, field, _) in zip(images, panels, strict=True):
            image.set_data(field[frame].cpu().numpy())
        canvas.draw()
        pictures.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())
    return pictures


def _with_one_palette(pictures: Sequence[np.ndarray], maps: Sequence[str]) -> list[Any]:
    """Return images of one palette, of greys and the colours of the scales, so that a colour means the same in each frame."""
    from matplotlib import colormaps
    from PIL import Image

    count = (256 - GREYS) // len(maps)
    greys = np.linspace(0, 255, GREYS)[:, None].repeat(3, 1)
    colours = np.concatenate([greys, *(255 * colormaps[name](np.linspace(0, 1, count))[:, :3] for name in maps)])
    palette = Image.new("P", (1, 1))
    palette.putpalette(np.rint(colours).astype(np.uint8).tobytes())
    return [Image.fromarray(picture).quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
