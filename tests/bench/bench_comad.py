"""ComAD beside straightforward code, and its patch memory beside anomalib's PatchCore.

uv run --group peers python tests/bench/bench_comad.py [--parts crf,latency,fit,patchcore,spro] [--threads 1] [--rounds 5] [--quick]

crf: the dense CRF beside a plain NumPy mean field over all pairs of pixels, of 5 components and pictures of several sizes: scikit-image's coffee, a
drawn tray, and discs in noise. The plain version computes both kernels for blocks of pixels in float32, anew in every iteration, for the stored
kernel of 224 x 224 pixels has 10 GB; it runs once. `apart` is the difference of the heat maps, `other` the part of the pixels whose largest map is
another.
latency: milliseconds a picture by stage, for offline features and for a ViT-S/8 with random weights, after fitting to drawn trays; and the part of
the whole that is not the network's.
fit: what fitting to drawn trays of 224 x 224 pixels takes by step, as the verb does it: features and heat maps are kept in files. Each number of
trays is fitted to in a process of its own, whose peak memory is that above what it holds before.
patchcore: fitting (features and coreset) and a picture's score, beside anomalib's PatchCore with the same random weights, pictures, layers and ratio
of the coreset; and how well the scores agree, on good and on scratched trays, with the own coreset and with theirs.
spro: the curve of large maps, beside one whose thresholds are refined until neighbouring points are within 0.001.

Contestants run in turns after one round to warm up, and medians are printed: of the process's CPU time with one thread, which other work on the
machine lengthens least, and of the wall's clock else. Peak memory is VmHWM (Linux). With a GPU, latency and patchcore are measured on it as well.
"""

import argparse
import multiprocessing
import os
import resource
import tempfile
from itertools import pairwise
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import torch
from timing import installed, medians, record, table, timed
from torch.nn import functional as F

from projects.comad.crf import CLIP, DenseCRF
from projects.comad.defects import Defect, DefectType
from projects.comad.features import CNNFeatures, build_features
from projects.comad.inspector import Inspector, Recipe
from projects.comad.learning import Kept
from projects.comad.metrology import MetrologySettings
from projects.comad.patches import PatchMemory
from projects.comad.segmentation import segment
from projects.comad.spro import SaturatedOverlap
from projects.comad.traysim import draw_tray

COMPONENTS = 5
BLOCK = 512
MIB = 2**20
VIT = "vit_small_patch8_224.dino"
SETTINGS = {"offline, 128": ("offline", 128, False), "offline, 224": ("offline", 224, False), "offline, 224, CRF": ("offline", 224, True)}
SETTINGS["ViT-S/8, 224, CRF"] = (VIT, 224, True)
VOTE = MetrologySettings(filter="vote", certainty=0.3)  # tokens of random weights make pale components
WHY = {
    "offline": "features without weights take a few milliseconds, so that whatever follows is most of the time",
    VIT: "the CRF takes a fifth of the time, and its floor in torch is near that; half its size moves 5 % of the pixels",
}
STEP = 1e-3
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def peak():
    """Return the peak resident size in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def trays(count, size, kind="good", split="train"):
    return torch.stack([draw_tray(split, index, kind, size=size).image for index in range(count)])


# ---- crf


def plain(start, image, sxy=1.0, compat=3.0, bilateral_sxy=67.0, bilateral_srgb=3.0, bilateral_compat=4.0, iterations=2):
    """Return the mean field of all pairs, (K, H, W) and (3, H, W) arrays -> (K, H, W)."""
    height, width = image.shape[1:]
    places = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1).reshape(-1, 2).astype(np.float32)
    colours = image.reshape(3, -1).T.astype(np.float32)
    kinds = [(compat, places / sxy), (bilateral_compat, np.concatenate([places / bilateral_sxy, colours / bilateral_srgb], 1))]
    kinds = [(weight, features - features.mean(0)) for weight, features in kinds]

    def multiply(features, values):
        squares, found = (features**2).sum(1) / 2, np.empty_like(values)
        for block in (slice(at, at + BLOCK) for at in range(0, len(features), BLOCK)):
            exponents = features[block] @ features.T
            exponents -= squares
            exponents -= squares[block, None]
            found[block] = np.exp(exponents, out=exponents) @ values
        return found

    ones = np.ones((height * width, 1), np.float32)
    norms = [1 / np.sqrt(multiply(features, ones)) for _, features in kinds]
    maps = start.reshape(len(start), -1).T.astype(np.float32)
    logarithms = np.log(np.maximum(maps, CLIP))
    for _ in range(iterations):
        logits = logarithms.copy()
        for (weight, features), norm in zip(kinds, norms, strict=True):
            logits += weight * norm * multiply(features, norm * maps)
        maps = np.exp(logits - logits.max(1, keepdims=True))
        maps /= maps.sum(1, keepdims=True)
    return maps.T.reshape(start.shape)


def scenes(size):
    from skimage import data

    coffee = torch.from_numpy(data.coffee()).permute(2, 0, 1)[None].float()
    generator = torch.Generator().manual_seed(0)
    discs = torch.full((3, size, size), 120.0)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for _ in range(12):
        top, left, radius = (torch.rand(3, generator=generator) * size).tolist()
        disc = (y - top) ** 2 + (x - left) ** 2 < (0.06 * size + 0.12 * radius) ** 2
        discs[:, disc] = (40 + 180 * torch.rand(3, 1, generator=generator)).expand(3, int(disc.sum()))
    discs = discs * (1 + 0.08 * (x / size - 0.5)) + 3 * torch.randn(discs.shape, generator=generator)
    shrunk = F.interpolate(coffee, size=(size, size), mode="bilinear", antialias=True).round().to(torch.uint8)
    return {"coffee": shrunk, "tray": trays(1, size), "discs": discs[None].round().clamp(0, 255).to(torch.uint8)}


def soft_maps(size):
    """Draw nearly flat probabilities, as of cosines of 28 x 28 tokens."""
    tokens = F.avg_pool2d(torch.randn(1, COMPONENTS, 28, 28, generator=torch.Generator().manual_seed(0)), 5, 1, 2) * 2.5
    return F.interpolate(tokens, size=(size, size), mode="bilinear", align_corners=True).clamp(0, 1).softmax(1)


def crf(options):
    rows = []
    for size in (64, 112) if options.quick else (64, 112, 224):
        start = soft_maps(size)
        for name, image in scenes(size).items():
            if size == 224 and name not in options.scenes:
                continue
            before = peak()
            fast = medians({"ours": lambda start=start, image=image: DenseCRF()(start, image)}, options.rounds)["ours"]
            risen, found = peak() - before, DenseCRF()(start, image)[0].numpy()
            exact, slow = timed(lambda start=start, image=image: plain(start[0].numpy(), image[0].numpy()))
            apart, other = np.abs(found - exact), (found.argmax(0) != exact.argmax(0)).mean()
            numbers = f"{1000 * slow:.0f} {1000 * fast:.1f} {slow / fast:.0f} {apart.max():.3f} {apart.mean():.4f} {100 * other:.2f} {risen:.0f}"
            record("dense CRF", f"{name}, {size} x {size}", fast, slow, "NumPy, all pairs of pixels", target=10)
            rows.append((f"{name}, {size} x {size}", *numbers.split()))
    table("dense CRF | plain ms | ours ms | times | apart, max | mean | other, % | ours, MiB more", rows)


# ---- latency


def recipe(name, with_crf):
    k, count = (8, 1000) if name == "offline" else (COMPONENTS, 5000)
    return Recipe(k=k, crf=with_crf, restarts=3, metrology=VOTE, patches={"count": count})


def fitted(name, size, with_crf, count, device="cpu"):
    """Return an inspector of drawn trays; features are computed once."""
    inspector = Inspector(build_features(name, size).to(device), recipe(name, with_crf))
    pictures = trays(count, size).to(device)
    inspector.features.fit(pictures)
    features = [inspector.features(each) for each in pictures.split(1)]
    inspector.learn_vocabulary(torch.cat([inspector.sample(each, place) for place, each in enumerate(features)]))
    levels = [inspector.segment(*pair) for pair in zip(pictures.split(1), features, strict=True)]
    inspector.learn_components(torch.cat(levels), pictures)
    inspector.learn_patches(features)
    return inspector.calibrate(inspector.examine(each) for each in trays(max(5, count // 3), size, split="validation").to(device).split(1))


def latency(options):
    for device in DEVICES:
        rows = []
        for title, (name, size, with_crf) in SETTINGS.items():
            inspector = fitted(name, size, with_crf, 10 if options.quick else 60, device)
            image = trays(1, size, split="test").to(device)
            features = inspector.features(image)
            examined = inspector.examine(image)
            jobs = {
                "features": lambda i=inspector, x=image: i.features(x),
                "without": lambda i=inspector, x=image, f=features: segment(f, x, i.centres, None, i.metric),
                "segment": lambda i=inspector, x=image, f=features: i.segment(x, f),
                "metrology": lambda i=inspector, x=image, e=examined: i.metrology.measure(e.levels, x),
                "score": lambda i=inspector, e=examined: (i.scorer.score(e.measures, i.weights), i.judge(e)),
                "memory": lambda i=inspector, f=features, size=size: i.memory(f, (size, size)),
                "maps": lambda i=inspector, e=examined: i.maps(e),
                "all": lambda i=inspector, x=image: whole(i, x),
            }
            found = {stage: 1000 * seconds for stage, seconds in medians(jobs, options.rounds, device).items()}
            rest = sum(found[stage] for stage in ("segment", "metrology", "score", "memory", "maps"))
            cells = [f"{value:.1f}" if with_crf or stage != "segment" else "-" for stage, value in found.items()]
            part = 100 * rest / (rest + found["features"])
            record(
                "part of a picture's time that is not the features'",
                f"{title}, {device}",
                part,
                15,
                "15 %",
                kind="bound",
                unit="%",
                target=1,
                reason=WHY[name],
            )
            rows.append((title, *cells, f"{part:.0f} %"))
        stages = "features | segmentation | with CRF | metrology | scores, naming | patch memory | maps | all together"
        table(f"ms a picture, {device} | {stages} | not the features", rows)


def whole(inspector, image):
    examined = inspector.examine(image)
    inspector.judge(examined)
    return inspector.maps(examined)


# ---- fit


def fit(options):
    rows, peaks = [], []
    context = multiprocessing.get_context("spawn")
    for name in options.features:
        for count in (10, 20) if options.quick else (90, 180, 360):
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_fit, args=(sender, name, count, options.threads))
            process.start()
            sender.close()
            seconds, risen = receiver.recv()
            process.join()
            peaks.append((count, risen))
            rows.append((f"{name}, {count}", *(f"{value:.1f}" for value in (*seconds, sum(seconds))), f"{risen:.0f}"))
        (first, low), (last, high) = peaks[-2:]
        print(f"{name}: {(high - low) * 1024 / (last - first):.0f} KiB a picture are held at the peak, between {first} and {last} pictures")
    table("fit, trays | features s | vocabulary s | heat maps s | measures s | patches s | all s | peak MiB", rows)


def _fit(sender, name, count, threads, size=224):
    torch.set_num_threads(threads)
    inspector = Inspector(build_features(name, size), recipe(name, name != "offline"))
    with tempfile.TemporaryDirectory() as folder:
        kept, images = Kept(Path(folder) / "kept"), Kept(Path(folder) / "images")
        for place in range(count):
            images.put("image", [place], draw_tray("train", place, size=size).image[None])
        before, seconds = peak(), []

        def step(job):
            seconds.append(timed(job)[1])

        def observe():
            inspector.features.fit(images.all("image", count))
            for place, image in enumerate(images.all("image", count)):
                features = inspector.features(image)
                kept.put("features", [place], features)
                kept.put("tokens", [place], inspector.sample(features, place)[None])

        def cut():
            for place, (image, features) in enumerate(zip(images.all("image", count), kept.all("features", count), strict=True)):
                kept.put("levels", [place], inspector.segment(image, features))

        step(observe)
        step(lambda: inspector.learn_vocabulary(torch.cat([tokens.flatten(0, 1) for tokens in kept.all("tokens", count)])))
        step(cut)
        step(lambda: inspector.learn_components(kept.each("levels", count), images.each("image", count)))
        step(lambda: inspector.learn_patches(kept.all("features", count)))
        sender.send((seconds, peak() - before))


# ---- patchcore


def patchcore(options):
    if not installed("anomalib"):
        return
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel
    from scipy.stats import spearmanr
    from sklearn.metrics import roc_auc_score

    size, count, tested = (96, 8, 6) if options.quick else (224, options.trays, 20)
    training, good, bad = trays(count, size), trays(tested, size, split="test"), trays(tested, size, "scratch", "test")
    for device in DEVICES:
        rows = []
        for ratio in (0.1, 0.01):
            peer = PatchcoreModel(layers=["layer2", "layer3"], backbone=options.backbone, pre_trained=False).to(device)
            features = CNNFeatures(options.backbone, size).to(device)
            features.net.load_state_dict(peer.feature_extractor.feature_extractor.state_dict())
            normal = {name: (images.to(device) / 255 - features.mean) / features.std for name, images in (("train", training), ("one", good[:1]))}
            memory = PatchMemory(max(1, int(count * (size // 8) ** 2 * ratio)), candidates=count * (size // 8) ** 2)

            def their_fit(peer=peer, normal=normal, ratio=ratio):
                peer.train()
                for batch in normal["train"].split(8):
                    peer(batch)
                peer.subsample_embedding(ratio)
                peer.eval()

            def our_fit(memory=memory, features=features, device=device):
                memory.fit(features(batch.to(device)) for batch in training.split(8))

            with torch.no_grad():
                theirs, ours = timed(their_fit, device)[1], timed(our_fit, device)[1]
                jobs = {"theirs": lambda p=peer, n=normal: p(n["one"]), "features": lambda f=features, d=device: f(good[:1].to(d))}
                jobs["ours"] = lambda m=memory, f=features, d=device, size=size: m(f(good[:1].to(d)), (size, size))
                each = medians(jobs, options.rounds, device)
                pictures = torch.cat([good, bad]).to(device).split(1)
                scores = [torch.cat([peer((image / 255 - features.mean) / features.std).pred_score for image in pictures])]
                scores += [torch.cat([memory(features(image), (size, size)).scores for image in pictures])]
                memory.memory = peer.memory_bank
                scores += [torch.cat([memory(features(image), (size, size)).scores for image in pictures])]
            scores = [found.cpu().numpy() for found in scores]
            agreement = [f"{spearmanr(scores[0], other).statistic:.3f}" for other in scores[1:]]
            agreement += [f"{roc_auc_score(np.repeat([0, 1], tested), each):.3f}" for each in scores[:2]]
            setting = f"{options.backbone}, {100 * ratio:g} % of {count * (size // 8) ** 2}, {device}"
            record("PatchCore, fit", setting, ours, theirs, "anomalib", kind="peer", target=1)
            record("PatchCore, a picture", setting, each["ours"], each["theirs"], "anomalib", kind="peer", target=1)
            times = (f"{theirs:.1f}", f"{ours:.1f}", f"{theirs / ours:.1f}")
            one, other, network = (1000 * each[name] for name in ("theirs", "ours", "features"))
            singles = f"{one:.1f} {other:.1f} {one / other:.2f} {network:.1f}".split()
            rows.append((f"{100 * ratio:g} % of {count * (size // 8) ** 2}", *times, *singles, *agreement))
        heads = "fit, anomalib s | ours s | times | picture, anomalib ms | ours ms | times | network alone ms"
        heads += " | rank correlation | same coreset | AUROC, anomalib | ours"
        table(f"{options.backbone}, {size} x {size}, {device} | {heads}", rows)


# ---- spro


def refined(maps, defects, limit=0.05):
    """Return the area under the curve as its definition reads: thresholds refined until neighbouring points are within 0.001."""
    pairs = list(zip(maps, defects, strict=True))
    sound = [~torch.stack([torch.zeros_like(values, dtype=torch.bool), *(defect.mask for defect in each)]).any(0) for values, each in pairs]
    total = sum(int(mask.sum()) for mask in sound)

    def point(threshold):
        above = [values > threshold for values in maps]
        false = sum(int((found & mask).sum()) for found, mask in zip(above, sound, strict=True))
        marked = ((found, defect) for found, each in zip(above, defects, strict=True) for defect in each)
        overlaps = [min(int((found & defect.mask).sum()) / defect.saturation, 1) for found, defect in marked]
        return false / total, sum(overlaps) / len(overlaps)

    low, high = min(float(values.min()) for values in maps) - 1e-6, max(float(values.max()) for values in maps)
    points = {threshold: point(threshold) for threshold in (low, high)}
    while True:
        neighbours = [(a, b, np.abs(np.subtract(points[a], points[b])).max()) for a, b in pairwise(sorted(points))]
        wide = [(a + b) / 2 for a, b, apart in neighbours if apart > STEP and b - a > 1e-7]
        if not wide:
            break
        points |= {threshold: point(threshold) for threshold in wide}
    fpr, overlap = np.array([points[threshold] for threshold in sorted(points, reverse=True)]).T
    inside = fpr < limit
    x, y = np.append(fpr[inside], limit), np.append(overlap[inside], np.interp(limit, fpr, overlap))
    return float(np.trapezoid(y, x)) / limit, len(points)


def spro(options):
    height, width = (128, 160) if options.quick else options.maps
    generator = torch.Generator().manual_seed(0)
    maps = [F.interpolate(torch.rand(1, 1, 32, 40, generator=generator), (height, width), mode="bicubic")[0, 0] for _ in range(4)]
    defects = [[], []]
    for number, values in enumerate(maps[2:]):
        masks = [torch.zeros(height, width, dtype=torch.bool) for _ in range(2)]
        masks[0][height // 8 : height // 4, width // 8 : width // 3] = True
        masks[1][height // 2 : height // 2 + height // 6, width // 2 : width // 2 + width // 5] = True
        for mask, strength in zip(masks, (0.5, 0.3 + 0.1 * number), strict=True):
            values[mask] += strength * F.interpolate(torch.rand(1, 1, 8, 10, generator=generator), (height, width), mode="bilinear")[0, 0][mask]
        defects.append([Defect(masks[0], DefectType("whole", 255)), Defect(masks[1], DefectType("half", 254, 0.5))])

    def ours():
        overlap = SaturatedOverlap()
        for values, each in zip(maps, defects, strict=True):
            overlap.update(values, each)
        curve = overlap.curve()
        return curve.area(0.05), len(curve.fpr)

    before = peak()
    fast = medians({"ours": ours}, options.rounds)["ours"]
    risen = peak() - before
    (area, points), ((expected, thresholds), slow) = ours(), timed(lambda: refined(maps, defects))
    record("curve of sPRO", f"{len(maps)} maps of {height} x {width}", fast, slow, "thresholds refined to 0.001")
    row = f"{1000 * slow:.0f} {1000 * fast:.0f} {slow / fast:.1f} {expected:.5f} {area:.5f} {thresholds} {points} {risen:.0f}"
    heads = "sPRO, maps | refined ms | ours ms | times | AU-sPRO 0.05, refined | ours | points, refined | ours | ours, MiB more"
    table(heads, [(f"{len(maps)} of {height} x {width}", *row.split())])


PARTS = {"crf": crf, "latency": latency, "fit": fit, "patchcore": patchcore, "spro": spro}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=lambda text: text.split(","), default=list(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--features", nargs="+", default=["offline"], help="of fit: offline, vit_tiny_patch16_224, vit_small_patch8_224.dino")
    parser.add_argument("--backbone", default="resnet18", help="of patchcore, such as wide_resnet50_2")
    parser.add_argument("--trays", type=int, default=40, help="that patchcore is fitted to")
    parser.add_argument("--scenes", nargs="+", default=["coffee"], help="of crf at 224 x 224, where the plain one takes a minute and a half each")
    parser.add_argument("--maps", nargs=2, type=int, default=[640, 800], help="height and width of the maps of spro")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}: choose among {', '.join(PARTS)}")
    options.rounds = 1 if options.quick else options.rounds
    torch.set_num_threads(options.threads)
    print(f"{options.threads} thread(s) of {os.cpu_count()} cores" + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""))
    for part in options.parts:
        PARTS[part](options)


if __name__ == "__main__":
    main()
