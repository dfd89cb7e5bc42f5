"""Figures of tests: curves of errors, and scores of both kinds of trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor

from projects.rsknet.judging import FAR, Judged
from projects.rsknet.metrics import det_points
from projects.rsknet.scoring import Scorer
from shared.data.selection import evenly_spaced
from shared.examples import is_due
from shared.loggers import log_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from projects.rsknet.module import SpeakerVerification

TICKS = (0.001, 0.01, 0.05, 0.2, 0.5, 0.8)
SHOWN, RECORDINGS = 4, 160
"""Trial lists whose scores are drawn, and held-out recordings whose cosines are."""


class Similarities(L.Callback):
    """Logs how alike held-out recordings are after epochs that double in number, and after the last one."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if is_due(trainer):
            names = trainer.datamodule.held_names  # type: ignore[attr-defined]
            chosen = evenly_spaced(len(names), min(RECORDINGS, len(names)))
            units = cast("SpeakerVerification", pl_module).validated[chosen]
            log_figure(trainer, "similarities", draw_similarities(units, [names[place] for place in chosen]), trainer.current_epoch + 1)


def draw_similarities(units: Tensor, speakers: Sequence[str]) -> Figure:
    """Draw the cosines of all pairs of (N, E) embeddings of length 1, speaker by speaker: what is of one speaker lies in squares on the diagonal."""
    from matplotlib.figure import Figure

    order = sorted(range(len(speakers)), key=lambda place: speakers[place])
    ends = [place for place in range(1, len(order)) if speakers[order[place]] != speakers[order[place - 1]]]
    figure = Figure(figsize=(5.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow((units[order] @ units[order].T).numpy(), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    for end in ends:
        axes.axhline(end - 0.5, color="black", linewidth=0.3)
        axes.axvline(end - 0.5, color="black", linewidth=0.3)
    axes.set(xticks=[], yticks=[], xlabel="held-out recordings, by speaker")
    figure.colorbar(image, label="cosine")
    return figure


def draw_det(judged: Mapping[str, Judged]) -> Figure:
    """Draw detection error trade-offs on probit axes, a line a list and back-end; the diagonal crosses them at their equal error rates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, one in judged.items():
        alarms, misses = det_points(one.scores, one.trials.is_target)
        axes.plot(alarms, misses, label=f"{name}: {100 * one.measures['eer']:.2f} %")
    places = torch.special.ndtri(torch.tensor(TICKS, dtype=torch.float64)).tolist()
    labels = [f"{100 * tick:g}" for tick in TICKS]
    axes.plot(places, places, color="grey", linestyle=":")
    axes.set(xlabel="false accepts, %", ylabel="misses, %", xlim=(places[0], places[-1]), ylim=(places[0], places[-1]))
    axes.set_xticks(places, labels)
    axes.set_yticks(places, labels)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", title="equal error rate", frameon=False)
    return figure


def draw_scores(judged: Sequence[Judged], scorer: Scorer) -> Figure:
    """Draw calibrated log-likelihood ratios of both kinds of trials of the first lists, by as-norm where it is there.

    The line is the threshold of `FAR` for the longest recordings that were calibrated on.
    """
    from matplotlib.figure import Figure

    backend = "cosine_asnorm" if any(one.backend == "cosine_asnorm" for one in judged) else "cosine"
    chosen = [one for one in judged if one.backend == backend][:SHOWN]
    figure = Figure(figsize=(5, 2.6 * len(chosen)), layout="constrained")
    for number, one in enumerate(chosen, 1):
        axes = figure.add_subplot(len(chosen), 1, number)
        low, high = (float(np.quantile(one.llrs.numpy(), part)) for part in (0.001, 0.999))
        for name, mask in (("different speakers", ~one.trials.is_target), ("same speaker", one.trials.is_target)):
            axes.hist(one.llrs[mask].clamp(low, high).numpy(), bins=80, density=True, alpha=0.6, label=name)
        calibration = scorer.calibrations.get(backend)
        if calibration is not None and calibration.fewest >= 1 / FAR:
            level = float(calibration.threshold(FAR, calibration.span[1:]))
            axes.axvline(level, color="black", linestyle="--", label=f"accepts {FAR:.0%} of impostors with the longest recordings")
        axes.set(xlabel="log-likelihood ratio", ylabel="density", title=f"{one.trials.name}, {backend}")
        axes.legend(fontsize="small", frameon=False)
    return figure
