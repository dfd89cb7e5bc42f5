"""MoE-FFD: both mixtures of a block beside a loop over experts with boolean masks, and the whole ViT-B/16 beside plain LoRA, in one process.

python tests/bench/bench_moe_ffd.py [--device cuda] [--threads 1] [--rounds 3] [--batch 8] [--parts mixtures network] [--quick]

The loop is written as published codes are: rows of an expert are picked by a boolean mask, the expert's output is added there, and the sum of all
experts is added to the frozen layer's output. Plain LoRA of rank 8 is that of peft if it is installed, else this project's with one expert.
"""

import argparse
import resource

import timm
import torch
from timing import installed, medians, record
from torch import nn
from torch.nn import functional as F

from projects.moe_ffd.convolutions import difference_conv2d
from projects.moe_ffd.experts import AdapterMixture, LoraMixture
from projects.moe_ffd.model import build_detector

WIDTH = 768


def loop_of_lora(mixture, tokens, base):
    rows = tokens.flatten(0, 1)
    gates = mixture.router(rows).dense(len(mixture.ranks))
    delta, start = rows.new_zeros(len(rows), base.shape[-1]), 0
    for expert, rank in enumerate(mixture.ranks):
        mask = gates[:, expert] > 0
        if mask.any():
            down, up = mixture.down[start : start + rank], mixture.up[start : start + rank].T
            delta[mask] += gates[mask, expert, None] * F.linear(F.linear(rows[mask], down), up)
        start += rank
    return base + delta.view_as(base)


def loop_of_adapters(mixture, tokens, base):
    gates = mixture.router(tokens.mean(1)).dense(len(mixture.kinds))
    delta = torch.zeros_like(base)
    for expert, kind in enumerate(mixture.kinds):
        mask = gates[:, expert] > 0
        if mask.any():
            down = F.linear(tokens[mask], mixture.down_weight[expert], mixture.down_bias[expert])
            convolution = mixture.conv_weight[expert], mixture.conv_bias[expert], kind
            patches = difference_conv2d(down[:, 1:].transpose(1, 2).unflatten(2, mixture.grid), *convolution)
            first = difference_conv2d(down[:, 0, :, None, None], *convolution)
            hidden = torch.cat([first.flatten(2), patches.flatten(2)], dim=2).transpose(1, 2)
            delta[mask] += gates[mask, expert, None, None] * F.linear(hidden, mixture.up_weight[expert], mixture.up_bias[expert])
    return base + delta


def peak_memory(job, device):
    """Return MiB: what a job takes on the GPU, else the process's highest resident size so far."""
    if device != "cuda":
        job()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    torch.cuda.reset_peak_memory_stats()
    job()
    return torch.cuda.max_memory_allocated() / 2**20


def forward_of(function, mixture, tokens, base):
    def job():
        with torch.no_grad():
            function(mixture, tokens, base)

    return job


def step_of(function, mixture, tokens, base):
    upstream = torch.randn_like(base)

    def job():
        function(mixture, tokens.detach().requires_grad_(), base.detach()).backward(upstream)
        mixture.zero_grad()

    return job


def mixtures(batch, rounds, device):
    """One block's mixtures, forward in evaluation and a training step."""
    torch.manual_seed(0)
    pairs = {
        "LoRA mixture": (LoraMixture(WIDTH, 3 * WIDTH), loop_of_lora, 3 * WIDTH),
        "adapter mixture": (AdapterMixture(WIDTH), loop_of_adapters, WIDTH),
    }
    tokens = torch.randn(batch, 197, WIDTH, device=device)
    for stage, make in (("forward", forward_of), ("training step", step_of)):
        totals = {"ours": 0.0, "loop": 0.0}
        for name, (mixture, loop, outputs) in pairs.items():
            for parameter in mixture.parameters():
                nn.init.normal_(parameter, std=0.05)
            mixture.to(device).train(stage != "forward")
            base = torch.randn(batch, 197, outputs, device=device)
            found = medians({"ours": make(type(mixture).__call__, mixture, tokens, base), "loop": make(loop, mixture, tokens, base)}, rounds, device)
            totals = {way: totals[way] + found[way] for way in totals}
            print(f"{stage}, {name:15s}: {1e3 * found['ours']:7.1f} ms, loop {1e3 * found['loop']:7.1f} ms ({found['loop'] / found['ours']:.2f})")
        target = 2 if stage == "forward" else None
        record(f"both mixtures of a block, {stage}", f"width {WIDTH}, batch {batch}, {device}", *totals.values(), "loop over experts", target=target)
        print(
            f"{stage}, both           : {1e3 * totals['ours']:7.1f} ms, loop {1e3 * totals['loop']:7.1f} ms ({totals['loop'] / totals['ours']:.2f})"
        )


def plain_lora():
    """Return LoRA of rank 8 on queries, keys and values, and whose it is."""
    backbone = timm.create_model("vit_base_patch16_224", pretrained=False, num_classes=2)
    if not installed("peft"):
        return build_detector("lora", backbone, rank=8), "ours"
    from peft import LoraConfig, get_peft_model

    return get_peft_model(backbone, LoraConfig(r=8, lora_alpha=8, target_modules=["qkv"], modules_to_save=["head"])), "peft"


def network(batch, rounds, device, autocast):
    """ViT-B/16 at 224 pixels: forward and training step, images per second and peak memory."""
    images, labels = torch.rand(batch, 3, 224, 224, device=device), torch.arange(batch, device=device) % 2
    lora, source = plain_lora()
    nets = {"MoE": build_detector("moe", timm.create_model("vit_base_patch16_224", pretrained=False)), f"LoRA of {source}": lora}
    nets["full"] = build_detector("full", timm.create_model("vit_base_patch16_224", pretrained=False))
    for net in nets.values():
        net.to(device)

    def run(net, is_training):
        net.train(is_training)
        with torch.set_grad_enabled(is_training), torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = net(images)
        if is_training:
            loss = F.cross_entropy(logits.float(), labels)
            for balance in net.balance_losses().values() if hasattr(net, "balance_losses") else ():
                loss = loss + balance
            loss.backward()
            net.zero_grad()

    for stage, is_training in (("forward", False), ("training step", True)):
        jobs = {name: lambda net=net: run(net, is_training) for name, net in nets.items()}  # noqa: B023 - run before the next stage
        found = medians(jobs, rounds, device)
        setting, rates = f"ViT-B/16, batch {batch}, {device}{', bfloat16' * autocast}", {name: batch / seconds for name, seconds in found.items()}
        memory = {name: peak_memory(job, device) for name, job in jobs.items()}
        for name, kind, target in ((f"LoRA of {source}", "naive" if source == "ours" else "peer", 1 / 1.6), ("full", "naive", None)):
            beside = "full fine-tuning" if name == "full" else name
            given = {"kind": kind, "unit": "images/s", "target": target, "peak": memory["MoE"] if device == "cuda" else None}
            record(f"MoE-FFD, {stage}", setting, rates["MoE"], rates[name], beside, **given)
            if device == "cuda":
                record(f"MoE-FFD, {stage}, peak memory", setting, memory["MoE"], memory[name], beside, kind=kind, unit="MiB")
        for name, seconds in found.items():
            ratio = seconds / found[f"LoRA of {source}"]
            print(
                f"{stage}, ViT-B/16, {name:12s}: {batch / seconds:8.2f} images/s, {ratio:.2f} of plain LoRA's time, {memory[name]:.0f} MiB",
                flush=True,
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=("mixtures", "network"), default=["mixtures", "network"])
    parser.add_argument("--bf16", action="store_true", help="autocast the network to bfloat16")
    parser.add_argument("--quick", action="store_true", help="one round of one picture, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.batch = 1, 1
    torch.set_num_threads(options.threads)
    print(torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)")
    if "mixtures" in options.parts:
        mixtures(options.batch, options.rounds, options.device)
    if "network" in options.parts:
        network(options.batch, options.rounds, options.device, options.bf16)


if __name__ == "__main__":
    main()
