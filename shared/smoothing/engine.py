"""The smoothed classifier: certifies and predicts many images, with results that do not depend on how they are batched."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.smoothing.bounds import hung_fithian_p_value
from shared.smoothing.budget import Budget, highest_radius
from shared.smoothing.certificates import ABSTAIN, Certificate, Smoothing, choose_class
from shared.smoothing.log import CertificationLog, Partial, Row
from shared.smoothing.noise import Law, check_grid, random_words, stream_key
from shared.smoothing.votes import Branch, Classifier, VoteCounter, Work, evaluating

SELECTION, ESTIMATION, PREDICTION = 0, 1, 2
_COIN = 15  # the branch number of the coins that deal predictions to branches
_BATCHES = 8  # about so many batches are made before counts are looked at


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
    """

    index: int
    certificate: Certificate
    selection: Tensor
    estimation: Tensor
    draws: int
    seconds: float

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
        return Row(self.index, label, self.certificate.predicted, self.certificate.radius, self.seconds, details)


def sparse(counts: Tensor) -> list[dict[str, int]]:
    """Return the votes of each branch by class, without zeros; "invalid" are those of logits that are not finite."""
    last = counts.shape[1] - 1
    return [{"invalid" if c == last else str(c): n for c, n in enumerate(row) if n} for row in counts.tolist()]


def dense(rows: Sequence[Mapping[str, int]], classes: int) -> Tensor:
    """Return the (branches, K + 1) votes that `sparse` wrote."""
    counts = torch.zeros(len(rows), classes + 1, dtype=torch.int64)
    for row, votes in zip(counts, rows, strict=True):
        for name, number in votes.items():
            row[classes if name == "invalid" else int(name)] = number
    return counts


@dataclass
class _Active:
    """An image in the works: its draws so far, those of the selection first, and what they counted when last read from the device."""

    index: int
    done: int = 0
    looks: int = 0
    best: Certificate | None = None
    seconds: float = 0.0
    counts: Tensor | None = None


class SmoothedClassifier:
    """A classifier smoothed by noise.

    Args:
        branches: a classifier of whole images, or the branches of a fused one.
        classes: K.
        smoothing: noise and certificate, fixed before anything is drawn.
        budget: draws of an image.
        key: 64 bits that all noise of certificates follows from; log it, and choose it independently of the images.
        law: "gaussian", "grid" (for images of 8 bits, sound in floating point) or, with rule "l1", "uniform".
        batch_size: copies of images in one forward pass; results do not depend on it.
        device: where the classifiers compute.
        dtype: floating type that they get.
        channels_last: memory format that they get.

    Raises:
        ValueError: if noise, certificate and budget do not go together.
    """

    def __init__(
        self,
        branches: Classifier | Sequence[Branch],
        classes: int,
        smoothing: Smoothing,
        budget: Budget,
        key: int = 0,
        law: Law = "gaussian",
        batch_size: int = 256,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        self.branches = list(branches) if isinstance(branches, Sequence) else [Branch(branches)]
        self.classes, self.budget, self.key, self.law, self.batch_size = classes, budget, key, law, batch_size
        self.device, self.dtype, self.channels_last = torch.device(device), dtype, channels_last
        self.smoothing = dataclasses.replace(smoothing, anytime=budget.is_anytime)
        if len(self.branches) != len(smoothing.sigmas):
            raise ValueError(f"{len(self.branches)} branches need as many sigmas, got {smoothing.sigmas}")
        if (law == "uniform") != (smoothing.rule == "l1"):
            raise ValueError(f"noise {law!r} does not go with the certificate {smoothing.rule!r}: uniform noise certifies l1, Gaussian noise l2")
        if batch_size < 1 or classes < 2:
            raise ValueError(f"there must be at least one image in a batch and two classes, got {batch_size} and {classes}")

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, as plain values for `CertificationLog`; the caller adds what the classifier and the data are."""
        smoothing = {name: value for name, value in dataclasses.asdict(self.smoothing).items() if name != "tail"}
        device = {"device": self.device.type, "dtype": str(self.dtype), "channels_last": self.channels_last}
        shared = {"classes": self.classes, "key": self.key, "law": self.law, "noise": "philox4x32-10/1"}
        return {name: list(v) if isinstance(v, tuple) else v for name, v in (smoothing | dataclasses.asdict(self.budget)).items()} | shared | device

    def certify(self, images: Tensor, indices: Sequence[int] | None = None) -> list[Result]:
        """Certify images.

        Args:
            images: (N, ...) in [0, 1].
            indices: their indices in the data set, which their noise follows from; None: 0 to N - 1.

        Returns:
            The results in the order of the images.
        """
        names = list(range(len(images))) if indices is None else [int(index) for index in indices]
        if len(set(names)) < len(names) or len(names) != len(images):
            raise ValueError(f"{len(images)} images need as many different indices, got {len(names)}")
        found = {result.index: result for result in self.certify_stream(zip(names, images, strict=True))}
        return [found[index] for index in names]

    def stream(self) -> Stream:
        """Return an empty stream, for images that are pushed as they come: `certify_stream` for loops that somebody else runs."""
        return Stream(self)

    def certify_stream(self, images: Iterable[tuple[int, Tensor]]) -> Iterator[Result]:
        """Certify images as they come, (index in the data set, image), and yield each result when it is settled."""
        stream, waiting = self.stream(), iter(images)
        while True:
            while not stream.is_full and (item := next(waiting, None)) is not None:
                stream.add(*item)
            if stream.is_empty:
                return
            yield from stream.advance()

    def _counter(self, slots: int, stages: int, key: int | None = None) -> VoteCounter:
        return VoteCounter(
            self.branches,
            self.smoothing.sigmas,
            self.classes,
            self.key if key is None else key,
            self.law,
            slots,
            stages,
            self.batch_size,
            self.smoothing.rule == "shared",
            self.device,
            self.dtype,
            self.channels_last,
        )

    def predict(self, images: Tensor, alpha: float = 0.001, draws: int = 1000, key: int | None = None) -> Tensor:
        """Predict the classes of smoothed images (PREDICT of Cohen et al. 2019), or abstain.

        Of two branches, every draw is dealt to one by a fair coin, so that all votes are those of one multinomial with the mean of the branches'
        probabilities, and the test is exact.

        Args:
            images: (N, ...) in [0, 1].
            alpha: probability that a class is returned that is not the smoothed classifier's.
            draws: draws of an image, over all branches.
            key: 64 bits; None draws a fresh one, so that nobody can fit an image to the noise.

        Returns:
            (N,) int64 classes, -1 for abstentions.

        Raises:
            ValueError: for more than two branches, which certificates fuse by quantiles and not by the mean.
        """
        if len(self.branches) > 2:
            raise ValueError(f"predictions are exact for one or two branches, not for {len(self.branches)}")
        run_key = secrets.randbits(64) if key is None else key
        with evaluating(self.branches):
            counter = self._counter(1, PREDICTION + 1, run_key)
            return torch.tensor([self._predict(counter, index, image, alpha, draws) for index, image in enumerate(images)])

    def _predict(self, counter: VoteCounter, index: int, image: Tensor, alpha: float, draws: int) -> int:
        counter.load(0, image)
        keys, numbers = torch.full((draws,), stream_key(counter.run_key, index, PREDICTION, _COIN)), torch.arange(draws)
        coins = (random_words(keys, numbers, torch.empty(draws, 1, dtype=torch.int32))[:, 0].long() & 0xFFFFFFFF) * len(self.branches) >> 32
        for branch in range(len(self.branches)):
            counter.count_branch(branch, [Work(0, index, PREDICTION, draw, draw + 1) for draw in numbers[coins == branch].tolist()])
        votes = counter.counts[0, PREDICTION].sum(0).cpu()[:-1]
        highest = votes.topk(2).values
        return choose_class(votes[None]) if float(hung_fithian_p_value(highest[0], highest[1])) <= alpha else ABSTAIN


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
        classifier: the smoothed classifier; its networks may be trained between two calls, not while images are in the works.
    """

    def __init__(self, classifier: SmoothedClassifier) -> None:
        self._budget, self._smoothing, self._branches = classifier.budget, classifier.smoothing, classifier.branches
        self._classes, self._batch_size = classifier.classes, classifier.batch_size
        self._is_on_grid = classifier.law == "grid"
        self._stops = [self._budget.selection + look for look in self._budget.looks()]  # draws after which counts are looked at
        self._slots = max(1, _BATCHES * self._batch_size // self._stops[0])
        self._counter = classifier._counter(self._slots, stages=2)
        self._active: dict[int, _Active] = {}

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
        if self._is_on_grid:
            check_grid(image)
        slot = next(slot for slot in range(self._slots) if slot not in self._active)
        active = _Active(index) if partial is None else self._resumed(partial)
        with torch.inference_mode():
            self._counter.load(slot, image, active.counts)
        self._active[slot] = active

    def _resumed(self, partial: Partial) -> _Active:
        best = None if partial.radius is None else self._smoothing.claim(partial.predicted, partial.radius, self._classes)
        counts = torch.stack([dense(rows, self._classes) for rows in (partial.selection, partial.estimation)])
        return _Active(partial.index, partial.done, partial.looks, best, partial.seconds, counts)

    def partials(self) -> list[Partial]:
        """Return where the images in the works stand, for `add` of another stream; without waiting for the device."""
        return [_partial(image, image.counts) for image in self._active.values() if image.counts is not None]

    def advance(self) -> list[Result]:
        """Make some batches of draws, and return and remove the images that are settled."""
        if self.is_empty:
            return []
        began, shares = time.monotonic(), self._shares()
        with evaluating(self._branches):
            self._counter.count([part for slot, share in shares.items() for part in self._work(slot, share)])
        counts = self._counter.counts.to("cpu", copy=True)  # the only wait; slots are reused, results must not change with them
        pace = (time.monotonic() - began) / sum(shares.values())
        smoothing, settled = dataclasses.replace(self._smoothing, tail=self._counter.tail), []
        for slot, share in shares.items():
            image = self._active[slot]
            image.done, image.counts, image.seconds = image.done + share, counts[slot], image.seconds + pace * share
            if image.done == self._stops[image.looks] and self._look(smoothing, image, counts[slot]):
                settled.append(self._result(self._active.pop(slot), counts[slot]))
        return settled

    def _shares(self) -> dict[int, int]:
        """Deal some batches of draws to the images, to none beyond its next look; as many as fill the batches, if there are so many."""
        most = -(-_BATCHES * self._batch_size // len(self._active))
        shares = {slot: min(self._stops[image.looks] - image.done, most) for slot, image in self._active.items()}
        total = sum(shares.values())
        surplus = total % self._batch_size if total > self._batch_size else 0
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
        highest = 0.0 if is_last else highest_radius(smoothing, votes[:, top], draws, self._budget.futility)
        if not is_last and not self._budget.is_settled(smoothing.at_most(votes, draws, top), highest):
            return False
        found = smoothing.certify(votes, draws, top)
        if image.best is None or found.radius > image.best.radius:  # all bounds hold at once: the best one does
            image.best = found
        return is_last or self._budget.is_settled(image.best.radius, highest)

    def _result(self, image: _Active, counts: Tensor) -> Result:
        assert image.best is not None
        return Result(image.index, image.best, counts[SELECTION], counts[ESTIMATION], image.done - self._budget.selection, image.seconds)


def _partial(image: _Active, counts: Tensor) -> Partial:
    predicted, radius = (ABSTAIN, None) if image.best is None else (image.best.predicted, image.best.radius)
    votes = sparse(counts[SELECTION]), sparse(counts[ESTIMATION])
    return Partial(image.index, image.done, image.looks, *votes, image.seconds, predicted, radius)


def certify_dataset(
    classifier: SmoothedClassifier, items: Iterable[tuple[int, Tensor, int]], log: CertificationLog, rank: int = 0, world_size: int = 1
) -> int:
    """Certify a data set into a log; what the log holds already is not done again, and images that were in the works are gone on with.

    Args:
        classifier: the smoothed classifier.
        items: (index in the data set, image, label), the same on all processes; process r takes every `world_size`-th, the r-th first.
        log: the log of this process.
        rank: number of this process.
        world_size: number of processes.

    Returns:
        How many images this process certified now.
    """
    own = (item for number, item in enumerate(items) if number % world_size == rank and item[0] not in log.done)
    stream, labels, count = classifier.stream(), dict[int, int](), 0
    try:
        while True:
            while not stream.is_full and (item := next(own, None)) is not None:
                index, image, labels[index] = item
                stream.add(index, image, log.partials.get(index))
            if stream.is_empty:
                return count
            for result in stream.advance():
                log.append(result.row(labels.pop(result.index)))
                count += 1
            log.keep(stream.partials)
    finally:
        log.keep(stream.partials, at_once=True)
