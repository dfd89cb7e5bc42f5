"""Training steps per second: the module under Trainer with all loggers, a bare PyTorch loop, and denoising-diffusion-pytorch.

uv run --group peers python tests/bench/bench_training.py [--quick]        4 minutes on two CPU cores

All three train the same U-Net on the same batches, with gradient clipping, a moving average of the weights and the same optimiser, in turn in one
process; printed are medians over rounds. The growth with the size of pictures is shown for 16 and 32 pixels.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from copy import deepcopy
from pathlib import Path

import lightning as L
import torch
from diffusers.optimization import get_cosine_schedule_with_warmup
from timing import installed, record
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from projects.diff_cleanse.data import DiffusionData
from projects.diff_cleanse.module import DiffusionTraining
from shared.callbacks import ProgressLines, ResumePoint
from shared.loggers import finish_loggers, make_loggers
from shared.runs import Run

STEPS, ROUNDS, BATCH = {16: 80, 32: 30}, {16: 5, 32: 3}, 64
SCHEDULE = {"timesteps": 100, "beta_start": 1e-3, "beta_end": 0.1, "lr": 2e-3, "warmup_steps": 20, "ema_decay": 0.99}


def batches(data: DiffusionData):
    while True:
        yield from data.train_dataloader()


class Clock(L.Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, *args) -> None:
        self.times.append(time.perf_counter())


def under_trainer(size: int, folder: str, number: int) -> list[float]:
    run, clock = Run(Path(folder) / "diff_cleanse" / f"{size}-{number}"), Clock()
    trainer = L.Trainer(
        default_root_dir=run.path, max_steps=STEPS[size], gradient_clip_val=1.0, log_every_n_steps=20, logger=make_loggers(run, "fit", "offline"),
        callbacks=[clock, ResumePoint(run.checkpoints, 100), ProgressLines(10)],
        enable_model_summary=False, enable_progress_bar=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(DiffusionTraining(size=size, **SCHEDULE), datamodule=DiffusionData(size=size, batch_size=BATCH))
    finish_loggers(trainer)
    return clock.times


def bare(size: int) -> list[float]:
    model, data = DiffusionTraining(size=size, **SCHEDULE), DiffusionData(size=size, batch_size=BATCH)
    data.setup()
    unet, schedule, times = model.unet.train(), model.schedule, []
    ema, average = deepcopy(unet).requires_grad_(False), get_ema_multi_avg_fn(0.99)
    optimizer = torch.optim.Adam(unet.parameters(), lr=2e-3)
    decay = get_cosine_schedule_with_warmup(optimizer, 20, STEPS[size])
    for _, batch in zip(range(STEPS[size]), batches(data), strict=False):
        images = batch["image"]
        t, eps = torch.randint(100, (len(images),)), torch.randn_like(images)
        loss = F.mse_loss(unet(schedule.add_noise(images, eps, t), t).sample, eps)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        decay.step()
        average(list(ema.parameters()), list(unet.parameters()), 0)
        times.append(time.perf_counter())
    return times


def peer(size: int) -> list[float]:
    from denoising_diffusion_pytorch import GaussianDiffusion
    from ema_pytorch import EMA

    class Wrapped(torch.nn.Module):
        channels, out_dim, self_condition, random_or_learned_sinusoidal_cond = 1, 1, False, False

        def __init__(self, unet: torch.nn.Module) -> None:
            super().__init__()
            self.unet = unet

        def forward(self, x, t, x_self_cond=None):
            return self.unet(x, t).sample

    data = DiffusionData(size=size, batch_size=BATCH)
    data.setup()
    diffusion = GaussianDiffusion(
        Wrapped(DiffusionTraining(size=size, **SCHEDULE).unet), image_size=size, timesteps=100, objective="pred_noise", beta_schedule="linear"
    )
    ema, optimizer, times = EMA(diffusion, beta=0.99, update_every=1), torch.optim.Adam(diffusion.parameters(), lr=2e-3), []
    for _, batch in zip(range(STEPS[size]), batches(data), strict=False):
        loss = diffusion((batch["image"] + 1) / 2)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(diffusion.parameters(), 1.0)
        optimizer.step()
        ema.update()
        times.append(time.perf_counter())
    return times


def rate(times: list[float]) -> float:
    """Steps per second after ten steps of warming up, loggers and all."""
    return (len(times) - 11) / (times[-1] - times[10])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of few steps, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        STEPS[16], ROUNDS[16] = 14, 1
    has_peer = installed("denoising_diffusion_pytorch")
    print(f"{torch.get_num_threads()} threads, batch {BATCH}; steps per second, medians")
    with tempfile.TemporaryDirectory() as folder:
        for size in (16,) if options.quick else (16, 32):
            rates: dict[str, list[float]] = {"trainer": [], "bare": [], "peer": []}
            for number in range(ROUNDS[size]):
                rates["trainer"].append(rate(under_trainer(size, folder, number)))
                rates["bare"].append(rate(bare(size)))
                rates["peer"].append(rate(peer(size)) if has_peer else float("nan"))
            to_bare = statistics.median(a / b for a, b in zip(rates["trainer"], rates["bare"], strict=True))
            to_peer = statistics.median(a / b for a, b in zip(rates["trainer"], rates["peer"], strict=True))
            trainer, loop, other = (statistics.median(rates[name]) for name in ("trainer", "bare", "peer"))
            what, setting = "training under the Trainer, loggers and all", f"{size} x {size} pixels, batch {BATCH}"
            record(what, setting, trainer, loop, "bare loop", unit="steps/s", target=0.95)
            if has_peer:
                record(what, setting, trainer, other, "denoising-diffusion-pytorch", kind="peer", unit="steps/s")
            print(
                f"{size} pixels: Trainer with CSV and W&B {trainer:.2f}, bare loop {loop:.2f} (ratio {to_bare:.3f}), "
                f"denoising-diffusion-pytorch {other:.2f} (ratio {to_peer:.2f}), {trainer * BATCH:.0f} pictures per second"
            )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
