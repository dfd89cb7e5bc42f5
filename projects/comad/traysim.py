"""Trays in four compartments, of which some break a rule and others are scratched: a miniature of MVTec LOCO AD.

tray = draw_tray("test", index=7, kind="missing", seed=0, size=128)     # tray.image, tray.defects, tray.components, tray.altered
write_loco(Path("datasets/traysim"), seed=0)                             # the same pictures in the layout of MVTec LOCO AD

A good tray holds two oranges and an apple, three pins, two rings, and grain up to 60 % of the height of its compartment; pieces lie anywhere in their
compartment without touching. A tray is a function of (seed, split, index, kind, size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from projects.comad.defects import CONFIG, Defect, DefectType, write_config
from projects.comad.drawing import (
    COMPONENTS,
    CORNERS,
    FRUIT,
    HOLE,
    INSIDE,
    PIN,
    RING,
    THICK,
    UNIT,
    Canvas,
    Piece,
    choose,
    compartment,
    draw_floor,
    draw_grain,
    draw_piece,
    paint,
    scratch,
    within,
)
from shared.runs import atomic, claim_folder
from shared.seeding import generator

Kind = Literal["good", "missing", "extra", "wrongmix", "swap", "fill", "scratch", "paint"]
"""Good; a piece too few or too many; another mix of fruit; pins and rings in each other's place; grain to 30 or 90 %; a scratch; a stain of paint."""

Split = Literal["train", "validation", "test"]

LOGICAL: tuple[Kind, ...] = ("missing", "extra", "wrongmix", "swap", "fill")
"""Kinds in which only the whole is wrong."""
STRUCTURAL: tuple[Kind, ...] = ("scratch", "paint")
"""Kinds in which a place looks wrong."""

SURFACES = ("floor", "grain")
"""Components with room for a scratch."""

COUNTS = {"orange": 2, "apple": 1, "pin": 3, "ring": 2}
"""Pieces of each sort in a good tray."""

_PLACE = {"orange": "fruit", "apple": "fruit", "pin": "pin", "ring": "ring"}
_MIXES = {3: "three_oranges_no_apple", 1: "one_orange_two_apples"}
_GAP, _MARGIN = 2 * UNIT, 1 * UNIT  # between pieces; to walls

LEVEL, WRONG_LEVELS = 0.6, (0.3, 0.9)
"""Height of the grain in a good tray, and in those of the kind fill, in parts of its compartment."""


@dataclass(frozen=True)
class Tray:
    """A tray.

    Attributes:
        image: (3, S, S) uint8.
        components: (S, S) uint8, numbers in `COMPONENTS`; scratches and paint do not change what lies below them.
        defects: what is wrong; none in a good tray.
        altered: names of the components that are wrong: a piece too few or too many, what lies in a wrong place, below a scratch or paint.
        kind: see `Kind`.
    """

    image: Tensor
    components: Tensor
    defects: tuple[Defect, ...]
    altered: tuple[str, ...]
    kind: Kind


@dataclass
class _Plan:
    """What is to be drawn."""

    counts: dict[str, int] = field(default_factory=lambda: dict(COUNTS))
    places: dict[str, str] = field(default_factory=lambda: dict(_PLACE))
    level: float = LEVEL
    name: str = ""
    altered: tuple[str, ...] = ()


def draw_tray(split: Split, index: int, kind: Kind = "good", seed: int = 0, size: int = 128, on: str | None = None) -> Tray:
    """Draw a tray.

    Args:
        split: train, validation and test hold different trays.
        index: number of the tray, 0 or more.
        kind: what is wrong with it.
        seed: seed of everything.
        size: side S in pixels, at least 64.
        on: confines scratches and paint to one of `SURFACES`, away from its borders; None is anywhere.

    Raises:
        ValueError: if an argument is out of its range.
    """
    for name, value, known in (("split", split, Split), ("kind", kind, Kind)):
        if value not in get_args(known):
            raise ValueError(f"{name} must be one of {', '.join(get_args(known))}, got {value!r}")
    if size < 64 or index < 0:
        raise ValueError(f"size must be at least 64 pixels and index 0 or more, got {size} and {index}")
    if on is not None and (on not in SURFACES or kind not in STRUCTURAL):
        raise ValueError(f"on must be one of {', '.join(SURFACES)}, with the kinds {' and '.join(STRUCTURAL)}, got {on!r} with {kind}")
    chance = generator(seed, "trays", split, kind, index)
    plan = _plan(kind, chance)
    canvas = Canvas(size)
    draw_floor(canvas, chance)
    draw_grain(canvas, plan.level, chance)
    for piece in _placed(plan, chance):
        draw_piece(canvas, piece, chance)
    if kind in STRUCTURAL:
        everywhere = torch.ones_like(canvas.components, dtype=torch.bool)
        allowed = everywhere if on is None else within(canvas.components == COMPONENTS.index(on))
        mask = (scratch if kind == "scratch" else paint)(canvas, chance, allowed)
        plan.name, plan.altered = kind, _below(canvas.components, mask)
        masks: dict[str, Tensor] = {kind: mask}
    else:
        masks = _wrong(plan, kind, canvas.components)
    types = defect_types(size)
    defects = tuple(Defect(mask, types[name]) for name, mask in masks.items())
    return Tray(canvas.finished(chance), canvas.components, defects, plan.altered, kind)


# ---- what is wrong


def _plan(kind: Kind, chance: torch.Generator) -> _Plan:
    """Say what a tray of some kind holds, and what its defect is called."""
    plan = _Plan()
    if kind in ("missing", "extra"):
        sort = tuple(COUNTS)[choose(len(COUNTS), chance)]
        plan.counts[sort] += 1 if kind == "extra" else -1
        plan.name, plan.altered = f"{kind}_{sort}", (sort,)
    if kind == "wrongmix":
        oranges = tuple(_MIXES)[choose(2, chance)]
        plan.counts |= {"orange": oranges, "apple": 3 - oranges}
        plan.name, plan.altered = _MIXES[oranges], ("orange", "apple")
    if kind == "swap":
        plan.places |= {"pin": "ring", "ring": "pin"}
        plan.altered = ("pin", "ring")
    if kind == "fill":
        number = choose(2, chance)
        plan.level, plan.name, plan.altered = WRONG_LEVELS[number], ("fill_too_low", "fill_too_high")[number], ("grain",)
    return plan


def _wrong(plan: _Plan, kind: Kind, components: Tensor) -> dict[str, Tensor]:
    """Return the masks of what is wrong with a whole tray, by name, drawn as MVTec does: all places that may count as the wrong one.

    Of a missing piece, that is its compartment; of one too many, all pieces of its sort; of grain, what lies between its level and the right one.
    """

    def pieces(sort: str) -> Tensor:
        return components == COMPONENTS.index(sort)

    if kind == "missing":
        return {plan.name: compartment(_PLACE[plan.altered[0]], components.shape[0])}
    if kind == "extra":
        return {plan.name: pieces(plan.altered[0])}
    if kind == "wrongmix":
        return {plan.name: pieces("orange" if plan.counts["orange"] == 3 else "apple")}
    if kind == "swap":
        return {f"misplaced_{sort}s": pieces(sort) for sort in plan.altered}
    if kind == "fill":
        right = compartment("grain", components.shape[0], LEVEL)
        return {plan.name: pieces("grain") & ~right if plan.level > LEVEL else right & ~pieces("grain")}
    return {}


@cache
def defect_types(size: int = 128) -> dict[str, DefectType]:
    """Return the types of defects by name; where one piece among several is wrong, finding as much as one piece suffices.

    Args:
        size: side of the pictures in pixels, which areas of pieces depend on.
    """
    areas = {"orange": math.pi * FRUIT**2, "apple": math.pi * FRUIT**2, "ring": math.pi * (RING**2 - HOLE**2)}
    areas["pin"] = (PIN - 2 * THICK) * 2 * THICK + math.pi * THICK**2
    of_piece = {f"{kind}_{sort}": sort for kind in ("missing", "extra") for sort in COUNTS}
    of_piece |= {_MIXES[3]: "orange", _MIXES[1]: "apple"}
    whole = ("misplaced_pins", "misplaced_rings", "fill_too_low", "fill_too_high", *STRUCTURAL)
    saturated = {name: (float(round(areas[sort] * size**2)), False) for name, sort in of_piece.items()} | dict.fromkeys(whole, (1.0, True))
    return {name: DefectType(name, 255 - number, *how) for number, (name, how) in enumerate(saturated.items())}


def _below(components: Tensor, mask: Tensor) -> tuple[str, ...]:
    """Return the names of the components below a mask, that with most pixels first; those with less than a tenth of it do not count."""
    counts = components[mask].long().bincount(minlength=len(COMPONENTS))
    return tuple(COMPONENTS[number] for number in counts.argsort(descending=True).tolist() if counts[number] > 0.1 * counts.sum())


# ---- where things lie


def _placed(plan: _Plan, chance: torch.Generator) -> list[Piece]:
    """Place pieces without letting them touch, compartment by compartment."""
    placed: list[Piece] = []
    for sorts in (("orange", "apple"), ("pin",), ("ring",)):
        wanted = [sort for sort in sorts for _ in range(plan.counts[sort])]
        placed += _apart(wanted, plan.places[sorts[0]], chance)
    return placed


def _apart(sorts: Sequence[str], place: str, chance: torch.Generator) -> list[Piece]:
    """Place pieces in a compartment one after the other where there is room; begin anew where there is none."""
    top, left = CORNERS[place]
    while True:
        kept: list[Piece] = []
        circles: list[tuple[float, float, float]] = []
        for row, column, turn in torch.rand(24 * max(1, len(sorts)), 3, generator=chance).tolist():
            if len(kept) == len(sorts):
                return kept
            piece = Piece(sorts[len(kept)], top + INSIDE * row, left + INSIDE * column, math.pi * turn)
            own = _circles(piece)
            if all(_is_inside(circle, top, left) and _is_free(circle, circles) for circle in own):
                kept.append(piece)
                circles += own


def _circles(piece: Piece) -> list[tuple[float, float, float]]:
    """Return circles that cover a piece: row, column and radius."""
    if piece.sort != "pin":
        return [(piece.row, piece.column, RING if piece.sort == "ring" else FRUIT)]
    steps = [(PIN / 2 - THICK) * step / 3 for step in range(-3, 4)]
    return [(piece.row + step * math.sin(piece.angle), piece.column + step * math.cos(piece.angle), THICK) for step in steps]


def _is_inside(circle: tuple[float, float, float], top: float, left: float) -> bool:
    row, column, radius = circle
    room = radius + _MARGIN
    return all(start + room <= middle <= start + INSIDE - room for start, middle in ((top, row), (left, column)))


def _is_free(circle: tuple[float, float, float], others: Sequence[tuple[float, float, float]]) -> bool:
    return all(math.hypot(circle[0] - row, circle[1] - column) > circle[2] + radius + _GAP for row, column, radius in others)


# ---- on disk


def write_loco(
    folder: Path, seed: int = 0, size: int = 128, length: int = 120, val_length: int = 40, test_length: int = 40, kinds: Sequence[Kind] | None = None
) -> Path:
    """Write trays in the layout of MVTec LOCO AD, as the category `traysim`.

    Args:
        folder: folder of the categories.
        seed: seed of everything.
        size: side in pixels.
        length: number of training pictures.
        val_length: number of pictures for validation.
        test_length: number of test pictures of each kind, which follow each other within `logical_anomalies` and `structural_anomalies`.
        kinds: kinds of anomalous test pictures; None takes all.

    Returns:
        The category's folder, which appears when it is complete.

    Raises:
        ValueError: if there is something in that folder that `write_loco` did not write.
    """
    category = claim_folder(folder / "traysim", CONFIG)
    chosen = (*LOGICAL, *STRUCTURAL) if kinds is None else kinds
    with atomic(category) as part:
        part.mkdir()
        write_config(part / CONFIG, defect_types(size).values())
        good: dict[Split, int] = {"train": length, "validation": val_length, "test": test_length}
        for split, count in good.items():
            _write_trays(part, split, "good", [draw_tray(split, index, "good", seed, size) for index in range(count)])
        for group, own in (("logical_anomalies", LOGICAL), ("structural_anomalies", STRUCTURAL)):
            trays = [draw_tray("test", index, kind, seed, size) for kind in own if kind in chosen for index in range(test_length)]
            _write_trays(part, "test", group, trays)
    return category


def _write_trays(folder: Path, split: Split, group: str, trays: Sequence[Tray]) -> None:
    """Write pictures, and the mask of each defect into a folder of the picture's name."""
    for number, tray in enumerate(trays):
        _save(folder / split / group / f"{number:03}.png", tray.image.permute(1, 2, 0))
        for place, defect in enumerate(tray.defects):
            _save(folder / "ground_truth" / group / f"{number:03}" / f"{place:03}.png", defect.mask.byte() * defect.type.pixel_value)


def _save(path: Path, levels: Tensor) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels.numpy()).save(path)
