"""The verb `robustness`: what is left of the measures when depth is corrupted, and whether near and far are taken for each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from projects.hodinet.corruption import CORRUPTIONS, corrupt
from projects.hodinet.data import SaliencyData, WholePictures
from projects.hodinet.depth import polarity, polarity_table
from projects.hodinet.metrics import SaliencyMetrics
from projects.hodinet.module import SaliencyDetection
from projects.hodinet.quality import depth_quality
from projects.hodinet.tasks import SIDE
from shared.data.selection import evenly_spaced
from shared.loggers import log_figure, log_table
from shared.pictures import curves, shrunk
from shared.results import markdown
from shared.seeding import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

MEASURES = ("s_measure", "f_max", "e_max", "mae", "quality")
"""Of the protocol `pysod`, and the score of `projects.hodinet.quality.depth_quality`."""
BETTER = 0.01
"""How much larger S of inverted depth is, at least, where near and far seem to be mixed up: a network that leaves depth aside tells nothing."""


class Setting(NamedTuple):
    """A corruption and its strength, which is None where it has no degrees, as for depth as it is."""

    corruption: str
    strength: float | None = None

    def apply(self, depth: Tensor, other: Tensor, index: int, seed: int) -> Tensor:
        """Corrupt a depth map, see `projects.hodinet.corruption.corrupt`."""
        return depth if self == UNTOUCHED else corrupt(depth, self.corruption, self.strength, index, seed, other)


UNTOUCHED = Setting("untouched")
Values = dict[Setting, dict[str, float]]
"""Measures by name, of each setting."""


@dataclass(frozen=True)
class Measured:
    """What `robustness` returns: a row a test set and setting, a row a test set about near and far, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    polarity: list[dict[str, Any]]
    summary: dict[str, Any]


def robustness(trainer: ProjectTrainer, module: SaliencyDetection, data: SaliencyData, corruptions: Sequence[str] | None, pictures: int) -> Measured:
    """Measure maps of test pictures whose depth is corrupted; write tables, curves and examples, and print what came of it.

    Args:
        trainer: of the verb.
        module: the network.
        data: whose test sets are taken.
        corruptions: keys of `CORRUPTIONS`; None is all.
        pictures: of each test set, evenly spread over it, at most.

    Raises:
        ValueError: if there is no such corruption, `pictures` is below 1, the network does not look at depth, or there is nothing to corrupt.
    """
    settings = expand(corruptions)
    if pictures < 1:
        raise ValueError(f"pictures, of each test set, must be at least 1, got {pictures}")
    if "depth" not in module.net.encoders:
        raise ValueError("the network does not look at depth, so nothing that befalls depth changes its maps: take a run whose model.streams has it")
    data.prepare_data()
    least = 2 if settings == [UNTOUCHED, Setting("shuffled")] else 1
    if max(map(len, data.test_pictures), default=0) < least:
        raise ValueError(
            f"no test set in {data.root} has {least} or more pictures, which {', '.join(corruptions or CORRUPTIONS)} need: put some there"
        )
    module.to(trainer.strategy.root_device).eval()
    values: dict[str, Values] = {}
    correlations: dict[str, list[float]] = {}
    for name, test_set in zip(data.test_names, data.test_pictures, strict=True):
        own = [setting for setting in settings if len(test_set) > 1 or setting.corruption != "shuffled"]
        chosen = evenly_spaced(len(test_set), pictures)
        print(f"{name}: {len(chosen)} of {len(test_set)} pictures, the depth of each corrupted in {len(own) - 1} ways ...", flush=True)
        with trainer.precision_plugin.forward_context():
            values[name], correlations[name] = measure_set(module, test_set, chosen, own, data)
    rows = tabulate(values, settings)
    log_table(trainer, "robustness", rows)
    with trainer.precision_plugin.forward_context():
        log_figure(trainer, "examples", draw_examples(module, data.test_pictures[0], 0, list(values[data.test_names[0]]), data.seed))
    summary = _report(trainer, rows)
    told = [] if data.options.modality == "thermal" else tell_polarity(polarity_table(correlations), values)
    if told:
        log_table(trainer, "polarity", told)
        print("\n".join(f"{row['set']}: {row['verdict']}" for row in told))
    return Measured(rows, told, summary)


def expand(corruptions: Sequence[str] | None) -> list[Setting]:
    """Return the settings of corruptions, that of depth as it is first; None is all corruptions.

    Raises:
        ValueError: if there is no such corruption, or none at all.
    """
    names = list(CORRUPTIONS) if corruptions is None else list(dict.fromkeys(corruptions))
    unknown = sorted(set(names) - set(CORRUPTIONS))
    if unknown or not names:
        raise ValueError(f"corruptions holds {', '.join(unknown) or 'nothing'}: choose of {', '.join(CORRUPTIONS)}")
    return [UNTOUCHED, *(Setting(name, strength) for name in names for strength in CORRUPTIONS[name].strengths or (None,))]


def partner(index: int, length: int, seed: int) -> int:
    """Return the place of the picture whose depth `shuffled` takes, at random of so many; it is another one, unless there is no other."""
    return (index + 1 + int(torch.randint(max(length - 1, 1), (), generator=generator(seed, "partner", index)))) % length


def measure_set(
    module: SaliencyDetection, test_set: WholePictures, chosen: Sequence[int], settings: Sequence[Setting], data: SaliencyData
) -> tuple[Values, list[float]]:
    """Return the measures of each setting, and the polarity of each picture as it is.

    All settings of a picture are judged together, one by one where pictures are not scaled to a size first; no other picture is held besides.
    """
    measured = {setting: SaliencyMetrics() for setting in settings}
    qualities: dict[Setting, list[float]] = {setting: [] for setting in settings}
    correlations = []
    together = data.batch_size if module.hparams.size is not None else 1
    for index in chosen:
        one = test_set[index]
        image, depths = one["image"], corrupted(test_set, index, one["depth"], settings, data.seed)
        correlations.append(polarity(one["depth"], one["mask"]))
        maps = torch.cat([module(image.expand(len(part), -1, -1, -1), part).cpu() for part in depths.split(together)])
        for setting, found, depth in zip(settings, maps, depths, strict=True):
            measured[setting].update(found, one["mask"])
            qualities[setting].append(depth_quality(image, depth))
    return {key: metrics.compute() | {"quality": math.fsum(qualities[key]) / len(chosen)} for key, metrics in measured.items()}, correlations


def corrupted(test_set: WholePictures, index: int, depth: Tensor, settings: Sequence[Setting], seed: int) -> Tensor:
    """Return the depth of a picture, (1, H, W), in each setting, (settings, 1, H, W)."""
    is_shuffled = any(setting.corruption == "shuffled" for setting in settings)
    other = test_set.pictures.read(partner(index, len(test_set), seed)).depth if is_shuffled else depth
    return torch.stack([setting.apply(depth, other, index, seed) for setting in settings])


def tabulate(values: Mapping[str, Values], settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """Return a row for each setting and set, and for the mean of the sets where there are several; `change` is that of S."""
    rows: list[dict[str, Any]] = []
    for setting in settings:
        found = {name: dict(own[setting]) for name, own in values.items() if setting in own}
        for name, measures in found.items():
            measures["change"] = measures["s_measure"] - values[name][UNTOUCHED]["s_measure"]
        if len(values) > 1 and found:
            found["mean"] = {key: math.fsum(measures[key] for measures in found.values()) / len(found) for key in (*MEASURES, "change")}
        unit = "" if setting == UNTOUCHED else CORRUPTIONS[setting.corruption].unit
        about = {"corruption": setting.corruption, "unit": unit, "strength": setting.strength}
        rows += [{"set": name} | about | {key: measures[key] for key in (*MEASURES, "change")} for name, measures in found.items()]
    return rows


def _report(trainer: ProjectTrainer, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Draw and print the mean over the sets, or the only set, and return the summary."""
    clean, *others = (row for row in rows if row["set"] == rows[-1]["set"])
    print("\n" + markdown([_shown(row) for row in (clean, *others)]) + "\n")
    log_figure(trainer, "robustness", draw_curves(clean, others))
    names = dict.fromkeys(row["corruption"] for row in others)
    changes = {name: [row["change"] for row in others if row["corruption"] == name] for name in names}
    mean_change = math.fsum(math.fsum(own) / len(own) for own in changes.values()) / len(changes)
    return {"robustness/s_measure": round(clean["s_measure"], 4), "robustness/mean_change": round(mean_change, 4)}


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a row of the table that people read."""
    strength = "" if row["strength"] is None else f"{row['strength']:g} ({row['unit']})"
    numbers = {title: f"{row[key]:.3f}" for title, key in (("S", "s_measure"), ("max F", "f_max"), ("MAE", "mae"), ("depth quality", "quality"))}
    change = round(row["change"], 3) + 0.0  # no -0.000
    return {"corruption": row["corruption"], "strength": strength} | numbers | {"change of S": f"{change:+.3f}"}


def draw_curves(clean: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw S over the strength of each corruption, and, in the first panel, of those that have no degrees."""
    whole = {row["corruption"]: row["s_measure"] for row in others if row["strength"] is None}
    lines: dict[str, list[tuple[float, float]]] = {"the whole map": list(enumerate(whole.values()))} if whole else {}
    for row in others:
        if row["strength"] is not None:
            lines.setdefault(f"{row['corruption']}\n{row['unit']}", []).append((row["strength"], row["s_measure"]))
    figure = curves(lines, clean["s_measure"], "S")
    if whole:
        first = figure.axes[0]
        first.lines[-1].set_linestyle("none")
        first.set(xticks=range(len(whole)), xticklabels=list(whole), xlim=(-0.5, len(whole) - 0.5))
    return figure


def draw_examples(module: SaliencyDetection, test_set: WholePictures, index: int, settings: Sequence[Setting], seed: int) -> Figure:
    """Draw a picture and its mask, and beside them its depth (near is bright) and map, as it is and under the strongest of each corruption."""
    from matplotlib.figure import Figure

    one, strongest = test_set[index], list({setting.corruption: setting for setting in settings}.values())
    columns = [("picture, mask", one["image"] / 255, one["mask"].float())]
    for setting, depth in zip(strongest, corrupted(test_set, index, one["depth"], strongest, seed), strict=True):
        strength = "" if setting.strength is None else f" {setting.strength:g}"
        columns.append((f"{setting.corruption}{strength}", depth, module(one["image"][None], depth[None])[0].cpu()))
    figure = Figure(figsize=(1.5 * len(columns), 3.3), layout="constrained")
    for axes, (title, above, below) in zip(figure.subplots(2, len(columns)).T, columns, strict=True):
        axes[0].set_title(title, fontsize="medium")
        for axis, layer, colours in zip(axes, (above, below), ("gray", "inferno" if title != columns[0][0] else "gray"), strict=True):
            axis.imshow(shrunk(layer, SIDE).movedim(0, -1).numpy(), cmap=colours, vmin=0, vmax=1)
            axis.set_axis_off()
    return figure


def tell_polarity(table: Sequence[dict[str, Any]], values: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Add to the rows of `polarity_table` S as it is, S of inverted depth where that was measured, and in words what follows for `data.invert`."""
    told = []
    for row in table:
        own = values[row["set"]]
        s_measure, s_inverted = own[UNTOUCHED]["s_measure"], own.get(Setting("inverted"), {}).get("s_measure")
        verdict = _verdict(row["pictures"], row["nearer"], s_measure, s_inverted)
        told.append(row | {"s_measure": s_measure, "s_inverted": s_inverted, "verdict": verdict})
    return told


def _verdict(pictures: int, nearer: float, s_measure: float, s_inverted: float | None) -> str:
    if not pictures:
        return "nothing tells which way round its depth is, for depth or mask is the same everywhere"
    seen = f"what is salient is nearer in {nearer:.0%} of {pictures} pictures"
    scored = f"S is {s_measure:.3f}" + ("" if s_inverted is None else f", and {s_inverted:.3f} with depth inverted")
    is_right, is_better = nearer >= 0.5, s_inverted is not None and s_inverted - s_measure > BETTER
    if is_right and not is_better:
        return f"depth looks the right way round ({seen}; {scored}): leave data.invert as it is"
    if is_right:
        return f"depth looks the right way round ({seen}), yet {scored}: check data.invert of the training sets"
    change = "add the set to data.invert, or remove it from there"
    return f"depth looks the wrong way round ({seen}; {scored}): {change}"
