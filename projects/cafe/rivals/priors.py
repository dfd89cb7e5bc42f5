"""What attacks believe of records beside their gradients: smooth images, statistics seen by batch norm, agreement of several runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn

from projects.cafe.rivals.matching import Model

Prior = Callable[[list[Tensor]], Tensor]
"""Maps the parties' blocks, (B, ...) each, to a scalar that attacks lower beside the distance of gradients."""


def total_variation(blocks: list[Tensor]) -> Tensor:
    """Mean of |dx| plus mean of |dy|, averaged over parties, as Inverting Gradients weighs it (Geiping et al. 2020).

    Args:
        blocks: (B, C, H, W) a party, at least 2 pixels high and wide.

    Raises:
        ValueError: if a block is not of images.
    """
    for place, block in enumerate(blocks):
        if block.ndim != 4 or min(block.shape[2:]) < 2:
            raise ValueError(f"total variation needs blocks (B, C, H, W) of at least 2 x 2 pixels, party {place} has {tuple(block.shape)}")
    return torch.stack([block.diff(dim=3).abs().mean() + block.diff(dim=2).abs().mean() for block in blocks]).mean()


def batch_norm_statistics(model: Model, networks: Iterable[nn.Module]) -> Prior:
    """Return the prior Σ_l ||μ_l(x) - μ_l||² + ||σ²_l(x) - σ²_l||² over the batch-norm layers (GradInversion, Yin et al. 2021).

    μ_l(x) and σ²_l(x), biased, are the statistics of the dummies where they enter layer l; μ_l and σ²_l are the layer's running ones. The prior runs
    the model once more, and leaves its state as it is.

    Args:
        model: the parties' blocks to logits.
        networks: the modules that `model` runs; their batch-norm layers are watched.

    Raises:
        ValueError: if there is no batch-norm layer, one keeps no running statistics, or one is in training mode.
    """
    layers = [module for network in networks for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if not layers:
        raise ValueError("the networks have no batch-norm layer: this prior needs networks that have")
    for layer in layers:
        if layer.training or layer.running_mean is None:
            raise ValueError(f"{layer} is in training mode or keeps no running statistics: call eval() on networks that keep them")

    def prior(blocks: list[Tensor]) -> Tensor:
        terms: list[Tensor] = []

        def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            features = inputs[0].transpose(0, 1).flatten(1)  # (C, B H W)
            terms.append((features.mean(1) - layer.get_buffer("running_mean")).square().sum())
            terms.append((features.var(1, correction=0) - layer.get_buffer("running_var")).square().sum())

        handles = [layer.register_forward_pre_hook(watch) for layer in layers]
        try:
            model(blocks)
        finally:
            for handle in handles:
                handle.remove()
        return torch.stack(terms).sum()

    return prior


def group_consistency(group: Sequence[list[Tensor]], labels: Tensor | None = None) -> Tensor:
    """Mean over members, records and entries of (x - x̄)², x̄ being the mean of several runs' dummies (GradInversion, Yin et al. 2021).

    One batch's gradient does not order its records. Each member's are therefore matched to the first member's before the mean is taken.

    Args:
        group: for each of at least 2 members the parties' blocks, (B, ...) each.
        labels: (B,) labels that all members share; records of unlike labels are never matched.

    Returns:
        A scalar, 0 where the members agree up to the order of their records; no gradient flows through x̄.

    Raises:
        ValueError: if there are fewer than 2 members.
    """
    if len(group) < 2:
        raise ValueError(f"group consistency compares at least 2 runs, got {len(group)}")
    members = [torch.cat([block.flatten(1) for block in blocks], dim=1) for blocks in group]  # (B, D) each
    ordered = [members[0]] + [member[matched(members[0].detach(), member.detach(), labels)] for member in members[1:]]
    stacked = torch.stack(ordered)
    return (stacked - stacked.detach().mean(0)).square().mean()


def matched(first: Tensor, second: Tensor, labels: Tensor | None = None) -> Tensor:
    """Return the order (B,) of `second`'s records that brings them nearest to `first`'s, in squared distance summed over records.

    Args:
        first: (B, D).
        second: (B, D).
        labels: (B,) labels of both; only records of one label are matched.
    """
    from scipy.optimize import linear_sum_assignment

    costs = torch.cdist(first.double(), second.double()).square()
    if labels is not None:
        costs = costs + (labels[:, None] != labels) * (1 + costs.sum())
    return torch.from_numpy(linear_sum_assignment(costs.cpu().numpy())[1]).to(first.device)
