"""Vertical federated learning, and what its server sees of it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.cafe.checks import check_rounds
from projects.cafe.nets import BottomNet, ServerNet

Named = dict[str, Tensor]
"""Gradients by the names of `named_parameters`."""
CHUNK = 256
"""Records whose h is found at a time."""
Defence = Callable[[Named, int, int], Named]
LocalGradient = Callable[[nn.Module, Tensor, Tensor, int, int], Named]


@dataclass(frozen=True)
class Gradients:
    """The gradients of one round's loss, each the mean over the batch.

    Attributes:
        parties: one dictionary a party, by the names of its bottom net's parameters.
        server: by the names of the server's parameters.
    """

    parties: list[Named]
    server: Named


class Federation(nn.Module):
    """Parties with a bottom net each and a server whose top net sees their outputs side by side.

    Args:
        bottoms: one net a party.
        server: top net.
        reference_loss: whether a softmax goes before the cross entropy, which has its own, as in the reference.
    """

    def __init__(self, bottoms: Iterable[BottomNet], server: ServerNet, reference_loss: bool = False) -> None:
        super().__init__()
        self.bottoms = nn.ModuleList(bottoms)
        self.server = server
        self.reference_loss = reference_loss

    def outputs(self, blocks: Sequence[Tensor]) -> list[Tensor]:
        """Map one (B, ...) block a party to one (B, outputs) a party.

        Raises:
            ValueError: if the blocks are not one a party.
        """
        if len(blocks) != len(self.bottoms):
            raise ValueError(f"{len(blocks)} blocks cannot be given to {len(self.bottoms)} parties: give one a party")
        return [bottom(block) for bottom, block in zip(self.bottoms, blocks, strict=True)]

    def forward(self, blocks: Sequence[Tensor]) -> Tensor:
        """Map one (B, ...) block a party to (B, classes) logits."""
        return self.server(self.outputs(blocks))

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross entropy over a batch.

        Args:
            logits: (B, classes).
            labels: (B,) class numbers, or (B, classes) probabilities.
        """
        return F.cross_entropy(logits.softmax(1) if self.reference_loss else logits, labels)

    def gradients(self, blocks: Sequence[Tensor], labels: Tensor, create_graph: bool = False) -> Gradients:
        """Return the gradients of a batch's mean loss.

        Args:
            blocks: one (B, ...) a party.
            labels: see `loss`.
            create_graph: whether the gradients can be differentiated themselves, as gradient matching needs.
        """
        parameters = list(self.parameters())
        loss = self.loss(self(blocks), labels)
        found = torch.autograd.grad(loss, parameters, create_graph=create_graph, allow_unused=True, materialize_grads=True)
        of = dict(zip(parameters, found, strict=True))
        *parties, own = [{name: of[parameter] for name, parameter in net.named_parameters()} for net in (*self.bottoms, self.server)]
        return Gradients(parties, own)

    def signals(self, blocks: Sequence[Tensor], labels: Tensor) -> tuple[list[Tensor], Named]:
        """Return what the server computes in a round of split learning.

        Args:
            blocks: one (B, ...) a party.
            labels: see `loss`.

        Returns:
            The gradient of the batch's mean loss for each party's outputs, (B, outputs) each, which the party takes on, and the server's own.
        """
        with torch.no_grad():
            outputs = [output.detach().requires_grad_() for output in self.outputs(blocks)]
        names, parameters = zip(*self.server.named_parameters(), strict=True)
        found = torch.autograd.grad(self.loss(self.server(outputs), labels), [*outputs, *parameters])
        return list(found[: len(outputs)]), dict(zip(names, found[len(outputs) :], strict=True))

    def middle_gradients(self, blocks: Sequence[Tensor], labels: Tensor) -> list[Tensor]:
        """Return v of each record, the gradient of its own loss for u, (B, d2) a party: where it is zero the record cannot be read.

        Args:
            blocks: one (B, ...) a party.
            labels: see `loss`.
        """
        bottoms = cast("list[BottomNet]", list(self.bottoms))
        with torch.inference_mode(False), torch.no_grad():
            labels = labels.clone()  # those of inference mode cannot be kept for a gradient
            outputs = [bottom.middle(block)[1].requires_grad_() for bottom, block in zip(bottoms, blocks, strict=True)]
        with torch.inference_mode(False), torch.enable_grad():
            logits = self.server([bottom.tail(u) for bottom, u in zip(bottoms, outputs, strict=True)])
            return list(torch.autograd.grad(self.loss(logits, labels) * len(labels), outputs))


@dataclass(frozen=True)
class AttackerView:
    """What an honest but curious server sees, and all that an attack may use: no features, no h, no loss of a single record.

    Attributes:
        bottoms: the parties' nets with their parameters, at each of the T recorded rounds before its update; or once, if they never changed or only
            the last was kept.
        server: the top net, likewise.
        schedule: (T, N) bool, row t holding the members of recorded round t.
        gradients: what was uploaded at each recorded round, and the server's own gradients.
        shapes: shape of a record's block at each party.
        labels: (N,) class numbers, or None if the attacker does not know them.
        reference_loss: see `Federation`.
    """

    bottoms: list[nn.ModuleList]
    server: list[ServerNet]
    schedule: Tensor
    gradients: list[Gradients]
    shapes: list[tuple[int, ...]]
    labels: Tensor | None
    reference_loss: bool

    def federation(self, number: int = -1) -> Federation:
        """Return the model as it was at a recorded round, the last by default."""
        number = number if len(self.bottoms) > 1 else 0
        return Federation(cast("list[BottomNet]", self.bottoms[number]), self.server[number], self.reference_loss)

    def bias_gradients(self, party: int) -> Tensor:
        """Return the (T, d2) gradients of the first fully connected layer's bias, scaled to batches of the mean size if sizes differ."""
        return self._scaled(torch.stack([gradients.parties[party]["first.bias"] for gradients in self.gradients]))

    def weight_gradients(self, party: int) -> Tensor:
        """Return the (T, d2, d1) gradients of the first fully connected layer's weight, scaled as the bias's."""
        return self._scaled(torch.stack([gradients.parties[party]["first.weight"] for gradients in self.gradients]))

    def window(self, start: int, stop: int) -> AttackerView:
        """Return the view of the recorded rounds from `start` up to, not including, `stop`.

        Raises:
            ValueError: if they are not recorded rounds.
        """
        if not 0 <= start < stop <= len(self.gradients):
            raise ValueError(f"rounds {start} to {stop} are not among the {len(self.gradients)} recorded ones")
        part = slice(start, stop) if len(self.bottoms) > 1 else slice(None)
        return replace(
            self,
            bottoms=self.bottoms[part],
            server=self.server[part],
            schedule=self.schedule[start:stop],
            gradients=self.gradients[start:stop],
        )

    def weight_rounds(self, party: int) -> list[Tensor]:
        """Return the T gradients of `weight_gradients`, (d2, d1) each, without stacking them."""
        gradients = [own.parties[party]["first.weight"] for own in self.gradients]
        factors = self._factors().tolist()
        return [own if factor == 1 else own * factor for own, factor in zip(gradients, factors, strict=True)]

    def server_bias_gradients(self) -> Tensor:
        """Return the (T, C) gradients of the top net's bias, scaled as the parties'."""
        return self._scaled(torch.stack([gradients.server["top.bias"] for gradients in self.gradients]))

    def _scaled(self, gradients: Tensor) -> Tensor:
        """Undo that a mean over a larger batch counts each record less, (T, ...) -> (T, ...)."""
        return gradients * self._factors().to(gradients).reshape(-1, *[1] * (gradients.dim() - 1))

    def _factors(self) -> Tensor:
        """Return K_t / mean K, (T,) float64; ones where batches are of one size."""
        sizes = self.schedule.sum(1).double()
        return sizes / sizes.mean()


def observe(
    federation: Federation,
    blocks: Sequence[Tensor],
    labels: Tensor,
    schedule: Tensor,
    optimiser: torch.optim.Optimizer | None = None,
    defence: Defence | None = None,
    known_labels: bool = False,
    local: LocalGradient | None = None,
    recent: int | None = None,
    names: Collection[str] | None = None,
) -> AttackerView:
    """Run the rounds of a schedule and return what the server sees of them.

    Args:
        federation: model; with an optimiser it is trained in place.
        blocks: one (N, ...) a party.
        labels: (N,) class numbers.
        schedule: (T, N) bool.
        optimiser: of all parameters of `federation`; each round it takes a step with what was uploaded. None leaves the model as it is.
        defence: turns a party's gradients, the round and the party into what the party uploads; the server's own gradients stay as they are.
        known_labels: whether the attacker is told the labels.
        local: how a party finds its gradients from its net, its (K, ...) block of the batch, the (K, outputs) gradient of the mean loss for its
            outputs, the round and the party, such as DP-SGD; None differentiates.
        recent: number of last rounds that are recorded; None records all.
        names: names of the parties' parameters whose gradients are recorded, to save memory; None records all. Of a model that moves only the last
            is then kept; a static one without defence runs its bodies only once if none of theirs is among them.

    Raises:
        ValueError: if sizes disagree, a batch is empty, the optimiser is of other parameters, a net depends on its batch, or an upload
            has other names or shapes than the parameters.
    """
    check_rounds(federation, blocks, labels, schedule, optimiser)
    shapes = [block.shape[1:] for block in blocks]
    record = Record(len(schedule), optimiser is not None, recent, names)
    bodies_matter = names is None or any(name.startswith("body.") for name in names) or (optimiser, defence, local) != (None, None, None)
    running, inputs = (federation, blocks) if bodies_matter else _from_the_middle(federation, blocks)
    for number, members in enumerate(schedule):
        batch = [block[members.to(block.device)] for block in inputs]
        uploaded = uploads(running, batch, labels[members.to(labels.device)], number, defence, local)
        record.add(number, federation, [uploaded])
        if optimiser is not None:
            update(federation, optimiser, uploaded)
    return record.view(0, schedule, shapes, labels if known_labels else None)


class Record:
    """What was seen of the recorded rounds."""

    def __init__(self, rounds: int, moving: bool, recent: int | None, names: Collection[str] | None) -> None:
        self.start = 0 if recent is None else max(0, rounds - recent)
        self.last = rounds - 1
        self.moving = moving
        self.names = names
        self.models: list[Federation] = []
        self.gradients: list[list[Gradients]] = []

    def add(self, number: int, federation: Federation, uploaded: list[Gradients]) -> None:
        """Record a round: the model before its update, and what was uploaded, one or one a party of horizontal learning."""
        if number < self.start:
            return
        if self._is_kept(number):
            self.models.append(deepcopy(federation))
        self.gradients.append([self._kept(gradients) for gradients in uploaded])

    def _is_kept(self, number: int) -> bool:
        """Say whether the model of a round is kept: each of those that differ, or the last of them if not all gradients are recorded."""
        if not self.moving:
            return not self.models
        return self.names is None or number == self.last

    def view(self, number: int, schedule: Tensor, shapes: Sequence[Sequence[int]], labels: Tensor | None) -> AttackerView:
        """Return the view of the recorded rounds' `number`-th uploads."""
        return AttackerView(
            bottoms=[model.bottoms for model in self.models],
            server=[model.server for model in self.models],
            schedule=schedule[self.start :],
            gradients=[uploaded[number] for uploaded in self.gradients],
            shapes=[tuple(shape) for shape in shapes],
            labels=labels,
            reference_loss=self.models[0].reference_loss,
        )

    def _kept(self, gradients: Gradients) -> Gradients:
        if self.names is None:
            return gradients
        return Gradients([{name: own[name] for name in own if name in self.names} for own in gradients.parties], gradients.server)


@torch.no_grad()
def _from_the_middle(federation: Federation, blocks: Sequence[Tensor]) -> tuple[Federation, list[Tensor]]:
    """Return a federation that begins at h, with the same parameters from there on, and each party's (N, d1) of h, found once for all rounds."""
    bottoms = cast("list[BottomNet]", list(federation.bottoms))
    h = [torch.cat([bottom.body(part) for part in block.split(CHUNK)]) for bottom, block in zip(bottoms, blocks, strict=True)]
    return Federation([BottomNet(nn.Identity(), bottom.first, bottom.tail) for bottom in bottoms], federation.server, federation.reference_loss), h


def uploads(
    federation: Federation, batch: Sequence[Tensor], labels: Tensor, number: int, defence: Defence | None = None, local: LocalGradient | None = None
) -> Gradients:
    """Return what the parties upload in a round, as `defence` and `local` of `observe` make it, and the server's own gradients.

    Args:
        federation: model.
        batch: one (K, ...) a party.
        labels: (K,) class numbers.
        number: of the round.
        defence: see `observe`.
        local: see `observe`.

    Raises:
        ValueError: if the defence changed names or shapes.
    """
    if local is None:
        gradients = federation.gradients(batch, labels)
    else:
        signals, server = federation.signals(batch, labels)
        found = zip(federation.bottoms, batch, signals, strict=True)
        gradients = Gradients([local(bottom, block, signal, number, party) for party, (bottom, block, signal) in enumerate(found)], server)
    return Gradients([defended(own, defence, number, party) for party, own in enumerate(gradients.parties)], gradients.server)


def defended(gradients: Named, defence: Defence | None, number: int, party: int) -> Named:
    """Return what a party uploads in a round, without the graph that leads back to its data.

    Raises:
        ValueError: if the defence changed names or shapes.
    """
    uploaded = gradients if defence is None else defence(gradients, number, party)
    wrong = sorted(set(gradients) ^ set(uploaded)) or [name for name in gradients if gradients[name].shape != uploaded[name].shape]
    if wrong:
        raise ValueError(f"the defence of party {party} changed the names or shapes of {', '.join(wrong)} in round {number}: it must keep them")
    return {name: gradient.detach() for name, gradient in uploaded.items()}


def adam(federation: Federation, lr: float) -> torch.optim.Optimizer:
    """Return Adam of all parameters of a federation, with Keras's epsilon as the reference has it."""
    return torch.optim.Adam(federation.parameters(), lr=lr, eps=1e-7)


def update(federation: Federation, optimiser: torch.optim.Optimizer, uploaded: Gradients) -> None:
    """Take a step with the uploaded gradients."""
    owners = zip([*federation.bottoms, federation.server], [*uploaded.parties, uploaded.server], strict=True)
    for net, gradients in owners:
        for name, parameter in net.named_parameters():
            parameter.grad = gradients[name]
    optimiser.step()
    optimiser.zero_grad()
