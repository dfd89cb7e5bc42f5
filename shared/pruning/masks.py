"""Channels taken out without changing shapes: for a while (`masked`), during training (`hold`), or by learned strengths (`LearnableMasks`)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shared.pruning.groups import GroupIndex, Item, named_tensors
from shared.pruning.plan import Plan, norm_groups
from shared.pruning.scores import Scores

_MIXING = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
Weights = nn.Module | dict[str, Tensor]


@contextlib.contextmanager
def masked(model: nn.Module, plan: Plan, strength: float = 1.0, emulate_norm: bool = False) -> Iterator[None]:
    """Multiply the outputs of every layer that produces or normalises a dropped channel by 1 - `strength` while the context lasts.

    At strength 1 the network computes what it would after removal if no statistic mixes channels (convolutions, batch normalisation in evaluation
    mode). Group and layer normalisation do mix them: with `emulate_norm` they see the remaining channels only, as they will after `apply`.

    Args:
        model: the network.
        plan: what to mask.
        strength: 0 leaves the network as it is, 1 takes the channels out.
        emulate_norm: compute group and layer normalisation over the remaining channels.

    Raises:
        ValueError: if the network is not the plan's, `strength` is outside [0, 1], or emulation is asked for at another strength than 1.
    """
    if not 0 <= strength <= 1 or (emulate_norm and strength != 1):
        raise ValueError(f"strength must lie in [0, 1], and be 1 with emulate_norm; got {strength}")
    plan.index.check(model)
    modules, tensors, keep = dict(model.named_modules()), named_tensors(model), plan.keep()
    handles, restored = [], []
    for item in {item.place: item for item in plan.items() if item.kind != "in"}.values():
        kept = keep[item.place]
        if item.kind == "parameter":
            restored.append((tensors[item.name], tensors[item.name].detach().clone(), item.dim, 1 - strength * (~kept).float()))
        elif emulate_norm and isinstance(modules[item.module], _MIXING):
            site = plan.index.sites[item.module]
            groups = norm_groups(item.module, site, kept, plan.norm) if isinstance(modules[item.module], nn.GroupNorm) else 0
            handles.append(modules[item.module].register_forward_hook(_emulation(kept, site.channel_dim, groups)))
        else:
            handles.append(
                modules[item.module].register_forward_hook(_scaling(1 - strength * (~kept).float(), plan.index.sites[item.module].channel_dim))
            )
    try:
        with torch.no_grad():
            for tensor, _, dim, factor in restored:
                tensor.mul_(along(factor, dim, tensor))
        yield
    finally:
        for handle in handles:
            handle.remove()
        with torch.no_grad():
            for tensor, value, _, _ in restored:
                tensor.copy_(value)


def along(values: Tensor, dim: int, like: Tensor) -> Tensor:
    """Shape (C,) values so that they broadcast along a dimension of another tensor, on its device and in its dtype."""
    shape = [1] * like.ndim
    shape[dim] = -1
    return values.to(like).view(shape)


def _scaling(factor: Tensor, dim: int) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output * along(factor, dim, output)

    return hook


def _emulation(keep: Tensor, dim: int, groups: int) -> Callable[..., Tensor]:
    positions = keep.nonzero().flatten()

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        kept = positions.to(output.device)
        small: Any = copy.copy(module)
        small.__dict__["_parameters"] = {name: value if value is None else value[kept] for name, value in module._parameters.items()}
        if groups:
            small.num_channels, small.num_groups = len(kept), groups
        else:
            small.normalized_shape = (len(kept),)
        inner = type(module).forward(small, args[0].index_select(dim, kept))
        return torch.zeros_like(output).index_copy(dim % output.ndim, kept, inner.to(output.dtype))

    return hook


class Hold:
    """Keeps slices of weights at zero; `hold` makes one."""

    def __init__(self, model: nn.Module, plan: Plan) -> None:
        plan.index.check(model)
        self.slices: dict[tuple[str, int, int], Tensor] = {}
        for name, channels in plan.dropped.items():
            lost = torch.zeros(plan.index.groups[name].channels, dtype=torch.bool)
            lost[channels] = True
            for item in plan.index.groups[name].items:
                if item.tensor and item.name not in plan.index.uncounted:
                    self._add(item, item.idx[lost[item.root]])
        self.targets: list[list[tuple[Tensor, int, int, Tensor]]] = []
        self.handles: list[Any] = []
        self.follow(model)

    def _add(self, item: Item, positions: Tensor) -> None:
        key = (item.name, item.dim, item.groups)
        self.slices[key] = torch.cat([self.slices[key], positions]) if key in self.slices else positions

    def follow(self, weights: Weights) -> None:
        """Keep the same slices of a copy of the network, such as a running average, at zero too: a module or tensors by name."""
        if isinstance(weights, AveragedModel):
            weights = weights.module
        tensors = named_tensors(weights) if isinstance(weights, nn.Module) else weights
        missing = [name for name, _, _ in self.slices if name not in tensors]
        if missing:
            raise ValueError(f"{missing[0]} is not among the weights to hold at zero: give a copy of the same network, or its tensors by their names")
        entries = [(tensors[name], dim, groups, positions.to(tensors[name].device)) for (name, dim, groups), positions in self.slices.items()]
        self.targets.append(entries)
        self.enforce()

    @torch.no_grad()
    def enforce(self) -> None:
        """Set the slices to zero; called after every step of the optimisers that were given."""
        for entries in self.targets:
            for tensor, dim, groups, positions in entries:
                if groups == 1:
                    tensor.index_fill_(dim, positions, 0)
                else:
                    parts = tensor.view(groups, -1, *tensor.shape[1:])
                    parts[positions // tensor.shape[1], :, positions % tensor.shape[1]] = 0

    def release(self) -> None:
        """Stop; the slices stay zero until something changes them."""
        for handle in self.handles:
            handle.remove()
        self.targets, self.handles = [], []


def hold(model: nn.Module, plan: Plan, optimizers: Iterable[torch.optim.Optimizer] = (), ema: Iterable[Weights] = ()) -> Hold:
    """Set the slices of all dropped channels to zero, and keep them there after every optimiser step, against momentum and weight decay.

    Weights of producers and consumers, biases and the affine parameters of normalisations go to zero; shapes stay, so the network loads wherever
    the unpruned one does. Statistics of group normalisations count the zeros.

    Args:
        model: the network; it is changed.
        plan: what to hold at zero.
        optimizers: optimisers after whose steps to enforce it.
        ema: running averages of the weights, modules or tensors by name, that are to lose the channels too.
    """
    held = Hold(model, plan)
    for weights in ema:
        held.follow(weights)
    for optimizer in optimizers:
        held.handles.append(optimizer.register_step_post_hook(lambda *_: held.enforce()))
    return held


class LearnableMasks(nn.Module):
    """One factor a channel, one at first, on what consumers see of it: for search by gradient, such as adversarial neuron pruning.

    Args:
        index: the groups; protected ones get no masks.
    """

    def __init__(self, index: GroupIndex) -> None:
        super().__init__()
        self.index = index
        self.names = list(index.free)
        self.masks = nn.ParameterList(torch.ones(index.groups[name].channels) for name in self.names)

    @contextlib.contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Multiply the inputs of all consumers by their channels' factors while the context lasts; gradients reach the factors."""
        self.index.check(model)
        modules = dict(model.named_modules())
        handles = [modules[name].register_forward_pre_hook(self._gate(items)) for name, items in consumers(self.index, self.names).items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _gate(self, items: list[tuple[str, Item]]) -> Callable[..., tuple[Any, ...]]:
        numbers = {name: i for i, name in enumerate(self.names)}

        def hook(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            given = args[0]
            dim = input_dim(module)
            gate = given.new_ones(given.shape[dim])
            for name, item in items:
                factors = self.masks[numbers[name]].to(given)
                gate = gate.index_put((item.idx.to(given.device),), factors[item.root.to(given.device)])
            return (given * along(gate, dim, given), *args[1:])

        return hook

    def scores(self) -> Scores:
        """Return the factors as scores: the lowest serve least."""
        return Scores({name: mask.detach().float().cpu() for name, mask in zip(self.names, self.masks, strict=True)})


def consumers(index: GroupIndex, names: Iterable[str] | Mapping[str, Any]) -> dict[str, list[tuple[str, Item]]]:
    """Return, by module, the items that say which of its inputs belong to the named groups."""
    found: dict[str, list[tuple[str, Item]]] = {}
    for name in names:
        for item in index.groups[name].items:
            if item.kind == "in":
                found.setdefault(item.module, []).append((name, item))
    return found


def input_dim(module: nn.Module) -> int:
    """Return the dimension of a layer's input that counts channels."""
    return -1 if isinstance(module, nn.Linear) else 1
