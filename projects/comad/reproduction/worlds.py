"""Trays, inspectors that are fitted to them with the settings of configs/tiny.yaml, and their scores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projects.comad.drawing import COMPONENTS
from projects.comad.inspector import Examined, Inspector
from projects.comad.metrics import ComponentOverlap, image_aurocs
from projects.comad.module import ComponentInspection
from projects.comad.traysim import Kind, Split, Tray, draw_tray
from shared.jobs import kept_arrays

FIRST_SEED = 11
"""World of seed 0, for trays and inspectors: the colours of trays were chosen on the worlds 0 to 2, and 3 to 5 and 10 were looked at."""
LOGICAL: tuple[Kind, ...] = ("missing", "extra", "wrongmix", "fill")
"""Kinds that ComAD's own measures are to tell; those that break a rule of place, `swap`, are not among them."""
KINDS: tuple[Kind, ...] = (*LOGICAL, "swap", "scratch", "paint")
TINY: dict[str, Any] = {"features": "offline", "k": 8, "crf": False, "parts": ["logical", "position", "patches"], "patches": 1000}
"""Options of the inspectors."""
BATCH = 32

Found = dict[str, dict[str, Tensor]]
"""(N,) scores by set of trays and part."""


class Size(NamedTuple):
    """Numbers of trays: of training, of validation, and of each kind of the test."""

    training: int
    validation: int
    tested: int


FULL, QUICK = Size(120, 40, 40), Size(40, 16, 8)


def draw(split: Split, kind: Kind, count: int, seed: int, on: str | None = None) -> list[Tray]:
    """Draw trays of a seed's world; see `draw_tray`."""
    return [draw_tray(split, index, kind, FIRST_SEED + seed, on=on) for index in range(count)]


def batches(trays: Sequence[Tray]) -> list[Tensor]:
    """Return the pictures of trays in batches, (B, 3, S, S) uint8."""
    return list(torch.stack([tray.image for tray in trays]).split(BATCH))


def build(seed: int, **options: Any) -> ComponentInspection:
    """Return an inspector's module of a seed that is not fitted yet; options besides `TINY`."""
    return ComponentInspection(**(TINY | options), seed=FIRST_SEED + seed)


def learn(inspector: Inspector, size: Size, seed: int) -> Inspector:
    """Fit an inspector to good trays."""
    training, validation = draw("train", "good", size.training, seed), draw("validation", "good", size.validation, seed)
    return inspector.fit(batches(training), batches(validation))


def fitted(kept: Path, size: Size, seed: int) -> Inspector:
    """Return the inspector of `TINY`, which is fitted once and kept in a file of the folder `kept`: tables share it."""
    path = kept / f"{_key(size[:2], seed)}.safetensors"
    module = build(seed)
    if path.is_file():
        return module.load(path).inspector
    inspector = learn(module.inspector, size, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    inspector.save(path)
    return inspector


def scores(inspector: Inspector, trays: Sequence[Tray]) -> dict[str, Tensor]:
    """Return the (N,) scores of trays by part."""
    return joined([inspector.examine(images) for images in batches(trays)])


def joined(examined: Sequence[Examined]) -> dict[str, Tensor]:
    """Return the scores of batches one after the other."""
    return {part: torch.cat([batch.scores[part] for batch in examined]) for part in examined[0].scores}


def scored(kept: Path, size: Size, seed: int) -> Found:
    """Return scores of the test trays by kind, of `validation`, and of `outlier`, one incomplete tray of that split; they are kept as well."""

    def made() -> dict[str, Any]:
        inspector = fitted(kept, size, seed)
        sets: dict[str, list[Tray]] = {kind: draw("test", kind, size.tested, seed) for kind in ("good", *KINDS)}
        sets |= {"validation": draw("validation", "good", size.validation, seed), "outlier": draw("validation", "missing", 1, seed)}
        return {f"{name}/{part}": values.numpy() for name, trays in sets.items() for part, values in scores(inspector, trays).items()}

    found: Found = {}
    for name, values in kept_arrays(kept / f"{_key(size, seed)}.npz", made).items():
        trays, part = name.split("/")
        found.setdefault(trays, {})[part] = torch.from_numpy(values)
    return found


def aurocs(by_kind: Mapping[Kind, Tensor]) -> dict[str, float]:
    """Return the AUROC of `good` scores against each other kind, and `logical mean`, the mean over the kinds of `LOGICAL`."""
    kinds: list[str] = [kind for kind, values in by_kind.items() for _ in values]
    found = image_aurocs(torch.cat(list(by_kind.values())), kinds)
    means: dict[str, float] = {kind: found[kind] for kind in by_kind if kind != "good"}
    return means | {"logical mean": sum(found[kind] for kind in LOGICAL) / len(LOGICAL)}


def overlap(inspector: Inspector, trays: Sequence[Tray]) -> ComponentOverlap:
    """Compare the clusters of trays' pixels, the largest heat map each, with what was drawn there."""
    assert inspector.centres is not None
    found = ComponentOverlap(len(inspector.centres), len(COMPONENTS))
    drawn = torch.stack([tray.components for tray in trays]).split(BATCH)
    for images, truth in zip(batches(trays), drawn, strict=True):
        found.update(inspector.segment(images).argmax(1), truth)
    return found


def meanings(inspector: Inspector, trays: Sequence[Tray]) -> list[str]:
    """Say of each cluster what most of its pixels were drawn as; an edge between two things may have a cluster of its own."""
    return [COMPONENTS[number] for number in overlap(inspector, trays).pixels.argmax(1).tolist()]


def _key(*settings: Any) -> str:
    return hashlib.sha256(json.dumps([FIRST_SEED, TINY, *settings], sort_keys=True).encode()).hexdigest()[:16]
