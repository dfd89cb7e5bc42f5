"""D-VAE: training steps and purification beside a straightforward version, as the size of images grows, in one process.

python tests/bench/bench_dvae.py [--device cuda] [--threads 1] [--rounds 3] [--width 64] [--quick]

The straightforward version is laid out as the published code is: the encoder is a whole ResNet-18 whose last stages and classifier are computed and
not used, tensors lie channels first, losses are fetched to the host in every step, and purified images leave the device batch by batch as float64.
"""

import argparse
import resource
from functools import partial

import numpy as np
import torch
from timing import medians, record
from torch import nn

from projects.dvae import losses
from projects.dvae.model import DVAE
from projects.dvae.purification import purify
from shared.backbones.resnets import BasicBlock


class Straightforward(nn.Module):
    """The same D-VAE behind a whole ResNet-18."""

    def __init__(self, net, width):
        super().__init__()
        self.net = net
        stages = [BasicBlock(2 * width, 2 * width, 1)]
        for level in (2, 4):
            stages += [BasicBlock(level * width, 2 * level * width, 2), BasicBlock(2 * level * width, 2 * level * width, 1)]
        self.rest, self.head = nn.Sequential(*stages), nn.Linear(8 * width, 10)

    def forward(self, images, labels, noise):
        found = self.net(images, labels, noise)
        logits = self.head(self.rest(found.latent.features).mean((2, 3)))
        return found, logits


def loss_of(found, images):
    rate = losses.kl_divergence(found.latent.mean, found.latent.log_variance)
    parts = [losses.reconstruction_loss(found.reconstruction, images), losses.separation_loss(found.reconstruction, found.perturbation, images)]
    return sum(parts) + losses.rate_hinge(rate, 1.0) + losses.energy_hinge(found.perturbation), [*parts, rate]


def training(size, width, device, batch):
    images, labels = torch.rand(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
    nets = [DVAE(10, (size, size), width=width).to(device) for _ in range(3)]
    ours, half = (net.to(memory_format=torch.channels_last) for net in nets[:2])
    other = Straightforward(nets[2], width).to(device)
    modules = {"ours": ours, "ours, bfloat16": half, "straightforward": other}
    optimizers = {name: torch.optim.Adam(module.parameters(), 5e-3) for name, module in modules.items()}
    last = images.contiguous(memory_format=torch.channels_last)
    shape = ours.noise_shape(size, size)

    def step(name):
        noise = torch.randn(batch, *shape, device=device)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=name == "ours, bfloat16"):
            found = other(images, labels, noise)[0] if name == "straightforward" else modules[name](last, labels, noise)
            loss, parts = loss_of(found, images)
        optimizers[name].zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(modules[name].parameters(), 5.0)
        optimizers[name].step()
        if name == "straightforward":
            [part.item() for part in parts]

    return {name: partial(step, name) for name in modules}


def purification(size, width, device, batch):
    images, labels = torch.rand(batch, 3, size, size, device=device), torch.randint(10, (batch,), device=device)
    nets = [DVAE(10, (size, size), width=width).to(device).eval() for _ in range(2)]
    straight = [Straightforward(net, width).to(device).eval() for net in nets]
    last = [DVAE(10, (size, size), width=width).to(device).eval().to(memory_format=torch.channels_last) for _ in nets]
    channels_last, indices = images.contiguous(memory_format=torch.channels_last), torch.arange(batch)

    @torch.no_grad()
    def plain():
        current, shape = images, nets[0].noise_shape(size, size)
        for module in straight:
            found, _ = module(current, labels, torch.randn(batch, *shape, device=device))
            noise = found.perturbation.cpu().numpy().astype(np.float64)
            current = torch.from_numpy((np.clip(current.cpu().numpy() - noise, 0, 1) * 255).astype(np.uint8)).to(device).float() / 255
        found, _ = straight[-1](current, labels, torch.randn(batch, *shape, device=device))
        return found.reconstruction.cpu().numpy()

    def ours():
        return [product.cpu() for product in purify(last, channels_last, labels, indices, 0).products]

    return {"ours": ours, "straightforward": plain}


WHY = "nearly all of its time are convolutions that both versions need"


def compare(name, size, versions, rounds, batch, device):
    times = medians(versions, rounds, device)
    for version, seconds in times.items():
        if version != "straightforward":
            what, setting = f"{name}{version.removeprefix('ours')}", f"{size} x {size}, {device}"
            plain = batch / times["straightforward"]
            record(what, setting, batch / seconds, plain, "as published", unit="images/s", target=1.5, reason=WHY)
    rates = "  ".join(f"{version} {batch / seconds:8.1f} images/s" for version, seconds in times.items())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratios = "  ".join(f"{times['straightforward'] / seconds:.2f}" for version, seconds in times.items() if version != "straightforward")
    print(f"{name}, {size} x {size}: {rates}  ratio {ratios}  (peak memory of the process {memory:.0f} MB)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest size, to see that everything runs")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    print(torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)", f"width {options.width}")
    for size in (16,) if options.quick else (16, 32, 64):
        arguments = (size, options.width, options.device, options.batch)
        compare("training", size, training(*arguments), options.rounds, options.batch, options.device)
        compare("purification to x3", size, purification(*arguments), options.rounds, options.batch, options.device)


if __name__ == "__main__":
    main()
