"""Kinds of anomalies by a few labelled pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from projects.comad.data import resized
from projects.comad.inspector import Inspector
from projects.comad.measures import Measures
from projects.comad.naming import FLOORS
from projects.comad.scoring import nearest_kinds
from shared.data.files import check_images, list_images
from shared.data.inputs import Input, spelt

LAYOUT = "a folder of labelled anomalies with a sub-folder a kind, such as examples/scratch/1.png"


class Example(NamedTuple):
    """A labelled picture: its kind, and where it lies."""

    kind: str
    given: Input


@dataclass(frozen=True)
class Examples:
    """Labelled pictures, measured.

    Attributes:
        kinds: L labels.
        vectors: (L, D), see `kind_vectors`.
    """

    kinds: Sequence[str]
    vectors: Tensor

    def name(self, inspector: Inspector, measures: Measures) -> list[str]:
        """Return the kind of the nearest labelled picture for each of B pictures."""
        return nearest_kinds(kind_vectors(inspector, measures), self.vectors, self.kinds, neighbours=1)


def find_examples(path: str | Path) -> list[Example]:
    """Find labelled pictures, `<path>/<kind>/*.png`, and decode each of them once, before any work.

    Raises:
        FileNotFoundError: if there is no such folder, it has no sub-folders, or one of these has no picture.
        ValueError: if there is one kind only.
        BadFileError: naming all files that cannot be read as pictures.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise FileNotFoundError(f"{root} {what}: expected {LAYOUT}; correct the path")
    folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    if not folders:
        raise FileNotFoundError(f"{root} has no sub-folders: expected {LAYOUT}; sort the pictures into them")
    if len(folders) == 1:
        raise ValueError(f"{root} has one kind only, {folders[0].name}: give at least 2 to tell apart, {LAYOUT}")
    files = [(folder, file) for folder in folders for file in list_images(folder, "labelled anomalies of one kind")]
    check_images([file for _, file in files])
    return [Example(spelt(Path(folder.name)), Input(file, spelt(file.relative_to(root)))) for folder, file in files]


@torch.inference_mode()
def examine_examples(inspector: Inspector, kinds: Sequence[str], batches: Iterable[Sequence[Tensor]], device: torch.device) -> Examples:
    """Measure labelled pictures.

    Args:
        inspector: that of the product.
        kinds: L labels.
        batches: the L pictures, (3, H, W) uint8 of any size.
        device: where they are segmented.
    """
    vectors = []
    for images in batches:
        batch = torch.stack([resized(image, inspector.size) for image in images]).to(device)
        vectors.append(kind_vectors(inspector, inspector.metrology.measure(inspector.segment(batch), batch)))
    return Examples(kinds, torch.cat(vectors))


def kind_vectors(inspector: Inspector, measures: Measures) -> Tensor:
    """Return what kinds are told apart by: g in training deviations, and the extensions that are fused, times the weights of components.

    Histograms of numbers are left out: with them kinds are named no better (in deviations) or much worse (as counts).

    Args:
        inspector: that of the product.
        measures: of B pictures.

    Returns:
        (B, D) float64.
    """
    scorer, weights = inspector.scorer, inspector.weights
    scale = scorer.training.groups["global"].normalised.std(0, correction=0).clamp_min(FLOORS["global"])
    fused = [name for name in measures.groups if name != "global" and name in inspector.judgement.parts]
    return torch.cat([scorer.vectors(measures, weights) / scale, *(scorer.vectors(measures, weights, name) for name in fused)], dim=1)
