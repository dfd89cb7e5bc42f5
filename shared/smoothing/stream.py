"""Certification of images that are pushed one by one: what one result holds, and the stream that makes results."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.smoothing.budget import Budget, highest_radius
from shared.smoothing.certificates import Certificate, Smoothing, choose_class
from shared.smoothing.log import Partial, Row, dense, sparse
from shared.smoothing.noise import check_grid, random_words, stream_key
from shared.smoothing.votes import VoteCounter, Work, evaluating

SELECTION, ESTIMATION, PREDICTION, COINS = 0, 1, 2, 3
BATCHES = 8
"""About so many batches are made before counts are read from the device."""


@dataclass(frozen=True)
class Result:
    """A certificate and how it came about.

    Attributes:
        index: index in the data set.
        certificate: class and radius.
        selection: (branches, K + 1) votes that chose the class; the last are of logits that are not finite.
        estimation: (branches, K + 1) votes that were counted.
        draws: draws of each branch that were counted.
        seconds: share of the time that this image's draws took.
        best_draws: draws after which the certificate was reached; fewer than `draws` if those after it proved less.
        best: (branches, K + 1) votes that were counted then.
    """

    index: int
    certificate: Certificate
    selection: Tensor
    estimation: Tensor
    draws: int
    seconds: float
    best_draws: int
    best: Tensor

    def row(self, label: int) -> Row:
        """Return a row of the log with the counts of the classes that got votes."""
        details: dict[str, Any] = {
            "rule": self.certificate.rule,
            "norm": self.certificate.norm,
            "alpha": dict(self.certificate.alpha.parts),
            "draws": self.draws,
            "selection": sparse(self.selection),
            "estimation": sparse(self.estimation),
        }
        if self.best_draws < self.draws:
            details["certified"] = {"draws": self.best_draws, "votes": sparse(self.best)}
        if self.certificate.coins:
            details["coins"] = list(self.certificate.coins)
        return Row(self.index, label, self.certificate.predicted, self.certificate.radius, self.seconds, details)


@dataclass
class _Active:
    """An image in the works: its draws so far, those of the selection first, and what they counted when last read from the device."""

    index: int
    done: int = 0
    looks: int = 0
    seconds: float = 0.0
    counts: Tensor | None = None
    certificate: Certificate | None = None
    best_draws: int = 0
    best: Tensor | None = None


class Stream:
    """Images in the works: added one by one, brought from look to look together, handed back as they are settled.

    As many are worked on at once as fill some batches; between two looks nothing is read from the device.

    stream = classifier.stream()
    for index, image in images:
        stream.add(index, image)
        while stream.is_full:
            yield from stream.advance()
    while not stream.is_empty:
        yield from stream.advance()

    Args:
        counter: makes the draws; with a stage of selection, one of estimation, and a slot for each image that is worked on at once.
        smoothing: the certificate.
        budget: draws of an image.
    """

    def __init__(self, counter: VoteCounter, smoothing: Smoothing, budget: Budget) -> None:
        self._counter, self._smoothing, self._budget = counter, smoothing, budget
        self._slots = len(counter.counts)
        self._stops = [budget.selection + look for look in budget.looks()]  # draws after which counts are looked at
        self._active: dict[int, _Active] = {}
        self._highest: float | None = None

    @property
    def is_full(self) -> bool:
        """Whether no image can be added before others are settled."""
        return len(self._active) == self._slots

    @property
    def is_empty(self) -> bool:
        """Whether no image is in the works."""
        return not self._active

    def add(self, index: int, image: Tensor, partial: Partial | None = None) -> None:
        """Begin with an image, or go on with it.

        Args:
            index: its index in the data set, which its noise follows from.
            image: (...) in [0, 1], of the same shape as all others.
            partial: where another stream of a classifier with the same settings left it.

        Raises:
            ValueError: if the stream is full, holds this index already, or the noise lies on a grid that the image does not lie on.
        """
        if self.is_full or any(image.index == index for image in self._active.values()):
            raise ValueError(f"image {index} cannot be added: the stream is full, or holds it already")
        if self._counter.law == "grid":
            check_grid(image)
        slot = next(slot for slot in range(self._slots) if slot not in self._active)
        active = _Active(index) if partial is None else self._resumed(partial)
        with torch.inference_mode():
            self._counter.load(slot, image, active.counts)
        if active.best is not None:
            assert active.counts is not None
            active.certificate = self._with_tail().certify(active.best[:, :-1], active.best_draws, choose_class(active.counts[SELECTION, :, :-1]))
        self._active[slot] = active

    def _resumed(self, partial: Partial) -> _Active:
        selection, estimation = (dense(rows, self._counter.classes) for rows in (partial.selection, partial.estimation))
        active = _Active(partial.index, partial.done, partial.looks, partial.seconds, torch.stack([selection, estimation]))
        if partial.best_draws:
            active.best_draws, active.best = partial.best_draws, dense(partial.best, self._counter.classes)
        return active

    def _with_tail(self) -> Smoothing:
        return dataclasses.replace(self._smoothing, tail=self._counter.tail)

    def partials(self) -> list[Partial]:
        """Return where the images in the works stand, for `add` of another stream; without waiting for the device."""
        return [_partial(image, image.counts) for image in self._active.values() if image.counts is not None]

    def advance(self) -> list[Result]:
        """Make some batches of draws, and return and remove the images that are settled."""
        if self.is_empty:
            return []
        began, shares = time.monotonic(), self._shares()
        with evaluating(self._counter.branches):
            self._counter.count([part for slot, share in shares.items() for part in self._work(slot, share)])
        counts = self._counter.counts.to("cpu", copy=True)  # the only wait; slots are reused, results must not change with them
        pace = (time.monotonic() - began) / sum(shares.values())
        smoothing, settled = self._with_tail(), []
        for slot, share in shares.items():
            image = self._active[slot]
            image.done, image.counts, image.seconds = image.done + share, counts[slot], image.seconds + pace * share
            if image.done == self._stops[image.looks] and self._look(smoothing, image, counts[slot]):
                settled.append(self._result(self._active.pop(slot), counts[slot]))
        return settled

    def _shares(self) -> dict[int, int]:
        """Deal some batches of draws to the images, to none beyond its next look; as many as fill the batches, if there are so many."""
        most = -(-BATCHES * self._counter.batch_size // len(self._active))
        shares = {slot: min(self._stops[image.looks] - image.done, most) for slot, image in self._active.items()}
        total = sum(shares.values())
        surplus = total % self._counter.batch_size if total > self._counter.batch_size else 0
        for slot in reversed(shares):
            cut = min(surplus, shares[slot])
            shares[slot], surplus = shares[slot] - cut, surplus - cut
        return {slot: share for slot, share in shares.items() if share}

    def _work(self, slot: int, share: int) -> list[Work]:
        image, selection = self._active[slot], self._budget.selection
        start, stop = image.done, image.done + share
        chosen = [Work(slot, image.index, SELECTION, start, min(stop, selection))] if start < selection else []
        return chosen + ([Work(slot, image.index, ESTIMATION, max(start - selection, 0), stop - selection)] if stop > selection else [])

    def _look(self, smoothing: Smoothing, image: _Active, counts: Tensor) -> bool:
        """Bound the radius after the draws so far, unless a glance says that this settles nothing; say whether the image is settled."""
        top, draws, votes = choose_class(counts[SELECTION, :, :-1]), image.done - self._budget.selection, counts[ESTIMATION, :, :-1]
        image.looks += 1
        is_last = image.looks == len(self._stops)
        highest = 0.0 if is_last else min(highest_radius(smoothing, votes[:, top], draws, self._budget.futility), self._ceiling(smoothing))
        if not is_last and not self._budget.is_settled(smoothing.at_most(votes, draws, top), highest):
            return False
        chosen = smoothing.decided(counts[SELECTION, :, :-1], draws, top)
        found = chosen.certify(votes, draws, top, self._coins(image.index) if smoothing.randomised else None)
        if image.certificate is None or found.radius > image.certificate.radius:  # all bounds hold at once: the best one does
            image.certificate, image.best_draws, image.best = found, draws, counts[ESTIMATION]
        return is_last or self._budget.is_settled(image.certificate.radius, highest)

    def _ceiling(self, smoothing: Smoothing) -> float:
        """Return the radius when all draws hit, which no image can exceed."""
        if self._highest is None:
            draws = self._budget.draws
            everything = torch.zeros(len(self._counter.branches), self._counter.classes, dtype=torch.int64)
            everything[:, 0] = draws
            self._highest = smoothing.radius(everything, draws, 0)
        return self._highest

    def _coins(self, index: int) -> Tensor:
        """Return (branches,) coins on (0, 1] in float64, multiples of 2^-32: never below a uniform number that is rounded up to them."""
        branches = range(len(self._counter.branches))
        keys = torch.tensor([stream_key(self._counter.run_key, index, COINS, branch) for branch in branches])
        words = random_words(keys, torch.zeros_like(keys), torch.empty(len(keys), 1, dtype=torch.int32))[:, 0]
        return (words.double() + 2.0**31 + 1) * 2.0**-32

    def _result(self, image: _Active, counts: Tensor) -> Result:
        assert image.certificate is not None
        assert image.best is not None
        draws = image.done - self._budget.selection
        return Result(image.index, image.certificate, counts[SELECTION], counts[ESTIMATION], draws, image.seconds, image.best_draws, image.best)


def _partial(image: _Active, counts: Tensor) -> Partial:
    best = [] if image.best is None else sparse(image.best)
    return Partial(image.index, image.done, image.looks, sparse(counts[SELECTION]), sparse(counts[ESTIMATION]), image.seconds, image.best_draws, best)
