"""What pruning has made of a network, in plain values: enough to give a fresh one the same shapes without tracing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from shared.pruning.groups import from_runs, named_tensors, runs

Kept = dict[str, dict[int, Tensor]]


@dataclass
class Structure:
    """How a pruned network differs from its original; `apply` leaves one in the network's `pruned_structure`.

    Args:
        original_shapes: shapes of the tensors that were cut, before any cut.
        kept: positions of the original that are left, by tensor and dimension.
        attributes: attributes of modules that changed.
        history: what each pruning dropped, by group, as runs in the channels of its time.
    """

    original_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    kept: Kept = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)

    def then(self, shapes: Mapping[str, tuple[int, ...]], kept: Kept, attributes: Mapping[str, dict[str, Any]], record: dict[str, Any]) -> Structure:
        """Return this structure followed by one more cut.

        Args:
            shapes: shapes of all tensors just before the cut.
            kept: positions that it keeps.
            attributes: attributes that it changes.
            record: its entry in the history.
        """
        originals, composed = dict(self.original_shapes), {name: dict(dims) for name, dims in self.kept.items()}
        for name, dims in kept.items():
            originals.setdefault(name, shapes[name])
            for dim, positions in dims.items():
                earlier = composed.setdefault(name, {}).get(dim)
                composed[name][dim] = positions if earlier is None else earlier.index_select(0, positions)
        changed = {name: self.attributes.get(name, {}) | attributes.get(name, {}) for name in {**self.attributes, **attributes}}
        return Structure(originals, composed, changed, [*self.history, record])

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        kept = {name: {str(dim): runs(positions) for dim, positions in dims.items()} for name, dims in self.kept.items()}
        shapes = {name: list(shape) for name, shape in self.original_shapes.items()}
        return {"original_shapes": shapes, "kept": kept, "attributes": self.attributes, "history": self.history}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Structure:
        """Read what `to_json` wrote."""
        kept = {name: {int(dim): from_runs(parts) for dim, parts in dims.items()} for name, dims in content["kept"].items()}
        shapes = {name: tuple(shape) for name, shape in content["original_shapes"].items()}
        attributes = {
            name: {key: tuple(value) if isinstance(value, list) else value for key, value in changed.items()}
            for name, changed in content["attributes"].items()
        }
        return cls(shapes, kept, attributes, list(content["history"]))


def restructure(model: nn.Module, structure: Structure) -> None:
    """Cut an unpruned network, on any device or on meta, to the shapes of a pruned one.

    Raises:
        ValueError: if the network is not the original of `structure`; nothing is changed then.
    """
    tensors = named_tensors(model)
    for name, shape in structure.original_shapes.items():
        found = tuple(tensors[name].shape) if name in tensors else "no such tensor"
        if found != shape:
            raise ValueError(f"the network is not the one that was pruned: {name} had the shape {shape} there and is {found} here")
    unknown = [name for name in structure.attributes if name and name not in dict(model.named_modules())]
    if unknown:
        raise ValueError(f"the network is not the one that was pruned: it has no module {unknown[0]}")
    for name, dims in structure.kept.items():
        cut = tensors[name].detach()
        for dim, positions in dims.items():
            cut = cut.index_select(dim, positions.to(cut.device))
        replace_tensor(model, name, cut)
    set_attributes(model, structure.attributes)
    model.pruned_structure = structure  # type: ignore[assignment]


def replace_tensor(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Put a tensor in the place of a parameter or buffer, as a parameter if it was one, and return what was put."""
    owner, _, last = name.rpartition(".")
    module = model.get_submodule(owner)
    old = module._parameters.get(last)
    if old is None:
        module._buffers[last] = tensor
        return tensor
    parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=old.requires_grad)
    module._parameters[last] = parameter
    return parameter


def set_attributes(model: nn.Module, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set plain attributes of modules."""
    for name, values in attributes.items():
        module = model.get_submodule(name)
        for attribute, value in values.items():
            if isinstance(getattr(module, attribute, None), (nn.Module, Tensor)) or not isinstance(value, (int, float, tuple)):
                raise ValueError(f"{name}.{attribute} is no plain number of a layer and is not set")
            setattr(module, attribute, value)


def positions_on(kept: Mapping[int, Tensor], device: torch.device) -> dict[int, Tensor]:
    """Move positions to a device."""
    return {dim: positions.to(device) for dim, positions in kept.items()}
