"""HODINet beside straightforward code with the same weights, and beside peers.

uv run python tests/bench/bench_hodinet.py [--parts relation,channels,model,step,metrics,gpu] [--threads 1] [--rounds 3] [--quick]

relation: the read-out of HOSF, exact, by columns, beside the stored N x N matrix, with 64 channels and N = side^2 places; a side of 64 is stage 1 of
a picture of 256 x 256 pixels, 96 that of 384 x 384.
channels: the maxima of HOCF's outer product in closed form beside the product itself.
model: inference of the finest map, beside the straightforward network (stored relation, stored outer product, four maps) and segmentation networks of
timm with about as many parameters: an encoder of four channels, colour and depth, and a plain feature pyramid.
step: a training step, beside the straightforward network with the SSIM's windows as convolutions of 11 x 11.
metrics: MAE, S, E, F and weighted F beside the loop over pictures of pysodmetrics, for maps of one object that are 0 in most of the background, as of
a trained network; the same with noise everywhere; and noisy ones of blobs all over the picture, the worst case.
gpu: inference and training steps on a GPU, in float32 and with autocast to bfloat16; with --device cpu it runs on tiny encoders, to check it.

Contestants run in turns after one round to warm up; medians of the rounds are printed, of the wall's clock and of the process's CPU time, which other
work on the machine lengthens least; throughput is of CPU time where one thread computes. `times` is how many times faster than the straightforward
version, `apart` the greatest difference from its results, as a part of the greatest of them. Peak memory is how far the peak resident size (VmHWM,
which is reset first; Linux) rises above what a process of the contestant's own holds before it runs; on a GPU it is what the allocator reports.
"""

import argparse
import statistics
import time
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from memory import MIB, difference, isolated, on_gpu
from scipy import ndimage
from timing import installed, record
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from projects.hodinet.fusion import outer_maxima, outer_maxima_literal
from projects.hodinet.losses import saliency_loss
from projects.hodinet.metrics import SaliencyMetrics
from projects.hodinet.model import HODINet
from projects.hodinet.readout import relation_readout

PLAIN = "straightforward"
TINY, SMALL, FULL = ("tiny_transformer", "tiny_cnn"), ("pvt_v2_b0", "resnet50"), ("pvt_v2_b3", "resnet101")
SIDES = (32, 64, 96)
SIZES = ((256, 256), (480, 640))
CALLS = 300
IMPORTED = ["timm", "py_sod_metrics", "torch.utils.flop_counter", *(f"projects.hodinet.{name}" for name in ("losses", "metrics", "model"))]


def compare(title, contestants, options, count=1, unit="pictures", device="cpu", tolerance=1e-3, beside=PLAIN, targets=None):
    """Print a table of contestants.

    Args:
        title: what is measured.
        contestants: functions with their arguments, by name; a function builds a job, which returns tensors. What is named PLAIN is the measure.
        options: of the command line.
        count: units that a job works through.
        unit: their name.
        device: `cpu` or `cuda`.
        tolerance: of `apart`, for contestants whose name begins with ours.
        beside: whose work that of PLAIN is, where it is a library's.
        targets: ratios of `time` and `memory` that were asked for, of every way or the one named by `of`, and the `reason` for less.
    """
    jobs = {name: build(*arguments) for name, (build, *arguments) in contestants.items()}
    results, times = {}, {name: [] for name in jobs}
    for number in range(options.rounds + 1):
        for name, job in jobs.items():
            began = clocks(device)
            found = job()
            if number:
                times[name].append([after - before for before, after in zip(began, clocks(device), strict=True)])
            else:
                results[name] = [each.detach().double().cpu() for each in found]
    seconds = {name: [statistics.median(each) / count for each in zip(*values, strict=True)] for name, values in times.items()}
    peaks = {name: on_gpu(job) for name, job in jobs.items()} if device == "cuda" else {}
    if device != "cuda":
        peaks = {name: isolated(IMPORTED, options.threads, *contestants[name]) for name in jobs}
    del jobs
    note(title, seconds, peaks, options.threads == 1 and device == "cpu", beside, targets or {})
    print(f"\n{title}\n  {'':24} {'wall ms':>9} {'CPU ms':>9} {'times':>7} {'of CPU':>7} {unit + '/s':>11} {'peak MiB':>9} {'apart':>8}")
    for name, (wall, cpu) in seconds.items():
        ratios = [f"{slow / fast:7.2f}" for slow, fast in zip(seconds[PLAIN], (wall, cpu), strict=True)] if PLAIN in seconds else ["      -"] * 2
        apart = difference(results[name], results[PLAIN]) if PLAIN in results and name.startswith("ours") else None
        second = cpu if options.threads == 1 and device == "cpu" and "2 threads" not in name else wall
        end = f"{1 / second:11.1f} {peaks[name]:9.1f}"
        print(f"  {name:24} {1000 * wall:9.3f} {1000 * cpu:9.3f} {' '.join(ratios)} {end} {'-' if apart is None else f'{apart:.0e}':>8}", flush=True)
        if apart is not None and not apart <= tolerance:
            raise AssertionError(f"{title}: {name} is {apart:.1e} apart from {PLAIN}")


def note(title, seconds, peaks, is_cpu, beside, targets):
    """Record ours beside the others: times of the process where one thread computes, and peak memory where it was asked for."""
    what, _, size = title.partition(": ")
    times = {name: cpu if is_cpu and "2 threads" not in name else wall for name, (wall, cpu) in seconds.items()}
    kind = "naive" if beside == PLAIN else "peer"
    for name in (name for name in times if name.startswith("ours") and PLAIN in times):
        way = f"{what}{name.removeprefix('ours')}"
        target = targets.get("time") if way == targets.get("of", way) else None
        record(way, size, times[name], times[PLAIN], beside, kind=kind, target=target, reason=targets.get("reason", ""), peak=peaks[name])
        if "memory" in targets:
            record(f"{way}, peak memory", size, peaks[name], peaks[PLAIN], beside, unit="MiB", target=targets["memory"])
    for name in (name for name in times if what == "model" and name not in ("ours", PLAIN)):
        record(what, size, times["ours"], times[name], f"{name} of timm with a feature pyramid", kind="peer")


def clocks(device):
    """Return the seconds of the wall's clock and of the process's CPU time."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def relation_job(side, chunk, backward):
    generator = torch.Generator().manual_seed(0)
    r, d = (torch.randn(1, 64, side, side, generator=generator).relu().requires_grad_(backward) for _ in range(2))
    weights = torch.randn(1, 64, side**2, generator=generator)

    def job():
        with torch.set_grad_enabled(backward):
            gathered = relation_readout(r, d, chunk=chunk)
            return [gathered, *(torch.autograd.grad((gathered * weights).sum(), (r, d)) if backward else ())]

    return job


def relation(options):
    available = next(1024 * int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable"))
    for backward in (False, True):
        for side in options.sides:
            matrix = 4 * side**4
            contestants = {"ours": (relation_job, side, None, backward), PLAIN: (relation_job, side, 0, backward)}
            if 12 * matrix > available:
                print(f"\nwithout the {PLAIN} relation, some copies of {matrix / MIB:.0f} MiB: too large for this machine")
                del contestants[PLAIN]
            work = "forward and backward" if backward else "forward"
            targets = {"time": 1 / 1.3} | ({"memory": 4} if side == 64 else {})
            title = f"relation, {work}: {side} x {side} places, 64 channels, a matrix of {matrix / MIB:.0f} MiB"
            compare(title, contestants, options, targets=targets)


def channels_job(batch, width, literal):
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(batch, width, generator=generator) for _ in range(2))
    maxima = outer_maxima_literal if literal else outer_maxima

    def job():
        for _ in range(CALLS):
            found = maxima(x, y)
        return list(found)

    return job


def channels(options):
    for width in (256,) if options.quick else (256, 512):
        for batch in (1,) if options.quick else (1, 8):
            contestants = {"ours": (channels_job, batch, width, False), PLAIN: (channels_job, batch, width, True)}
            compare(f"channels: maxima of outer products, C = {width}, batch {batch}", contestants, options, CALLS, "calls")


class Pyramid(nn.Module):
    """A network of timm on colour and depth, and a plain feature pyramid: what one would build first."""

    def __init__(self, name, width=256):
        super().__init__()
        self.encoder = timm.create_model(name, features_only=True, in_chans=4)
        self.lateral = nn.ModuleList(nn.Conv2d(size, width, 1) for size in self.encoder.feature_info.channels())
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in self.lateral)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, images, depth, sides):
        stages = self.encoder(torch.cat([images / 127.5 - 1, depth], dim=1))
        merged = None
        for stage, lateral, smooth in reversed(list(zip(stages, self.lateral, self.smooth, strict=True))):
            found = lateral(stage)
            merged = found if merged is None else found + F.interpolate(merged, size=found.shape[2:], mode="nearest")
            finest = smooth(merged)
        return [F.interpolate(self.head(finest), size=images.shape[2:], mode="bilinear")]


def build_net(pair, way, device="cpu"):
    """Return a network with random weights; `way` is `ours`, PLAIN or the name of an encoder of timm."""
    torch.manual_seed(0)
    if way not in ("ours", PLAIN):
        return Pyramid(way).to(device)
    plain = way == PLAIN
    return HODINet(*pair, chunk=0 if plain else None, literal=plain).to(device)


def draw_batch(batch, size, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    depth, field = (torch.rand(batch, 1, size, size, generator=generator) for _ in range(2))
    return images.to(device), depth.to(device), (F.avg_pool2d(field, 9, 1, 4) > 0.5).float().to(device)


def inference_job(pair, way, batch, size, device="cpu", autocast=False):
    net, (images, depth, _) = build_net(pair, way, device).eval(), draw_batch(batch, size, device)

    def job():
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=autocast):
            return net(images, depth, sides=way == PLAIN)

    return job


def model(options):
    for pair, size, peers in ((TINY, 64, ()),) if options.quick else ((TINY, 64, ()), (FULL, 256, options.peers)):
        contestants = {way: (inference_job, pair, way, 1, size) for way in ("ours", PLAIN, *peers)}
        compare(f"model: {' + '.join(pair)}, inference of {size} x {size} pixels, batch 1", contestants, options)
        for way in contestants:
            print(f"  {way:24} {work(pair, way, size)}", flush=True)


def work(pair, way, size):
    """Return the parameters of a network, and the multiplications of an inference."""
    net, counter = build_net(pair, way).eval(), FlopCounterMode(display=False)
    images, depth, _ = draw_batch(1, size)
    with counter, torch.no_grad():
        net(images, depth, sides=way == PLAIN)
    return f"{sum(each.numel() for each in net.parameters()) / 1e6:.2f} M parameters, {counter.get_total_flops() / 2e9:.2f} GMACs"


def plain_loss(logits, masks):
    """The loss as it reads: BCE, IoU and SSIM of each head."""
    offsets = torch.arange(-5, 6, device=masks.device)
    line = torch.exp(-(offsets**2) / 4.5)
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    loss = masks.new_zeros(())
    for each in logits:
        p, y = each.sigmoid(), masks
        both = (p * y).sum((1, 2, 3))
        iou = 1 - (both + 1) / (p.sum((1, 2, 3)) + y.sum((1, 2, 3)) - both + 1)
        a, b, aa, bb, ab = (F.conv2d(maps, window, padding=5) for maps in (p, y, p * p, y * y, p * y))
        c, e = 0.01**2, 0.03**2
        similarity = (2 * a * b + c) * (2 * (ab - a * b) + e) / ((a**2 + b**2 + c) * (aa - a**2 + bb - b**2 + e))
        loss = loss + F.binary_cross_entropy_with_logits(each, y) + iou.mean() + 1 - similarity.mean()
    return loss


def step_job(pair, way, batch, size, device="cpu", autocast=False):
    net, (images, depth, masks) = build_net(pair, way, device).train(), draw_batch(batch, size, device)
    optimiser = torch.optim.AdamW(net.parameters(), lr=1e-5)

    def job():
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            logits = net(images, depth)
        loss = plain_loss(logits, masks) if way == PLAIN else saliency_loss(logits, masks)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return [loss]

    return job


def step(options):
    for pair, batch, size in ((TINY, 2, 64),) if options.quick else ((TINY, 16, 64), (SMALL, 2, 128), (SMALL, 2, 256)):
        contestants = {way: (step_job, pair, way, batch, size) for way in ("ours", PLAIN)}
        compare(f"step: {' + '.join(pair)}, training on {size} x {size} pixels, batch {batch}", contestants, options, batch)


def draw_map(kind, size, index):
    """Return (H, W) uint8 levels and a mask of about a fifth of the picture: one object, or blobs all over."""
    rng = np.random.default_rng(index)
    if kind == "blobs":
        field = ndimage.gaussian_filter(rng.standard_normal(size), min(size) / 12)
    else:
        y, x = (np.arange(side) - side * rng.uniform(0.35, 0.65) for side in size)
        y = y[:, None]
        lobes = 1 + sum(0.25 / k * np.cos(k * np.arctan2(y, x) + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
        field = -np.hypot(y, x) / lobes
    mask = field > np.quantile(field, 0.8)
    soft = ndimage.gaussian_filter(np.roll(mask, 4, 1).astype(float), 4)
    noise = rng.random(size) * (soft > 0.002 if kind == "trained" else 1)
    return (255 * (0.8 * soft + 0.2 * noise)).astype(np.uint8), mask


def library_job(kind, size, count):
    import py_sod_metrics

    warnings.filterwarnings("ignore")
    pictures = [(levels, mask.astype(np.uint8) * 255) for levels, mask in (draw_map(kind, size, index) for index in range(count))]

    def job():
        f = py_sod_metrics.FmeasureV2({"f": py_sod_metrics.FmeasureHandler(with_dynamic=True, with_adaptive=True)})
        mae, s, e, weighted = py_sod_metrics.MAE(), py_sod_metrics.Smeasure(), py_sod_metrics.Emeasure(), py_sod_metrics.WeightedFmeasure()
        for picture in pictures:
            for measure in (mae, s, e, f, weighted):
                measure.step(*picture)
        em, fm = e.get_results()["em"], f.get_results()["f"]
        numbers = {"mae": mae.get_results()["mae"], "s_measure": s.get_results()["sm"], "f_weighted": weighted.get_results()["wfm"]}
        numbers |= {"e_adaptive": em["adp"], "e_max": em["curve"].max(), "e_mean": em["curve"].mean()}
        numbers |= {"f_adaptive": fm["adaptive"], "f_max": fm["dynamic"].max(), "f_mean": fm["dynamic"].mean()}
        return in_order(numbers)

    return job


def metrics_job(kind, size, count, threads, protocol="pysod"):
    drawn = [draw_map(kind, size, index) for index in range(count)]
    pictures = [(torch.from_numpy(levels)[None], torch.from_numpy(mask)[None]) for levels, mask in drawn]

    def job():
        measured = SaliencyMetrics(protocol)
        if threads > 1:
            measured.update_batch(pictures, threads)
        else:
            for picture in pictures:
                measured.update(*picture)
        return in_order(measured.compute())

    return job


def in_order(numbers):
    return [torch.tensor(numbers[name], dtype=torch.float64) for name in sorted(numbers)]


def metrics(options):
    if not installed("py_sod_metrics"):
        return
    slow = "blobs all over the picture are the worst case: there is no background to skip"
    for size in SIZES[:1] if options.quick else SIZES:
        for kind in ("trained",) if options.quick else ("trained", "noisy", "blobs"):
            count = options.pictures
            contestants = {PLAIN: (library_job, kind, size, count)}
            contestants |= {f"ours, {threads} thread{'s' * (threads - 1)}": (metrics_job, kind, size, count, threads) for threads in (1, 2)}
            contestants["group256, 2 threads"] = (metrics_job, kind, size, count, 2, "group256")
            targets = {"of": "metrics, 2 threads", "time": 5, "reason": slow}
            title, beside = f"metrics: {count} {kind} maps of {size[0]} x {size[1]} pixels", "pysodmetrics, picture by picture, in one thread"
            print(f"\n{PLAIN}: {beside}")
            compare(title, contestants, options, count, tolerance=1e-6, beside=beside, targets=targets)


def gpu(options):
    device = options.device
    pair, size, batches, trained = (FULL, 256, (1, 16), 4) if device == "cuda" else (TINY, 64, (1, 2), 2)
    for autocast in (False, True):
        setting = f"{' + '.join(pair)}, {size} x {size} pixels, {'bfloat16, relation in float32' if autocast else 'float32'}, {device}"
        loose = 0.1 if autocast else 1e-2  # of the whole network; TF32 is off by default
        for batch in batches:
            contestants = {way: (inference_job, pair, way, batch, size, device, autocast) for way in ("ours", PLAIN)}
            compare(f"gpu: inference, batch {batch}, {setting}", contestants, options, batch, device=device, tolerance=loose)
        contestants = {way: (step_job, pair, way, trained, size, device, autocast) for way in ("ours", PLAIN)}
        compare(f"gpu: training step, batch {trained}, {setting}", contestants, options, trained, device=device, tolerance=loose)


PARTS = {"relation": relation, "channels": channels, "model": model, "step": step, "metrics": metrics, "gpu": gpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=[part for part in PARTS if part != "gpu" or torch.cuda.is_available()])
    parser.add_argument("--threads", type=int, default=1, help="of torch; metrics always measures in one thread and in two")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, help="of the maps of relation")
    parser.add_argument("--peers", nargs="*", default=["convnext_base", "pvt_v2_b5"], help="encoders of the segmentation networks of model")
    parser.add_argument("--pictures", type=int, default=24, help="of metrics")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu", help="of the part gpu")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sides, options.pictures = 1, SIDES[:1], 2
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    print(f"{options.threads} CPU thread(s)" + (f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""))
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
