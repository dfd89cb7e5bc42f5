"""The smoothed classifier: certifies and predicts many images, with results that do not depend on how they are batched."""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shared.smoothing.bounds import hung_fithian_p_value
from shared.smoothing.budget import Budget
from shared.smoothing.certificates import ABSTAIN, Smoothing
from shared.smoothing.log import CertificationLog, Row
from shared.smoothing.noise import Law, random_words, stream_key
from shared.smoothing.stream import BATCHES, PREDICTION, Result, Stream
from shared.smoothing.votes import Branch, Classifier, VoteCounter, Work, compiled, evaluating

_COIN = 15  # the branch number of the coins that deal predictions to branches


@dataclass(frozen=True)
class Prediction:
    """What the smoothed classifier says of N images.

    Attributes:
        classes: (N,) int64, -1 for abstentions.
        p_values: (N,) float64 of the two most frequent classes being equally probable; the classifier abstains above alpha.
        counts: (N, K + 1) int64 votes of all branches; the last are of logits that are not finite.
        seconds: (N,) float64 times.
    """

    classes: Tensor
    p_values: Tensor
    counts: Tensor
    seconds: Tensor

    def rows(self, labels: Tensor, indices: Sequence[int] | None = None) -> list[Row]:
        """Return rows for `log.prediction_table`: of images with these labels and indices in the data set, None: 0 to N - 1."""
        names = range(len(self.classes)) if indices is None else indices
        columns = (labels.tolist(), self.classes.tolist(), self.seconds.tolist())
        return [Row(int(index), label, predicted, 0.0, took) for index, label, predicted, took in zip(names, *columns, strict=True)]


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
        compile: compile the classifiers with torch.compile; on CUDA with graphs, that spare small networks the launches. A compiled classifier is
            another one up to rounding.

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
        compile: bool = False,  # noqa: A002
    ) -> None:
        self.branches = list(branches) if isinstance(branches, Sequence) else [Branch(branches)]
        self.classes, self.budget, self.key, self.law, self.batch_size = classes, budget, key, law, batch_size
        self.device, self.dtype, self.channels_last, self.compile = torch.device(device), dtype, channels_last, compile
        if compile:
            self.branches = [compiled(branch, self.device) for branch in self.branches]
        is_anisotropic = any(branch.theta is not None for branch in self.branches)
        self.smoothing = dataclasses.replace(smoothing, anytime=budget.is_anytime, anisotropic=is_anisotropic)
        if len(self.branches) != len(smoothing.sigmas):
            raise ValueError(f"{len(self.branches)} branches need as many sigmas, got {smoothing.sigmas}")
        if (law == "uniform") != (smoothing.rule == "l1"):
            raise ValueError(f"noise {law!r} does not go with the certificate {smoothing.rule!r}: uniform noise certifies l1, Gaussian noise l2")
        if is_anisotropic and law != "gaussian":
            raise ValueError(f"deviations theta of single elements are for Gaussian noise, not for {law!r}")
        if batch_size < 1 or classes < 2:
            raise ValueError(f"there must be at least one image in a batch and two classes, got {batch_size} and {classes}")

    @property
    def settings(self) -> dict[str, Any]:
        """What results depend on, as plain values for `CertificationLog`; the caller adds what the classifier and the data are."""
        smoothing = {name: value for name, value in dataclasses.asdict(self.smoothing).items() if name != "tail"}
        device = {"device": self.device.type, "dtype": str(self.dtype), "channels_last": self.channels_last, "compile": self.compile}
        shared: dict[str, Any] = {"classes": self.classes, "key": self.key, "law": self.law, "noise": "philox4x32-10/1"}
        if self.smoothing.anisotropic:
            shared["theta"] = [None if branch.theta is None else _digest(branch.theta) for branch in self.branches]
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
        slots = max(1, BATCHES * self.batch_size // (self.budget.selection + self.budget.looks()[0]))
        return Stream(self.counter(slots, stages=2), self.smoothing, self.budget)

    def certify_stream(self, images: Iterable[tuple[int, Tensor]]) -> Iterator[Result]:
        """Certify images as they come, (index in the data set, image), and yield each result when it is settled."""
        stream, waiting = self.stream(), iter(images)
        while True:
            while not stream.is_full and (item := next(waiting, None)) is not None:
                stream.add(*item)
            if stream.is_empty:
                return
            yield from stream.advance()

    def counter(self, slots: int, stages: int, key: int | None = None, batch_size: int | None = None) -> VoteCounter:
        """Return what counts votes of so many images at once, in so many stages; with another key or batch size, if they are given."""
        return VoteCounter(
            self.branches,
            self.smoothing.sigmas,
            self.classes,
            self.key if key is None else key,
            law=self.law,
            slots=slots,
            stages=stages,
            batch_size=self.batch_size if batch_size is None else batch_size,
            is_noise_shared=self.smoothing.rule == "shared",
            device=self.device,
            dtype=self.dtype,
            channels_last=self.channels_last,
            is_compiled=self.compile,
        )

    def predict(self, images: Tensor, alpha: float = 0.001, draws: int = 1000, key: int | None = None) -> Prediction:
        """Predict the classes of smoothed images (PREDICT of Cohen et al. 2019), or abstain.

        Of two branches, every draw is dealt to one by a fair coin, so that all votes are those of one multinomial with the mean of the branches'
        probabilities, and the test is exact.

        Args:
            images: (N, ...) in [0, 1].
            alpha: probability that a class is returned that is not the smoothed classifier's.
            draws: draws of an image, over all branches.
            key: 64 bits; None draws a fresh one, so that nobody can fit an image to the noise.

        Returns:
            Classes, p-values and votes.

        Raises:
            ValueError: for more than two branches, which certificates fuse by quantiles and not by the mean.
        """
        if len(self.branches) > 2:
            raise ValueError(f"predictions are exact for one or two branches, not for {len(self.branches)}: take the class that `certify` finds")
        if draws < 1 or not 0 < alpha <= 1:
            raise ValueError(f"a prediction needs draws, and alpha in (0, 1] (1 never abstains), got {draws} and {alpha}")
        run_key = secrets.randbits(64) if key is None else key
        rows, seconds = [], []
        with evaluating(self.branches):
            counter = self.counter(1, PREDICTION + 1, run_key)
            for index, image in enumerate(images):
                began = time.monotonic()
                rows.append(self._votes(counter, index, image, draws))
                seconds.append(time.monotonic() - began)
        counts = torch.stack(rows).clone() if rows else torch.zeros(0, self.classes + 1, dtype=torch.int64)
        first, second = counts[:, :-1].topk(2).values.unbind(1)
        p_values = hung_fithian_p_value(first, second)
        winners = (counts[:, :-1] == first[:, None]).to(torch.int64).argmax(1)  # the lowest of equals, as in certificates
        return Prediction(torch.where(p_values <= alpha, winners, ABSTAIN), p_values, counts, torch.tensor(seconds, dtype=torch.float64))

    def _votes(self, counter: VoteCounter, index: int, image: Tensor, draws: int) -> Tensor:
        counter.load(0, image)
        if len(self.branches) == 1:
            counter.count_branch(0, [Work(0, index, PREDICTION, 0, draws)])
            return counter.counts[0, PREDICTION, 0].to("cpu", copy=True)
        keys, numbers = torch.full((draws,), stream_key(counter.run_key, index, PREDICTION, _COIN)), torch.arange(draws)
        coins = (random_words(keys, numbers, torch.empty(draws, 1, dtype=torch.int32))[:, 0].long() & 0xFFFFFFFF) * len(self.branches) >> 32
        for branch in range(len(self.branches)):
            counter.count_branch(branch, [Work(0, index, PREDICTION, draw, draw + 1) for draw in numbers[coins == branch].tolist()])
        return counter.counts[0, PREDICTION].sum(0).cpu()


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().to(torch.float32).numpy().tobytes()).hexdigest()[:16]


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
