"""A fast filter with the Gaussian kernel of place and colour, the appearance kernel of the dense CRF (step 3).

K_ij = exp(-|p_i - p_j|^2 / 2 sxy^2) exp(-|I_i - I_j|^2 / 2 srgb^2), with K_ii = 1, joins all pairs of pixels. In ComAD its factor of places is wide
(67 of 224 pixels) and that of colours narrow (3 of 256 levels), so they are treated apart:

- places: the Gaussian is separable, and its eigenvalues fall off fast. The few products of eigenvectors that matter, `SpatialTerms`, are found once
  per size. K is a sum over terms r of b_r(i) b_r(j) times the factor of colours.
- colours: the pixels in a cube of `cell` levels are one cell. Cells act on each other by the mean Gaussian over their pixels, which are taken as
  normally distributed, with their own mean and variance. Each pixel that receives adds the slope of what its cell receives, times how far its colour
  lies from the cell's mean; slopes are small, so that fewer terms do for them. Cells farther apart than `reach` times srgb do not act on each other.

With a `cell` of 1 all colours are exact. The time grows with the number of terms, about (1.3 + 1.0 H / sxy) (1.3 + 1.0 W / sxy), times the number of
pixels and of pairs of cells.
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
MAX_PAIRS = 2**22
"""Pairs of cells at most, which bounds the memory; where there are more, as in very noisy pictures, the cells are widened."""
CHUNK = 2**23
"""Numbers at most in an intermediate tensor of the filter, if more than one term fits."""
TILE = 8
"""Pixels of a tile."""
SLOPE = 0.5
"""Largest error of the factor of places in the slopes of what is received; slopes are small."""


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
    """The factor of colours between the V cells of a picture.

    Attributes:
        owners: (N,) int64, the cell of each pixel.
        means: (V, 3) mean colours of the cells.
        offsets: (N, 3) colours of the pixels less the mean of their cell.
        spread: mean variance of a channel in a cell, over the pixels.
        kernel: (V, V) sparse, the means of exp(-|I_i - I_j|^2 / 2 srgb^2) over the pixels of two cells.
    """

    owners: Tensor
    means: Tensor
    offsets: Tensor
    spread: float
    kernel: Tensor


def colour_cells(image: Tensor, srgb: float, cell: int, reach: float) -> ColourCells:
    """Group the pixels of a picture by colour.

    Args:
        image: (3, H, W) uint8.
        srgb: sigma of the Gaussian of colours, in levels.
        cell: side of the cells, in levels; widened where there would be more than `MAX_PAIRS` pairs.
        reach: cells that are farther apart than so many `srgb` are not joined.
    """
    levels = image.flatten(1).T.long()
    for side in count(cell):
        codes, owners = torch.unique(_code(levels // side, LEVELS), return_inverse=True)
        firsts, lengths = _runs(codes, side, reach * srgb)
        if lengths.sum() <= MAX_PAIRS:
            break
    corners = _places(codes) * side
    inside = (levels - corners[owners]).float()  # sums of small whole numbers are exact
    sizes = owners.bincount()[:, None]
    middles = torch.zeros_like(corners, dtype=torch.float32).index_add_(0, owners, inside) / sizes
    offsets = inside - middles[owners]
    variances = torch.zeros_like(middles).index_add_(0, owners, offsets.square()) / sizes
    means, pairs = corners + middles, _pairs(firsts, lengths)
    kernel = _sparse(*pairs, _mean_gaussian(means, variances, pairs, srgb), (len(codes), len(codes)))
    return ColourCells(owners, means, offsets, float(offsets.square().mean()), kernel)


def _mean_gaussian(means: Tensor, variances: Tensor, pairs: tuple[Tensor, Tensor], sigma: float) -> Tensor:
    """Return the mean of a Gaussian of the difference between draws of two normal distributions, 1 for none, for pairs of them.

    Args:
        means: (V, 3) of the distributions.
        variances: (V, 3) of them.
        pairs: (P,) numbers of distributions each.
        sigma: of the Gaussian.

    Returns:
        (P,).
    """
    exponents, scales = torch.zeros_like(pairs[0], dtype=torch.float32), torch.ones_like(pairs[0], dtype=torch.float32)
    for mean, half in zip(means.T.contiguous(), (variances + sigma**2 / 2).T.contiguous(), strict=True):
        widened = half.index_select(0, pairs[0]).add_(half.index_select(0, pairs[1]))
        exponents.addcdiv_(mean.index_select(0, pairs[0]).sub_(mean.index_select(0, pairs[1])).square_(), widened)
        scales.mul_(widened)
    return exponents.mul_(-0.5).exp_().mul_(scales.rsqrt_().mul_(sigma**3))


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


def _pairs(firsts: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """List the rows and the cells of the runs in each row, (U, M) both -> (P,) int32 both, sorted."""
    lengths = lengths.flatten()
    total = int(lengths.sum())
    places = torch.arange(total, dtype=torch.int32, device=lengths.device)
    rows = places[: len(firsts)].repeat_interleave(lengths.view(len(firsts), -1).sum(1), output_size=total)
    shifts = (firsts.flatten() - (lengths.cumsum(0) - lengths)).int()
    return rows, shifts.repeat_interleave(lengths, output_size=total).add_(places)


def _sparse(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """Build a matrix of compressed rows, which multiplies several times faster than one of pairs, from sorted and distinct places, (P,) int32."""
    starts = F.pad(rows.bincount(minlength=shape[0]).cumsum(0, dtype=torch.int32), (1, 0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


@dataclass(frozen=True)
class Tiles:
    """The pixels of a picture in tiles of `TILE`, each of one cell, so that products of small matrices do the work; T tiles.

    Attributes:
        pixels: (T * TILE,) int64, the pixel at each place of a tile; N where it is empty.
        places: (N,) int64, where each pixel is.
        cells: (T,) int64, the cell of each tile.
        sums: (V, T) sparse, adds up the tiles of each cell.
    """

    pixels: Tensor
    places: Tensor
    cells: Tensor
    sums: Tensor


def tiles(owners: Tensor, cells: int) -> Tiles:
    """Lay out pixels, whose cells are given, (N,)."""
    sizes = owners.bincount(minlength=cells)
    counts = (sizes + TILE - 1) // TILE
    ends, tile_ends = sizes.cumsum(0), counts.cumsum(0)
    order = owners.argsort(stable=True)
    shifts = TILE * (tile_ends - counts) - (ends - sizes)  # by cell, from its first pixel in order to its first place
    of_order = torch.arange(len(owners), device=owners.device) + shifts.repeat_interleave(sizes)
    total = int(tile_ends[-1])
    pixels = owners.new_full((TILE * total,), len(owners)).scatter_(0, of_order, order)
    of_tile = torch.arange(cells, device=owners.device).repeat_interleave(counts)
    numbers = torch.arange(total, dtype=torch.int32, device=owners.device)
    sums = _sparse(of_tile, numbers, torch.ones(total, device=owners.device), (cells, total))
    return Tiles(pixels, torch.empty_like(owners).scatter_(0, order, of_order), of_tile, sums)


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

    def __init__(self, image: Tensor, sxy: float, srgb: float, tolerance: float = 4e-2, cell: int | None = None, reach: float = 3.5) -> None:
        height, width = image.shape[1:]
        self.terms = spatial_terms(height, width, float(sxy), tolerance).to(image.device)
        self.cells = colour_cells(image, srgb, max(1, round(srgb)) if cell is None else cell, reach)
        self.slopes = spatial_terms(height, width, float(sxy), max(SLOPE, tolerance)).rows.shape[1] if self.cells.spread else 0  # S
        self.tiles = tiles(self.cells.owners, len(self.cells.means))
        self.centred = self.cells.means - self.cells.means.mean(0)
        self.offsets = self.cells.offsets / (srgb**2 + 2 * self.cells.spread)
        self.step = max(self.slopes, CHUNK // len(self.tiles.pixels), 1)
        self.basis = self._basis(0) if self.step >= self.terms.rows.shape[1] else None
        """See `_basis`, if it is not too large to be kept."""

    def __call__(self, values: Tensor) -> Tensor:
        """Return sum_j K_ij v_j, (N, C) float32 -> (N, C), the N = H W pixels row by row."""
        sent = F.pad(values, (0, 0, 0, 1)).index_select(0, self.tiles.pixels).view(len(self.tiles.cells), TILE, -1)
        received = torch.zeros_like(sent)
        for start in range(0, self.terms.rows.shape[1], self.step):
            received += self._some(sent, start)
        return received.flatten(0, 1).index_select(0, self.tiles.places)

    def _basis(self, start: int) -> Tensor:
        """Return the terms b_r from one on at the pixels, (T, TILE, R); with the first ones also what is received by, (T, TILE, R + 4 S).

        What is received at a pixel is sum_j (1 + d_i . (m_j - m_i)) K_ij v_j, with the means m of cells and the offset d from them in units of the
        variance. So the first S terms are sent with v_j and m_j v_j, and received by b_r (1 - d_i . m_i) and by b_r d_i.
        """
        rows, columns = (side[:, start : start + self.step] for side in (self.terms.rows, self.terms.columns))
        terms, slopes = rows.shape[1], 0 if start else self.slopes
        basis = torch.empty(len(rows) * len(columns) + 1, terms + 4 * slopes, device=rows.device)
        torch.mul(rows[:, None], columns, out=basis[:-1, :terms].view(len(rows), len(columns), terms))
        if slopes:
            steep, offsets = basis[:-1, :slopes], self.offsets
            torch.mul(steep, 1 - (offsets * self.centred[self.cells.owners]).sum(1, keepdim=True), out=basis[:-1, terms : terms + slopes])
            torch.mul(steep[:, None], offsets[:, :, None], out=basis[:-1, terms + slopes :].unflatten(1, (3, slopes)))
        basis[-1] = 0
        return basis.index_select(0, self.tiles.pixels).view(-1, TILE, basis.shape[1])

    def _some(self, sent: Tensor, start: int) -> Tensor:
        """Filter with some of the terms, (T, TILE, C) -> (T, TILE, C)."""
        basis = self._basis(start) if self.basis is None else self.basis
        terms, slopes = min(self.step, self.terms.rows.shape[1] - start), 0 if start else self.slopes
        of_cells = self.tiles.sums @ torch.bmm(basis[:, :, :terms].mT, sent).flatten(1)  # (V, R * C)
        steep, others = of_cells.split((slopes * sent.shape[2], (terms - slopes) * sent.shape[2]), 1)
        moments = [steep * mean for mean in self.centred.split(1, 1)] if slopes else []
        found = self.cells.kernel @ torch.cat([others, steep, *moments], 1)
        return torch.bmm(basis[:, :, slopes:], found.index_select(0, self.tiles.cells).view(len(basis), -1, sent.shape[2]))
