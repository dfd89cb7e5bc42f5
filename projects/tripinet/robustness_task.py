"""The verb `robustness`: what is left of the measures when test pictures are degraded before any preprocessing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from projects.tripinet.data import ForgedPictures, ManipulationData, WholePictures
from projects.tripinet.decoders import resize
from projects.tripinet.metrics import LocalisationMetrics, mean_of_known
from projects.tripinet.model import LEAST
from projects.tripinet.module import ManipulationLocalisation, measure
from projects.tripinet.pairs import AUTHENTIC
from projects.tripinet.robustness import DEGRADATIONS, degrade
from shared.data.selection import evenly_spaced
from shared.loggers import log_figure, log_table
from shared.pictures import curves

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

MEASURES = ("pixel_f1", "pixel_auc", "image_auc")
BATCH = 16
"""Pictures of one size that are judged at once, at most."""


class Setting(NamedTuple):
    """A degradation and its strength, in its own unit; None for the pictures as they are."""

    degradation: str
    strength: float | None

    def apply(self, image: Tensor, index: int, seed: int) -> Tensor:
        """Degrade a picture, (3, H, W) uint8 -> (3, H', W') uint8; see `degrade`."""
        return image if self.strength is None else degrade(image, self.degradation, self.strength, index, seed)


UNTOUCHED = Setting("none", None)
Values = dict[str, dict[Setting, dict[str, float]]]
"""Measures by their names, of each setting, of each test set."""


@dataclass(frozen=True)
class Measured:
    """What `robustness` returns: a row a test set and setting, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


def robustness(
    trainer: ProjectTrainer, module: ManipulationLocalisation, data: ManipulationData, degradations: Sequence[str] | None, pictures: int
) -> Measured:
    """Measure the maps of degraded test pictures; write the table and the curves, and print a line for each degradation.

    Args:
        trainer: of the verb.
        module: the detector.
        data: whose test sets are taken.
        degradations: keys of `DEGRADATIONS`; None is all.
        pictures: manipulated pictures of each set, evenly spread over it, and as many authentic ones, where there are so many.

    Raises:
        ValueError: if there is no such degradation, or `pictures` is below 1.
    """
    settings = expand(degradations)
    if pictures < 1:
        raise ValueError(f"pictures, of each test set, must be at least 1, got {pictures}")
    data.prepare_data()
    module.to(trainer.strategy.root_device).eval()
    values: Values = {}
    left_out: set[Setting] = set()
    for name, test_set in zip(data.test_names, data.test_pictures, strict=True):
        chosen = choose(kinds_of(test_set), pictures)
        print(f"{name}: {len(chosen)} of {len(test_set)} pictures, each degraded in {len(settings) - 1 - len(left_out)} ways ...", flush=True)
        values[name] = _measure_set(module, test_set, chosen, settings, left_out, data.seed)
    rows = tabulate(values, [setting for setting in settings if setting not in left_out])
    log_table(trainer, "robustness", rows)
    return Measured(rows, _report(trainer, rows))


def expand(degradations: Sequence[str] | None) -> list[Setting]:
    """Return the settings of degradations, that of the pictures as they are first; None is all degradations.

    Raises:
        ValueError: if there is no such degradation, or none at all.
    """
    names = list(DEGRADATIONS) if degradations is None else list(dict.fromkeys(degradations))
    unknown = sorted(set(names) - set(DEGRADATIONS))
    if unknown or not names:
        raise ValueError(f"degradations holds {', '.join(unknown) or 'nothing'}: choose of {', '.join(DEGRADATIONS)}")
    return [UNTOUCHED, *(Setting(name, strength) for name in names for strength in DEGRADATIONS[name].strengths)]


def kinds_of(test_set: WholePictures) -> list[str]:
    """Return what was done to each picture, without reading it."""
    pictures = test_set.pictures
    return pictures.kinds if isinstance(pictures, ForgedPictures) else [picture.kind for picture in pictures.pictures]


def choose(kinds: Sequence[str], count: int) -> list[int]:
    """Return the places, ascending, of `count` manipulated and `count` authentic pictures, or of all there are, each evenly spread over its own."""
    places: list[int] = []
    for is_authentic in (False, True):
        found = [place for place, kind in enumerate(kinds) if (kind == AUTHENTIC) == is_authentic]
        places += [found[place] for place in evenly_spaced(len(found), count)]
    return sorted(places)


def batches(test_set: WholePictures, chosen: Sequence[int], pixels: int) -> Iterator[dict[str, Any]]:
    """Read pictures, each once, and yield neighbours of one size together: `BATCH` at most, and of so many pixels, unless one alone has more.

    Batches are {"image": (B, 3, H, W) uint8, "mask": (B, 1, H, W) uint8, ...}, see `WholePictures`.
    """
    waiting: list[dict[str, Any]] = []
    for index in chosen:
        item = test_set[index]
        mask = item["mask"]
        if waiting and (mask.shape != waiting[0]["mask"].shape or len(waiting) == BATCH or (len(waiting) + 1) * mask.numel() > pixels):
            yield default_collate(waiting)
            waiting = []
        waiting.append(item)
    if waiting:
        yield default_collate(waiting)


def _measure_set(
    module: ManipulationLocalisation, test_set: WholePictures, chosen: Sequence[int], settings: Sequence[Setting], left_out: set[Setting], seed: int
) -> dict[Setting, dict[str, float]]:
    """Return the measures of each setting, and add those that make a picture too small to `left_out`."""
    measured = {setting: LocalisationMetrics() for setting in settings}
    for batch in batches(test_set, chosen, module.hparams.whole):
        for setting, metrics in measured.items():
            if setting in left_out:
                continue
            numbered = zip(batch["image"], batch["index"].tolist(), strict=True)
            degraded = torch.stack([setting.apply(image, index, seed) for image, index in numbered])
            if setting is not UNTOUCHED and min(degraded.shape[2:]) < LEAST:
                left_out.add(setting)
                size = " x ".join(map(str, degraded.shape[2:]))
                print(f"{setting.degradation} {setting.strength:g} is left out: it makes pictures of {size}, and they need {LEAST} x {LEAST} pixels")
                continue
            judge_degraded(module, degraded, batch, metrics)
    return {setting: metrics.compute() for setting, metrics in measured.items()}


def judge_degraded(module: ManipulationLocalisation, degraded: Tensor, batch: dict[str, Any], metrics: LocalisationMetrics) -> None:
    """Measure the maps of degraded pictures, the logits being resized to the masks.

    Args:
        module: the detector, in evaluation mode.
        degraded: (B, 3, H', W') uint8.
        batch: what they were made of, see `batches`.
        metrics: what they are added to.
    """
    judged = module.judge(degraded)
    size, temperature = batch["mask"].shape[2:], module.decision.temperature
    logits = judged.logits if judged.logits.shape[2:] == size else resize(judged.logits, size)
    measure(metrics, batch, module.decision.probabilities(logits), judged.raw / temperature)


def tabulate(values: Values, settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return a row for each setting and set, and for the mean of the sets but `control`, whose mask marks untouched pixels."""
    rows: list[dict[str, Any]] = []
    counted = [name for name in values if name != "control"] or list(values)
    for setting in settings:
        found = {name: {key: values[name][setting].get(key, math.nan) for key in MEASURES} for name in values}
        found["mean"] = {key: mean_of_known([found[name][key] for name in counted]) for key in MEASURES}
        unit = "" if setting is UNTOUCHED else DEGRADATIONS[setting.degradation].unit
        about: dict[str, Any] = {"degradation": setting.degradation, "unit": unit, "strength": setting.strength}
        rows += [{"set": name} | about | measures for name, measures in found.items()]
    return rows


def _report(trainer: ProjectTrainer, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Draw and print the means over the sets, and return the summary."""
    (clean, *degraded) = [row for row in rows if row["set"] == "mean"]
    print(f"untouched: pixel F1 {clean['pixel_f1']:.3f}, AUC of pixels {clean['pixel_auc']:.3f}, of pictures {clean['image_auc']:.3f}")
    lines: dict[str, list[tuple[float, float]]] = {}
    drops = []
    for name in dict.fromkeys(row["degradation"] for row in degraded):
        pairs = [(row["strength"], row["pixel_f1"]) for row in degraded if row["degradation"] == name]
        lines[f"{name.replace('_', ' ')}\n{DEGRADATIONS[name].unit}"] = pairs
        drops.append(clean["pixel_f1"] - mean_of_known([value for _, value in pairs]))
        listed = ", ".join(f"{value:.3f} at {strength:g}" for strength, value in pairs)
        print(f"{name} ({DEGRADATIONS[name].unit}): pixel F1 {listed}; {drops[-1]:.3f} lost on average")
    if lines:
        log_figure(trainer, "robustness", curves(lines, clean["pixel_f1"], "pixel F1 at 0.5"))
    return {"robustness/pixel_f1": round(clean["pixel_f1"], 4), "robustness/mean_drop": round(mean_of_known(drops), 4)}
