"""Pruned networks on disk: model.safetensors with plain tensors and structure.json with what was cut. No pickle, no tracing on loading."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from shared.data.files import blamed, read_json
from shared.pruning.groups import GroupIndex, Item, named_tensors
from shared.pruning.plan import Plan
from shared.pruning.structure import Structure, replace_tensor, restructure

WEIGHTS, STRUCTURE = "model.safetensors", "structure.json"


def save(model: nn.Module, folder: str | Path, base: dict[str, Any] | None = None) -> Path:
    """Write a pruned (or unpruned) network.

    Args:
        model: the network.
        folder: where to write; an earlier folder is replaced, in one piece or not at all.
        base: what the unpruned network is, as `describe` gives it; found out for diffusers' and timm's networks.
    """
    from safetensors.torch import save_file

    from shared.runs import atomic, write_json

    structure = getattr(model, "pruned_structure", Structure())
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, tensor in named_tensors(model).items():
        if id(tensor) in first:
            shared[name] = first[id(tensor)]
        else:
            first[id(tensor)] = name
            tensors[name] = tensor.detach().cpu().contiguous()
    content = {"version": 1, "base": base or describe(model), "shared": shared, "shapes": {name: list(t.shape) for name, t in tensors.items()}}
    content |= {"libraries": {name: metadata.version(name) for name in ("torch", "torch-pruning")}, **structure.to_json()}
    with atomic(folder) as temporary:
        Path(temporary).mkdir(parents=True)
        save_file(tensors, Path(temporary) / WEIGHTS)
        write_json(Path(temporary) / STRUCTURE, content)
    return Path(folder)


def load(folder: str | Path, factory: Callable[[], nn.Module] | None = None) -> nn.Module:
    """Read a network that `save` wrote, on the CPU in evaluation mode.

    Args:
        folder: the folder.
        factory: makes the unpruned network; not needed for diffusers' and timm's networks.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if files are damaged, do not belong together, or the factory makes another network.
    """
    from safetensors.torch import load_file

    folder, mend = Path(folder), "write it again with shared.pruning.store.save"
    for name in (WEIGHTS, STRUCTURE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no pruned network: {name} is missing; expected {WEIGHTS} and {STRUCTURE}, as shared.pruning.store.save writes"
            )
    content = read_json(folder / STRUCTURE, mend)
    with blamed(folder / WEIGHTS, mend):
        tensors = load_file(folder / WEIGHTS)
    version = content.get("version") if isinstance(content, dict) else None
    if version != 1:
        raise ValueError(f"{folder / STRUCTURE} has version {version}; this code reads version 1")
    make = factory or (lambda: build_base(content["base"]))
    with torch.device("meta"), nullcontext() if factory else blamed(folder / STRUCTURE, mend):
        model = make()
    with blamed(folder / STRUCTURE, mend):
        structure = Structure.from_json(content)
        restructure(model, structure)
        _fill(model, tensors, dict(content["shared"]), folder)
        _materialise(model, make, structure)
    return model.eval()


def _fill(model: nn.Module, tensors: dict[str, Tensor], shared: dict[str, str], folder: Path) -> None:
    expected = named_tensors(model)
    persistent = set(model.state_dict())
    wrong = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(expected[name].shape)} in the network" for name in tensors if name in expected
    ]
    wrong = [line for line, name in zip(wrong, (n for n in tensors if n in expected), strict=True) if tensors[name].shape != expected[name].shape]
    wrong += [f"{name} is not in the network" for name in tensors if name not in expected]
    wrong += [f"{name} is not in the file" for name in expected if name in persistent and name not in tensors and name not in shared]
    if wrong:
        raise ValueError(f"{folder / WEIGHTS} does not fit its structure: " + "; ".join(wrong[:4]))
    put = {name: replace_tensor(model, name, tensor) for name, tensor in tensors.items()}
    for name, first in shared.items():
        replace_tensor(model, name, put[first])


def _materialise(model: nn.Module, make: Callable[[], nn.Module], structure: Structure) -> None:
    """Fill buffers that are in no file, if there are any, from a second network that is made in full."""
    empty = [name for name, tensor in named_tensors(model).items() if tensor.is_meta]
    if not empty:
        return
    full = make()
    restructure(full, structure)
    made = named_tensors(full)
    for name in empty:
        replace_tensor(model, name, made[name])


def describe(model: Any) -> dict[str, Any]:
    """Say in plain values what a diffusers or timm network is; an empty table for others, which `load` then needs a factory for."""
    if type(model).__module__.startswith("diffusers.") and hasattr(model, "config"):
        config = {name: value for name, value in dict(model.config).items() if not name.startswith("_")}
        return {"library": "diffusers", "class": type(model).__name__, "config": json.loads(json.dumps(config, default=str))}
    if type(model).__module__.startswith("timm.") and getattr(model, "pretrained_cfg", None):
        return {"library": "timm", "architecture": model.pretrained_cfg["architecture"], "arguments": _timm_arguments(model)}
    return {}


def _timm_arguments(model: Any) -> dict[str, Any]:
    given = {"num_classes": model.num_classes} | ({"global_pool": model.global_pool} if isinstance(getattr(model, "global_pool", None), str) else {})
    first = model.pretrained_cfg.get("first_conv")
    if isinstance(first, str):
        given["in_chans"] = model.get_submodule(first).in_channels
    size = getattr(getattr(model, "patch_embed", None), "img_size", None)
    return given | ({"img_size": list(size)} if size else {})


def build_base(base: dict[str, Any]) -> nn.Module:
    """Make the unpruned network that `describe` described.

    Raises:
        ValueError: if it is of no known library or class.
    """
    if base.get("library") == "diffusers":
        import diffusers

        kind = getattr(diffusers, str(base["class"]), None)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin) and issubclass(kind, diffusers.ConfigMixin)):
            raise ValueError(f"diffusers has no network class {base['class']!r}")
        if not isinstance(base["config"], dict):  # of a text, diffusers would fetch the settings from its hub
            raise ValueError(f"the settings of the {base['class']} are no table: {str(base['config'])[:40]!r}")
        return cast("Any", kind).from_config(base["config"])
    if base.get("library") == "timm":
        from shared.backbones.factory import build_backbone

        return build_backbone(base["architecture"], None, **base["arguments"])
    raise ValueError("structure.json does not say what the unpruned network is: give load() a factory that makes it")


def import_history(index: GroupIndex, history: Iterable[Sequence[Any]], norm: str = "per_offset") -> Plan:
    """Turn a history of torch-pruning (module, whether outputs were pruned, positions; one after the other) into a plan for the unpruned network.

    Args:
        index: the groups of the unpruned network.
        history: what `DependencyGraph.pruning_history()` returned.
        norm: torch-pruning keeps the number of groups of normalisations.

    Raises:
        ValueError: if an entry names a layer or a position that the network does not have.
    """
    left = {group.name: torch.ones(group.channels, dtype=torch.bool) for group in index.groups.values()}
    for module, outputs, positions in history:
        kind = ("out", "depthwise") if outputs else ("in", "depthwise")
        entries = [
            (group.name, item)
            for group in index.groups.values()
            for item in group.items
            if item.module == module and item.kind in kind and item.tensor == "weight"
        ]
        if not entries:
            raise ValueError(f"the history prunes {module!r}, which is no prunable layer of this network")
        lost = _lost(index, entries, left, module, list(positions))
        for (name, _), channels in zip(entries, lost, strict=True):
            left[name][channels] = False
    dropped = {name: (~stays).nonzero().flatten() for name, stays in left.items() if not stays.all()}
    return Plan(index, dropped, norm)  # type: ignore[arg-type]


def _lost(index: GroupIndex, entries: list[tuple[str, Item]], left: dict[str, Tensor], module: str, positions: list[int]) -> list[Tensor]:
    """Return the channels behind positions of a layer that has lost some before, for each of its groups."""
    present = torch.zeros(index.width(entries[0][1]), dtype=torch.bool)
    for name, item in entries:
        present[item.idx] = left[name][item.root]
    original = present.nonzero().flatten()
    if positions and max(positions) >= len(original):
        raise ValueError(f"the history prunes position {max(positions)} of {module}, which has {len(original)} left then")
    chosen = torch.zeros_like(present)
    chosen[original[torch.tensor(positions, dtype=torch.int64)]] = True
    return [item.root[chosen[item.idx]] for _, item in entries]
