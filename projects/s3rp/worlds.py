"""PlumeSim: drawn plumes in drawn winds, the truth and what a coarse instrument sees of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from projects.s3rp.fields import random_field
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Boundary, Physics, Scheme, Wind, wind_from_stream
from projects.s3rp.sets import Observations
from shared.seeding import generator

Start = Literal["blobs", "random"]
"""Initial fields: a few Gaussian blobs, or a Gaussian random field of mean zero."""
MODES = 2
"""Largest wave number of the winds' stream function."""
AT_ONCE = 16
"""Sequences that are computed at a time."""
PEAKS = (0.5, 1.5)
"""Range of the blobs' peaks."""


@dataclass(frozen=True)
class World:
    """What is drawn, in units of the domain's side and of time.

    Attributes:
        size: N, fine cells along a side.
        factor: r, fine cells along a side of a coarse one.
        frames: T.
        interval: time between two frames.
        diffusivity: D.
        boundary: periodic or open.
        start: blobs, or random for a Gaussian random field.
        blobs: how many.
        widths: range of their standard deviations.
        length: covariance length of a random field.
        wind: root mean square speed of the eddies.
        mean_wind: speed of the wind's mean, in a drawn direction.
        turning: most that the mean wind turns in a unit of time, in radians; 0 keeps winds steady.
        sources: continuous releases, each at a drawn place; 0 for none.
        rates: range of what a source releases in a unit of time.
        refine: grid on which the truth is computed, times finer than N: 2 avoids that data and loss share a discretisation.
        scheme: value of the field on a face in the truth.
        sigma: standard deviation of the observations' noise.
        missing: part of the coarse values that are missing, at random.
        missing_frames: part of the frames, the first excepted, that are missing wholly.
        stations: coarse cells that are observed at all, at drawn places; 0 for all.
        seed: seed of everything.
    """

    size: int = 32
    factor: int = 4
    frames: int = 6
    interval: float = 0.05
    diffusivity: float = 2e-3
    boundary: Boundary = "periodic"
    start: Start = "blobs"
    blobs: int = 4
    widths: tuple[float, float] = (0.05, 0.1)
    length: float = 0.07
    wind: float = 0.5
    mean_wind: float = 0.5
    turning: float = 0.0
    sources: int = 0
    rates: tuple[float, float] = (0.05, 0.2)
    refine: int = 1
    scheme: Scheme = "central"
    sigma: float = 0.0
    missing: float = 0.0
    missing_frames: float = 0.0
    stations: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("size", "factor", "frames", "blobs", "refine"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.size % self.factor:
            raise ValueError(f"a grid of {self.size} cells has no blocks of {self.factor}: choose a factor that divides it")
        for name in ("missing", "missing_frames"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is a part, at least 0 and below 1, got {getattr(self, name)}")
        for name in ("sigma", "wind", "mean_wind", "sources", "stations"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")
        if self.start not in get_args(Start):
            raise ValueError(f"no start {self.start!r}: choose among {', '.join(get_args(Start))}")
        if self.stations > (self.size // self.factor) ** 2:
            raise ValueError(f"{self.stations} stations are more than the {(self.size // self.factor) ** 2} coarse cells")

    @property
    def physics(self) -> Physics:
        """What training knows."""
        return Physics(self.diffusivity, self.interval, (1 / self.size, 1 / self.size), self.boundary)


@dataclass(frozen=True)
class Plumes:
    """Drawn sequences.

    Attributes:
        observations: what an instrument sees.
        truth: (B, T, N, N) float32 fields.
        source: (B, 1, N, N) rate of release by area; None without sources.
    """

    observations: Observations
    truth: Tensor
    source: Tensor | None


def draw_plumes(
    world: World, count: int, split: str = "train", known_source: bool = True, progress: Callable[[int], None] = lambda drawn: None
) -> Plumes:
    """Draw sequences: a function of the world, the split and each sequence's number alone.

    Args:
        world: what is drawn.
        count: sequences.
        split: their winds and initial fields differ from split to split.
        known_source: tells the observations' user the sources.
        progress: is called with the number of sequences that are drawn, now and then.
    """
    parts = []
    for start in range(0, count, AT_ONCE):
        parts.append(_draw(world, range(start, min(start + AT_ONCE, count)), split))
        progress(min(start + AT_ONCE, count))
    coarse, mask, u, v, truth = (torch.cat([part[name] for part in parts]) for name in ("coarse", "mask", "u", "v", "truth"))
    source = torch.cat([part["source"] for part in parts]) if world.sources else None
    names = [f"{split}-{number:05d}" for number in range(count)]
    known = source if known_source else None
    return Plumes(Observations(coarse, mask, Wind(u, v), world.physics, world.sigma, known, names), truth, source)


def _draw(world: World, numbers: range, split: str) -> dict[str, Tensor]:
    """Draw some sequences; the finer grid's fields and winds are not kept."""
    rngs = [generator(world.seed, "plume", split, number) for number in numbers]
    drawn = [_draw_scene(world, rng) for rng in rngs]
    initial = torch.stack([one[0] for one in drawn])
    source = torch.stack([one[3] for one in drawn if one[3] is not None]) if world.sources else None
    fine_wind = Wind(torch.stack([one[1].u for one in drawn]), torch.stack([one[1].v for one in drawn]))
    truth = _roll_out(world, initial, fine_wind, source)
    coarse = block_mean(truth, world.factor).float()
    mask = torch.stack([_draw_mask(world, rng) for rng in rngs])
    noise = torch.stack([torch.randn(coarse.shape[1:], generator=rng) for rng in rngs])
    found = {"coarse": (coarse + world.sigma * noise) * mask, "mask": mask, "truth": truth.float()}
    found |= {name: torch.stack([getattr(one[2], name) for one in drawn]).float() for name in ("u", "v")}
    return found if source is None else found | {"source": block_mean(source, world.refine)[:, None].float()}


def _draw_scene(world: World, rng: torch.Generator) -> tuple[Tensor, Wind, Wind, Tensor | None]:
    """Draw an initial field and winds on the grid of the truth, the winds on the fine grid too, and the sources on that of the truth."""
    size = world.size * world.refine
    if world.start == "random":
        initial = random_field((size, size), world.length, rng)
    else:
        low, high = PEAKS
        peaks, spread = low + (high - low) * torch.rand(world.blobs, generator=rng), torch.rand(world.blobs, generator=rng)
        widths = world.widths[0] + (world.widths[1] - world.widths[0]) * spread
        initial = gaussians(size, torch.rand(world.blobs, 2, generator=rng), widths, peaks, world.boundary)
    modes = _draw_modes(world, rng)
    source = None
    if world.sources:
        places = 0.15 + 0.7 * torch.rand(world.sources, 2, generator=rng)
        rates = world.rates[0] + (world.rates[1] - world.rates[0]) * torch.rand(world.sources, generator=rng)
        width = torch.full((world.sources,), 1.0 / world.size)
        source = gaussians(size, places, width, rates / (2 * math.pi * width**2), world.boundary)
    return initial, _wind(world, size, *modes), _wind(world, world.size, *modes), source


def gaussians(size: int, centres: Tensor, widths: Tensor, peaks: Tensor, boundary: Boundary = "periodic") -> Tensor:
    """Return the sum of Gaussian blobs as exact cell averages.

    Args:
        size: cells along a side of the unit square.
        centres: (K, 2) y and x in [0, 1].
        widths: (K,) standard deviations.
        peaks: (K,) values at the centres.
        boundary: periodic blobs go on at the other side.

    Returns:
        (size, size) float64.
    """
    edges = torch.linspace(0, 1, size + 1, dtype=torch.float64)
    images = torch.arange(-2, 3) if boundary == "periodic" else torch.zeros(1)
    offset = edges - centres.double()[..., None, None] - images[:, None]  # (K, 2, images, size + 1)
    primitive = torch.erf(offset / (math.sqrt(2) * widths.double()[:, None, None, None]))
    lines = (primitive[..., 1:] - primitive[..., :-1]).sum(2) * (size / 2)  # (K, 2, size) averages of normal densities
    mass = peaks.double() * 2 * math.pi * widths.double() ** 2
    return torch.einsum("k,ky,kx->yx", mass, lines[:, 0], lines[:, 1])


def _draw_modes(world: World, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw the wave vectors, amplitudes and phases of a stream function, and angle and turning of the mean wind."""
    grid = torch.arange(-MODES, MODES + 1)
    vectors = torch.cartesian_prod(grid, grid)
    squared = (vectors**2).sum(1)
    keep = (squared > 0) & (squared <= MODES**2)
    vectors, squared = vectors[keep].double(), squared[keep].double()
    amplitudes = torch.randn(len(vectors), generator=rng).double() / squared
    phases = 2 * math.pi * torch.rand(len(vectors), generator=rng).double()
    mean = torch.rand(2, generator=rng).double() * torch.tensor([2 * math.pi, 2.0]) - torch.tensor([0.0, 1.0])
    return vectors, amplitudes, phases, mean


def _wind(world: World, size: int, vectors: Tensor, amplitudes: Tensor, phases: Tensor, mean: Tensor) -> Wind:
    """Return face velocities on a grid of some size, (1 or T, ...): differences of the stream function, so that grids agree on every flux."""
    corners = torch.arange(size + (world.boundary == "open"), dtype=torch.float64) / size
    # the sum over k of a_k cos(2 pi k x + phase), whose gradient has mean square sum (2 pi k a_k)^2 / 2 but for opposite vectors
    angles = 2 * math.pi * (vectors[:, :1, None] * corners[:, None] + vectors[:, 1:, None] * corners) + phases[:, None, None]
    psi = (amplitudes[:, None, None] * angles.cos()).sum(0)
    periodic = torch.arange(64, dtype=torch.float64) / 64
    reference = 2 * math.pi * (vectors[:, :1, None] * periodic[:, None] + vectors[:, 1:, None] * periodic) + phases[:, None, None]
    slopes = -(2 * math.pi * amplitudes[:, None, None, None] * vectors[:, :, None, None] * reference.sin()[:, None]).sum(0)
    speed = slopes.square().sum(0).mean().sqrt()
    eddies = wind_from_stream(psi * (world.wind / speed), (1 / size, 1 / size), world.boundary)
    times = torch.arange(world.frames if world.turning else 1, dtype=torch.float64) * world.interval
    angle = (mean[0] + world.turning * mean[1] * times)[:, None, None]
    return Wind(eddies.u + world.mean_wind * angle.cos(), eddies.v + world.mean_wind * angle.sin())


def _roll_out(world: World, initial: Tensor, wind: Wind, source: Tensor | None) -> Tensor:
    """Compute the truth in float64, by time steps twice as fine as stability asks; returns (B, T, N, N) block means."""
    size = initial.shape[-1]
    physics = Physics(world.diffusivity, world.interval, (1 / size, 1 / size), world.boundary, world.scheme)
    steps = torch.tensor([2 * physics.stable_substeps(wind.select([number])) for number in range(len(initial))])
    truth = initial.new_empty(len(initial), world.frames, world.size, world.size)
    for substeps in steps.unique().tolist():  # each sequence has its own, so that a plume depends on no other
        rows = (steps == substeps).nonzero()[:, 0]
        field, own, now = initial[rows], None if source is None else source[rows], wind.select(rows)
        truth[rows, 0] = block_mean(field, world.refine)
        for frame in range(world.frames - 1):
            field = physics.with_options(substeps=substeps).advance(field, now.at(frame), own)
            truth[rows, frame + 1] = block_mean(field, world.refine)
    return truth


def _draw_mask(world: World, rng: torch.Generator) -> Tensor:
    """Draw which coarse values are observed, (T, n, n) bool."""
    side = world.size // world.factor
    mask = torch.rand(world.frames, side, side, generator=rng) >= world.missing
    is_seen = torch.rand(world.frames, generator=rng) >= world.missing_frames
    is_seen[0] = True
    if world.stations:
        chosen = torch.randperm(side * side, generator=rng)[: world.stations]
        mask &= torch.zeros(side * side, dtype=torch.bool).index_fill(0, chosen, True).view(side, side)
    return mask & is_seen[:, None, None]
