"""RSKNet-MTSP beside straightforward code with the same weights, and beside librosa and SpeechBrain.

uv run --group peers python tests/bench/bench_rsknet.py [--parts frontend,rtf,...,gpu] [--threads 1] [--rounds 3] [--quick]

frontend: 80 log-mel features of 2, 5 and 60 s and of 32 recordings of 2 s, beside the definition file by file, torchaudio's port of Kaldi file by
file, librosa's mel spectrogram with a logarithm, and SpeechBrain's features. The last two define theirs a little differently (no pre-emphasis).
rtf: from waveform to embedding, ours and SpeechBrain's ECAPA-TDNN with its own features, all with random weights whose batch norms have the
statistics of noise, so that values keep their size as in a trained network. ms/M is milliseconds per million parameters.
block: the selective kernel convolution beside one that stacks its branches and sums them.
pooling: MTSP beside torch.var_mean stage by stage.
training: a step of the small and of the full network at batch 16, from features, beside straightforward blocks, pooling and margin.
scoring: 580,000 trials by cosine, as-norm and PLDA, beside all pairs gathered at once and a sorted cohort.
lists: reading 580,000 lines, beside a loop over lines.
gpu: inference and training steps on a GPU, in float32 and with autocast to bfloat16; with --device cpu it runs on small networks, to check it.

Contestants run in turns after one round to warm up; medians of the rounds are printed, of the process's CPU time with one thread, which other work
on the machine lengthens least, and of the wall's clock else. `times` is how many times faster than the straightforward version, `apart` the greatest
difference from its results, as a part of the greatest of them. Peak memory is how far the peak resident size (VmHWM, which is reset first; Linux)
rises above what a process of the contestant's own holds before it runs; on a GPU it is what the allocator reports.
"""

import argparse
import math
import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from memory import difference, isolated, on_gpu
from timing import installed, record, timed
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

from projects.rsknet.blocks import SKConv2d
from projects.rsknet.costs import settle
from projects.rsknet.features import Fbank
from projects.rsknet.folding import folded
from projects.rsknet.lists import read_trials
from projects.rsknet.model import build_net, parameters
from projects.rsknet.module import SpeakerVerification
from projects.rsknet.plda import Plda, speaker_means
from projects.rsknet.pooling import FLOOR, MTSP
from projects.rsknet.scoring import cohort_statistics, cosine, normalised
from shared.losses import MarginSoftmax

PLAIN = "straightforward"
RATE, BINS = 16_000, 80
COHORT, TOP, WIDTH = 1_200, 300, 256
NETS = ("rsknet_mtsp", "rsknet_mtsp_l", "resnet34", "ecapa512", "ecapa1024", "xvector")
THEIRS = {"speechbrain 512": [512] * 4 + [1536], "speechbrain 1024": [1024] * 4 + [3072]}
MODULES = ("module", "costs", "folding", "lists", "plda")
IMPORTED = [
    "librosa",
    "speechbrain.lobes.features",
    "speechbrain.lobes.models.ECAPA_TDNN",
    "torchaudio.compliance.kaldi",
    *(f"projects.rsknet.{name}" for name in MODULES),
]


def compare(title, contestants, options, count=1, unit="inputs", device="cpu", tolerance=1e-3, targets=None):
    """Print a table of contestants; returns their seconds of an input, by name.

    Args:
        title: what is measured.
        contestants: functions with their arguments, by name; a function builds a job, which returns tensors. What is named PLAIN is the measure.
        options: of the command line.
        count: units that a job works through.
        unit: their name.
        device: `cpu` or `cuda`.
        tolerance: of `apart`, for contestants whose name begins with ours.
        targets: ratios that were asked for beside a contestant, and why they may not be reached.
    """
    jobs = {name: build(*arguments) for name, (build, *arguments) in contestants.items()}
    results, times = {}, {name: [] for name in jobs}
    for number in range(options.rounds + 1):
        for name, job in jobs.items():
            found, seconds = timed(job, device)
            if number:
                times[name].append(seconds / count)
            else:
                results[name] = [each.detach().double().cpu() for each in found]
    medians = {name: statistics.median(values) for name, values in times.items()}
    peaks = {name: on_gpu(job) for name, job in jobs.items()} if device == "cuda" else {}
    if device != "cuda":
        peaks = {name: isolated(IMPORTED, options.threads, *contestants[name]) for name in jobs}
    del jobs
    what, _, size = title.partition(": ")
    for name in medians if "ours" in medians else ():
        if name != "ours":
            target, reason = (targets or {}).get(name, (None, ""))
            kind = "naive" if name == PLAIN else "peer"
            record(what, size, medians["ours"], medians[name], name, kind=kind, target=target, reason=reason, peak=peaks["ours"])
    print(f"\n{title}\n  {'':24} {'ms':>10} {'times':>7} {unit + '/s':>12} {'peak MiB':>9} {'apart':>8}")
    for name, seconds in medians.items():
        times_faster = f"{medians[PLAIN] / seconds:7.2f}" if PLAIN in medians else "      -"
        apart = difference(results[name], results[PLAIN]) if PLAIN in results and name.startswith("ours") else None
        end = f"{1 / seconds:12.1f} {peaks[name]:9.1f} {'-' if apart is None else f'{apart:.0e}':>8}"
        print(f"  {name:24} {1000 * seconds:10.3f} {times_faster} {end}", flush=True)
        if apart is not None and not apart <= tolerance:
            raise AssertionError(f"{title}: {name} is {apart:.1e} apart from {PLAIN}")
    return medians


def draw(*size):
    return torch.randn(*size, generator=torch.Generator().manual_seed(0))


def plain_fbank(waveform):
    """Kaldi's definition for one file: (N,) -> (80, T)."""
    frames = 32768 * waveform.unfold(0, 400, 160)
    frames = frames - frames.mean(1, keepdim=True)
    before = torch.cat([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - 0.97 * before) * torch.hamming_window(400, periodic=False)
    power = torch.fft.rfft(frames, 512).abs().square()
    mel = 1127 * torch.log1p(torch.arange(257) * RATE / 512 / 700)
    edges = torch.linspace(1127 * math.log1p(20 / 700), 1127 * math.log1p(8000 / 700), BINS + 2)[:, None]
    rising, falling = (mel - edges[:-2]) / (edges[1:-1] - edges[:-2]), (edges[2:] - mel) / (edges[2:] - edges[1:-1])
    return (power @ torch.minimum(rising, falling).clamp_min(0).T).clamp_min(torch.finfo(torch.float32).eps).log().T


def frontend_job(way, batch, seconds):
    waveforms = 0.1 * draw(batch, round(seconds * RATE))
    if way == "ours":
        fbank = Fbank(RATE, BINS).eval()
        return lambda: [fbank(waveforms)]
    if way == PLAIN:
        return lambda: [torch.stack([plain_fbank(waveform) for waveform in waveforms])]
    if way == "speechbrain":
        from speechbrain.lobes.features import Fbank as TheirFbank

        features = TheirFbank(n_mels=BINS)
        return lambda: [features(waveforms)]
    if way == "torchaudio":
        from torchaudio.compliance import kaldi

        given = {"num_mel_bins": BINS, "window_type": "hamming", "dither": 0.0, "sample_frequency": RATE}
        return lambda: [kaldi.fbank(2**15 * each[None], **given) for each in waveforms]
    import librosa

    about = {"sr": RATE, "n_fft": 512, "win_length": 400, "hop_length": 160, "window": "hamming", "center": False, "n_mels": BINS, "fmin": 20}
    return lambda: [torch.from_numpy(np.log(librosa.feature.melspectrogram(y=each.numpy(), **about) + 1e-10)) for each in waveforms]


def frontend(options):
    ways = ["ours", PLAIN, *(peer for peer in ("librosa", "torchaudio", "speechbrain") if installed(peer))]
    targets = {"torchaudio": (3, "padded buffers, more groups of filters and other chunks were tried without gain")}
    for batch, seconds in ((1, 2),) if options.quick else ((1, 2), (1, 5), (1, 60), (32, 2)):
        contestants = {way: (frontend_job, way, batch, seconds) for way in ways}
        compare(f"features of speech: {batch} x {seconds} s", contestants, options, batch, "recordings", targets=targets)


def our_module(name):
    module = SpeakerVerification(name, rate=RATE, bins=BINS, frame_shift=10.0)
    settle(module.net, BINS)
    return module.eval()


def embedding_job(name, seconds):
    waveform = 0.1 * draw(1, seconds * RATE)
    if name in THEIRS:
        from speechbrain.lobes.features import Fbank as TheirFbank

        features, net = TheirFbank(n_mels=BINS), their_net(name)

        def work():
            found = features(waveform)
            return [net(found - found.mean(1, keepdim=True))]
    else:
        module = our_module(name.removesuffix(", folded"))
        if name.endswith(", folded"):
            module.net = folded(module.net)

        def work():
            return [module(waveform)]

    def job():
        with torch.inference_mode():
            return work()

    return job


def their_net(name):
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

    torch.manual_seed(0)
    net = ECAPA_TDNN(BINS, channels=THEIRS[name], lin_neurons=192)
    update_bn([draw(4, 200, BINS)], net)
    return net.eval()


def rtf(options):
    sizes = {name: parameters(build_net(name, BINS)) / 1e6 for name in NETS}
    has_peer = installed("speechbrain")
    sizes |= {name: parameters(their_net(name)) / 1e6 for name in THEIRS} if has_peer else {}
    sizes["rsknet_mtsp_l, folded"] = sizes["rsknet_mtsp_l"]
    for seconds in (2,) if options.quick else (2, 5, 60):
        contestants = {name: (embedding_job, name, seconds) for name in sizes}
        found = compare(f"rtf: from {seconds} s of sound to an embedding", contestants, options, unit="recordings")
        if has_peer:
            note(found, sizes, seconds)
        print(f"  {'':24} {'M params':>9} {'RTF':>9} {'ms/M':>9}")
        for name, size in sizes.items():
            print(f"  {name:24} {size:9.2f} {found[name] / seconds:9.4f} {1000 * found[name] / size:9.2f}")


def note(found, sizes, seconds):
    """Record embeddings beside SpeechBrain's: the light network, in all and for each parameter, and our own ECAPA-TDNN."""
    ours, usual, size = "rsknet_mtsp_l", "speechbrain 1024", f"{seconds} s of sound"
    record("RSKNet-MTSP-L, embedding", size, found[ours], found[usual], "SpeechBrain's ECAPA-TDNN 1024", kind="peer", target=1)
    record("RSKNet-MTSP-L, embedding", size, found[ours], found["speechbrain 512"], "SpeechBrain's ECAPA-TDNN 512", kind="peer")
    reason = "a two-dimensional convolution uses each of its weights at every frequency"
    each = [found[name] / sizes[name] for name in (ours, usual)]
    record("RSKNet-MTSP-L, for a million parameters", size, *each, "SpeechBrain's ECAPA-TDNN 1024", kind="peer", target=1, reason=reason)
    for width in ("512", "1024"):
        beside = f"SpeechBrain's ECAPA-TDNN {width}"
        record(f"ECAPA-TDNN {width}, embedding", size, found[f"ecapa{width}"], found[f"speechbrain {width}"], beside, kind="peer")


class StackedSK(SKConv2d):
    """The block as it reads: branches stacked, summed, averaged, weighted and summed."""

    def forward(self, features, mask=None):
        stacked = torch.stack([torch.relu(branch(features)) for branch in self.branches], 1)  # (B, M, C, F, T)
        weights = self.gate(stacked.sum(1).mean((2, 3)))[..., None, None]
        return (stacked * weights).sum(1)


class PlainMTSP(MTSP):
    """Pooling as it reads."""

    def forward(self, stages, masks):
        parts = []
        for stage in stages:
            variance, mean = torch.var_mean(stage.flatten(1, 2), 2, correction=0)
            parts += [mean, (variance + FLOOR).sqrt()]
        return torch.cat(parts, 1)


def straightforward(net):
    """Return a network with the same weights whose blocks and pooling are straightforward, in the usual layout."""
    for module in net.modules():
        if isinstance(module, SKConv2d):
            module.__class__ = StackedSK
        elif isinstance(module, MTSP):
            module.__class__ = PlainMTSP
    return net.to(memory_format=torch.contiguous_format)


def block_job(way, batch, size, separable, backward):
    torch.manual_seed(0)
    block = SKConv2d(size[0], ((1, 1), (1, 2)), separable=separable).train(backward)
    layout = torch.channels_last
    if way == PLAIN:
        block.__class__, layout = StackedSK, torch.contiguous_format
    block = block.to(memory_format=layout)
    features = draw(batch, *size).relu().to(memory_format=layout).requires_grad_(backward)

    def job():
        with torch.set_grad_enabled(backward):
            found = block(features)
            return [found, *(torch.autograd.grad(found.square().sum(), features) if backward else ())]

    return job


def block(options):
    for size in ((256, 10, 25),) if options.quick else ((32, 80, 200), (256, 10, 25)):
        for separable in (False, True):
            for batch, backward in ((1, False), (8, True)):
                contestants = {way: (block_job, way, batch, size, separable, backward) for way in ("ours", PLAIN)}
                work = f"{'separable' if separable else 'full'}, batch {batch}, {'forward and backward' if backward else 'forward'}"
                tolerance = 5e-2 if backward else 1e-3  # rounding turns some of four million ReLUs at 0 on or off; in float64 it is 4e-14
                compare(f"block: {' x '.join(map(str, size))}, {work}", contestants, options, batch, tolerance=tolerance)


def pooling_job(way, batch, backward):
    stages = [draw(batch, 32 * 2**number, BINS // 2**number, 200 // 2**number) for number in range(4)]
    stages = [stage.to(memory_format=torch.channels_last).requires_grad_(backward) for stage in stages]
    pool = (MTSP if way == "ours" else PlainMTSP)([32, 64, 128, 256], [80, 40, 20, 10])

    def job():
        with torch.set_grad_enabled(backward):
            found = pool(stages, [None] * 4)
            return [found, *(torch.autograd.grad(found.square().sum(), stages) if backward else ())]

    return job


def pooling(options):
    for batch, backward in ((1, False), (16, False), (16, True)):
        contestants = {way: (pooling_job, way, batch, backward) for way in ("ours", PLAIN)}
        compare(f"pooling: batch {batch}, 200 frames, {'forward and backward' if backward else 'forward'}", contestants, options, batch)


def plain_margin(weight, embeddings, labels, margin=0.2, scale=32.0):
    """PLDA as it reads, but for its guard, which random embeddings do not need."""
    angles = F.linear(F.normalize(embeddings), F.normalize(weight)).clamp(-1 + 1e-7, 1 - 1e-7).acos()
    return scale * torch.where(F.one_hot(labels, len(weight)).bool(), (angles + margin).cos(), angles.cos())


def drawn_net(name, bins, way, device="cpu"):
    torch.manual_seed(0)
    net = build_net(name, bins).to(device)
    return straightforward(net) if way == PLAIN else net.to(memory_format=torch.channels_last)


def step_job(name, bins, batch, frames, way, device="cpu", autocast=False):
    net = drawn_net(name, bins, way, device).train()
    head = MarginSoftmax(net.embedding_size, 1000, "aam", 0.2, 32.0).to(device)
    features, labels = draw(batch, bins, frames).to(device), torch.arange(batch, device=device)
    weights = [*net.parameters(), *head.parameters()]
    optimiser = torch.optim.SGD(weights, 1e-6, momentum=0.9, nesterov=True)

    def job():
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            embeddings = net(features)
        embeddings = embeddings.float()
        logits = plain_margin(next(head.parameters()).reshape(1000, -1), embeddings, labels) if way == PLAIN else head(embeddings, labels)
        loss = F.cross_entropy(logits, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        return [loss]

    return job


def training(options):
    settings = [("tiny_rsknet_mtsp", 24, 100), ("tiny_rsknet_mtsp_l", 24, 100), ("rsknet_mtsp", BINS, 200)]
    for name, bins, frames in settings[:1] if options.quick else settings:
        contestants = {way: (step_job, name, bins, 16, frames, way) for way in ("ours", PLAIN)}
        compare(f"training: {name}, 16 crops of {frames} frames", contestants, options, 16, "crops")


def scoring_job(backend, way, files, trials):
    chance = torch.Generator().manual_seed(0)
    embeddings = F.normalize(torch.randn(files, WIDTH, generator=chance, dtype=torch.float64))
    enrol, test = torch.randint(files, (2, trials), generator=chance)
    background = torch.randn(COHORT, 1, WIDTH, generator=chance, dtype=torch.float64) + torch.randn(COHORT, 4, WIDTH, generator=chance).double()
    background, speakers = F.normalize(background.flatten(0, 1)), torch.arange(COHORT).repeat_interleave(4)
    cohort = speaker_means(background, speakers)[0]
    plda = Plda.fit(background, speakers) if backend == "plda" else None

    def ours():
        if plda is None:
            scores = cosine(embeddings, embeddings, enrol, test)
            if backend == "cosine":
                return [scores]
            found = cohort_statistics(embeddings, cohort, TOP)
            return [normalised(scores, found, found, enrol, test)]
        projected, ones, step = plda.project(embeddings), torch.ones(trials, dtype=torch.int64), 1 << 15
        parts = zip(enrol.split(step), test.split(step), ones.split(step), strict=True)
        return [torch.cat([plda.score(projected[left], counts, projected[right]) for left, right, counts in parts])]

    def plain():
        if plda is not None:
            return [plda.score(plda.project(embeddings[enrol]), torch.ones(trials, dtype=torch.int64), plda.project(embeddings[test]))]
        scores = F.cosine_similarity(embeddings[enrol], embeddings[test])
        if backend == "cosine":
            return [scores]
        nearest = (embeddings @ F.normalize(cohort).T).sort(1, descending=True).values[:, :TOP]
        mean, deviation = nearest.mean(1), nearest.std(1, unbiased=False)
        return [((scores - mean[enrol]) / deviation[enrol] + (scores - mean[test]) / deviation[test]) / 2]

    return ours if way == "ours" else plain


def scoring(options):
    for backend in ("cosine", "as-norm", "plda"):
        contestants = {way: (scoring_job, backend, way, options.files, options.trials) for way in ("ours", PLAIN)}
        compare(f"scoring: {options.trials} trials of {options.files} files, {backend}", contestants, options, options.trials, "trials")


def list_job(way, path):
    def plain():
        places, columns = {}, ([], [], [])
        with path.open() as file:
            for line in file:
                label, *names = line.split()
                columns[0].append(label == "1")
                for column, name in zip(columns[1:], names, strict=True):
                    column.append(places.setdefault(name, len(places)))
        return [torch.tensor(columns[0])]

    return plain if way == PLAIN else lambda: [read_trials(path).is_target]


def lists(options):
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "list_test_all2.txt"
        pairs = rng.integers(0, options.files, (options.trials, 2))
        names = [f"id{10000 + index % 1251}/{index:011x}/{1 + index % 40:05d}.wav" for index in range(options.files)]
        path.write_text("".join(f"{number % 2} {names[a]} {names[b]}\n" for number, (a, b) in enumerate(pairs)))
        contestants = {way: (list_job, way, path) for way in ("ours", PLAIN)}
        compare(f"lists: {options.trials} lines of a trial list", contestants, options, options.trials, "lines")


def inference_job(name, bins, batch, frames, way, device, autocast):
    net = drawn_net(name, bins, way, device)
    update_bn([draw(4, bins, 200).to(device)], net)
    net, features = net.eval(), draw(batch, bins, frames).to(device)

    def job():
        with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=autocast):
            return [net(features)]

    return job


def gpu(options):
    device = options.device
    names, bins, batches, trained = (
        (NETS[:2], BINS, (1, 64), 128) if device == "cuda" else (("tiny_rsknet_mtsp", "tiny_rsknet_mtsp_l"), 24, (1, 2), 4)
    )
    for name in names:
        for autocast in (False, True):
            setting, loose = f"{name}, 200 frames, {'bfloat16' if autocast else 'float32'}, {device}", 0.2 if autocast else 1e-2
            for batch in batches:
                contestants = {way: (inference_job, name, bins, batch, 200, way, device, autocast) for way in ("ours", PLAIN)}
                compare(f"gpu: inference, batch {batch}, {setting}", contestants, options, batch, device=device, tolerance=loose)
            contestants = {way: (step_job, name, bins, trained, 200, way, device, autocast) for way in ("ours", PLAIN)}
            compare(f"gpu: training step, batch {trained}, {setting}", contestants, options, trained, "crops", device, loose)


PARTS = {part.__name__: part for part in (frontend, rtf, block, pooling, training, scoring, lists, gpu)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=[part for part in PARTS if part != "gpu" or torch.cuda.is_available()])
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--files", type=int, default=20_000, help="of scoring and lists")
    parser.add_argument("--trials", type=int, default=580_000, help="of scoring and lists")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu", help="of the part gpu")
    parser.add_argument("--quick", action="store_true", help="one round of the smallest sizes, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.files, options.trials = 1, 1000, 20_000
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}")
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    print(f"{options.threads} CPU thread(s)" + (f", {torch.cuda.get_device_name()}" if options.device == "cuda" else ""))
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
