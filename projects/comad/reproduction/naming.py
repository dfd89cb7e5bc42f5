"""Whether the right component and the right measure are named (claim 6)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from projects.comad.inspector import Inspector
from projects.comad.naming import Finding
from projects.comad.reproduction import worlds
from projects.comad.reproduction.worlds import Size
from projects.comad.traysim import Kind, Tray
from shared.tables import Job, Rows, Table

NAMED, MEASURED, CONTRIBUTING, RANDOM = WAYS = ("farthest component", "and its measure", "largest contribution", "a random component")
"""Ways of naming: by deviations; the measure must be right, too; by the share of the logical score; and by chance."""
KINDS: tuple[Kind, ...] = (*worlds.LOGICAL, "swap")
MEASURES: dict[str, Callable[[str], bool]] = {
    **dict.fromkeys(("missing", "extra", "wrongmix"), lambda measure: measure == "area" or measure.startswith("number")),
    "fill": lambda measure: measure in ("area", "y"),
    "swap": lambda measure: measure in ("x", "y"),
}
"""Which measure an anomaly changes by what it is; a level of grain is an area and a height."""


def is_right(components: Collection[int], meanings: Sequence[str], altered: Collection[str]) -> bool:
    """Say whether clusters, at least one, are all drawn as something that is altered."""
    return bool(components) and {meanings[k] for k in components} <= set(altered)


def judged(findings: Sequence[Finding], kind: str, meanings: Sequence[str], altered: Collection[str]) -> tuple[bool, bool]:
    """Say whether the component of a tray's first finding is right, and its measure as well; both are wrong where nothing stands out."""
    named = bool(findings) and is_right(findings[0].components, meanings, altered)
    return named, named and MEASURES[kind](findings[0].measure)


def rates(inspector: Inspector, trays: Sequence[Tray], meanings: Sequence[str]) -> dict[str, float]:
    """Return the part of the trays of one kind in which each way of naming is right."""
    components, right = inspector.metrology.components, dict.fromkeys(WAYS, 0.0)
    for tray, (findings, largest) in zip(trays, _named(inspector, trays), strict=True):
        named, measured = judged(findings, tray.kind, meanings, tray.altered)
        right[NAMED] += named
        right[MEASURED] += measured
        right[CONTRIBUTING] += is_right([largest], meanings, tray.altered)
        right[RANDOM] += sum(is_right([k], meanings, tray.altered) for k in components) / len(components)
    return {name: count / len(trays) for name, count in right.items()}


def _named(inspector: Inspector, trays: Sequence[Tray]) -> Iterator[tuple[list[Finding], int]]:
    """Yield what stands out in each tray, and the component that contributes most to its logical score."""
    for images in worlds.batches(trays):
        examined = inspector.examine(images)
        most = examined.logical.contributions["logical"].argmax(1).tolist()
        for findings, place in zip(inspector.judge(examined).findings, most, strict=True):
            yield findings, inspector.metrology.components[place]


def rows(kept: Path, size: Size, seed: int) -> Rows:
    """Return a row for each way of naming."""
    inspector = worlds.fitted(kept, size, seed)
    meanings = worlds.meanings(inspector, worlds.draw("train", "good", size.tested, seed))
    found = {kind: rates(inspector, worlds.draw("test", kind, size.tested, seed), meanings) for kind in KINDS}
    return [{"named": way, "seed": seed, **{kind: found[kind][way] for kind in KINDS}} for way in WAYS]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each seed."""
    return [Job("naming", seed, rows, (kept, worlds.QUICK if quick else worlds.FULL)) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the altered component is named where a piece is missing or one too many."""
    [named] = [row for row in summary if row["named"] == NAMED]
    return {f"(6) {kind}: the altered component is named in at least 80 %": named[kind]["mean"] >= 0.8 for kind in ("missing", "extra")}


TABLE = Table(
    "Names of anomalies: part of the trays in which the altered component is named (claim 6)",
    "The component, and the measure, that lie farthest from those of good pictures say what is wrong.",
    ("named",),
    jobs,
    expectations,
    seeds=5,
)
