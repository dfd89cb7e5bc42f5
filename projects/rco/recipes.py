"""How a network is trained: optimiser, learning rate and its schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import nn

Schedule = Literal["constant", "steps", "cosine"]


@dataclass(frozen=True)
class Recipe:
    """How a teacher or a student is trained.

    Args:
        optimiser: sgd or adamw.
        lr: learning rate at the beginning.
        momentum: of sgd.
        nesterov: whether sgd's momentum looks ahead.
        weight_decay: in the gradient for sgd, decoupled for adamw.
        schedule: constant, steps (times gamma after each of the milestones) or cosine (to 0 at the end).
        milestones: epochs, from 0, at whose beginning the learning rate falls, of steps.
        gamma: the factor of steps.
        warmup: epochs in which the learning rate rises to lr, in equal parts.
    """

    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Schedule = "steps"
    milestones: list[int] = field(default_factory=list)
    gamma: float = 0.1
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.optimiser not in ("sgd", "adamw"):
            raise ValueError(f"optimiser must be sgd or adamw, got {self.optimiser!r}")
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Schedule))}, got {self.schedule!r}")
        if not 0 < self.lr < math.inf or self.weight_decay < 0 or not 0 <= self.momentum < 1 or not 0 < self.gamma <= 1 or self.warmup < 0:
            given = f"lr {self.lr}, weight_decay {self.weight_decay}, momentum {self.momentum}, gamma {self.gamma}, warmup {self.warmup}"
            raise ValueError(f"lr is positive, weight_decay 0 or more, momentum in [0, 1), gamma in (0, 1] and warmup 0 or more: got {given}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(epoch < 1 for epoch in self.milestones):
            raise ValueError(f"milestones are rising epochs from 1 on, got {self.milestones}")

    def factor(self, epoch: int, epochs: int) -> float:
        """Return what the learning rate of an epoch, from 0, is of `lr`, in a training of so many epochs."""
        rising = min(1.0, (epoch + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return rising * (1 + math.cos(math.pi * min(1.0, epoch / epochs))) / 2
        falls = sum(epoch >= milestone for milestone in self.milestones) if self.schedule == "steps" else 0
        return rising * self.gamma**falls

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return an optimiser of parameters, as training begins."""
        if self.optimiser == "adamw":
            return torch.optim.AdamW(parameters, self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(parameters, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov)
