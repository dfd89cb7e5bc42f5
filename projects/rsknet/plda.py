"""Linear discriminant analysis and two-covariance probabilistic LDA, in float64.

model = Plda.fit(embeddings, speakers)
llrs = model.score(mean, counts, model.project(tests))      # mean: of the projections of `counts` files; natural logarithms of likelihood ratios
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

_RIDGE = 1e-9  # part of the mean variance that is added to the within-speaker covariance before it is inverted


def speaker_means(embeddings: Tensor, speakers: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Average embeddings by speaker.

    Args:
        embeddings: (N, E).
        speakers: (N,) int64.

    Returns:
        (S, E) means in the order of the speakers' numbers, (S,) numbers of embeddings and (N,) row of each embedding's speaker.
    """
    names, place, counts = speakers.cpu().unique(return_inverse=True, return_counts=True)
    sums = embeddings.new_zeros(len(names), embeddings.shape[1]).index_add_(0, place, embeddings)
    return sums / counts[:, None], counts, place


def lda(embeddings: Tensor, speakers: Tensor, dimensions: int) -> Tensor:
    """Directions in which speakers differ most for how much their own embeddings do.

    Args:
        embeddings: (N, E) float64.
        speakers: (N,) int64.
        dimensions: D, at most the number of speakers less one, and E.

    Returns:
        (E, D), best direction first; the mean covariance within speakers becomes the unit matrix.

    Raises:
        ValueError: if no speaker has two embeddings, embeddings exceed speakers by less than E, or `dimensions` is out of its range.
    """
    means, counts, place = speaker_means(embeddings, speakers)
    _check(embeddings, counts, dimensions)
    within = _scatter(embeddings - means[place]) / len(embeddings)
    between = _scatter((means - embeddings.mean(0)) * counts[:, None].sqrt()) / len(embeddings)
    return _diagonalised(between, within)[0][:, :dimensions]


def two_covariance(embeddings: Tensor, speakers: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Fit x = y + e, y ~ N(0, B) of the speaker and e ~ N(0, W) of the recording, by expectation maximisation.

    Speakers with equally many embeddings share their posterior covariance. EM starts from the covariances of the means and within speakers.

    Args:
        embeddings: (N, D) float64, centred.
        speakers: (N,) int64.
        iterations: of EM; each raises the likelihood.

    Returns:
        B and W, both (D, D).
    """
    means, counts, place = speaker_means(embeddings, speakers)
    scatter = _scatter(embeddings - means[place])
    ridge = _RIDGE * embeddings.square().mean() * torch.eye(embeddings.shape[1], dtype=embeddings.dtype)
    between, within = _scatter(means) / len(means) + ridge, scatter / max(1, len(embeddings) - len(means)) + ridge
    for _ in range(iterations):
        sum_between, sum_within = torch.zeros_like(between), scatter.clone()
        for count in counts.unique().tolist():
            own = means[counts == count]
            gain = torch.linalg.solve(between + within / count, between).T  # Phi n W^-1, without inverting either covariance
            phi = between - gain @ between
            expected = own @ gain.T
            sum_between += len(own) * phi + _scatter(expected)
            sum_within += count * (len(own) * phi + _scatter(own - expected))
        between, within = (_symmetric(total) for total in (sum_between / len(means), sum_within / len(embeddings)))
    return between, within


@dataclass(frozen=True, eq=False)
class Plda:
    """A fitted model: centre, LDA, lengths of sqrt(D) if wanted, and the space in which W is the unit matrix and B is diagonal.

    Attributes:
        centre: (E,) mean of the training embeddings.
        projection: (E, D) of LDA.
        offset: (D,) mean of the training embeddings after LDA and length normalisation.
        whitening: (D, D) to the space of the model.
        psi: (D,) variances between speakers there, the largest one first; those within are 1.
        length_norm: whether lengths are normalised.
    """

    centre: Tensor
    projection: Tensor
    offset: Tensor
    whitening: Tensor
    psi: Tensor
    length_norm: bool = True

    @classmethod
    def fit(cls, embeddings: Tensor, speakers: Tensor, dimensions: int = 128, length_norm: bool = True, iterations: int = 10) -> Plda:
        """Fit LDA and PLDA.

        Args:
            embeddings: (N, E).
            speakers: (N,) int64.
            dimensions: of LDA; no more than the number of speakers less one, and E, are taken.
            length_norm: scales embeddings to length sqrt(D) between LDA and PLDA.
            iterations: of expectation maximisation.

        Raises:
            ValueError: if there are fewer than three speakers, no speaker has two embeddings, or embeddings exceed speakers by less than E.
        """
        embeddings = embeddings.detach().cpu().double()
        if speakers.shape != embeddings.shape[:1]:
            raise ValueError(f"{len(embeddings)} embeddings with speakers of shape {tuple(speakers.shape)}: there must be one an embedding")
        count = len(speakers.unique())
        if count < 3:
            raise ValueError(f"PLDA needs at least 3 speakers, got {count}: use the cosine")
        centre = embeddings.mean(0)
        projection = lda(embeddings, speakers, min(dimensions, count - 1, embeddings.shape[1]))
        projected = _scaled((embeddings - centre) @ projection, length_norm)
        offset = projected.mean(0)
        whitening, psi = _diagonalised(*two_covariance(projected - offset, speakers, iterations))
        return cls(centre, projection, offset, whitening, psi.clamp_min(0), length_norm)

    def project(self, embeddings: Tensor) -> Tensor:
        """Map embeddings (N, E) to (N, D) float64 in the space of the model; each file's by itself, as lengths are normalised on the way."""
        centred = embeddings.detach().cpu().double() - self.centre
        return (_scaled(centred @ self.projection, self.length_norm) - self.offset) @ self.whitening

    def score(self, enrol: Tensor, counts: Tensor, tests: Tensor, test_counts: Tensor | None = None) -> Tensor:
        """Logarithm of how much likelier pairs are of one speaker than of two, exact under the model.

        Args:
            enrol: (N, D) means of files' projections.
            counts: (N,) numbers of files that the rows of `enrol` are means of.
            tests: (N, D) means of files' projections.
            test_counts: (N,) numbers of files that the rows of `tests` are means of; None for one file each.

        Returns:
            (N,) natural logarithms: sum over D of log N(t; n psi / (n psi + 1) a, 1 / m + psi / (n psi + 1)) - log N(t; 0, 1 / m + psi), of n files
            against m.
        """
        n = counts[:, None].to(self.psi.dtype)
        noise = 1 if test_counts is None else 1 / test_counts[:, None].to(self.psi.dtype)
        shrunk = self.psi / (n * self.psi + 1)
        same, other = noise + shrunk, noise + self.psi
        return ((tests.square() / other - (tests - n * shrunk * enrol).square() / same + other.log() - same.log()) / 2).sum(1)

    def tensors(self) -> dict[str, Tensor]:
        """Return what `from_tensors` takes."""
        return {each.name: torch.as_tensor(getattr(self, each.name), dtype=torch.float64) for each in fields(self)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Plda:
        """Make the model that gave these `tensors`.

        Raises:
            KeyError: if one is missing.
            ValueError: if their shapes do not fit.
        """
        model = cls(**{each.name: tensors[each.name] for each in fields(cls)[:-1]}, length_norm=bool(tensors["length_norm"]))
        size, dimensions = len(model.centre), len(model.psi)
        expected = [(size,), (size, dimensions), (dimensions,), (dimensions, dimensions), (dimensions,)]
        for each, shape in zip(fields(cls), expected, strict=False):
            if (found := tuple(tensors[each.name].shape)) != shape:
                raise ValueError(f"PLDA's {each.name} is {found}, expected {shape}")
        return model


def _check(embeddings: Tensor, counts: Tensor, dimensions: int) -> None:
    if counts.max() < 2:
        raise ValueError(f"all {len(counts)} speakers have a single utterance, which does not tell how they vary: give at least two of some of them")
    if (freedom := len(embeddings) - len(counts)) < embeddings.shape[1]:
        raise ValueError(
            f"{len(embeddings)} utterances of {len(counts)} speakers tell of {freedom} directions in which speakers vary, fewer than the "
            f"{embeddings.shape[1]} of embeddings: give more utterances, or use the cosine"
        )
    if not 1 <= dimensions <= min(len(counts) - 1, embeddings.shape[1]):
        raise ValueError(f"dimensions must be from 1 to {min(len(counts) - 1, embeddings.shape[1])} (speakers less one, size), got {dimensions}")


def _scatter(rows: Tensor) -> Tensor:
    return rows.T @ rows


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.T) / 2


def _diagonalised(between: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """Return V (D, D) and psi (D,), falling, with V^T W V = 1 and V^T B V = diag(psi)."""
    ridge = _RIDGE * within.diagonal().mean() * torch.eye(len(within), dtype=within.dtype)
    factor = torch.linalg.cholesky(within + ridge)
    half = torch.linalg.solve_triangular(factor, between, upper=False)
    psi, vectors = torch.linalg.eigh(_symmetric(torch.linalg.solve_triangular(factor, half.T, upper=False)))
    return torch.linalg.solve_triangular(factor.T, vectors, upper=True).flip(1), psi.flip(0)


def _scaled(embeddings: Tensor, length_norm: bool) -> Tensor:
    return F.normalize(embeddings, dim=1) * embeddings.shape[1] ** 0.5 if length_norm else embeddings
