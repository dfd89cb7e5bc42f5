"""Pictures of scores over time and over sets, of routing and of faces: matplotlib figures and images from plain arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.forgery.metrics import Scored, auroc, roc

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REAL, FAKE = "tab:blue", "tab:red"


def _panels(columns: int = 1, width: float = 6.4, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def timeline(scores: Tensor, times: Tensor | None = None, threshold: float = 0.5, title: str = "") -> Figure:
    """Draw the frames' scores of a video over time, with the video's score, their mean.

    Args:
        scores: (T,) probabilities of being fake; NaN where no face was found leaves a gap.
        times: (T,) seconds; None counts frames.
        threshold: level above which a score is called fake.
        title: what stands above.
    """
    figure, (axes,) = _panels(width=8, height=2.8)
    at = torch.arange(len(scores)) if times is None else times
    axes.plot(at.cpu(), scores.cpu(), ".-", color="0.35", linewidth=1, markersize=5, label="frames")
    axes.axhline(float(scores.nanmean()), color=FAKE if scores.nanmean() > threshold else REAL, label=f"video {float(scores.nanmean()):.2f}")
    axes.axhline(threshold, color="0.6", linestyle=":", linewidth=1)
    axes.set(ylim=(-0.03, 1.03), xlabel="frame" if times is None else "seconds", ylabel="probability of fake", title=title)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def curves(sets: Mapping[str, Scored], bins: int = 10) -> Figure:
    """Draw the ROC curves of sets, and beside them how often what has a score is fake (reliability).

    Args:
        sets: frames or videos of each set, by its name; sets of one class have no ROC curve.
        bins: number of intervals of equal width that scores are sorted into.
    """
    figure, (left, right) = _panels(2, 4.6, 4.2)
    for name, scored in sets.items():
        curve = roc(*scored.columns)
        if curve.has_both:
            left.plot(curve.fpr, curve.tpr, label=f"{name} {auroc(curve):.3f}")
        right.plot(*reliability(scored, bins)[:2], "o-", markersize=4, label=name)
    for axes in (left, right):
        axes.plot([0, 1], [0, 1], color="0.7", linestyle=":", linewidth=1)
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(frameon=False)
    left.set(xlabel="reals called fake", ylabel="fakes called fake", title="ROC, area")
    right.set(xlabel="score", ylabel="part that is fake", title="reliability")
    return figure


def reliability(scored: Scored, bins: int = 10) -> tuple[Tensor, Tensor, Tensor]:
    """Sort scores into intervals of equal width; returns the mean score, the part that is fake and the number of rows of those that are not empty.

    Raises:
        ValueError: if `bins` is below 1.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    place = (scored.scores * bins).long().clamp(max=bins - 1)
    count = torch.bincount(place, minlength=bins)
    sums = [torch.bincount(place, column.double(), minlength=bins) for column in scored.columns]
    filled = count > 0
    return sums[0][filled] / count[filled], sums[1][filled] / count[filled], count[filled]


def usage(shares: Tensor, experts: Sequence[str], title: str = "") -> Figure:
    """Draw how much every expert is used in every layer.

    Args:
        shares: (L, E) part of the rows of a layer that goes to an expert.
        experts: E names.
        title: what stands above.
    """
    figure, (axes,) = _panels(width=max(4.5, 0.55 * len(shares) + 2.5), height=3.2)
    below = torch.zeros(len(shares))
    for expert, part in zip(experts, shares.cpu().float().unbind(1), strict=True):
        axes.bar(range(1, len(shares) + 1), part, bottom=below, label=expert, width=0.8)
        below = below + part
    axes.set(xlabel="block", ylabel="part of the rows", ylim=(0, 1), title=title)
    axes.set_xticks(range(1, len(shares) + 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def robustness(measured: Mapping[str, Sequence[float]], clean: float, measure: str = "AUC") -> Figure:
    """Draw a measure over the levels of each perturbation.

    Args:
        measured: values at levels 1, 2, ..., by perturbation.
        clean: value without perturbation, drawn at level 0.
        measure: its name.
    """
    figure, (axes,) = _panels(width=6.8, height=4)
    for name, values in measured.items():
        axes.plot(range(len(values) + 1), [clean, *values], "o-", markersize=4, label=name)
    axes.axhline(0.5, color="0.7", linestyle=":", linewidth=1)
    axes.set(xlabel="level", ylabel=measure)
    axes.set_xticks(range(max(len(values) for values in measured.values()) + 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    return figure


def scored_faces(images: Tensor, scores: Tensor, labels: Tensor | None = None, columns: int = 8) -> Figure:
    """Show faces with their scores below them.

    Args:
        images: (N, 3, H, W) uint8.
        scores: (N,) probabilities of being fake; NaN where there is none.
        labels: (N,) 0 real, 1 fake: colours what is called rightly blue and what is called wrongly red. None leaves it black.
        columns: faces in a row.
    """
    from matplotlib.figure import Figure

    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.3 * columns, 1.5 * rows), layout="constrained")
    for number, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if number < len(images):
            score = float(scores[number])
            colour = "black" if labels is None else REAL if (score > 0.5) == bool(labels[number]) else FAKE
            axes.imshow(images[number].permute(1, 2, 0).cpu().numpy(), interpolation="nearest")
            axes.set_title("no score" if math.isnan(score) else f"{score:.2f}", y=-0.2, fontsize=9, color=colour)
    return figure


def heat_overlay(image: Tensor, heat: Tensor, strength: float = 0.5) -> Tensor:
    """Lay a map over an image, from dark at its least value to bright at its greatest.

    Args:
        image: (3, H, W) uint8.
        heat: (h, w) numbers, such as attention to the patches or a map of differences; enlarged bilinearly.
        strength: opacity in [0, 1].

    Returns:
        (3, H, W) in [0, 1].
    """
    from matplotlib import colormaps

    spread = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)
    enlarged = F.interpolate(spread.float().cpu()[None, None], size=image.shape[1:], mode="bilinear", align_corners=False)[0, 0]
    coloured = torch.from_numpy(colormaps["magma"](enlarged.numpy())[..., :3]).float().permute(2, 0, 1)
    return torch.lerp(image.cpu().float() / 255, coloured, strength)


def expert_overlay(image: Tensor, experts: Tensor, strength: float = 0.5) -> Tensor:
    """Lay over an image, patch by patch, the colour of the expert that a patch was routed to.

    Args:
        image: (3, H, W) uint8.
        experts: (h, w) integers, the numbers of the experts; up to ten of them have colours of their own.
        strength: opacity in [0, 1].

    Returns:
        (3, H, W) in [0, 1].
    """
    from matplotlib import colormaps

    enlarged = F.interpolate(experts.cpu()[None, None].float(), size=image.shape[1:], mode="nearest")[0, 0]
    coloured = torch.from_numpy(colormaps["tab10"](enlarged.long().numpy() % 10)[..., :3]).float().permute(2, 0, 1)
    return torch.lerp(image.cpu().float() / 255, coloured, strength)
