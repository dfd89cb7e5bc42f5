"""Cuts a group index along with its network, so that repeated pruning never traces again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from shared.pruning.groups import Group, GroupIndex, Item
from shared.pruning.plan import Plan, heads_after, norm_groups, query_place


def cut_index(index: GroupIndex, plan: Plan) -> GroupIndex:
    """Return the index of the network after `plan`; see `GroupIndex.after`."""
    keep = plan.keep()
    renumbered = {place: mask.cumsum(0) - 1 for place, mask in keep.items()}
    groups = {name: _cut_group(group, plan.dropped.get(name), renumbered) for name, group in index.groups.items()}
    sites = dict(index.sites)
    for (module, side), mask in keep.items():
        if side in ("out", "both") and module in sites:
            sites[module] = replace(sites[module], channels=int(mask.sum()))
    for item in plan.items():
        site = index.sites.get(item.module)
        if site is not None and site.groups > 1 and item.kind == "norm":
            sites[item.module] = replace(sites[item.module], groups=norm_groups(item.module, site, keep[item.place], plan.norm))
        elif item.kind == "depthwise":
            sites[item.module] = replace(sites[item.module], groups=int(keep[item.place].sum()))
    attentions = {
        name: heads_after(name, heads, keep[query_place(name, heads)]) if query_place(name, heads) in keep else heads
        for name, heads in index.attentions.items()
    }
    return GroupIndex(groups, sites, attentions, cut_shapes(index, plan), index.uncounted, index.skipped)


def _cut_group(group: Group, dropped: Tensor | None, renumbered: dict[tuple[str, str], Tensor]) -> Group:
    stays = torch.ones(group.channels, dtype=torch.bool)
    if dropped is not None:
        stays[dropped] = False
    channel = stays.cumsum(0) - 1

    done: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}  # a layer's tensors share their positions

    def cut(item: Item) -> Item:
        place = item.place
        if place not in renumbered:
            return item
        if place not in done:
            left = stays.index_select(0, item.root).nonzero().flatten()
            idx, root = item.idx.index_select(0, left), item.root.index_select(0, left)
            done[place] = renumbered[place].index_select(0, idx), channel.index_select(0, root)
        return Item(item.module, item.tensor, item.dim, item.kind, *done[place], item.groups)

    return replace(group, channels=int(stays.sum()), items=tuple(cut(item) for item in group.items))


def cut_shapes(index: GroupIndex, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all tensors after `plan`."""
    shapes, widths = dict(index.shapes), {place: int(mask.sum()) for place, mask in plan.keep().items()}
    for item in plan.items():
        if item.tensor:
            shape = list(shapes[item.name])
            shape[item.dim] = widths[item.place] // item.groups
            shapes[item.name] = tuple(shape)
    return shapes
