"""The smallest sets of channels that may go together: single channels, equal offsets of normalisation groups, whole groups, heads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from shared.pruning.groups import Group, GroupIndex, Item, NormMode

HeadMode = Literal["within", "whole"]


class Units(Sequence[Tensor]):
    """Disjoint sets of channels, one behind the other in one tensor.

    Args:
        members: (N,) channels, unit by unit.
        sizes: how many belong to each unit.
    """

    def __init__(self, members: Tensor, sizes: list[int]) -> None:
        self.members, self.sizes = members, sizes
        self.starts = [0, *itertools.accumulate(sizes)]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < len(self.sizes):
            raise IndexError(i)
        return self.members[self.starts[i] : self.starts[i + 1]]

    def means(self, values: Tensor) -> Tensor:
        """Average (C,) values over each unit, (units,)."""
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        if len(self.members) == len(self.sizes):
            return values[self.members]
        owners = torch.arange(len(sizes)).repeat_interleave(sizes)
        return values.new_zeros(len(sizes)).index_add_(0, owners, values[self.members]) / sizes

    def ordered(self, order: Tensor) -> Units:
        """Return the units in another order."""
        if len(self.members) == len(self.sizes):
            return Units(self.members[order], self.sizes)
        chosen = [self[i] for i in order.tolist()]
        return Units(torch.cat(chosen), [self.sizes[i] for i in order.tolist()])

    def bundled(self, channels: int, multiple: int) -> Units:
        """Join units, in their order, so that after each bundle the number left of `channels` is a multiple of `multiple`; a rest stays out."""
        left = channels - torch.tensor(self.sizes, dtype=torch.int64).cumsum(0)
        ends = [self.starts[i + 1] for i in (left % multiple == 0).nonzero().flatten().tolist()]
        return Units(self.members[: ends[-1] if ends else 0], [end - start for start, end in itertools.pairwise([0, *ends])])


def smallest_units(index: GroupIndex, group: Group, norm: NormMode, heads: HeadMode) -> Units:
    """Split a group's channels into the smallest sets whose removal leaves every layer consistent.

    Args:
        index: the index that the group belongs to.
        group: the group.
        norm: see `Plan`.
        heads: "within" takes the same offsets from every attention head, "whole" takes whole heads.

    Returns:
        Sets of channels, each ascending, ordered by their first channel. Channels that cannot go in this mode are in none.
    """
    component, fixed = torch.arange(group.channels), torch.zeros(group.channels, dtype=torch.bool)
    ties: list[tuple[Tensor, Tensor]] = []
    for item in group.items:
        if item.tensor not in ("weight", "") and item.kind != "parameter":
            continue
        labels, stuck = _labels(index, group, item, norm, heads)
        if labels is not None:
            ties.append(labels)
        if stuck is not None:
            fixed[stuck] = True
    if not ties:
        return Units(component, [1] * group.channels)
    component = _join(component, ties)
    fixed = torch.zeros_like(fixed).index_fill(0, component[fixed], True)[component]
    free = (~fixed).nonzero().flatten()
    firsts, order = component[free].sort(stable=True)
    return Units(free[order], firsts.unique_consecutive(return_counts=True)[1].tolist())


def _labels(index: GroupIndex, group: Group, item: Item, norm: NormMode, heads: HeadMode) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
    """Return (labels, channels) that tie channels of equal label together, and channels that cannot go."""
    site = index.sites.get(item.module)
    if site is None:
        return None, None
    width = index.width(item)
    if item.kind == "norm" and site.groups > 1:
        return _norm_labels(group, item, site.groups, width, norm)
    parts = item.groups if item.kind == "in" else site.groups if item.kind == "out" else 1
    if parts > 1:
        return (item.idx % (width // parts), item.root), None
    owner, _, layer = item.module.rpartition(".")
    attention = index.attentions.get(owner)
    if item.kind == "out" and attention is not None and layer in ("to_q", "qkv"):
        queries = item.idx < attention.heads * attention.head_dim
        idx, root = item.idx[queries], item.root[queries]
        return (idx % attention.head_dim if heads == "within" else idx // attention.head_dim, root), None
    return None, None


def _norm_labels(group: Group, item: Item, parts: int, width: int, norm: NormMode) -> tuple[tuple[Tensor, Tensor] | None, Tensor | None]:
    size = width // parts
    if norm == "regroup":
        return None, None
    if norm == "whole_group" and parts > 1:
        label = item.idx // size
        incomplete = label.bincount(minlength=parts)[label] < size  # its other channels belong to another group of layers
        return (label, item.root), item.root[incomplete]
    if len(item.idx) == width:
        return (item.idx % size, item.root), None
    # A part of a concatenation: its normalisation groups are re-cut in any case, and only the number of channels has to divide.
    offset = group.channels // parts if group.channels % parts == 0 else 1
    return (item.root % offset, item.root), None


def _join(component: Tensor, ties: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Give channels that are tied, directly or through others, the same number: that of the first."""
    while True:
        before = component
        for labels, channels in ties:
            lowest = torch.full((int(labels.max()) + 1,), len(component)).scatter_reduce(0, labels, component[channels], "amin")
            component = component.scatter_reduce(0, channels, lowest[labels], "amin")
        if torch.equal(component, before):
            return component
