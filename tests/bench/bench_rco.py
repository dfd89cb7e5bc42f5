"""RCO beside plain distillation, beside straightforward code with the same weights, and beside torchdistill.

uv run --group peers python tests/bench/bench_rco.py [--parts walk,switch,bare,cache,memory,recording,losses,gpu] [--threads 1] [--rounds 3] [--quick]

walk: training steps of a student that follows four anchors (EEI-4) beside one taught by the converged teacher alone, which is plain distillation;
both under the Trainer, with the teacher run in every step. An anchor teaches two epochs of a few steps here, and dozens of epochs in earnest.
switch: how long training waits for the next anchor, with its state read ahead and without, and what an epoch of one step takes beside.
bare: a training step of plain distillation under the Trainer, beside a bare PyTorch loop over the same batches, and torchdistill's DistillationBox.
cache: training steps with the anchors' outputs kept, beside running the teacher in every step; the work of keeping them is in the times, so that they
fall with the number of epochs that an anchor teaches.
memory: the peak of a whole training along 1 to 64 anchors, beside anchors that are kept as whole networks, as KD_Lib keeps them.
recording: what storing every epoch's state adds to an epoch, in both precisions, and how long it takes to read one.
losses: forward and backward passes on logits or features, beside the losses as they were published and torchdistill's.
gpu: walk, switch, bare and cache on a GPU in bfloat16 with images laid out for tensor cores, ResNet-50 to MobileNetV2(0.5); with --device cpu small
networks run in its place, to check it.

Contestants run in turns, in alternating order; medians of the rounds are printed: of the process's CPU time with one thread, which other work on the
machine lengthens least, and of the wall's clock else and for switch. `times` is how many times faster than the first line. The first epoch of each
training is left out of its times, except for cache. Bare loops must end with our weights, as far as rounding lets them. Peak memory is how far the
peak resident size (VmHWM, which is reset first; Linux) rises above what a process of the contestant's own holds before it runs; on a GPU it is what
the allocator reports.
"""

import argparse
import copy
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import torch
from memory import MIB, difference, isolated, on_gpu
from timing import clock, installed, record, table, timed
from torch.nn import functional as F

sys.path.append(str(Path(__file__).parents[1]))
from helpers.rco_reference import KeptAnchors, batches_of, contrast_by_loop, dist_by_cosines, distil, dkd_masked

from projects.rco import losses as ours_of
from projects.rco.anchors import AnchorRecorder, Route, State, store_state, write_route
from projects.rco.data import DistillationData
from projects.rco.module import RouteDistillation
from projects.rco.networks import build_network
from projects.rco.objectives import Loss
from projects.rco.recipes import Recipe
from projects.rco.sets import Samples
from projects.rco.teaching import Teacher
from projects.rco.walking import Walk
from shared.quiet import quiet_trainer, silence
from shared.seeding import generator

BATCH = 64
LOSS, RECIPE = Loss("kd"), Recipe(lr=0.01, weight_decay=5e-4)
KD, EEI = Walk(anchors=1), Walk(anchors=4)
IMPORTED = ["projects.rco.module", "projects.rco.networks", "helpers.rco_reference"]


class Pictures(DistillationData):
    """Random pictures of CIFAR's size and 100 classes, in memory."""

    def _cifar(self):
        count = self.options.length
        self.class_names = [str(number) for number in range(100)]
        images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator(0, "bench"))
        samples = Samples(images, torch.arange(count) % 100)
        return samples, None, samples


@dataclass(frozen=True)
class Setting:
    """Who teaches whom, for how long, how often at most, and on what device."""

    teacher: str
    student: str
    steps: int
    epochs: int
    rounds: int = 9
    augment: bool = True
    device: str = "cpu"
    batch: int = BATCH

    @property
    def is_vectors(self):
        return self.teacher.startswith("mlp")

    @property
    def shape(self):
        return [40] if self.is_vectors else [3, 32, 32]

    @property
    def classes(self):
        return 2 if self.is_vectors else 100

    @property
    def mixed(self):
        return self.device == "cuda"

    def data(self):
        common = {"length": self.batch * self.steps, "test_length": self.batch, "batch_size": self.batch, "held_out": 0}
        data = DistillationData(**common) if self.is_vectors else Pictures(source="cifar100", augment=self.augment, **common)
        data.setup()
        return data

    def __str__(self):
        return f"{self.teacher} -> {self.student}, batch {self.batch}, {self.epochs} epochs of {self.steps} steps, {self.device}"


VECTORS = Setting("mlp_800", "mlp_16", 100, 9)
QUICK = Setting("mlp_800", "mlp_16", 5, 4, rounds=1)
SMALL = Setting("resnet56", "resnet20", 2, 5, rounds=3)
ONCE = replace(SMALL, rounds=1)
LARGE = Setting("resnet50", "mobilenetv2_0.5", 1, 4, rounds=1)
GPU = Setting("resnet50", "mobilenetv2_0.5", 100, 9, device="cuda")
TINY = Setting("resnet14", "resnet8", 2, 5)
"""In the place of GPU on a machine without one."""


def drawn_route(folder, name, shape, outputs, states):
    """Write a route of a random network that stands still, or find the one that was written before."""
    folder = Path(folder) / f"{name}-{states}"
    if not folder.is_dir():
        folder.mkdir()
        torch.manual_seed(0)
        tensors = build_network(name, shape, outputs).state_dict()
        stored = [State(epoch, store_state(folder, epoch, tensors), None, {}) for epoch in range(1, states + 1)]
        write_route(Route(folder, {"network": name, "shape": shape, "outputs": outputs, "embeds": False}, tuple(stored), tuple(stored), True))
    return Route.load(folder)


class Stopwatch(L.Callback):
    """Seconds from the end of the first epoch, or from the start, to the end of training."""

    def __init__(self, device, from_start=False):
        self.device, self.from_start = device, from_start

    def on_train_start(self, trainer, pl_module):
        if self.from_start:
            self.began = clock(self.device)

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 0 and not self.from_start:
            self.began = clock(self.device)

    def on_train_end(self, trainer, pl_module):
        self.seconds = clock(self.device) - self.began


class Watched(RouteDistillation):
    """Tells how long each change of the teacher takes; may do without reading ahead."""

    reads_ahead = True

    def on_fit_start(self):
        super().on_fit_start()
        self.waits = []
        if not self.reads_ahead:
            self.lessons.guide.prefetch = lambda epoch: None

    def on_train_epoch_start(self):
        guide = self.lessons.guide
        before, (_, seconds) = guide.epoch, timed(super().on_train_epoch_start, "cuda" if self.device.type == "cuda" else "wall")
        if guide.epoch != before:
            self.waits.append(seconds)


def module_of(setting, walk, route, cache=False, reads_ahead=True):
    module = Watched(setting.shape, setting.classes, setting.teacher, setting.student, walk=walk, loss=LOSS, learning=RECIPE, cache=cache)
    module.route, module.reads_ahead = route, reads_ahead
    return module


def train(setting, module, data, from_start=False):
    """Train under the Trainer; returns the seconds of a step, and the student's weights."""
    watch = Stopwatch(setting.device, from_start)
    options = {"accelerator": "gpu" if setting.mixed else "cpu", "precision": "bf16-mixed" if setting.mixed else "32-true"}
    with silence():
        quiet_trainer(setting.epochs, callbacks=[watch], limit_val_batches=0, **options).fit(module, datamodule=data)
    return watch.seconds / (setting.steps * (setting.epochs - (not from_start))), weights(module.student)


def weights(net):
    """Return all weights and norms of a network in one row: rounding is as large beside its largest number as beside any."""
    return [torch.cat([tensor.detach().float().cpu().flatten() for tensor in net.state_dict().values() if tensor.is_floating_point()])]


def final_teacher(setting, route):
    net = build_network(setting.teacher, setting.shape, setting.classes)
    net.load_state_dict(route.tensors(route.final))
    return on_device(setting, net).eval().requires_grad_(False)


def on_device(setting, net):
    net = net.to(setting.device)
    return net.to(memory_format=torch.channels_last) if setting.mixed and not setting.is_vectors else net


class EpochClock:
    """Seconds from the end of the first epoch of a bare loop to the end of its last."""

    def __init__(self, setting):
        self.setting, self.times = setting, []

    def __call__(self, epoch):
        self.times.append(clock(self.setting.device))

    @property
    def step(self):
        return (self.times[-1] - self.times[0]) / (self.setting.steps * (self.setting.epochs - 1))


def bare_loop(setting, student, route, data):
    """Distil in a bare loop; returns the seconds of a step, and the student's weights."""
    watch, student = EpochClock(setting), on_device(setting, copy.deepcopy(student)).train()
    teacher = final_teacher(setting, route)
    distil(student, lambda epoch: teacher, data, setting.epochs, RECIPE, LOSS, watch, setting.device, setting.mixed)
    return watch.step, weights(student)


def peers_loop(setting, student, route, data):
    """Distil by torchdistill's box over our batches; returns the seconds of a step, and the student's weights."""
    from torchdistill.core.distillation import DistillationBox

    place = {f"{who}_module_{what}": text for who in ("student", "teacher") for what, text in (("path", "."), ("io", "output"))}
    term = {"criterion": {"key": "KDLoss", "kwargs": {**place, "temperature": LOSS.temperature, "alpha": LOSS.ce_weight}}, "weight": 1.0}
    forward = {"forward_proc": "forward_batch_only"}
    config = {
        "num_epochs": setting.epochs,
        "teacher": {"requires_grad": False, **forward},
        "student": dict(forward),
        "criterion": {"key": "WeightedSumLoss", "kwargs": {"sub_terms": {"kd": term}}},
        "optimizer": {"key": "SGD", "kwargs": {"lr": RECIPE.lr, "momentum": RECIPE.momentum, "weight_decay": RECIPE.weight_decay}},
    }
    watch, student, device = EpochClock(setting), on_device(setting, copy.deepcopy(student)), torch.device(setting.device)
    box = DistillationBox(final_teacher(setting, route), student, {}, config, device, None, False, 1)
    for epoch in range(setting.epochs):
        box.pre_epoch_process(epoch=epoch)
        for inputs, labels in batches_of(data, epoch, epoch * setting.steps):
            inputs, labels = inputs.to(device), labels.to(device)
            inputs = data.normalise(inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs)
            if setting.mixed and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(setting.device, torch.bfloat16, enabled=setting.mixed):
                loss = box.forward_process(inputs, labels, None)
            box.post_forward_process(loss)
        watch(epoch)
    return watch.step, weights(box.student_model)


def compare(title, jobs, rounds, tolerance=None, target=None, reason=""):
    """Print a table of trainings, by name; each gives the seconds of a step, and weights. With a tolerance all must end near the first one's.

    The second one is ours: it is recorded beside the others, and its target is beside the first.
    """
    times, ends = {name: [] for name in jobs}, {}
    for number in range(rounds):
        for name in list(jobs)[:: -1 if number % 2 else 1]:
            seconds, ends[name] = jobs[name]()
            times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first, ours, *peers = medians
    what, _, size = title.partition(": ")
    record(f"{what}, a step", size, medians[ours], medians[first], first, target=target, reason=reason)
    for peer in peers:
        record(f"{what}, a step", size, medians[ours], medians[peer], peer, kind="peer")
    rows = []
    for name, seconds in medians.items():
        apart = difference(ends[name], ends[first])
        rows.append([name, f"{1000 * seconds:.3f}", f"{1 / seconds:.1f}", f"{medians[first] / seconds:.3f}", f"{apart:.0e}" if tolerance else "-"])
        if tolerance and not apart <= tolerance:
            raise AssertionError(f"{title}: {name} ends {apart:.1e} apart from {first}")
    print(f"\n{title}")
    table("contestant | ms a step | steps/s | times | apart", rows)


def route_of(setting, options, states):
    return drawn_route(options.folder, setting.teacher, setting.shape, setting.classes, states)


def walk(options, settings=(VECTORS, SMALL, LARGE)):
    for setting in settings:
        _walk(options, setting)


def _walk(options, setting):
    route, data = route_of(setting, options, 4), setting.data()
    ways = {"plain distillation": KD, "EEI-4": EEI}
    jobs = {name: lambda way=way: train(setting, module_of(setting, way, route), data) for name, way in ways.items()}
    reason = "anchors change every few steps here, and every few hundred in earnest"
    compare(f"walk along EEI-4: {setting}", jobs, min(options.rounds, setting.rounds), target=0.95, reason=reason)


def switch(options, settings=(VECTORS, SMALL, LARGE)):
    rows = []
    for setting in settings:
        states = 4 if setting.teacher == "resnet50" else 9
        setting = replace(setting, epochs=states, steps=1, batch=4)
        route, data = route_of(setting, options, states), setting.data()
        size = route.bytes / states / MIB
        for reads_ahead in (True, False):
            module = module_of(setting, Walk("one_by_one"), route, reads_ahead=reads_ahead)
            step, _ = train(setting, module, data)
            waits = [1000 * seconds for seconds in module.waits]
            way = "ahead" if reads_ahead else "when needed"
            rows.append([setting.teacher, f"{size:.1f}", way, f"{statistics.median(waits):.2f}", f"{max(waits):.2f}", f"{1000 * step:.1f}"])
    print("\nswitch: another anchor every epoch, which is one step")
    table("teacher | MiB a state | read | median wait, ms | longest, ms | an epoch with all else, ms", rows)


def bare(options, settings=(VECTORS, SMALL, LARGE)):
    for setting in settings:
        _bare(options, setting)


def _bare(options, setting):
    route, data = route_of(setting, options, 4), setting.data()
    student = module_of(setting, KD, route).student
    jobs = {"bare loop": lambda: bare_loop(setting, student, route, data)}
    jobs["ours under the Trainer"] = lambda: train(setting, module_of(setting, KD, route), data)
    if installed("torchdistill"):
        jobs["torchdistill"] = lambda: peers_loop(setting, student, route, data)
    tolerance = 1e-4 if setting.is_vectors else 0.2  # from 3e-6 after the first two steps of ResNet-20 rounding grows a hundredfold in the next two
    compare(f"plain distillation under the Trainer: {setting}", jobs, min(options.rounds, setting.rounds), tolerance)


CACHED = {
    True: "a teacher as small as mlp_800 costs little beside the Trainer; outputs are made once an anchor, which four epochs hardly pay off",
    False: "outputs are made once an anchor: of the teacher's passes a quarter is left at four epochs",
}
"""Why keeping them gains little, of vectors and of pictures."""


def cache(options, settings=(VECTORS, ONCE, LARGE)):
    for setting in settings:
        for anchors in (1,) if setting is LARGE else (1, 3):
            rows = []
            for length in (1, 2, 4, 8) if setting.is_vectors else (1, 4):
                trained = replace(setting, augment=False, epochs=anchors * length)
                route, data, times = route_of(setting, options, 4), trained.data(), {True: [], False: []}
                for number in range(min(options.rounds, setting.rounds)):
                    for kept in (True, False)[:: -1 if number % 2 else 1]:
                        module = module_of(trained, Walk(anchors=anchors), route, cache=kept)
                        times[kept].append(train(trained, module, data, from_start=True)[0])
                kept, run = (1000 * statistics.median(times[kept]) for kept in (True, False))
                if length >= 4:
                    what = f"teacher's outputs kept, EEI-{anchors}, {length} epochs an anchor"
                    record(what, f"{trained}", kept / 1000, run / 1000, "teacher run in every step", target=1.5, reason=CACHED[setting.is_vectors])
                rows.append([str(length), f"{kept:.3f}", f"{run:.3f}", f"{run / kept:.2f}"])
            print(f"\ncache: EEI-{anchors}, {replace(setting, epochs='any number of')}")
            table("epochs an anchor | cached, ms a step | teacher run, ms | times", rows)


def ours_job(folder, anchors):
    """Build a training under the Trainer along as many anchors, one an epoch of one step."""
    setting = Setting("wrn_40_2", "resnet8", 1, anchors, batch=8)
    route, data = drawn_route(folder, setting.teacher, setting.shape, setting.classes, anchors), setting.data()
    return lambda: train(setting, module_of(setting, Walk("one_by_one"), route), data, from_start=True)


def kept_job(folder, anchors):
    """Build the same as a bare loop with whole networks in memory."""
    setting = Setting("wrn_40_2", "resnet8", 1, anchors, batch=8)
    route, data = drawn_route(folder, setting.teacher, setting.shape, setting.classes, anchors), setting.data()
    student, net = (build_network(name, setting.shape, setting.classes) for name in (setting.student, setting.teacher))

    def job():
        distil(student, KeptAnchors(net, route, route.epochs, anchors), data, anchors, RECIPE, LOSS)

    return job


def memory(options):
    rows = []
    for anchors in (1, 4) if options.quick else (1, 4, 16, 64):
        size = drawn_route(options.folder, "wrn_40_2", [3, 32, 32], 100, anchors).bytes / MIB
        peaks = [isolated(IMPORTED, options.threads, build, options.folder, anchors) for build in (ours_job, kept_job)]
        record("peak memory of a training", f"{anchors} anchor(s) of WRN-40-2", *peaks, "whole networks kept", unit="MiB")
        rows.append([str(anchors), f"{size:.0f}", *(f"{peak:.0f}" for peak in peaks)])
    print("\nmemory: peak MiB of a training along a route of WRN-40-2")
    table("anchors | MiB of their states on the disk | ours | whole networks kept", rows)


class WatchedRecorder(AnchorRecorder):
    """Tells how long storing takes."""

    def on_train_epoch_end(self, trainer, pl_module):
        waits = vars(self).setdefault("waits", [])
        waits.append(timed(lambda: super(WatchedRecorder, self).on_train_epoch_end(trainer, pl_module), "wall")[1])


def recording(options):
    rows = []
    for name in ("mlp_800",) if options.quick else ("mlp_800", "resnet56", "resnet50"):
        setting = Setting(name, "", 1, 2 + options.rounds, batch=4)
        data = setting.data()
        for half in (False, True):
            folder = Path(options.folder) / f"recorded-{name}-{half}"
            teacher = Teacher(name, setting.shape, setting.classes, recipe=RECIPE)
            recorder = WatchedRecorder(folder, half=half, about=teacher.about)
            with silence():
                quiet_trainer(setting.epochs, callbacks=[recorder], limit_val_batches=0, limit_train_batches=1).fit(teacher, datamodule=data)
            route = Route.load(folder)
            read = statistics.median(timed(lambda route=route: route.tensors(route.final), "wall")[1] for _ in range(options.rounds))
            stored = statistics.median(recorder.waits[1:])
            size = route.bytes / len(route.states) / MIB
            rows.append([name, "float16" if half else "float32", f"{size:.2f}", f"{1000 * stored:.1f}", f"{1000 * read:.1f}"])
    print("\nrecording: every epoch's state, through AnchorRecorder")
    table("teacher | kept as | MiB a state | ms added an epoch | ms to read one", rows)


def loss_job(function, size, count=20):
    torch.manual_seed(0)
    student, teacher = torch.randn(size, requires_grad=True), torch.randn(size)
    labels = torch.arange(size[0]) % 10

    def job():
        for _ in range(count):
            loss = function(student, teacher, labels)
            (gradient,) = torch.autograd.grad(loss, student)
        return [loss.detach()[None], gradient]

    return job


def their_loss(kind):
    """Return torchdistill's loss of the options that ours has by default, or None if it is not installed."""
    if kind not in ("kd", "dist") or not installed("torchdistill"):
        return None
    from torchdistill.losses import mid_level

    place = (".", "output", ".", "output")
    distance = mid_level.DISTLoss(*place, beta=2.0, gamma=2.0, tau=4.0)
    loss = distance if kind == "dist" else mid_level.KDLoss(*place, temperature=4.0, alpha=0.0)
    scale = 16.0 if kind == "kd" else 1.0  # without labels it leaves tau squared out
    return lambda student, teacher, labels: scale * loss({".": {"output": student}}, {".": {"output": teacher}})


def without_labels(function):
    return lambda student, teacher, labels: function(student, teacher)


def plain_kd(student, teacher, tau=4.0):
    return tau**2 * F.kl_div(F.log_softmax(student / tau, 1), F.softmax(teacher / tau, 1), reduction="batchmean")


def losses(options):
    kinds = {
        "kd": (without_labels(ours_of.kd_loss), without_labels(plain_kd)),
        "dkd": (ours_of.dkd_loss, dkd_masked),
        "dist": (without_labels(ours_of.dist_loss), without_labels(dist_by_cosines)),
        "crd": (ours_of.contrast_loss, contrast_by_loop),
    }
    rows = []
    for kind, (mine, plain) in kinds.items():
        sizes = ((64, 128), (256, 128)) if kind == "crd" else ((64, 100), (256, 1000))
        for size in sizes[:1] if options.quick else sizes:
            contestants = {"ours": mine, "straightforward": plain, "torchdistill": their_loss(kind)}
            jobs = {name: loss_job(function, size) for name, function in contestants.items() if function}
            found, times = {}, {name: [] for name in jobs}
            for number in range(options.rounds + 1):
                for name, job in jobs.items():
                    found[name], seconds = timed(job)
                    times[name] += [1e6 * seconds / 20] if number else []
            apart = difference(found["ours"], found["straightforward"])
            assert apart < 1e-3, f"{kind} is {apart:.1e} apart from the straightforward version"
            medians = {name: statistics.median(values) for name, values in times.items()}
            for beside, of in (("straightforward", "naive"), ("torchdistill", "peer")):
                if beside in medians:
                    record(f"loss {kind}, both passes", " x ".join(map(str, size)), medians["ours"] / 1e6, medians[beside] / 1e6, beside, kind=of)
            times = {name: f"{value:.0f}" for name, value in medians.items()}
            rows.append([kind, " x ".join(map(str, size)), *(times.get(name, "-") for name in contestants), f"{apart:.0e}"])
    print("\nlosses: forward and backward, microseconds")
    table("loss | size | ours | straightforward | torchdistill | apart", rows)


def gpu(options):
    setting = GPU if options.device == "cuda" else TINY
    walk(options, (setting,))
    switch(options, (setting,))
    bare(options, (setting,))
    cache(options, (setting,))
    if options.device == "cuda":
        for anchors in (1, 4):
            module = module_of(setting, Walk(anchors=anchors), route_of(setting, options, 4))
            data = setting.data()
            print(f"peak of a training along {anchors} anchor(s): {on_gpu(lambda module=module, data=data: train(setting, module, data)):.0f} MiB")


PARTS = {part.__name__: part for part in (walk, switch, bare, cache, memory, recording, losses, gpu)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=[part for part in PARTS if part != "gpu" or torch.cuda.is_available()])
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--rounds", type=int, default=3, help="at most; those of the largest networks are fewer")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu", help="of the part gpu")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest networks, to see that everything runs")
    options = parser.parse_args()
    options.rounds = 1 if options.quick else options.rounds
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}")
    torch.set_num_threads(options.threads)
    print(f"{options.threads} CPU thread(s)" + (f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""))
    with tempfile.TemporaryDirectory() as options.folder:
        for part in options.parts:
            began = time.perf_counter()
            PARTS[part](options, *([(QUICK,)] if options.quick and part in ("walk", "switch", "bare", "cache") else []))
            print(f"\n({part}: {time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
