"""What is taken from opacus: gradients of single records, and accountants of differential privacy."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


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
