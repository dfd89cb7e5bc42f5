"""A fast filter with the Gaussian kernel of place and colour, the appearance kernel of the dense CRF (section 2.3, step 3).

K_ij = exp(-|p_i - p_j|^2 / 2 sxy^2) exp(-|I_i - I_j|^2 / 2 srgb^2), with K_ii = 1, joins all pairs of pixels. In ComAD its factor of places is wide
(67 of 224 pixels) and that of colours narrow (3 of 256 levels), so they are treated apart:

- places: the Gaussian is separable, and its eigenvalues fall off fast. The few products of eigenvectors that matter, `SpatialTerms`, are found once
  per size. K is a sum over terms r of b_r(i) b_r(j) times the factor of colours.
- colours: the values of the pixels in a cube of `cell` levels are added up. Such a cell acts on a colour by the mean Gaussian over its pixels, which
  are taken as normally distributed, with their own mean and variance. Cells farther apart than `reach` times srgb do not act on each other's colours.
  The pixels that receive keep their exact colours: rounding them as well makes the largest errors several times larger.

With a `cell` of 1 all colours are exact. The time grows with the number of terms, about (1.5 + 1.2 H / sxy) (1.5 + 1.2 W / sxy), times the number of
pixels and of pairs of a colour and a cell.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import lru_cache
from itertools import count

import torch
from torch import Tensor
from torch.nn import functional as F

LEVELS = 256
MAX_PAIRS = 2**23
"""Pairs of a colour and a cell at most, which bounds the memory; where there are more, as in very noisy pictures, the cells are widened."""
CHUNK = 2**22
"""Numbers at most in an intermediate tensor of the filter."""


def gaussian_matrix(count: int, sigma: float) -> Tensor:
    """Return exp(-(x - y)^2 / 2 sigma^2) of all pairs of `count` places on a line, (count, count) float64."""
    places = torch.arange(count, dtype=torch.float64)
    return torch.exp(-((places[:, None] - places) ** 2) / (2 * sigma**2))


@dataclass(frozen=True)
class SpatialTerms:
    """The Gaussian of places as a sum of R products: sum_r rows[y, r] columns[x, r] rows[y', r] columns[x', r].

    Attributes:
        rows: (H, R).
        columns: (W, R).
    """

    rows: Tensor
    columns: Tensor

    def to(self, device: torch.device) -> SpatialTerms:
        return SpatialTerms(self.rows.to(device), self.columns.to(device))


@lru_cache(maxsize=8)
def spatial_terms(height: int, width: int, sigma: float, tolerance: float) -> SpatialTerms:
    """Return the fewest products of eigenvectors, in the order of eigenvalues, that leave at most `tolerance` of any pair's kernel.

    What is left is positive semidefinite, so that none of its entries is larger than the largest on its diagonal, which is what is looked at.

    Args:
        height: H.
        width: W.
        sigma: of the Gaussian, in pixels.
        tolerance: largest error of the kernel, whose values lie in (0, 1].
    """
    rows, columns = _scaled_eigenvectors(height, sigma), _scaled_eigenvectors(width, sigma)
    strengths = (rows**2).sum(0)[:, None] * (columns**2).sum(0)
    order = strengths.flatten().argsort(descending=True, stable=True)
    rows, columns = rows[:, order // strengths.shape[1]], columns[:, order % strengths.shape[1]]
    low, high = 0, len(order)  # more than `low` terms are needed; `high` suffice
    while high - low > 1:
        middle = (low + high) // 2
        kept = (rows[:, :middle] ** 2) @ (columns[:, :middle] ** 2).T
        low, high = (low, middle) if (1 - kept).max() <= tolerance else (middle, high)
    return SpatialTerms(rows[:, :high].float(), columns[:, :high].float())


def _scaled_eigenvectors(count: int, sigma: float) -> Tensor:
    """Return eigenvectors of the Gaussian on a line times the roots of their eigenvalues, largest first, (count, rank) float64."""
    values, vectors = torch.linalg.eigh(gaussian_matrix(count, sigma))
    kept = values > values[-1] * 1e-12
    return (vectors[:, kept] * values[kept].sqrt()).flip(1)


@dataclass(frozen=True)
class ColourCells:
    """The factor of colours between the U distinct colours of a picture and the V cells of their cubes.

    Attributes:
        colours: (N,) int64, the number of each pixel's colour.
        sums: (V, N) sparse, adds up the pixels of each cell.
        kernel: (U, V) sparse, the mean of exp(-|I - I_j|^2 / 2 srgb^2) over the pixels j of a cell.
    """

    colours: Tensor
    sums: Tensor
    kernel: Tensor


def colour_cells(image: Tensor, srgb: float, cell: int, reach: float) -> ColourCells:
    """Group the pixels of a picture by colour.

    Args:
        image: (3, H, W) uint8.
        srgb: sigma of the Gaussian of colours, in levels.
        cell: side of the cells, in levels; widened where there would be more than `MAX_PAIRS` pairs.
        reach: cells whose centres are farther apart than so many `srgb` are not joined.
    """
    codes, colours = torch.unique(_code(image.flatten(1).T.long(), LEVELS), return_inverse=True)
    levels = _places(codes)
    for side in count(cell):
        cells, owners = torch.unique(_code(levels // side, LEVELS), return_inverse=True)
        firsts, lengths = _runs(cells, side, reach * srgb)
        if lengths.sum(1)[owners].sum() <= MAX_PAIRS:
            break
    members = owners[colours]
    sums = _sparse(torch.stack(members.sort(stable=True)), torch.ones(len(members), device=image.device), (len(cells), len(members)))
    sizes = members.bincount()[:, None]
    means = _places(cells) * side + sums @ (levels % side).float()[colours] / sizes  # sums of small whole numbers are exact
    levels = levels.float()
    variances = sums @ (levels[colours] - means[members]) ** 2 / sizes
    pairs = _pairs(firsts[owners], lengths[owners])
    kernel = _mean_gaussian(levels, means, variances, pairs, srgb)
    return ColourCells(colours, sums, _sparse(pairs, kernel, (len(levels), len(cells))))


def _mean_gaussian(levels: Tensor, means: Tensor, variances: Tensor, pairs: Tensor, sigma: float) -> Tensor:
    """Return the mean of a Gaussian around a colour, (U, 3), over normal distributions, (V, 3) both, for pairs of them, (2, pairs) -> (pairs,)."""
    exponents, scales = torch.zeros_like(pairs[0], dtype=torch.float32), torch.ones_like(pairs[0], dtype=torch.float32)
    for channel in range(3):
        widened = variances[:, channel][pairs[1]].add_(sigma**2)
        distances = levels[:, channel][pairs[0]].sub_(means[:, channel][pairs[1]])
        exponents.sub_(distances.square_().div_(widened))
        scales.mul_(widened.div_(sigma**2))
    return exponents.div_(2).exp_().mul_(scales.rsqrt_())


def _code(places: Tensor, side: int) -> Tensor:
    """Number the places of a cube of so many, (..., 3) -> (...)."""
    return (places[..., 0] * side + places[..., 1]) * side + places[..., 2]


def _places(codes: Tensor) -> Tensor:
    """Undo `_code` of a cube of all levels, (...) -> (..., 3)."""
    return torch.stack([codes // LEVELS**2, codes // LEVELS % LEVELS, codes % LEVELS], -1)


def _runs(codes: Tensor, side: int, radius: float) -> tuple[Tensor, Tensor]:
    """Find the cells around each cell: they are runs in the order of the codes, one for each offset in red and green.

    Args:
        codes: (U,) sorted, of the occupied cells.
        side: of the cells, in levels.
        radius: of the ball, in levels.

    Returns:
        The numbers of the runs' first cells, and the runs' lengths, (U, M) int64 both.
    """
    radius = radius / side
    margin = int(radius)
    padded = (LEVELS - 1) // side + 1 + 2 * margin
    centres = _code(_places(codes) + margin, padded)
    before = torch.zeros(padded**3 + 1, dtype=torch.int32, device=codes.device)
    before[centres + 1] = 1
    before = before.cumsum(0, dtype=torch.int32)  # cells whose code is smaller
    steps = torch.arange(-margin, margin + 1, device=codes.device)
    offsets = torch.cartesian_prod(steps, steps)
    squares = radius**2 - (offsets**2).sum(1)
    offsets, widths = offsets[squares >= 0], squares[squares >= 0].sqrt().long()
    middles = centres[:, None] + (offsets[:, 0] * padded + offsets[:, 1]) * padded
    firsts = before[middles - widths]
    return firsts.long(), (before[middles + widths + 1] - firsts).long()


def _pairs(firsts: Tensor, lengths: Tensor) -> Tensor:
    """List the rows and the cells of the runs in each row, (U, M) both -> (2, pairs) int64, sorted."""
    rows = torch.arange(len(firsts), device=firsts.device).repeat_interleave(lengths.sum(1))
    firsts, lengths = firsts.flatten(), lengths.flatten()
    firsts, lengths = firsts[lengths > 0], lengths[lengths > 0]
    shifts = firsts - (lengths.cumsum(0) - lengths)
    return torch.stack([rows, torch.arange(len(rows), device=rows.device) + shifts.repeat_interleave(lengths)])


def _sparse(indices: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Build a matrix of compressed rows, which multiplies several times faster than one of pairs, from sorted and distinct indices, (2, n)."""
    starts = F.pad(indices[0].bincount(minlength=shape[0]).cumsum(0), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, indices[1], values, shape, check_invariants=False)


class BilateralFilter:
    """Multiplies values of pixels by the kernel K of the module, without normalisation.

    Args:
        image: (3, H, W) uint8.
        sxy: sigma in pixels.
        srgb: sigma in levels.
        tolerance: largest error of the factor of places, see `spatial_terms`.
        cell: side of the colour cells in levels; None for `srgb`, rounded.
        reach: of the colours, in `srgb`.
    """

    def __init__(self, image: Tensor, sxy: float, srgb: float, tolerance: float = 3e-3, cell: int | None = None, reach: float = 3.5) -> None:
        self.terms = spatial_terms(image.shape[1], image.shape[2], float(sxy), tolerance).to(image.device)
        self.cells = colour_cells(image, srgb, max(1, round(srgb)) if cell is None else cell, reach)

    def __call__(self, values: Tensor) -> Tensor:
        """Return sum_j K_ij v_j, (N, C) float32 -> (N, C), the N = H W pixels row by row."""
        pixels, channels = values.shape
        filtered = torch.zeros_like(values)
        step = max(1, CHUNK // (pixels * channels))
        for rows, columns in zip(self.terms.rows.split(step, 1), self.terms.columns.split(step, 1), strict=True):
            basis = (rows[:, None] * columns).view(pixels, -1, 1)
            weighted = (basis * values[:, None]).flatten(1)  # (N, terms * C)
            of_colours = self.cells.kernel @ (self.cells.sums @ weighted)
            filtered += of_colours[self.cells.colours].view(pixels, -1, channels).mul_(basis).sum(1)
        return filtered
