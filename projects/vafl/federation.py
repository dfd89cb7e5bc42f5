"""Clients and server put together, for the simulator and for the processes: both play with exactly these parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from projects.vafl.bottoms import Bottom
from projects.vafl.client import Client
from projects.vafl.heads import Head
from projects.vafl.ledger import noise_for, releases_within, sensitivity
from projects.vafl.model import VerticalModel
from projects.vafl.server import Server
from projects.vafl.settings import Delays, Protection, Protocol
from projects.vafl.steps import StepSizes

PASSES = 5
"""Passes over the records that the noise is told for where a budget is spent before it begins."""


@dataclass(frozen=True)
class Setting:
    """What all parts of a federation agree on.

    Attributes:
        protocol: who waits for whom, and what is uploaded.
        delays: how long things take.
        protection: what hides the records.
        batch: records of a client's batch.
        lr: eta_m of the clients.
        server_lr: eta_0 of the server; None is `lr` t / M, t being the number of clients that it waits for: it takes M / t steps for each of theirs.
        step_rule: how step sizes change, see `StepSizes.parse`.
        l2: coefficient of the clients' regularisers.
        seed: of batches, delays and simulated noise.
    """

    protocol: Protocol = field(default_factory=Protocol)
    delays: Delays = field(default_factory=Delays)
    protection: Protection = field(default_factory=Protection)
    batch: int = 14
    lr: float = 1.0
    server_lr: float | None = None
    step_rule: str = "constant"
    l2: float = 0.0
    seed: int = 0

    def client(self, number: int, bottom: Bottom, block: Tensor, noise_seed: int | None = None) -> Client:
        """Return the part of a client, which trains its net in place."""
        steps = StepSizes.parse(self.step_rule, self.lr)
        own = self.protocol, self.protection, steps, self.l2, self.seed, noise_seed, self.budget(bottom)
        return Client(number, bottom, block, self.batch, *own)

    def server(self, head: Head, labels: Tensor) -> Server:
        """Return the part of the server, which trains the head in place."""
        clients = len(head.widths)
        lr = self.lr * self.protocol.group(clients) / clients if self.server_lr is None else self.server_lr
        return Server(head, labels, StepSizes.parse(self.step_rule, lr), self.protocol.max_age, self.protocol.message_bits)

    def budget(self, bottom: Bottom) -> int | None:
        """Return how many releases of a record the budget allows a client with this net; None without one.

        Raises:
            ValueError: if a client could not take part in a single cycle.
        """
        own, least = self.protection, 1 + self.protocol.fills_table
        if own.epsilon is None:
            return None
        bound = sensitivity(own.clip, own.adjacency, bottom.maps_zero_to_zero)
        allowed = releases_within(own.epsilon, own.delta, bound, own.std)
        if allowed < least:
            raise ValueError(
                f"protection.epsilon {own.epsilon:g} with noise of std {own.std:g} allows {allowed} releases of a record, but the first pass takes "
                f"{least}: raise protection.epsilon, or protection.std, "
                f"to {noise_for(own.epsilon, own.delta, least + PASSES, bound):.4g} for {PASSES} passes more"
            )
        return allowed

    def federation(self, model: VerticalModel, blocks: Sequence[Tensor], labels: Tensor) -> tuple[list[Client], Server]:
        """Return all parts, which train the model in place."""
        clients = [self.client(number, bottom, block) for number, (bottom, block) in enumerate(zip(model.bottoms, blocks, strict=True))]  # type: ignore[arg-type]
        return clients, self.server(model.head, labels)
