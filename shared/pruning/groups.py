"""Which channels of which tensors go together: plain tables that are traced once, cached, saved as JSON and cut along with the network."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from shared.pruning.plan import Plan

Kind = Literal["out", "in", "norm", "depthwise", "parameter", "embedding"]
Side = Literal["out", "in", "both"]
NormMode = Literal["per_offset", "whole_group", "regroup"]


@dataclass(frozen=True)
class Item:
    """Positions of one tensor that belong to a group's channels.

    Args:
        module: dotted name of the module; empty for the network itself.
        tensor: name of the parameter or buffer; empty if the module has a width but no tensors.
        dim: dimension of the tensor that the positions count.
        kind: "out" and "in" of a convolution or linear layer, "norm", "depthwise", "embedding", or a "parameter" outside such layers.
        idx: (N,) positions, ascending.
        root: (N,) channel of the group that each position belongs to.
        groups: groups of a grouped convolution whose inputs these are; its `dim` then has 1 / groups of the positions.
    """

    module: str
    tensor: str
    dim: int
    kind: Kind
    idx: Tensor
    root: Tensor
    groups: int = 1

    @property
    def name(self) -> str:
        """Name of the tensor in the network."""
        return f"{self.module}.{self.tensor}" if self.module else self.tensor

    @property
    def side(self) -> Side:
        """Side of the module that the positions are on."""
        return "out" if self.kind == "out" else "in" if self.kind == "in" else "both"

    @property
    def place(self) -> tuple[str, str]:
        """What is cut as one: a module's side, or a single parameter."""
        return (self.name, "parameter") if self.kind == "parameter" else (self.module, self.side)


@dataclass(frozen=True)
class Group:
    """Channels that can only be removed together.

    Args:
        name: the module whose outputs they are; the first one in the network's order.
        channels: their number C.
        items: where they appear.
        original: their number before any pruning.
        protected: why they must stay; empty if they may go.
    """

    name: str
    channels: int
    items: tuple[Item, ...]
    original: int
    protected: str = ""

    @property
    def topology(self) -> str:
        """A key that groups of the same make-up share: how many layers of each kind there are."""
        kinds = Counter(kind for _, _, kind in {(item.module, item.dim, item.kind) for item in self.items})
        return " ".join(f"{kind}:{count}" for kind, count in sorted(kinds.items()))


@dataclass(frozen=True)
class Site:
    """What tracing saw of one layer, for one example.

    Args:
        type: name of its class.
        channels: outputs of the layer.
        groups: groups of a convolution or of a group normalisation; 1 otherwise.
        uses: how often each weight is used (output pixels or tokens).
        positions: output pixels or tokens.
        channel_dim: dimension of the output that counts channels.
        input_shape: shape of the input without its batch dimension.
    """

    type: str
    channels: int
    groups: int
    uses: int
    positions: int
    channel_dim: int
    input_shape: tuple[int, ...]


@dataclass(frozen=True)
class Heads:
    """Multi-head attention whose head widths must stay equal.

    Args:
        style: "separate" query, key and value layers (diffusers' `to_q`) or one "fused" layer (timm's `qkv`).
        heads: number of heads.
        head_dim: channels of a head.
    """

    style: Literal["separate", "fused"]
    heads: int
    head_dim: int


@dataclass
class GroupIndex:
    """All groups of a network; build it with `GroupIndex.build`.

    Args:
        groups: groups by name.
        sites: traced layers by name.
        attentions: attention modules by name.
        shapes: shapes of all parameters and buffers.
        uncounted: names in `shapes` that are no parameters of their own: buffers, and further names of shared parameters.
        skipped: why a layer's outputs form no group.
    """

    groups: dict[str, Group]
    sites: dict[str, Site]
    attentions: dict[str, Heads]
    shapes: dict[str, tuple[int, ...]]
    uncounted: frozenset[str] = frozenset()
    skipped: dict[str, str] = field(default_factory=dict)
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def build(cls, model: nn.Module, example_inputs: Tensor | Sequence[Any] | Mapping[str, Any], protected: Iterable[str] = ()) -> GroupIndex:
        """Trace a network and find its groups.

        Args:
            model: the network, in any mode, with frozen parameters or not; it is left as it was.
            example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments; small is fast.
            protected: names of layers whose outputs must stay, or patterns such as `"blocks.*.attn.qkv"`. What feeds the output stays anyway.

        Raises:
            ValueError: if a pattern of `protected` names no layer.
        """
        from shared.pruning.tracing import trace

        return trace(model, example_inputs).protect(protected)

    @property
    def free(self) -> dict[str, Group]:
        """Groups that may be pruned."""
        return {name: group for name, group in self.groups.items() if not group.protected}

    @property
    def fingerprint(self) -> str:
        """A hash of names and shapes of all tensors; it changes with every cut."""
        return _fingerprint(self.shapes)

    def check(self, model: nn.Module) -> None:
        """Raise ValueError unless `model` has the structure that this index describes."""
        shapes = tensor_shapes(model)
        if shapes == self.shapes:
            return
        changed = [name for name in {**self.shapes, **shapes} if self.shapes.get(name) != shapes.get(name)]
        raise ValueError(
            f"the index describes another structure: {changed[0]} is {shapes.get(changed[0])} in the network and "
            f"{self.shapes.get(changed[0])} in the "
            f"index ({len(changed)} tensors differ); take the index that apply() returned, or build one with GroupIndex.build"
        )

    def protect(self, patterns: Iterable[str]) -> GroupIndex:
        """Return an index in which the groups that contain outputs of the named layers must stay."""
        groups = dict(self.groups)
        for pattern in patterns:
            hit = False
            for name, group in self.groups.items():
                producers = [item for item in group.items if item.kind in ("out", "depthwise", "embedding", "parameter")]
                named = [item.module or item.tensor for item in producers if _matches(item, pattern)]
                hit = hit or bool(named)
                if named and not group.protected:
                    groups[name] = replace(group, protected=f"{named[0]} is protected")
            if not hit and not any(fnmatch.fnmatchcase(name, pattern) for name in (*self.sites, *self.skipped)):
                raise ValueError(f"no layer is called {pattern!r}; there are {', '.join(list(self.sites)[:6])}, ...")
        return replace(self, groups=groups, cache={})

    def width(self, item: Item) -> int:
        """Return the number of positions that `item` is a part of."""
        return self.shapes[item.name][item.dim] * item.groups if item.tensor else self.sites[item.module].channels

    def after(self, plan: Plan) -> GroupIndex:
        """Return the index of the network after `plan` was applied, without tracing it again."""
        from shared.pruning.cutting import cut_index

        return cut_index(self, plan)

    def to_json(self) -> dict[str, Any]:
        """Return plain values; positions are written as runs [start, stop]."""
        return {
            "version": 1,
            "fingerprint": self.fingerprint,
            "groups": [_group_to_json(group) for group in self.groups.values()],
            "sites": {name: vars(site) | {"input_shape": list(site.input_shape)} for name, site in self.sites.items()},
            "attentions": {name: vars(heads) for name, heads in self.attentions.items()},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "uncounted": sorted(self.uncounted),
            "skipped": self.skipped,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GroupIndex:
        """Read what `to_json` wrote.

        Raises:
            ValueError: if it was written by another version, or its fingerprint does not fit its shapes.
        """
        if content.get("version") != 1:
            raise ValueError(f"group index of version {content.get('version')}: this code reads version 1; build the index again")
        index = cls(
            groups={group["name"]: _group_from_json(group) for group in content["groups"]},
            sites={name: Site(**site | {"input_shape": tuple(site["input_shape"])}) for name, site in content["sites"].items()},
            attentions={name: Heads(**heads) for name, heads in content["attentions"].items()},
            shapes={name: tuple(shape) for name, shape in content["shapes"].items()},
            uncounted=frozenset(content["uncounted"]),
            skipped=dict(content["skipped"]),
        )
        if index.fingerprint != content["fingerprint"]:
            raise ValueError("the group index was changed by hand or is damaged: its fingerprint does not fit its shapes; build it again")
        return index

    def save(self, path: str | Path) -> None:
        """Write the index as JSON."""
        Path(path).write_text(json.dumps(self.to_json()), encoding="utf-8")


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by name; a module that has two names under its first, a tensor that two modules share under both."""
    found = {}
    for prefix, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                found[f"{prefix}.{name}" if prefix else name] = tensor
    return found


def tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all parameters and buffers by name."""
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(model).items()}


def runs(values: Tensor) -> list[list[int]]:
    """Write (N,) integers as runs [start, stop) of consecutive ones, in order."""
    if not len(values):
        return []
    ends = (values.diff() != 1).nonzero().flatten() + 1
    return [[int(part[0]), int(part[-1]) + 1] for part in values.tensor_split(ends.tolist())]


def from_runs(parts: Iterable[Sequence[int]]) -> Tensor:
    """Read what `runs` wrote, (N,) int64."""
    pieces = [torch.arange(start, stop) for start, stop in parts]
    return torch.cat(pieces) if pieces else torch.empty(0, dtype=torch.int64)


def _fingerprint(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return hashlib.sha256("\n".join(f"{name}{shape}" for name, shape in sorted(shapes.items())).encode()).hexdigest()[:16]


def _matches(item: Item, pattern: str) -> bool:
    return any(name and fnmatch.fnmatchcase(name, pattern) for name in (item.module, item.name))


def _group_to_json(group: Group) -> dict[str, Any]:
    items = [vars(item) | {"idx": runs(item.idx), "root": runs(item.root)} for item in group.items]
    return vars(group) | {"items": items}


def _group_from_json(content: Mapping[str, Any]) -> Group:
    items = (Item(**item | {"idx": from_runs(item["idx"]), "root": from_runs(item["root"])}) for item in content["items"])
    return Group(**{**content, "items": tuple(items)})
