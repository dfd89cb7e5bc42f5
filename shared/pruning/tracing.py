"""Finds the groups of a network: torch-pruning's dependency graph tells which layers touch, the search over it is ours.

The search follows arrays of positions instead of one object per channel, and it merges channels of the root that meet again further on: the
query, key and value rows of a fused attention layer, say, are one channel each third, which torch-pruning's own groups miss.
"""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.pruning.groups import Group, GroupIndex, Heads, Item, Kind, Site, tensor_shapes

_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm, nn.RMSNorm)
_LAYERS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding, *_NORMS)
_ROOTS = (nn.modules.conv._ConvNd, nn.Linear, nn.Embedding)


def call(model: nn.Module, inputs: Tensor | Sequence[Any] | Mapping[str, Any]) -> Any:
    """Call a network with a tensor, a tuple of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Tensor):
        return model(inputs)
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def trace(model: nn.Module, example_inputs: Tensor | Sequence[Any] | Mapping[str, Any]) -> GroupIndex:
    """Trace a network; see `GroupIndex.build`."""
    import torch_pruning

    sites: dict[str, Site] = {}
    makers: dict[Any, nn.Module] = {}
    last: set[nn.Module] = set()

    def forward(network: nn.Module, inputs: Any) -> Any:
        output = call(network, inputs)
        last.update(makers[tensor.grad_fn] for tensor in _tensors_in(output) if tensor.grad_fn in makers)
        return output

    with _traceable(model), _watched(model, _batch_size(example_inputs), sites, makers), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its warnings concern what `skipped` reports
        graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs, forward_fn=forward, verbose=False)
    names = {module: name for name, module in model.named_modules()}
    parameters = {id(parameter): name for name, parameter in model.named_parameters()}
    originals = getattr(model, "pruned_structure", None)
    closures: dict[str, _Closure] = {}
    seen: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, _ROOTS) and module in graph.module2node and name not in seen:
            closures[name] = _Closure(graph, module, last)
            seen |= {names[node.module] for node, side in closures[name].owners if node.module in names and side != "in"}
    skipped = _unusable(closures)
    groups = {name: closure.group(name, names, parameters) for name, closure in closures.items() if name not in skipped}
    counted = {name for name, _ in model.named_parameters()}
    shapes = tensor_shapes(model)
    index = GroupIndex(groups, sites, _find_attentions(model), shapes, frozenset(shapes) - counted, skipped)
    return _consistent(index if originals is None else _with_originals(index, originals.original_shapes))


class _Closure:
    """Everything that must go when the outputs of one layer go."""

    def __init__(self, graph: Any, module: nn.Module, last: set[nn.Module]) -> None:
        from torch_pruning import ops

        self.ops, self.feeds_output, self.lost = ops.OPTYPE, False, False
        self.owners: dict[tuple[Any, str], np.ndarray] = {}
        self.handlers: dict[tuple[Any, Any], str] = {}
        width = graph.get_pruner_of_module(module).get_out_channels(module)
        self.parent = np.arange(width)
        start, everything = graph.module2node[module], np.arange(width)
        stack = [(start, graph.get_pruner_of_module(module).prune_out_channels, everything, everything)]
        while stack:
            node, handler, positions, labels = stack.pop()
            pruner = graph.get_pruner_of_module(node.module)
            side = "both" if pruner.prune_out_channels == pruner.prune_in_channels else "out" if handler == pruner.prune_out_channels else "in"
            self.feeds_output |= node.type == self.ops.OUTPUT or (side != "in" and node.module in last)
            positions, labels = self._claim((node, side), positions, labels)
            for dependency in node.dependencies:
                if len(positions) and dependency.is_triggered_by(handler):
                    stack.append((dependency.target, dependency.handler, *self._follow(dependency, positions, labels)))

    def _claim(self, key: tuple[Any, str], positions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Note whose the positions are, merge the owners of those that had one, and return the new ones."""
        if not len(positions):
            return positions, labels
        owner = self.owners.get(key, np.empty(0, dtype=np.int64))
        if len(owner) <= positions.max():
            owner = np.concatenate([owner, np.full(positions.max() + 1 - len(owner), -1)])
        fresh = owner[positions] < 0
        owner[positions[fresh]] = labels[fresh]
        held = owner[positions]
        apart = held != labels
        for one, other in set(zip(held[apart].tolist(), labels[apart].tolist(), strict=True)):
            low, high = sorted((self._find(one), self._find(other)))
            self.parent[high] = low
        self.owners[key] = owner
        new = np.zeros(len(owner), dtype=bool)
        new[positions[fresh]] = True
        return np.flatnonzero(new), owner[new]

    def _find(self, label: int) -> int:
        while self.parent[label] != label:
            label = self.parent[label]
        return label

    def _follow(self, dependency: Any, positions: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        from torch_pruning._helpers import _HybridIndex

        mappings = [mapping for mapping in dependency.index_mapping if mapping is not None]
        if not mappings:
            return positions, labels
        indices = [_HybridIndex(idx=int(position), root_idx=i) for i, position in enumerate(positions)]
        for mapping in mappings:
            indices = mapping(indices)
        if any(index.root_idx is None for index in indices):
            self.lost = True
            return positions[:0], labels[:0]
        sources = np.array([index.root_idx for index in indices], dtype=np.int64)
        return np.array([index.idx for index in indices], dtype=np.int64), labels[sources]

    def problem(self) -> str:
        """Say why the closure cannot be pruned; empty if it can."""
        if self.lost:
            return "channels are repeated along the way (grouped queries)"
        for (node, side), owner in self.owners.items():
            if node.type in (self.ops.MHA, self.ops.LSTM):
                return f"its channels pass through {type(node.module).__name__}, which mixes them"
            width = _width(node, side, self.ops)
            if width is not None and len(owner) > width:
                return f"its channels do not line up with {node.name.split(' ')[0]} ({len(owner)} positions for {width})"
            if node.type == self.ops.DEPTHWISE_CONV and node.module.in_channels != node.module.out_channels:
                return f"{node.name.split(' ')[0]} reduces groups of channels to one each"
        return ""

    def group(self, name: str, names: Mapping[nn.Module, str], parameters: Mapping[int, str]) -> Group:
        """Write the closure down as plain tables."""
        items = self.items(names, parameters)
        channels = 1 + max(int(item.root.max()) for item in items)
        return Group(name, channels, items, channels, "it feeds the output" if self.feeds_output else "")

    def items(self, names: Mapping[nn.Module, str], parameters: Mapping[int, str]) -> tuple[Item, ...]:
        """List the tensors in the network's order, with channels renumbered from 0."""
        canonical = np.array([self._find(label) for label in range(len(self.parent))])
        channel = np.unique(canonical, return_inverse=True)[1]
        found = []
        for (node, side), owner in self.owners.items():
            idx = np.flatnonzero(owner >= 0)
            positions, root = torch.from_numpy(idx), torch.from_numpy(channel[owner[idx]])
            for module, tensor, dim, kind, groups in _tensors(node, side, names, parameters, self.ops):
                found.append(Item(module, tensor, dim, kind, positions, root, groups))
        order = {name: i for i, name in enumerate(names.values())}
        return tuple(sorted(found, key=lambda item: (item.kind == "in", order[item.module], item.tensor != "weight", item.tensor)))


def _unusable(closures: Mapping[str, _Closure]) -> dict[str, str]:
    """Say why some closures cannot be pruned: of themselves, or because they overlap such a one, which right closures never do."""
    reasons = {name: problem for name, closure in closures.items() if (problem := closure.problem())}
    holders: dict[tuple[Any, str], list[tuple[str, np.ndarray]]] = {}
    for name, closure in closures.items():
        for key, owner in closure.owners.items():
            if key[0].type != closure.ops.OUTPUT:
                holders.setdefault(key, []).append((name, np.flatnonzero(owner >= 0)))
    for (node, _), held in holders.items():
        for (one, mine), (other, theirs) in itertools.combinations(held, 2):
            if isinstance(node.module, (*_LAYERS, nn.Parameter)) and len(np.intersect1d(mine, theirs)):
                for name, rest in ((one, other), (other, one)):
                    reasons.setdefault(name, f"its channels overlap those of {rest} in a way that the tracing cannot resolve")
    return reasons


def _width(node: Any, side: str, types: Any) -> int | None:
    if node.type in (types.CONV, types.DEPTHWISE_CONV):
        return node.module.in_channels if side == "in" else node.module.out_channels
    if node.type == types.LINEAR:
        return node.module.in_features if side == "in" else node.module.out_features
    if node.type in (types.BN, types.IN):
        return node.module.num_features
    if node.type == types.GN:
        return node.module.num_channels
    if node.type == types.LN:
        return node.module.normalized_shape[-1] if len(node.module.normalized_shape) == 1 else 0
    if node.type == types.EMBED:
        return node.module.embedding_dim
    return node.module.shape[node.pruning_dim] if node.type == types.PARAMETER else None


def _tensors(
    node: Any, side: str, names: Mapping[nn.Module, str], parameters: Mapping[int, str], types: Any
) -> Iterator[tuple[str, str, int, Kind, int]]:
    """Yield (module, tensor, dim, kind, groups) of what a node of the graph owns."""
    module = node.module
    if node.type == types.PARAMETER:
        path, _, tensor = parameters[id(module)].rpartition(".")
        yield path, tensor, node.pruning_dim % module.ndim, "parameter", 1
    elif node.type in (types.CONV, types.LINEAR):
        transposed, groups = getattr(module, "transposed", False), getattr(module, "groups", 1)
        yield names[module], "weight", int((side == "in") != transposed), "in" if side == "in" else "out", groups if side == "in" else 1
        if side != "in" and module.bias is not None:
            yield names[module], "bias", 0, "out", 1
    elif node.type == types.EMBED:
        yield names[module], "weight", 1, "embedding", 1
    elif node.type in (types.BN, types.GN, types.LN, types.IN, types.DEPTHWISE_CONV, types.PRELU):
        kind: Kind = "depthwise" if node.type == types.DEPTHWISE_CONV else "norm"
        tensors = [tensor for tensor in ("weight", "bias", "running_mean", "running_var") if getattr(module, tensor, None) is not None]
        if not (node.type == types.PRELU and module.num_parameters == 1):
            yield from ((names[module], tensor, 0, kind, 1) for tensor in tensors or [""])


def _find_attentions(model: nn.Module) -> dict[str, Heads]:
    found: dict[str, Heads] = {}
    for name, module in model.named_modules():
        if isinstance(getattr(module, "to_q", None), nn.Linear) and hasattr(module, "heads"):
            found[name] = Heads("separate", module.heads, module.to_q.out_features // module.heads)
        elif isinstance(getattr(module, "qkv", None), nn.Linear) and hasattr(module, "num_heads"):
            found[name] = Heads("fused", module.num_heads, module.qkv.out_features // (3 * module.num_heads))
    return found


def _consistent(index: GroupIndex) -> GroupIndex:
    """Protect what cannot be cut consistently: attention whose queries and keys differ in width or are normalised per head."""
    reasons: dict[str, str] = {}
    for name, heads in index.attentions.items():
        query = f"{name}.to_q" if heads.style == "separate" else f"{name}.qkv"
        expected = {"separate": {f"{name}.to_q", f"{name}.to_k", f"{name}.to_v"}, "fused": {query}}[heads.style]
        for group in index.groups.values():
            touched = {item.module for item in group.items if item.kind == "out"} & expected
            if touched and (touched != expected or group.channels != heads.heads * heads.head_dim):
                reasons[group.name] = f"the heads of {name} are laid out in a way that is not known here"
    groups = {name: replace(group, protected=group.protected or reasons.get(name, "")) for name, group in index.groups.items()}
    return replace(index, groups=groups)


def _with_originals(index: GroupIndex, shapes: Mapping[str, Sequence[int]]) -> GroupIndex:
    groups = {}
    for name, group in index.groups.items():
        root = next(item for item in group.items if item.module == name and item.tensor == "weight")
        original = shapes.get(root.name, index.shapes[root.name])[root.dim]
        groups[name] = replace(group, original=round(group.channels * original / index.shapes[root.name][root.dim]))
    return replace(index, groups=groups)


def _tensors_in(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [tensor for part in parts for tensor in _tensors_in(part)]


def _batch_size(inputs: Tensor | Sequence[Any] | Mapping[str, Any]) -> int:
    values = [inputs] if isinstance(inputs, Tensor) else list(inputs.values() if isinstance(inputs, Mapping) else inputs)
    return max((value for value in values if isinstance(value, Tensor)), key=lambda value: value.ndim).shape[0]


@contextlib.contextmanager
def _traceable(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with gradients for all parameters; as before afterwards."""
    modes = {module: module.training for module in model.modules()}
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad and parameter.is_floating_point()]
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes.items():
            module.training = mode


@contextlib.contextmanager
def _watched(model: nn.Module, batch: int, sites: dict[str, Site], makers: dict[Any, nn.Module]) -> Iterator[None]:
    """Record each layer's sizes, and which layer made a node of autograd's graph, while the network runs."""

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            sites[name] = _site(module, args[0], output, batch, sites.get(name))
            makers[output.grad_fn] = module

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if isinstance(module, _LAYERS)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _site(module: nn.Module, given: Tensor, output: Tensor, batch: int, before: Site | None) -> Site:
    spatial = isinstance(module, (nn.modules.conv._ConvNd, *_NORMS)) and not (
        isinstance(module, (nn.LayerNorm, nn.RMSNorm)) and "2d" not in type(module).__name__.lower()
    )
    channel_dim = 1 if spatial else -1
    channels = output.shape[channel_dim]
    positions = output.numel() // (batch * channels)
    uses = given.numel() // (batch * given.shape[1]) if getattr(module, "transposed", False) else positions
    groups = getattr(module, "num_groups", getattr(module, "groups", 1))
    earlier = (before.uses, before.positions) if before else (0, 0)  # a layer may be called more than once
    return Site(type(module).__name__, channels, groups, uses + earlier[0], positions + earlier[1], channel_dim, tuple(given.shape[1:]))
