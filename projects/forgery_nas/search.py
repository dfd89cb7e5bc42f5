"""Differentiable architecture search by gradual pruning; PC-DARTS is one of its settings."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from projects.forgery_nas.alive import Candidate
from projects.forgery_nas.bilevel import Unrolling, averaged, gradients, unrolled_gradients
from projects.forgery_nas.genotype import Genotype, histogram
from projects.forgery_nas.importance import PerturbImportance, build_importance, derive
from projects.forgery_nas.operations import Builder
from projects.forgery_nas.options import Relaxation, SearchOptions
from projects.forgery_nas.supernet import Mixture, Supernet, gumbel
from shared.distributed import world_size
from shared.seeding import derive_seed, generator

Batch = dict[str, Tensor]


class ArchitectureSearch(L.LightningModule):
    """Searches for the cells of a face-forgery detector; batches are {"train": ..., "val": ...} with `image` (B, 3, S, S) uint8 and `label` (B,).

    In every step Adam moves alpha and beta by the loss on the batch "val", and then SGD the weights by the loss on the batch "train"; "val" is from
    another set in a cross-dataset search. After the warm-up, the least important candidate of every edge is dropped from time to time.

    Args:
        options: how to search.
        registry: further operations, see `build_operation`; not kept in checkpoints.

    Attributes:
        net: the supernet.
        importance: what is known of the candidates.
        history: a row a pruning and one at the end, see `row`.
        seconds: time that training steps and prunings took.

    Raises:
        ValueError: if an option does not fit.
    """

    def __init__(self, options: SearchOptions, registry: Mapping[str, Builder] | None = None) -> None:
        super().__init__()
        self.options = options
        self.automatic_optimization = False
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive_seed(options.seed, "forgery_nas supernet"))
            self.net = Supernet(
                options.operations,
                options.channels,
                options.layers,
                options.k,
                options.nodes,
                options.reductions,
                options.share_theta,
                registry,
                options.seed,
            )
        self.importance = build_importance(options.level, tuple(self.net.alpha.shape), options.metric_weight, options.gap_weight)
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0

    @property
    def genotype(self) -> Genotype:
        """The genotype of the most important candidates so far."""
        return derive(self.net.table, self.scores(), self.net.beta, self.options.skip_limit)

    def scores(self) -> Tensor:
        """Return the importances, (2, E, O) on the CPU."""
        return self.importance.score(self.net.probabilities(), self.net.table.alive)

    def forward(self, images: Tensor) -> Tensor:
        """Map images to (B, 2) logits under the mixture of all living candidates."""
        return self.net(images)

    # ---- schedules

    @property
    def epochs_done(self) -> int:
        """Epochs whose steps are all done."""
        return self.global_step // int(self.trainer.num_training_batches)

    def prunings_due(self) -> int:
        """Return how many prunings there should have been by now."""
        given = self.options
        wanted = len(self.net.table.space) - given.keep
        return min(wanted, max(0, self.epochs_done - given.warmup) // given.prune_every) if given.prune_every else 0

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ValueError("the search does not scale its losses for float16: set trainer.precision to bf16-mixed or 32-true")

    # ---- a step

    def training_step(self, batch: dict[str, Batch], batch_idx: int) -> None:
        began = time.perf_counter()
        self._prune_if_due()
        by_weights, by_architecture = cast(list[LightningOptimizer], self.optimizers())
        for group in by_weights.param_groups:
            group["lr"] = 0.5 * self.options.lr * (1 + math.cos(math.pi * self.global_step / self.trainer.estimated_stepping_batches))
        mix = self._relaxed(self.options.relaxation)
        mixture = mix().detach()
        is_searching = self.epochs_done >= self.options.warmup
        measured: list[Tensor] = []
        if is_searching:
            measured += self._step_architecture(by_architecture.optimizer, by_weights.optimizer, batch, mix)
        observed = mixture
        if self.options.relaxation == "mixture":
            mixture = mix().detach()  # of the alpha just learnt; a sampled path stays for the whole step
        measured += self._step_weights(by_weights, batch["train"], mixture)
        [found] = averaged([torch.stack(measured).detach()])
        assert found is not None
        values = dict(zip(("val_accuracy", "val_loss", "accuracy", "loss")[-len(measured) :], found.tolist(), strict=True))
        if is_searching:
            self._observe(observed, batch, values["val_accuracy"], values["accuracy"])
        self.seconds += time.perf_counter() - began
        values["alive"] = float(self.net.table.count)
        self.log_dict({f"search/{name}": value for name, value in values.items()}, prog_bar=True)

    def _relaxed(self, relaxation: Relaxation) -> Callable[[], Mixture]:
        """Return what makes this step's mixture from alpha and beta; all processes sample the same path."""
        if relaxation == "mixture":
            return self.net.mixture
        noise = gumbel(self.net.alpha.shape, generator(self.options.seed, "forgery_nas path", self.global_step))
        temperature = self.options.temperature * self.options.temperature_decay ** max(0, self.epochs_done - self.options.warmup)
        return lambda: self.net.sample(noise, temperature)

    def _evaluate(self, batch: Batch, mixture: Mixture) -> tuple[Tensor, Tensor]:
        """Return accuracy and cross-entropy."""
        logits = self.net(batch["image"], mixture).float()
        return (logits.argmax(1) == batch["label"]).float().mean(), F.cross_entropy(logits, batch["label"])

    def _step_architecture(
        self, adam: torch.optim.Optimizer, sgd: torch.optim.Optimizer, batch: dict[str, Batch], mix: Callable[[], Mixture]
    ) -> tuple[Tensor, Tensor]:
        """Move alpha and beta; return the validation accuracy and loss, in the second order those after the unrolled step."""
        found: list[tuple[Tensor, Tensor]] = []

        def val_loss() -> Tensor:
            found.append(self._evaluate(batch["val"], mix()))
            return found[0][1]

        parameters = self.net.architecture_parameters()
        if self.options.order == 1:
            gradient = gradients(val_loss(), parameters)
        else:
            [group] = sgd.param_groups
            buffers = [sgd.state[weight].get("momentum_buffer") for weight in group["params"]]
            unrolling = Unrolling(group["lr"], group["momentum"], group["weight_decay"], buffers)
            gradient = [*unrolled_gradients(lambda: self._evaluate(batch["train"], mix())[1], val_loss, group["params"], parameters, unrolling)]
        _step(adam, parameters, gradient)
        return found[0]

    def _step_weights(self, sgd: LightningOptimizer, batch: Batch, mixture: Mixture) -> tuple[Tensor, Tensor]:
        """Move the weights of what is computed; return the training accuracy and loss before."""
        [group] = sgd.param_groups
        accuracy, loss = self._evaluate(batch, mixture)
        gradient = gradients(loss, group["params"])
        _step(sgd, group["params"], gradient, self.options.clip)
        return accuracy, loss

    @torch.no_grad()
    def _observe(self, mixture: Mixture, batch: dict[str, Batch], val_accuracy: float, train_accuracy: float) -> None:
        """Tell the importance how the step's path did; the level general has paths of its own where the step had none."""
        if self.options.level == "general" and self.options.relaxation == "mixture":
            mixture = self._relaxed("gumbel")()
            [found] = averaged([torch.stack([self._evaluate(batch[role], mixture)[0] for role in ("val", "train")])])
            assert found is not None
            val_accuracy, train_accuracy = found.tolist()
        self.importance.observe(mixture.choice, val_accuracy, train_accuracy)

    # ---- pruning

    def _prune_if_due(self) -> None:
        while self.net.table.stage < self.prunings_due():
            self._measure()
            dropped = self.net.prune(self.scores(), is_last=self.net.table.count == self.options.keep + 1)
            self.importance.prune()
            total, alive = len(self.net.table.space), self.net.table.count
            if self.options.k_schedule and (k := max(1, self.options.k // 2 ** int(math.log2(total / alive)))) != self.net.k:
                self.net.widen(k)
            self._renew_optimizers()
            self.history.append(self._row(dropped))

    def _renew_optimizers(self) -> None:
        """Give SGD the weights that are left, and let Adam begin anew: its moments are those of other softmaxes."""
        sgd, adam = cast(list[torch.optim.Optimizer], self.optimizers(use_pl_optimizer=False))
        [group] = sgd.param_groups
        group["params"] = self.net.weight_parameters()
        kept = set(group["params"])
        for optimizer, keeps in ((sgd, kept), (adam, set())):
            for parameter in [parameter for parameter in optimizer.state if parameter not in keeps]:
                del optimizer.state[parameter]

    def _row(self, dropped: list[Candidate]) -> dict[str, Any]:
        genotype = self.genotype
        return {
            "step": self.global_step,
            "epoch": self.epochs_done,
            "alive": self.net.table.count,
            "k": self.net.k,
            "dropped": [list(candidate) for candidate in dropped],
            "genotype": genotype.to_json(),
            "skips": histogram(genotype)["normal"]["skip_connect"],
            "seconds": self.seconds,
        }

    @torch.no_grad()
    def _measure(self) -> None:
        """Measure for the level perturb how much the validation loss rises when a candidate is dead, for every living one."""
        if not isinstance(self.importance, PerturbImportance):
            return
        batches = list(self._validation_batches())
        places = self.net.table.alive.nonzero().tolist()
        mixtures = [self.net.mixture(), *(self.net.without(*place) for place in places)]
        losses = torch.stack([torch.stack([self._evaluate(batch, mixture)[1] for batch in batches]).mean() for mixture in mixtures])
        [losses] = cast(list[Tensor], averaged([losses.double()]))
        self.importance.rise.zero_()
        self.importance.rise[tuple(torch.tensor(places).T)] = (losses[1:] - losses[0]).to(self.importance.rise)

    def _validation_batches(self) -> Iterator[Batch]:
        """Yield the first validation images of the epoch, `perturb_samples` over all processes, without moving the loader on."""
        loader = cast(dict[str, DataLoader], self.trainer.train_dataloader)["val"]
        sampler: Any = copy.copy(loader.sampler)
        sampler.skip = 0
        keys = list(islice(sampler, math.ceil(self.options.perturb_samples / world_size())))
        for batch in DataLoader(loader.dataset, batch_size=loader.batch_size, sampler=keys, collate_fn=loader.collate_fn):
            yield {name: value.to(self.device) for name, value in batch.items()}

    # ---- the whole search

    def on_fit_end(self) -> None:
        self._prune_if_due()
        self._measure()
        self.history.append(self._row([]))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        given = self.options
        sgd = torch.optim.SGD(self.net.weight_parameters(), given.lr, given.momentum, weight_decay=given.weight_decay)
        betas, decay = (0.5, 0.999), given.weight_decay_architecture
        return [sgd, torch.optim.Adam(self.net.architecture_parameters(), given.lr_architecture, betas, weight_decay=decay)]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["search"] = {"structure": self.net.structure(), "history": self.history, "seconds": self.seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["search"]
        self.net.restore(state["structure"])  # before the weights, which are those of the modules that are left
        self.history, self.seconds = list(state["history"]), state["seconds"]


def _step(
    optimizer: torch.optim.Optimizer | LightningOptimizer, parameters: list[Any], gradient: list[Tensor | None], clip: float | None = None
) -> None:
    for parameter, each in zip(parameters, gradient, strict=True):
        parameter.grad = each
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    optimizer.step()
