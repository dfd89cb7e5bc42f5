"""What is taken from opacus: gradients of single records, and accountants of differential privacy."""

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

LARGEST_MU = 30.0
"""Above it opacus's PRV accountant no longer resolves the tails; the closed form, which it meets within 0.02 up to there, takes its place."""
SMALLEST_MU = 1e-100
"""Below it 1 / mu**2 overflows in opacus, and epsilon is 0 at any delta that a double tells from 0."""
SMALLEST_DELTA = 1e-12
"""Below it opacus's PRV accountant refuses to answer."""


@dataclass(frozen=True)
class GaussianEpsilons:
    """Epsilon of mu-Gaussian differential privacy at delta, by three accountants.

    Attributes:
        mu: as well as an attacker tells a normal draw of mean mu from one of mean 0, both of variance 1; 0 is perfect privacy.
        delta: probability that epsilon may be exceeded.
        gdp: the closed form, which is exact.
        prv: opacus's PRV accountant at q = 1, an upper bound: 0.01 to 0.02 above `gdp` at the deltas of reports, 0.05 at delta 0.5.
        rdp: by Renyi differential privacy, an upper bound that is a little looser.
    """

    mu: float
    delta: float
    gdp: float
    prv: float
    rdp: float


def per_record_gradients(net: nn.Module, inputs: Tensor, signal: Tensor) -> dict[str, Tensor]:
    """Return each record's gradient of its own loss, by opacus's `GradSampleModule` on a copy of the net.

    Args:
        net: takes the inputs; it is left as it is.
        inputs: (K, ...).
        signal: (K, outputs) gradient of the batch's mean loss for the net's outputs; it carries 1/K.

    Returns:
        By parameter's name (K, ...) gradients without the factor 1/K: their mean over records is the plain gradient.

    Raises:
        ValueError: if the net has a layer that mixes records or draws at random, such as a batch norm or dropout.
    """
    from opacus import GradSampleModule

    wrong = [name for name, module in net.named_modules() if isinstance(module, _BatchNorm | _DropoutNd)]
    if wrong:
        raise ValueError(f"a record has no gradient of its own in a net with batch norm or dropout ({', '.join(wrong)}): build the net without")
    with quiet_opacus():
        wrapped = GradSampleModule(deepcopy(net).requires_grad_().train(), loss_reduction="mean")
        wrapped(inputs).backward(signal)
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


def composed_mu(mechanisms: int, noise_multiplier: float) -> float:
    """Return the mu of Gaussian mechanisms on the same record one after the other, sqrt(E) / sigma, exactly.

    Args:
        mechanisms: their number, E.
        noise_multiplier: standard deviation of each one's noise in units of its sensitivity, sigma.

    Returns:
        0 without mechanisms; else infinity without noise.

    Raises:
        ValueError: if an argument is negative.
    """
    if not (mechanisms >= 0 and noise_multiplier >= 0):
        raise ValueError(f"mechanisms and noise_multiplier must be 0 or more, got {mechanisms} and {noise_multiplier}")
    if mechanisms == 0:
        return 0.0
    return math.sqrt(mechanisms) / noise_multiplier if noise_multiplier else math.inf


def gaussian_epsilons(mu: float, delta: float) -> GaussianEpsilons:
    """Return epsilon by the closed form, by opacus's PRV accountant and by its Renyi accountant; all are 0 at mu 0 and infinite at mu infinity.

    The accountants are asked about one Gaussian mechanism of noise multiplier 1 / mu: mechanisms compose to one exactly, so that this takes
    milliseconds where the PRV of hundreds of rounds takes minutes. Where PRV fails (see the constants above), and where it falls below what
    is exact, as it does by its own rounding where epsilon is 0, the exact figure takes its place.

    Args:
        mu: 0 or more.
        delta: in (0, 1).

    Raises:
        ValueError: if an argument is out of its range.
    """
    gdp = gaussian_epsilon(mu, delta)
    if mu == 0 or math.isinf(gdp):
        return GaussianEpsilons(mu, delta, gdp, gdp, gdp)
    resolved = SMALLEST_MU <= mu <= LARGEST_MU and delta >= SMALLEST_DELTA
    prv = max(gdp, accountant_epsilon("prv", 1 / mu, 1.0, 1, delta)) if resolved else gdp
    return GaussianEpsilons(mu, delta, gdp, prv, renyi_epsilon(max(mu, SMALLEST_MU), delta))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the delta of mu-Gaussian differential privacy at epsilon: Phi(mu/2 - e/mu) - exp(e) Phi(-mu/2 - e/mu).

    Raises:
        ValueError: if `mu` or `epsilon` is negative.
    """
    from scipy.special import log_ndtr, ndtr

    if not (mu >= 0 and epsilon >= 0):
        raise ValueError(f"mu and epsilon must be 0 or more, got {mu} and {epsilon}")
    if mu == 0 or math.isinf(epsilon):
        return 0.0
    return max(0.0, float(ndtr(mu / 2 - epsilon / mu) - np.exp(epsilon + log_ndtr(-mu / 2 - epsilon / mu))))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of mu-Gaussian differential privacy at delta: where `gaussian_delta` is delta, and 0 if it is less throughout.

    Opacus's own root is sought up to 500 only, and its mu is a limit for small sampling rates: at q = 1 it is sqrt(exp(1/sigma^2) - 1) in place of
    1/sigma, which overstates epsilon by half at sigma = 1.

    Args:
        mu: 0 or more.
        delta: in (0, 1).

    Raises:
        ValueError: if an argument is out of its range.
    """
    from scipy.optimize import brentq

    if not (mu >= 0 and 0 < delta < 1):
        raise ValueError(f"mu must be 0 or more and delta in (0, 1), got {mu} and {delta}")
    largest = mu * (mu / 2 + math.sqrt(2 * math.log(1 / delta)))  # there the first term alone is below delta
    if mu > 1e6:  # rounding hides the root, and this bound is less than a millionth above it
        return largest
    if gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    return float(brentq(lambda epsilon: gaussian_delta(mu, epsilon) - delta, 0.0, largest))


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu whose Gaussian differential privacy is (epsilon, delta)-differential privacy: the inverse of `gaussian_epsilon`.

    Args:
        epsilon: 0 or more, and finite.
        delta: in (0, 1).

    Raises:
        ValueError: if an argument is out of its range.
    """
    from scipy.optimize import brentq

    if not (0 <= epsilon < math.inf and 0 < delta < 1):
        raise ValueError(f"epsilon must be 0 or more and finite, and delta in (0, 1), got {epsilon} and {delta}")
    upper = 1.0
    while gaussian_delta(upper, epsilon) < delta:
        upper *= 2
    return float(brentq(lambda mu: gaussian_delta(mu, epsilon) - delta, 0.0, upper, xtol=1e-300))


def accountant_epsilon(mechanism: str, noise_multiplier: float, sample_rate: float, rounds: int, delta: float) -> float:
    """Return what an accountant of opacus says, without its warnings.

    Only a `sample_rate` of 1 is honest where the batches are known. A rate of K/N is what the default of opacus's engine claims.

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


def renyi_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of mu-Gaussian differential privacy by opacus's Renyi accountant.

    Its orders lie around the best one, 1 + sqrt(2 log(1/delta)) / mu, which opacus's own miss at small and large mu.
    """
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
