"""Forgery search beside straightforward code, in one process.

python tests/bench/bench_forgery_nas.py [--parts inference search] [--device cuda] [--threads 1] [--rounds 3] [--quick]

inference: the folded evaluation network beside the plain one whose central differences are two convolutions each. The genotype is the released
one, with 12 cells.
search: a step of the search (alpha and beta, then weights, first order) beside a supernet as it is written, which computes all 11 candidates of every
edge one by one, with a ReLU and a shuffle each.

Peak memory on a CPU is what a job adds to the resident size of a forked process.
"""

import argparse
import copy
import multiprocessing
import resource

import torch
from timing import medians, record
from torch import nn
from torch.nn import functional as F

from projects.forgery_nas.candidates import module_key
from projects.forgery_nas.genotype import RELEASED, edges
from projects.forgery_nas.inference import count, fold
from projects.forgery_nas.network import ForgeryNet
from projects.forgery_nas.operations import CDConv2d, build_operation
from projects.forgery_nas.supernet import Supernet, gumbel


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
            memory = {name: peak_memory(job, options.device) for name, job in jobs.items()}
            found = medians(jobs, options.rounds, options.device)
            print(f"C = {channels}, {size} x {size} pixels, batch {options.batch}: {count(net, size).macs / 1e6:.0f} M multiply-adds an image")
            setting = f"C = {channels}, {size} x {size}, batch {options.batch}, {options.device}"
            fast, slow = (options.batch / found[name] for name in ("folded", "two terms"))
            record("inference, kernels folded", setting, fast, slow, "two convolutions a difference", unit="images/s", peak=memory["folded"])
            for name, seconds in found.items():
                ratio = found["two terms"] / seconds
                print(f"  {name:24s}: {options.batch / seconds:8.2f} images/s, {ratio:.2f} times two terms, {memory[name]:.0f} MiB", flush=True)


class Straightforward(nn.Module):
    """The supernet as the method reads: candidates and edges one by one, on contiguous tensors; its weights are copies of ours.

    With Gumbel noise the candidates are weighed by a hard Gumbel softmax; all of them are computed, as code does that has no sampled path.
    """

    def __init__(self, net):
        super().__init__()
        self.net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
        self.operations = nn.ModuleList(self._edges(number) for number in range(len(self.net.cells)))

    def _edges(self, number):
        cell, space = self.net.cells[number], self.net.table.space
        built = nn.ModuleList()
        for mixed, (_, source) in zip(cell.edges, edges(self.net.table.nodes), strict=True):
            stride = cell.stride if source < 2 else 1
            operations = nn.ModuleList()
            for name in space:
                operation = build_operation(name, cell.channels // cell.k, stride, affine=False)
                if name != "none":
                    for own, theirs in zip(operation.parameters(), mixed.candidates[module_key(name)].parameters(), strict=True):
                        own.data = theirs.data.clone(memory_format=torch.contiguous_format)
                if "pool" in name:
                    operation = nn.Sequential(operation, nn.BatchNorm2d(cell.channels // cell.k, affine=False))
                operations.append(operation)
            built.append(operations)
        return with_two_terms(built)

    def weights(self):
        outside = [weight for name, weight in self.net.named_parameters() if name not in ("alpha", "beta") and ".edges." not in name]
        return [*outside, *self.operations.parameters()]

    def forward(self, images, noise=None):
        net = self.net
        logits = net.alpha if noise is None else net.alpha + noise
        weights = logits.softmax(-1)
        if noise is not None:
            weights = F.one_hot(weights.argmax(-1), weights.shape[-1]) - weights.detach() + weights
        shares = torch.cat([part.softmax(-1) for part in net.beta.split([2 + node for node in range(net.table.nodes)], dim=-1)], dim=-1)
        before_last = last = net.stem(images)
        for cell, operations in zip(net.cells, self.operations, strict=True):
            kind = cell.stride - 1
            states = [cell.preprocess0(before_last), cell.preprocess1(last)]
            totals = [0] * net.table.nodes
            for number, (node, source) in enumerate(edges(net.table.nodes)):
                width = cell.channels // cell.k
                part, rest = states[source][:, :width], states[source][:, width:]
                mixed = sum(weight * operation(part) for weight, operation in zip(weights[kind, number], operations[number], strict=True))
                rest = F.max_pool2d(rest, 2) if cell.stride == 2 and source < 2 else rest
                totals[node] = totals[node] + shares[kind, number] * F.channel_shuffle(torch.cat([mixed, rest], dim=1), cell.k)
                if source == 1 + node:
                    states.append(totals[node])
            before_last, last = last, torch.cat(states[2:], dim=1)
        return net.linear(last.mean((2, 3)))


def step(run, images, labels, architecture, weights):
    """Compute both gradients of the first order and move along that of the architecture."""
    for pixels, parameters, rate in ((images[0], architecture, 6e-4), (images[1], weights, 0.0)):
        gradients = torch.autograd.grad(F.cross_entropy(run(pixels), labels), parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient, alpha=rate)


def search_at(options, channels, size, batch):
    """Seconds of a search step and peak memory."""
    torch.manual_seed(0)
    net = Supernet(channels=channels, layers=options.layers).to(options.device)
    tied = Supernet(channels=channels, layers=options.layers, share_theta=True).to(options.device)
    slow = Straightforward(net).to(options.device)
    images = torch.rand(2, batch, 3, size, size, device=options.device)
    labels = torch.arange(batch, device=options.device) % 2
    noise = gumbel(net.alpha.shape, torch.Generator().manual_seed(0)).to(options.device)
    runs = {
        "straightforward, sampled": (lambda pixels: slow(pixels, noise), slow.net, slow.weights()),
        "ours, sampled": (lambda pixels: net(pixels, net.sample(noise, 1.0)), net, net.weight_parameters()),
        "straightforward, mixture": (slow, slow.net, slow.weights()),
        "ours, mixture": (net, net, net.weight_parameters()),
        "ours, mixture, shared theta": (tied, tied, tied.weight_parameters()),
    }
    jobs = {
        name: lambda run=run, net=net, weights=weights: step(run, images, labels, net.architecture_parameters(), weights)
        for name, (run, net, weights) in runs.items()
    }
    memory = {name: peak_memory(job, options.device) for name, job in jobs.items()}  # first: what earlier jobs freed is not all given back
    with torch.no_grad():
        logits = {name: run(images[0]) for name, (run, *_) in runs.items()}
    for way in ("sampled", "mixture"):
        torch.testing.assert_close(logits[f"ours, {way}"], logits[f"straightforward, {way}"], rtol=1e-3, atol=1e-4)
    found = medians(jobs, options.rounds, options.device)
    print(f"C = {channels}, L = {options.layers}, K = 4, {size} x {size} pixels, batch {batch}")
    setting = f"C = {channels}, {size} x {size}, batch {batch}, {options.device}"
    for way, like, target in (("sampled", "sampled", 3), ("mixture", "mixture", 1.3), ("mixture, shared theta", "mixture", None)):
        record(
            f"step of the search, {way}",
            setting,
            found[f"ours, {way}"],
            found[f"straightforward, {like}"],
            "candidates one by one",
            target=target,
            peak=memory[f"ours, {way}"],
        )
    if plain_memory := memory["straightforward, sampled"]:
        record("peak of a step, sampled", setting, max(1.0, memory["ours, sampled"]), plain_memory, "candidates one by one", unit="MiB")
    for name, seconds in found.items():
        ratio = found["straightforward, sampled" if "sampled" in name else "straightforward, mixture"] / seconds
        print(f"  {name:27s}: {seconds:6.3f} s a step, {ratio:5.2f} times, {memory[name]:.0f} MiB", flush=True)


def search(options):
    """The search by channels, size of the images and batch; sampled paths, and the mixture of all candidates."""
    for channels, size, batch in ((8, 32, 2),) if options.quick else ((8, 32, 16), (16, 32, 16), (16, 64, 8)):
        search_at(options, channels, size, batch)


PARTS = {"inference": inference, "search": search}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--channels", nargs="+", type=int, default=[16, 36], help="of the evaluation network")
    parser.add_argument("--sizes", nargs="+", type=int, default=[64], help="of its images")
    parser.add_argument("--layers", type=int, default=4, help="cells of the supernet")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.channels, options.sizes, options.batch = 1, [16], [32], 1
    torch.set_num_threads(options.threads)
    print(torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)")
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
