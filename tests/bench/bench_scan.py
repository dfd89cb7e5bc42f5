"""Trigger inversion: iterations per second of ours beside the straightforward version, and the time of whole scans.

uv run python tests/bench/bench_scan.py [--quick]        3 minutes on two CPU cores

The straightforward version takes one pattern at a time, stock scheduler objects of diffusers one sampler step at a time, and the network as it was
loaded: weights that want gradients, contiguous layout. Both minimise the same loss on equal batches; printed are medians over alternating rounds.
The network is random, of the size that the project trains; times do not depend on its weights.
"""

from __future__ import annotations

import argparse
import resource
import statistics

import torch
from diffusers import DDIMScheduler
from timing import record, timed

from projects.diff_cleanse.inversion import disagreement, frozen, objective, out_of_range
from projects.diff_cleanse.scan import scan
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.backbones.unets import build_unet

BETAS = {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1, "beta_schedule": "linear"}
BATCH, UPDATES, ROUNDS = 12, 8, 3
CORES = 2
"""For which the time of a whole scan was asked."""


def ours(unet, shape, starts, steps, eta):
    """Update all patterns side by side, `UPDATES` times each."""
    schedule, patterns = NoiseSchedule.linear(100, 1e-3, 0.1), torch.tensor(starts).view(-1, 1, 1, 1).repeat(1, *shape).requires_grad_()
    optimizer = torch.optim.Adam([patterns], lr=0.1)
    with frozen(unet):
        for _ in range(UPDATES):
            loss, _ = objective(unet, schedule, patterns, torch.randn(BATCH, *shape), steps=steps, eta=eta)
            [patterns.grad] = torch.autograd.grad(loss.sum(), [patterns])
            optimizer.step()


def straightforward(unet, shape, starts, steps, eta):
    """Invert start after start with stock scheduler objects."""
    scheduler = DDIMScheduler(**BETAS, clip_sample=False, timestep_spacing="trailing")
    for start in starts:
        pattern = torch.full(shape, start, requires_grad=True)
        optimizer = torch.optim.Adam([pattern], lr=0.1)
        for _ in range(UPDATES):
            scheduler.set_timesteps(steps)
            x = torch.randn(BATCH, *shape) + pattern
            for t in scheduler.timesteps:
                x = scheduler.step(unet(x, t).sample, t, x, eta=eta).prev_sample
            images = x / 2 + 0.5
            loss = disagreement(images) + out_of_range(images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def seconds(run, *arguments):
    return timed(lambda: run(*arguments))[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest size, to see that everything runs")
    options = parser.parse_args()
    rounds = 1 if options.quick else ROUNDS
    print(f"{torch.get_num_threads()} CPU threads, batch {BATCH}, median of {rounds} alternating rounds; pattern updates per second")
    print("picture  starts  steps eta   ours  straightforward  ratio")
    for size, channels in ((16, 1),) if options.quick else ((16, 1), (32, 3)):
        torch.manual_seed(0)
        unet, shape = build_unet("tiny", size, channels), (channels, size, size)
        for starts in ((-0.8,), (-0.8, -0.5)):
            for steps, eta in ((5, 0.0),) if options.quick else ((5, 0.0), (10, 1.0)):
                times = [[seconds(run, unet, shape, starts, steps, eta) for run in (ours, straightforward)] for _ in range(rounds)]
                mine, theirs = (UPDATES * len(starts) / statistics.median(column) for column in zip(*times, strict=True))
                setting = f"{size} x {size} pixels, {len(starts)} start(s), {steps} steps, eta {eta:g}"
                record("inversion of triggers", setting, mine, theirs, "schedulers of diffusers, one start at a time", unit="updates/s")
                print(f"{size:5}px {len(starts):7} {steps:6} {eta:3g} {mine:6.1f} {theirs:16.1f} {mine / theirs:6.2f}")
    unet = build_unet("tiny", 16, 1)
    torch.set_num_threads(CORES)
    for methods in (["elijah"],) if options.quick else (["gradient"], ["bbti"], ["elijah"], ["terd"]):
        report = scan(unet, BETAS, methods=methods)
        parts = ", ".join(f"{finding.sampler} {finding.seconds:.1f} s" for finding in report.findings)
        if methods == ["gradient"]:
            bound, spread = f"40 s, on {CORES} cores", "runs differ by 2 s, around the bound"
            record("fast scan under three samplers", "16 x 16 pixels", report.seconds, 40, bound, kind="bound", target=1, reason=spread)
        print(f"scan by {methods[0]:9} fast, {CORES} threads: {report.seconds:5.1f} s ({parts})")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
