"""The solver against closed forms: order of convergence, conservation, bounds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from projects.s3rp.physics import Physics, Scheme, Wind
from projects.s3rp.worlds import World, draw_plumes, gaussians
from shared.tables import Job, Rows, Table

SIZES = (32, 64, 128)
SPEED, DIFFUSIVITY, TIME, WIDTH = (0.7, 0.4), 1e-3, 0.5, 0.06
"""A Gaussian puff, its wind (x, y), and how long it travels."""
STEPS = 200
"""Frames over which mass is watched."""


def puff(size: int, time: float) -> Tensor:
    """Return the exact cell averages of a puff that travels and spreads on a periodic square, (size, size) float64."""
    width = math.sqrt(WIDTH**2 + 2 * DIFFUSIVITY * time)
    centre = torch.tensor([[(0.3 + SPEED[1] * time) % 1, (0.4 + SPEED[0] * time) % 1]], dtype=torch.float64)
    return gaussians(size, centre, torch.tensor([width], dtype=torch.float64), torch.tensor([(WIDTH / width) ** 2], dtype=torch.float64))


def travel(size: int, scheme: Scheme) -> float:
    """Return the relative L2 error of a puff after its journey."""
    wind = Wind(*(torch.full((size, size), speed, dtype=torch.float64) for speed in SPEED))
    physics = Physics(DIFFUSIVITY, TIME, (1 / size, 1 / size), scheme=scheme)
    physics = physics.with_options(substeps=2 * physics.stable_substeps(wind))
    exact = puff(size, TIME)
    return float((physics.advance(puff(size, 0.0), wind) - exact).norm() / exact.norm())


def judge(scheme: Scheme, sizes: tuple[int, ...], steps: int, seed: int) -> Rows:
    """Measure a scheme: errors of the puff, and mass and least value of drawn plumes in eddies."""
    errors = [travel(size, scheme) for size in sizes]
    drawn = draw_plumes(World(seed=seed, frames=1), 1)
    wind, field = drawn.observations.wind.at(0), drawn.truth[:, 0].double()
    wind = Wind(wind.u.double(), wind.v.double())
    physics = drawn.observations.physics.with_options(scheme=scheme)
    mass, least = float(field.sum()), 0.0
    for _ in range(steps):
        field = physics.advance(field, wind)
        least = min(least, float(field.min()))
    row: dict[str, Any] = {"scheme": scheme, "seed": seed}
    row |= {f"error at {size}": error for size, error in zip(sizes, errors, strict=True)}
    return [row | {"order": math.log2(errors[-2] / errors[-1]), "drift of mass": abs(float(field.sum()) / mass - 1), "least value": least}]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job a scheme and seed."""
    sizes, steps = ((16, 32), 5) if quick else (SIZES, STEPS)
    return [Job(scheme, seed, judge, (scheme, sizes, steps)) for scheme in get_args(Scheme) for seed in seeds]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the orders and the conservation hold."""
    row = {line["scheme"]: {name: one["mean"] for name, one in line.items() if isinstance(one, dict)} for line in means}
    return {
        "the central scheme is of second order (at least 1.9)": row["central"]["order"] >= 1.9,
        "van Leer's is of more than first order (at least 1.5) on a smooth puff": row["vanleer"]["order"] >= 1.5,
        "the upwind scheme's errors are the largest": row["upwind"][f"error at {SIZES[-1]}"]
        == max(one[f"error at {SIZES[-1]}"] for one in row.values()),
        f"mass is kept to round-off over {STEPS} frames (1e-12)": all(one["drift of mass"] <= 1e-12 for one in row.values()),
        "upwind and van Leer make no negative values": all(row[scheme]["least value"] >= -1e-12 for scheme in ("upwind", "vanleer")),
    }


TABLE = Table(
    title="The solver: a Gaussian puff with a closed form, and mass and least value of plumes in eddies",
    claim="What the network is taught by is right.",
    by=("scheme",),
    jobs=jobs,
    expectations=expectations,
)
