"""Testing against the truth, if there is one: errors by frame beside interpolations, and how well the spread tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor, nn

from projects.s3rp.animation import animate
from projects.s3rp.calibration import inflate
from projects.s3rp.classical import METHODS, last_observed
from projects.s3rp.figures import draw_by_frame, draw_calibration, draw_fields, draw_spectra
from projects.s3rp.metrics import EnsembleErrors, FieldErrors, inconsistency, residual
from projects.s3rp.outlook import can_tell_hidden, draw_members, estimate, find_release, inflation_of, look_out, prior_of
from projects.s3rp.physics import Wind, together
from shared.loggers import artefact_folder, log_figure, log_table
from shared.results import markdown

if TYPE_CHECKING:
    from projects.s3rp.data import PlumeData
    from projects.s3rp.module import PlumeSuperResolution
    from projects.s3rp.sets import Observations
    from shared.cli import ProjectTrainer

REFERENCES = ("nearest", "bicubic", "spline", "bicubic+projection")
FORECASTS = ("persistence", "fine solver from bicubic+projection")
OURS = "network"
ALIKE = 5.0
"""Inflation above which draws were too alike to tell anything."""
SHOWN = ("relative_l2", "rmse", "psnr", "ssim", "inconsistency", "residual", "mass_error")
"""Measures of fields in the table of methods."""
SPREAD = ("coverage_50", "coverage_90", "plume_coverage_90", "spread_skill", "crps", "mae", "energy_score", "correlation")
"""Measures of ensembles in their table."""


@dataclass(frozen=True)
class Tested:
    """What `fit` and `test` return: a row a method, a row an ensemble, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    ensembles: list[dict[str, Any]]
    summary: dict[str, Any]


class Testing(L.LightningModule):
    """Measures a network, and interpolations beside it, over the sequences of the test split.

    Args:
        network: the network.
        data: with the test split and its truth.
        members: fields of the ensembles; 0 for none.
    """

    def __init__(self, network: PlumeSuperResolution, data: PlumeData, members: int) -> None:
        super().__init__()
        self.network, self.members = network, members
        self.observations = data.observations("test")
        truth = data.truth("test")
        assert truth is not None
        self.truth: Tensor = truth
        frames, shape = self.observations.frames, self.observations.shape
        is_forecast = bool((last_observed(self.observations) < frames - 1).any())
        self.references = (*REFERENCES, *FORECASTS) if is_forecast else REFERENCES
        self.errors = nn.ModuleDict({name: FieldErrors(frames, shape, ("bicubic",)) for name in (*self.references, OURS)})
        kinds = () if not members else ("as drawn", "calibrated") if can_tell_hidden(network) else ("as drawn",)
        self.ensembles = nn.ModuleDict({kind: EnsembleErrors(frames, members) for kind in kinds})
        self.kappa, self.remark = 1.0, ""

    def on_test_start(self) -> None:
        if self.members:
            trainer: ProjectTrainer = self.trainer  # type: ignore[assignment]
            self.prior = prior_of(self.network, self.observations)  # as `predict`: of the same coarse frames
            if "calibrated" in self.ensembles:
                self.kappa, self.remark = inflation_of(trainer, self.network, self.observations, self.members)

    def test_step(self, batch: Mapping[str, Tensor], batch_idx: int) -> None:
        trainer: ProjectTrainer = self.trainer  # type: ignore[assignment]
        some, truth = self.observations.select(batch["index"].tolist()), self.truth[batch["index"].cpu()]
        own, drawn = self._drawn(trainer, some)
        fields = {name: METHODS[name](some) for name in self.references} | {OURS: own}
        seen = dict.fromkeys(self.references, some) | {OURS: replace(some, source=together(some.source, find_release(self.network, some)))}
        for name, made in fields.items():
            self._metric(self.errors[name]).update(made, truth, seen[name].batch(), some.physics, {"bicubic": fields["bicubic"]})
        if drawn is not None:
            index = batch["index"].cpu()
            for kind, metric in self.ensembles.items():
                members = inflate(drawn, self.kappa) if kind == "calibrated" else drawn
                self._metric(metric).update(members, truth, index)

    def _drawn(self, trainer: ProjectTrainer, some: Observations) -> tuple[Tensor, Tensor | None]:
        """Return the fields of sequences and their ensemble, None without one: what `predict` would write."""
        if not self.members:
            return estimate(trainer, self.network, some), None
        return draw_members(trainer, self.network, some, self.prior, self.members, "test", *some.names)

    def metric(self, name: str) -> FieldErrors:
        """Return the errors of a method."""
        found = self.errors[name]
        assert isinstance(found, FieldErrors)
        return found

    def _metric(self, metric: nn.Module) -> Any:
        return metric.to("cpu")  # fields lie there: interpolations and the truth are not worth a GPU


def check_members(members: int) -> None:
    """Refuse ensembles without a spread, before any work.

    Raises:
        ValueError: naming the option.
    """
    if members < 0 or members == 1:
        raise ValueError(f"members must be 0, for no spread, or 2 and more, got {members}")


def test(trainer: ProjectTrainer, module: PlumeSuperResolution, data: PlumeData, members: int) -> Tested:
    """Test a network, and write tables and pictures; where there is no truth, what can be told without it."""
    check_members(members)
    observations = data.observations("test")
    if data.truth("test") is None:
        return _without_truth(trainer, module, observations)
    testing = Testing(module, data, members)
    L.Trainer.test(trainer, testing, data.test_dataloader(), verbose=False)
    device = trainer.strategy.root_device
    measured = {name: _computed(metric, device) for name, metric in testing.errors.items()}
    rows = [_row(name, one) for name, one in measured.items()]
    spreads = {kind: _computed(metric, device) for kind, metric in testing.ensembles.items()}
    ensembles = [{"ensemble": kind} | {name: round(float(one[name]), 5) for name in SPREAD} for kind, one in spreads.items()]
    summary = _summary(measured, spreads, testing.kappa)
    if trainer.is_global_zero:
        _write(trainer, rows, ensembles, testing, measured, spreads)
        _draw(trainer, module, testing)
    for logger in trainer.loggers:
        logger.log_metrics(summary, trainer.global_step)
    return Tested(rows, ensembles, summary)


def _computed(metric: nn.Module, device: torch.device) -> dict[str, Tensor]:
    """Return the measures of all processes together, on the CPU; sums are exchanged on their device, as NCCL exchanges nothing else."""
    assert isinstance(metric, FieldErrors | EnsembleErrors)
    measured = {name: value.cpu() for name, value in metric.to(device).compute().items()}
    metric.to("cpu")
    return measured


def _row(name: str, measured: Mapping[str, Tensor]) -> dict[str, Any]:
    first, last = measured["relative_l2_by_frame"][0], measured["relative_l2_by_frame"][-1]
    own = {name: round(float(measured[name]), 5) for name in SHOWN}
    return {"method": name, **own, "gain": round(float(measured["gain_over_bicubic"]), 3), "first_frame": float(first), "last_frame": float(last)}


def _summary(measured: Mapping[str, Mapping[str, Tensor]], spreads: Mapping[str, Mapping[str, Tensor]], kappa: float) -> dict[str, Any]:
    ours, projected = measured[OURS], measured["bicubic+projection"]
    values = {
        "test/relative_l2": ours["relative_l2"],
        "test/gain": ours["gain_over_bicubic"],
        "test/gain_over_projection": projected["relative_l2"] / ours["relative_l2"],
        "test/gain_last_frame": ours["gain_over_bicubic_by_frame"][-1],
        "test/psnr": ours["psnr"],
        "test/ssim": ours["ssim"],
    }
    if spreads:
        *_, chosen = spreads.values()
        values |= {f"test/{name}": chosen[name] for name in ("coverage_90", "spread_skill", "crps")} | {"test/inflation": torch.tensor(kappa)}
    return {name: round(float(value), 5) for name, value in values.items()}


def _write(
    trainer: ProjectTrainer,
    rows: list[dict[str, Any]],
    ensembles: list[dict[str, Any]],
    testing: Testing,
    measured: Mapping[str, Mapping[str, Tensor]],
    spreads: Mapping[str, Mapping[str, Tensor]],
) -> None:
    log_table(trainer, "methods", rows)
    print(markdown([{name: row[name] for name in ("method", "relative_l2", "gain", "first_frame", "last_frame", "psnr", "ssim")} for row in rows]))
    curves = {name: measured[name]["relative_l2_by_frame"].tolist() for name in testing.errors}
    observed = int(last_observed(testing.observations).max()) + 1
    log_figure(trainer, "error_by_frame", draw_by_frame(curves, observed=observed if observed < testing.observations.frames else None))
    spectra = {"truth": testing.metric(OURS).true_power} | {name: testing.metric(name).power for name in ("bicubic", OURS)}
    log_figure(trainer, "spectra", draw_spectra(spectra, min(testing.observations.coarse.shape[-2:])))
    if ensembles:
        log_table(trainer, "ensembles", ensembles)
        print(
            markdown([{name: row[name] for name in ("ensemble", "coverage_90", "spread_skill", "crps", "mae", "correlation")} for row in ensembles])
        )
        if "calibrated" not in testing.ensembles:
            print("the spread is as drawn; of a network that has learnt to fill gaps, such as with --model.hide 0.2, it is calibrated")
        else:
            print(testing.remark or f"the spread is multiplied by {testing.kappa:.3g}, as hidden observations tell{_doubt(testing.kappa)}")
        log_figure(trainer, "calibration", draw_calibration({kind: one["ranks"] for kind, one in spreads.items()}))


def _doubt(kappa: float) -> str:
    return ": the draws are nearly alike, and hardly a distribution" if kappa > ALIKE else ""


def _draw(trainer: ProjectTrainer, module: PlumeSuperResolution, testing: Testing) -> None:
    """Draw the first sequence, and write a moving picture of it."""
    module.to(trainer.strategy.root_device)
    one, truth = testing.observations.select([0]), testing.truth[0]
    outlook = look_out(trainer, module, one, testing.prior if testing.members else None, testing.members, testing.kappa, "test")
    ours, deviation = outlook.mean[0], None if outlook.deviation is None else outlook.deviation[0]
    fields = {"bicubic": METHODS["bicubic"](one)[0], OURS: ours}
    figure = draw_fields(one.coarse[0], fields, truth, deviation, one.mask[0], Wind(one.wind.u[0], one.wind.v[0]), one.unit)
    log_figure(trainer, "fields", figure)
    animate(artefact_folder(trainer) / "fields.gif", one.coarse[0], ours, deviation, truth, one.mask[0], unit=one.unit)


def _without_truth(trainer: ProjectTrainer, module: PlumeSuperResolution, observations: Observations) -> Tested:
    """Say how well fields agree with the observations and the physics, which no truth is needed for."""
    module.to(trainer.strategy.root_device)
    fields = {name: METHODS[name](observations) for name in REFERENCES} | {OURS: estimate(trainer, module, observations)}
    released = dict.fromkeys(REFERENCES, observations.source) | {OURS: together(observations.source, find_release(module, observations))}
    rows = []
    for name, made in fields.items():
        agreement = inconsistency(made, observations.coarse, observations.mask).nanmean()
        moved = residual(made, observations.wind, observations.physics, released[name]).mean() if observations.frames > 1 else torch.zeros(())
        rows.append({"method": name, "inconsistency": float(agreement), "residual": float(moved)})
    if trainer.is_global_zero:
        log_table(trainer, "methods", rows)
        print(f"the test split has no truth:\n{markdown(rows)}")
    ours = rows[-1]
    return Tested(rows, [], {"test/inconsistency": ours["inconsistency"], "test/residual": ours["residual"]})
