"""The component vocabulary: the centres of a k-means over the tokens of good pictures, and how many of them to take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.seeding import derive_seed, generator

RATED = 2000
"""Tokens by which silhouettes and stability are judged."""
REPEATS = 5
"""Pairs of vocabularies whose agreement is the stability."""
Rating = Literal["silhouette", "stability"]
Metric = Literal["cosine", "euclidean"]
"""How tokens are compared with centres: by direction alone, or by all they are, which suits features whose length tells something."""


def fit_vocabulary(tokens: Tensor, k: int, seed: int, restarts: int = 10, metric: Metric = "cosine") -> Tensor:
    """Cluster tokens by Euclidean k-means, begun by k-means++ (step 2).

    Args:
        tokens: (M, C) floats, of all training pictures.
        k: clusters K.
        seed: of the beginnings.
        restarts: beginnings, the best of which is kept.
        metric: `cosine` normalises tokens to length 1 before, as the paper does; `euclidean` leaves them as they are.

    Returns:
        (K, C) float32 centres, those of the largest clusters first; as means of unit vectors they are shorter than 1.

    Raises:
        ValueError: if k is below 2, there are fewer different tokens than k, or some are not finite.
    """
    from sklearn.cluster import KMeans

    points = _prepared(tokens, metric)
    if k < 2:
        raise ValueError(f"a vocabulary has at least 2 centres, not {k}")
    if len(different := np.unique(points, axis=0)) < k:
        advice = "take more pictures, more tokens of each, or a smaller k"
        raise ValueError(f"{k} centres need as many different tokens, and there are {len(different)}: {advice}")
    found = KMeans(k, n_init=restarts, random_state=_random_state(seed, "k-means")).fit(points)
    order = np.argsort(-np.bincount(found.labels_, minlength=k), kind="stable")
    return torch.from_numpy(found.cluster_centers_[order]).to(tokens.device, torch.float32)


def assign(tokens: Tensor, centres: Tensor, metric: Metric = "cosine") -> Tensor:
    """Return the cluster of each token, (M, C) -> (M,): the centre nearest to it, normalised before with `cosine`, as k-means has it."""
    points = F.normalize(tokens.float(), dim=1) if metric == "cosine" else tokens.float()
    return torch.cdist(points, centres.to(tokens.device)).argmin(1)


def rate_vocabularies(
    tokens: Tensor, candidates: Iterable[int], seed: int, by: Rating = "silhouette", restarts: int = 3, metric: Metric = "cosine"
) -> dict[int, float]:
    """Rate numbers of components by how well their clusters part, or by how well they are found again.

    Args:
        tokens: (M, C).
        candidates: numbers of clusters to rate.
        seed: of all choices.
        by: `silhouette`, the mean silhouette of at most 2000 tokens; or `stability`, the mean adjusted Rand index, over 5 pairs, of two vocabularies
            fitted to the halves of the tokens.
        restarts: beginnings of each k-means.
        metric: see `fit_vocabulary`.

    Returns:
        The rating of each candidate, at most 1, the larger the better.

    Raises:
        ValueError: if the rating is unknown, there are no candidates, or a vocabulary cannot be fitted.
    """
    if by not in ("silhouette", "stability"):
        raise ValueError(f"the number of components is rated by silhouette or stability, not by {by!r}")
    rate = _silhouette if by == "silhouette" else _stability
    rated = tokens[torch.randperm(len(tokens), generator=generator(seed, "rated"))[:RATED].to(tokens.device)]
    ratings = {k: rate(tokens, rated, k, seed, restarts, metric) for k in candidates}
    if not ratings:
        raise ValueError("there are no numbers of components to choose among")
    return ratings


def choose_k(tokens: Tensor, candidates: Iterable[int], seed: int, by: Rating = "silhouette", metric: Metric = "cosine") -> int:
    """Return the number of components that `rate_vocabularies` rates best, the smallest of equals."""
    ratings = rate_vocabularies(tokens, candidates, seed, by, metric=metric)
    return min(ratings, key=lambda k: (-ratings[k], k))


def match_centres(centres: Tensor, others: Tensor, metric: Metric = "cosine") -> Tensor:
    """Match the centres of two vocabularies one to one, so that the sum of their cosines is largest, or that of their squared distances smallest.

    Args:
        centres: (K, C).
        others: (K, C).
        metric: cosine or euclidean.

    Returns:
        (K,) int64: `others[match_centres(centres, others)]` has the order of `centres`.

    Raises:
        ValueError: if the vocabularies differ in shape.
    """
    from scipy.optimize import linear_sum_assignment

    if centres.shape != others.shape:
        raise ValueError(f"vocabularies of shapes {tuple(centres.shape)} and {tuple(others.shape)} cannot be matched one to one")
    own, their = centres.double(), others.double()
    if metric == "cosine":
        own, their = F.normalize(own, dim=1), F.normalize(their, dim=1)  # then the smallest distance is the largest cosine
    _, places = linear_sum_assignment(torch.cdist(own, their).square().cpu().numpy())
    return torch.from_numpy(places).to(centres.device)


def _prepared(tokens: Tensor, metric: Metric) -> np.ndarray:
    """Return tokens as float64, (M, C), L2-normalised with `cosine`."""
    if metric not in get_args(Metric):
        raise ValueError(f"tokens are compared by cosine or euclidean, not by {metric!r}")
    if tokens.ndim != 2:
        raise ValueError(f"tokens have shape (M, C), not {tuple(tokens.shape)}")
    if not tokens.isfinite().all():
        raise ValueError("some tokens are NaN or infinite: are the pictures or the weights of the features damaged?")
    points = tokens.double()
    return (F.normalize(points, dim=1) if metric == "cosine" else points).cpu().numpy()


def _random_state(*key: int | str) -> int:
    """Return a seed that scikit-learn takes."""
    return derive_seed(*key) % 2**32


def _silhouette(tokens: Tensor, rated: Tensor, k: int, seed: int, restarts: int, metric: Metric) -> float:
    from sklearn.metrics import silhouette_score

    labels = assign(rated, fit_vocabulary(tokens, k, seed, restarts, metric), metric).cpu().numpy()
    return float(silhouette_score(_prepared(rated, metric), labels)) if 1 < len(set(labels)) < len(rated) else -1.0


def _stability(tokens: Tensor, rated: Tensor, k: int, seed: int, restarts: int, metric: Metric) -> float:
    from sklearn.metrics import adjusted_rand_score

    agreements = []
    for repeat in range(REPEATS):
        order = torch.randperm(len(tokens), generator=generator(seed, "halves", repeat)).to(tokens.device)
        keys = [derive_seed(seed, repeat, number) for number in range(2)]
        halves = [fit_vocabulary(tokens[half], k, key, restarts, metric) for half, key in zip(order.chunk(2), keys, strict=True)]
        first, second = (assign(rated, centres, metric).cpu().numpy() for centres in halves)
        agreements.append(adjusted_rand_score(first, second))
    return float(np.mean(agreements))
