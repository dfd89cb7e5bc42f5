"""Our sampling loop beside stock diffusers schedulers stepping one timestep at a time: same network, noise and steps, in one process.

python tests/bench/bench_sampling.py [--quick]        2 minutes on two CPU cores
"""

import argparse
import statistics

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from timing import record, timed

from projects.diff_cleanse.sampling import sample
from projects.diff_cleanse.schedule import NoiseSchedule
from shared.backbones.unets import build_unet


def stock(scheduler, net, x, steps):
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t).sample, t, x).prev_sample
    return x


def seconds(run):
    return timed(run)[1]


class Nothing:
    """A network that costs nothing, so that only the loops are timed."""

    def __init__(self, sample):
        self.sample = sample


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of one picture, to see that everything runs")
    options = parser.parse_args()
    rounds = 1 if options.quick else 3
    schedule, betas = NoiseSchedule.linear(100, 1e-3, 0.1), {"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1, "clip_sample": False}
    unet, threads = build_unet("tiny", 16, 1).eval(), torch.get_num_threads()
    print(f"{threads} CPU threads, median of {rounds} alternating rounds, 100 steps of 16 x 16 images")
    print("sampler network batch   ours s  stock s  stock/ours")
    for name, kind in (("ddim", DDIMScheduler), ("ddpm", DDPMScheduler)):
        for network, net in (("U-Net", unet), ("none", lambda x, t: Nothing(x))):
            for batch in (1,) if options.quick else (1, 16, 64):
                x_T, scheduler = torch.randn(batch, 1, 16, 16), kind(**betas)
                runs = (lambda: sample(net, x_T, schedule, name, 100), lambda: stock(scheduler, net, x_T, 100))  # noqa: B023
                times = [[seconds(run) for run in runs] for _ in range(rounds)]
                ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
                what = f"sampling, {name}{', the loop without its network' * (network == 'none')}"
                record(what, f"100 steps, batch {batch}", ours, theirs, "schedulers of diffusers", kind="peer")
                print(f"{name:7} {network:7} {batch:5} {ours:8.3f} {theirs:8.3f} {theirs / ours:11.2f}")


if __name__ == "__main__":
    main()
