"""Physical removal: gradients, buffers, optimiser state and running averages are cut along with the weights, and layers told their new widths."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shared.pruning.fixers import attribute_changes
from shared.pruning.groups import GroupIndex, named_tensors, runs
from shared.pruning.kernels import gather
from shared.pruning.masks import Weights, masked
from shared.pruning.plan import Plan, query_place
from shared.pruning.structure import Kept, Structure, positions_on, replace_tensor, set_attributes
from shared.pruning.tracing import call


def apply(model: nn.Module, plan: Plan, optimizers: Iterable[torch.optim.Optimizer] = (), ema: Iterable[Weights] = ()) -> GroupIndex:
    """Remove the plan's channels from a network, in place.

    Where heads become narrower, the queries are scaled so that attention weighs as before. The network's `pruned_structure` says what was cut,
    over successive prunings; `store.save` writes it.

    Args:
        model: the network; wrappers such as DistributedDataParallel must be made anew afterwards, for they hold the old parameters.
        plan: what to remove.
        optimizers: optimisers of the network: their parameters are exchanged and their state is cut along.
        ema: running averages of the weights, modules or tensors by name, to cut along.

    Returns:
        The index of the pruned network, made without tracing: what the next pruning starts from.

    Raises:
        ValueError: if the plan is for masks, does not fit the network, the averages or the optimisers' state; nothing is changed then.
    """
    if plan.mode == "mask":
        raise ValueError("the plan was made for masks and ignores what removal demands of norms and heads: select with mode='cut'")
    plan.index.check(model)
    copies = [weights.module if isinstance(weights, AveragedModel) else weights for weights in ema]
    optimizers = list(optimizers)
    kept, after = kept_positions(plan), plan.index.after(plan)
    scales = _query_scales(model, plan, after)
    changes = attribute_changes(model, after)
    _refuse_early(model, kept, optimizers, copies)
    record = {"norm": plan.norm, "dropped": {name: runs(channels) for name, channels in plan.dropped.items()}}
    structure = getattr(model, "pruned_structure", Structure()).then(plan.index.shapes, kept, changes, record)
    for weights in (model, *copies):
        _cut(weights, kept, scales, optimizers if weights is model else [])
        if isinstance(weights, nn.Module):
            set_attributes(weights, changes)
            weights.pruned_structure = structure  # type: ignore[assignment]
    return after


def verify(model: nn.Module, plan: Plan, example_inputs: Any) -> float:
    """Try a plan on a copy of the network.

    Returns:
        The largest difference between the output of the pruned copy and that of the masked network (with emulated normalisation).

    Raises:
        ValueError: if the pruned copy does not run, or gives another shape.
    """
    pruned = copy.deepcopy(model).eval()
    apply(pruned, plan)
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad(), masked(model.eval(), plan, emulate_norm=True):
            expected = _tensor(call(model, example_inputs))
            found = _tensor(call(pruned, example_inputs))
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"the pruned network does not run: {type(error).__name__}: {error}; protect the layers concerned") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    if found.shape != expected.shape:
        raise ValueError(f"the pruned network gives the shape {tuple(found.shape)} instead of {tuple(expected.shape)}; protect its output layers")
    return float((found - expected).abs().max())


def kept_positions(plan: Plan) -> Kept:
    """Return the positions that stay, by tensor and dimension of all tensors that lose some.

    Raises:
        ValueError: if a grouped convolution would keep different inputs in its groups.
    """
    keep = plan.keep()
    kept: Kept = {}
    positions: dict[tuple[str, str], Tensor] = {}
    for item in plan.items():
        if item.place not in positions:
            mask = keep[item.place].view(item.groups, -1)
            if item.groups > 1 and not torch.equal(mask, mask[:1].expand_as(mask)):
                raise ValueError(f"{item.name} would lose different inputs in its {item.groups} groups; select whole units")
            positions[item.place] = mask[0].nonzero().flatten()
        if item.tensor:
            kept.setdefault(item.name, {})[item.dim] = positions[item.place]
    return kept


def _query_scales(model: nn.Module, plan: Plan, after: GroupIndex) -> dict[str, float]:
    """Return factors for the queries of attentions whose heads become narrower: their products were divided by the root of the old width."""
    scales = {}
    for name, heads in plan.index.attentions.items():
        module: Any = model.get_submodule(name)
        if after.attentions[name].head_dim != heads.head_dim and getattr(module, "scale_qk", True):
            scales[query_place(name, heads)[0]] = math.sqrt(after.attentions[name].head_dim / heads.head_dim)
    return scales


def _cut(weights: Weights, kept: Kept, scales: dict[str, float], optimizers: list[torch.optim.Optimizer]) -> None:
    tensors = named_tensors(weights) if isinstance(weights, nn.Module) else weights
    exchanged: dict[int, tuple[Tensor, Tensor, dict[int, Tensor]]] = {}
    for name, dims in kept.items():
        old = tensors[name]
        if id(old) in exchanged:  # shared by two modules
            replace_tensor(weights, name, exchanged[id(old)][1])  # type: ignore[arg-type]
            continue
        positions = positions_on(dims, old.device)
        cut = gather(old.detach(), positions)
        if (layer := name.rpartition(".")[0]) in scales:
            rows = cut.shape[0] if layer.endswith(".to_q") else cut.shape[0] // 3
            cut[:rows] *= scales[layer]
        if not isinstance(weights, nn.Module):
            weights[name] = cut
            continue
        new = replace_tensor(weights, name, cut)
        if old.grad is not None:
            new.grad = gather(old.grad, positions)
        exchanged[id(old)] = (old, new, positions)
    for optimizer in optimizers:
        _exchange(optimizer, exchanged)


def _exchange(optimizer: torch.optim.Optimizer, exchanged: dict[int, tuple[Tensor, Tensor, dict[int, Tensor]]]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [exchanged[id(p)][1] if id(p) in exchanged else p for p in group["params"]]
    for old, new, positions in exchanged.values():
        if old in optimizer.state:
            state = optimizer.state.pop(old)
            cut = {key: gather(value, positions) if _follows(value, old) else value for key, value in state.items()}
            optimizer.state[new] = cut


def _follows(value: Any, parameter: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim > 0


def _refuse_early(model: nn.Module, kept: Kept, optimizers: list[torch.optim.Optimizer], copies: list[Any]) -> None:
    tensors = named_tensors(model)
    for weights in copies:
        other = named_tensors(weights) if isinstance(weights, nn.Module) else weights
        for name in kept:
            if name not in other or other[name].shape != tensors[name].shape:
                raise ValueError(
                    f"the running average does not fit the network: {name} is {tuple(other[name].shape) if name in other else 'missing'} there"
                )
    cut = {id(tensors[name]): name for name in kept}
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                if id(parameter) in cut and isinstance(value, Tensor) and value.ndim > 0 and not _follows(value, parameter):
                    raise ValueError(
                        f"{type(optimizer).__name__} keeps {key!r} of shape {tuple(value.shape)} for {cut[id(parameter)]}, which cannot be cut: "
                        "make a new optimiser after pruning"
                    )
    shared: dict[int, dict[int, Tensor]] = {}
    for name, dims in kept.items():
        earlier = shared.setdefault(id(tensors[name]), dims)
        if earlier.keys() != dims.keys() or any(not torch.equal(earlier[dim], dims[dim]) for dim in dims):
            raise ValueError(f"{name} shares its tensor with another layer that would lose other channels; protect one of them")


def _tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    return _tensor(next(iter(output.values())) if hasattr(output, "values") else output[0])
