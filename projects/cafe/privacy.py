"""DP-SGD as a party's defence, through opacus, and what it is worth when the server knows every batch (section 10 of the sheet)."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from shared.seeding import generator

LARGEST_MU = 30.0
"""Above it opacus's PRV accountant no longer resolves the tails; the closed form, which it meets within 0.02 up to there, takes its place."""


def per_record_gradients(bottom: nn.Module, block: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """Return each record's gradient of its own loss, by opacus's `GradSampleModule` on a copy of the net.

    Args:
        bottom: a party's net; it is left as it is.
        block: (K, ...) the party's block of the batch.
        signal: (K, outputs) gradient of the batch's mean loss for the net's outputs, as the server sends it; it carries 1/K.

    Returns:
        By parameter's name (K, ...) gradients without the factor 1/K: their mean over records is the plain gradient.

    Raises:
        ValueError: if the net has a layer that mixes records or draws at random, such as a batch norm or dropout.
    """
    from opacus import GradSampleModule

    wrong = [name for name, module in bottom.named_modules() if isinstance(module, _BatchNorm | _DropoutNd)]
    if wrong:
        raise ValueError(f"a record has no gradient of its own in a net with batch norm or dropout ({', '.join(wrong)}): build the net without")
    with quiet_opacus():
        wrapped = GradSampleModule(deepcopy(bottom).requires_grad_().train(), loss_reduction="mean")
        wrapped(block).backward(signal)
        return {name.removeprefix("_module."): parameter.grad_sample for name, parameter in wrapped.named_parameters()}


def clip_records(gradients: dict[str, Tensor], clip: float) -> dict[str, Tensor]:
    """Scale each record's gradient, over all of the net's parameters, down to a norm of at most `clip`.

    Args:
        gradients: by parameter's name (K, ...).
        clip: largest L2 norm, C.

    Returns:
        The same names and shapes.
    """
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients.values()]).norm(dim=0)  # (K,)
    factors = (clip / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=1)
    return {name: gradient * factors.reshape(-1, *[1] * (gradient.dim() - 1)) for name, gradient in gradients.items()}


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
    server's signals pass that on. E rounds with as many uploads compose to a single Gaussian mechanism with sigma / sqrt(E uploads), exactly;
    the accountants are asked about that one, which takes milliseconds where the PRV of 240 rounds takes minutes.

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
    if rounds == 0 or noise_multiplier == 0:
        epsilon = 0.0 if rounds == 0 else math.inf
        return Guarantee(rounds, uploads, noise_multiplier, delta, epsilon, epsilon, epsilon, epsilon)
    mu = math.sqrt(rounds * uploads) / noise_multiplier
    gdp = gaussian_epsilon(mu, delta)
    prv = gdp if mu > LARGEST_MU else accountant_epsilon("prv", 1 / mu, 1.0, 1, delta)
    return Guarantee(rounds, uploads, noise_multiplier, delta, prv, _renyi_epsilon(mu, delta), gdp, mu)


def most_rounds(schedule: Tensor) -> int:
    """Return how many rounds of a (T, N) bool schedule the most frequent record takes part in: the guarantee is for the worst off."""
    return int(schedule.sum(0).max())


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of mu-Gaussian differential privacy at delta: the root of Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu) = delta.

    Opacus's own root is sought up to 500 only, and its mu is a limit for small sampling rates: at q = 1 it is sqrt(exp(1/sigma^2) - 1) in place of
    1/sigma, which overstates epsilon by half at sigma = 1.
    """
    from scipy.optimize import brentq
    from scipy.special import log_ndtr, ndtr

    def excess(epsilon: float) -> float:
        return float(ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu)) - delta)

    if excess(0.0) <= 0:
        return 0.0
    return float(brentq(excess, 0.0, mu**2 / 2 + mu * math.sqrt(2 * math.log(1 / delta))))  # there the first term alone is below delta


def accountant_epsilon(mechanism: str, noise_multiplier: float, sample_rate: float, rounds: int, delta: float) -> float:
    """Return what an accountant of opacus says, without its warnings.

    Only `sample_rate=1` is honest here: the server chose the batches. A rate of K/N shows what the default of opacus's engine would claim.

    Args:
        mechanism: "prv", "rdp" or "gdp".
        noise_multiplier: sigma.
        sample_rate: chance that a record takes part in a round, in (0, 1].
        rounds: number of rounds.
        delta: probability that epsilon may be exceeded.
    """
    from opacus.accountants import create_accountant

    with quiet_opacus():
        accountant = create_accountant(mechanism)
        accountant.history = [(noise_multiplier, sample_rate, rounds)]
        return float(accountant.get_epsilon(delta))


def _renyi_epsilon(mu: float, delta: float) -> float:
    """Return opacus's epsilon by Renyi orders around the best one, 1 + sqrt(2 log(1/delta)) / mu, which its own orders miss at small and large mu."""
    from opacus.accountants import RDPAccountant

    orders = 1 + math.sqrt(2 * math.log(1 / delta)) / mu * np.geomspace(0.1, 10, 401)
    accountant = RDPAccountant()
    accountant.history = [(1 / mu, 1.0, 1)]
    with quiet_opacus():
        return max(0.0, float(accountant.get_epsilon(delta, alphas=list(orders))))


@contextmanager
def quiet_opacus() -> Iterator[None]:
    """Keep to itself what opacus and numpy say of hooks without inputs, of experimental accountants and of the logarithm of 1 - q."""
    logger = logging.getLogger("opacus")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
