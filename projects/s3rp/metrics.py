"""How good fields and ensembles of fields are, measured against the truth. Nothing that is trained or chosen sees these.

errors = FieldErrors(6, (32, 32), references=("bicubic",))                # sums over batches and processes
errors.update(fields, truth, batch, physics, {"bicubic": upsampled})
measured = errors.compute()                                               # numbers, and vectors "..._by_frame" and "spectrum_ratio"

Fields are (B, T, H, W), ensembles (M, B, T, H, W). What a frame does not have (a relative error without any truth) is NaN and left out of means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from projects.s3rp.calibration import crps_ordered, interval
from projects.s3rp.fields import wave_numbers
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Physics, Wind
from projects.s3rp.sets import Batch
from shared.seeding import generator

WINDOW = 7
"""Side of the window of `ssim`, in cells."""
MOST = 100.0
"""The PSNR in dB that a field without an error counts as, and the largest that is given."""
PLUME = 0.01
"""Part of a sequence's peak above which a cell belongs to the plume."""
LEVELS = (0.5, 0.9)
"""Central intervals whose coverage is measured."""

# ---- fields


def relative_l2(fields: Tensor, truth: Tensor) -> Tensor:
    """Relative L2 error ||c_hat - c|| / ||c|| of each frame, (..., H, W) -> (...); NaN where the truth is zero."""
    norm = torch.linalg.vector_norm(truth, dim=(-2, -1))
    return torch.linalg.vector_norm(fields - truth, dim=(-2, -1)) / norm.where(norm > 0, torch.nan)


def psnr(fields: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame, (B, T, H, W) -> (B, T) in dB, at most `MOST`; the range is the largest truth of the sequence."""
    ratio = (fields - truth).square().mean((-2, -1)) / _peak(truth)[..., 0, 0].square()
    return -10 * ratio.clamp_min(10 ** (-MOST / 10)).log10()


def _peak(truth: Tensor) -> Tensor:
    """Return the largest value of each sequence, (B, T, H, W) -> (B, 1, 1, 1); NaN where none is positive."""
    peak = truth.amax((1, 2, 3), keepdim=True)
    return peak.where(peak > 0, torch.nan)


def ssim(fields: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each frame, (B, T, H, W) -> (B, T) float64: a flat window of `WINDOW` cells, the range of `psnr`, as in scikit-image.

    NaN of grids that are smaller than the window.
    """
    if min(truth.shape[-2:]) < WINDOW:
        return torch.full(truth.shape[:2], torch.nan, dtype=torch.float64, device=truth.device)
    peak = _peak(truth).double()
    x, y = fields.double() / peak, truth.double() / peak
    mean_x, mean_y, square_x, square_y, product = (F.avg_pool2d(part, WINDOW, 1) for part in (x, y, x * x, y * y, x * y))
    unbiased = WINDOW**2 / (WINDOW**2 - 1)
    variances = unbiased * (square_x - mean_x.square() + square_y - mean_y.square())
    covariance = unbiased * (product - mean_x * mean_y)
    c1, c2 = 0.01**2, 0.03**2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x.square() + mean_y.square() + c1) * (variances + c2))
    return similarity.mean((-2, -1))


def inconsistency(fields: Tensor, coarse: Tensor, mask: Tensor) -> Tensor:
    """Root mean square of A c_hat - y over the observed values of each frame, (B, T); NaN where there are none. With noise its target is sigma."""
    difference = (block_mean(fields, fields.shape[-1] // coarse.shape[-1]) - coarse) * mask
    return (difference.square().sum((-2, -1)) / mask.sum((-2, -1))).sqrt()  # 0 / 0 is NaN


def residual(fields: Tensor, wind: Wind, physics: Physics, source: Tensor | None = None) -> Tensor:
    """Root mean square of c_{t+1} - S_Delta(c_t) over the cells, (B, T, H, W) -> (B, T - 1), in the units of the fields.

    Each sequence is stepped by itself: how many time steps its winds need does not depend on its batch.
    """
    steps, found = fields.shape[1] - 1, []
    if steps == 0:
        return fields.new_empty(len(fields), 0)
    for row in range(len(fields)):
        release = None if source is None else source[row, :steps]  # of all steps, or (1, H, W)
        moved = physics.advance(fields[row, :-1], Wind(wind.u[row, :steps], wind.v[row, :steps]), release)
        found.append((fields[row, 1:] - moved).square().mean((-2, -1)).sqrt())
    return torch.stack(found)


def mass_error(fields: Tensor, truth: Tensor) -> Tensor:
    """Error of each frame's sum, |sum c_hat - sum c| / sum |c|, (..., H, W) -> (...): of what is not negative, the relative error of the mass."""
    mass = truth.abs().sum((-2, -1))
    return (fields - truth).sum((-2, -1)).abs() / mass.where(mass > 0, torch.nan)


def radial_spectrum(fields: Tensor) -> Tensor:
    """Mean power of the Fourier modes in each ring k - 1/2 <= |wave number| < k + 1/2, in waves a side.

    Args:
        fields: (..., H, W).

    Returns:
        (..., K) float64 with K = min(H, W) // 2 + 1, for k = 0, 1, ...; the power is that of the mean over cells, |c_k|^2 with c_0 the mean.
    """
    height, width = fields.shape[-2:]
    along_y, along_x = wave_numbers((height, width))
    rings = ((along_y**2 + along_x**2).sqrt() + 0.5).floor().long().flatten().to(fields.device)
    count = min(height, width) // 2 + 1
    power = torch.fft.fft2(fields.double(), norm="forward").abs().square().flatten(-2)
    inside = rings < count
    sums = power.new_zeros(*power.shape[:-1], count).index_add(-1, rings[inside], power[..., inside])
    return sums / torch.bincount(rings[inside], minlength=count)


# ---- ensembles


def energy_score(members: Tensor, truth: Tensor) -> Tensor:
    """Energy score E||X - c|| - E||X - X'|| / 2 of each frame as a whole, over all M^2 pairs; the norm is the root mean square over the cells.

    Args:
        members: (M, ..., H, W).
        truth: (..., H, W).

    Returns:
        (...) float64; of a single member it is the RMSE.
    """
    vectors = (members - truth).double().flatten(-2).movedim(0, -2)  # (..., M, HW)
    products = vectors @ vectors.mT / vectors.shape[-1]
    squares = products.diagonal(dim1=-2, dim2=-1)
    between = (squares[..., None] + squares[..., None, :] - 2 * products).clamp_min(0).sqrt()
    return squares.sqrt().mean(-1) - between.mean((-2, -1)) / 2


def ranks(members: Tensor, truth: Tensor, rng: torch.Generator) -> Tensor:
    """Return how many members are below the truth, (M, ...), (...) -> (...) int64 in 0 .. M; among equals the place is drawn.

    Args:
        members: (M, ...).
        truth: (...).
        rng: generator of the CPU, used only where members equal the truth.
    """
    below, equal = (members < truth).sum(0), (members == truth).sum(0)
    if bool(equal.any()):
        drawn = torch.rand(truth.shape, generator=rng, dtype=torch.float64).to(truth.device)
        below = below + (drawn * (equal + 1)).long()
    return below


def chi_square(counts: Tensor) -> Tensor:
    """Return the distance of a histogram of ranks, (M + 1,), from a flat one: sum (n_i - n)^2 / n, n the mean.

    Neighbouring cells are not independent, so that this is larger than the chi-square distribution of M degrees of freedom says.
    """
    expected = counts.double().mean()
    return (counts - expected).square().sum() / expected


def reliability(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return nominal levels of the central intervals between two members and the parts of truth they hold, of a histogram of ranks.

    Args:
        counts: (M + 1,) of ranks 0 .. M.

    Returns:
        Levels and coverages, both (P,) float64, rising.
    """
    bins = len(counts)
    tails = torch.arange((bins - 1) // 2, 0, -1)
    part = counts.double() / counts.sum()
    covered = torch.stack([part[tail : bins - tail].sum() for tail in tails.tolist()]) if len(tails) else part[:0]
    return 1 - 2 * tails.double() / bins, covered


# ---- sums over batches and processes


class _Averages(Metric):
    """Means by frame of measures of sequences: sums of values and of weights, exact over batches and processes."""

    full_state_update = False
    sums: Tensor
    weights: Tensor

    def __init__(self, names: Sequence[str], frames: int) -> None:
        super().__init__()
        self.names = tuple(names)
        for state in ("sums", "weights"):
            self.add_state(state, torch.zeros(len(self.names), frames, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, values: Mapping[str, Tensor], weights: Mapping[str, Tensor] | None = None) -> None:
        """Add every measure, (B, T) each, or shorter where the first frames have none; NaN is left out. Weights are 1 unless given."""
        frames = self.sums.shape[1]
        rows = torch.stack([F.pad(values[name].double(), [frames - values[name].shape[1], 0], value=torch.nan) for name in self.names])
        known = torch.stack([(weights or {}).get(name, torch.ones_like(rows[0])).double() for name in self.names]) * ~rows.isnan()
        self.sums = self.sums + (rows.nan_to_num() * known).sum(1)
        self.weights = self.weights + known.sum(1)

    def _means(self) -> dict[str, Tensor]:
        """Return the mean of every measure over frames and sequences, and its means by frame; NaN where there is nothing."""
        by_frame, means = self.sums / self.weights, self.sums.sum(1) / self.weights.sum(1)
        return dict(zip(self.names, means, strict=True)) | {f"{name}_by_frame": row for name, row in zip(self.names, by_frame, strict=True)}


def _rooted(measured: dict[str, Tensor], names: Sequence[str]) -> None:
    """Put roots in the place of mean squares."""
    for name in names:
        for key in (name, f"{name}_by_frame"):
            measured[key] = measured[key].sqrt()


def scalars(measured: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the numbers among what a metric computed, without its vectors, to log them."""
    return {prefix + name: value for name, value in measured.items() if value.ndim == 0}


class FieldErrors(_Averages):
    """Errors of fields against the truth, the observations and the physics.

    `compute` returns

    - `relative_l2`, `psnr`, `ssim` and `mass_error`, means over frames and sequences, `mae` and `rmse`, over all cells, `inconsistency`, over all
      observed values, and `residual`, over all steps;
    - `gain_over_NAME` of every reference, its mean relative L2 error by that of the fields;
    - each of them also as `..._by_frame`, (T,), where the residual's first one is NaN;
    - `spectrum_ratio`, (K,), the power by that of the truth.

    Args:
        frames: T.
        shape: (H, W).
        references: names of other fields to be compared with.
    """

    power: Tensor
    true_power: Tensor

    _ROOTS = ("rmse", "inconsistency", "residual")

    def __init__(self, frames: int, shape: tuple[int, int], references: Sequence[str] = ("bicubic",)) -> None:
        own = ("relative_l2", "psnr", "ssim", "mass_error", "mae", *self._ROOTS)
        super().__init__([*own, *(f"reference_{name}" for name in references)], frames)
        self.references = tuple(references)
        for state in ("power", "true_power"):
            self.add_state(state, torch.zeros(min(shape) // 2 + 1, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, fields: Tensor, truth: Tensor, batch: Batch, physics: Physics, references: Mapping[str, Tensor] | None = None) -> None:
        """Add sequences.

        Args:
            fields: (B, T, H, W).
            truth: (B, T, H, W).
            batch: what was observed.
            physics: what is known.
            references: fields (B, T, H, W) of every reference.

        Raises:
            ValueError: if shapes differ, a value is not finite, or a reference is not as announced.
        """
        _check(fields, truth, self.sums.shape[1])
        if set(references or {}) != set(self.references):
            raise ValueError(
                f"fields of the references {', '.join(self.references) or 'none'} are needed, got {', '.join(references or {}) or 'none'}"
            )
        fields, truth, mask = fields.detach().double(), truth.double(), batch["mask"]
        wind = Wind(batch["u"], batch["v"]).to(fields)
        source = batch["source"].double() if "source" in batch else None
        error, seen = fields - truth, mask.sum((-2, -1))
        values = {
            "relative_l2": relative_l2(fields, truth),
            "psnr": psnr(fields, truth),
            "ssim": ssim(fields, truth),
            "mass_error": mass_error(fields, truth),
            "mae": error.abs().mean((-2, -1)),
            "rmse": error.square().mean((-2, -1)),
            "inconsistency": inconsistency(fields, batch["coarse"].double(), mask).square(),
            "residual": residual(fields, wind, physics, source).square(),
        }
        self._add(
            values | {f"reference_{name}": relative_l2(other.double(), truth) for name, other in (references or {}).items()}, {"inconsistency": seen}
        )
        self.power = self.power + radial_spectrum(fields).sum((0, 1))
        self.true_power = self.true_power + radial_spectrum(truth).sum((0, 1))

    def compute(self) -> dict[str, Tensor]:
        """Return all measures."""
        measured = self._means()
        _rooted(measured, self._ROOTS)
        for name in self.references:
            for suffix in ("", "_by_frame"):
                measured[f"gain_over_{name}{suffix}"] = measured.pop(f"reference_{name}{suffix}") / measured[f"relative_l2{suffix}"]
        return measured | {"spectrum_ratio": self.power / self.true_power}


class EnsembleErrors(_Averages):
    """How well the spread of an ensemble tells its error.

    `compute` returns

    - `coverage_50` and `coverage_90`, the parts of cells inside the central intervals, and `plume_coverage_50` and `plume_coverage_90`, over cells
      where the truth is above 1 % of its sequence's peak: over an empty background coverage says nothing;
    - `crps` (all pairs), `crps_fair`, `energy_score`, and `mae` of the ensemble's mean;
    - `spread`, the root mean square of the standard deviation times sqrt((M + 1) / M), `skill`, the RMSE of the mean, and `spread_skill`, their
      ratio, whose target is 1;
    - each of them also as `..._by_frame`, (T,);
    - `correlation` of the standard deviation and the mean's |error|, `ranks`, (M + 1,), the histogram of the truth's ranks, and its `chi_square`.

    Args:
        frames: T.
        members: M, 2 or more.
        seed: of the places among equals in the histogram of ranks.
    """

    counts: Tensor
    moments: Tensor

    def __init__(self, frames: int, members: int, seed: int = 0) -> None:
        if members < 2:
            raise ValueError(f"the spread of an ensemble takes 2 members or more, got {members}")
        coverages = [f"{part}coverage_{100 * level:.0f}" for part in ("", "plume_") for level in LEVELS]
        super().__init__([*coverages, "crps", "crps_fair", "mae", "energy_score", "spread", "skill"], frames)
        self.members, self.seed = members, seed
        self.add_state("counts", torch.zeros(members + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("moments", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, members: Tensor, truth: Tensor, index: Tensor) -> None:
        """Add sequences.

        Args:
            members: (M, B, T, H, W).
            truth: (B, T, H, W).
            index: (B,) numbers of the sequences in their set.

        Raises:
            ValueError: if shapes differ or a value is not finite.
        """
        if len(members) != self.members:
            raise ValueError(f"this metric is for {self.members} members, got {len(members)}")
        _check(members, truth, self.sums.shape[1])
        ordered = members.detach().sort(0).values
        variance, mean = torch.var_mean(ordered, 0)
        error, plume = (mean - truth).abs(), truth > PLUME * _peak(truth)
        values = self._coverages(ordered, truth, plume) | {
            "crps": crps_ordered(ordered, truth, False).mean((-2, -1)),
            "crps_fair": crps_ordered(ordered, truth, True).mean((-2, -1)),
            "mae": error.mean((-2, -1)),
            "energy_score": energy_score(members.detach(), truth),
            "spread": variance.double().mean((-2, -1)) * (self.members + 1) / self.members,
            "skill": error.double().square().mean((-2, -1)),
        }
        self._add(values, {f"plume_coverage_{100 * level:.0f}": plume.sum((-2, -1)) for level in LEVELS})
        pair = torch.stack([variance.sqrt(), error]).double().flatten(1)
        products = pair @ pair.mT
        count = pair.new_tensor([pair.shape[1]])
        self.moments = self.moments + torch.cat([count, pair.sum(1), products.diagonal(), products[:1, 1]])
        for row, number in enumerate(index.tolist()):
            places = ranks(members[:, row].detach(), truth[row], generator(self.seed, "ranks", number))
            self.counts = self.counts + torch.bincount(places.flatten(), minlength=self.members + 1)

    def _coverages(self, ordered: Tensor, truth: Tensor, plume: Tensor) -> dict[str, Tensor]:
        """Return the part of the cells, and of those of the plume, inside each interval, (B, T)."""
        values = {}
        for level in LEVELS:
            low, high = interval(ordered, level)
            inside = (low <= truth) & (truth <= high)
            values[f"coverage_{100 * level:.0f}"] = inside.double().mean((-2, -1))
            values[f"plume_coverage_{100 * level:.0f}"] = (inside & plume).sum((-2, -1)).double() / plume.sum((-2, -1))
        return values

    def compute(self) -> dict[str, Tensor]:
        """Return all measures."""
        measured = self._means()
        _rooted(measured, ("spread", "skill"))
        for suffix in ("", "_by_frame"):
            measured[f"spread_skill{suffix}"] = measured[f"spread{suffix}"] / measured[f"skill{suffix}"]
        count, first, second, squares_first, squares_second, product = self.moments
        scale = ((count * squares_first - first**2) * (count * squares_second - second**2)).clamp_min(0).sqrt()
        correlation = (count * product - first * second) / scale
        return measured | {"correlation": correlation, "ranks": self.counts, "chi_square": chi_square(self.counts)}


def _check(fields: Tensor, truth: Tensor, frames: int) -> None:
    if fields.shape[-4:] != truth.shape or truth.ndim != 4:
        raise ValueError(f"fields and truth must both be (B, T, H, W), got {tuple(fields.shape[-4:])} and {tuple(truth.shape)}")
    if truth.shape[1] != frames:
        raise ValueError(f"this metric is for sequences of {frames} frames, got {truth.shape[1]}")
    for name, values in {"fields": fields, "truth": truth}.items():
        if not bool(values.isfinite().all()):
            raise ValueError(f"the {name} hold NaN or infinite values: nothing can be measured")
