"""Our smoothing engine beside Cohen's loop and ART: same network, same number of draws, in one process, in alternating rounds.

python tests/bench/bench_smoothing.py [--device cuda] [--threads 1] [--quick]

Three comparisons: time of a draw at two sizes of images; peak memory as the number of draws grows; and a grid of radii with early stopping against a
fixed number of draws. Cohen's own batches of 1000 cost a CPU half of their time in page faults, as their tensors are too large for the allocator to
keep; the loop is therefore timed with smaller ones, too, and its faster time is what early stopping is compared with.
"""

import argparse
import math
import multiprocessing
import resource
import statistics
import warnings

import numpy as np
import torch
from timing import installed, record, timed
from torch import nn

from shared.smoothing import Branch, Budget, Placed, Placement, SmoothedClassifier, Smoothing, folded

CLASSES, SIGMA, MEAN, STD = 10, 0.5, (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


def network(seed=0):
    torch.manual_seed(seed)
    layers, before = [], 3
    for width in (32, 64, 64):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, CLASSES)).eval()


class MaterialisedNormalisation(nn.Module):
    """Normalises as Cohen's code does: mean and deviation are spread over all pixels of the batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN))
        self.register_buffer("std", torch.tensor(STD))

    def forward(self, images):
        batch, _, height, width = images.shape
        mean, std = (values.repeat((batch, height, width, 1)).permute(0, 3, 1, 2) for values in (self.mean, self.std))
        return (images - mean) / std


class CohensLoop:
    """Counts votes as Cohen et al. 2019 do: whole batches of copies, noise, network, and a loop over the predictions on the host."""

    def __init__(self, model, batch_size):
        self.model, self.batch_size = model, batch_size

    def counts(self, image, draws):
        found = np.zeros(CLASSES, dtype=int)
        with torch.no_grad():
            while draws > 0:
                size = min(self.batch_size, draws)
                draws -= size
                batch = image.repeat((size, 1, 1, 1))
                predicted = self.model(batch + torch.randn_like(batch) * SIGMA).argmax(1)
                for index in predicted.cpu().numpy():
                    found[index] += 1
        return found

    def certify(self, image, draws):
        self.counts(image, 100)
        return self.counts(image, draws)


def ours(net, size, draws, kind="float32", batch_size=256, device="cpu", radii=(), **settings):
    """Return our classifier; "float32" takes the network as it is, the others fold its normalisations and lay channels last."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    fast = (net if kind == "float32" else folded(net)).to(device, dtype)
    fast = fast if kind == "float32" else fast.to(memory_format=torch.channels_last)
    placement = Placement(torch.arange(3 * size * size).view(3, size, size), MEAN, STD).to(device)
    return SmoothedClassifier(
        [Branch(Placed(placement, fast))],
        CLASSES,
        Smoothing((SIGMA,), "main"),
        Budget(100, draws, radii),
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        channels_last=kind != "float32",
        **settings,
    )


def art_classifier(net, size, device="cpu"):
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    model = nn.Sequential(MaterialisedNormalisation(), net).to(device)
    options = {"sample_size": 100, "scale": SIGMA, "alpha": 0.001, "device_type": "gpu" if device == "cuda" else "cpu"}
    return PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), (3, size, size), CLASSES, **options)


def seconds(run, device):
    return timed(run, device)[1]


def speed(size, draws, rounds, device):
    """Time of a draw; return that of Cohen's loop with the better batches."""
    from copy import deepcopy

    net = network()
    image, reference = torch.rand(3, size, size), nn.Sequential(MaterialisedNormalisation(), deepcopy(net)).to(device)
    loops = {batch: CohensLoop(reference, batch) for batch in (1000, 256)}
    runs = {f"Cohen's loop, batches of {batch}": lambda loop=loop: loop.certify(image.to(device), draws) for batch, loop in loops.items()}
    if installed("art"):
        peer, array = art_classifier(deepcopy(net), size, device), image[None].numpy()
        runs["ART, batches of 1000"] = lambda: peer.certify(array, n=draws, batch_size=1000)
    names = {"float32": "ours, float32", "folded": "ours, float32, folded, channels last", "bfloat16": "ours, bfloat16, folded, channels last"}
    for kind, name in names.items():
        for batch in (256, 1000) if device == "cuda" else (256,):
            classifier = ours(deepcopy(net), size, draws, kind, batch, device)
            runs[f"{name}, batches of {batch}"] = lambda classifier=classifier: classifier.certify(image[None])
    times = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            took = seconds(run, device)
            if number:  # the first round warms up
                times[name].append(took)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    note(medians, size, draws, device)
    for name, took in medians.items():
        print(f"{f'{size}x{size}: {name}':60} {took * 1e6 / (draws + 100):10.1f} {first / took:8.2f}", flush=True)
    return min(list(medians.values())[: len(loops)]) / (draws + 100)


def note(medians, size, draws, device):
    """Record ours, as certify does it, beside Cohen's loop as published and with the better batches, and beside ART."""
    setting = f"{size} x {size} pixels, {device}"
    for kind, target in (("float32", 1.15), ("bfloat16", 2)):
        ours = min(took for name, took in medians.items() if name.startswith(f"ours, {kind}, folded")) / (draws + 100)
        for name, took in medians.items():
            if not name.startswith("ours"):
                asked = {"target": target} if size == 32 and name.endswith("loop, batches of 1000") else {}
                record(f"a draw, {kind}", setting, ours, took / (draws + 100), name, kind="peer" if "ART" in name else "naive", **asked)


def memory_of(name, draws, queue):
    """Certify one image in a process of its own and report by how many MB that raised its peak."""
    torch.set_num_threads(1)
    net, image = network(), torch.rand(1, 3, 32, 32)
    if name == "ours":
        classifier = ours(net, 32, draws)
        small, run = ours(net, 32, 300), lambda: classifier.certify(image)
        small.certify(image)
    else:
        peer = art_classifier(net, 32)
        peer.certify(image.numpy(), n=300, batch_size=256)
        run = lambda: peer.certify(image.numpy(), n=draws, batch_size=256)  # noqa: E731
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run()
    queue.put((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


def memory(counts):
    spawn, last = multiprocessing.get_context("spawn"), {}
    for name in ("ours", "ART") if installed("art") else ("ours",):
        grown = []
        for draws in counts:
            queue = spawn.Queue()
            process = spawn.Process(target=memory_of, args=(name, draws, queue))
            process.start()
            grown.append(queue.get(timeout=300))
            process.join()
        last[name] = max(1.0, grown[-1])
        print(f"{f'peak memory beyond that of 300 draws, {name}':60} " + " ".join(f"{mb:8.1f} MB" for mb in grown), flush=True)
    if "ART" in last:
        record("peak memory beyond that of 300 draws, at least 1", f"{counts[-1]} draws", last["ours"], last["ART"], "ART", kind="peer", unit="MiB")


def templates(count, size, seed):
    """Draw images of ten classes, each a smooth pattern of its own, some of them hard to tell."""
    patterns = nn.functional.interpolate(torch.rand(CLASSES, 3, 4, 4, generator=torch.Generator().manual_seed(7)), size, mode="bilinear")
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    share = 0.35 + 0.65 * torch.rand(count, 1, 1, 1, generator=generator)
    others = patterns[torch.randint(CLASSES, (count,), generator=generator)]
    return share * patterns[labels] + (1 - share) * others, labels


def trained(steps=150):
    """Train the network under noise until its smoothed answers differ in how sure they are."""
    net = network(1).train()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (MEAN, STD))
    for step in range(steps):
        images, labels = templates(128, 32, step)
        loss = nn.functional.cross_entropy(net((images + SIGMA * torch.randn_like(images) - mean) / std), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return net.eval()


def early(draw_seconds, count, device):
    """A grid of radii with early stopping; what the fixed number of draws takes follows from the time of a draw."""
    from copy import deepcopy

    net, radii, most = trained(), tuple(SIGMA * r for r in (0.25, 0.5, 0.75, 1.0)), 100_000
    images, _ = templates(count, 32, 10_000)
    fixed = count * (most + 100)
    for kind in ("float32", "bfloat16"):
        classifier = ours(deepcopy(net), 32, most, kind, device=device, radii=radii)
        classifier.certify(images[:2])
        results: list = []
        took = seconds(lambda: results.extend(classifier.certify(images)), device)  # noqa: B023
        drawn = sum(result.draws + 100 for result in results)
        passed = [sum(result.certificate.radius >= r for result in results) for r in radii]
        setting = f"{count} images, 4 radii, {device}"
        record(f"fewer draws by stopping early, {kind}", setting, drawn / count, most, f"n = {most}", unit="draws", target=3)
        record(f"less time by stopping early, {kind}", setting, took / count, (most + 100) * draw_seconds, "Cohen's faster loop, computed", target=6)
        print(f"radii {radii}, {kind}: {count} images, certified {passed}, mean {drawn / count:.0f} draws", flush=True)
        print(f"{'  fewer draws than ' + str(most):60} {fixed / drawn:10.1f}")
        print(f"{'  less time than Cohen takes for these':60} {fixed * draw_seconds / took:10.1f}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=4000)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="one round of few draws, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.draws, options.images = 1, 400, 2
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    name = torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)"
    print(f"{name}, median of {options.rounds} alternating rounds\n{'':60} {'us a draw':>10} {'ratio':>8}")
    draw_seconds = math.nan
    for size, share in ((64, 4), (32, 1)):
        draw_seconds = speed(size, options.draws // share, options.rounds, options.device)
    if options.device == "cpu":
        memory((400,) if options.quick else (1000, 4000, 16_000))
    early(draw_seconds, options.images, options.device)


if __name__ == "__main__":
    main()
