"""A client of the federation, without any input or output: it selects, embeds, and updates its own net (Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.vafl.bottoms import Bottom
from projects.vafl.ledger import Ledger
from projects.vafl.perturbed import Noise
from projects.vafl.settings import Protection, Protocol
from projects.vafl.steps import StepSizes
from projects.vafl.uploads import ROW_BYTES, Selection, UploadPolicy

CHUNK = 4096
"""Records that a client embeds at once where it embeds many."""


@dataclass
class Upload:
    """A message of a client to the server.

    Attributes:
        client: m.
        cycle: of the client, from 0; -1 for what it sends before the first, or when it is asked.
        rows: (R,) int64 records whose embeddings are sent.
        embeddings: (R, p_m).
        query: (B,) int64 records whose gradient is asked for; empty asks for none.
    """

    client: int
    cycle: int
    rows: np.ndarray
    embeddings: Tensor
    query: np.ndarray

    @property
    def size(self) -> int:
        """Bytes of what the message says."""
        return self.embeddings.numel() * self.embeddings.element_size() + ROW_BYTES * (len(self.rows) + (0 if len(self.rows) else len(self.query)))


@dataclass
class Signal:
    """The server's answer to a client.

    Attributes:
        gradient: (B, p_m) gradient of the batch's mean loss for the client's embeddings, in the order of its query.
        updates: k of the step that the answer belongs to (equation 4), the server's counter before it.
        age: mean age of the other clients' embeddings that it used, in updates.
    """

    gradient: Tensor
    updates: int
    age: float

    @property
    def size(self) -> int:
        """Bytes of the gradient."""
        return self.gradient.numel() * self.gradient.element_size()


class Client:
    """The part of one client.

    Args:
        number: m, from 0.
        bottom: its net.
        block: (N, ...) its part of the training records, on the net's device.
        batch: records of a batch.
        protocol: what all have agreed on.
        protection: noise, clipping and budget.
        steps: step sizes eta_m.
        l2: coefficient of its regulariser r(theta_m) = l2/2 |theta_m|^2.
        seed: of its batches; all clients have the same.
        noise_seed: of its noise, which must be secret where the server is real; None takes `seed`.
        budget: most releases of a record; None is unlimited.
    """

    def __init__(
        self,
        number: int,
        bottom: Bottom,
        block: Tensor,
        batch: int,
        protocol: Protocol,
        protection: Protection,
        steps: StepSizes,
        l2: float = 0.0,
        seed: int = 0,
        noise_seed: int | None = None,
        budget: int | None = None,
    ) -> None:
        self.number, self.bottom, self.block = number, bottom, block
        self.protocol, self.protection, self.steps, self.l2, self.budget = protocol, protection, steps, l2, budget
        self.dtype = torch.float16 if protocol.message_bits == 16 else torch.float32
        row_bytes = bottom.outputs * protocol.message_bits // 8 + ROW_BYTES
        policy = UploadPolicy.parse(protocol.upload_policy)
        self.selection = Selection(policy, len(block), batch, row_bytes, seed, number, protocol.is_shared)
        self.ledger = Ledger(len(block))
        self.cycle = self.asked = 0
        self.seed, self.noise_seed = seed, seed if noise_seed is None else noise_seed
        self._parameters = list(bottom.parameters())
        self._sent: Upload | None = None
        self._pull: Callable[[Tensor], list[Tensor]] | None = None
        self._batch_noise: Noise | None = None

    # ---- a cycle

    def first(self) -> Upload:
        """Embed every record whose budget is not spent, to fill the server's table; nothing is asked."""
        rows = np.arange(len(self.block))
        if self.budget is not None:
            rows = rows[self._may(rows)]
        block = self.block if len(rows) == len(self.block) else self._block(rows)
        parts = [self._embed(part, self._noise("first", number)) for number, part in enumerate(block.split(CHUNK))]
        self.ledger.add(torch.from_numpy(rows))
        return self._upload(rows, torch.cat(parts), rows[:0], -1)

    def begin(self) -> Upload | None:
        """Begin a cycle; until `finish` every call gives the same message.

        Returns:
            What is sent when the client is active: embeddings and a query, or with query_first the query alone. None where the budget of a record in
            the batch is spent: the client is done.
        """
        selected = self._select()
        if selected is None or self.protocol.order == "upload_first":
            return selected
        return Upload(self.number, self.cycle, selected.rows[:0], selected.embeddings[:0], selected.query)

    def ahead(self) -> Upload | None:
        """With query_first, return what is uploaded as soon as the step before is taken; None with upload_first, or where the budget is spent."""
        if self.protocol.order == "upload_first" or (selected := self._select()) is None:
            return None
        return replace(selected, query=selected.query[:0])

    def finish(self, signal: Signal) -> None:
        """End a cycle: take the step of equation 4 with what the server answered."""
        assert self._pull is not None
        assert self._sent is not None
        gradient, eta = signal.gradient.to(self._parameters[0].dtype), self.steps.at(signal.updates, signal.age)
        self._descend(self._pull(gradient), eta)
        for _ in range(self.protocol.local_steps - 1):
            _, pull = self.bottom.pullback(self._block(self._sent.query), self._batch_noise)
            self._descend(pull(gradient), eta)
        self.selection.note(self._sent.rows, self.cycle)
        self.cycle += 1
        self._sent = self._pull = None

    def refresh(self, rows: np.ndarray) -> Upload | None:
        """Embed records anew that the server asks for; None where their budget is spent."""
        allowed = rows if self.budget is None else rows[self._may(rows)]
        if not len(allowed):
            return None
        self.asked += 1
        self.selection.note(allowed, self.cycle)
        self.ledger.add(torch.from_numpy(allowed))
        return self._upload(allowed, self._embed(self._block(allowed), self._noise("asked", self.asked)), rows[:0], -1)

    def _select(self) -> Upload | None:
        """Select the cycle's rows and embed them once, keeping what the step needs."""
        if self._sent is not None:
            return self._sent
        batch, others = self.selection.rows(self.cycle)
        if self.budget is not None:
            if not self._may(batch).all():
                return None
            others = others[self._may(others)]
        return self._begin(np.concatenate([batch, others]) if len(others) else batch)

    def _begin(self, rows: np.ndarray) -> Upload:
        size, block = self.selection.batch, self._block(rows)
        self._batch_noise = self._noise("batch", self.cycle)
        embeddings, self._pull = self.bottom.pullback(block[:size], self._batch_noise)
        if len(rows) > size:
            embeddings = torch.cat([embeddings, self._embed(block[size:], self._noise("others", self.cycle))])
        self.ledger.add(torch.from_numpy(rows))
        self._sent = self._upload(rows, embeddings, rows[:size], self.cycle)
        return self._sent

    def _may(self, rows: np.ndarray) -> np.ndarray:
        """Return which rows the budget still allows to be released, (R,) bool."""
        assert self.budget is not None
        return self.ledger.allowed(torch.from_numpy(rows), self.budget).numpy()

    def _upload(self, rows: np.ndarray, embeddings: Tensor, query: np.ndarray, cycle: int) -> Upload:
        return Upload(self.number, cycle, rows, embeddings.to(self.dtype), query)

    # ---- its own net

    def _block(self, rows: np.ndarray) -> Tensor:
        return self.block.index_select(0, torch.from_numpy(rows).to(self.block.device))

    @torch.no_grad()
    def _embed(self, block: Tensor, noise: Noise | None) -> Tensor:
        return self.bottom(block, noise)

    def _noise(self, what: str, number: int) -> Noise | None:
        """Return the noise of an upload, fresh for each, and the same for the step that goes with it."""
        return self.protection.noise(self.noise_seed, "noise", self.number, what, number)

    @torch.no_grad()
    def _descend(self, gradients: list[Tensor], eta: float) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            if self.l2:
                parameter.mul_(1 - eta * self.l2)
            parameter.sub_(gradient, alpha=eta)

    # ---- what a run goes on from

    def go_to(self, cycle: int) -> None:
        """Go to another cycle, as one does who comes back to a synchronous training that went on."""
        if cycle != self.cycle:
            self.cycle = cycle
            self._sent = self._pull = None

    @property
    def begun(self) -> Tensor:
        """(R,) int64 rows of the cycle that has begun; empty where none has."""
        return torch.empty(0, dtype=torch.int64) if self._sent is None else torch.from_numpy(self._sent.rows.copy())

    def begin_again(self, begun: Tensor) -> None:
        """Begin a cycle with the rows that it had before a stop, which by now might be selected otherwise: others were asked for since."""
        if len(begun):
            self._begin(begun.numpy())

    def state(self) -> dict[str, Any]:
        """Return what it takes to go on; a cycle that has begun begins again."""
        releases = self.ledger.releases.clone()
        if self._sent is not None:
            releases[torch.from_numpy(self._sent.rows)] -= 1
        last = torch.from_numpy(self.selection.last.copy())
        return {"net": self.bottom.state_dict(), "cycle": self.cycle, "asked": self.asked, "releases": releases, "last": last}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.bottom.load_state_dict(state["net"])
        self.cycle, self.asked = int(state["cycle"]), int(state["asked"])
        self.ledger.load(state["releases"])
        self.selection.last[:] = state["last"].numpy()
        self._sent = self._pull = None
