"""CAFE beside straightforward code: the closed form, the vectorised inversion, the whole attack by size, and the defences.

uv run python tests/bench/bench_cafe.py [--parts middle,records,sizes,defences] [--threads 1] [--rounds 5] [--quick]

Records are scikit-learn's digits of 16 x 16 pixels in four quarters, with a bottom net of d1 = 256, d2 = 64.

middle: steps I and II of one party in closed form, beside the single loop of SGD with steps of 1 / (2 K) and Adam, which is run with twice as many
rounds until neither error falls by a tenth any more, or to 128,000. Errors are relative, against v and h of the true records in float64.
The loop is tried with two learning rates, and also on a fresh batch in every round, whose gradients are made of the true h and v. The closed form's
error of H is far below the loop's, so that `times` is a lower bound of what the loop would take for the same.
records: step III of one party, all records at once, beside a loop that inverts one after another from the same starts; and a round of the
reference's step III beside one that assigns row by row, record by record and tensor by tensor, alone and with the gradients that both need.
sizes: the whole attack, with 1.2 N rounds, for several numbers of records N, each in a process of its own, whose peak memory is that above what it
holds before. PSNR is of whole images; records that are not recoverable are left out of it and of the errors, of which the worst party's is given.
With a GPU also N = 800 of random images of MNIST's shape with the reference's net, there with the peak of CUDA's memory.
defences: milliseconds a party and round, for normal gradients of standard deviation 1e-3; and the fake gradients of rule `clip` beside a
Python loop over the scalars, as the published port has it.

Contestants run in turns after one round to warm up, and medians are printed: of the process's CPU time with one thread, which other work on the
machine lengthens least, and of the wall's clock else. The loops of `middle`, the attacks of `sizes` and the loop over scalars run once. Peak memory
is VmHWM (Linux).
"""

import argparse
import math
import multiprocessing
import os
import time
from pathlib import Path

import torch
from timing import medians, record, table, timed

from projects.cafe.defences import FakeGradients, GaussianNoise, Pruning
from projects.cafe.descent import MiddleDescent, RecordAdam
from projects.cafe.federation import Federation, observe
from projects.cafe.inversion import DataDescent, invert
from projects.cafe.metrics import psnr, relative_error
from projects.cafe.middle import batch_gradients, descend, factorise, solve_inputs, solve_outputs
from projects.cafe.nets import ServerNet, conv_bottom, mnist_bottom
from projects.cafe.schedules import uniform
from shared.seeding import generator
from shared.vertical.parts import join_image, split_image
from shared.vertical.worlds import digit_records

PARTIES = 4
CLASSES = 10
SIDE = 16
RECORDED = {"first.weight", "first.bias"}
RATES = (1e-2, 1e-3)
MOST_ROUNDS = 128_000
PORTION = 500
GAIN = 0.9


def memory(field):
    """Return a line of the process's status in MiB: VmRSS, what it holds, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) / 1024


def digit_world(records):
    """Return a federation, and the images and labels of the first digits; those for test follow those for training."""
    parts = [digit_records(split, size=SIDE) for split in ("train", "test")]
    images, labels = torch.cat([part.values() for part in parts]), torch.cat([part.labels for part in parts])
    bottoms = [conv_bottom(1, SIDE // 2, (32, 64), first=64, hidden=32, outputs=CLASSES, seed=party) for party in range(PARTIES)]
    return Federation(bottoms, ServerNet(PARTIES, CLASSES, CLASSES, seed=0)), images[:records], labels[:records]


def random_world(records):
    """Return a federation of the reference's nets with random images of MNIST's shape, and random labels."""
    chance = generator(0, "bench", "images")
    images, labels = torch.rand(records, 1, 28, 28, generator=chance), torch.randint(CLASSES, (records,), generator=chance)
    return Federation([mnist_bottom(party) for party in range(PARTIES)], ServerNet(PARTIES, CLASSES, CLASSES, seed=0)), images, labels


def true_middle(federation, blocks, labels, batch):
    """Return one (h, v) a party in float64, (N, d1) and (N, d2); v is of the mean loss over a batch."""
    federation = federation.double()
    with torch.no_grad():
        pairs = [bottom.middle(block.double()) for bottom, block in zip(federation.bottoms, blocks, strict=True)]
    outputs = [u.requires_grad_() for _, u in pairs]
    loss = federation.loss(federation.server([bottom.tail(u) for bottom, u in zip(federation.bottoms, outputs, strict=True)]), labels)
    found = [v * len(labels) / batch for v in torch.autograd.grad(loss, outputs)]
    federation.float()
    return [(h, v) for (h, _), v in zip(pairs, found, strict=True)]


# ---- middle


def middle(options):
    records, batch, rounds = (20, 5, 30) if options.quick else (200, 40, 240)
    federation, images, labels = digit_world(records)
    blocks, schedule = split_image(images), uniform(records, batch, rounds, seed=0)
    view = observe(federation, blocks, labels, schedule, names=RECORDED)
    h, v = true_middle(federation, blocks, labels, batch)[0]
    bias, weight = view.bias_gradients(0), view.weight_gradients(0)

    def closed_form():
        outputs = solve_outputs(bias, schedule)
        return outputs.complete(), solve_inputs(weight, schedule, outputs).complete()

    exact = medians({"ours": closed_form}, options.rounds)["ours"]
    rows = [("closed form", f"{rounds}", "-", f"{1000 * exact:.0f}", *errors(closed_form(), h, v), "1")]
    counts = [400, 800] if options.quick else [2**power * 4000 for power in range(int(math.log2(MOST_ROUNDS / 4000)) + 1)]
    for rate in RATES:
        for count, seconds, found in until_plateau(recorded(bias, weight, schedule, batch, rate, counts), h, v):
            cells = (f"{rounds}", f"{count}", f"{1000 * seconds:.0f}", *errors(found, h, v), f"{seconds / exact:.0f}")
            rows.append((f"loop, Adam {rate:g}", *cells))
    for rate in RATES:
        for count, seconds, found in until_plateau(fresh(h.float(), v.float(), batch, rate, counts), h, v):
            cells = (f"{count}", f"{count}", f"{1000 * seconds:.0f}", *errors(found, h, v), f"{seconds / exact:.0f}")
            rows.append((f"loop, fresh batches, Adam {rate:g}", *cells))
    table(f"steps I and II, N {records}, K {batch} | rounds recorded | rounds run | ms | error V | error H | times", rows)
    for name in ("loop, Adam", "loop, fresh"):
        best = min((row for row in rows if row[0].startswith(name)), key=lambda row: float(row[5]))
        beside = f"{name}, Adam, stuck at {best[5]} of H (ours {rows[0][5]})".replace("Adam, Adam", "Adam")
        record("steps I and II in closed form", f"N {records}, K {batch}", exact, float(best[3]) / 1000, beside, target=10)
        print(f"{name}: the least error of H is {best[5]}, after {best[2]} rounds and {best[6]} times the closed form's seconds (at {rows[0][5]})")


def errors(found, h, v):
    return f"{relative_error(found[0].double(), v):.1e}", f"{relative_error(found[1].double(), h):.1e}"


def recorded(bias, weight, schedule, batch, rate, counts):
    """Yield (rounds, seconds, (V, H)) of the single loop over the recorded rounds, anew for each number of rounds."""
    for count in counts:
        found, seconds = timed(lambda count=count: descend(bias, weight, schedule, count, "single", 1 / (2 * batch), rate))
        yield count, seconds, found


def fresh(h, v, batch, rate, counts):
    """Yield the same where no batch comes twice; the time is of the steps alone."""
    descent, seconds = MiddleDescent(len(h), (h.shape[1], v.shape[1]), 1 / (2 * batch), rate), 0.0

    def steps(members, bias, weight):
        for of_round, *gradients in zip(members, bias, weight, strict=True):
            descent.step_outputs(of_round, gradients[0])
            descent.step_inputs(of_round, gradients[1])

    for start in range(0, counts[-1], PORTION):
        schedule = uniform(len(h), batch, min(PORTION, counts[-1] - start), seed=1 + start)
        bias, weight = batch_gradients(h, v, schedule)
        members = [row.nonzero().flatten() for row in schedule]
        seconds += timed(lambda m=members, b=bias, w=weight: steps(m, b, w))[1]
        if start + len(schedule) in counts:
            yield start + len(schedule), seconds, (descent.outputs, descent.inputs)


def until_plateau(runs, h, v):
    """Pass runs of ever more rounds on, until neither error falls by a tenth any more."""
    before = (math.inf, math.inf)
    for count, seconds, found in runs:
        yield count, seconds, found
        now = relative_error(found[0].double(), v), relative_error(found[1].double(), h)
        if all(new > GAIN * old for new, old in zip(now, before, strict=True)):
            break
        before = now


# ---- records


def one_by_one(body, inputs, shape, steps, lr=0.05):
    """Return what `invert` finds, a record after the other."""
    blocks = torch.rand(len(inputs), *shape, generator=generator(0, "blocks"))
    for number in range(len(inputs)):
        x = blocks[number : number + 1].clone().requires_grad_()
        adam = torch.optim.Adam([x], lr=lr)
        for step in range(steps):
            adam.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2
            adam.zero_grad()
            (body(x) - inputs[number]).square().sum().backward()
            adam.step()
            with torch.no_grad():
                x.clamp_(0, 1)
        blocks[number] = x.detach()[0]
    return blocks


class RowAdam(RecordAdam):
    """The same step, a record after the other, as the reference assigns its variables."""

    def step(self, values, members, gradient):
        for place, member in enumerate(members):
            number = int(member)
            self.steps[number] += 1
            self.first[number] = self.betas[0] * self.first[number] + (1 - self.betas[0]) * gradient[place]
            self.second[number] = self.betas[1] * self.second[number] + (1 - self.betas[1]) * gradient[place] ** 2
            first = self.first[number] / (1 - self.betas[0] ** self.steps[number])
            second = self.second[number] / (1 - self.betas[1] ** self.steps[number])
            values[number] -= self.lr * first / (second.sqrt() + self.eps)


def records(options):
    count, steps = (6, 20) if options.quick else (40, 150)
    federation, images, _ = digit_world(count)
    block, body = split_image(images)[0], federation.bottoms[0].body.requires_grad_(False)
    inputs, shape = body(block).detach(), block.shape[1:]
    jobs = {"plain": lambda: one_by_one(body, inputs, shape, steps), "ours": lambda: invert(body, inputs, shape, steps)}
    times = medians(jobs, options.rounds)
    apart = (jobs["plain"]() - jobs["ours"]()).abs()
    quality = [f"{float(psnr(job(), block).mean()):.1f}" for job in jobs.values()]
    cells = (*(f"{1000 * seconds:.0f}" for seconds in times.values()), f"{times['plain'] / times['ours']:.1f}")
    heads = "step III | one by one ms | ours ms | times | apart, max | mean | PSNR, one by one | ours"
    record("step III, all records at once", f"{count} records, {steps} steps", times["ours"], times["plain"], "record by record", target=5)
    table(heads, [(f"{count} records, {steps} steps", *cells, f"{apart.max():.1e}", f"{apart.mean():.1e}", *quality)])
    table("reference's step III | row by row ms | ours ms | times | apart, max", [update_row(options), round_row(options)])


def world_of_rounds(options):
    """Return what the reference's step III is given: the federation, members of a few rounds, uploads, H, shapes and all (N, ...) blocks."""
    count, batch = (20, 5) if options.quick else (200, 40)
    federation, images, labels = digit_world(count)
    blocks, schedule = split_image(images), uniform(count, batch, 3, seed=0)
    view = observe(federation, blocks, labels, schedule)
    inputs = [h.float() for h, _ in true_middle(federation, blocks, labels, batch)]
    return federation, [row.nonzero().flatten() for row in schedule], view.gradients, inputs, blocks


def update_row(options):
    """The assignments of a round alone: blocks of all parties and labels."""
    _, members, _, _, blocks = world_of_rounds(options)
    shapes = [tuple(block.shape) for block in blocks] + [(len(blocks[0]), CLASSES)]
    chance = generator(0, "bench", "rows")
    start = [torch.rand(shape, generator=chance) for shape in shapes]
    gradients = [torch.randn(len(members[0]), *shape[1:], generator=chance) for shape in shapes]

    def runner(kind):
        values, adams = [value.clone() for value in start], [kind(shape, 0.01) for shape in shapes]

        def run():
            for adam, value, gradient in zip(adams, values, gradients, strict=True):
                adam.step(value, members[0], gradient)
            return values

        return run

    return compared(f"update, K {len(members[0])}, {PARTIES} parties and labels", {"plain": runner(RowAdam), "ours": runner(RecordAdam)}, options)


def round_row(options):
    """A round with its gradients, those of the gradient distance too."""
    federation, members, uploads, inputs, blocks = world_of_rounds(options)
    shapes = [tuple(block.shape[1:]) for block in blocks]

    def runner(kind):
        descent, rounds = DataDescent(len(blocks[0]), shapes, CLASSES), [0]
        if kind is RowAdam:
            descent.adams = [RowAdam(block.shape, 0.01) for block in descent.blocks]
            descent.label_adam = RowAdam(descent.logits.shape, 0.01)

        def run():
            t = rounds[0] % len(members)
            rounds[0] += 1
            descent.step(federation.bottoms, federation.server, members[t], uploads[t], inputs)
            return descent.blocks

        return run

    return compared(f"whole round, K {len(members[0])}", {"plain": runner(RowAdam), "ours": runner(RecordAdam)}, options)


def compared(title, jobs, options):
    """Return a row of two contestants that move the same values equally often."""
    times = medians(jobs, options.rounds)
    apart = max(float((a - b).abs().max()) for a, b in zip(jobs["plain"](), jobs["ours"](), strict=True))
    record("authors' step III", title, times["ours"], times["plain"], "row by row")
    return title, *(f"{1000 * seconds:.1f}" for seconds in times.values()), f"{times['plain'] / times['ours']:.1f}", f"{apart:.1e}"


# ---- sizes


def sizes(options):
    pairs = [(16, 4), (32, 4)] if options.quick else [(200, 40), (400, 40), (800, 100), (1600, 100)]
    settings = [("digits", *pair, "cpu") for pair in pairs]
    if torch.cuda.is_available() and not options.quick:
        settings.append(("random images of MNIST's shape", 800, 40, "cuda"))
    heads = "observe s | I s | II s | III s | all s | ms a record | peak MiB more | recovered | error V | error H | PSNR dB"
    table(f"whole attack: N, K | {heads}", attacked(settings, options))


def attacked(settings, options):
    """Yield a row a setting as soon as its process ends."""
    context = multiprocessing.get_context("spawn")
    for name, count, batch, device in settings:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_attack, args=(sender, count, batch, device, options.threads, 20 if options.quick else 150))
        process.start()
        sender.close()
        seconds, risen, known, *quality = receiver.recv()
        process.join()
        cells = (*(f"{value:.2f}" for value in (*seconds, sum(seconds))), f"{1000 * sum(seconds) / count:.0f}", f"{risen:.0f}")
        yield f"{name}, {count}, {batch}, {device}", *cells, f"{known}", *(f"{value:.1e}" for value in quality[:2]), f"{quality[2]:.1f}"


def _attack(sender, count, batch, device, threads, steps):
    torch.set_num_threads(threads)
    federation, images, labels = digit_world(count) if device == "cpu" else random_world(count)
    federation, images, labels = federation.to(device), images.to(device), labels.to(device)
    blocks, schedule = split_image(images), uniform(count, batch, round(1.2 * count), seed=0).to(device)
    with torch.no_grad():
        few = federation.bottoms[0].body(blocks[0][:2])
    invert(federation.bottoms[0].body, few, blocks[0].shape[1:], steps=1)  # the first Adam of a process imports for seconds
    before = memory("VmRSS") if device == "cpu" else torch.cuda.memory_allocated() / 2**20
    view, observing = timed(lambda: observe(federation, blocks, labels, schedule, names=RECORDED), device)
    (outputs, inputs), first, second = steps_one_and_two(view, schedule, device)
    shape = blocks[0].shape[1:]

    def step_three():
        return [invert(federation.bottoms[m].body, inputs[m].values, shape, steps, seed=m) for m in range(PARTIES)]

    found, third = timed(step_three, device)
    risen = memory("VmHWM") - before if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20 - before
    truth = true_middle(federation, blocks, labels, batch)
    known = torch.stack([solved.recoverable for solved in inputs]).all(0)
    error_v, error_h = (
        max(relative_error(solved[m].values[known], truth[m][place][known]) for m in range(PARTIES)) for place, solved in ((1, outputs), (0, inputs))
    )
    quality = float(psnr(join_image(found)[known], images[known]).mean())
    sender.send(((observing, first, second, third), risen, int(known.sum()), error_v, error_h, quality))


def steps_one_and_two(view, schedule, device):
    """Return the solutions of all parties, and the seconds of each step."""

    def step_one():
        factors = factorise(schedule)
        return [solve_outputs(view.bias_gradients(m), schedule, factors) for m in range(PARTIES)]

    outputs, first = timed(step_one, device)
    inputs, second = timed(lambda: [solve_inputs(view.weight_gradients(m), schedule, outputs[m]) for m in range(PARTIES)], device)
    return (outputs, inputs), first, second


# ---- defences


def by_scalar(gradient, sigma=1.1, candidates=10, redraws=1):
    """Return the fake gradient of rule `clip` that `FakeGradients` makes in round 0 of party 0, a scalar after the other."""
    chance = generator(0, "fake", 0, 0, "party")
    ranked, order = torch.sort(gradient, stable=True)
    best, least = ranked, math.inf
    for _ in range(1 + redraws):
        for drawn in torch.randn(candidates, len(gradient), generator=chance):
            psi = torch.sort(drawn)[0] * sigma
            distance = float((psi - ranked).norm())
            if distance < least:
                best, least = psi, distance
    fake = torch.empty_like(gradient)
    for place, entry in enumerate(order):
        fake[entry] = min(best[place], max(gradient[entry], -best[place]))
    return fake


def defences(options):
    rows, port = [], []
    entries = (1000, 10_000) if options.quick else (100_000, 1_000_000)
    for count in entries:
        flat = 1e-3 * torch.randn(count, generator=generator(0, "bench", "gradient"))
        gradients = {"weight": flat[count // 100 :].reshape(-1, 10), "bias": flat[: count // 100]}
        defended = {
            "fake, pair": FakeGradients("pair"),
            "fake, absclip": FakeGradients("absclip"),
            "fake, clip": FakeGradients("clip"),
            "noise": GaussianNoise(1e-3),
            "pruning to a tenth": Pruning(0.1),
        }
        times = medians({name: lambda d=defence, g=gradients: d(g, 0, 0) for name, defence in defended.items()}, options.rounds)
        rows.append((f"{count}", *(f"{1000 * seconds:.2f}" for seconds in times.values())))
        if count == entries[0]:
            whole = torch.cat([gradients["weight"].flatten(), gradients["bias"]])
            jobs = {"plain": lambda g=whole: by_scalar(g), "ours": lambda g=gradients, d=defended["fake, clip"]: d(g, 0, 0)}
            fakes, fast = jobs["ours"](), times["fake, clip"]
            expected, slow = timed(jobs["plain"])
            record("fake gradients, clip", f"{count} entries", fast, slow, "loop over scalars")
            apart = float((torch.cat([fakes["weight"].flatten(), fakes["bias"]]) - expected).abs().max())
            port.append((f"{count}", f"{1000 * slow:.0f}", f"{1000 * fast:.1f}", f"{slow / fast:.0f}", f"{apart:.1e}"))
    table(f"entries, ms a party and round | {' | '.join(defended)}", rows)
    table("fake gradients, clip | by scalar ms | ours ms | times | apart, max", port)


PARTS = {"middle": middle, "records": records, "sizes": sizes, "defences": defences}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}")
    options.rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s) of {os.cpu_count()} cores" + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""))
    for part in options.parts:
        began = time.perf_counter()
        PARTS[part](options)
        print(f"{part}: {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
