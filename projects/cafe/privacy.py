"""DP-SGD as a party's defence, through opacus, and what it is worth when the server knows every batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared.privacy import clip_records, composed_mu, gaussian_epsilons, per_record_gradients
from shared.seeding import generator


@dataclass(frozen=True)
class PrivateGradients:
    """How a party finds its gradient under DP-SGD: records' gradients are clipped and summed, normal noise is added, and the sum is divided by K.

    It takes the place of the plain gradient in `observe(..., local=PrivateGradients(...))`.

    Args:
        clip: largest norm of a record's gradient, C, in units of the gradient of one record's loss.
        noise_multiplier: standard deviation of the noise on the sum, in units of C.
        seed: seed of the noise; in a deployment it must be secret and fresh.

    Raises:
        ValueError: if an argument is out of its range.
    """

    clip: float
    noise_multiplier: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.noise_multiplier < 0:
            raise ValueError(f"clip must be positive and noise_multiplier 0 or more, got {self.clip} and {self.noise_multiplier}")

    def __call__(self, bottom: nn.Module, block: Tensor, signal: Tensor, round_number: int, party: int) -> dict[str, Tensor]:
        """Return the private gradient of a party in a round; see `per_record_gradients` for the arguments."""
        clipped = clip_records(per_record_gradients(bottom, block, signal), self.clip)
        chance = generator(self.seed, "privacy", round_number, party)
        std = self.noise_multiplier * self.clip
        return {
            name: (own.sum(0) + std * torch.randn(own.shape[1:], generator=chance, dtype=own.dtype).to(own.device)) / len(block)
            for name, own in clipped.items()
        }


@dataclass(frozen=True)
class Guarantee:
    """What DP-SGD promises to the record that took part most often: the presence or absence of a whole record, all parties' parts together.

    The promise is about the parties' uploads alone. CAFE's server also holds the top net's gradient, and in split learning the outputs: what these
    tell is not counted, unless the top net is trained privately too (then it is one more upload). The labels are the server's own.

    Attributes:
        rounds: rounds that the record took part in, E.
        uploads: private uploads of such a round.
        noise_multiplier: sigma of each upload.
        delta: probability that epsilon may be exceeded.
        epsilon: the reported figure: opacus's PRV accountant, an upper bound within about 0.01.
        rdp: epsilon by Renyi differential privacy, an upper bound that is a little looser.
        gdp: epsilon by Gaussian differential privacy with mu = sqrt(E uploads) / sigma; at q = 1 it is exact.
        mu: that mu.
    """

    rounds: int
    uploads: int
    noise_multiplier: float
    delta: float
    epsilon: float
    rdp: float
    gdp: float
    mu: float


def account(rounds: int, noise_multiplier: float, delta: float, uploads: int = 1) -> Guarantee:
    """Account for a record that took part in a number of rounds which the attacker knows, so that no round counts less than fully (q = 1).

    The uploads of a round are one Gaussian mechanism each: a record changes all of them, even if only one party's features change, for the
    server's signals pass that on. E rounds with as many uploads compose to a single Gaussian mechanism with sigma / sqrt(E uploads), exactly.

    Args:
        rounds: rounds that the record took part in, E; see `most_rounds`.
        noise_multiplier: sigma, the noise on the clipped sum in units of the clipping norm.
        delta: probability that epsilon may be exceeded, in (0, 1).
        uploads: private uploads of a round that the server sees: the number of parties.

    Returns:
        The guarantee; infinite without noise, zero without rounds.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if rounds < 0 or uploads < 1 or noise_multiplier < 0 or not 0 < delta < 1:
        raise ValueError(
            "rounds and noise_multiplier must be 0 or more, uploads at least 1 and delta in (0, 1), "
            f"got rounds {rounds}, noise_multiplier {noise_multiplier}, uploads {uploads}, delta {delta}"
        )
    found = gaussian_epsilons(composed_mu(rounds * uploads, noise_multiplier), delta)
    return Guarantee(rounds, uploads, noise_multiplier, delta, epsilon=found.prv, rdp=found.rdp, gdp=found.gdp, mu=found.mu)


def most_rounds(schedule: Tensor) -> int:
    """Return how many rounds of a (T, N) bool schedule the most frequent record takes part in: the guarantee is for the worst off."""
    return int(schedule.sum(0).max())
