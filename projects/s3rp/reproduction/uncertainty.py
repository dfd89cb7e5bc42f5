"""How well spreads tell errors, where the exact answer is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.s3rp.assimilation import smoother
from projects.s3rp.calibration import hide, inflate, inflation
from projects.s3rp.ensembles import matheron
from projects.s3rp.fields import fit_field
from projects.s3rp.figures import draw_calibration
from projects.s3rp.filtering import ensemble_filter
from projects.s3rp.kriging import krige
from projects.s3rp.metrics import EnsembleErrors, relative_l2
from projects.s3rp.observing import block_mean
from projects.s3rp.reproduction.worlds import RANDOM, Setting, drawn, estimator, tested, trained
from projects.s3rp.worlds import Plumes
from shared.seeding import generator
from shared.tables import Job, Rows, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from projects.s3rp.fields import FieldPrior

MEMBERS = 32
HIDDEN = 1 / 3
"""Part of the coarse values that are hidden to fit the spread of an S3RP-R."""
SETTING = Setting(RANDOM, train=200, test=16, epochs=11, options={"lambda_negative": 0.0})
DRAWS: dict[str, Any] = {"net": "s3rp_r", "hide": 0.2, "ahead": 3, "members": 2, "lambda_physics": 0.0}
"""How an S3RP-R is trained: by scores of hidden pixels, and of frames ahead to which the solver carries its draws."""
MATHERON, RAW, CALIBRATED = "S3RP-D, Matheron's rule", "S3RP-R, as drawn", "S3RP-R, calibrated on hidden pixels"
EXACT = {"kriging of single frames": "kriging", "ensemble Kalman filter": "filter", "Kalman smoother (exact)": "smoother"}


def prior_of(setting: Setting, seed: int) -> FieldPrior:
    """Fit the prior to the coarse frames of the training sequences."""
    return fit_field(drawn(replace(setting.world, seed=seed), setting.train, "train").observations)


def classical(setting: Setting, line: str, seed: int) -> Rows:
    """Judge the spread of a method that does not learn."""
    plumes, prior, rng = tested(setting, seed), prior_of(setting, seed), generator(seed, line)
    seen = plumes.observations
    if EXACT[line] == "kriging":
        found = krige(seen, prior, MEMBERS, rng, deviation=False)
    elif EXACT[line] == "filter":
        found = ensemble_filter(seen, rng, prior, MEMBERS)
    else:
        found = smoother(seen, prior, MEMBERS, rng)
    assert found.members is not None
    return [_row(line, seed, found.members, plumes)]


def perturbed(kept: Path, setting: Setting, seed: int) -> Rows:
    """Judge the ensemble around a deterministic network."""
    plumes = tested(setting, seed)
    estimate = estimator(trained(kept, setting, seed))
    members = matheron(estimate, plumes.observations, prior_of(setting, seed), MEMBERS, generator(seed, "matheron"))
    single = float((estimate(plumes.observations) - plumes.truth).abs().mean())
    return [_row(MATHERON, seed, members, plumes) | {"MAE of the network": single}]


def drawn_fields(kept: Path, setting: Setting, seed: int) -> Rows:
    """Judge the draws of a stochastic network, as they are and calibrated on coarse pixels that were hidden from it."""
    plumes, rng = tested(setting, seed), generator(seed, "draws")
    seen, module = plumes.observations, trained(kept, setting, seed, options=DRAWS)
    members = module.sample(seen.batch(), seen.physics, MEMBERS, rng)
    shown, hidden = hide(seen, HIDDEN, generator(seed, "hidden"))
    blind = module.sample(shown.batch(), shown.physics, MEMBERS, rng)
    kappa = inflation(block_mean(blind, seen.factor), seen.coarse, hidden, seen.sigma, generator(seed, "noise"))
    return [_row(RAW, seed, members, plumes), _row(CALIBRATED, seed, inflate(members, kappa), plumes)]


def _row(line: str, seed: int, members: Tensor, plumes: Plumes) -> dict[str, Any]:
    errors = EnsembleErrors(plumes.truth.shape[1], len(members), seed)
    errors.update(members, plumes.truth, torch.arange(len(plumes.truth)))
    found = errors.compute()
    coverage = found["coverage_90_by_frame"]
    names = {"coverage of 50 %": "coverage_50", "coverage of 90 %": "coverage_90", "spread / error": "spread_skill", "CRPS": "crps"}
    own: dict[str, Any] = {"line": line, "seed": seed, "error of the mean": float(relative_l2(members.mean(0), plumes.truth).nanmean())}
    own |= {name: float(found[key]) for name, key in names.items()}
    own |= {"MAE of the network": None, "first frame": float(coverage[0]), "last frame": float(coverage[-1])}
    return own | {f"_{rank:02d}": float(count) for rank, count in enumerate(found["ranks"])}


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job a method and seed."""
    setting = SETTING.quick() if quick else SETTING
    learnt = [Job(MATHERON, seed, perturbed, (kept, setting)) for seed in seeds]
    learnt += [] if quick else [Job(RAW, seed, drawn_fields, (kept, setting)) for seed in seeds]
    return learnt + [Job(line, seed, classical, (setting, line)) for line in EXACT for seed in seeds]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether what was expected holds."""
    row = {line["line"]: {name: one["mean"] for name, one in line.items() if isinstance(one, dict)} for line in means}
    ours = row[MATHERON]
    return {
        "Matheron's 90 % interval holds 85 to 95 % of the truth, in the first frame and in the last": all(
            0.85 <= ours[name] <= 0.95 for name in ("coverage of 90 %", "first frame", "last frame")
        ),
        "its spread is 0.9 to 1.1 of its error": 0.9 <= ours["spread / error"] <= 1.1,
        "its CRPS is at least 20 % below the mean absolute error of the network": ours["CRPS"] <= 0.8 * ours["MAE of the network"],
        "S3RP-R, calibrated on hidden pixels, covers 80 to 97 %": 0.80 <= row[CALIBRATED]["coverage of 90 %"] <= 0.97,
        "calibration brings S3RP-R nearer to 90 %": abs(row[CALIBRATED]["coverage of 90 %"] - 0.9) < abs(row[RAW]["coverage of 90 %"] - 0.9),
    }


def figures(means: Rows) -> dict[str, Figure]:
    """Draw histograms of ranks and coverages."""
    ranks = [name for name in means[0] if name.startswith("_")]
    shown = (MATHERON, RAW, CALIBRATED)
    return {
        "uncertainty": draw_calibration({row["line"]: torch.tensor([row[name]["mean"] for name in ranks]) for row in means if row["line"] in shown})
    }


TABLE = Table(
    title="Spread and error on random fields, 24 x 24 cells from 6 x 6, noise .02, 32 members",
    claim="The distribution over fields is as wide as its error.",
    by=("line",),
    jobs=jobs,
    expectations=expectations,
    figures=figures,
)
