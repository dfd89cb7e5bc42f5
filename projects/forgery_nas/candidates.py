"""The candidates of one edge of the supernet, side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.forgery_nas.operations import Builder, CDConv2d, build_operation


class State:
    """A state, (B, C, H, W), as the edges that leave it want it; what they share is computed once.

    Args:
        features: the state.
        width: C / K, number of the channels that go through candidates.
        stride: stride of the edges, 1 or 2.
    """

    def __init__(self, features: Tensor, width: int, stride: int) -> None:
        self.part = features if width == features.shape[1] else features[:, :width].clone()  # a copy is read by every candidate
        self.rest, self.stride = features[:, width:], stride

    @cached_property
    def rectified(self) -> Tensor:
        """The part for the candidates after ReLU."""
        return F.relu(self.part)

    @cached_property
    def bypass(self) -> Tensor:
        """The channels that no candidate gets, (B, C - C / K, H', W'), after a 2 x 2 max pool where edges have stride 2."""
        return F.max_pool2d(self.rest, 2, ceil_mode=True) if self.stride == 2 else self.rest

    def zeros(self) -> Tensor:
        """Return what an edge without candidates makes of it."""
        return torch.zeros_like(self.part[:, :, :: self.stride, :: self.stride])


class MixedOperation(nn.Module):
    """The candidates of an edge, each a module by the name of its operation, so that pruning renumbers nothing.

    The ReLU that convolutions begin with is left to the state, which all share. Pooling is followed by a batch norm. No norm has weights, and
    all use the batch's own statistics, in evaluation too, since running ones would be those of another mixture.

    Args:
        space: names of the operations; `none` needs no module.
        channels: C / K.
        stride: 1 or 2.
        share_theta: whether central difference convolutions that differ in theta alone share their weights.
        registry: further operations, see `build_operation`.
    """

    def __init__(
        self, space: Sequence[str], channels: int, stride: int, share_theta: bool = False, registry: Mapping[str, Builder] | None = None
    ) -> None:
        super().__init__()
        self.candidates = nn.ModuleDict()
        self.share_theta = share_theta
        self.families: dict[str, str] = {}
        """What a name is without its theta, of central difference convolutions."""
        firsts: dict[str, nn.Module] = {}
        for name in space:
            if name == "none":
                continue
            operation = build_operation(name, channels, stride, False, registry)
            if is_rectified := isinstance(operation, nn.Sequential) and isinstance(operation[0], nn.ReLU):
                operation = _Rectified(*operation[1:])
            elif "pool" in name:
                operation = nn.Sequential(operation, nn.BatchNorm2d(channels, affine=False))
            if is_rectified and any(isinstance(layer, CDConv2d) for layer in operation.modules()):
                self.families[name] = name.rpartition("_")[0]
                if share_theta:
                    _tie(firsts.setdefault(self.families[name], operation), operation)
            self.candidates[module_key(name)] = operation
        use_batch_statistics(self)

    def forward(self, state: State, names: Sequence[str]) -> list[Tensor]:
        """Return what each of the named candidates makes of a state, (B, C / K, H', W')."""
        results: dict[str, Tensor] = {}
        groups = defaultdict(list)
        for name in names:
            groups[self.families.get(name, name)].append(name)
        for members in groups.values():
            modules = [self.candidates[module_key(name)] for name in members]
            if len(members) > 1:
                outputs = (differ_in_theta if self.share_theta else side_by_side)(cast(list[nn.Sequential], modules), state.rectified)
            else:
                outputs = [modules[0](state.rectified if isinstance(modules[0], _Rectified) else state.part)]
            results.update(zip(members, outputs, strict=True))
        return [results[name] for name in names]

    def drop(self, name: str) -> None:
        """Delete a candidate."""
        if name != "none":
            del self.candidates[module_key(name)]


class _Rectified(nn.Sequential):
    """The layers of a candidate after its first ReLU."""


def module_key(name: str) -> str:
    """Return an operation's name as a module's name, which must not have dots."""
    return name.replace(".", "p")


def use_batch_statistics(module: nn.Module) -> None:
    """Make all batch norms of a module use the batch's statistics, in evaluation too."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None


def _tie(first: nn.Module, other: nn.Module) -> None:
    for source, target in zip(first.modules(), other.modules(), strict=True):
        if isinstance(target, (CDConv2d, nn.Conv2d)):
            target.weight = cast(nn.Parameter, source.weight)


def side_by_side(members: Sequence[nn.Sequential], rectified: Tensor) -> Sequence[Tensor]:
    """Compute candidates of one form as one of as many times the channels, in groups; few channels keep no processor busy.

    Args:
        members: layers of the candidates after the ReLU: depthwise CDC, pointwise convolution, norm, ...
        rectified: (B, C, H, W) input after the ReLU.

    Returns:
        Each member's (B, C, H', W').
    """
    count = len(members)
    features = rectified.repeat(1, count, 1, 1)
    for layers in zip(*members, strict=True):
        match layers[0]:
            case CDConv2d() as first:
                kernel = torch.cat([cast(CDConv2d, layer).kernel() for layer in layers])
                features = F.conv2d(features, kernel, None, first.stride, first.padding, first.dilation, len(kernel))
            case nn.Conv2d():
                features = F.conv2d(features, torch.cat([cast(Tensor, layer.weight) for layer in layers]), groups=count)
            case nn.BatchNorm2d() as first:
                features = F.batch_norm(features, None, None, training=True, eps=first.eps)
            case _:
                features = layers[0](features)
    return features.chunk(count, dim=1)


def differ_in_theta(members: Sequence[nn.Sequential], rectified: Tensor) -> list[Tensor]:
    """Compute candidates that share all weights and differ in theta.

    Up to the first norm they are linear: the vanilla response and the centre term, y = v - theta c, go through the pointwise convolution once
    for all members.

    Args:
        members: layers of the candidates after the ReLU: depthwise CDC, pointwise convolution, norm, ...
        rectified: (B, C, H, W) input after the ReLU.

    Returns:
        Each member's (B, C, H', W').
    """
    depthwise, pointwise = cast(CDConv2d, members[0][0]), members[0][1]
    weight, stride = depthwise.weight, depthwise.stride
    vanilla = F.conv2d(rectified, weight, None, stride, depthwise.padding, depthwise.dilation, depthwise.groups)
    centre = rectified[:, :, ::stride, ::stride] * weight.sum((2, 3)).view(1, -1, 1, 1)
    vanilla, centre = pointwise(vanilla), pointwise(centre)
    outputs = []
    for member in members:
        theta = cast(CDConv2d, member[0]).theta
        response = torch.sub(vanilla, centre, alpha=theta) if theta else vanilla
        for layer in list(member)[2:]:
            response = layer(response)
        outputs.append(response)
    return outputs


def weighted_sum(weights: Sequence[Tensor], terms: Sequence[Tensor]) -> Tensor:
    """Return sum_i w_i x_i of equally many numbers w_i and tensors x_i of one shape, at least one."""
    total = terms[0] * weights[0]
    for weight, term in zip(weights[1:], terms[1:], strict=True):
        total = torch.addcmul(total, term, weight)
    return total


def shuffle(features: Tensor, groups: int) -> Tensor:
    """Deal the channels of (B, C, H, W) features round: the first of every group, then the second, ..."""
    return features.permute(0, 2, 3, 1).unflatten(3, (groups, -1)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)


def grow_(new: nn.Module, old: Mapping[str, Tensor]) -> None:
    """Give a module the filters of another of fewer or more channels, as far as they reach; what it has more stays as it was made."""
    with torch.no_grad():
        for name, weight in new.named_parameters():
            if name in old:
                common = tuple(slice(min(sizes)) for sizes in zip(weight.shape, old[name].shape, strict=True))
                weight[common] = old[name][common]


def names_of(space: Sequence[str], columns: Iterable[int]) -> list[str]:
    """Return the operations in some columns, without `none`."""
    return [space[column] for column in columns if space[column] != "none"]
