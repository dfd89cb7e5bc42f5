"""S3RP beside straightforward code that does the same: the solver, its gradient, training steps, memory, and super-resolving beside assimilation.

uv run --group peers python tests/bench/bench_s3rp.py [--parts solver,gradient,training,memory,sequence,gpu] [--threads 1] [--rounds 3] [--quick]

solver: fields carried over a frame of 10 Runge-Kutta steps by `Physics.advance`, beside NumPy (one sequence after the other, fluxes by np.roll, four
stages; in float64 as one writes it, and in float32), and SciPy (a sparse matrix a sequence, made beforehand, applied four times a step).
gradient: the same with the gradient for the initial fields, beside autograd through the stages by torch.roll, the whole batch at once, and
torchdiffeq (fixed steps; by autograd and by its adjoint), where it is installed.
training: steps of the configuration `tiny` and of 64 x 64 cells and 8 frames, beside a loop over frames for network and physics with autograd through
the stages: the same weights, whole batches, the same Adam.
memory: a training step by frames, with and without checkpointing, beside the straightforward one: bytes of tensors that autograd keeps for the
backward pass (exact, each storage once; the five coefficients a cell of our solver are not among them), and how far the peak resident size rises.
sequence: one sequence from coarse frames to fine fields by networks of random weights, beside kriging, 4D-Var, the ensemble Kalman filter (48
members) and bicubic interpolation of this project.
gpu: solver, gradient and training on a GPU beside the straightforward versions there; with --device cpu it runs on small ones, to check it.

Contestants run in turns after one round to warm up; medians of the rounds are printed, of the process's CPU time with one thread, which other work
on the machine lengthens least, and of the wall's clock else. `times` is how many times faster than the first straightforward version, `apart` the
greatest difference from its results, as a part of the greatest of them. Peak memory is how far the peak resident size (VmHWM, which is reset first;
Linux) rises above what a process of the contestant's own holds before it runs; on a GPU it is what the allocator reports.
"""

import argparse
import statistics

import numpy as np
import scipy.sparse
import torch
from memory import MIB, difference, isolated, on_gpu
from timing import installed, record, timed
from torch import nn

from projects.s3rp.assimilation import variational
from projects.s3rp.classical import interpolated
from projects.s3rp.filtering import ensemble_filter
from projects.s3rp.kriging import krige
from projects.s3rp.losses import coarse_loss, negativity, step_loss
from projects.s3rp.model import FineNet, first_guess
from projects.s3rp.module import PlumeSuperResolution, scale
from projects.s3rp.observing import interpolate, project
from projects.s3rp.physics import Physics, Wind, stencil, wind_from_stream
from projects.s3rp.worlds import World, draw_plumes

OURS, PLAIN = "ours", "straightforward"
SUBSTEPS, DIFFUSIVITY, INTERVAL = 10, 1e-3, 0.05
IMPORTED = ["scipy.sparse", *(f"projects.s3rp.{name}" for name in ("module", "assimilation", "classical", "filtering", "kriging", "worlds"))]


SHORT = "so few cells take longer to be called for than to be computed"
LARGE = "fields of this size no longer stay in the cache"


def compare(title, contestants, options, count=1, unit="sequences", device="cpu", tolerance=1e-4, rounds=None, target=None, reason=""):
    """Print a table of contestants.

    Args:
        title: what is measured.
        contestants: functions with their arguments, by name; a function builds a job, which returns tensors. The first straightforward one is the
            measure.
        options: of the command line.
        count: units that a job works through.
        unit: their name.
        device: `cpu` or `cuda`.
        tolerance: of `apart`, for contestants that have to agree; None where they do not do the same.
        rounds: of each; None takes those of the options.
        target: ratio that was asked for, of ours beside the first straightforward one.
        reason: why it may not be reached.
    """
    jobs = {name: build(*arguments) for name, (build, *arguments) in contestants.items()}
    results, times = {}, {name: [] for name in jobs}
    for number in range((rounds or options.rounds) + 1):
        for name, job in jobs.items():
            found, seconds = timed(job, device)
            if number:
                times[name].append(seconds)
            else:
                results[name] = [torch.as_tensor(each).detach().double().cpu() for each in found]
    medians = {name: statistics.median(values) for name, values in times.items()}
    peaks = {name: on_gpu(job) for name, job in jobs.items()} if device == "cuda" else {}
    measure = next((name for name in jobs if name.startswith(PLAIN)), None)
    if device != "cuda":
        peaks = {name: isolated(IMPORTED, options.threads, *contestants[name]) for name in jobs}
    del jobs
    what, _, size = title.partition(": ")
    for name in medians if measure else ():
        if not name.startswith(OURS):
            kind = "naive" if name.startswith(PLAIN) else "peer"
            asked = {"target": target, "reason": reason} if name == measure else {}
            record(what, size, medians[OURS], medians[name], name.replace(f"{PLAIN}, float", "NumPy, float"), kind=kind, peak=peaks[OURS], **asked)
    print(f"\n{title}\n  {'':28} {'ms':>10} {'times':>7} {unit + '/s':>16} {'peak MiB':>9} {'apart':>8}")
    for name, seconds in medians.items():
        faster = f"{medians[measure] / seconds:7.2f}" if measure else "      -"
        apart = difference(results[name], results[measure]) if measure and tolerance else None
        print(
            f"  {name:28} {1000 * seconds:10.2f} {faster} {count / seconds:16.1f} {peaks[name]:9.1f} {'-' if apart is None else f'{apart:.0e}':>8}",
            flush=True,
        )
        if apart is not None and not apart <= tolerance:
            raise AssertionError(f"{title}: {name} is {apart:.1e} apart from {measure}")


# ---- the solver


def scene(batch, size, device="cpu"):
    """Return drawn fields (B, N, N), steady winds and what is known."""
    rng = torch.Generator().manual_seed(0)
    physics = Physics(DIFFUSIVITY, INTERVAL, (1 / size, 1 / size), substeps=SUBSTEPS)
    wind = wind_from_stream(0.1 * torch.randn(batch, size, size, generator=rng) / size, physics.spacing)
    return torch.rand(batch, size, size, generator=rng).to(device), Wind(wind.u.to(device), wind.v.to(device)), physics


def stages(field, rate, step):
    """Take classical Runge-Kutta steps of a frame, as one writes them."""
    for _ in range(SUBSTEPS):
        first = rate(field)
        second = rate(field + step / 2 * first)
        third = rate(field + step / 2 * second)
        fourth = rate(field + step * third)
        field = field + step / 6 * (first + 2 * second + 2 * third + fourth)
    return field


def rate_of(u, v, physics, roll):
    """Return the rate of change by fluxes through the left and lower faces; `roll` is NumPy's or torch's."""
    dy, dx = physics.spacing

    def rate(field):
        left, below = roll(field, 1, -1), roll(field, 1, -2)
        flux_x = u * (left + field) / 2 - physics.diffusivity * (field - left) / dx
        flux_y = v * (below + field) / 2 - physics.diffusivity * (field - below) / dy
        return (flux_x - roll(flux_x, -1, -1)) / dx + (flux_y - roll(flux_y, -1, -2)) / dy

    return rate


def matrix_of(operator):
    """Return a stencil of one sequence as a sparse matrix."""
    shape = operator.centre.shape
    cells = np.arange(operator.centre.numel()).reshape(shape)
    moves = ((0, 0), (1, -1), (-1, -1), (1, -2), (-1, -2))  # the cell itself, west, east, south, north
    columns = np.concatenate([np.roll(cells, *move).ravel() for move in moves])
    values = np.concatenate([part.numpy().ravel() for part in operator])
    return scipy.sparse.csr_matrix((values, (np.tile(cells.ravel(), 5), columns)), shape=(cells.size, cells.size))


def solver_job(way, batch, size, device="cpu"):
    fields, wind, physics = scene(batch, size, device)
    step = INTERVAL / SUBSTEPS
    if way == OURS:
        return lambda: [physics.advance(fields, wind)]
    if way == PLAIN:
        rate = rate_of(wind.u, wind.v, physics, torch.roll)
        return lambda: [stages(fields, rate, step)]
    kind = np.float64 if way.endswith("float64") else np.float32
    values, u, v = (part.numpy().astype(kind) for part in (fields, *wind))
    if way.startswith("scipy"):
        matrices = [matrix_of(stencil(wind.select(row), DIFFUSIVITY, physics.spacing, "central", "periodic")).astype(kind) for row in range(batch)]
        return lambda: [np.stack([stages(one.ravel(), matrix.dot, step).reshape(one.shape) for one, matrix in zip(values, matrices, strict=True)])]
    rates = [rate_of(*winds, physics, np.roll) for winds in zip(u, v, strict=True)]
    return lambda: [np.stack([stages(one, rate, step) for one, rate in zip(values, rates, strict=True)])]


def solver(options):
    for batch in (8,) if options.quick else (8, 64):
        for size in (32,) if options.quick else (32, 64, 128):
            ways = {f"{PLAIN}, float64": "float64", f"{PLAIN}, float32": "float32", "scipy, float32": "scipy float32", OURS: OURS}
            contestants = {name: (solver_job, way, batch, size) for name, way in ways.items()}
            work = f"solver: {batch} fields of {size} x {size}, {SUBSTEPS} steps"
            compare(
                work,
                contestants,
                options,
                batch * size * size * SUBSTEPS / 1e6,
                "M cell steps",
                target=5,
                reason=SHORT if batch * size * size < 1e5 else LARGE,
            )


def gradient_job(way, batch, size, device="cpu"):
    fields, wind, physics = scene(batch, size, device)
    fields.requires_grad_()
    rate = rate_of(wind.u, wind.v, physics, torch.roll)
    if way == OURS:
        advance = lambda: physics.advance(fields, wind)  # noqa: E731 - four ways to do the same
    elif way == PLAIN:
        advance = lambda: stages(fields, rate, INTERVAL / SUBSTEPS)  # noqa: E731
    else:
        import torchdiffeq

        class Rate(nn.Module):
            def forward(self, time, field):
                return rate(field)

        integrate = torchdiffeq.odeint_adjoint if way.endswith("adjoint") else torchdiffeq.odeint
        times, fixed = torch.tensor([0.0, INTERVAL], device=device), {"step_size": INTERVAL / SUBSTEPS}
        given = {"adjoint_options": fixed, "adjoint_params": ()} if way.endswith("adjoint") else {}
        advance = lambda: integrate(Rate(), fields, times, method="rk4", options=fixed, **given)[-1]  # noqa: E731

    def job():
        carried = advance()
        return [carried, *torch.autograd.grad(carried.square().sum(), fields)]

    return job


def gradient(options, device="cpu"):
    ways = (PLAIN, OURS, *(("torchdiffeq", "torchdiffeq, adjoint") if installed("torchdiffeq") else ()))
    for batch in (8,) if options.quick else (8, 64):
        for size in (32,) if options.quick else (32, 64, 128):
            contestants = {way: (gradient_job, way, batch, size, device) for way in ways}
            work = f"gradient: {batch} fields of {size} x {size}, {SUBSTEPS} steps, forward and backward"
            compare(work, contestants, options, batch * size * size * SUBSTEPS / 1e6, "M cell steps", device, 1e-3)


# ---- training


def plain_fields(net, seen):
    """Super-resolve with the weights of a `FineNet` as one writes it: frame after frame, gates one by one; the frames are complete."""
    previous, state, fields = first_guess(seen, net.factor, net.boundary), None, []
    ones = torch.ones_like(previous)[:, None]
    for frame in range(seen.frames):
        base = interpolate(seen.coarse[:, frame], net.factor, "bicubic", net.boundary)
        encoded = net.encoder(torch.cat([base[:, None], previous[:, None], seen.arriving(frame).expand(len(base), -1, -1, -1), ones], 1))
        state = torch.zeros_like(encoded) if state is None else state
        update, reset = torch.sigmoid(net.cell.gates(torch.cat([encoded, state], 1))).chunk(2, 1)
        candidate = torch.tanh(net.cell.candidate(torch.cat([encoded, reset * state], 1)))
        state = (1 - update) * state + update * candidate
        previous = project(base + net.decoder(state)[:, 0], seen.coarse[:, frame], None, net.gain)
        fields.append(previous)
    return torch.stack(fields, 1)


def plain_physics(fields, wind, physics):
    """The physics loss as one writes it: frame after frame, by autograd through the stages."""
    total = 0.0
    for frame in range(fields.shape[1] - 1):
        now, field = wind.at(frame), fields[:, frame]
        rate, step = rate_of(now.u, now.v, physics, torch.roll), physics.interval / physics.substeps
        for _ in range(physics.substeps):
            first = rate(field)
            second = rate(field + step / 2 * first)
            third = rate(field + step / 2 * second)
            field = field + step / 6 * (first + 2 * second + 2 * third + rate(field + step * third))
        total = total + (fields[:, frame + 1] - field).square().mean()
    return total / (fields.shape[1] - 1)


def training_job(way, size, frames, batch, channels=16, device="cpu", steps=True):
    torch.manual_seed(0)
    seen = draw_plumes(World(size=size, frames=frames), batch).observations
    physics = seen.physics.with_options(substeps=seen.physics.stable_substeps(seen.wind))
    scaled = scale({name: value.to(device) for name, value in seen.batch().items()}, physics)
    net = FineNet(channels=channels, checkpointing=way.endswith("checkpointing")).to(device)
    with torch.no_grad():
        for weight in net.decoder[-1].parameters():
            weight.normal_(0, 1e-2)  # else nothing flows back through the network in the first step
    optimiser = torch.optim.Adam(net.parameters(), 1e-6)

    def job():
        if way == PLAIN:
            fields = plain_fields(net, scaled.seen)
            moved = plain_physics(fields, scaled.wind, physics)
        else:
            fields = net(scaled.seen).fields
            moved = step_loss(fields, scaled.wind, physics)
        loss = coarse_loss(fields, scaled.seen.coarse, scaled.seen.mask) + moved + 0.1 * negativity(fields)
        if steps:
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
        return [loss]

    return job


def training(options, device="cpu"):
    sizes = {"tiny": (32, 6, 8)} if options.quick else {"tiny": (32, 6, 8), "64 x 64": (64, 8, 8)}
    for name, given in sizes.items():
        contestants = {way: (training_job, way, *given, 16, device) for way in (PLAIN, OURS, f"{OURS}, checkpointing")}
        compare(f"training: {name}, a step of {given[2]} sequences of {given[1]} frames", contestants, options, 1, "steps", device, 1e-3)


def kept_for_backward(job):
    """Return the MiB that autograd holds on to when a forward pass is done, each storage once."""
    sizes = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = job()
    del found
    return sum(sizes.values()) / MIB


def memory(options):
    size, batch = (32, 2) if options.quick else (64, 4)
    ways = (PLAIN, OURS, f"{OURS}, checkpointing")
    print(f"\nmemory: a training step of {batch} sequences of {size} x {size} cells, MiB kept for the backward pass / peak MiB")
    print(f"  {'frames':>6} " + " ".join(f"{way:>22}" for way in ways))
    for frames in (4,) if options.quick else (4, 8, 16, 32):
        cells, sizes = [], []
        for way in ways:
            kept = kept_for_backward(training_job(way, size, frames, batch, steps=False))
            peak = isolated(IMPORTED, options.threads, training_job, way, size, frames, batch)
            cells.append(f"{kept:12.1f} / {peak:7.1f}")
            sizes.append((kept, peak))
        setting = f"{batch} sequences of {frames} frames of {size} x {size}"
        record("kept for the backward pass, checkpointing", setting, sizes[2][0], sizes[0][0], PLAIN, unit="MiB")
        record("peak of a training step, checkpointing", setting, sizes[2][1], sizes[0][1], PLAIN, unit="MiB")
        print(f"  {frames:6} " + " ".join(f"{cell:>22}" for cell in cells), flush=True)


# ---- a sequence


def sequence_job(way, size, frames):
    seen = draw_plumes(World(size=size, frames=frames, widths=(0.03, 0.06)), 1).observations
    if way.startswith("S3RP-D"):
        torch.manual_seed(0)
        module = PlumeSuperResolution(channels=int(way.split()[-1])).eval()
        batch = seen.batch()
        return lambda: [module(batch, seen.physics)]
    methods = {
        "bicubic": lambda: interpolated(seen),
        "kriging": lambda: krige(seen, deviation=False).mean,
        "kriging with deviation": lambda: krige(seen).mean,
        "4D-Var, 60 iterations": lambda: variational(seen, double=False).mean,
        "ensemble filter": lambda: ensemble_filter(seen, torch.Generator().manual_seed(0)).mean,
    }
    return lambda: [methods[way]()]


def sequence(options):
    ways = (
        "S3RP-D, channels 16",
        "S3RP-D, channels 64",
        "bicubic",
        "kriging",
        "kriging with deviation",
        "4D-Var, 60 iterations",
        "ensemble filter",
    )
    for size in (32,) if options.quick else (32, 64, 128):
        contestants = {way: (sequence_job, way, size, 16) for way in ways}
        compare(f"sequence: 16 frames of {size} x {size} from {size // 4} x {size // 4}", contestants, options, rounds=min(2, options.rounds))


def gpu(options):
    for batch, size in ((8, 32),) if options.device == "cpu" else ((8, 64), (64, 128), (256, 128)):
        contestants = {way: (solver_job, way, batch, size, options.device) for way in (PLAIN, OURS)}
        work = f"gpu: {batch} fields of {size} x {size}, {SUBSTEPS} steps"
        compare(work, contestants, options, batch * size * size * SUBSTEPS / 1e6, "M cell steps", options.device)
    gradient(options, options.device)
    training(options, options.device)


PARTS = {"solver": solver, "gradient": gradient, "training": training, "memory": memory, "sequence": sequence, "gpu": gpu}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", default="solver,gradient,training,memory,sequence")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes, to see that everything runs")
    parser.add_argument("--device", default="cuda", help="of the part gpu")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    for part in options.parts.split(","):
        PARTS[part](options)


if __name__ == "__main__":
    main()
