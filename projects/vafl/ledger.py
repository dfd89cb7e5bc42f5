"""Which records a client has released how often, and what that costs in privacy.

The server must know which records an upload belongs to, so no upload counts less than fully for the records in it: sampling amplifies nothing. A
release of a record is one Gaussian mechanism, releases of one record compose, and records stand side by side: the most released one decides.

That is the paper's view: what a record's own embeddings tell. A client also trains its net on the records as they are, so that the
weights, and with them its later embeddings of all other records, depend on each record. `weights_mu` bounds this too; it is large.

The figures are those of exact normal noise. What is added is float32 noise of a generator that is not cryptographic: whoever guesses its seed
takes the noise off again, and the spacing of floats may tell more than a real number would.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from shared.privacy import composed_mu, gaussian_epsilon, gaussian_epsilons, gaussian_mu

ADJACENCIES = ("zero_out", "replace")
"""Neighbouring data: a record's features with a client, standardised if they are, are zeroed, or replaced by any others; their scaling is fixed."""
THEOREM_6 = "theorem 6 (needs secret sampling)"
"""How reports label the paper's own mu: it holds only if nobody knows which records an upload belongs to, and the server always knows."""
ROUNDED_UP = 1 + 1e-9
"""By how much calibrated noise exceeds its exact value, so that rounding does not forbid the last of the releases that it is made for."""


class Ledger:
    """How often one client has released each training record: every upload of an embedding counts, also a refresh.

    Test records, whose embeddings a client in a process of its own sends for an evaluation, are not in here.

    Args:
        records: number of records, N.

    Attributes:
        releases: (N,) int64 counts, also the state that a checkpoint keeps.

    Raises:
        ValueError: if there is no record.
    """

    def __init__(self, records: int) -> None:
        if records < 1:
            raise ValueError(f"a ledger needs at least one record, got {records}")
        self.releases = torch.zeros(records, dtype=torch.int64)
        self._ones = torch.ones(records, dtype=torch.int64)

    def add(self, rows: Tensor) -> None:
        """Count one upload of the records `rows`, (B,) int64 with B at most N."""
        self.releases.index_add_(0, rows, self._ones[: len(rows)])

    def allowed(self, rows: Tensor, most: int) -> Tensor:
        """Return which of `rows`, (B,) int64, may be released once more under a budget of `most` releases a record: (B,) bool."""
        return self.releases[rows] < most

    def load(self, releases: Tensor) -> None:
        """Go on from the counts of a checkpoint.

        Args:
            releases: (N,) int64.

        Raises:
            ValueError: if these are not counts of as many records.
        """
        if releases.shape != self.releases.shape or releases.dtype != torch.int64 or bool((releases < 0).any()):
            raise ValueError(
                f"the ledger needs {len(self.releases)} int64 counts of 0 or more, got {releases.dtype} of shape {tuple(releases.shape)}: "
                "resume with the data of the checkpoint"
            )
        self.releases.copy_(releases)

    @property
    def most(self) -> int:
        """Releases of the record that was released most often."""
        return int(self.releases.max())

    @property
    def mean(self) -> float:
        """Releases of a record on average."""
        return self.releases.double().mean().item()

    def rows_of_upload(self, queries: int) -> float:
        """Return how many records went along with each of a client's `queries` on average, all that it released among them; at most N."""
        return min(len(self.releases), int(self.releases.sum()) / max(1, queries))


def sensitivity(clip: float | None, adjacency: str = "zero_out", maps_zero_to_zero: bool = False) -> float:
    """Return how far a neighbouring record moves the clipped pre-activation of its last layer at most, in the L2 norm: Delta.

    Args:
        clip: largest norm of a record's pre-activation, C; None if there is no bound.
        adjacency: one of `ADJACENCIES`.
        maps_zero_to_zero: whether the pre-activation of zeroed features is zero, see `Bottom.maps_zero_to_zero`: then no zeroed record is farther
            away than C. In a net with biases it may be anything within the clip, and two such values are up to 2 C apart.

    Returns:
        C for "zero_out" where zero stays zero, otherwise 2 C; infinity without clip.

    Raises:
        ValueError: if the clip is not positive, or the adjacency unknown.
    """
    if adjacency not in ADJACENCIES:
        raise ValueError(f"unknown adjacency {adjacency!r}: choose one of {', '.join(ADJACENCIES)}")
    if clip is None:
        return math.inf
    if not clip > 0:
        raise ValueError(f"clip must be positive, or null for no clipping, got {clip}")
    return clip if adjacency == "zero_out" and maps_zero_to_zero else 2 * clip


def mu_of(releases: int, sensitivity: float, std: float) -> float:
    """Return mu of a record that was released a number of times: Delta sqrt(E) / c.

    Args:
        releases: E.
        sensitivity: Delta.
        std: standard deviation of the noise on each release, c, in the units of Delta.

    Returns:
        0 without releases; else infinity without noise or without a bound.

    Raises:
        ValueError: if an argument is negative, or `sensitivity` 0.
    """
    if not (std >= 0 and sensitivity > 0):
        raise ValueError(f"std must be 0 or more and sensitivity positive, got {std} and {sensitivity}")
    return composed_mu(releases, std / sensitivity)


def subject_mu(releases: Tensor, sensitivities: Sequence[float], stds: Sequence[float]) -> float:
    """Return mu of whole subjects, whose parts at all clients change together: the largest sqrt(sum_m mu_m^2) of any record.

    Args:
        releases: (M, N) int64 releases of each record by each client.
        sensitivities: Delta of each client.
        stds: c of each client.

    Returns:
        At most the root of the sum of the clients' squared mu, and less where another record is the most released one at each.
    """
    each = torch.tensor([mu_of(1, bound, std) for bound, std in zip(sensitivities, stds, strict=True)], dtype=torch.float64)
    parts = torch.where(releases > 0, releases * each[:, None] ** 2, 0.0)  # (M, N); an infinite loss counts where there was a release
    return math.sqrt(parts.sum(0).max())


def weights_mu(releases: Tensor, sensitivity: float, clip: float | None, std: float) -> float:
    """Bound mu of any record if what a client's weights tell of it counts too: all other records' uploads may then move by 2 C.

    Given what was uploaded before, an upload of record j is normal noise around a clipped vector, which depends on record n through the weights
    only. This holds whatever the training does; it is far from tight, and no smaller bound is known without private training.

    Args:
        releases: (N,) int64 releases of each record by the client.
        sensitivity: Delta, of a record's own uploads.
        clip: C; None if there is no bound.
        std: c.
    """
    least, total = int(releases.min()), int(releases.sum())
    own, others = mu_of(least, sensitivity, std), mu_of(total - least, math.inf if clip is None else 2 * clip, std)
    return math.hypot(own, others)


def theorem6_mu(batch: float, records: int, queries: int, sensitivity: float, std: float) -> float:
    """Return the mu that the paper's Theorem 6 comes to, (N_m / N) sqrt(K) Delta / c; see `THEOREM_6` for why it is no promise.

    A record is in K N_m / N of K uploads on average: this is sqrt(N_m / N) times the mu of that many releases.

    Args:
        batch: records of an upload on average, N_m, see `Ledger.rows_of_upload`: not those of the batch alone.
        records: N.
        queries: uploads of the client, K.
        sensitivity: Delta.
        std: c.

    Raises:
        ValueError: if an upload has more than N records, or an argument is out of its range.
    """
    if not 0 <= batch <= records:
        raise ValueError(f"an upload has 0 to {records} records, got {batch}")
    return batch / records * mu_of(queries, sensitivity, std) if batch else 0.0


def noise_for(epsilon: float, delta: float, releases: int, sensitivity: float) -> float:
    """Return the least standard deviation c with which `releases` releases of a record are (epsilon, delta)-differentially private.

    Args:
        epsilon: 0 or more, and finite.
        delta: in (0, 1).
        releases: planned releases of the most released record, E, at least 1.
        sensitivity: Delta; it must be finite, so the client has to clip.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if releases < 1:
        raise ValueError(f"noise is made for at least one release, got {releases}")
    if not 0 < sensitivity < math.inf:
        raise ValueError(f"no noise bounds what an embedding without bound tells: set clip, got a sensitivity of {sensitivity}")
    return sensitivity * math.sqrt(releases) / gaussian_mu(epsilon, delta) * ROUNDED_UP


def releases_within(epsilon: float, delta: float, sensitivity: float, std: float) -> int:
    """Return how often a record may be released at most for (epsilon, delta)-differential privacy; 0 without noise or without a bound.

    Args:
        epsilon: 0 or more, and finite.
        delta: in (0, 1).
        sensitivity: Delta.
        std: c.

    Raises:
        ValueError: if an argument is out of its range.
    """
    once = mu_of(1, sensitivity, std)
    return math.floor((gaussian_mu(epsilon, delta) / once) ** 2)


def statement(
    ledger: Ledger,
    clip: float | None,
    std: float,
    batch: float,
    queries: int,
    delta: float = 1e-5,
    adjacency: str = "zero_out",
    maps_zero_to_zero: bool = False,
    prv: bool = True,
) -> dict[str, Any]:
    """State what a client's uploads have cost the privacy of its most released record: one row of a table.

    Args:
        ledger: the client's releases.
        clip: largest norm of a record's pre-activation, C; None if there is no bound.
        std: standard deviation of the noise on it, c.
        batch: records of an upload on average, N_m, for Theorem 6: what `Ledger.rows_of_upload` returns.
        queries: uploads of the client, K, for Theorem 6.
        delta: probability that epsilon may be exceeded.
        adjacency: one of `ADJACENCIES`.
        maps_zero_to_zero: of the client's net, see `sensitivity`.
        prv: whether to ask opacus's accountant too; the first question takes seconds, to import opacus.

    Returns:
        releases_max, releases_mean, adjacency, sensitivity, std, mu, epsilon (closed form, exact), epsilon_prv (opacus's accountant at q = 1; None
        if it was not asked), delta, mu_theorem_6 and epsilon_theorem_6, which are to be labelled `THEOREM_6`, and mu_with_weights (`weights_mu`).
    """
    bound = sensitivity(clip, adjacency, maps_zero_to_zero)
    mu = mu_of(ledger.most, bound, std)
    paper = theorem6_mu(batch, len(ledger.releases), queries, bound, std)
    return {
        "releases_max": ledger.most,
        "releases_mean": ledger.mean,
        "adjacency": adjacency,
        "sensitivity": bound,
        "std": std,
        "mu": mu,
        "epsilon": gaussian_epsilon(mu, delta),
        "epsilon_prv": gaussian_epsilons(mu, delta).prv if prv else None,
        "delta": delta,
        "mu_theorem_6": paper,
        "epsilon_theorem_6": gaussian_epsilon(paper, delta),
        "mu_with_weights": weights_mu(ledger.releases, bound, clip, std),
    }
