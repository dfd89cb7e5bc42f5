"""Iterative pruning during training: score, select and prune at the end of chosen epochs, and train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from shared.pruning.apply import apply
from shared.pruning.costs import Budget
from shared.pruning.groups import GroupIndex, from_runs, runs
from shared.pruning.masks import Hold, hold
from shared.pruning.plan import Plan
from shared.pruning.scores import magnitude
from shared.pruning.select import select
from shared.pruning.structure import Structure, restructure

Scorer = Callable[[GroupIndex, nn.Module], Mapping[str, Tensor]]


class IterativePruning(L.Callback):
    """Prune a network of a LightningModule in several steps, with training between them.

    At the end of each epoch in `epochs` the network is scored and pruned, so that after the last of them the share `channels` of its original
    channels is gone, in equal steps. The optimisers' state and running averages are cut along. The groups are traced once.

    Args:
        example_inputs: what the network can be called with.
        channels: share of the channels to remove in all, in [0, 1).
        epochs: epochs, from 0, at whose end to prune.
        network: name of the network in the LightningModule; empty for the module itself.
        averages: names of running averages of it in the LightningModule, to prune along.
        score: gives the scores; magnitude by default.
        mode: "cut" removes channels, in one process; "hold" keeps them at zero, with any number of processes.
        monitor: name of a logged metric; pruning stops for good once it falls more than `tolerance` below its value before the first step.
        tolerance: see `monitor`.
        protected: see `GroupIndex.build`.
        options: further arguments of `select`, such as scope, cap and norm.
    """

    def __init__(
        self,
        example_inputs: Any,
        channels: float,
        epochs: Sequence[int],
        network: str = "",
        averages: Sequence[str] = (),
        score: Scorer = magnitude,
        mode: Literal["cut", "hold"] = "cut",
        monitor: str | None = None,
        tolerance: float = 0.0,
        protected: Sequence[str] = (),
        **options: Any,
    ) -> None:
        Budget(channels=channels)  # refuses a share outside [0, 1)
        if not epochs or sorted(set(epochs)) != list(epochs):
            raise ValueError(f"epochs must be ascending and at least one, got {list(epochs)}")
        self.example_inputs, self.channels, self.epochs = example_inputs, channels, list(epochs)
        self.network, self.averages, self.score, self.mode = network, list(averages), score, mode
        self.monitor, self.tolerance, self.protected, self.options = monitor, tolerance, list(protected), options
        self.index: GroupIndex | None = None
        self.held: Hold | None = None
        self.done, self.original, self.stopped = 0, 0, False
        self.reference: float | None = None
        self.structure: dict[str, Any] | None = None
        self.zeroed: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.mode == "cut" and trainer.world_size > 1:
            raise MisconfigurationException(
                "with several processes the parameters that DistributedDataParallel holds cannot be exchanged: "
                "use IterativePruning(mode='hold'), and apply() a plan after training"
            )
        pl_module.register_load_state_dict_pre_hook(lambda module, *_: self._restructure(trainer, pl_module))

    def _restructure(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the networks the shapes of the checkpoint whose weights are about to be loaded."""
        from shared.checkpoints import load_checkpoint

        state = load_checkpoint(trainer.ckpt_path).get("callbacks", {}).get(self.state_key, {}) if trainer.ckpt_path else {}
        for name in [self.network, *self.averages] if state.get("structure") else []:
            model = pl_module.get_submodule(name)
            if not hasattr(model, "pruned_structure"):
                restructure(model, Structure.from_json(state["structure"]))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.zeroed:  # an earlier run held these at zero
            self._hold(trainer, pl_module, Plan.of(self._traced(pl_module), self.zeroed, mode="mask"))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch not in self.epochs[self.done :] or self._stop(trainer):
            return
        model: Any = pl_module.get_submodule(self.network)
        plan = self._plan(model, self._traced(pl_module))
        if self.mode == "cut":
            self.index = apply(model, plan, trainer.optimizers, self._copies(pl_module))
            self.structure = model.pruned_structure.to_json()
        else:
            self.zeroed = plan.dropped
            self._hold(trainer, pl_module, plan)
        left = sum(group.channels for group in self.index.free.values()) if self.index else 0
        removed = self.original - left + sum(len(channels) for channels in self.zeroed.values())
        pl_module.log("prune/channels", float(removed), rank_zero_only=True)
        pl_module.log("prune/parameters", float(sum(p.numel() for p in model.parameters())), rank_zero_only=True)

    def _traced(self, pl_module: L.LightningModule) -> GroupIndex:
        if self.index is None:
            inputs = tree_map(lambda value: value.to(pl_module.device) if isinstance(value, Tensor) else value, self.example_inputs)
            self.index = GroupIndex.build(pl_module.get_submodule(self.network), inputs, self.protected)
            self.original = sum(group.original for group in self.index.free.values())
        return self.index

    def _copies(self, pl_module: L.LightningModule) -> list[nn.Module]:
        return [pl_module.get_submodule(name) for name in self.averages]

    def _hold(self, trainer: L.Trainer, pl_module: L.LightningModule, plan: Plan) -> None:
        if self.held is not None:
            self.held.release()
        self.held = hold(pl_module.get_submodule(self.network), plan, trainer.optimizers, self._copies(pl_module))

    def _plan(self, model: nn.Module, index: GroupIndex) -> Plan:
        self.done += 1
        wanted = self.original * self.channels * self.done / len(self.epochs)
        present = sum(group.channels for group in index.free.values())
        modes = {module: module.training for module in model.modules()}
        try:
            scores = dict(self.score(index, model.eval()))
        finally:
            for module, training in modes.items():
                module.training = training
        known = torch.cat([values.flatten().float() for values in scores.values()])
        first = float(known.max()) + 1 if self.options.get("drop") == "highest" else float(known.min()) - 1
        for name, channels in self.zeroed.items():  # what is gone goes first, and so stays gone
            scores[name] = scores[name].index_fill(0, channels, first)
        budget = Budget(channels=max(0.0, wanted - (self.original - present)) / present)
        return select(index, scores, budget, mode="cut" if self.mode == "cut" else "mask", **self.options)

    def _stop(self, trainer: L.Trainer) -> bool:
        if self.monitor is None or self.stopped:
            return self.stopped
        if self.monitor not in trainer.callback_metrics:
            raise MisconfigurationException(
                f"IterativePruning monitors {self.monitor!r}, which is not logged; logged are {sorted(trainer.callback_metrics)}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        self.reference = value if self.reference is None else self.reference
        self.stopped = value < self.reference - self.tolerance
        return self.stopped

    def state_dict(self) -> dict[str, Any]:
        kept = {name: getattr(self, name) for name in ("done", "original", "reference", "stopped", "structure")}
        return kept | {"zeroed": {name: runs(channels) for name, channels in self.zeroed.items()}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name in ("done", "original", "reference", "stopped", "structure"):
            setattr(self, name, state_dict[name])
        self.zeroed = {name: from_runs(parts) for name, parts in state_dict["zeroed"].items()}
