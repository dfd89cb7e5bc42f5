"""How smooth noise inside a net makes the objective, and by how much it changes it: Theorem 5 as a diagnostic.

Layers are numbered 1 to L, and lists hold one entry a layer. The constants are upper bounds that grow fast with depth: they compare settings,
and are no step sizes to use. Where the paper's formula is not the bound that its proof gives, the function says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from projects.vafl.bottoms import Bottom, LinearBottom, MlpBottom


class LayerConstants(NamedTuple):
    """Smoothness of a perturbed embedding in each layer's parameters.

    Attributes:
        biases: L_b(l), Lipschitz constants of the gradient for b_l, in b_l.
        weights: L_w(l), Lipschitz constants of the gradient for b_l, in w_l. The gradient for w_l itself, which has one more factor
            u_{l-1}, is steeper by the size of that; the paper leaves it out.
    """

    biases: list[float]
    weights: list[float]


def gaussian_constant(lipschitz: float, dimension: int, std: float) -> float:
    """Smoothness L_0 d / c of a function with Lipschitz constant L_0 under normal noise in d dimensions.

    Raises:
        ValueError: if the standard deviation is not positive.
    """
    return lipschitz * dimension / _positive(std)


def uniform_constant(lipschitz: float, dimension: int, std: float) -> float:
    """Smoothness 2 sqrt(d) L_0 / c_l of a function with Lipschitz constant L_0 under uniform noise in d dimensions.

    The lemma behind it has c_l for the full width of the noise. Noise with a standard deviation of c_l is wider, by sqrt(12): the bound holds
    with that factor to spare.

    Raises:
        ValueError: if the standard deviation is not positive.
    """
    return 2 * math.sqrt(dimension) * lipschitz / _positive(std)


def layer_constants(
    norms: Sequence[float], dimensions: Sequence[int], stds: Sequence[float], inputs: Sequence[float], activation: float = 1.0
) -> LayerConstants:
    """Smoothness of a perturbed embedding in the parameters of each layer, by the recursion of Theorem 5 from the last layer down.

    The first term of the recursion has |w_{l+1}| once, as printed, where the chain rule gives its square. L_b is a bound all the same: the
    second term is one alone.

    Args:
        norms: operator norms |w_l|.
        dimensions: outputs d of each layer.
        stds: c_l of the uniform noise below the last layer, then c of the normal noise.
        inputs: E|u_{l-1}|, mean norms of what goes into each layer.
        activation: Lipschitz constant L_0 of the activations; 1 for ReLU, tanh and the identity.

    Raises:
        ValueError: if there is no noise somewhere, or the lists differ in length.
    """
    _check_lengths(norms, dimensions, stds, inputs)
    biases = [gaussian_constant(activation, dimensions[-1], stds[-1])]
    above = 1.0  # product of L_0 |w_j| over the layers above l
    for norm, dimension, std in zip(norms[:0:-1], dimensions[-2::-1], stds[-2::-1], strict=True):
        above *= activation * norm
        biases.append(biases[-1] * norm * activation**2 + above * uniform_constant(activation, dimension, std))
    biases.reverse()
    return LayerConstants(biases, [size * constant for size, constant in zip(inputs, biases, strict=True)])


def client_constant(
    constants: LayerConstants, loss_lipschitz: float, loss_smoothness: float, embedding_lipschitz: float, regulariser: float = 0.0
) -> float:
    """Smoothness of the objective in the parameters of a client: L_theta = L_{l,h} (L^0_h)^2 + L^0_l sum_l (L_w(l) + L_b(l)) + L_r.

    Args:
        constants: of the client's layers.
        loss_lipschitz: L^0_l, Lipschitz constant of the loss in the embedding; sqrt(2) in logits of a cross-entropy.
        loss_smoothness: L_{l,h}, smoothness of the loss in the embedding; 1/2 in logits of a cross-entropy.
        embedding_lipschitz: L^0_h, Lipschitz constant of the embedding in the parameters.
        regulariser: L_r, smoothness of the regulariser: its coefficient for r = L_r/2 |theta|^2.
    """
    return loss_smoothness * embedding_lipschitz**2 + loss_lipschitz * (sum(constants.weights) + sum(constants.biases)) + regulariser


def printed_bias(clients: int, norms: Sequence[float], stds: Sequence[float], activation: float = 1.0, loss_lipschitz: float = 1.0) -> float:
    """How far the noise moves the objective, as printed: M (sum_j prod_{l>=j} L_0^2 |w_l|^2)^(1/2) (sum_l c_l^2)^(1/2).

    This is no bound where |w_j| is below 1, as the noise of layer j enters after w_j, nor in more than one dimension: see `smoothing_bias`.

    Args:
        clients: M, all with such a net.
        norms: operator norms |w_l|.
        stds: c_l of the uniform noise below the last layer, then c of the normal noise.
        activation: Lipschitz constant of the activations.
        loss_lipschitz: Lipschitz constant of the loss in a client's embedding, which the paper leaves out.

    Raises:
        ValueError: if the lists differ in length.
    """
    _check_lengths(norms, stds)
    gains = [math.prod(activation * norm for norm in norms[layer:]) for layer in range(len(norms))]
    return clients * loss_lipschitz * math.hypot(*gains) * math.hypot(*stds)


def smoothing_bias(
    clients: int, norms: Sequence[float], dimensions: Sequence[int], stds: Sequence[float], activation: float = 1.0, loss_lipschitz: float = 1.0
) -> float:
    """How far the noise moves the objective at most: M L_l (sum_j prod_{l>j} L_0^2 |w_l|^2)^(1/2) L_0 (sum_l d_l c_l^2)^(1/2).

    The noise Z_j of layer j moves the embedding by L_0 prod_{l>j} (L_0 |w_l|) |Z_j| at most, and E|Z_j|^2 = d_j c_j^2.

    Args:
        clients: M, all with such a net.
        norms: operator norms |w_l|.
        dimensions: outputs d_l of each layer.
        stds: see `printed_bias`.
        activation: see `printed_bias`.
        loss_lipschitz: Lipschitz constant of the loss in a client's embedding.

    Raises:
        ValueError: if the lists differ in length.
    """
    _check_lengths(norms, dimensions, stds)
    gains = [activation * math.prod(activation * norm for norm in norms[layer + 1 :]) for layer in range(len(norms))]
    sizes = [math.sqrt(dimension) * std for dimension, std in zip(dimensions, stds, strict=True)]
    return clients * loss_lipschitz * math.hypot(*gains) * math.hypot(*sizes)


@torch.no_grad()
def operator_norms(bottom: Bottom) -> list[float]:
    """Return the operator norms |w_l| of the layers of a linear net or an MLP.

    Raises:
        ValueError: if the net has other layers, whose norm is not that of a matrix.
    """
    if not isinstance(bottom, (LinearBottom, MlpBottom)):
        raise ValueError(f"the constants of Theorem 5 are for fully connected nets, not for {type(bottom).__name__}: choose kind linear or mlp")
    return [float(torch.linalg.matrix_norm(parameter, 2)) for parameter in bottom.parameters() if parameter.dim() == 2]


def _positive(std: float) -> float:
    if not std > 0:
        raise ValueError(f"noise with a standard deviation of {std} smooths nothing: give every layer a positive one")
    return std


def _check_lengths(*lists: Sequence[float]) -> None:
    lengths = [len(values) for values in lists]
    if len(set(lengths)) > 1 or not lengths[0]:
        raise ValueError(f"the lists of the layers have the lengths {lengths}: give one entry a layer in each")
