"""The Triton kernels beside plain torch: equal results, and on a GPU their times there."""

import statistics
import time

import torch

from shared.pruning.kernels import torch_channel_sums, triton_channel_sums, triton_gather
from shared.smoothing.fused import perturb
from shared.smoothing.noise import Sampler, stream_key
from shared.smoothing.placement import Placement

CRITERIA = ("absolute", "square", "product_absolute", "product", "fisher")
SIGMA = 0.5


def seconds(job, device, rounds=20):
    """Return the median seconds of a job on a GPU after one that warms up, or None on a CPU, where the interpreter's time says nothing."""
    if device == "cpu":
        return None
    times = []
    for _ in range(rounds + 1):
        torch.cuda.synchronize()
        began = time.perf_counter()
        job()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def row(what, size, apart, tolerance, ours=None, other=None):
    """Return a row of the table."""
    speed = "" if ours is None else f"; {1e6 * ours:.0f} us, torch {1e6 * other:.0f} us ({other / ours:.1f} times)"
    return {"part": "kernels", "what": what, "setting": size, "result": f"{apart:.0e} apart{speed}", "is_good": apart <= tolerance}


def far(found, expected):
    """Return the greatest difference as a part of the greatest value."""
    return float((found.float().cpu() - expected.float().cpu()).abs().max() / expected.float().abs().max().cpu().clamp_min(1e-30))


def channel_sums(device):
    shapes = [((5, 7, 3, 3), 1), ((8, 2, 3), 4), ((9,), 1)] + ([((512, 512, 3, 3), 1), ((1024, 4096), 1)] if device == "cuda" else [])
    for shape, groups in shapes:
        weight, other, dims = torch.randn(shape), torch.randn(shape), (0, 1) if len(shape) > 1 else (0,)
        there, beside, apart = weight.to(device), other.to(device), 0.0
        for criterion in CRITERIA:
            expected = torch_channel_sums(weight, other, criterion, dims, groups)
            found = triton_channel_sums(there, beside, criterion, dims, groups)
            scale = max(float(torch_channel_sums(weight.abs(), other.abs(), criterion, dims, groups)[dim].max()) for dim in dims)
            apart = max(apart, *(float((found[dim].cpu() - expected[dim]).abs().max()) / scale for dim in dims))
        jobs = [lambda make=make: make(there, beside, "fisher", dims, groups) for make in (triton_channel_sums, torch_channel_sums)]  # noqa: B023
        yield row("sums over channels", " x ".join(map(str, shape)), apart, 1e-5, *(seconds(job, device) for job in jobs))


def slices(device):
    for shape in ((13, 11, 3, 3), *([(512, 512, 3, 3)] if device == "cuda" else [])):
        tensor, rows, columns = torch.randn(shape), torch.arange(0, shape[0], 2), torch.arange(1, shape[1], 3)
        there = [part.to(device) for part in (tensor, rows, columns)]
        apart = far(triton_gather(*there), tensor[rows][:, columns])
        jobs = [lambda: triton_gather(*there), lambda: there[0].index_select(0, there[1]).index_select(1, there[2])]  # noqa: B023
        yield row("slices along two dimensions", " x ".join(map(str, shape)), apart, 0, *(seconds(job, device) for job in jobs))


def noise(device):
    shape, count = ((3, 32, 32), 1000) if device == "cuda" else ((3, 6, 8), 3)
    images, slots, draws = torch.rand(2, *shape), torch.arange(count) % 2, torch.arange(count)
    keys = torch.tensor([stream_key(1, int(slot), 0, 0) for slot in slots])
    expected = Sampler("gaussian", SIGMA, images[0].numel()).perturb(images, slots, keys, draws, torch.empty(count, *shape))
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.3, 0.25])
    there = [part.to(device) for part in (images, slots, keys, draws)]
    shift, scale = mean.to(device), std.to(device)
    whole = torch.arange(images[0].numel()).view(shape)
    board = (torch.arange(shape[1])[:, None] + torch.arange(shape[2])) % 2 == 0
    for name, source in (("all pixels", None), ("checkerboard", torch.where(board, whole, -1))):
        plain = (expected - mean.view(-1, 1, 1)) / std.view(-1, 1, 1) if source is None else Placement(source, mean, std)(expected)
        given = None if source is None else source.flatten().int().to(device)
        for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 1e-2)):
            out = torch.empty(count, *shape, dtype=dtype, device=device).to(memory_format=torch.channels_last)

            def fused(out=out, given=given):
                return perturb(*there, SIGMA, out, given, shift, scale)

            def unfused(out=out, given=given):
                noised = there[0][there[1]] + SIGMA * torch.randn(out.shape, device=device)
                noised = noised if given is None else torch.where(given.view(shape) >= 0, noised, 0.0)
                return out.copy_((noised - shift.view(-1, 1, 1)) / scale.view(-1, 1, 1))

            times = [seconds(job, device) for job in (fused, unfused)]
            size = f"{count} x {' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"
            yield row(f"noise, {name}", size, far(fused(), plain), tolerance, *times)


def check(device):
    """Yield the rows of all kernels."""
    for kernel in (channel_sums, slices, noise):
        yield from kernel(device)
