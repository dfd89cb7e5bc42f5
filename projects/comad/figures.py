"""Components over example pictures, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.comad.data import InspectionData, Pictures
from projects.comad.inspector import Inspector
from projects.comad.segmentation import colour_coded, hard_maps, palette
from shared.data.selection import evenly_spaced
from shared.loggers import log_figure, log_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

EXAMPLES = 4
"""Training pictures that are shown."""
_INCHES = 2.6  # width of a picture


@dataclass(frozen=True)
class Examples:
    """E training pictures, evenly spread.

    Attributes:
        places: of the pictures in their set.
        names: of the pictures.
        images: (E, 3, H, W) uint8.
        levels: (E, K, H, W) uint8 heat maps of their clusters.
    """

    places: list[int]
    names: list[str]
    images: Tensor
    levels: Tensor

    @property
    def coloured(self) -> Tensor:
        """The cluster of each pixel in its colour over the pictures, (E, 3, H, W) uint8."""
        return colour_coded(hard_maps(self.levels), self.levels.shape[1], self.images)


def take_examples(inspector: Inspector, pictures: Pictures, device: torch.device, count: int = EXAMPLES) -> Examples:
    """Choose training pictures and segment them."""
    places = evenly_spaced(len(pictures), count)
    images = torch.stack([pictures[place]["image"] for place in places])
    inspector.features.to(device)  # Lightning takes networks off it when a pass ends
    levels = inspector.segment(images.to(device)).cpu()
    return Examples(places, [pictures.name(place) for place in places], images, levels)


def log_components(trainer: ProjectTrainer, inspector: Inspector, data: InspectionData) -> None:
    """Log the picture and the table `components`; other processes than the first do nothing.

    Args:
        trainer: the trainer, with its device and run.
        inspector: the inspector, fitted.
        data: the pictures that it was fitted to.
    """
    if trainer.is_global_zero:
        examples = take_examples(inspector, data.train_set, trainer.strategy.root_device)
        log_figure(trainer, "components", draw_components(inspector, examples))
        log_table(trainer, "components", component_rows(inspector))


def draw_components(inspector: Inspector, examples: Examples) -> Figure:
    """Draw example pictures above their components in colour, with a legend of all clusters."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, (height, width) = len(examples.images), inspector.size
    figure = Figure(figsize=(_INCHES * count, 2 * _INCHES * height / width + 0.8), layout="constrained")
    axes = figure.subplots(2, count, squeeze=False)
    for column, name in enumerate(examples.names):
        for row, pictures in enumerate((examples.images, examples.coloured)):
            axes[row][column].imshow(pictures[column].permute(1, 2, 0).numpy())
            axes[row][column].axis("off")
        axes[0][column].set_title(name, fontsize=9, parse_math=False)
    handles = [Patch(facecolor=colour, label=label) for colour, label in legend(inspector)]
    texts = figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 2 * count), frameon=False, fontsize=9).get_texts()
    for text in texts:
        text.set_parse_math(False)
    return figure


def legend(inspector: Inspector) -> list[tuple[str, str]]:
    """Return colour, as `#rrggbb`, and label of each cluster: its number and name; the filter left `background` out."""
    colours, keep = palette(inspector.recipe.k).tolist(), inspector.metrology.keep.tolist()
    names = inspector.judgement.names
    labels = [f"{k} {names.get(k, '') if is_kept else 'background'}".strip() for k, is_kept in enumerate(keep)]
    return [("#{:02x}{:02x}{:02x}".format(*colour), label) for colour, label in zip(colours, labels, strict=True)]


def component_rows(inspector: Inspector) -> list[dict[str, Any]]:
    """Say what was learnt of each component, a row each; see `Metrology.report`.

    Areas are in % of the picture, those of size classes in pixels; `fit none` is the part of the training pieces that are of no class, in %.
    """
    height, width = inspector.size
    judgement = inspector.judgement
    return [
        {
            "component": row["component"],
            "name": judgement.names.get(row["component"], ""),
            "weight": judgement.weights.get(row["component"], 1.0),
            "area %": round(100 * row["area"] / (height * width), 3),
            "colour": round(row["colour"], 4),
            "pieces": row["pieces"],
            "size classes": "; ".join(f"{found['pieces']} of {found['from']} to {found['to']} px" for found in row["classes"]),
            "fit none %": round(100 * row["noise"], 2),
            "offset": row["offset"],
        }
        for row in inspector.metrology.report()
    ]
