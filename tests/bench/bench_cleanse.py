"""Cleansing: the time of its parts, the importance passes beside torch-pruning's, and the tuning beside a bare loop.

uv run python tests/bench/bench_cleanse.py [--quick]        5 minutes on two CPU cores

Networks are random, of the sizes that the project trains; times do not depend on the weights. The importance of torch-pruning is as published:
two passes over all late timesteps, each with the importance of every group asked for one by one.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import warnings

import torch
import torch_pruning as tp
from timing import record, timed
from torch.nn import functional as F

from projects.diff_cleanse.cleanse import Pictures, Recipe, cleanse
from projects.diff_cleanse.importance import Probe, group_channels, late_timesteps, two_pass_importance
from projects.diff_cleanse.inspection import Trigger
from projects.diff_cleanse.repair import Repair, fit
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.backbones.unets import build_unet
from shared.pruning import rank_correlation

BETAS = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1, "beta_schedule": "linear"}
CORES = 2
"""For which the time of a whole cleansing was asked."""
SCHEDULE, ROUNDS = NoiseSchedule.linear(100, 1e-3, 0.1), 3


def published_importance(unet, probe, noises):
    """Score every group by torch-pruning, whose graph is built for each pass, as its pruner does."""
    shape = probe.images.shape[1:]
    for noise in noises:
        unet.zero_grad()
        for timestep in probe.timesteps:
            t = torch.full((len(probe.images),), timestep)
            F.mse_loss(unet(SCHEDULE.add_noise(probe.images, noise, t), t).sample, probe.eps).backward()
        example = {"sample": torch.zeros(1, *shape), "timestep": torch.zeros(1, dtype=torch.int64)}
        graph, taylor = tp.DependencyGraph().build_dependency(unet, example_inputs=example), tp.importance.TaylorImportance()
        for group in graph.get_all_groups(ignored_layers=[unet.conv_in, unet.conv_out]):
            taylor(group)


def bare_tuning(unet, teacher, images, steps, batch):
    """Tune in a plain PyTorch loop."""
    optimizer = torch.optim.Adam(unet.parameters(), lr=1e-4)
    unet.train()
    for _ in range(steps):
        chosen = images[torch.randperm(len(images))[:batch]]
        t, eps = torch.randint(100, (batch,)), torch.randn(chosen.shape)
        noisy = SCHEDULE.add_noise(chosen, eps, t)
        predicted = unet(noisy, t).sample
        with torch.no_grad():
            taught = teacher(noisy, t).sample
        loss = ((eps - predicted) ** 2 + (taught - predicted) ** 2).sum((1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()


def seconds(run):
    return timed(run)[1]


def compare(what, size, beside, kind, ours, theirs, rounds):
    times = [[seconds(run) for run in (ours, theirs)] for _ in range(rounds)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    record(what, size, mine, other, beside, kind=kind)
    print(f"{f'{what}, {size}, beside {beside}':50} {mine:7.2f} s {other:7.2f} s  {other / mine:5.2f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the smaller size, to see that everything runs")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rounds, count = (1, 2) if options.quick else (ROUNDS, 20)
    print(f"{torch.get_num_threads()} CPU threads, medians of {rounds} alternating rounds")
    print(f"{'':50} {'ours':>9} {'other':>9}  ratio")
    for size, channels, batch in ((16, 1, 2),) if options.quick else ((16, 1, 32), (32, 3, 8)):
        torch.manual_seed(0)
        unet, shape = build_unet("tiny", size, channels), (channels, size, size)
        pattern, images = torch.full(shape, -0.5), torch.rand(256, *shape) * 2 - 1
        index, eps = group_channels(unet, shape), torch.randn(batch, *shape)
        probe = Probe(unet, SCHEDULE, images[:batch], eps, late_timesteps(100))
        compare(
            "both importance passes",
            f"{size} x {size} pixels",
            "torch-pruning",
            "peer",
            lambda probe=probe, index=index: two_pass_importance(index, probe, lambda noise: noise - 0.5),
            lambda unet=unet, probe=probe: published_importance(unet, probe, (probe.eps, probe.eps - 0.5)),
            rounds,
        )
        full = two_pass_importance(index, probe, lambda noise: noise - 0.5)
        for every in (2, 5):
            fewer = Probe(unet, SCHEDULE, images[:batch], eps, late_timesteps(100, every=every))
            correlations = [rank_correlation(a, b) for a, b in zip(full, two_pass_importance(index, fewer, lambda noise: noise - 0.5), strict=True)]
            print(f"  every {every}th timestep: rank correlation {min(correlations):.3f} with all")
        teacher = build_unet("tiny", size, channels).eval().requires_grad_(False)
        compare(
            f"{count} steps of tuning",
            f"{size} x {size} pixels",
            "bare loop",
            "naive",
            lambda unet=unet, teacher=teacher, images=images: fit(Repair(unet, teacher, SCHEDULE, Pictures(images), 48), count),
            lambda unet=unet, teacher=teacher, images=images: bare_tuning(unet, teacher, images, count, 48),
            rounds,
        )
        if options.quick:
            break
        before = torch.get_num_threads()
        torch.set_num_threads(CORES)
        report = cleanse(unet, BETAS, Trigger(pattern, "ddim"), recipe=Recipe(), progress=None)
        torch.set_num_threads(before)
        parts = ", ".join(f"{part} {took:.1f} s" for part, took in report.seconds.items())
        if size == 16:
            record(
                "fast cleansing with its new scan",
                f"{size} x {size} pixels",
                sum(report.seconds.values()),
                60,
                f"60 s, on {CORES} cores",
                kind="bound",
                target=1,
            )
        print(f"cleanse, {size} px, {CORES} threads: {sum(report.seconds.values()):.1f} s ({parts})")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
