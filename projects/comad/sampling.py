"""Greedy k-centre: few points near which all others lie, as tokens of a picture and as coreset of a patch memory."""

from __future__ import annotations

import torch
from torch import Tensor

from shared.seeding import derive_seed, generator

LARGE = 1 << 24
"""Distances, points times picks, from which points that cannot be picked soon are set aside."""
STEP = 0.94
"""Part of the covering radius below which points are set aside."""
_CHUNK = 1 << 22


def k_centre(points: Tensor, count: int, seed: int, project: int = 128) -> Tensor:
    """Choose points greedily, each the one farthest from those chosen before, after a random linear map to fewer dimensions (step 1).

    The first is the one whose Euclidean distances to all points have the largest L2 norm. No matrix of distances is built: memory grows with the
    number of points, and the picks are still those of the matrix, up to rounding.

    Args:
        points: (N, C) floats.
        count: points to choose.
        seed: of the linear map.
        project: dimensions that points of more are mapped to; 0 leaves all as they are.

    Returns:
        (count,) int64 distinct places in `points`, in the order of choice.

    Raises:
        ValueError: if there are fewer points than `count`, or some are not finite.
    """
    if not 0 < count <= len(points):
        raise ValueError(f"k-centre chooses 1 to all of {len(points)} points, not {count}")
    if not points.isfinite().all():
        raise ValueError("k-centre needs finite points: some are NaN or infinite")
    greedy = _greedy_with_levels if len(points) * count >= LARGE else _greedy
    with torch.autocast(points.device.type, enabled=False):
        mapped = _projected(points, seed, project)
        mapped = mapped - mapped.mean(0)  # distances of centred points lose less to rounding
        return greedy(mapped, mapped.square().sum(1), count)


def sample_tokens(features: Tensor, seed: int, fraction: float = 0.01, first: int = 0) -> Tensor:
    """Keep the part of each picture's tokens that greedy k-centre chooses, each picture with a linear map of its own (step 1).

    Args:
        features: (B, C, h, w).
        seed: of the linear maps.
        fraction: part of the h w tokens that is kept, rounded down, but one at least.
        first: number of the first picture, so that batches of any size give the same tokens.

    Returns:
        (B n, C), picture after picture.
    """
    count = max(1, int(fraction * features.shape[2] * features.shape[3]))
    kept = []
    for number, tokens in enumerate(features.flatten(2).mT, start=first):
        kept.append(tokens[k_centre(tokens, count, derive_seed(seed, "tokens", number))])
    return torch.cat(kept)


def _projected(points: Tensor, seed: int, project: int) -> Tensor:
    """Map (N, C) to (N, project) by a Gaussian matrix that preserves squared distances on average, unless C is no more than that."""
    channels = points.shape[1]
    if not project or channels <= project:
        return points
    matrix = torch.randn(channels, project, generator=generator(seed, "k-centre")) / project**0.5
    return points @ matrix.to(points)


def _distances(points: Tensor, norms: Tensor, centre: Tensor) -> Tensor:
    """Return the squared distances, (N,), of points with squared norms to the centre, (D,)."""
    return torch.addmv(norms, points, centre, alpha=-2).add_(centre @ centre).clamp_(min=0)


def _greedy(points: Tensor, norms: Tensor, count: int) -> Tensor:
    """Choose among centred points, (N, D): the sum of the squared distances to all points is largest where the norm is."""
    nearest = torch.full_like(norms, torch.inf)
    chosen = [norms.argmax()]
    for _ in range(count - 1):
        torch.minimum(nearest, _distances(points, norms, points[chosen[-1]]), out=nearest)
        nearest[chosen[-1]] = -1
        chosen.append(nearest.argmax())
    return torch.stack(chosen)


def _greedy_with_levels(points: Tensor, norms: Tensor, count: int) -> Tensor:
    """Choose as `_greedy` does, but compare only points that may be picked soon with every new centre.

    Distances to the nearest centre only fall. While the farthest point is farther than a level, points that were within it need no look; when the
    level is lowered, those above it catch up with the centres that they missed, in products of matrices.
    """
    first = norms.argmax()
    nearest = _distances(points, norms, points[first])
    nearest[first] = -1
    chosen, seen = [first], torch.ones(len(points), dtype=torch.int64, device=points.device)  # centres that each point was compared with
    while len(chosen) < count:
        level = _lowered(points, norms, nearest, seen, torch.stack(chosen))
        active = (nearest > level).nonzero().flatten()
        if not len(active):  # copies of chosen points are left
            rest = (nearest >= 0).nonzero().flatten()
            return torch.cat([torch.stack(chosen), rest[: count - len(chosen)]])
        close, lengths, distances = points[active], norms[active], nearest[active]
        while len(chosen) < count:
            place = distances.argmax()
            if distances[place] <= level:
                break
            chosen.append(active[place])
            torch.minimum(distances, _distances(close, lengths, close[place]), out=distances)
            distances[place] = -1
        nearest[active], seen[active] = distances, len(chosen)
    return torch.stack(chosen)


def _lowered(points: Tensor, norms: Tensor, nearest: Tensor, seen: Tensor, centres: Tensor) -> float:
    """Bring the points that may be farthest up to date, in place, and return the squared distance below which no other has to be looked at.

    Args:
        points: (N, D).
        norms: (N,) their squared norms.
        nearest: (N,) squared distances to the nearest of the centres that each was compared with, -1 if chosen.
        seen: (N,) how many of the centres these are.
        centres: (M,) places of the centres.
    """
    while True:
        farthest = nearest.argmax()
        level = STEP**2 * float(nearest[farthest])
        late = ((nearest > level) & (seen < len(centres))).nonzero().flatten()
        if not len(late):
            return level
        for start in seen[late].unique().tolist():
            _catch_up(points, norms, nearest, late[seen[late] == start], centres[start:])
        seen[late] = len(centres)


def _catch_up(points: Tensor, norms: Tensor, nearest: Tensor, places: Tensor, centres: Tensor) -> None:
    """Compare the points at some places with some centres, in place."""
    others = points[centres]
    lengths = norms[centres]
    for part in places.split(max(1, _CHUNK // len(centres))):
        squared = torch.addmm(lengths, points[part], others.T, alpha=-2).amin(1) + norms[part]
        nearest[part] = torch.minimum(nearest[part], squared.clamp_(min=0))
