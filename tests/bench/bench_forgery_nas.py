"""Forgery search: the folded evaluation network beside the plain one whose central differences are two convolutions each, in one process.

python tests/bench/bench_forgery_nas.py [--parts inference] [--device cuda] [--threads 1] [--rounds 5] [--batch 4] [--channels 16 36] [--sizes 64]

The genotype is the released one, with 12 cells. Peak memory on a CPU is what a job adds to the resident size of a forked process.
"""

import argparse
import copy
import multiprocessing
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

from projects.forgery_nas.genotype import RELEASED
from projects.forgery_nas.inference import count, fold
from projects.forgery_nas.network import ForgeryNet
from projects.forgery_nas.operations import CDConv2d


class TwoTerms(nn.Module):
    """A central difference convolution as its definition reads: the vanilla response less theta times the centre term."""

    def __init__(self, folded):
        super().__init__()
        self.weight, self.layer = folded.weight, folded

    def forward(self, features):
        layer = self.layer
        vanilla = F.conv2d(features, self.weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        if layer.theta == 0:
            return vanilla
        return vanilla - layer.theta * F.conv2d(features, self.weight.sum((2, 3), keepdim=True), None, layer.stride, 0, 1, layer.groups)


def with_two_terms(net):
    """Return a copy with every central difference convolution as two."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, CDConv2d):
                setattr(parent, name, TwoTerms(child))
    return net


def measure(jobs, rounds, device):
    """Return the median seconds of each job, run in turns; `jobs` maps names to functions."""
    times = {name: [] for name in jobs}
    for number in range(rounds + 1):
        for name, job in jobs.items():
            began = time.perf_counter()
            job()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def _grown(job, pipe):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    job()
    pipe.send((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


def peak_memory(job, device):
    """Return the MiB that a job takes beyond what is there before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        job()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_grown, args=(job, sender))
    process.start()
    grown = receiver.recv()
    process.join()
    return grown


def inference(options):
    """Images per second and peak memory of the evaluation network, by channels and size of the images."""
    for channels in options.channels:
        torch.manual_seed(0)
        net = ForgeryNet(RELEASED, channels).eval().to(options.device)
        slow = with_two_terms(net)
        nets = {"two terms": slow, "two terms, channels last": copy.deepcopy(slow), "one kernel": net, "folded": fold(net)}
        slow.to(memory_format=torch.contiguous_format)
        for size in options.sizes:
            images = torch.rand(options.batch, 3, size, size, device=options.device)

            def run(net, images=images):
                with torch.inference_mode():
                    return net(images)

            for name, other in nets.items():
                torch.testing.assert_close(run(other), run(net), rtol=1e-3, atol=1e-4, msg=f"{name} computes something else")
            jobs = {name: lambda other=other: run(other) for name, other in nets.items()}
            found = measure(jobs, options.rounds, options.device)
            print(f"C = {channels}, {size} x {size} pixels, batch {options.batch}: {count(net, size).macs / 1e6:.0f} M multiply-adds an image")
            for name, seconds in found.items():
                ratio, memory = found["two terms"] / seconds, peak_memory(jobs[name], options.device)
                print(f"  {name:24s}: {options.batch / seconds:8.2f} images/s, {ratio:.2f} times two terms, {memory:.0f} MiB", flush=True)


PARTS = {"inference": inference}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", nargs="+", type=int, default=[16, 36])
    parser.add_argument("--sizes", nargs="+", type=int, default=[64])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)")
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
