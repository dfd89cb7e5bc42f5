"""Counts votes of classifiers under noise, on the device, for several images in one batch."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from shared.smoothing.noise import Law, Sampler, stream_key
from shared.smoothing.placement import Placed

Classifier = nn.Module | Callable[[Tensor], Tensor]


def whole(images: Tensor) -> Tensor:
    """Take images as they are."""
    return images


@dataclass(frozen=True)
class Branch:
    """A classifier of a part of the image.

    Args:
        classifier: maps (B, ...) noised parts to (B, K) logits; whatever it does with them, normalisation first, keeps the certificate. Of a `Placed`
            one, placement and normalisation are done together with the noise.
        take: maps (M, ...) clean images to their parts, without noise.
        theta: standard deviations of the part's elements in units of sigma, of its shape; None: 1 for all. Radii then are those of the ellipsoid
            |delta / theta|_2, see `certificates.anisotropic_radii`.
    """

    classifier: Classifier
    take: Callable[[Tensor], Tensor] = whole
    theta: Tensor | None = None


@dataclass(frozen=True)
class Work:
    """Draws of one branch that are to be counted: `start` to `stop` - 1 of an image, for one stage."""

    slot: int
    index: int
    stage: int
    start: int
    stop: int


class LogitMean(nn.Module):
    """Averages the logits of several networks, (B, ...) -> (B, K): an ensemble as one classifier (Horvath et al. 2022)."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        logits = [network(images) for network in self.networks]
        return torch.stack(logits).mean(0)


class VoteCounter:
    """Counts the votes of all branches for a number of images at once.

    Args:
        branches: classifiers, and what each sees.
        sigmas: noise of each branch, see `noise.Sampler`.
        classes: K.
        run_key: 64 bits.
        law: law of the noise.
        slots: images that are worked on at once.
        stages: numbers of stages with counts of their own.
        batch_size: copies of images in one forward pass.
        is_noise_shared: all branches get the noise of the first.
        device: where the classifiers compute.
        dtype: floating type that they get.
        channels_last: memory format that they get.
        is_compiled: the classifiers are compiled for one shape, so that batches are filled up on a CPU, too.

    Attributes:
        counts: (slots, stages, branches, K + 1) int64 on the device; the last class holds the votes of logits that are not finite.
    """

    def __init__(
        self,
        branches: Sequence[Branch],
        sigmas: Sequence[float],
        classes: int,
        run_key: int,
        law: Law = "gaussian",
        slots: int = 1,
        stages: int = 2,
        batch_size: int = 256,
        is_noise_shared: bool = False,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        is_compiled: bool = False,
    ) -> None:
        self.branches, self.sigmas, self.classes, self.run_key, self.law = branches, sigmas, classes, run_key, law
        self.batch_size, self.is_noise_shared, self.device, self.dtype, self.channels_last = batch_size, is_noise_shared, device, dtype, channels_last
        self.is_compiled, self.is_filled_up = is_compiled, is_compiled or torch.device(device).type == "cuda"
        self.counts = torch.zeros(slots, stages, len(branches), classes + 1, dtype=torch.int64, device=device)
        self.parts: list[Tensor] = []
        self._samplers: list[Sampler] = []
        self._buffers: list[Tensor] = []

    def load(self, slot: int, image: Tensor, counts: Tensor | None = None) -> None:
        """Put an image, (...) float32 in [0, 1], into a slot and set its counts to zero, or to (stages, branches, K + 1) counts of before."""
        parts = [branch.take(image[None].to(self.device, torch.float32)) for branch in self.branches]
        if not self.parts:
            check_parts(self.branches, image.shape, self.is_noise_shared, self.device)
            self._prepare(parts)
            with evaluating(self.branches):
                self._check_independence()
        for held, part in zip(self.parts, parts, strict=True):
            if part.shape[1:] != held.shape[1:]:
                raise ValueError(
                    f"images of one run have one shape: a part of this one has {tuple(part.shape[1:])}, of those before {tuple(held.shape[1:])}"
                )
            held[slot] = part[0]
        self.counts[slot] = 0 if counts is None else counts.to(self.device)

    def _prepare(self, parts: list[Tensor]) -> None:
        for branch, part, sigma in zip(self.branches, parts, self.sigmas, strict=True):
            shape = part.shape[1:]
            self.parts.append(torch.zeros(len(self.counts), *shape, device=self.device))
            self._samplers.append(Sampler(self.law, sigma, shape.numel(), self.device, self._deviations(branch, shape)))
            placed = shape
            if isinstance(branch.classifier, Placed):
                branch.classifier.placement.check(shape.numel())
                placed = torch.Size(branch.classifier.placement.shape)
            buffer = torch.empty(self.batch_size, *placed, dtype=self.dtype, device=self.device)
            self._buffers.append(buffer.to(memory_format=torch.channels_last) if self.channels_last and buffer.ndim == 4 else buffer)

    def _deviations(self, branch: Branch, shape: torch.Size) -> Tensor | None:
        if branch.theta is None:
            return None
        if branch.theta.shape != shape or not bool((branch.theta > 0).all()):
            raise ValueError(f"theta must be positive and of its part's shape {tuple(shape)}, got {tuple(branch.theta.shape)}")
        theta = branch.theta.to(self.device, torch.float32)
        weaker = theta.double() < branch.theta.to(self.device, torch.float64)
        return torch.where(weaker, torch.nextafter(theta, torch.full_like(theta, torch.inf)), theta).flatten()

    def _check_independence(self) -> None:
        """Check that logits are a function of their own image: that they stay when the other images of the batch change."""
        count = self.batch_size if self.is_filled_up else min(8, self.batch_size)
        for number, (branch, buffer) in enumerate(zip(self.branches, self._buffers, strict=True)):
            classify = branch.classifier.network if isinstance(branch.classifier, Placed) else branch.classifier
            first, found = torch.randint(256, buffer.shape[1:], generator=torch.Generator().manual_seed(0)).to(buffer) / 255, []
            for others in (first, torch.zeros_like(first)):
                buffer[:count] = others
                buffer[0] = first
                found.append(classify(buffer[:count])[0].float())
            if bool((found[0] - found[1]).abs().max() > 0.05 * found[0].abs().max() + 1e-6):  # half precision alone differs less
                raise ValueError(
                    f"the logits of classifier {number} depend on the other images of the batch: put it into evaluation mode, and leave out "
                    "layers that normalise over the batch; there is no one function to certify"
                )

    @property
    def tail(self) -> float:
        """What is to be taken off lower bounds for the sampler's tails, the largest of all branches; known once an image is loaded."""
        return max(sampler.tail for sampler in self._samplers)

    def count(self, work: Sequence[Work]) -> None:
        """Make the draws and add their votes to the counts, without waiting for the device."""
        for branch in range(len(self.branches)):
            self.count_branch(branch, work)

    def count_branch(self, branch: int, work: Sequence[Work]) -> None:
        """Make the draws of one branch; on a CUDA device, or compiled, the last batch is filled up: all have one shape."""
        slots, stages, keys, starts, ends = self._lay_out(branch, work)
        total, size = sum(part.stop - part.start for part in work), self.batch_size
        for first in range(0, total, size):
            filled = min(first + size, total) - first
            number = torch.arange(first, first + (size if self.is_filled_up else filled), device=self.device).clamp_(max=total - 1)
            row = torch.searchsorted(ends, number, right=True)
            slot = slots[row]
            out = self._buffers[branch][: len(row)]
            votes = self._votes(branch, self._noised(branch, slot, keys[row], number + starts[row], out))
            place = ((slot * self.counts.shape[1] + stages[row]) * len(self.branches) + branch) * (self.classes + 1) + votes
            self.counts.view(-1).scatter_add_(0, place[:filled], torch.ones_like(place[:filled]))

    def _lay_out(self, branch: int, work: Sequence[Work]) -> Tensor:
        """Return slot, stage, key, what makes a draw's number from its place in all the work, and the place of the end of every work, (5, works)."""
        stream, end, rows = 0 if self.is_noise_shared else branch, 0, []
        for part in work:
            begin, end = end, end + part.stop - part.start
            rows.append([part.slot, part.stage, stream_key(self.run_key, part.index, part.stage, stream), part.start - begin, end])
        return torch.tensor(rows).T.contiguous().to(self.device, non_blocking=True)

    def _noised(self, branch: int, slots: Tensor, keys: Tensor, draws: Tensor, out: Tensor) -> Tensor:
        classifier = self.branches[branch].classifier
        placement = classifier.placement if isinstance(classifier, Placed) else None
        return self._samplers[branch].perturb(self.parts[branch], slots, keys, draws, out, placement)

    def _votes(self, branch: int, noised: Tensor) -> Tensor:
        """Classify (B, ...) -> (B,) votes; K where a logit is not finite."""
        classifier = self.branches[branch].classifier
        if self.is_compiled and noised.is_cuda:
            torch.compiler.cudagraph_mark_step_begin()  # logits of the batch before are counted: a graph may write over them
        logits = classifier.network(noised) if isinstance(classifier, Placed) else classifier(noised)
        if logits.ndim != 2 or logits.shape != (len(noised), self.classes):
            raise ValueError(
                f"classifier {branch} returned {tuple(logits.shape)} for {len(noised)} images of {self.classes} classes; it must return logits"
            )
        return torch.where(logits.isfinite().all(1), logits.argmax(1), self.classes)


def compiled(branch: Branch, device: torch.device) -> Branch:
    """Return a branch whose network is compiled for one shape, that behind the placement of a `Placed` one."""
    mode = "reduce-overhead" if device.type == "cuda" else None
    if isinstance(branch.classifier, Placed):
        placed = Placed(branch.classifier.placement, cast(nn.Module, torch.compile(branch.classifier.network, mode=mode, dynamic=False)))
        return dataclasses.replace(branch, classifier=placed)
    return dataclasses.replace(branch, classifier=torch.compile(branch.classifier, mode=mode, dynamic=False))


def check_parts(branches: Sequence[Branch], shape: Sequence[int], may_overlap: bool, device: torch.device | str = "cpu") -> None:
    """Check that branches take elements as they are, none twice: certificates of several branches rest on |delta|^2 >= sum_i |delta_i|^2.

    Args:
        branches: the branches.
        shape: shape of an image.
        may_overlap: branches may take the same elements, as the certificate for shared noise allows.
        device: where the branches take elements of images.

    Raises:
        ValueError: if a branch computes with elements, or one is taken twice.
    """
    numbers = torch.arange(torch.Size(shape).numel(), dtype=torch.float64, device=device)
    probe, taken = (numbers * 0.618).frac(), torch.zeros(len(numbers), dtype=torch.bool, device=device)
    for number, branch in enumerate(branches):
        places = branch.take(numbers.view(1, *shape)).flatten()
        elements = places.long().clamp(0, len(numbers) - 1)
        if not torch.equal(branch.take(probe.view(1, *shape)).flatten(), probe[elements]):
            raise ValueError(f"branch {number} must take elements of the image as they are; what computes with them belongs into its classifier")
        if len(elements.unique()) < len(elements) or (not may_overlap and bool(taken[elements].any())):
            raise ValueError(
                f"branch {number} takes elements twice, or those of another branch: no certificate holds then, but 'shared' for one noise"
            )
        taken[elements] = True


@contextlib.contextmanager
def evaluating(branches: Sequence[Branch]) -> Iterator[None]:
    """Set all networks to evaluation for a while: in training mode a vote depends on the rest of its batch, and there is nothing to certify."""
    modules = [module for branch in branches if isinstance(branch.classifier, nn.Module) for module in branch.classifier.modules()]
    training = [module.training for module in modules]
    try:
        for module in modules:
            module.training = False
        with torch.inference_mode():
            yield
    finally:
        for module, was in zip(modules, training, strict=True):
            module.training = was
