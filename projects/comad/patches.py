"""A memory of patches of good pictures, and how far those of a picture are from it, after PatchCore (Roth et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.comad.sampling import k_centre
from shared.seeding import derive_seed, generator

Coreset = Literal["greedy", "random"]
"""How the patches to keep are chosen: by greedy k-centre, which covers rare ones, or at random."""

_CHUNK = 1 << 20  # distances that are held at a time
_BLOCK = 128
_TINY = 1e-20


class PatchScores(NamedTuple):
    """Scores (B,) of pictures, and their anomaly maps (B, 1, H, W), in the unit of feature distances."""

    scores: Tensor
    maps: Tensor


class PatchMemory:
    """Patches of good pictures; a picture is as anomalous as its patch that is farthest from all of them.

    Args:
        count: patches that are kept at most.
        candidates: patches that they are chosen from, a uniform sample of all; memory grows with it, not with the pictures.
        coreset: how they are chosen.
        neighbourhood: side of the square, in places of the feature grid, over which features are averaged; odd, 1 for none.
        neighbours: b, patches next to the nearest one by which the score of a picture is re-weighted; 0 for none.
        blur: standard deviation of the Gaussian that smooths maps, as part of their shorter side; 0 for none.
        seed: of the sample and of the coreset.

    Raises:
        ValueError: if a number is out of its range, or there is no such coreset.
    """

    def __init__(
        self,
        count: int = 5000,
        candidates: int = 100_000,
        coreset: Coreset = "greedy",
        neighbourhood: int = 3,
        neighbours: int = 9,
        blur: float = 4 / 224,
        seed: int = 0,
    ) -> None:
        if coreset not in get_args(Coreset):
            raise ValueError(f"coreset must be one of {', '.join(get_args(Coreset))}, got {coreset!r}")
        if not 0 < count <= candidates:
            raise ValueError(f"a memory keeps at least 1 patch and at most its candidates, got count {count} of {candidates}")
        if neighbourhood < 1 or neighbourhood % 2 == 0:
            raise ValueError(f"neighbourhood must be odd, so that it has a middle, got {neighbourhood}")
        if neighbours < 0 or blur < 0:
            raise ValueError(f"neighbours and blur must not be negative, got {neighbours} and {blur}")
        self.options: dict[str, Any] = {
            "count": count,
            "candidates": candidates,
            "coreset": coreset,
            "neighbourhood": neighbourhood,
            "neighbours": neighbours,
            "blur": blur,
            "seed": seed,
        }
        self.memory: Tensor | None = None
        """(M, C) patches that are kept."""
        self._index: Index | None = None

    def fit(self, features: Tensor | Iterable[Tensor]) -> Self:
        """Choose the patches to keep.

        Args:
            features: (N, C, h, w) of good pictures, or their batches one after the other; the sizes of batches do not matter.

        Raises:
            ValueError: if there are no pictures, a feature is not finite, or batches differ in channels.
        """
        pool = self._sample([features] if isinstance(features, Tensor) else features)
        count, seed = min(self.options["count"], len(pool)), self.options["seed"]
        if self.options["coreset"] == "greedy" and count < len(pool):
            pool = pool[k_centre(pool, count, derive_seed(seed, "coreset"))]
        self.memory = pool[:count].contiguous()  # the sample is in random order
        return self

    def _sample(self, batches: Iterable[Tensor]) -> Tensor:
        """Return a uniform sample of all patches, (at most `candidates`, C), in random order: those that draw the largest numbers."""
        limit, least = self.options["candidates"], -1.0
        kept: list[tuple[Tensor, Tensor]] = []  # numbers (n,) and patches (n, C)
        pictures = 0
        for batch in batches:
            patches = self._patches(batch)  # (B, h w, C)
            if kept and kept[0][1].shape[1] != patches.shape[2]:
                raise ValueError(f"features have {patches.shape[2]} channels after pictures with {kept[0][1].shape[1]}: use one extractor")
            for place, picture in enumerate(patches, start=pictures):
                drawn = torch.rand(len(picture), generator=generator(self.options["seed"], "patches", place), dtype=torch.float64)
                is_kept = drawn > least
                kept.append((drawn[is_kept], picture[is_kept.to(picture.device)]))
            pictures += len(patches)
            if sum(len(drawn) for drawn, _ in kept) > 2 * limit:
                kept = [_largest(kept, limit)]
                least = float(kept[0][0][-1])
        if not kept:
            raise ValueError("there are no pictures to remember patches of: the training set is empty")
        return _largest(kept, limit)[1]

    def _patches(self, features: Tensor) -> Tensor:
        """Average (B, C, h, w) over the neighbourhood of each place, less what lies outside the grid; (B, h w, C)."""
        if features.ndim != 4:
            raise ValueError(f"features must be (B, C, h, w), got {tuple(features.shape)}")
        if not bool(features.isfinite().all()):
            raise ValueError("features are NaN or infinite: look for damaged pictures, or weights that do not belong to the extractor")
        side = self.options["neighbourhood"]
        means = F.avg_pool2d(features.float(), side, stride=1, padding=side // 2, count_include_pad=False)
        return means.flatten(2).mT

    def distances(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Find the nearest kept patch of every patch.

        Args:
            features: (B, C, h, w).

        Returns:
            Distances (B, h, w), and the places (B, h, w) of these patches in the memory.

        Raises:
            ValueError: if nothing was fitted, or features have other channels than the memory or are not finite.
        """
        return self._compared(features)[1:]

    def _compared(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the patches (B, h w, C) and what `distances` returns of them."""
        patches = self._patches(features)
        memory = self._memory(patches)
        if self._index is None or self._index.points is not memory:
            self._index = Index(memory)
        found, places = self._index(patches.flatten(0, 1))
        grid = (len(features), *features.shape[2:])
        return patches, found.view(grid), places.view(grid)

    def __call__(self, features: Tensor, size: tuple[int, int], weights: Tensor | None = None) -> PatchScores:
        """Score pictures by s* (1 - exp(s*) / sum over m of exp |p - m|), the patch p being the farthest from its nearest kept one, at s*.

        The sum runs over the b kept patches nearest to that nearest one, itself included: what lies near a rare kept patch is more anomalous
        (equations 6 and 7 of PatchCore).

        Args:
            features: (B, C, h, w).
            size: height and width of the maps.
            weights: (B, 1, H, W) at least 0, of any size: the sum of w_k Q_k; distances are multiplied by its means over their places.

        Raises:
            ValueError: as `distances`, or if weights are negative or of another number of pictures.
        """
        with torch.autocast(features.device.type, enabled=False):
            patches, found, places = self._compared(features)
            if weights is not None:
                found = found * _on_grid(weights, found)[:, 0]
            farthest = found.flatten(1).argmax(1)
            scores, places = (values.flatten(1).gather(1, farthest[:, None])[:, 0] for values in (found, places))
            if self.options["neighbours"]:
                of_score = patches.gather(1, farthest[:, None, None].expand(-1, 1, patches.shape[2]))  # (B, 1, C)
                scores = scores * self._rarity(of_score, places)
            return PatchScores(scores, smooth(F.interpolate(found[:, None], size, mode="bilinear"), self.options["blur"] * min(size)))

    def _rarity(self, patches: Tensor, places: Tensor) -> Tensor:
        """Return the factors (B,) of the scores of patches (B, 1, C) whose nearest kept ones stand at `places`, (B,)."""
        memory = self._memory(patches)
        count = min(self.options["neighbours"], len(memory))
        around = torch.cdist(memory[places], memory, compute_mode="donot_use_mm_for_euclid_dist")
        around.scatter_(1, places[:, None], -1)  # first also where the memory holds a patch twice
        others = around.topk(count, largest=False).indices  # (B, b)
        lengths = (memory[others] - patches).norm(dim=2)
        return 1 - lengths.softmax(1)[:, 0] if count > 1 else torch.ones_like(lengths[:, 0])

    def _memory(self, patches: Tensor) -> Tensor:
        if self.memory is None:
            raise ValueError("the patch memory is empty: call fit with the features of good pictures")
        if self.memory.shape[1] != patches.shape[-1]:
            raise ValueError(f"the memory was fitted on {self.memory.shape[1]} channels, features have {patches.shape[-1]}: use the same extractor")
        self.memory = self.memory.to(patches.device)
        return self.memory

    def state(self) -> dict[str, Any]:
        """Return what `from_state` needs, as tensors and plain values."""
        if self.memory is None:
            raise ValueError("the patch memory is empty: there is nothing to save before fit")
        return self.options | {"memory": self.memory.cpu()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild the memory that `state` was taken of."""
        patches = cls(**{name: value for name, value in state.items() if name != "memory"})
        patches.memory = state["memory"]
        return patches


def _largest(parts: list[tuple[Tensor, Tensor]], count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` largest numbers of (numbers (n,), patches (n, C)), falling, and their patches."""
    numbers, patches = (torch.cat(values) for values in zip(*parts, strict=True))
    order = numbers.topk(min(count, len(numbers)))
    return order.values, patches[order.indices.to(patches.device)]


class Index:
    """Finds the nearest of (M, C) points to queries; about a million distances are held at a time."""

    def __init__(self, points: Tensor) -> None:
        self.points, self.middle = points, points.mean(0)
        centred = points - self.middle  # distances of centred points lose less to rounding
        extended = torch.cat([-2 * centred, centred.square().sum(1, keepdim=True)], 1)
        nowhere = extended.new_zeros(-len(points) % _BLOCK, extended.shape[1])
        nowhere[:, -1] = torch.inf
        self.extended = torch.cat([extended, nowhere]).mT.contiguous()  # (C + 1, M rounded up to whole blocks)

    def __call__(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `nearest` does."""
        extended = torch.cat([queries - self.middle, queries.new_ones(len(queries), 1)], 1)
        columns = self.extended.shape[1]
        rows = min(len(queries), max(1, _CHUNK // columns))
        held = queries.new_empty(rows, columns)  # used over and over: fresh memory costs more than the products
        parts = extended.split(rows) if rows else ()
        places = torch.cat([_smallest(torch.mm(part, self.extended, out=held[: len(part)])) for part in parts])
        return (queries - self.points[places]).norm(dim=1), places


def nearest(queries: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Find the nearest of (M, C) points to each of (Q, C) queries.

    Returns:
        Euclidean distances (Q,), those to the places (Q,) in `points`. Where several points are as near up to rounding, the place is one of theirs.
    """
    return Index(points)(queries)


def _smallest(rows: Tensor) -> Tensor:
    """Return the place of the least number of each row, (Q, M) -> (Q,): by blocks first, whose minima without places are several times faster."""
    blocks = rows.view(len(rows), -1, _BLOCK)
    best = blocks.amin(2).argmin(1)
    return best * _BLOCK + blocks[torch.arange(len(rows), device=rows.device), best].argmin(1)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Blur (B, 1, H, W) by a Gaussian of `sigma` pixels; near the borders the weights inside sum to 1. 0 leaves maps as they are."""
    if sigma <= 0:
        return maps
    down, across = (_gaussian(side, sigma, maps) for side in maps.shape[2:])
    return down @ maps @ across.mT


def _gaussian(side: int, sigma: float, like: Tensor) -> Tensor:
    """Return (side, side) weights by which each of the places in a row is the mean of its neighbours."""
    places = torch.arange(side, device=like.device, dtype=like.dtype)
    weights = (-((places - places[:, None]) ** 2) / (2 * sigma**2)).exp()
    weights = torch.where(weights > _TINY, weights, 0)  # numbers below float32's normal ones make products slow
    return weights / weights.sum(1, keepdim=True)


def _on_grid(weights: Tensor, distances: Tensor) -> Tensor:
    """Average weights (B, 1, H, W) over the places of distances (B, h, w): (B, 1, h, w)."""
    if weights.ndim != 4 or weights.shape[:2] != (len(distances), 1):
        raise ValueError(f"weights must be ({len(distances)}, 1, H, W), one map a picture, got {tuple(weights.shape)}")
    if not bool((weights >= 0).all()):
        raise ValueError("weights must be at least 0: one is negative or NaN")
    return F.adaptive_avg_pool2d(weights.float().to(distances.device), (distances.shape[1], distances.shape[2]))
