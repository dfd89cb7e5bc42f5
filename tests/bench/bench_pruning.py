"""Our pruning engine beside torch-pruning: same network, gradients and share of channels, in one process.

python tests/bench/bench_pruning.py [--device cuda] [--quick]

Three comparisons: scoring on cached groups; one whole step (gradients, groups, scores, selection, removal); and ten steps one after the other.
"""

import argparse
import statistics
import warnings
from copy import deepcopy

import torch
import torch_pruning as tp
import torchvision
from timing import record, timed

from shared.backbones.unets import build_unet
from shared.pruning import Activations, BatchTaylor, Budget, GroupIndex, apply, magnitude, rank_correlation, select, taylor


def seconds(run, device):
    return timed(run, device)[1]


def ratio(name, ours, theirs, device, rounds):
    """Time two functions in alternating rounds and print the medians and their ratio."""
    ours(), theirs()
    times = [[seconds(run, device) for run in (ours, theirs)] for _ in range(rounds)]
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    network, _, what = name.partition(": ")
    record(
        f"scoring on cached groups, {what}", f"{network}, {device}", mine, other, "torch-pruning", kind="peer", target=3 if device == "cuda" else 1
    )
    print(f"{name:52} {mine * 1e3:10.1f} {other * 1e3:10.1f} {other / mine:8.2f}", flush=True)


def networks(device):
    unet = build_unet("cifar10", 32, 3).to(device).eval()
    inputs = {"sample": torch.randn(1, 3, 32, 32, device=device), "timestep": torch.tensor([1], device=device)}
    heads = {getattr(m, layer): m.heads for m in unet.modules() if hasattr(m, "to_q") for layer in ("to_q", "to_k", "to_v")}
    yield "U-Net 35.7 M", unet, inputs, {"ignored_layers": [unet.conv_out], "num_heads": heads}
    resnet = torchvision.models.resnet50().to(device).eval()
    yield "ResNet-50", resnet, torch.randn(1, 3, 64, 64, device=device), {"ignored_layers": [resnet.fc]}


def output(model, inputs):
    return model(**inputs).sample if isinstance(inputs, dict) else model(inputs)


def backward(model, inputs):
    model.zero_grad()
    output(model, inputs).square().mean().backward()


def scoring(name, model, inputs, device, rounds):
    backward(model, inputs)
    index = GroupIndex.build(model, inputs)
    groups = list(tp.DependencyGraph().build_dependency(model, inputs, verbose=False).get_all_groups())
    magnitudes, taylors = tp.importance.GroupMagnitudeImportance(), tp.importance.GroupTaylorImportance()
    ratio(f"{name}: magnitude", lambda: magnitude(index, model), lambda: [magnitudes(group) for group in groups], device, rounds)
    ratio(f"{name}: Taylor", lambda: taylor(index, model), lambda: [taylors(group) for group in groups], device, rounds)


def fix_attributes(model):
    """What users of torch-pruning do by hand for diffusers."""
    for module in model.modules():
        if type(module).__name__ in ("Upsample2D", "Downsample2D"):
            module.channels = module.conv.in_channels


def steps(name, model, inputs, options, device, rounds, count):
    """Prune a tenth of the channels in `count` steps; each round begins with a fresh copy, made outside the clock."""
    total = 0.1 if count == 1 else 0.3
    times = []
    for _ in range(rounds):
        mine, other = deepcopy(model), deepcopy(model)
        memo = dict(zip(model.modules(), other.modules(), strict=True))
        theirs = {
            "ignored_layers": [memo[layer] for layer in options["ignored_layers"]],
            "num_heads": {memo[layer]: heads for layer, heads in options.get("num_heads", {}).items()},
        }
        protected = [layer for layer, module in model.named_modules() if module in options["ignored_layers"]]

        def ours(mine=mine, protected=protected):
            index = GroupIndex.build(mine, inputs, protected)
            for done in range(count):
                backward(mine, inputs)
                share = total / count / (1 - total * done / count)
                index = apply(mine, select(index, taylor(index, mine), Budget(channels=share), scope="local", cap=0.9))

        def reference(other=other, theirs=theirs):
            pruner = tp.pruner.BasePruner(
                other, inputs, tp.importance.GroupTaylorImportance(), pruning_ratio=total, iterative_steps=count, max_pruning_ratio=0.9, **theirs
            )
            for _ in range(count):
                backward(other, inputs)
                pruner.step()
                fix_attributes(other)

        times.append([seconds(ours, device), seconds(reference, device)])
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    what = f"{count} whole step{'s' * (count > 1)}"
    record(what, f"{name}, {device}", mine, other, "torch-pruning", kind="peer", target=1 if count == 1 else None)
    print(f"{f'{name}: {count} whole step' + 's' * (count > 1):52} {mine * 1e3:10.1f} {other * 1e3:10.1f} {other / mine:8.2f}", flush=True)


def repeated_without_gradients(name, model, inputs, options, device, rounds, is_rebuilt, count=10):
    """Only what the engine does in ten steps on weights alone: score, select, remove; torch-pruning with one pruner, or with a new one each step."""
    described = "a pruner a step" if is_rebuilt else "one pruner"
    times = []
    for _ in range(rounds):
        mine, other = deepcopy(model), deepcopy(model)
        memo = dict(zip(model.modules(), other.modules(), strict=True))
        heads = {memo[layer]: number for layer, number in options.get("num_heads", {}).items()}
        protected = [layer for layer, module in model.named_modules() if module in options["ignored_layers"]]
        index = GroupIndex.build(mine, inputs, protected)
        ignored = [memo[layer] for layer in options["ignored_layers"]]
        settings = {"ignored_layers": ignored, "num_heads": heads, "max_pruning_ratio": 0.9}
        importance = tp.importance.GroupMagnitudeImportance()
        pruner = tp.pruner.BasePruner(other, inputs, importance, pruning_ratio=0.3, iterative_steps=count, **settings)

        def ours(mine=mine, index=index):
            for done in range(count):
                index = apply(mine, select(index, magnitude(index, mine), Budget(channels=0.03 / (1 - 0.03 * done)), scope="local", cap=0.9))

        def reference(pruner=pruner, other=other, importance=importance, settings=settings):
            for done in range(count):
                if is_rebuilt:
                    pruner = tp.pruner.BasePruner(other, inputs, importance, pruning_ratio=0.03 / (1 - 0.03 * done), **settings)
                pruner.step()
                fix_attributes(other)

        times.append([seconds(ours, device), seconds(reference, device)])
    mine, other = (statistics.median(column) for column in zip(*times, strict=True))
    what, target = f"{count} steps on the weights alone", 2 if is_rebuilt else None
    record(what, f"{name}, {device}", mine, other, f"torch-pruning, {described}", kind="peer", target=target)
    print(f"{f'{name}: {count} steps, weights only, {described}':52} {mine * 1e3:10.1f} {other * 1e3:10.1f} {other / mine:8.2f}", flush=True)


def gradients(model, device, timesteps):
    """How our shorter ways to collect gradients rank channels, and what they cost, beside the full pass over late timesteps."""
    index = GroupIndex.build(model, {"sample": torch.randn(1, 3, 32, 32, device=device), "timestep": torch.tensor([1], device=device)})
    clean = torch.rand(2, 3, 32, 32, device=device) * 2 - 1
    noise, trigger = torch.randn_like(clean), torch.zeros_like(clean)
    trigger[:, :, -14:, -14:] = 1
    alpha = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, device=device), 0)

    def noisy(t, triggered):
        return alpha[t].sqrt() * clean + (1 - alpha[t]).sqrt() * (noise + trigger * triggered)

    def full(chosen):
        found = []
        for triggered in (False, True):
            collector = BatchTaylor(index, model, "abs")
            for t in chosen:
                (model(noisy(t, triggered), torch.tensor(t, device=device)).sample - noise).square().mean().backward()
            collector.step()
            found.append(collector.scores())
        return found

    def together(chosen, dtype=None):
        with Activations(index, model, parts=2, gradients=True) as seen:
            for t in chosen:
                with torch.autocast(device, dtype, enabled=dtype is not None):
                    predicted = model(torch.cat([noisy(t, False), noisy(t, True)]), torch.tensor(t, device=device)).sample
                (predicted.float() - noise.repeat(2, 1, 1, 1)).square().mean().backward()
        return [seen.taylor("abs", part) for part in range(2)]

    model.zero_grad()
    reference, few = full(timesteps), timesteps[:: max(1, len(timesteps) // 3)]
    print(f"\ncollecting gradients of clean and triggered passes over {len(timesteps)} late timesteps (rank correlation with the full pass)")
    rows = (
        (f"weights, {len(timesteps)} timesteps", lambda: full(timesteps), reference),
        (f"weights, {len(few)} timesteps", lambda: full(few), reference),
        (f"gates in one pass, {len(timesteps)} timesteps", lambda: together(timesteps), None),
        (f"gates in one pass, {len(few)} timesteps", lambda: together(few), together(timesteps)),
        (f"gates in one pass, {len(timesteps)} timesteps, bf16", lambda: together(timesteps, torch.bfloat16), together(timesteps)),
    )
    for name, run, beside in rows:
        model.zero_grad()
        found: list = []
        took = seconds(lambda: found.extend(run()), device)  # noqa: B023
        ranks = " ".join(f"{rank_correlation(one, other):.3f}" for one, other in zip(found, beside, strict=True)) if beside else "    -"
        print(f"{name:52} {took:8.2f} s   {ranks}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--timesteps", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="one round of ResNet-50, without gradients, to see that everything runs")
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    warnings.simplefilter("ignore")
    device, rounds = options.device, options.rounds
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} CPU thread(s)"
    print(f"{name}, torch-pruning {tp.__version__}, median of {rounds} alternating rounds\n{'':52} {'ours ms':>10} {'theirs ms':>10} {'ratio':>8}")
    for name, model, inputs, settings in networks(device):
        if options.quick and isinstance(inputs, dict):
            continue
        scoring(name, model, inputs, device, 2 * rounds)
        steps(name, model, inputs, settings, device, rounds, 1)
        steps(name, model, inputs, settings, device, max(1, rounds // 2), 2 if options.quick else 10)
        for is_rebuilt in (False, True):
            repeated_without_gradients(name, model, inputs, settings, device, max(1, rounds // 2), is_rebuilt)
        if isinstance(inputs, dict):
            unet = model
    if options.quick:
        return
    gradients(unet, device, list(range(900, 1000, max(1, 100 // options.timesteps))))


if __name__ == "__main__":
    main()
