"""HODINet's measures of saliency maps beside the loop over pictures of pysodmetrics (MAE, S, E, F and weighted F), in one process.

python tests/bench/bench_hodinet_metrics.py [--pictures 60] [--sizes 480x640 256x256] [--rounds 3] [--clock cpu]

Maps of one object that are 0 in most of the background, as of a trained network; the same with noise everywhere; and noisy ones of blobs all over
the picture, the worst case. Results are compared. `--clock cpu` counts the processor's seconds instead of the wall's, for machines that do other
work; threads then gain nothing.
"""

import argparse
import resource
import time
import warnings

import numpy as np
import py_sod_metrics
import torch
from scipy import ndimage

from projects.hodinet.metrics import SaliencyMetrics


def draw(kind, size, index):
    """Return (H, W) uint8 levels and a mask of about a fifth of the picture: one object, or blobs all over."""
    rng = np.random.default_rng(index)
    if kind == "blobs":
        field = ndimage.gaussian_filter(rng.standard_normal(size), min(size) / 12)
    else:
        y, x = (np.arange(side) - side * rng.uniform(0.35, 0.65) for side in size)
        y = y[:, None]
        lobes = 1 + sum(0.25 / k * np.cos(k * np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
        field = -np.hypot(y, x) / lobes
    mask = field > np.quantile(field, 0.8)
    soft = ndimage.gaussian_filter(np.roll(mask, 4, 1).astype(float), 4)
    noise = rng.random(size) * (soft > 0.002 if kind == "trained" else 1)
    return (255 * (0.8 * soft + 0.2 * noise)).astype(np.uint8), mask


def of_library(pictures):
    handler = py_sod_metrics.FmeasureHandler(with_dynamic=True, with_adaptive=True)
    f = py_sod_metrics.FmeasureV2({"f": handler})
    mae, s, e, weighted = py_sod_metrics.MAE(), py_sod_metrics.Smeasure(), py_sod_metrics.Emeasure(), py_sod_metrics.WeightedFmeasure()
    for levels, mask in pictures:
        for measure in (mae, s, e, f, weighted):
            measure.step(levels, mask)
    em, fm = e.get_results()["em"], f.get_results()["f"]
    numbers = {"mae": mae.get_results()["mae"], "s_measure": s.get_results()["sm"], "f_weighted": weighted.get_results()["wfm"]}
    numbers |= {"e_adaptive": em["adp"], "e_max": em["curve"].max(), "e_mean": em["curve"].mean()}
    return numbers | {"f_adaptive": fm["adaptive"], "f_max": fm["dynamic"].max(), "f_mean": fm["dynamic"].mean()}


def of_ours(pictures, threads):
    metrics = SaliencyMetrics()
    if threads == 1:
        for picture in pictures:
            metrics.update(*picture)
    else:
        metrics.update_batch(pictures, threads)
    return metrics.compute()


def measure(jobs, rounds, clock):
    """Return the least seconds of each job, run in turns, and its result."""
    times, results = {name: [] for name in jobs}, {}
    for _ in range(rounds):
        for name, job in jobs.items():
            began = clock()
            results[name] = job()
            times[name].append(clock() - began)
    return {name: min(values) for name, values in times.items()}, results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=60)
    parser.add_argument("--sizes", nargs="+", default=["480x640", "256x256"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    clock = time.perf_counter if args.clock == "wall" else time.process_time
    for size in args.sizes:
        for kind in ("trained", "noisy", "blobs"):
            drawn = [draw(kind, tuple(map(int, size.split("x"))), index) for index in range(args.pictures)]
            theirs = [(levels, mask.astype(np.uint8) * 255) for levels, mask in drawn]
            ours = [(torch.from_numpy(levels)[None], torch.from_numpy(mask)[None]) for levels, mask in drawn]
            jobs = {"pysodmetrics": lambda t=theirs: of_library(t)} | {f"ours, {n} threads": lambda o=ours, n=n: of_ours(o, n) for n in (1, 2)}
            times, results = measure(jobs, args.rounds, clock)
            for name, seconds in times.items():
                apart = max(abs(results[name][key] - value) for key, value in results["pysodmetrics"].items())
                ratio = times["pysodmetrics"] / seconds
                rate = args.pictures / seconds
                print(
                    f"{size:8} {kind:8} {name:16} {1000 * seconds / args.pictures:7.2f} ms a picture {rate:7.1f}/s x{ratio:5.2f} apart {apart:.0e}",
                    flush=True,
                )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


if __name__ == "__main__":
    main()
