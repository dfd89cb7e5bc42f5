"""Plain and difference convolutions in cells of equal topology (claim 1)."""

from __future__ import annotations

from pathlib import Path

from projects.forgery_nas.genotype import Genotype, histogram
from projects.forgery_nas.reproduction import worlds
from projects.forgery_nas.reproduction.worlds import CHOOSING, FULL, QUICK, UNSEEN, Budgeted
from shared.tables import Job, Rows, Table

THETAS = (0.0, 0.7)
FORMS = {"separable": "sep_cdc_3x3", "dilated": "dil_cdc_3x3"}


def cells(form: str, theta: float, seed: int) -> Genotype:
    """Return cells of random topology in which every operation is the same convolution."""
    drawn = worlds.random_cells(seed, 0)
    names = {name for counts in histogram(drawn).values() for name in counts}
    return drawn.replaced(dict.fromkeys(names, f"{FORMS[form]}_{theta}"))


def rows(folder: Path, form: str, budget: Budgeted, seed: int) -> Rows:
    """Train the same topology with both thetas and judge it on what it did not see."""
    found: Rows = []
    for theta in THETAS:
        judged = worlds.judged(folder, cells(form, theta, seed), budget, seed)
        unseen = (judged[CHOOSING] + judged[UNSEEN]) / 2
        gain = unseen - found[0]["unseen"] if found else None
        found.append({"convolution": form, "theta": theta, "seed": seed, **judged, "unseen": unseen, "gain": gain})
    return found


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each form of convolution and seed."""
    budget = QUICK if quick else FULL
    return [Job(form, seed, rows, (folder, form, budget)) for seed in seeds for form in (("dilated",) if quick else FORMS)]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the difference helps on unseen manipulations."""
    gains = {row["convolution"]: row["gain"] for row in summary if row["gain"]}
    held = {f"{form}: theta {THETAS[1]} generalises better than theta 0, in the mean": gain["mean"] > 0 for form, gain in gains.items()}
    return held | {"separable: by more than the standard error of the paired difference": _is_sure(gains["separable"])}


def _is_sure(gain: dict[str, float]) -> bool:
    return gain["mean"] > gain["std"] / gain["n"] ** 0.5


TABLE = Table("operators", "Difference convolutions generalise better than plain ones.", ("convolution", "theta"), jobs, expectations, seeds=5)
