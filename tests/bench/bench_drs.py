"""Dual smoothing: certifying beside the straightforward loop, as its size grows, and training under Trainer beside a bare loop, in one process.

python tests/bench/bench_drs.py [--device cuda] [--threads 1] [--rounds 5] [--quick]

The straightforward loop is written as published codes are: the image is repeated, the mask is built pixel by pixel for every batch, noise is drawn
for whole images and cut, each branch's predictions go to the host and are counted there.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import lightning as L
import numpy as np
import torch
from timing import clock, record, timed
from torch.nn import functional as F

from projects.drs.certification import Plan
from projects.drs.data import CertificationData
from projects.drs.module import DualSmoothing

SIGMA = 0.35


def straightforward(model, image, draws, batch, device):
    """Count the votes of both branches for one image."""
    size, counts = image.shape[-1], np.zeros((2, 10), dtype=int)
    with torch.no_grad():
        for start in range(0, draws, batch):
            count = min(batch, draws - start)
            left = [[(row, column) for column in range(size) if row % 2 == column % 2] for row in range(size)]
            right = [[(row, column) for column in range(size) if row % 2 != column % 2] for row in range(size)]
            for branch, pixels in enumerate((left, right)):
                rows = torch.tensor([[row for row, _ in line] for line in pixels])
                columns = torch.tensor([[column for _, column in line] for line in pixels])
                copies = image.repeat(count, 1, 1, 1)
                noised = copies + torch.randn_like(copies) * SIGMA
                packed = noised[:, :, rows, columns]
                enlarged = F.interpolate(packed, size=(size, size), mode="nearest")
                normalised = (enlarged - torch.full_like(enlarged, 0.5)) / torch.full_like(enlarged, 0.25)
                for predicted in model.net.networks[branch](normalised).argmax(1).cpu().numpy():
                    counts[branch, predicted] += 1
    return counts


def certification(size, channels, backbone, draws, device, rounds):
    torch.manual_seed(0)
    model = DualSmoothing(size=size, channels=channels, backbone=backbone, sigma=SIGMA).eval().to(device)
    image = torch.rand(channels, size, size, device=device)
    classifiers = {name: Plan(SIGMA, draws, 100, precision=name).smooth(model, torch.device(device)) for name in ("float32", "bfloat16")}
    times = {"straightforward": [], "float32": [], "bfloat16": []}
    for number in range(rounds + 1):
        for name in times:
            began = clock(device)
            if name == "straightforward":
                straightforward(model, image, draws + 100, 1000, device)
            else:
                classifiers[name].certify(image[None], [number])
            if number:
                times[name].append((clock(device) - began) / (draws + 100) * 1e6)
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name in ("float32", "bfloat16"):
        setting = f"{backbone} at {size} pixels, {device}"
        record(f"a draw of both branches, {name}", setting, medians[name] / 1e6, medians["straightforward"] / 1e6, "loop as published")
    ratios = "  ".join(f"{name} {medians[name]:8.1f} ({medians['straightforward'] / medians[name]:.2f})" for name in ("float32", "bfloat16"))
    print(
        f"{backbone} at {size:3d} pixels: straightforward {medians['straightforward']:8.1f} microseconds a draw of both branches, ours {ratios}",
        flush=True,
    )


def training(epochs, folder, rounds):
    data = CertificationData()
    data.setup()
    quiet = dict.fromkeys(("enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)

    def under_trainer():
        from lightning.pytorch.loggers import CSVLogger

        trainer = L.Trainer(
            max_epochs=epochs, devices=1, accelerator="cpu", logger=CSVLogger(folder), limit_val_batches=0, default_root_dir=folder, **quiet
        )
        trainer.fit(DualSmoothing(schedule="onecycle", lr=3e-3), datamodule=data)
        return trainer.global_step

    def bare():
        model = DualSmoothing(schedule="onecycle", lr=3e-3)
        optimizer = torch.optim.Adam(model.net.parameters(), lr=3e-3)
        loader, steps = data.train_dataloader(), 0
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            for batch in loader:
                loss = 0
                for branch, classify in model.net.members():
                    part = model.net.split.take(branch)(batch["image"])
                    loss = loss + F.cross_entropy(classify(part + SIGMA * torch.randn_like(part)), batch["label"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                steps += 1
        return steps

    rates = {"under Trainer": [], "bare loop": []}
    for _ in range(rounds):
        for name, run in (("under Trainer", under_trainer), ("bare loop", bare)):
            steps, seconds = timed(run)
            rates[name].append(steps / seconds)
    ours, other = (statistics.median(values) for values in rates.values())
    record("training under the Trainer", "digits at 16 pixels", ours, other, "bare loop", unit="steps/s")
    print(
        f"training, digits at 16 pixels, both branches: {ours:.1f} steps/s under Trainer, {other:.1f} in a bare loop ({ours / other:.2f})", flush=True
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest size, to see that everything runs")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    print(torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)")
    settings = [(16, 1, "small", 4000), (32, 3, "small", 2000), (64, 3, "small", 1000), (32, 3, "resnet20", 300)]
    for size, channels, backbone, draws in [(16, 1, "small", 400)] if options.quick else settings:
        certification(size, channels, backbone, draws, options.device, options.rounds)
    with tempfile.TemporaryDirectory() as folder:
        training(1 if options.quick else 4, Path(folder), min(3, options.rounds))


if __name__ == "__main__":
    main()
