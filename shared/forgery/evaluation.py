"""What is reported of test sets: a row a set with intervals, their unweighted mean, and how scores shift between sets; over all processes.

collected = ForgeryScores()                                       # one a test set
collected.update(scores, batch["label"], batch["video"], batch["index"])
rows = table({"Celeb-DF": collected.scored(), "DFD": other.scored()})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from shared.distributed import gather_rows
from shared.forgery.metrics import Scored, summarise, video_scores, weighted_auroc
from shared.metrics.curves import auroc, eer, eer_threshold, roc
from shared.seeding import derive_seed, generator

_CELLS = 2**20  # frames of resampled sets that are held at a time: they fit a processor's cache


class ForgeryScores(Metric):
    """Keeps the score of every frame and judges all of them together, whatever the batches and the number of processes.

    A set may not be empty in all processes; in some of them it may.
    """

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]
    videos: list[Tensor]
    indices: list[Tensor]

    def __init__(self) -> None:
        super().__init__(sync_on_compute=False)  # `scored` gathers: parts may be of different lengths, or empty
        for name in ("scores", "labels", "videos", "indices"):
            self.add_state(name, default=[], dist_reduce_fx=None)

    def update(self, scores: Tensor, labels: Tensor, videos: Tensor, indices: Tensor) -> None:
        """Add frames.

        Args:
            scores: (B,) probabilities of being fake.
            labels: (B,) 0 real, 1 fake.
            videos: (B,) numbers of videos within the set.
            indices: (B,) numbers of frames within the set.
        """
        self.scores.append(scores.detach().float())
        self.labels.append(labels)
        self.videos.append(videos)
        self.indices.append(indices)

    def scored(self) -> Scored:
        """Return the frames of all processes in the order of their indices; to be called by all processes.

        Raises:
            ValueError: if there are none, or one is invalid.
        """
        index = self._gathered(self.indices, torch.int64)
        order = index.argsort()
        columns = ((self.scores, torch.float32), (self.labels, torch.int64), (self.videos, torch.int64))
        return Scored(*(self._gathered(parts, dtype)[order] for parts, dtype in columns))

    def compute(self) -> dict[str, Tensor]:
        """Return all that `summarise` measures, such as `frame_auroc` and `video_auroc`."""
        return {name: torch.tensor(value) for name, value in summarise(self.scored()).items()}

    def _gathered(self, parts: list[Tensor], dtype: torch.dtype) -> Tensor:
        return gather_rows(torch.cat(parts).to(dtype) if parts else torch.empty(0, dtype=dtype, device=self.device))


class ForgeryMeasure(ForgeryScores):
    """One number of `summarise`, such as `video_auroc`, as a metric that Lightning logs as it is."""

    def __init__(self, measure: str) -> None:
        super().__init__()
        self.measure = measure

    def compute(self) -> Tensor:  # type: ignore[override]
        return super().compute()[self.measure]


class ForgeryRank(ForgeryScores):
    """What epochs are ranked by: the AUC of videos, and among equal ones, which are many once it is 1, the lower cross-entropy of frames.

    It is the AUC less 1e-5 of the cross-entropy in nats, of scores that are kept 1e-7 from 0 and 1, so that it is at most 0.0002 below the AUC.
    """

    def compute(self) -> Tensor:  # type: ignore[override]
        scored = self.scored()
        loss = F.binary_cross_entropy(scored.scores.clamp(1e-7, 1 - 1e-7), scored.labels.to(scored.scores.dtype))
        return torch.tensor(auroc(roc(*video_scores(scored).columns)), device=loss.device) - 1e-5 * loss


def bootstrap(scored: Scored, rounds: int = 1000, seed: int = 0) -> Tensor:
    """Measure the AUC of resampled sets: as many real and as many fake videos as there are, drawn with replacement, with all their frames.

    Args:
        scored: frames, or videos themselves.
        rounds: number of resampled sets.
        seed: seed of the draws.

    Returns:
        (rounds,) float64; NaN if a class is missing.

    Raises:
        ValueError: if a video has real and fake frames.
    """
    labels, own = video_scores(scored).labels, [generator(seed, "bootstrap", label) for label in (0, 1)]
    some = max(1, _CELLS // len(scored))
    return weighted_auroc(scored, (resample(labels, min(some, rounds - start), own) for start in range(0, rounds, some)))


def resample(labels: Tensor, rounds: int, own: Sequence[torch.Generator]) -> Tensor:
    """Count how often each video is drawn when as many of each class as there are of it are drawn with replacement.

    Args:
        labels: (V,) 0 real, 1 fake.
        rounds: number R of resampled sets.
        own: sources of the draws of reals and of fakes.

    Returns:
        (V, R) float64.
    """
    times = torch.zeros(rounds, len(labels), dtype=torch.float64)
    for label, source in enumerate(own):
        videos = (labels == label).nonzero()[:, 0]
        if len(videos):
            drawn = videos[torch.randint(len(videos), (rounds, len(videos)), generator=source)]
            times.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    return times.T.contiguous()


def interval(values: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Return the quantiles between which `confidence` of (N,) resampled values lie.

    Raises:
        ValueError: if `confidence` is not between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    tail = (1 - confidence) / 2
    return float(values.quantile(tail)), float(values.quantile(1 - tail))


def table(sets: Mapping[str, Scored], rounds: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Judge test sets.

    Args:
        sets: frames of each set, by its name.
        rounds: resampled sets for the 95 % intervals of both AUCs, `frame_auroc_low`, `frame_auroc_high` and those of videos.
        seed: seed of the resampling.

    Returns:
        A row a set and, if there are several, one more of their unweighted mean, `set` being "mean"; NaN if a set has one class only.

    Raises:
        ValueError: if there are no sets, or one of them is called "mean".
    """
    if not sets or "mean" in sets:
        raise ValueError(f"need test sets, none of which is called 'mean', got {list(sets)}")
    rows: list[dict[str, Any]] = []
    resampled: list[dict[str, Tensor]] = []
    for name, scored in sets.items():
        levels = {"frame": scored, "video": video_scores(scored)}
        resampled.append({level: bootstrap(part, rounds, derive_seed(seed, name)) for level, part in levels.items()})
        sizes = {f"{level}s": len(part) for level, part in levels.items()}
        rows.append({"set": name, **sizes, **summarise(scored), **_intervals(resampled[-1])})
    if len(rows) > 1:
        measures = [key for key in rows[0] if key not in ("set", "frames", "videos")]
        means = {key: sum(row[key] for row in rows) / len(rows) for key in measures}
        of_mean = {level: torch.stack([values[level] for values in resampled]).mean(0) for level in ("frame", "video")}
        rows.append({"set": "mean", **{size: sum(row[size] for row in rows) for size in ("frames", "videos")}, **means, **_intervals(of_mean)})
    return rows


def _intervals(resampled: dict[str, Tensor]) -> dict[str, float]:
    return {
        f"{level}_auroc_{end}": value for level, values in resampled.items() for end, value in zip(("low", "high"), interval(values), strict=True)
    }


def score_shift(sets: Mapping[str, Scored], reference: str) -> list[dict[str, Any]]:
    """Tell whether one threshold serves all sets, which no set's own AUC shows: scores may be in order in each and still shift between them.

    Args:
        sets: frames of each set, by its name.
        reference: set whose threshold of equal errors is applied to all, such as that of the validation.

    Returns:
        A row a set: `eer` and `threshold`, its own; `fpr` and `fnr` at the reference's threshold; `real_shift` and `fake_shift`, the largest
        distance between the distribution functions of its scores and the reference's (Kolmogorov and Smirnov), 0 for equal ones and 1 for disjoint
        ones. NaN where a class is missing. Whether all sets pooled are still told apart is `auroc` of their joint scores.

    Raises:
        ValueError: if the reference is none of the sets.
    """
    if reference not in sets:
        raise ValueError(f"the reference {reference!r} is none of the sets {', '.join(sets)}")
    base_real, base_fake = _by_class(sets[reference])
    threshold = eer_threshold(roc(*sets[reference].columns))
    rows: list[dict[str, Any]] = []
    for name, scored in sets.items():
        curve = roc(*scored.columns)
        real, fake = _by_class(scored)
        shifts = {"real_shift": ks_distance(real, base_real), "fake_shift": ks_distance(fake, base_fake)}
        rates = {"fpr": float((real >= threshold).double().mean()), "fnr": float((fake < threshold).double().mean())}
        rows.append({"set": name, "eer": eer(curve), "threshold": eer_threshold(curve), **rates, **shifts})
    return rows


def _by_class(scored: Scored) -> tuple[Tensor, Tensor]:
    """Return the scores of reals and those of fakes."""
    return scored.scores[scored.labels == 0], scored.scores[scored.labels == 1]


def ks_distance(first: Tensor, second: Tensor) -> float:
    """Return the largest distance between the distribution functions of (N,) and (M,) numbers (Kolmogorov and Smirnov), NaN if one is empty."""
    if len(first) == 0 or len(second) == 0:
        return float("nan")
    places = torch.cat([first, second]).unique()
    below = [torch.searchsorted(sample.sort().values, places, right=True) / len(sample) for sample in (first, second)]
    return float((below[0] - below[1]).abs().max())
