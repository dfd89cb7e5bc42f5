"""The settings of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from projects.forgery_nas.importance import Level
from projects.forgery_nas.operations import PLAIN_SPACE, SMALL_SPACE, SPACE

Relaxation = Literal["gumbel", "mixture"]
SPACES = {"full": SPACE, "small": SMALL_SPACE, "plain": PLAIN_SPACE}


@dataclass(frozen=True)
class SearchOptions:
    """How to search.

    Args:
        epochs: passes over the training set; null for as many as the warm-up and all prunings take.
        space: full, small or plain, or names of operations.
        channels: C of the first cell's nodes.
        layers: cells of the supernet.
        k: K; a K-th of the channels goes through candidates.
        k_schedule: whether K is halved each time that the number of candidates has halved.
        nodes: nodes of a cell.
        reductions: numbers of the reduction cells, from 0; null for those that end the halves.
        share_theta: whether central difference convolutions that differ in theta alone share their weights.
        level: importance: alpha (PC-DARTS), eoi (EoiNAS), general (ours) or perturb (what removing a candidate does; use it with mixture).
        relaxation: gumbel (one sampled candidate an edge is computed) or mixture (all are).
        temperature: of the Gumbel softmax after the warm-up.
        temperature_decay: its factor for each further epoch.
        metric_weight: lambda, weight of what is not alpha in eoi and general.
        gap_weight: gamma, weight of the generalisation gap in general.
        order: 1, or 2 for the unrolled gradient of the architecture.
        warmup: epochs before alpha and beta are learnt.
        prune_every: epochs between prunings after the warm-up; 0 prunes never.
        keep: candidates that are left on each edge.
        skip_limit: skips in the normal cell of the result; null for any number.
        lr: learning rate of SGD, falling to 0 by a cosine.
        momentum: of SGD.
        weight_decay: of SGD.
        clip: norm that the weights' gradients are cut down to.
        lr_architecture: learning rate of Adam.
        weight_decay_architecture: of Adam.
        perturb_samples: validation images that the level perturb measures on.
        candidate_epochs: passes over the training set that random search and evolution train a candidate for.
        seed: seed of the weights and of the sampled paths.

    Raises:
        ValueError: if an option does not fit.
    """

    epochs: int | None = None
    space: str | list[str] = "full"
    channels: int = 16
    layers: int = 8
    k: int = 4
    k_schedule: bool = False
    nodes: int = 4
    reductions: list[int] | None = None
    share_theta: bool = False
    level: Level = "general"
    relaxation: Relaxation = "gumbel"
    temperature: float = 5.0
    temperature_decay: float = 0.965
    metric_weight: float = 0.5
    gap_weight: float = 1.0
    order: int = 1
    warmup: int = 15
    prune_every: int = 5
    keep: int = 2
    skip_limit: int | None = 2
    lr: float = 0.025
    momentum: float = 0.9
    weight_decay: float = 3e-4
    clip: float = 5.0
    lr_architecture: float = 6e-4
    weight_decay_architecture: float = 1e-3
    perturb_samples: int = 256
    candidate_epochs: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.space, str) and self.space not in SPACES:
            raise ValueError(f"no search space {self.space!r}: choose {', '.join(SPACES)}, or list operations")
        if self.relaxation not in get_args(Relaxation) or self.order not in (1, 2):
            raise ValueError(f"the relaxation is {' or '.join(get_args(Relaxation))} and the order 1 or 2, not {self.relaxation} and {self.order}")
        if min(self.warmup, self.prune_every) < 0 or not 1 <= self.keep <= len(self.operations) or self.temperature <= 0:
            raise ValueError(f"warmup and prune_every are 0 or more, keep 1 to {len(self.operations)}, and the temperature positive")
        if min(self.channels, self.layers, self.nodes, self.perturb_samples) < 1 or min(self.lr, self.lr_architecture) <= 0:
            raise ValueError("a search has at least one channel, layer, node and perturb_sample, and its learning rates are positive")
        if self.epochs is not None and self.epochs < self.schedule:
            raise ValueError(
                f"{self.epochs} epochs are too few: a warm-up of {self.warmup} and a pruning every {self.prune_every} "
                f"until {self.keep} of {len(self.operations)} candidates are left take {self.schedule}"
            )

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations of the space."""
        return SPACES[self.space] if isinstance(self.space, str) else tuple(self.space)

    @property
    def schedule(self) -> int:
        """Epochs that the warm-up and all prunings take, at least 1."""
        return max(1, self.warmup + self.prune_every * (len(self.operations) - self.keep))

    @property
    def length(self) -> int:
        """Epochs of the search."""
        return self.schedule if self.epochs is None else self.epochs
