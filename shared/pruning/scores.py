"""How much each channel matters: criteria over cached groups. All sums stay on the device; one transfer brings the scores to the host.

A score is made in three steps: a number for each position of each tensor (the criterion), one for each channel of the group (the reduction over
the group's tensors), and a scale that groups share (the normaliser).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from shared.pruning.groups import GroupIndex, Item
from shared.pruning.kernels import Criterion, channel_sums

Reduction = Literal["mean", "sum", "max", "prod", "first", "last"]
Normaliser = Literal["mean", "sum", "max", "min_max", "gaussian", "median", "lamp"] | Callable[[Tensor], Tensor] | None
_SCORED = ("out", "in", "norm", "depthwise")


class Scores(dict[str, Tensor]):
    """(C,) float32 scores on the host by group; `skipped` lists tensors that could not contribute, such as frozen ones without gradients."""

    def __init__(self, values: Mapping[str, Tensor], skipped: Iterable[str] = ()) -> None:
        super().__init__(values)
        self.skipped = list(skipped)


class Layout:
    """Where each group's channels lie in one long vector, and where each tensor's positions go in it, on one device."""

    def __init__(self, index: GroupIndex, device: torch.device) -> None:
        self.spans: dict[str, tuple[int, int]] = {}
        self.items: dict[str, list[tuple[Item, int, Tensor, Tensor | None]]] = {}
        start = 0
        for number, group in enumerate(index.groups.values()):
            self.spans[group.name] = (start, start + group.channels)
            for item in group.items:
                covers_all = len(item.idx) == index.width(item)
                idx = None if covers_all else item.idx.to(device)
                self.items.setdefault(item.name, []).append((item, number, (item.root + start).to(device), idx))
            start += group.channels
        self.total = start

    @staticmethod
    def of(index: GroupIndex, device: torch.device) -> Layout:
        """Return the index's layout on a device, made once."""
        key = ("layout", str(device))
        if key not in index.cache:
            index.cache[key] = Layout(index, device)
        return index.cache[key]


def magnitude(index: GroupIndex, model: nn.Module, p: Literal[1, 2] = 2, reduction: Reduction = "mean", normaliser: Normaliser = "mean") -> Scores:
    """Score channels by the sum of |w|^p over their slices (no root is taken)."""
    return _score_weights(index, model, "square" if p == 2 else "absolute", lambda parameter: parameter, reduction, normaliser)


def taylor(
    index: GroupIndex,
    model: nn.Module,
    form: Literal["abs", "sum"] = "abs",
    gradients: Mapping[str, Tensor] | None = None,
    reduction: Reduction = "mean",
    normaliser: Normaliser = "mean",
) -> Scores:
    """Score channels by the first-order change of the loss when they go (Molchanov et al. 2019), from summed gradients.

    Args:
        index: the groups.
        model: the network, with `.grad` on its parameters unless `gradients` is given.
        form: "abs" is the sum of |w · g| over a slice, "sum" the absolute value of the sum of w · g, the change if the slice is zeroed.
        gradients: gradients by parameter name instead of `.grad`.
        reduction: over a group's tensors.
        normaliser: within each group.

    Raises:
        ValueError: if no parameter has a gradient.
    """
    named = gradients if gradients is not None else {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    if not named:
        raise ValueError("no parameter has a gradient: call backward() on the loss before taylor(), and zero_grad() only after it")
    by_parameter = {id(p): named[name] for name, p in model.named_parameters() if name in named}
    criterion: Criterion = "product_absolute" if form == "abs" else "product"
    return _score_weights(index, model, criterion, lambda parameter: by_parameter.get(id(parameter)), reduction, normaliser)


def hessian(
    index: GroupIndex, model: nn.Module, squares: Mapping[str, Tensor], reduction: Reduction = "mean", normaliser: Normaliser = "mean"
) -> Scores:
    """Score channels by the sum of w² · E[g²], with g the gradient of one sample; `collect.fisher` gives `squares` by parameter name."""
    by_parameter = {id(p): squares[name] for name, p in model.named_parameters() if name in squares}
    return _score_weights(index, model, "fisher", lambda parameter: by_parameter.get(id(parameter)), reduction, normaliser)


def random(index: GroupIndex, seed: int = 0) -> Scores:
    """Score channels by independent numbers, uniform in [0, 1) whatever the size of the group."""
    generator = torch.Generator().manual_seed(seed)
    return Scores({name: torch.rand(group.channels, generator=generator) for name, group in index.groups.items()})


def geometric_median(index: GroupIndex, model: nn.Module, normaliser: Normaliser = "mean") -> Scores:
    """Score channels by the summed Euclidean distances of their producers' weights to those of the others (FPGM, He et al. 2019)."""
    index.check(model)
    tensors = dict(model.named_parameters(remove_duplicate=False))
    sums = []
    for group in index.groups.values():
        total, count = torch.zeros(group.channels, device=_device(model)), 0
        for item in group.items:
            if item.kind in ("out", "depthwise") and item.tensor == "weight":
                rows = tensors[item.name].detach().float().movedim(item.dim, 0).flatten(1)[item.idx.to(total.device)]
                total.index_add_(0, item.root.to(total.device), torch.cdist(rows, rows).sum(1))
                count += 1
        sums.append(total / max(count, 1))
    return _finish(index, torch.cat(sums), normaliser, [])


def differential(clean: Mapping[str, Tensor], triggered: Mapping[str, Tensor], form: str = "difference", weight: float = 1.0) -> Scores:
    """Combine the scores of a clean and of a triggered pass into one of how much a channel serves the trigger; drop the highest.

    Both are brought to mean one within each group first. "difference" is triggered - weight · clean, "sum" triggered + weight · clean, "ratio"
    triggered / clean, "backdoor" triggered alone; "clean" is -clean, which drops what matters least to clean inputs.

    Raises:
        ValueError: if `form` is none of these, or the two passes do not have the same groups.
    """
    forms: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "difference": lambda c, t: t - weight * c,
        "sum": lambda c, t: t + weight * c,
        "ratio": lambda c, t: t / c.clamp_min(1e-12),
        "backdoor": lambda c, t: t,
        "clean": lambda c, t: -c,
    }
    if form not in forms:
        raise ValueError(f"no differential score {form!r}; there are {', '.join(forms)}")
    if set(clean) != set(triggered):
        raise ValueError(
            "the clean and the triggered pass must score the same groups; differing: " + ", ".join(sorted(set(clean) ^ set(triggered))[:4])
        )
    return Scores({name: forms[form](normalise(clean[name], "mean"), normalise(triggered[name], "mean")) for name in clean})


def group_sparsity_(index: GroupIndex, model: nn.Module, scores: Mapping[str, Tensor], strength: float, alpha: float = 4.0) -> None:
    """Add the gradient of DepGraph's sparsity penalty to `.grad`: strength · gamma_i · w, gamma_i = 2^(alpha (I_max - I_i) / (I_max - I_min)).

    Channels with low scores I are pulled to zero hardest (Fang et al. 2023, section 3.3).
    """
    tensors = dict(model.named_parameters(remove_duplicate=False))
    for name, group in index.free.items():
        gamma = 2 ** (alpha * (1 - normalise(scores[name], "min_max")))
        for item in group.items:
            parameter = tensors.get(item.name)
            if parameter is None or parameter.grad is None or item.kind not in _SCORED or item.groups > 1:
                continue
            shape = [-1 if dim == item.dim else 1 for dim in range(parameter.ndim)]
            factor = (strength * gamma[item.root]).to(parameter).view(shape)
            idx = item.idx.to(parameter.device)
            parameter.grad.index_add_(item.dim, idx, parameter.detach().index_select(item.dim, idx) * factor)


def _score_weights(
    index: GroupIndex,
    model: nn.Module,
    criterion: Criterion,
    other: Callable[[nn.Parameter], Tensor | None],
    reduction: Reduction,
    normaliser: Normaliser,
) -> Scores:
    index.check(model)
    sums, skipped = position_sums(index, model, criterion, other)
    return score_positions(index, sums, reduction, normaliser, skipped, _device(model))


@torch.no_grad()
def position_sums(
    index: GroupIndex, model: nn.Module, criterion: Criterion, other: Callable[[nn.Parameter], Tensor | None]
) -> tuple[dict[tuple[str, int], Tensor], list[str]]:
    """Sum a criterion over the slices of every scored tensor, each tensor read once.

    Returns:
        (width,) sums by (tensor name, dimension), and the names of tensors for which `other` had nothing.
    """
    layout, sums, skipped = Layout.of(index, _device(model)), {}, []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        held = [item for item, *_ in layout.items.get(name, []) if item.kind in _SCORED and item.tensor == "weight"]
        if not held:
            continue
        second = other(parameter)
        if second is None:
            skipped.append(name)
            continue
        groups = max(item.groups for item in held)
        for dim, values in channel_sums(parameter.detach(), second, criterion, {item.dim for item in held}, groups).items():
            sums[name, dim] = values
    return sums, skipped


def score_positions(
    index: GroupIndex,
    sums: Mapping[tuple[str, int], Tensor],
    reduction: Reduction = "mean",
    normaliser: Normaliser = "mean",
    skipped: Iterable[str] = (),
    device: torch.device | None = None,
    signed: bool = False,
) -> Scores:
    """Reduce sums by position, (width,) by (tensor name, dimension), to a score a channel.

    Signs are dropped position by position, unless `signed`. With reduction "mean", a group's sum is divided by the number of its tensors that
    contributed; groups to which none did are left out.
    """
    device = device or next(iter(sums.values())).device
    layout = Layout.of(index, device)
    names = list(index.groups)
    start = {"max": float("-inf"), "prod": 1.0}.get(reduction, 0.0)
    flat = torch.full((layout.total,), start, device=device)
    contributions = [0] * len(names)
    chosen = _chosen(index, sums, reduction)
    for name, entries in layout.items.items():
        for item, number, root, idx in entries:
            values = sums.get((name, item.dim))
            if values is None or item.kind not in _SCORED or (chosen is not None and chosen[number] != (name, item.dim)):
                continue
            contributions[number] += 1
            local = values if idx is None else values[idx]
            local = local if signed else local.abs()
            if reduction in ("max", "prod"):
                flat.scatter_reduce_(0, root, local, "amax" if reduction == "max" else "prod")
            else:
                flat.index_add_(0, root, local)
    scores = _finish(index, flat, None, skipped)
    for name, count in zip(names, contributions, strict=True):
        if not count:
            del scores[name]
        else:
            scores[name] = normalise(scores[name] / count if reduction == "mean" else scores[name], normaliser)
    return scores


def _chosen(index: GroupIndex, sums: Mapping[tuple[str, int], Tensor], reduction: Reduction) -> list[tuple[str, int] | None] | None:
    if reduction not in ("first", "last"):
        return None
    present = [[(i.name, i.dim) for i in g.items if (i.name, i.dim) in sums and i.kind in _SCORED] for g in index.groups.values()]
    return [(keys[0] if reduction == "first" else keys[-1]) if keys else None for keys in present]


def _finish(index: GroupIndex, flat: Tensor, normaliser: Normaliser, skipped: Iterable[str]) -> Scores:
    host = flat.float().cpu()
    parts = host.split([group.channels for group in index.groups.values()])
    return Scores({name: normalise(part, normaliser) for name, part in zip(index.groups, parts, strict=True)}, skipped)


def normalise(scores: Tensor, normaliser: Normaliser) -> Tensor:
    """Bring the scores of one group to a scale that groups share, (C,) to (C,).

    "mean", "sum", "max" and "median" divide by that; "min_max" maps to [0, 1]; "gaussian" to mean 0 and deviation 1; "lamp" divides each score by the
    sum of those at least as large (Lee et al. 2021). A group whose scores are all zero stays zero.

    Raises:
        ValueError: if there is no such normaliser.
    """
    if normaliser is None:
        return scores
    if callable(normaliser):
        return normaliser(scores)
    tiny = torch.finfo(scores.dtype).tiny
    if normaliser == "min_max":
        return (scores - scores.min()) / (scores.max() - scores.min()).clamp_min(tiny)
    if normaliser == "gaussian":
        return (scores - scores.mean()) / scores.std(correction=0).clamp_min(tiny)
    if normaliser == "lamp":
        ascending, places = scores.sort(stable=True)
        at_least_as_large = ascending.flip(0).cumsum(0).flip(0)
        return torch.empty_like(scores).scatter_(0, places, ascending / at_least_as_large.clamp_min(tiny))
    scales: dict[str, Callable[[], Tensor]] = {"mean": scores.mean, "sum": scores.sum, "max": scores.max, "median": scores.median}
    if normaliser not in scales:
        raise ValueError(f"no normaliser {normaliser!r}; there are {', '.join([*scales, 'min_max', 'gaussian', 'lamp'])}")
    return scores / scales[normaliser]().clamp_min(tiny)


def rank_correlation(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Return Spearman's rank correlation of two scores within groups, averaged over groups weighted by their size; 1 if they rank alike."""
    total, channels = 0.0, 0
    for name, scores in first.items():
        if len(scores) > 1:
            ranks = torch.stack([values.argsort(stable=True).argsort(stable=True).double() for values in (scores, second[name])])
            total += len(scores) * float(torch.corrcoef(ranks)[0, 1])
            channels += len(scores)
    return total / max(channels, 1)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
