"""Autoregressive perturbations (AR, Sandoval-Segura et al. 2022): fields in which every pixel is a fixed mixture of its eight predecessors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from shared.seeding import generator

CROP = 4
"""Rows and columns cut off above and to the left, where the random start is still seen."""

TRIALS = 3
"""Fields drawn of a candidate before it is accepted."""

TRIAL_SIZE = (32, 32)
"""Height and width of trial fields, for which the bounds of the rule are meant."""

CANDIDATES = 2000
"""Candidates for one channel that are tried together."""


class AutoregressiveProcesses:
    """One process for each class and channel.

    A field starts as Gaussian noise; row by row, the lower right cell of every 3 x 3 window is overwritten by the sum of the window's other cells
    times the coefficients. There is no driving noise, so the *matched filter*, the coefficients with -1 in the last cell, answers 0 everywhere.

    Args:
        coefficients: (K, C, 3, 3), whose last cell is 0.

    Raises:
        ValueError: if the shape is another or a last cell is not 0.
    """

    def __init__(self, coefficients: Tensor) -> None:
        if coefficients.ndim != 4 or coefficients.shape[2:] != (3, 3) or coefficients[..., 2, 2].any():
            raise ValueError(f"coefficients must be (K, C, 3, 3) with 0 in the last cell, got the shape {tuple(coefficients.shape)}")
        self.coefficients = coefficients.double()
        self._matrices: dict[int, Tensor] = {}

    def draw(self, labels: Tensor, size: tuple[int, int], indices: Tensor, seed: int) -> Tensor:
        """Draw a field for each label.

        Args:
            labels: (B,) classes.
            size: height and width in pixels.
            indices: (B,) numbers of the images: each field's start is a function of `seed` and its number alone.
            seed: seed of the starts.

        Returns:
            (B, C, H, W) float64 fields of no particular scale: precise enough that the batch they are drawn in does not show after rounding.
        """
        channels, height, width = self.coefficients.shape[1], size[0] + CROP, size[1] + CROP
        starts = [torch.randn(channels, height, width, generator=generator(seed, "autoregressive", index)) for index in indices.tolist()]
        fields = torch.empty(len(labels), channels, *size, dtype=torch.float64)
        matrices = self._row_matrices(width)
        for label in labels.unique().tolist():
            chosen = (labels == label).nonzero()[:, 0].tolist()
            start = torch.stack([starts[place] for place in chosen], 1).double()  # (C, B_k, H, W)
            fields[chosen] = scan(start, matrices[label])[..., CROP:, CROP:].transpose(0, 1)
        return fields

    def matched_responses(self, images: Tensor) -> Tensor:
        """Sum of the positive answers of each class's matched filter, (B, C, H, W) -> (B, K); 0 up to rounding on fields of the class itself."""
        return matched_responses(self.coefficients, images)

    def _row_matrices(self, width: int) -> Tensor:
        if width not in self._matrices:
            self._matrices[width] = row_matrices(self.coefficients, width)
        return self._matrices[width]


def matched_responses(coefficients: Tensor, images: Tensor) -> Tensor:
    """Answer of (K, C, 3, 3) coefficients' matched filters to (B, C, H, W) images: summed over channels, then over positions where positive."""
    filters = coefficients.to(images, copy=True)
    filters[..., 2, 2] = -1
    return F.conv2d(images, filters).relu().sum((2, 3))


def row_matrices(coefficients: Tensor, width: int) -> Tensor:
    """Write one row of the recurrence as a matrix.

    Within a row, x_j = drive_j + b_20 x_{j-2} + b_21 x_{j-1}: a triangular system, whose solution is linear in the two rows above and in the row's
    first two cells. A scan over rows and columns thus becomes one product of matrices a row, for all images at once.

    Args:
        coefficients: (..., 3, 3), whose last cell is 0.
        width: width W of the field.

    Returns:
        (..., W - 2, 2 W + 2) matrices that map [row i - 2, row i - 1, first two cells of row i] to the other cells of row i.
    """
    count = width - 2
    cells = torch.arange(count)
    drive = coefficients.new_zeros(*coefficients.shape[:-2], count, 2 * width + 2)
    system = torch.eye(count, dtype=coefficients.dtype).expand(*coefficients.shape[:-2], -1, -1).clone()
    for column in range(3):
        drive[..., cells, cells + column] = coefficients[..., 0, column, None]
        drive[..., cells, width + cells + column] = coefficients[..., 1, column, None]
    for offset in (1, 2):
        coefficient = coefficients[..., 2, 2 - offset, None]
        system[..., cells[offset:], cells[:-offset]] = -coefficient
        drive[..., cells[:offset], 2 * width + 2 - offset + cells[:offset]] = coefficient
    return torch.linalg.solve_triangular(system, drive, upper=False)


def scan(start: Tensor, matrices: Tensor) -> Tensor:
    """Run the recurrence over (..., N, H, W) starting fields, with `row_matrices` (..., W - 2, 2 W + 2); the first two rows and columns stay."""
    fields = start.clone()
    transposed = matrices.transpose(-1, -2)
    for row in range(2, fields.shape[-2]):
        known = torch.cat([fields[..., row - 2, :], fields[..., row - 1, :], fields[..., row, :2]], -1)  # (..., N, 2 W + 2)
        fields[..., row, 2:] = known @ transposed
    return fields


def find_processes(
    classes: int,
    channels: int,
    seed: int = 0,
    size: tuple[int, int] = TRIAL_SIZE,
    max_norm: float = 50.0,
    min_response: float | None = None,
    patience: int = 5000,
) -> AutoregressiveProcesses:
    """Search coefficients whose fields neither diverge nor resemble another class's (the authors' rule).

    Candidates are Gaussian and divided by their sum. One is accepted if three trial fields of 32 x 32 pixels are finite with a norm of at most
    `max_norm` (meant for three channels; it goes with the root of their number), and if the matched filter of every class accepted before answers
    the last of them, scaled to norm 1, with at least `min_response`. Where fields are to be larger than that, larger ones must not diverge either.

    Some worlds have no room for the published response, such as ten classes of one channel: after `patience` candidates in vain the demand falls
    by a fifth.

    Args:
        classes: number K of classes.
        channels: channels C.
        seed: seed of the search.
        size: height and width of the fields to be drawn, in pixels.
        max_norm: largest norm of a trial field of three channels.
        min_response: least answer of another class's matched filter; None takes the published 10 for up to ten classes and 3 for more.
        patience: candidates without one accepted after which the demanded response falls.
    """
    demanded = (10.0 if classes <= 10 else 3.0) if min_response is None else min_response
    bound = max_norm * math.sqrt(channels / 3)
    accepted, in_vain = torch.empty(0, channels, 3, 3), 0
    candidates = _bounded_candidates(channels, bound, seed)
    while len(accepted) < classes:
        coefficients, fields = next(candidates)
        fields /= fields.flatten(1).norm(dim=1)[:, None, None, None]
        lowest = _lowest_response(accepted, fields)
        for number, candidate in enumerate(coefficients):
            if len(accepted) == classes:
                break
            if lowest[number] >= demanded and _stays_bounded(candidate, size, bound, (seed, "autoregressive check", len(accepted))):
                accepted, in_vain = torch.cat([accepted, candidate[None]]), 0
                lowest = torch.minimum(lowest, _lowest_response(candidate[None], fields))
            else:
                in_vain += 1
            if in_vain == patience:
                demanded, in_vain = 0.8 * demanded, 0
    return AutoregressiveProcesses(accepted)


def _lowest_response(coefficients: Tensor, fields: Tensor) -> Tensor:
    """Return the lowest answer of (K, C, 3, 3) coefficients' matched filters to each of (B, C, H, W) fields, (B,); infinite without coefficients."""
    if len(coefficients) == 0:
        return torch.full((len(fields),), torch.inf)
    return matched_responses(coefficients, fields).amin(1)


def _bounded_candidates(channels: int, bound: float, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield coefficients (B, C, 3, 3) whose trial fields have norms within the bound, each with its last field, (B, C, 32, 32).

    A norm over all channels is bounded only if each channel's is: channels are tried one by one, many together, and those that pass are joined.
    """
    height, width = TRIAL_SIZE[0] + CROP, TRIAL_SIZE[1] + CROP
    for attempt in itertools.count():
        random = generator(seed, "autoregressive search", attempt)
        coefficients = torch.randn(CANDIDATES, 3, 3, generator=random)
        coefficients[:, 2, 2] = 0
        coefficients /= coefficients.sum((1, 2), keepdim=True)
        start = torch.randn(CANDIDATES, TRIALS, height, width, generator=random)
        fields = scan(start, row_matrices(coefficients, width))[..., CROP:, CROP:]
        squares = fields.square().sum((2, 3))
        passed = (squares <= bound**2).all(1).nonzero()[:, 0]  # what is not a number compares as false
        groups = passed[: len(passed) // channels * channels].reshape(-1, channels)
        groups = groups[(squares[groups].sum(1) <= bound**2).all(1)]
        yield coefficients[groups], fields[groups, -1]


def _stays_bounded(coefficients: Tensor, size: tuple[int, int], bound: float, key: tuple[int | str, ...]) -> bool:
    """Say whether trial fields of the size to be drawn keep the root mean square that the bound allows a trial field."""
    if size[0] <= TRIAL_SIZE[0] and size[1] <= TRIAL_SIZE[1]:
        return True
    start = torch.randn(len(coefficients), TRIALS, size[0] + CROP, size[1] + CROP, generator=generator(*key))
    fields = scan(start, row_matrices(coefficients, size[1] + CROP))[..., CROP:, CROP:]
    growth = size[0] * size[1] / (TRIAL_SIZE[0] * TRIAL_SIZE[1])
    return bool((fields.square().sum((0, 2, 3)) <= growth * bound**2).all())
