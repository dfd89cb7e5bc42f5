"""TriPINet beside straightforward code with the same weights, in one process.

python tests/bench/bench_tripinet.py [--parts predict attention large training] [--device cuda] [--threads 1] [--rounds 3] [--quick]

predict: a file judged and written as the verb does, megapixels a second, and each stage's part of the time. The straightforward version computes each
filter of each colour by a convolution of its own, the DCT by whole matrices made for each picture, attention from every position to every position
with an explicit softmax, and all four maps; "pooled keys" is the same with the keys pooled as ours are, which must give our map.
attention: memory of the finest stage's attention over the size of its map, pooled and unpooled.
large: tiles of a picture of 24 megapixels beside one of 6, and the peak memory of a process of its own.
training: a training step, images a second; with --device cuda of 512 x 512 pixels, batch 8, in float32 and bfloat16, and inference too.

On a CPU with one thread times are of the process's CPU time, which other processes lengthen least; the shortest of the rounds counts.
"""

import argparse
import copy
import math
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timing import record
from torch import nn
from torch.nn import functional as F

from projects.tripinet import prediction
from projects.tripinet.decoders import Integration, resize
from projects.tripinet.forensics import FIXED_SCALE, DCTHighPass, Noise
from projects.tripinet.fusion import DualAttention
from projects.tripinet.losses import training_loss
from projects.tripinet.model import Outputs, TriPINet
from projects.tripinet.module import ManipulationLocalisation
from projects.tripinet.pairs import read_pixels

NETS = {"configs/tiny.yaml": 16, "default": 64}
"""Channels of the fused features and of the decoder."""
UNPOOLED = 10**6
POOLING = "most of the gain is that of pooling the keys, and a picture as small has little to pool"


class OneByOne(nn.Module):
    """SRM residuals, a convolution for each colour and kernel."""

    def __init__(self, noise):
        super().__init__()
        self.residual = noise.residual

    def forward(self, pixels):
        kernels, padded = self.residual.weight[:3] / self.residual.divisors[:3, None], F.pad(pixels, [2] * 4, mode="reflect")
        found = [F.conv2d(colour, kernel[None]) for colour in padded.split(1, dim=1) for kernel in kernels]
        return torch.cat([residual.clamp(-self.residual.clip, self.residual.clip) for residual in found], dim=1)


class WholeMatrices(nn.Module):
    """The high-pass of the DCT as its definition reads: X = D_H I D_W^T, masked, and back."""

    def __init__(self, high_pass):
        super().__init__()
        self.alpha = high_pass.alpha

    def matrix(self, size, device):
        rows, positions = torch.arange(size, device=device)[:, None], torch.arange(size, device=device)
        matrix = math.sqrt(2 / size) * torch.cos(math.pi * rows * (2 * positions + 1) / (2 * size))
        matrix[0] = 1 / math.sqrt(size)
        return matrix

    def forward(self, pixels):
        height, width = pixels.shape[2:]
        down, across = self.matrix(height, pixels.device), self.matrix(width, pixels.device)
        kept = torch.ones(height, width, device=pixels.device)
        kept[: math.ceil(self.alpha * height), : math.ceil(self.alpha * width)] = 0
        colours = [down.T @ (down @ pixels[:, colour] @ across.T * kept) @ across for colour in range(3)]
        return FIXED_SCALE * torch.stack(colours, dim=1)


class ExplicitAttention(nn.Module):
    """Steps 2 and 3 of gCMDA as they read, in matrices; `pooled` bounds the side of the grid of keys."""

    def __init__(self, attend, pooled):
        super().__init__()
        self.query, self.key, self.value = attend.query, attend.key, attend.value
        self.position_gamma, self.channel_gamma, self.pooled = attend.position_gamma, attend.channel_gamma, pooled

    def forward(self, features, guide):
        height, width = features.shape[2:]
        source = F.adaptive_avg_pool2d(features, (min(height, self.pooled), min(width, self.pooled)))
        query, key, value = self.query(guide).flatten(2), self.key(source).flatten(2), self.value(source).flatten(2)
        weights = (query.mT @ key).softmax(2)  # (B, N, M)
        position = (value @ weights.mT).view_as(features)
        r, g = features.flatten(2), guide.flatten(2)
        similarity = g @ r.mT / r.shape[2]
        channel = ((similarity.amax(2, keepdim=True) - similarity).softmax(2) @ r).view_as(features)
        return (self.position_gamma * position + features) + (self.channel_gamma * channel + features)


class AsWritten(nn.Module):
    """The decoder: enlarge, concatenate, excite, merge."""

    def __init__(self, decoder):
        super().__init__()
        self.lateral, self.excite, self.merge = decoder.lateral, decoder.excite, decoder.merge

    def forward(self, stages):
        decoded = []
        for number in reversed(range(len(stages))):
            lateral = self.lateral[number](stages[number])
            joined = torch.cat([lateral, *(resize(deeper, lateral.shape[2:]) for deeper in decoded)], dim=1)
            weights = self.excite[number].weigh(joined.mean((2, 3)))[:, :, None, None]
            decoded.insert(0, self.merge[number](joined * weights + joined))
        return decoded


class AllSides(TriPINet):
    """Computes all four maps, whatever is asked for."""

    def forward(self, images, sides=True):
        return super().forward(images)


def straightforward(net, pooled=UNPOOLED):
    """Return a copy of a network, contiguous, with every part replaced by its straightforward version."""
    net = copy.deepcopy(net).to(memory_format=torch.contiguous_format)
    replacements = {Noise: OneByOne, DCTHighPass: WholeMatrices, Integration: AsWritten}
    replacements[DualAttention] = lambda attend: ExplicitAttention(attend, pooled)
    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if type(child) in replacements:
                setattr(parent, name, replacements[type(child)](child))
    net.__class__ = AllSides
    return net


def build(channels, device="cpu"):
    """Return a module with random weights, whose attention counts and whose norms have seen noise."""
    module = ManipulationLocalisation(channels=channels, width=channels).to(device)
    for name, parameter in module.net.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
    for layer in module.net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    with torch.no_grad():
        module.net.train()(torch.randint(0, 256, (2, 3, 128, 128), dtype=torch.uint8, device=device))
    return module.eval()


def with_net(module, net):
    """Return the module with another network."""
    other = copy.copy(module)
    other._modules = {**module._modules, "net": net}
    return other


def clock(options):
    if options.device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if options.device == "cpu" and options.threads == 1 else time.perf_counter()


def measure(jobs, options):
    """Return the least seconds of each job, run in turns after one round to warm up; `jobs` maps names to functions."""
    times = {name: [] for name in jobs}
    for number in range(options.rounds + 1):
        for name, job in jobs.items():
            began = clock(options)
            job()
            if number:
                times[name].append(clock(options) - began)
    return {name: min(values) for name, values in times.items()}


def draw(path, height, width):
    """Write a picture: smooth colours with noise."""
    generator = np.random.default_rng(0)
    coarse = Image.fromarray(generator.integers(0, 256, (height // 64 + 2, width // 64 + 2, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    noise = generator.integers(-6, 7, (height, width, 1), dtype=np.int16)
    Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8)).save(path, quality=92)
    return path


def predict_file(module, path, folder, tiles="never", note=lambda stage: None):
    """Read a picture, judge it and write map, mask, overlay and JSON, as the verb does; return the probabilities."""
    image = read_pixels(path)
    note("read")
    probability, raw = prediction.judge(module, image, path.name, tiles)
    note("judged")
    found = prediction.describe(module, probability, raw)
    prediction._write(folder, prediction.Input(path, path.name), image, probability, found, "png")
    return probability


def predict(options):
    """Megapixels a second from file to files, and what the stages take."""
    for name, channels in NETS.items():
        module = build(channels)
        rivals = {"ours": module, "pooled keys": with_net(module, straightforward(module.net, module.hparams.pooled))}
        rivals["straightforward"] = with_net(module, straightforward(module.net))
        unpooled = copy.deepcopy(module.net)
        for layer in unpooled.modules():
            if isinstance(layer, DualAttention):
                layer.pooled = UNPOOLED
        for size in options.sizes:
            with tempfile.TemporaryDirectory() as folder:
                path = draw(Path(folder) / "picture.jpg", size, size)
                jobs = {way: lambda other=other: predict_file(other, path, Path(folder)) for way, other in rivals.items()}  # noqa: B023
                torch.testing.assert_close(jobs["ours"](), jobs["pooled keys"](), rtol=1e-3, atol=1e-4)
                same = predict_file(with_net(module, unpooled), path, Path(folder))
                torch.testing.assert_close(same, jobs["straightforward"](), rtol=1e-3, atol=1e-4)
                moved = (jobs["ours"]() - same).abs().max()
                found = measure(jobs, options)
                print(f"{name}, C = {channels}, {size} x {size} pixels; pooling moves probabilities by at most {moved:.1e}")
                rates, setting = {way: size**2 / 1e6 / seconds for way, seconds in found.items()}, f"{size} x {size} pixels, C = {channels}"
                for way, target in (("straightforward", 2), ("pooled keys", None)):
                    beside = f"{way} in both" if way == "pooled keys" else way
                    record("predict, file to files", setting, rates["ours"], rates[way], beside, unit="megapixels/s", target=target, reason=POOLING)
                for way, seconds in found.items():
                    print(f"  {way:15s}: {size**2 / 1e6 / seconds:7.4f} megapixels/s, {found['straightforward'] / seconds:6.2f} times", flush=True)
                stages(module, path, Path(folder), options)


def stages(module, path, folder, options):
    """Print each stage's part of the time from file to files."""
    net = module.net
    groups = {
        "filters": [stream.front_end for stream in net.streams],
        "encoders": [part for stream in net.streams for part in (stream.encoder, *stream.reductions)],
        "fusion": list(net.fusions),
        "decoder": [net.decoder, *net.heads],
    }
    spent, at = dict.fromkeys(groups, 0.0), {}
    handles = []
    for name, parts in groups.items():

        def enter(part, inputs, name=name):
            spent[name] -= clock(options)

        def leave(part, inputs, output, name=name):
            spent[name] += clock(options)

        for part in parts:
            handles += [part.register_forward_pre_hook(enter), part.register_forward_hook(leave)]
    began = clock(options)
    predict_file(module, path, folder, note=lambda stage: at.update({stage: clock(options) - began}))
    whole = clock(options) - began
    for handle in handles:
        handle.remove()
    judged = at["judged"] - at["read"]
    shares = {"read": at["read"], **spent, "rest of the network": judged - sum(spent.values()), "describe and write": whole - at["judged"]}
    print("  stages of ours: " + ", ".join(f"{name} {seconds / whole:.0%}" for name, seconds in shares.items()), flush=True)


def isolated(start, job, *arguments):
    """Return what a job returns in a process of its own, and the MiB by which its peak resident size grew; `start` is `fork` or `spawn`."""
    context = multiprocessing.get_context(start)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(sender, job, arguments))
    process.start()
    sender.close()
    result = receiver.recv()
    process.join()
    return result


def _report(sender, job, arguments):
    run = job(*arguments)  # builds what is not measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = run()
    sender.send((result, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10))


def attend(side, way):
    """Return a job that attends to a map of 64 channels."""
    torch.set_num_threads(1)
    layer = DualAttention(64, pooled=16 if way == "pooled" else UNPOOLED)
    picture, guide = (torch.rand(1, 64, side, side).to(memory_format=torch.channels_last) for _ in range(2))
    if way == "matrix":
        layer = ExplicitAttention(layer, UNPOOLED)
        picture, guide = picture.contiguous(), guide.contiguous()

    def run():
        with torch.inference_mode():
            layer(picture, guide)

    with torch.inference_mode():
        layer(picture[:, :, :8, :8], guide[:, :, :8, :8])
    return run


def attention(options):
    """Memory of the attention of one picture, measured as the growth of a forked process, and computed of the matrix alone."""
    print("attention to positions and channels, C = 64: MiB by which a process grows (the N x M matrix of weights, computed)")
    for side in options.sides:
        row, sizes = [], {}
        for way in ("pooled", "unpooled", "matrix"):
            keys = min(side, 16) ** 2 if way == "pooled" else side**2
            _, grown = isolated("fork", attend, side, way)
            sizes[way] = max(0.1, grown)
            row.append(f"{way} {grown:7.1f} ({side**2 * keys * 4 / 2**20:.1f})")
        record("memory of attention", f"{side} x {side} positions, C = 64", sizes["pooled"], sizes["matrix"], "explicit matrix", unit="MiB")
        print(f"  {side:3d} x {side:3d} positions: " + ", ".join(row), flush=True)


def large_picture(path, options):
    """Return a job that judges a picture in tiles and returns its seconds."""
    torch.set_num_threads(options.threads)
    module = build(options.channels)
    warm = path.with_name("warm.jpg")
    predict_file(module, draw(warm, 896, 896), warm.parent, "always")

    def run():
        began = clock(options)
        predict_file(module, path, path.parent, "always")
        return clock(options) - began

    return run


def large(options):
    """Seconds and memory of large pictures, in processes of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for height, width in ((600, 900),) if options.quick else ((2000, 3000), (4000, 6000)):
            path = draw(Path(folder) / f"{width}.jpg", height, width)
            seconds, grown = isolated("spawn", large_picture, path, options)
            speed, share = height * width / 1e6 / seconds, 2**20 * grown / (height * width)
            print(f"{width} x {height} pixels, C = {options.channels}, tiles of 512: {seconds:.1f} s, {speed:.3f} megapixels/s")
            print(f"  memory: {grown:.0f} MiB above four tiles, {share:.1f} bytes a pixel", flush=True)


def pass_of(net, images, masks, autocast):
    """Return a job: a training step where the network trains, else inference of the finest map."""
    labels = torch.ones(len(images), device=images.device)

    def job():
        with torch.set_grad_enabled(net.training), torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            outputs = net(images, sides=net.training)
        if net.training:
            training_loss(Outputs([side.float() for side in outputs.sides]), masks, labels)["loss"].backward()
            net.zero_grad()

    return job


def step(options, channels, batch, size, autocast=False, stages=("training step",)):
    """Print images a second of a training step and of inference."""
    net: TriPINet = build(channels, options.device).net
    rivals = {"ours": net, "pooled keys": straightforward(net, 16)}
    positions = (size // net.streams[0].encoder.strides[0]) ** 2
    matrices = 3 * 4 * batch * positions**2 / 2**30  # weights of the finest stage, their gradient, and their logits'
    if matrices <= options.memory:
        rivals["straightforward"] = straightforward(net)
    else:
        print(f"without the straightforward version, whose finest attention alone takes {matrices:.0f} GiB (--memory {options.memory:g})")
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, device=options.device)
    masks = (torch.rand(batch, 1, size, size, device=options.device) > 0.9).float()
    for stage in stages:
        for rival in rivals.values():
            rival.train(stage == "training step")
        found = measure({name: pass_of(rival, images, masks, autocast) for name, rival in rivals.items()}, options)
        slowest = list(found)[-1]
        setting = f"batch {batch} of {size} x {size}, C = {channels}, {options.device}{', bfloat16' * autocast}"
        record(stage, setting, batch / found["ours"], batch / found[slowest], slowest, unit="images/s")
        print(f"{stage}, C = {channels}, batch {batch} of {size} x {size}, {'bfloat16' if autocast else 'float32'}")
        for name, seconds in found.items():
            print(f"  {name:15s}: {batch / seconds:8.2f} images/s, {found[slowest] / seconds:5.2f} times {slowest}", flush=True)


def training(options):
    """The settings of configs/tiny.yaml and of the default on a CPU; on a GPU, pictures of 512 x 512."""
    if options.device == "cpu" and not options.gpu_check:
        step(options, 16, 2 if options.quick else 16, 96)
        if not options.quick:
            step(options, 64, 4, 256)
        return
    size, batch = (512, 8) if options.device == "cuda" else (64, 2)
    for autocast in (False, True):
        step(options, 64, batch, size, autocast, stages=("training step", "inference"))


PARTS = {"predict": predict, "attention": attention, "large": large, "training": training}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu", help="of the part training")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 128, 256], help="of the pictures of predict")
    parser.add_argument("--sides", nargs="+", type=int, default=[16, 32, 64, 128], help="of the maps of attention")
    parser.add_argument("--channels", type=int, default=16, help="of the network of large")
    parser.add_argument("--memory", type=float, default=8, help="GiB that the straightforward version's attention may take in training")
    parser.add_argument("--gpu-check", action="store_true", help="run the part training on the CPU as on a GPU, on small pictures")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.sizes, options.sides = 1, [64], [16]
    torch.set_num_threads(options.threads)
    print(torch.cuda.get_device_name() if options.device == "cuda" else f"{options.threads} CPU thread(s)")
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
