"""What is to be removed: a table of channels by group, independent of any tracing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from shared.pruning.groups import GroupIndex, Heads, Item, NormMode, Site, from_runs, runs


@dataclass
class Plan:
    """Channels to remove or mask; `select` makes one, `Plan.of` writes one by hand.

    Args:
        index: the groups that it speaks of.
        dropped: (N,) channels by group, ascending; groups that stay whole are left out.
        norm: what becomes of group normalisations: "per_offset" keeps their number of groups and takes the same offsets from each,
            "whole_group" removes whole groups, "regroup" takes the number of groups nearest to the old one that divides what is left.
        mode: "cut" if the plan respects what physical removal demands, "mask" if it only serves masks.
        notes: caps, floors and budgets that bound the choice.
        scores: the scores it was chosen by, for the report.
    """

    index: GroupIndex
    dropped: dict[str, Tensor]
    norm: NormMode = "per_offset"
    mode: Literal["cut", "mask"] = "cut"
    notes: list[str] = field(default_factory=list)
    scores: Mapping[str, Tensor] | None = field(default=None, repr=False)
    _kept: dict[tuple[str, str], Tensor] | None = field(default=None, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, index: GroupIndex, dropped: Mapping[str, Any], norm: NormMode = "per_offset", mode: Literal["cut", "mask"] = "cut") -> Plan:
        """Write a plan by hand: group names and the channels to drop.

        Raises:
            ValueError: if a group is unknown or protected, or would lose a channel it does not have, or all.
        """
        chosen = {}
        for name, channels in dropped.items():
            if name not in index.groups:
                raise ValueError(f"no group {name!r}; there are {', '.join(list(index.groups)[:6])}, ...")
            group, unique = index.groups[name], torch.as_tensor(channels, dtype=torch.int64).unique()
            if group.protected:
                raise ValueError(f"{name} must stay whole: {group.protected}")
            if len(unique) and not 0 <= int(unique[0]) <= int(unique[-1]) < group.channels:
                raise ValueError(f"{name} has channels 0 to {group.channels - 1}, and {int(unique[-1])} or {int(unique[0])} is none of them")
            if len(unique) >= group.channels:
                raise ValueError(f"{name} would lose all of its {group.channels} channels; leave at least one")
            if len(unique):
                chosen[name] = unique
        return cls(index, chosen, norm, mode)

    @property
    def channels(self) -> int:
        """Number of channels that go."""
        return sum(len(channels) for channels in self.dropped.values())

    def keep(self) -> dict[tuple[str, str], Tensor]:
        """Return which positions stay, (width,) bool, by the place (module, side) that loses some; computed once."""
        if self._kept is not None:
            return self._kept
        kept: dict[tuple[str, str], Tensor] = {}
        for name, channels in self.dropped.items():
            group = self.index.groups[name]
            lost = torch.zeros(group.channels, dtype=torch.bool)
            lost[channels] = True
            for place, item in {item.place: item for item in group.items}.items():
                if place not in kept:
                    kept[place] = torch.ones(self.index.width(item), dtype=torch.bool)
                kept[place].index_fill_(0, item.idx.index_select(0, lost.index_select(0, item.root).nonzero().flatten()), False)
        self._kept = kept
        return kept

    def items(self) -> list[Item]:
        """Return the items of all groups that lose channels."""
        return [item for name in self.dropped for item in self.index.groups[name].items]

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        dropped = {name: runs(channels) for name, channels in self.dropped.items()}
        return {"version": 1, "norm": self.norm, "mode": self.mode, "notes": self.notes, "dropped": dropped, "index": self.index.to_json()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        dropped = {name: from_runs(parts) for name, parts in content["dropped"].items()}
        return cls(GroupIndex.from_json(content["index"]), dropped, content["norm"], content["mode"], list(content["notes"]))

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON."""
        Path(path).write_text(json.dumps(self.to_json()), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote."""
        return cls.from_json(json.loads(Path(path).read_text(encoding="utf-8")))


def norm_groups(name: str, site: Site, keep: Tensor, mode: NormMode) -> int:
    """Return the number of groups of a group normalisation after its channels were cut.

    Args:
        name: the layer, for the message.
        site: what tracing saw of it.
        keep: (C,) bool, the channels that stay.
        mode: see `Plan`.

    Raises:
        ValueError: if what is left does not divide as the mode demands.
    """
    left, before = int(keep.sum()), site.groups
    if before == 1:
        return 1
    if mode == "regroup":
        return min((d for d in range(1, left + 1) if left % d == 0), key=lambda d: (abs(math.log(d / before)), d))
    if mode == "per_offset":
        if left % before:
            raise ValueError(
                f"{name} would keep {left} channels, which do not divide into its {before} groups; select with norm='regroup' or whole units"
            )
        return before
    parts = keep.view(before, -1)
    if not torch.equal(parts.all(1), parts.any(1)):
        raise ValueError(f"{name} would lose parts of its groups; select with norm='whole_group'")
    return int(parts.any(1).sum())


def query_place(name: str, heads: Heads) -> tuple[str, str]:
    """Return the place of an attention's queries; a fused layer's first third is they."""
    return (f"{name}.to_q" if heads.style == "separate" else f"{name}.qkv", "out")


def heads_after(name: str, heads: Heads, keep: Tensor) -> Heads:
    """Return the heads of an attention after its channels were cut.

    Args:
        name: the attention, for the message.
        heads: as they were.
        keep: (width,) bool, the outputs of the query or fused layer that stay.

    Raises:
        ValueError: if the remaining heads would differ in width.
    """
    counts = keep[: heads.heads * heads.head_dim].view(heads.heads, heads.head_dim).sum(1)
    left = counts[counts > 0]
    if not len(left) or int(left.min()) != int(left.max()):
        raise ValueError(
            f"the heads of {name} would keep {counts.tolist()} channels: they must stay equally wide; select with heads='within' or 'whole'"
        )
    return Heads(heads.style, len(left), int(left[0]))
