"""Poisons that need no network, over a whole training set of CIFAR's size, each in a process of its own, beside straightforward loops.

python tests/bench/bench_poisons.py [--count 50000] [--size 32] [--classes 10] [--threads 1] [--attacks lsp ar ops cuda random] [--quick]

The straightforward loops are written as published codes are: AR cell by cell, OPS candidate by candidate over all images of a class, LSP image by
image. They are timed on a few images (AR, LSP) or one class (OPS) and extrapolated.
"""

import argparse
import itertools
import multiprocessing
import resource
import time

import numpy as np
import torch
from sklearn.datasets import make_classification
from timing import record
from torch.utils.data import Dataset

from projects.dvae.poisons import ATTACKS, make_pattern, poison_dataset
from shared.poisons import find_processes, measure


class Noise(Dataset):
    """Random images, for which all attacks take as long as for real ones."""

    def __init__(self, count, size, classes):
        random = torch.Generator().manual_seed(0)
        self.images = torch.randint(0, 256, (count, 3, size, size), generator=random, dtype=torch.uint8)
        self.labels = torch.randint(0, classes, (count,), generator=random)

    def __len__(self):
        return len(self.labels)


def ours(name, options, results):
    torch.set_num_threads(options.threads)
    dataset = Noise(options.count, options.size, options.classes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    pattern = make_pattern(name, dataset, options.classes, (3, options.size, options.size))
    made = time.perf_counter() - began
    poisoned, _ = poison_dataset(pattern, dataset)
    taken = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results.put((made, taken, peak / 1024, measure(dataset.images, poisoned)))


def straightforward_lsp(images, labels, classes):
    size = images.shape[-1]
    grid = -(-size // 8)
    points, drawn = make_classification(
        len(images) * 2, 3 * grid**2, n_informative=3 * grid**2, n_redundant=0, n_classes=classes, n_clusters_per_class=1, class_sep=10, flip_y=0
    )
    for number, label in enumerate(labels.tolist()):
        colours = points[np.flatnonzero(drawn == label)[number // classes % 3]].reshape(grid, grid, 3)
        field = np.zeros((size, size, 3))
        for row, column in itertools.product(range(size), range(size)):
            field[row, column] = colours[row // 8, column // 8]
        np.clip(images[number].numpy() + 255 * (field / np.linalg.norm(field)).transpose(2, 0, 1), 0, 255).astype(np.uint8)


def straightforward_ar(images, labels, classes):
    size, coefficients = images.shape[-1] + 4, find_processes(classes, 3, min_response=0).coefficients.float()
    for image, label in zip(images, labels.tolist(), strict=True):
        field = torch.randn(3, size, size)
        for channel, row, column in itertools.product(range(3), range(size - 2), range(size - 2)):
            window, b = field[channel, row : row + 3, column : column + 3], coefficients[label, channel]
            field[channel, row + 2, column + 2] = torch.dot(window[0], b[0]) + torch.dot(window[1], b[1]) + torch.dot(window[2], b[2])
        np.clip(image.numpy() + 255 * (field[:, 4:, 4:] / field[:, 4:, 4:].norm()).numpy(), 0, 255).astype(np.uint8)


def straightforward_ops(images):
    images, best = images.numpy().astype(np.float32) / 255, 0.0
    for row, column in itertools.product(range(images.shape[2]), range(images.shape[3])):
        for colour in itertools.product((0.0, 1.0), repeat=3):
            gap = np.abs(images[:, :, row, column] - np.array(colour, dtype=np.float32))
            best = max(best, gap.mean() / gap.std())
    return best


def straightforward(name, options):
    """Return the seconds that the straightforward loop would take for the whole set, or None."""
    torch.set_num_threads(options.threads)
    dataset = Noise(options.count, options.size, options.classes)
    few, began = min(8 if name == "ar" else 200, options.count), time.perf_counter()
    match name:
        case "ar":
            straightforward_ar(dataset.images[:few], dataset.labels[:few], options.classes)
        case "lsp":
            straightforward_lsp(dataset.images[:few], dataset.labels[:few], options.classes)
        case "ops":
            straightforward_ops(dataset.images[dataset.labels == 0])
            return (time.perf_counter() - began) * options.classes
        case _:
            return None
    return (time.perf_counter() - began) / few * options.count


def main():
    closed = [name for name, attack in ATTACKS.items() if not attack.is_learned]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--attacks", nargs="+", choices=closed, default=closed)
    parser.add_argument("--quick", action="store_true", help="a few images, to see that everything runs")
    options = parser.parse_args()
    options.count = 500 if options.quick else options.count
    print(f"{options.count} images of 3 x {options.size} x {options.size}, {options.classes} classes, {options.threads} CPU thread(s)")
    size, timed = f"{options.count} images of 3 x {options.size} x {options.size}", {}
    spawn = multiprocessing.get_context("spawn")
    for name in options.attacks:
        results = spawn.Queue()
        process = spawn.Process(target=ours, args=(name, options, results))
        process.start()
        made, taken, peak, found = results.get()
        process.join()
        other, timed[name] = straightforward(name, options), taken
        if other:
            record(f"poison {name}", size, taken, other, "loop as published, extrapolated")
        beside = f", straightforward {other:9.1f} s ({other / taken:.0f} times as long)" if other else ""
        print(
            f"{name:6s} {taken:6.1f} s ({made:5.1f} s to prepare), {options.count / taken:8.0f} images/s, peak {peak:6.0f} MiB above the images, "
            f"linf {found['linf']:.0f}, l2 at most {found['l2_max']:.4f}{beside}",
            flush=True,
        )
    if {"lsp", "ar", "ops"} <= set(timed):
        record("poisons lsp, ar and ops together", size, sum(timed[name] for name in ("lsp", "ar", "ops")), 60, "60 s", kind="bound", target=1)


if __name__ == "__main__":
    main()
