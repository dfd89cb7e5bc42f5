"""What a vertical federation agrees on: who waits for whom, what is uploaded, how long things take, and what is protected."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

from projects.vafl.perturbed import Noise
from shared.seeding import derive_seed

Algorithm = Literal["async", "t_sync", "sync", "centralised"]
Sampling = Literal["own", "shared"]
Order = Literal["upload_first", "query_first"]


@dataclass(frozen=True)
class Protocol:
    """How clients and server work together (Algorithms 1 and 2).

    Args:
        algorithm: async (Algorithm 1: the server answers whoever comes), t_sync (Algorithm 2: it waits for some clients), sync (it waits for all, who
            take the same batch), or centralised (one model of all features, no messages).
        wait_for: t of t_sync, number of clients that the server waits for; null is half of them, rounded up.
        sampling: own (each client shuffles the records for itself) or shared (the n-th batch is the same everywhere; sync always does).
        order: upload_first (select, upload, query, update) or query_first (query, update, select, upload), which shortens delays.
        uploads: which embeddings go along with those of the batch: batch (none), extra:fraction=0.1 or extra:count=100 (so many more, in turn), all,
            or oldest:bytes=65536 (those longest ago, within so many bytes an upload). With sync, which uses no old ones, always batch.
        initial: what the table begins with: all (each client uploads every record once) or zeros. With sync always zeros.
        max_age: D, updates; where an embedding of another client that is needed is older, that one must send a new one first, unless its budget is
            spent; null lets ages grow.
        local_steps: steps that a client takes with each answer; 1 is the paper's.
        message_bits: bits of an uploaded or answered number, 32 or 16.
    """

    algorithm: Algorithm = "async"
    wait_for: int | None = None
    sampling: Sampling = "own"
    order: Order = "upload_first"
    uploads: str = "extra:fraction=0.1"
    initial: Literal["all", "zeros"] = "all"
    max_age: int | None = None
    local_steps: int = 1
    message_bits: Literal[16, 32] = 32

    def __post_init__(self) -> None:
        for name, known in (("algorithm", Algorithm), ("sampling", Sampling), ("order", Order)):
            if getattr(self, name) not in get_args(known):
                raise ValueError(f"protocol.{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.initial not in ("all", "zeros"):
            raise ValueError(f"protocol.initial must be all or zeros, got {self.initial!r}")
        if self.wait_for is not None and self.algorithm != "t_sync":
            raise ValueError(f"protocol.wait_for is for t_sync, not for {self.algorithm}: leave it out")
        for name in ("wait_for", "max_age", "local_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"protocol.{name} must be at least 1, got {getattr(self, name)}")
        if self.message_bits not in (16, 32):
            raise ValueError(f"protocol.message_bits must be 16 or 32, got {self.message_bits}")

    def group(self, clients: int) -> int:
        """Return how many clients the server waits for before it takes a step: 1, t or all.

        Raises:
            ValueError: if it is to wait for more clients than there are.
        """
        if self.algorithm == "async":
            return 1
        if self.algorithm != "t_sync":
            return clients
        if self.wait_for is not None and self.wait_for > clients:
            raise ValueError(f"protocol.wait_for is {self.wait_for}, but there are only {clients} clients")
        return self.wait_for or math.ceil(clients / 2)

    @property
    def upload_policy(self) -> str:
        """What goes along: nothing with sync, whose embeddings are all of the same batch and fresh."""
        return "batch" if self.algorithm == "sync" else self.uploads

    @property
    def fills_table(self) -> bool:
        """Whether every client uploads all its records once, before the first cycle."""
        return self.initial == "all" and self.algorithm != "sync"

    @property
    def is_shared(self) -> bool:
        """Whether the n-th batch is the same at all clients."""
        return self.sampling == "shared" or self.algorithm in ("sync", "centralised")


@dataclass(frozen=True)
class Delays:
    """How long things take, in seconds: simulated ones, or real ones that clients wait.

    Args:
        compute: of a client's cycle: poisson (client m of M, from 1: Poisson(2m)/(2M), mean m/M), exponential (mean m), constant (m/M), none, or
            trace:FILE, a CSV file with columns client (from 0) and seconds, one line a cycle, taken in turn.
        scale: factor of `compute`.
        floor: least delay of a cycle: Poisson delays can be 0.
        slow: clients that take longer, as CLIENT:FACTOR, such as [7:5].
        absent: when clients are away, as CLIENT:FROM-TO in seconds, such as [3:20-40]; a cycle that falls into it begins again at its end.
        up: of each message to the server.
        down: of each answer.
        bandwidth: bytes a second of each client's line, in both directions; null is unlimited.
        server: of each update of the server.
    """

    compute: str = "poisson"
    scale: float = 1.0
    floor: float = 0.02
    slow: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    up: float = 0.0
    down: float = 0.0
    bandwidth: float | None = None
    server: float = 0.0

    def __post_init__(self) -> None:
        for name in ("scale", "floor", "up", "down", "server"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"delays.{name} must be 0 or more seconds, got {getattr(self, name)}")
        if self.bandwidth is not None and not self.bandwidth > 0:
            raise ValueError(f"delays.bandwidth must be positive, got {self.bandwidth}: leave it null for no limit")


@dataclass(frozen=True)
class Protection:
    """What hides the records in the embeddings that clients upload.

    Args:
        std: c, standard deviation of the normal noise on the last layer before its activation.
        hidden: c_l, standard deviation of the uniform noise in each layer before it; a shorter list repeats its last entry.
        clip: C, largest norm of what the last noise is added to; null bounds nothing, and promises nothing.
        epsilon: budget of each client, at which it uploads no more; null is unlimited. What M clients tell of a subject composes: see `privacy`.
        delta: chance that epsilon may be exceeded.
        adjacency: what may differ: zero_out (a record's features, as they are after standardising, are there or all zero) or replace (by others).
    """

    std: float = 0.0
    hidden: list[float] = field(default_factory=list)
    clip: float | None = None
    epsilon: float | None = None
    delta: float = 1e-5
    adjacency: Literal["zero_out", "replace"] = "zero_out"

    def __post_init__(self) -> None:
        if self.std < 0 or any(std < 0 for std in self.hidden):
            raise ValueError(f"protection.std and protection.hidden must be 0 or more, got {self.std} and {self.hidden}")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"protection.clip must be positive, got {self.clip}")
        if not 0 < self.delta < 1:
            raise ValueError(f"protection.delta must be in (0, 1), got {self.delta}")
        if self.epsilon is not None and (self.epsilon <= 0 or self.clip is None or self.std == 0):
            raise ValueError("protection.epsilon is a budget above 0, and needs protection.clip and protection.std: without them nothing is promised")
        if self.adjacency not in ("zero_out", "replace"):
            raise ValueError(f"protection.adjacency must be zero_out or replace, got {self.adjacency!r}")

    @property
    def is_noisy(self) -> bool:
        """Whether there is any noise."""
        return self.std > 0 or any(self.hidden)

    def noise(self, *key: int | str) -> Noise | None:
        """Return the noise that a key such as `(seed, "noise", client, "batch", cycle)` draws, or None where there is none."""
        return Noise(derive_seed(*key), self.std, tuple(self.hidden)) if self.is_noisy else None
