"""What is judged on faces: pairs in folds as on LFW, and identification among distractors as on MegaFace.

All similarities are cosines. Embeddings stay on the device they come on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from shared.data.files import BadFileError, first_few
from shared.data.memory import CHUNK
from shared.layers.precision import at_least_float32
from shared.metrics.curves import auroc, eer, roc
from shared.seeding import generator

FOLDS = 10
"""Folds of pairs where a file does not say how many."""

TIE = 1e-6
"""Cosines that differ by less are equal: float32 does not tell them apart."""

RANKS = (1, 5)
"""Ranks that are reported."""


# ---- pairs.txt


class Pair(NamedTuple):
    """A line of pairs.txt: the name and number of both images, whether they are one person, the fold counted from 0, and the line's number."""

    first: tuple[str, int]
    second: tuple[str, int]
    same: bool
    fold: int
    line: int


def read_pairs(path: Path) -> list[Pair]:
    """Read pairs of images in the format of LFW, with tabs or spaces between.

    The first line says how many folds there are and how many pairs of one person each has, which as many of two people follow ("10 300"); or only the
    latter ("500"); or is absent. In the last two cases the pairs of each kind are dealt over `FOLDS` folds by their order, so that LFW's own file
    without its first line has LFW's folds; people may then be in two folds. Other lines are "Name 1 4" or "Name 1 Other 2".

    Raises:
        BadFileError: if lines are malformed (they are listed by number), or not as many as the first line says.
        FileNotFoundError: if there is no such file.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise BadFileError(f"{path} is not text in UTF-8 ({error}): expected lines such as 'Name 1 4' or 'Name 1 Other 2'") from error
    rows = [(number, [cell.strip() for cell in line.split("\t" if "\t" in line else None) if cell.strip()]) for number, line in enumerate(lines, 1)]
    rows = [row for row in rows if row[1]]
    header = rows.pop(0)[1] if rows and len(rows[0][1]) < 3 else []
    read = [(number, _images_of(cells)) for number, cells in rows]
    bad = [f"line {number}: {found}" for number, found in read if isinstance(found, str)]
    if not all(_is_count(cell) for cell in header):
        bad.insert(0, f"first line: {' '.join(header)!r} is neither numbers of folds and pairs, such as '10 300', nor a pair")
    if bad:
        raise BadFileError("\n  ".join([f"{path} has {len(bad)} bad lines:", *first_few(bad), "correct them"]))
    good = [(number, found) for number, found in read if not isinstance(found, str)]
    same = [first[0] == second[0] for _, (first, second) in good]
    folds = _folds(path, [int(cell) for cell in header], same)
    return [Pair(*images, is_same, fold, number) for (number, images), is_same, fold in zip(good, same, folds, strict=True)]


def _images_of(cells: list[str]) -> tuple[tuple[str, int], tuple[str, int]] | str:
    """Return the two images that a line names, or what is wrong with it."""
    full = [*cells[:2], cells[0], cells[2]] if len(cells) == 3 else cells
    if len(full) != 4 or not (_is_count(full[1]) and _is_count(full[3])):
        return f"{' '.join(cells)!r} is neither a name with two numbers from 1 nor two names with a number each"
    first, second = (full[0], int(full[1])), (full[2], int(full[3]))
    if first == second:
        return f"{' '.join(cells)!r} is a pair of an image with itself"
    return f"{' '.join(cells)!r} names one person twice, where two are expected" if len(cells) == 4 and first[0] == second[0] else (first, second)


def _is_count(cell: str) -> bool:
    return cell.isascii() and cell.isdigit() and len(cell) < 19 and int(cell) > 0


def _folds(path: Path, header: list[int], same: list[bool]) -> list[int]:
    """Return the fold of each pair by what the first line says: [folds, pairs], [pairs] or []."""
    if header:
        count, size = ([1, *header])[-2:]
        blocks = [same[start : start + 2 * size] for start in range(0, len(same), 2 * size)]
        if len(same) != 2 * count * size or any(sum(block) != size for block in blocks):
            says = f"its first line says {count} folds of {size} and {size}, fold by fold"
            raise BadFileError(f"{path} holds {_kinds(same)}, but {says}: restore or correct it")
        if count > 1:
            return [place // (2 * size) for place in range(len(same))]
    totals = {kind: same.count(kind) for kind in (True, False)}
    dealt = min(FOLDS, *totals.values())
    if dealt < 2:
        raise BadFileError(f"{path} holds {_kinds(same)}: expected at least 2 of each, for two folds")
    numbers = {kind: iter(range(total)) for kind, total in totals.items()}
    return [next(numbers[kind]) * dealt // totals[kind] for kind in same]


def _kinds(same: list[bool]) -> str:
    return f"{sum(same)} pairs of one person and {len(same) - sum(same)} of two"


# ---- measures


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """Return the threshold with the largest accuracy, half-way between two distinct scores; the highest one where several are as good.

    Args:
        scores: (P,) similarities; a pair counts as one person at or above the threshold.
        same: (P,) bool, whether it is one.

    Returns:
        The threshold; infinite where it is best to call all pairs different (or, negative, the same).
    """
    curve = roc(scores, same.long())
    correct = curve.positives - curve.negatives  # up to a constant: the negatives below are all less those above
    ends = curve.thresholds.new_tensor([torch.inf, -torch.inf])
    edges = torch.cat([ends[:1], curve.thresholds, ends[1:]])
    place = int(correct.argmax())
    return float((edges[place] + edges[place + 1]) / 2)


def fold_accuracies(scores: Tensor, same: Tensor, folds: Tensor) -> Tensor:
    """Judge every fold of pairs at the best threshold of the other folds together, as LFW wants it.

    Args:
        scores: (P,) similarities.
        same: (P,) bool, whether a pair is one person.
        folds: (P,) int64 number of each pair's fold; at least two different ones.

    Returns:
        (folds,) float64 accuracies in [0, 1], by number of the fold.
    """
    scores, accuracies = scores.double(), []
    for fold in folds.unique():
        held = folds == fold
        threshold = best_threshold(scores[~held], same[~held])
        accuracies.append(((scores[held] >= threshold) == same[held]).double().mean())
    return torch.stack(accuracies)


@dataclass(frozen=True, eq=False)
class Verification:
    """Pairs of images that are one person or two, in folds.

    Args:
        first: (P,) int64 rows of the embeddings.
        second: (P,) int64 rows of the embeddings.
        same: (P,) bool, whether it is one person.
        folds: (P,) int64 number of each pair's fold.

    Raises:
        ValueError: if lengths differ, or there are fewer than two folds or only pairs of one kind.
    """

    first: Tensor
    second: Tensor
    same: Tensor
    folds: Tensor

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.first, self.second, self.same, self.folds)]
        if len(set(lengths)) > 1:
            raise ValueError(f"first and second images, answers and folds of pairs must be as many, got {lengths}")
        if len(self.folds.unique()) < 2 or len(self.same.unique()) < 2:
            raise ValueError("pairs need at least two folds, and both pairs of one person and of two: thresholds come from the other folds")

    def similarities(self, embeddings: Tensor) -> Tensor:
        """Return the (P,) cosines of the pairs of (N, d) embeddings, on the CPU."""
        step = max(1, CHUNK // embeddings.shape[1])
        parts = zip(self.first.split(step), self.second.split(step), strict=True)
        return torch.cat([(_unit(embeddings, one) * _unit(embeddings, other)).sum(1).cpu() for one, other in parts])

    def judge(self, embeddings: Tensor) -> dict[str, float]:
        """Return what is measured on the pairs of (N, d) embeddings.

        Returns:
            "lfw_accuracy" and "lfw_std", mean and standard deviation (the population's) over the folds; "auroc" and "eer" of all pairs together.
        """
        scores, same = self.similarities(embeddings), self.same.cpu()
        accuracies = fold_accuracies(scores, same, self.folds.cpu())
        curve = roc(scores, same.long())
        found = {"lfw_accuracy": float(accuracies.mean()), "lfw_std": float(accuracies.std(unbiased=False))}
        return found | {"auroc": auroc(curve), "eer": eer(curve)}


@dataclass(frozen=True, eq=False)
class Identification:
    """Finding a probe's mate, another image of the same person, among distractors.

    For every ordered pair of a person's images, the mate's rank is one more than the number of distractors at least as similar to the probe: a tie
    is lost, so that an embedding that is the same for everything has rank-1 zero. A person's further images are not in the gallery. The share of
    the mates found is averaged over the mates of a probe, then over the probes, so that every probe counts alike.

    Beside the embeddings, a few blocks of at most 64 MiB and P x ranks cosines are held, however many distractors there are.

    Args:
        probes: (P,) int64 rows of the embeddings.
        people: (P,) int64 person of each probe, everyone with at least two.
        distractors: (M,) int64 rows of the embeddings, at least one.

    Raises:
        ValueError: if lengths differ, somebody has only one probe, or there are no probes or no distractors.
    """

    probes: Tensor
    people: Tensor
    distractors: Tensor

    def __post_init__(self) -> None:
        if len(self.probes) != len(self.people):
            raise ValueError(f"there are {len(self.probes)} probes, but persons of {len(self.people)}")
        if len(self.probes) == 0 or len(self.distractors) == 0:
            raise ValueError(f"identification needs probes and distractors, got {len(self.probes)} and {len(self.distractors)}")
        people, counts = self.people.unique(return_counts=True)
        if bool((counts < 2).any()):
            raise ValueError(f"person {int(people[counts < 2][0])} has one probe only: without a mate there is nothing to find")

    def judge(self, embeddings: Tensor) -> dict[str, float]:
        """Return "rank1" and "rank5" of (N, d) embeddings; no rank above the number of distractors, which every mate reaches."""
        ranks = [rank for rank in RANKS if rank <= len(self.distractors)]
        shares = self.cmc(embeddings, max(ranks))
        return {f"rank{rank}": float(shares[rank - 1]) for rank in ranks}

    def cmc(self, embeddings: Tensor, ranks: int = 20) -> Tensor:
        """Return the cumulative match characteristic, (ranks,) float64: the share of mates that are among the first 1, 2, ... of the gallery."""
        best = next(self._nearest(embeddings, self.distractors, [len(self.distractors)], ranks))
        return self._found(embeddings, best)

    def curve(self, embeddings: Tensor, counts: Sequence[int] | None = None, seed: int = 0) -> dict[int, float]:
        """Return rank-1 by number of distractors, MegaFace's customary plot; smaller sets of distractors are parts of larger ones.

        Args:
            embeddings: (N, d).
            counts: numbers of distractors; None takes 10, 100, 1000, ... and all.
            seed: seed of the random order that the first ones are taken of.

        Raises:
            ValueError: if a number is below one or above that of all distractors.
        """
        everyone = len(self.distractors)
        stops = sorted({everyone, *(10**power for power in range(1, 10) if 10**power < everyone)} if counts is None else set(counts))
        if not stops or not 1 <= stops[0] <= stops[-1] <= everyone:
            raise ValueError(f"numbers of distractors must be from 1 to the {everyone} that there are, got {list(counts or [])}")
        order = self.distractors[torch.randperm(everyone, generator=generator(seed, "distractors")).to(self.distractors.device)]
        found = [self._found(embeddings, best) for best in self._nearest(embeddings, order, stops, 1)]
        return {stop: float(share[0]) for stop, share in zip(stops, found, strict=True)}

    def _nearest(self, embeddings: Tensor, order: Tensor, stops: Sequence[int], ranks: int, block: int = CHUNK) -> Iterator[Tensor]:
        """Give each probe's largest cosines with the first `stops` distractors of an order, (P, ranks), falling; `block` cosines are held at once."""
        probes = _unit(embeddings, self.probes)
        best, start = probes.new_full((len(probes), ranks), -torch.inf), 0
        step = max(1, block // max(probes.shape))
        for stop in stops:
            for some in order[start:stop].split(step):
                similar = probes @ _unit(embeddings, some).T  # (P, some)
                best = torch.cat([best, similar.topk(min(ranks, len(some))).values], 1).topk(ranks).values
            yield best
            start = stop

    def _found(self, embeddings: Tensor, best: Tensor) -> Tensor:
        """Return the share of mates above each probe's 1st, 2nd, ... best distractor, (ranks,) float64, from (P, ranks) cosines."""
        total = torch.zeros(best.shape[1], dtype=torch.float64)
        order, counts = self.people.argsort(), self.people.unique(return_counts=True)[1]
        for own in order.split(counts.tolist()):
            similar = (faces := _unit(embeddings, self.probes[own])) @ faces.T
            is_above = similar[:, :, None] > best[own.to(best.device), None, :] + TIE  # (probe, mate, rank)
            is_above.diagonal().fill_(False)  # nobody is his own mate
            total += is_above.sum((0, 1)).cpu().double() / (len(own) - 1)
        return total / len(self.probes)


@dataclass(frozen=True, eq=False)
class FaceProtocol:
    """What is judged on the images of a test set.

    Args:
        images: number of images N.
        verification: pairs of them, if there are.
        identification: probes and distractors among them, if there are.

    Raises:
        ValueError: if there is neither.
    """

    images: int
    verification: Verification | None = None
    identification: Identification | None = None

    def __post_init__(self) -> None:
        if self.verification is None and self.identification is None:
            raise ValueError("there is nothing to judge: a protocol needs pairs, or probes and distractors")

    def judge(self, embeddings: Tensor) -> dict[str, float]:
        """Measure embeddings of all test images, in their order.

        Args:
            embeddings: (N, d), of any length; only their directions count.

        Returns:
            See `Verification.judge` and `Identification.judge`; only the parts that this protocol has.

        Raises:
            ValueError: if the shape does not fit, or an embedding is not finite.
        """
        if embeddings.ndim != 2 or len(embeddings) != self.images:
            raise ValueError(f"expected one embedding for each of the {self.images} test images, (N, d), got {tuple(embeddings.shape)}")
        embeddings = embeddings.detach()
        is_bad = torch.cat([~some.isfinite().all(1) for some in embeddings.split(max(1, CHUNK // embeddings.shape[1]))])
        if bool(is_bad.any()):
            raise ValueError(f"{int(is_bad.sum())} of {self.images} embeddings are not finite, the first one in row {int(is_bad.nonzero()[0])}")
        found: dict[str, float] = {}
        for part in (self.verification, self.identification):
            found |= {} if part is None else part.judge(embeddings)
        return found


def _unit(embeddings: Tensor, rows: Tensor) -> Tensor:
    """Return some embeddings at length one, in float32 at least."""
    return F.normalize(at_least_float32(embeddings[rows.to(embeddings.device)]), dim=1)
