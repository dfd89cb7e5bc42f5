"""Poisons that need no network: LSP, AR, OPS, class-wise filters and random noise."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from projects.dvae.poisons.training_set import TrainingSet
from shared.poisons import AutoregressiveProcesses, add_on_grid, add_within_l2, enlarge, scale_to_l2, to_levels
from shared.seeding import generator


class PatchPattern:
    """LSP: linearly separable patches of colour, one field for each image (Yu et al. 2022).

    Args:
        colours: (N, C, h, w) colours of the patches, for each index of the training set.
        patch: side of a patch in pixels.
        radius: Euclidean norm, in units of [0, 1] images.
    """

    def __init__(self, colours: Tensor, patch: int, radius: float) -> None:
        self.colours, self.patch, self.radius = colours, patch, radius

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        fields = enlarge(self.colours[indices].double(), (images.shape[2], images.shape[3]), self.patch)
        return add_within_l2(to_levels(images), scale_to_l2(fields, self.radius), self.radius).float() / 255


class AutoregressivePattern:
    """AR: fields of autoregressive processes, one process a class and one field an image (Sandoval-Segura et al. 2022).

    Args:
        processes: the processes of all classes.
        radius: Euclidean norm, in units of [0, 1] images.
        seed: seed of the fields.
    """

    def __init__(self, processes: AutoregressiveProcesses, radius: float, seed: int) -> None:
        self.processes, self.radius, self.seed = processes, radius, seed

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        fields = self.processes.draw(labels, (images.shape[2], images.shape[3]), indices, self.seed)
        return add_within_l2(to_levels(images), scale_to_l2(fields, self.radius), self.radius).float() / 255


class PixelPattern:
    """OPS: the same few pixels take the same extreme colours in all images of a class (Wu et al. 2023).

    Args:
        rows: (K, P) rows of the pixels of each class.
        columns: (K, P) their columns.
        colours: (K, P, C) their colours, 0 or 1.
    """

    def __init__(self, rows: Tensor, columns: Tensor, colours: Tensor) -> None:
        self.rows, self.columns, self.colours = rows, columns, colours

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        poisoned = to_levels(images).float() / 255
        places = torch.arange(len(images))[:, None]
        poisoned[places, :, self.rows[labels], self.columns[labels]] = self.colours[labels].to(poisoned)
        return poisoned


def search_pixels(training_set: TrainingSet, pixels: int) -> PixelPattern:
    """Search the pixels of OPS: for each class the position and the colour v maximising mean |v - x| / std |v - x| over its images and channels.

    Sums and sums of squares of the levels, exact in integers, hold all that the search needs: they come from one pass over the set. Classes choose
    in turn, and no pair of position and colour is chosen twice; with several pixels a class chooses each of its positions once.

    Args:
        training_set: the clean set.
        pixels: pixels for each image; published: 1.

    Raises:
        ValueError: if there are too few pairs of position and colour for so many.
    """
    channels, height, width = training_set.shape
    colours = torch.tensor(list(itertools.product((0.0, 1.0), repeat=channels)), dtype=torch.float64)  # (V, C)
    sums, squares, counts = _sums_of_classes(training_set)
    chosen = torch.zeros(training_set.classes, pixels, dtype=torch.long)
    is_used = torch.zeros(len(colours), height * width, dtype=torch.bool)
    scores = [_pixel_scores(sums[label], squares[label], int(counts[label]), colours) for label in range(training_set.classes)]
    for turn in range(pixels):
        for label in range(training_set.classes):
            allowed = scores[label].masked_fill(is_used, -torch.inf)
            allowed[:, chosen[label, :turn] % (height * width)] = -torch.inf
            best = int(allowed.argmax())
            if allowed.view(-1)[best] == -torch.inf:
                raise ValueError(f"{pixels} pixels for each of {training_set.classes} classes are too many for {height} x {width} pixels")
            chosen[label, turn] = best
            is_used.view(-1)[best] = True
    positions = chosen % (height * width)
    return PixelPattern(positions // width, positions % width, colours[chosen // (height * width)].float())


def _sums_of_classes(training_set: TrainingSet) -> tuple[Tensor, Tensor, Tensor]:
    """Return each class's sums and sums of squares of levels, (K, C, H * W), and its number of images, (K,)."""
    channels, height, width = training_set.shape
    sums, squares = (torch.zeros(training_set.classes, channels, height * width, dtype=torch.int64) for _ in range(2))
    for images, labels, _ in training_set.chunks():
        for label in labels.unique().tolist():
            levels = images[labels == label].flatten(2).int()
            sums[label] += levels.sum(0)
            squares[label] += levels.square().sum(0)
    return sums, squares, torch.bincount(training_set.labels, minlength=training_set.classes)


def _pixel_scores(sums: Tensor, squares: Tensor, count: int, colours: Tensor) -> Tensor:
    """Score every colour at every position for one class: sums (C, P), squares (C, P), colours (V, C) -> (V, P)."""
    if count == 0:
        return torch.zeros(len(colours), sums.shape[1], dtype=torch.float64)
    first, second = sums.double() / 255 / count, squares.double() / 255**2 / count  # means of x and of x²
    is_one = colours[:, :, None]  # |1 - x| = 1 - x and |0 - x| = x
    mean = (is_one * (1 - first) + (1 - is_one) * first).mean(1)
    square = (is_one * (1 - 2 * first + second) + (1 - is_one) * second).mean(1)
    deviation = (square - mean**2).clamp_min(0).sqrt()
    return mean / deviation.clamp_min(1e-4)  # equal in all images: the farther colour wins


class FilterPattern:
    """CUDA: every class's images are filtered by a kernel of its own and divided by their maximum (Sadasivan et al. 2023); not bounded.

    Args:
        kernels: (K, 3, 3), the same for all channels.
    """

    def __init__(self, kernels: Tensor) -> None:
        self.kernels = kernels

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        count, channels, height, width = images.shape
        kernels = self.kernels[labels].repeat_interleave(channels, 0)[:, None]  # (B C, 1, 3, 3)
        filtered = F.conv2d(images.reshape(1, count * channels, height, width), kernels, padding=1, groups=count * channels)
        filtered = filtered.reshape(images.shape)
        return to_levels(filtered / filtered.amax((1, 2, 3), keepdim=True).clamp_min(1e-6)).float() / 255


def draw_filters(classes: int, seed: int) -> Tensor:
    """Draw the kernels of CUDA, (K, 3, 3): weights uniform in [0, 0.3], and one cell, anywhere, 1."""
    random = generator(seed, "class-wise filters")
    kernels = 0.3 * torch.rand(classes, 9, generator=random)
    cells = torch.randint(0, 9, (classes,), generator=random)
    kernels[torch.arange(classes), cells] = 1
    return kernels.reshape(classes, 3, 3)


class NoisePattern:
    """Uniform noise for each image: what a bound does that no attack has filled.

    Args:
        radius: bound on every value, in pixels of 255.
        seed: seed of the noise.
    """

    def __init__(self, radius: float, seed: int) -> None:
        self.radius, self.seed = radius, seed

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        limit, shape = int(self.radius), images.shape[1:]
        drawn = [torch.randint(-limit, limit + 1, shape, generator=generator(self.seed, "noise", index)) for index in indices.tolist()]
        return add_on_grid(to_levels(images), torch.stack(drawn).float() / 255).float() / 255
