"""What the high-order modules weigh, and how: a figure of a picture's gates at the four stages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from projects.hodinet.fusion import HighOrder, Interaction
from projects.hodinet.model import STRIDE
from projects.hodinet.module import SaliencyDetection
from shared.pictures import THUMBNAIL, shrunk

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def check_gates(module: SaliencyDetection) -> None:
    """Refuse a network whose fusion has no gates.

    Raises:
        ValueError: naming what it has instead.
    """
    if not isinstance(module.net.fusions[0], HighOrder):
        found = f"the fusion {module.hparams.fusion}" if len(module.net.encoders) == 2 else f"one stream only, {', '.join(module.net.encoders)}"
        raise ValueError(f"--explain draws the gates of the fusion high_order of both streams, but the network has {found}: leave it out")


@torch.inference_mode()
def interactions(module: SaliencyDetection, image: Tensor, depth: Tensor) -> list[Interaction]:
    """Return what `HODINet.interactions` finds in a picture, (3, H, W) and (1, H, W), as it is judged, without places beyond it; on the CPU."""
    given = module.fitted(image[None])
    found = module.net.interactions(given, module.fitted(depth[None]))
    height, width = (Fraction(side, side + -side % STRIDE) for side in given.shape[2:])  # parts of what is computed that lie in the picture

    def inside(maps: Tensor) -> Tensor:
        return maps.float().cpu()[..., : math.ceil(maps.shape[2] * height), : math.ceil(maps.shape[3] * width)]

    return [Interaction(*map(inside, stage)) for stage in found]


def energy(gated: Tensor) -> Tensor:
    """Return the root of the mean square over channels, (1, C, h, w) -> (h, w)."""
    return gated[0].square().mean(0).sqrt()


def draw_gates(image: Tensor, depth: Tensor, stages: Sequence[Interaction], placement: str) -> Figure:
    """Draw the gate of each stage above the energy of what it weighs.

    Args:
        image: (3, H, W) uint8.
        depth: (1, H, W) in [0, 1].
        stages: see `interactions`, the finest first.
        placement: a letter a stage, S for a gate of places and C for one of channels.
    """
    from matplotlib.figure import Figure

    aspect = image.shape[1] / image.shape[2]
    figure = Figure(figsize=(2.7 * (1 + len(stages)), 2 * (2.3 * min(2.0, max(0.5, aspect)) + 0.6)), layout="constrained")
    columns = figure.subplots(2, 1 + len(stages)).T
    for axis, layers, title in zip(columns[0], (image, depth), ("picture", "depth, near is bright"), strict=True):
        axis.imshow(shrunk(layers, 2 * THUMBNAIL).permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    for number, ((top, below), stage, letter) in enumerate(zip(columns[1:], stages, placement, strict=True), 1):
        if letter == "S":
            _draw_map(top, stage.gate[0, 0], f"stage {number}: gate of places", aspect)
        else:
            _draw_weights(top, stage.gate.flatten(), f"stage {number}: gate of channels", aspect)
        _draw_map(below, energy(stage.gated), "energy of colour gathered" if letter == "S" else "energy of depth", aspect)
    return figure


def _draw_map(axis: Axes, levels: Tensor, title: str, aspect: float) -> None:
    height, width = levels.shape
    shown = axis.imshow(levels.numpy(), cmap="inferno", aspect=aspect * width / height)
    bar = cast("Figure", axis.figure).colorbar(shown, ax=axis, shrink=0.8)
    bar.ax.tick_params(labelsize=7)
    axis.set_title(title, fontsize=9)
    axis.axis("off")


def _draw_weights(axis: Axes, weights: Tensor, title: str, aspect: float) -> None:
    axis.hist(weights.numpy(), bins=30, range=(0, 1))
    axis.set_box_aspect(aspect)
    axis.set_xlabel("weight", fontsize=8)
    axis.set_ylabel("channels", fontsize=8)
    axis.tick_params(labelsize=7)
    axis.set_title(title, fontsize=9)
