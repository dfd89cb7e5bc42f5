"""Streaming collectors: what scores need beyond the weights, gathered batch by batch on the device in memory of the order of the channels.

All are exact under gradient accumulation and autocast, sum over processes where a process group exists, and take their hooks away on any exit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils._pytree import tree_flatten, tree_map

from shared.distributed import world_size
from shared.pruning.groups import GroupIndex
from shared.pruning.masks import consumers, input_dim
from shared.pruning.scores import Normaliser, Reduction, Scores, position_sums, score_positions, taylor

_Key = TypeVar("_Key")
Form = Literal["sum", "abs", "square"]


class BatchTaylor:
    """Taylor scores from the weights' gradients of a stream of batches.

        collector = BatchTaylor(index, model, "square")
        for batch in batches:
            loss(model, batch).backward()      # any number of backward passes make one batch
            collector.step()
        scores = collector.scores()

    Each batch counts once: in DistributedDataParallel, whose gradients are averages already, as well as with a bare network in each process.

    Args:
        index: the groups.
        model: the network, not a wrapper of it.
        form: "square" averages (sum of w · g)² over batches (Molchanov et al. 2019), which no sum of gradients can give; "sum" is
            |sum of w · g| and "abs" the sum of |w · g|, with g the sum over batches.
    """

    def __init__(self, index: GroupIndex, model: nn.Module, form: Form = "square") -> None:
        index.check(model)
        self.index, self.model, self.form = index, model, form
        self.sums: dict[tuple[str, int], Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.skipped: list[str] = []
        self.weight = 0.0

    @torch.no_grad()
    def step(self, weight: float = 1.0, loss_scale: float = 1.0) -> None:
        """Take the gradients of one batch from the network, and leave none.

        Args:
            weight: of this batch, such as that of its timestep.
            loss_scale: what a gradient scaler multiplied the loss by.

        Raises:
            ValueError: if no parameter has a gradient.
        """
        named = {name: parameter for name, parameter in self.model.named_parameters() if parameter.grad is not None}
        if not named:
            raise ValueError("no parameter has a gradient: call backward() before step()")
        factor = weight / loss_scale
        if self.form == "abs":
            for name, parameter in named.items():
                assert parameter.grad is not None
                if name in self.gradients:
                    self.gradients[name].add_(parameter.grad, alpha=factor)
                else:
                    self.gradients[name] = parameter.grad.float() * factor if factor != 1 else parameter.grad.float()
        else:
            sums, self.skipped = position_sums(self.index, self.model, "product", lambda parameter: parameter.grad)
            for key, values in average_over_processes(sums).items():
                values = (values / loss_scale).square() * weight if self.form == "square" else values * factor
                self.sums[key] = self.sums[key] + values if key in self.sums else values
        self.weight += weight
        for parameter in named.values():
            parameter.grad = None

    def scores(self, reduction: Reduction = "mean", normaliser: Normaliser = "mean") -> Scores:
        """Return the scores of all batches so far."""
        if self.weight == 0:
            raise ValueError("no batch was collected: call step() after each backward()")
        if self.form == "abs":
            return taylor(self.index, self.model, "abs", average_over_processes(self.gradients), reduction, normaliser)
        sums = {key: values / (self.weight if self.form == "square" else 1) for key, values in self.sums.items()}
        return score_positions(self.index, sums, reduction, normaliser, self.skipped)


def fisher(
    model: nn.Module,
    loss: Callable[[Callable[..., Any], Any], Tensor],
    batches: Iterable[Any],
    method: Literal["vmap", "loop"] = "vmap",
    chunk: int | None = 16,
) -> dict[str, Tensor]:
    """Average the squared gradients of single samples, by parameter: the diagonal of the empirical Fisher matrix, for `scores.hessian`.

    Args:
        model: the network, in evaluation mode.
        loss: a function of a network and a batch of one sample that returns a number; it calls the network it is given.
        batches: tensors, or tuples or mappings of tensors, with samples along their first dimension.
        method: "vmap" takes the gradients of `chunk` samples at once; "loop" one at a time, which every network allows.
        chunk: samples at once, for memory.

    Returns:
        float32 tensors of the parameters' shapes.
    """
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    squares = {name: torch.zeros_like(p, dtype=torch.float32) for name, p in parameters.items()}
    count = 0

    def of_sample(values: dict[str, Tensor], sample: Any) -> Tensor:
        def network(*args: Any, **kwargs: Any) -> Any:
            return functional_call(model, values, args, kwargs)

        return loss(network, tree_map(lambda tensor: tensor.unsqueeze(0), sample))

    per_sample = vmap(grad(of_sample), in_dims=(None, 0), chunk_size=chunk, randomness="different")
    for batch in batches:
        size = len(tree_flatten(batch)[0][0])
        count += size
        if method == "vmap":
            for name, values in per_sample(parameters, batch).items():
                squares[name] += values.float().square().sum(0)
            continue
        for i in range(size):
            gradients = grad(of_sample)(parameters, tree_map(lambda tensor: tensor[i], batch))  # noqa: B023
            for name, values in gradients.items():
                squares[name] += values.float().square()
    totals = average_over_processes(squares | {"": torch.tensor([float(count)], device=next(iter(parameters.values())).device)})
    return {name: values / totals[""] for name, values in totals.items() if name}


class Activations:
    """Moments of what consumers see of each channel, and of its product with the loss's gradient there; a context manager.

        with Activations(index, model, parts=2, gradients=True) as seen:
            loss(model(torch.cat([clean, triggered]))).backward()
        seen.difference(), seen.taylor("abs", part=1)

    With `parts=2` each batch holds matched clean and triggered samples, first one half and then the other (same noise, same timesteps), and one pass
    scores both. The network should be in evaluation mode: batch statistics would mix the halves.

    Args:
        index: the groups.
        model: the network, or what wraps it.
        parts: number of equal parts that each batch falls into and that are collected apart.
        gradients: also collect a · dL/da, summed over space for each sample; needs a backward pass inside the context.
    """

    def __init__(self, index: GroupIndex, model: nn.Module, parts: int = 1, gradients: bool = False) -> None:
        index.check(model)
        self.index, self.model, self.parts, self.gradients = index, model, parts, gradients
        self.loss_scale = 1.0
        self.moments: dict[str, dict[str, Tensor]] = {}
        self.handles: list[Any] = []

    def __enter__(self) -> Self:
        modules = dict(self.model.named_modules())
        for name in consumers(self.index, self.index.groups):
            self.handles.append(modules[name].register_forward_pre_hook(lambda module, args, name=name: self._see(name, module, args[0])))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def _see(self, name: str, module: nn.Module, given: Tensor) -> None:
        dim = input_dim(module)
        with torch.no_grad():
            values = self._split(given, dim)  # (parts, samples, positions, C)
            count = values.shape[1] * values.shape[2]
            variance, mean = torch.var_mean(values, (1, 2), correction=0)
            found = {"absolute": values.abs().mean((1, 2))}
            if self.parts == 2:
                found["distance"] = (values[1] - values[0]).abs().mean((0, 1)).unsqueeze(0)
            self._merge(name, count, mean.double(), variance.double(), {key: value.double() for key, value in found.items()})
        if self.gradients and given.requires_grad:
            given.register_hook(lambda gradient: self._see_gradient(name, dim, given.detach(), gradient))

    def _split(self, given: Tensor, dim: int) -> Tensor:
        if len(given) % self.parts:
            raise ValueError(
                f"a batch of {len(given)} does not fall into {self.parts} equal parts: give clean and triggered samples in equal numbers"
            )
        moved = given.detach().float().movedim(dim, -1)
        return moved.reshape(self.parts, len(given) // self.parts, -1, moved.shape[-1])

    def _merge(self, name: str, count: int, mean: Tensor, variance: Tensor, averages: dict[str, Tensor]) -> None:
        """Join a batch's moments to those so far (Chan et al. 1983), in float64."""
        if "mean" not in (held := self.moments.setdefault(name, {})):
            held |= {"count": mean.new_tensor(count), "mean": mean, "variance": variance, **averages}
            return
        total = held["count"] + count
        share, step = count / total, mean - held["mean"]
        held["variance"] = held["variance"] * (1 - share) + variance * share + step.square() * share * (1 - share)
        held["mean"] = held["mean"] + step * share
        for key, value in averages.items():
            held[key] = held[key] + (value - held[key]) * share
        held["count"] = total

    @torch.no_grad()
    def _see_gradient(self, name: str, dim: int, given: Tensor, gradient: Tensor) -> None:
        gates = (self._split(given, dim) * self._split(gradient, dim)).sum(2).double() / self.loss_scale  # (parts, samples, C)
        held = self.moments.setdefault(name, {})
        for key, value in {"gate_sum": gates.sum(1), "gate_abs": gates.abs().sum(1), "gate_square": gates.square().sum(1)}.items():
            held[key] = held[key] + value if key in held else value

    def _statistic(self, compute: Callable[[dict[str, Tensor]], Tensor], mean: bool = False) -> dict[tuple[str, int], Tensor]:
        """Compute a number for each position that consumers see; with `mean`, divided by the positions of its channel, so that they add to a mean."""
        if not self.moments:
            raise ValueError("nothing was collected: call the network inside `with Activations(...)`")
        items = consumers(self.index, self.index.groups)
        found = {}
        for name, held in self._reduced().items():
            values = compute(held).float()
            for _, item in items[name] if mean else []:
                repeats = item.root.bincount()[item.root].to(values)
                idx = item.idx.to(values.device)
                values = values.index_copy(0, idx, values[idx] / repeats)
            found[f"{name}.weight", items[name][0][1].dim] = values
        return found

    def _reduced(self) -> dict[str, dict[str, Tensor]]:
        """Return the moments over all processes."""
        if world_size() == 1:
            return self.moments
        sums: dict[tuple[str, str], Tensor] = {}
        for name, held in self.moments.items():
            n = held["count"]
            weighted = {key: value * n for key, value in held.items() if key in ("mean", "absolute", "distance")}
            gates = {key: value for key, value in held.items() if key.startswith("gate")}
            sums |= {
                (name, key): value for key, value in {"count": n, "power": n * (held["variance"] + held["mean"] ** 2), **weighted, **gates}.items()
            }
        reduced: dict[str, dict[str, Tensor]] = {}
        for (name, key), value in average_over_processes(sums).items():
            reduced.setdefault(name, {})[key] = value * world_size()
        for held in reduced.values():
            held |= {key: held[key] / held["count"] for key in ("mean", "absolute", "distance", "power") if key in held}
            held["variance"] = held.pop("power") - held["mean"] ** 2
        return reduced

    def activation(self, part: int = 0, normaliser: Normaliser = "mean") -> Scores:
        """Score channels by their mean absolute activation E|a|."""
        return score_positions(self.index, self._statistic(lambda held: held["absolute"][part], mean=True), "mean", normaliser)

    def wanda(self, part: int = 0, normaliser: Normaliser = "mean") -> Scores:
        """Score channels by |X_j|_2 · sum_i |W_ij|, the column form of Wanda (Sun et al. 2024), with |X_j|_2 over samples and positions."""
        norms = self._statistic(lambda held: ((held["variance"] + held["mean"] ** 2)[part] * held["count"]).sqrt())
        weights, _ = position_sums(self.index, self.model, "absolute", lambda parameter: parameter)
        return score_positions(self.index, {key: norm * weights[key] for key, norm in norms.items()}, "mean", normaliser)

    def taylor(self, form: Form = "abs", part: int = 0, reduction: Reduction = "mean", normaliser: Normaliser = "mean") -> Scores:
        """Score channels by a · dL/da: the derivative of the loss by a factor on the channel, its sign dropped.

        Args:
            form: "sum" drops the sign after summing over samples, "abs" before it; "square" sums squares over samples.
            part: which part of the batches.
            reduction: over a channel's consumers.
            normaliser: within each group.
        """
        if any("gate_sum" not in held for held in self.moments.values()):
            raise ValueError("no gradients were collected: use Activations(..., gradients=True), and call backward() inside the context")
        return score_positions(self.index, self._statistic(lambda held: held[f"gate_{form}"][part]), reduction, normaliser)

    def difference(self, form: Literal["distance", "signed", "standardised"] = "distance", normaliser: Normaliser = None) -> Scores:
        """Score channels by how the triggered part differs from the clean one; the highest serve the trigger.

        "distance" is E|a_triggered - a_clean| over matched samples and positions; "signed" is the difference of means over the root of the mean
        variance, "standardised" its absolute value.

        Raises:
            ValueError: if the batches were not collected in two parts.
        """
        if self.parts != 2:
            raise ValueError("clean and triggered samples are compared in two parts of a batch: use Activations(..., parts=2)")

        def standardised(held: dict[str, Tensor]) -> Tensor:
            return (held["mean"][1] - held["mean"][0]) / (held["variance"].mean(0) + 1e-12).sqrt()

        compute = (lambda held: held["distance"][0]) if form == "distance" else standardised
        return score_positions(self.index, self._statistic(compute, mean=True), "mean", normaliser, signed=form == "signed")


def average_over_processes(tensors: dict[_Key, Tensor]) -> dict[_Key, Tensor]:
    """Average tensors over the processes of the group, in one message; without a group they are returned as they are."""
    if world_size() == 1 or not tensors:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors.values()])
    return {key: part.view(tensor.shape) for (key, tensor), part in zip(tensors.items(), parts, strict=True)}


def backward_over(
    loss_at: Callable[[int], Tensor], timesteps: Sequence[int], weights: Sequence[float] | None = None, threshold: float = 0.0
) -> list[float]:
    """Accumulate the gradients of a diffusion loss over timesteps, for `taylor`.

    Args:
        loss_at: the loss at a timestep. For clean and triggered passes that are to be compared it must use one fixed noise.
        timesteps: in the order in which they are visited.
        weights: of each timestep's loss; all one by default.
        threshold: stop at the first loss below this share of the largest so far (Fang et al. 2023, Diff-Pruning, where it is 0.05).

    Returns:
        The losses that were visited; gradients are in `.grad`.
    """
    losses: list[float] = []
    for i, timestep in enumerate(timesteps):
        loss = loss_at(timestep)
        if threshold:
            losses.append(float(loss.detach()))
            if losses[-1] < threshold * max(losses):
                break
        (loss if weights is None else loss * weights[i]).backward()
        if not threshold:
            losses.append(loss.detach())  # type: ignore[arg-type]  # read once at the end: no synchronisation between timesteps
    return [float(loss) for loss in losses]
