"""Figures of a test: scores by group, overlap with defects over false positives, and some pictures with what was found in them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.comad.prediction import strengths
from projects.comad.segmentation import colour_coded
from projects.comad.spro import OverlapCurve
from shared.data.selection import evenly_spaced
from shared.pictures import beside, outline, overlay, overview

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from projects.comad.data import Pictures
    from projects.comad.layouts import Group
    from projects.comad.module import ComponentInspection, Judged

SHOWN = 10
"""Pictures among the examples at most."""
BINS, TICKS, POINTS = 48, 6, 500
"""Of a histogram, of its axis, and of a drawn curve at most."""
FPR, LIMIT = 0.3, 0.05
"""Rate of false-positive pixels up to which curves are drawn, and the one that papers quote."""
TRUE = (0.1, 0.9, 1.0)
"""Colour of the outline of true defects."""
COLOURS: dict[Group, str] = {"good": "tab:green", "logical": "tab:orange", "structural": "tab:red", "other": "tab:purple"}


def draw_histograms(scores: Mapping[Group, Tensor], threshold: float) -> Figure:
    """Draw the scores of each group of pictures, and the threshold; the axis is linear about 0 and logarithmic far away.

    Args:
        scores: (N,) by group.
        threshold: above which a picture alarms.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.4), layout="constrained")
    axis = figure.subplots()
    usual = scores.get("good", torch.cat(list(scores.values()))).double()
    width = float(usual.quantile(0.75) - usual.quantile(0.25)) or 1.0
    bent = torch.cat([*scores.values(), torch.tensor([threshold], dtype=torch.float64)]).div(width).asinh()
    edges = torch.linspace(float(bent.min()) - 0.05, float(bent.max()) + 0.05, BINS + 1, dtype=torch.float64).sinh().mul(width)
    for group, own in scores.items():
        axis.hist(own.numpy(), edges.tolist(), label=f"{group} ({len(own)})", color=COLOURS[group], alpha=0.55, histtype="stepfilled")
    axis.axvline(threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {threshold:.3g}")
    axis.set_xscale("asinh", linear_width=width)
    axis.set_xticks(sorted({float(f"{edge:.1g}") if abs(edge) > width / 2 else 0.0 for edge in edges[:: BINS // TICKS].tolist()}))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set(xlabel="fused score", ylabel="test pictures", xlim=(float(edges[0]), float(edges[-1])))
    figure.legend(loc="outside upper center", ncols=len(scores) + 1, frameon=False, fontsize="small")
    return figure


def draw_curves(curves: Mapping[tuple[str, str], OverlapCurve]) -> Figure:
    """Draw the saturated overlap over the rate of false-positive pixels up to 0.3, a panel a group, a line a map; the dotted line is at 0.05.

    Args:
        curves: by map and group.
    """
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(group for _, group in curves))
    figure = Figure(figsize=(4.2 * len(groups), 3.6), layout="constrained")
    for axis, group in zip(figure.subplots(1, len(groups), sharey=True, squeeze=False)[0], groups, strict=True):
        for (name, own), curve in curves.items():
            if own == group:
                shown = min(int((curve.fpr <= FPR).sum()) + 1, len(curve.fpr))
                points = torch.tensor([*evenly_spaced(shown, POINTS), shown - 1])
                [line] = axis.plot(curve.fpr[points].numpy(), curve.spro[points].numpy(), label=f"{name} {curve.area(LIMIT):.2f}", linewidth=1.2)
                if name == "fused":
                    line.set(color="black", linewidth=2)
        axis.axvline(LIMIT, color="grey", linestyle=":", linewidth=1)
        axis.set(xlabel="false-positive rate of pixels", title=group, xlim=(0, FPR), ylim=(0, 1.02))
        axis.legend(frameon=False, fontsize="small", title=f"area up to {LIMIT:g}", title_fontsize="small", loc="lower right")
    figure.axes[0].set_ylabel("mean saturated overlap of defects")
    return figure


@torch.no_grad()
def draw_examples(module: ComponentInspection, pictures: Pictures, judged: Sequence[Judged]) -> Figure:
    """Draw some test pictures, evenly spread over kinds: the picture, its components, and its anomaly map with the outline of the true defects.

    The red of maps is that of `predict`, alike in all.

    Args:
        module: the inspector on its device.
        pictures: of the test.
        judged: what was found in them.
    """
    inspector = module.inspector
    chosen = spread([pictures.name(one.place).rpartition("/")[0] for one in judged], SHOWN)
    images = torch.stack([pictures[judged[row].place]["image"] for row in chosen])
    examined = inspector.examine(images.to(module.device))
    labels = examined.levels.argmax(1).cpu()
    strength = strengths(inspector, inspector.maps(examined)["fused"].cpu())
    coloured = colour_coded(labels, inspector.recipe.k, images)
    thumbnails = []
    for number, row in enumerate(chosen):
        one = judged[row]
        defects = torch.zeros(1, *images.shape[2:], dtype=torch.bool)
        for defect in pictures.defects(one.place):
            defects |= F.adaptive_max_pool2d(defect.mask[None].float(), defects.shape[1:]) > 0
        heat = torch.where(outline(defects), torch.tensor(TRUE)[:, None, None], overlay(images[number], strength[number], 2))
        layers = [images[number], coloured[number], (heat * 255).round().byte()]
        thumbnails.append((_title(pictures.name(one.place), one, inspector.threshold), beside(layers)))
    return overview(thumbnails, 2, "picture, components, anomaly map (red) with true defects outlined (blue)")


def spread(kinds: Sequence[str], wanted: int) -> list[int]:
    """Choose pictures, evenly spaced over kinds and within each.

    Args:
        kinds: (N,) of the pictures.
        wanted: pictures at most.

    Returns:
        Their places, kind by kind.
    """
    places: dict[str, list[int]] = {}
    for place, kind in enumerate(kinds):
        places.setdefault(kind, []).append(place)
    own = [list(places.values())[number] for number in evenly_spaced(len(places), wanted)]
    return [each[number] for each in own for number in evenly_spaced(len(each), wanted // len(own))]


def _title(name: str, one: Judged, threshold: float) -> str:
    verdict = f"{name}: {'alarm' if one.alarm else 'passes'}, score {one.scores['fused']:.3g} (alarm above {threshold:.3g})"
    return "\n".join([verdict, *textwrap.wrap(textwrap.shorten(one.text, 130, placeholder=" ..."), 64)])
