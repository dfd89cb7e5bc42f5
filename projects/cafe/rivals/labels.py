"""Labels read from the gradients of the last layer, before any record is recovered."""

from __future__ import annotations

import torch
from torch import Tensor


def sign_rule(weight_gradient: Tensor) -> Tensor:
    """Label of a single record: the row that points against all other rows (iDLG, Zhao et al. 2020).

    Row i of the last layer's weight gradient is (p_i - y_i) a^T, a being the layer's input, and p_i - y_i is negative for the label alone. Of two
    classes the rows are opposite and of one length: the label is then taken to be the one with the negative sum, which is right where a >= 0.

    Args:
        weight_gradient: (C, D) of one record.

    Returns:
        () int64.

    Raises:
        ValueError: if the gradient is 0 everywhere.
    """
    if not weight_gradient.any():
        raise ValueError("the last layer's gradient is 0: its sign tells no label (a saturated loss or dead inputs)")
    if len(weight_gradient) == 2:
        return weight_gradient.sum(1).argmin()
    against = weight_gradient @ weight_gradient.T < 0  # (C, C)
    return torch.where(against.sum(1) == len(weight_gradient) - 1, weight_gradient.norm(dim=1), -1).argmax()


def label_counts(bias_gradient: Tensor, batch: int, probabilities: Tensor | None = None) -> Tensor:
    """How often each label occurs in a batch, from the gradient of the last layer's bias: g = p̄ - counts / K.

    p̄, the batch's mean probabilities, is unknown and estimated by the model's answer to dummies. K (p̄ - g) is rounded to whole numbers that sum to
    K, each class getting its whole part and the largest remainders the rest. For K = 1 the one label is the most negative entry, whatever p̄ is.

    Args:
        bias_gradient: (C,) gradient of the mean loss.
        batch: K.
        probabilities: (C,) estimate of p̄, in [0, 1] and of sum 1; None takes 1/C.

    Returns:
        (C,) int64 of sum K.

    Raises:
        ValueError: if `batch` is below 1.
    """
    if batch < 1:
        raise ValueError(f"a batch has at least 1 record, got {batch}")
    classes = len(bias_gradient)
    if batch == 1:
        return torch.nn.functional.one_hot(bias_gradient.argmin(), classes)
    expected = torch.full_like(bias_gradient, 1 / classes) if probabilities is None else probabilities
    shares = (expected - bias_gradient).clamp_min(0)
    shares = batch * shares / shares.sum()
    counts = shares.floor().long()
    left = batch - int(counts.sum())
    counts[(shares - counts).topk(left).indices] += 1
    return counts


def as_labels(counts: Tensor) -> Tensor:
    """List (C,) counts as (K,) labels in rising order."""
    return torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
