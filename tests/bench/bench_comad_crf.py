"""ComAD's dense CRF beside a plain NumPy mean field over all pairs of pixels.

uv run python tests/bench/bench_comad_crf.py [--sizes 64,112,224] [--cells 2,3] [--rounds 3] [--threads 1]

The plain version computes both kernels for blocks of pixels against all pixels in float32, exponents by matrix products, and multiplies them by the
maps: anew in every iteration, for the stored kernel of 224 x 224 pixels has 10 GB. It runs once. Ours runs with 5 components and the reference's
settings, once to warm up, and the medians of the rounds are printed, of the process's CPU time. Pictures: scikit-image's coffee, and a drawn tray
with noise. `apart` is the difference of the heat maps; `other` the part of the pixels whose largest map is another one; the maps start nearly flat,
as in ComAD. Peak memory is how far the peak resident size (VmHWM, Linux) has risen above that of the imports.
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from skimage import data
from torch.nn import functional as F

from projects.comad.bilateral import colour_cells, spatial_terms
from projects.comad.crf import CLIP, DenseCRF

COMPONENTS = 5
BLOCK = 512


def plain(start, image, sxy=1.0, compat=3.0, bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_compat=4.0, iterations=2):
    """Return the mean field of all pairs, (K, H, W) and (3, H, W) arrays -> (K, H, W)."""
    height, width = image.shape[1:]
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    colours = image.reshape(3, -1).T.astype(np.float32)
    kinds = [(compat, places / sxy), (bilateral_compat, np.concatenate([places / bilateral_sxy, colours / bilateral_srgb], 1))]
    kinds = [(weight, features - features.mean(0)) for weight, features in kinds]

    def multiply(features, values):
        squares, found = (features**2).sum(1) / 2, np.empty_like(values)
        for block in (slice(at, at + BLOCK) for at in range(0, len(features), BLOCK)):
            exponents = features[block] @ features.T
            exponents -= squares
            exponents -= squares[block, None]
            found[block] = np.exp(exponents, out=exponents) @ values
        return found

    ones = np.ones((height * width, 1), np.float32)
    norms = [1 / np.sqrt(multiply(features, ones)) for _, features in kinds]
    maps = start.reshape(len(start), -1).T.astype(np.float32)
    logarithms = np.log(np.maximum(maps, CLIP))
    for _ in range(iterations):
        logits = logarithms.copy()
        for (weight, features), norm in zip(kinds, norms, strict=True):
            logits += weight * norm * multiply(features, norm * maps)
        maps = np.exp(logits - logits.max(1, keepdims=True))
        maps /= maps.sum(1, keepdims=True)
    return maps.T.reshape(start.shape)


def pictures(size):
    coffee = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None].float()
    generator = torch.Generator().manual_seed(0)
    tray = torch.full((3, size, size), 120.0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for _ in range(12):
        top, left, radius = (torch.rand(3, generator=generator) * size).tolist()
        disc = (y - top) ** 2 + (x - left) ** 2 < (0.06 * size + 0.12 * radius) ** 2
        tray[:, disc] = (40 + 180 * torch.rand(3, 1, generator=generator)).expand(3, int(disc.sum()))
    tray = tray * (1 + 0.08 * (x / size - 0.5)) + 3 * torch.randn(tray.shape, generator=generator)
    shrunk = F.interpolate(coffee, size=(size, size), mode="bilinear", antialias=True)
    return {"coffee": shrunk.round().to(torch.uint8), "tray": tray[None].round().clamp(0, 255).to(torch.uint8)}


def soft_maps(size):
    """Draw nearly flat probabilities, as of cosines of 28 x 28 tokens."""
    tokens = F.avg_pool2d(torch.randn(1, COMPONENTS, 28, 28, generator=torch.Generator().manual_seed(0)), 5, 1, 2) * 2.5
    return F.interpolate(tokens, size=(size, size), mode="bilinear", align_corners=True).clamp(0, 1).softmax(1)


def timed(run):
    began = time.process_time()
    return run(), time.process_time() - began


def peak_mib():
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="64,112,224")
    parser.add_argument("--cells", default="2,3")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--without-plain", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    heads = ((14, "picture"), (8, "version"), (8, "CPU s"), (7, "times"), (9, "apart max"), (8, "mean"), (8, "other"))
    print(*(f"{head:>{width}}" for width, head in (*heads, (6, "terms"), (6, "cells"), (8, "pairs"), (6, "MiB"))))
    for size in map(int, options.sizes.split(",")):
        start, memory = soft_maps(size), peak_mib()
        for name, image in pictures(size).items():
            rows = []
            for cell in map(int, options.cells.split(",")):
                crf = DenseCRF(cell=cell)
                rounds = [timed(lambda crf=crf, start=start, image=image: crf(start, image)[0].numpy()) for _ in range(options.rounds + 1)]
                cells = colour_cells(image[0], 3, cell, 3.5)
                sizes = (spatial_terms(size, size, 67.0, 3e-3).rows.shape[1], cells.kernel.shape[1], cells.kernel._nnz())
                rows.append((cell, rounds[0][0], statistics.median(each[1] for each in rounds[1:]), sizes, peak_mib() - memory))
            exact, slow = (
                (None, float("nan")) if options.without_plain else timed(lambda start=start, image=image: plain(start[0].numpy(), image[0].numpy()))
            )
            print(f"{name:>8} {size:5d} {'plain':>8} {slow:8.2f} {1:7.1f}")
            for cell, maps, fast, (terms, count, pairs), risen in rows:
                apart = np.abs(maps - exact) if exact is not None else np.full(1, np.nan)
                other = (maps.argmax(0) != exact.argmax(0)).mean() if exact is not None else np.nan
                measured = f"{fast:8.3f} {slow / fast:7.1f} {apart.max():9.4f} {apart.mean():8.5f} {other:8.4f}"
                print(f"{'':14} {f'ours, {cell}':>8} {measured} {terms:6d} {count:6d} {pairs:8d} {risen:6.0f}", flush=True)


if __name__ == "__main__":
    main()
