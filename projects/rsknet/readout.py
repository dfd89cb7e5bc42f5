"""Read out of a trained network how far in time it listens: the weights of its selective kernels' branches."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from projects.rsknet.blocks import BranchGate
from projects.rsknet.model import RSKNet
from shared.training import evaluating

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@torch.no_grad()
def branch_weights(net: nn.Module, features: Tensor, lengths: Tensor | None = None) -> list[Tensor]:
    """Return the weights of the branches for each channel of each utterance, from every gate of a network in order, a list of (B, M, C).

    Args:
        net: a network on features, which is run in evaluation mode.
        features: (B, F, T).
        lengths: (B,) valid frames; None for all.

    Returns:
        A tensor for each block with a selective kernel, and none for other networks. Weights sum to 1 over the M branches.
    """
    found: list[Tensor] = []
    gates = [part for part in net.modules() if isinstance(part, BranchGate)]
    hooks = [gate.register_forward_hook(lambda gate, inputs, weights: found.append(weights)) for gate in gates]
    try:
        with evaluating(net):
            net(features, lengths)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def utterance_weights(net: RSKNet, features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return `branch_weights` averaged over the channels and the blocks of each stage, (B, stages, M).

    Raises:
        ValueError: if the network has no selective kernels.
    """
    counts = [sum(isinstance(part, BranchGate) for part in stage.modules()) for stage in net.stages]
    if not all(counts):
        raise ValueError("this network has no selective kernels whose weights could be read: take one with block rsk and two or more dilations")
    means = torch.stack([weights.mean(2) for weights in branch_weights(net, features, lengths)], 1)  # (B, blocks, M)
    return torch.stack([part.mean(1) for part in means.split(counts, 1)], 1)


def stage_weights(net: RSKNet, features: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Return the mean weight of each branch in each stage over utterances, (stages, M); see `utterance_weights`."""
    return utterance_weights(net, features, lengths).mean(0)


def draw_branches(weights: Tensor, title: str = "weight of the dilated branch") -> Figure:
    """Draw how much the last, most dilated branch weighs in each stage: the mean over utterances, and how far they spread.

    Args:
        weights: (B, stages, M) of `utterance_weights`.
        title: of the figure.
    """
    from matplotlib.figure import Figure

    dilated = weights[..., -1].float().cpu()  # (B, stages)
    stages = range(1, dilated.shape[1] + 1)
    figure = Figure(figsize=(4.5, 3), layout="constrained")
    axes = figure.add_subplot()
    parts = axes.violinplot(list(dilated.T.numpy()), list(stages), widths=0.7, showextrema=True)
    for body in parts["bodies"]:  # type: ignore[attr-defined]
        body.set_facecolor("tab:blue")
    axes.plot(stages, dilated.mean(0), "ko-", label=f"mean of {len(dilated)} utterances")
    axes.axhline(1 / weights.shape[2], color="grey", linestyle=":", label="all branches alike")
    axes.set(xlabel="stage", ylabel="weight", title=title, xticks=list(stages), ylim=(0, 1))
    axes.legend(fontsize="small")
    return figure
