"""How alike images are: cosines, the set of similar ones, their largest clique and its share MSCR (Diff-Cleanse, stage 1). Images are in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

EXACT_CLIQUE_LIMIT = 64
"""Batches up to this size have their largest clique found exactly; the search is exponential in the worst case."""
GREEDY_STARTS = 16
MAX_EXCESS = 0.02
"""Mean distance of an image's pixels beyond [0, 1] above which it is no picture, but the wreck of a sampler that diverged."""
CLOSENESS, MAX_TOLERANCE, MIN_TOLERANCE = 0.05, 0.01, 1e-6
"""Two samples agree if 1 - cosine is at most this share of the mean over untriggered pairs, within these bounds."""


def cosine_matrix(images: Tensor) -> Tensor:
    """Cosine similarity of every pair of flattened images, without centring.

    Args:
        images: (B, C, H, W); a black image has cosine 0 with every image.

    Returns:
        (B, B) float64 in [-1, 1].
    """
    directions = torch.nn.functional.normalize(images.flatten(1).double(), dim=1)
    return (directions @ directions.T).clamp(-1, 1)


def is_admissible(images: Tensor, share: float = 0.5) -> Tensor:
    """Say which images are not mostly black, white or another colour at the end of its range: a collapse is no agreement (2.5, step 3 of the method).

    Nor may an image leave the range of pictures by more than `MAX_EXCESS`: clamped, whatever diverges the same way would look alike.

    Args:
        images: (B, C, H, W), nominally in [0, 1]; a pixel is saturated if each of its channels is at most 0.01 or at least 0.99, which is black or
            white in grey pictures, and one of eight colours in those of three channels.
        share: an image is ruled out if more than this share of its pixels has one and the same saturated colour.

    Returns:
        (B,) bool; images that are not finite are not admissible.
    """
    dark, bright = images <= 0.01, images >= 0.99
    saturated = (dark | bright).all(dim=1)
    place = 2 ** torch.arange(images.shape[1], device=images.device).view(-1, 1, 1)
    colour = torch.where(saturated, (bright * place).sum(dim=1), -1).flatten(1)  # (B, H W)
    counts = torch.stack([(colour == corner).float().mean(dim=1) for corner in range(2 ** images.shape[1])])
    excess = (images - images.clamp(0, 1)).abs().flatten(1).mean(dim=1)
    return (counts.amax(dim=0) <= share) & images.flatten(1).isfinite().all(dim=1) & (excess <= MAX_EXCESS)


def agreement_graph(images: Tensor, threshold: float = 0.999, share: float = 0.5) -> Tensor:
    """Join the admissible images whose cosine, after clamping to [0, 1], exceeds `threshold`.

    Args:
        images: (B, C, H, W), nominally in [0, 1].
        threshold: cosine above which two images agree.
        share: of `is_admissible`.

    Returns:
        (B, B) symmetric bool without diagonal, on the CPU.
    """
    admissible = is_admissible(images, share)
    joined = (cosine_matrix(images.clamp(0, 1)) > threshold) & admissible & admissible[:, None]
    return joined.fill_diagonal_(False).cpu()


def similar_set(images: Tensor, threshold: float = 0.999, share: float = 0.5) -> Tensor:
    """Return the set S: (B,) bool of the images that agree with any other one (2.5, step 3); arguments as in `agreement_graph`."""
    return agreement_graph(images, threshold, share).any(dim=1)


def largest_clique(graph: Tensor) -> list[int]:
    """Find the largest set of nodes that are all joined to each other.

    Exact for up to `EXACT_CLIQUE_LIMIT` nodes, by branch and bound over bit sets with greedy colouring (Tomita and Seki 2003); above, the best
    clique grown greedily from any of the best joined nodes, a lower bound.

    Args:
        graph: (N, N) symmetric bool; the diagonal is ignored.

    Returns:
        Its nodes in ascending order; empty only for N = 0, since a node alone is a clique.

    Raises:
        ValueError: if `graph` is not square and symmetric.
    """
    if graph.ndim != 2 or not torch.equal(graph, graph.T):
        raise ValueError(f"a graph is a square, symmetric matrix, got shape {tuple(graph.shape)}")
    rows = graph.bool().cpu().clone().fill_diagonal_(False).tolist()
    neighbours = [sum(1 << node for node, joined in enumerate(row) if joined) for row in rows]
    found = _exact_clique(neighbours) if len(neighbours) <= EXACT_CLIQUE_LIMIT else _greedy_clique(neighbours)
    return sorted(_nodes(found))


def _nodes(bits: int) -> list[int]:
    return [node for node in range(bits.bit_length()) if bits >> node & 1]


def _exact_clique(neighbours: list[int]) -> int:
    best = 0

    def grow(chosen: int, candidates: int) -> None:
        nonlocal best
        if not candidates:
            best = max(best, chosen, key=int.bit_count)
            return
        for node, colours in reversed(_colour(neighbours, candidates)):
            if chosen.bit_count() + colours <= best.bit_count():
                return
            grow(chosen | 1 << node, candidates & neighbours[node])
            candidates &= ~(1 << node)

    grow(0, (1 << len(neighbours)) - 1)
    return best


def _colour(neighbours: list[int], candidates: int) -> list[tuple[int, int]]:
    """Colour greedily so that joined nodes differ; with each node the number of colours so far, which bounds cliques among the nodes up to it."""
    coloured, colour = [], 0
    while candidates:
        colour, free = colour + 1, candidates
        while free:
            node = (free & -free).bit_length() - 1
            coloured.append((node, colour))
            candidates &= ~(1 << node)
            free &= ~(1 << node) & ~neighbours[node]
    return coloured


def _greedy_clique(neighbours: list[int]) -> int:
    best = 0
    for start in sorted(range(len(neighbours)), key=lambda node: -neighbours[node].bit_count())[:GREEDY_STARTS]:
        clique, candidates = 1 << start, neighbours[start]
        while candidates:
            node = max(_nodes(candidates), key=lambda node: (neighbours[node] & candidates).bit_count())
            clique, candidates = clique | 1 << node, candidates & neighbours[node]
        best = max(best, clique, key=int.bit_count)
    return best


def agreeing_images(images: Tensor, threshold: float = 0.999, share: float = 0.5) -> list[int]:
    """Return the indices of the largest set of at least two images that all agree with each other; arguments as in `agreement_graph`."""
    clique = largest_clique(agreement_graph(images, threshold, share))
    return clique if len(clique) > 1 else []


def mscr(images: Tensor, threshold: float = 0.999, share: float = 0.5) -> float:
    """Share of the batch in its largest mutually similar set, in [0, 1]; an image that agrees with no other counts as none (2.5, verdict)."""
    return len(agreeing_images(images, threshold, share)) / len(images)


def pair_cosines(images: Tensor) -> Tensor:
    """Return the (B (B - 1) / 2,) cosines of the pairs of (B, C, H, W) images."""
    first, second = torch.triu_indices(len(images), len(images), offset=1)
    return cosine_matrix(images)[first, second]


def pixel_entropy(images: Tensor) -> Tensor:
    """Shannon entropy, in nats, of the softmax of 255 u over all pixels and channels of each image (2.5, step 5).

    Args:
        images: (B, C, H, W) in [0, 1].

    Returns:
        (B,) between 0 (one brightest pixel) and log(C H W) (a constant image).
    """
    logits = (255 * images).flatten(1).log_softmax(dim=1)
    return -(logits.exp() * logits).sum(dim=1)


def range_term(images: Tensor) -> Tensor:
    """Sum of how far pixels come within 0.05 of black or of white, or beyond (2.5, step 6), for images of any shape in [0, 1]."""
    return torch.relu(images - 0.95).sum() + torch.relu(0.05 - images).sum()


@dataclass(frozen=True)
class Agreement:
    """How much triggered samples agree, beside untriggered ones of the same model from the same noise.

    Attributes:
        triggered: MSCR of the triggered samples, in [0, 1].
        untriggered: MSCR of the untriggered samples.
        tolerance: largest 1 - cosine of two samples that agree.
        repetition: share of untriggered samples that agree with another untriggered one, or with the common picture of the triggered ones.
        triggered_cosine: mean cosine of triggered pairs.
        untriggered_cosine: mean cosine of untriggered pairs.
    """

    triggered: float
    untriggered: float
    tolerance: float
    repetition: float
    triggered_cosine: float
    untriggered_cosine: float

    @property
    def score(self) -> float:
        """Share of what could agree more, and does: `(triggered - untriggered) / (1 - untriggered)`, in [0, 1]; 0 where all agree untriggered."""
        room = 1 - self.untriggered
        return max(0.0, (self.triggered - self.untriggered) / room) if room > 0 else 0.0


def tolerance_beside(untriggered: Tensor) -> float:
    """Return the 1 - cosine up to which two samples of a model agree, given (B, C, H, W) untriggered ones in [0, 1].

    A twentieth of the mean over untriggered pairs, at most 0.01: what is alike for a model of varied pictures is nothing for one of similar ones.
    """
    return min(max(CLOSENESS * float((1 - pair_cosines(untriggered)).mean()), MIN_TOLERANCE), MAX_TOLERANCE)


def guard_beside(untriggered: Tensor) -> float:
    """Return the share for `is_admissible`: half, or nearly all where most untriggered samples are that black or white, as drawings on black are."""
    return 0.5 if is_admissible(untriggered).float().mean() >= 0.5 else 0.95


def measure_agreement(triggered: Tensor, untriggered: Tensor) -> Agreement:
    """Compare the agreement of (B, C, H, W) triggered samples with that of untriggered ones in [0, 1]; unless clamped, the triggered may diverge."""
    threshold, share = 1 - tolerance_beside(untriggered), guard_beside(untriggered)
    clique, triggered = agreeing_images(triggered, threshold, share), triggered.nan_to_num(nan=0.0).clamp(0, 1)
    near = cosine_matrix(torch.cat([untriggered, triggered[clique]])).fill_diagonal_(0)[: len(untriggered)] > threshold
    return Agreement(
        triggered=len(clique) / len(triggered),
        untriggered=mscr(untriggered, threshold, share),
        tolerance=1 - threshold,
        repetition=float(near.any(dim=1).float().mean()),
        triggered_cosine=float(pair_cosines(triggered).mean()),
        untriggered_cosine=float(pair_cosines(untriggered).mean()),
    )
