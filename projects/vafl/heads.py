"""The server's part theta_0: what turns all clients' embeddings of a record into logits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.vafl.bottoms import draw_weights, plain

Kind = Literal["sum", "concat", "weighted"]


class Head(nn.Module):
    """The server's net over the embeddings of all clients, side by side in the order of the clients.

    Args:
        widths: p_m of each client.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.widths = list(widths)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Map embeddings, (B, sum p_m), to logits, (B, K)."""
        raise NotImplementedError

    def pullback(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """Compute the loss and its gradients, also where gradients are switched off.

        Args:
            embeddings: (B, sum p_m).
            labels: (B,) int64 classes.

        Returns:
            The mean cross-entropy of the batch, (); its gradient for the embeddings, (B, sum p_m); and that for each parameter, in the
            order of `parameters()`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            leaf = plain(embeddings).detach().requires_grad_()
            loss = F.cross_entropy(self(leaf), plain(labels))
            signal, *gradients = torch.autograd.grad(loss, [leaf, *self.parameters()])
        return loss.detach(), signal, gradients


class SumHead(Head):
    """Logits are the sum of the clients' embeddings and a bias theta_0, which starts at zero: a logistic regression.

    Its pullback needs no autograd.

    Args:
        widths: p_m of each client, all of them the number of classes.
        classes: K.

    Raises:
        ValueError: if an embedding has not K entries.
    """

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__(widths)
        if any(width != classes for width in widths):
            raise ValueError(f"embeddings of {list(widths)} entries do not sum up to {classes} logits: give every client {classes} outputs")
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, embeddings: Tensor) -> Tensor:
        return embeddings.reshape(len(embeddings), len(self.widths), -1).sum(1) + self.bias

    @torch.no_grad()
    def pullback(self, embeddings: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """See `Head.pullback`; the gradient for the logits is (softmax - one-hot) / B, the same for every client."""
        log_chances = self(embeddings).log_softmax(1)
        share = 1 / len(labels)
        signal = log_chances.exp().mul_(share)  # (B, K)
        signal.scatter_add_(1, labels[:, None], signal.new_full((len(labels), 1), -share))
        return F.nll_loss(log_chances, labels), torch.cat([signal] * len(self.widths), dim=1), [signal.sum(0)]


class ConcatHead(Head):
    """Fully connected layers with ReLUs between them, on the embeddings side by side.

    Args:
        widths: p_m of each client.
        classes: K.
        hidden: widths below the logits; none makes a single linear layer.
        seed: seed of the weights.
    """

    def __init__(self, widths: Sequence[int], classes: int, hidden: Sequence[int] = (), seed: int = 0) -> None:
        super().__init__(widths)
        with torch.device("meta"):
            self.layers = _connected([sum(widths), *hidden, classes])
        draw_weights(self, seed, "head")

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layers(embeddings)


class WeightedHead(Head):
    """A weighted sum of equally long vectors, such as those of the views of a solid, then fully connected layers with ReLUs.

    Args:
        widths: p_m of each client.
        vector: entries of a vector; every client's embedding is a whole number of them.
        classes: K.
        hidden: widths between the sum and the logits.
        seed: seed of the layers; the vectors' weights start at one over their number.

    Raises:
        ValueError: if an embedding is not made of whole vectors.
    """

    def __init__(self, widths: Sequence[int], vector: int, classes: int, hidden: Sequence[int] = (256, 100), seed: int = 0) -> None:
        super().__init__(widths)
        if any(width % vector for width in widths):
            raise ValueError(f"embeddings of {list(widths)} entries are not made of vectors of {vector}: give a size that divides all of them")
        with torch.device("meta"):
            self.layers = _connected([vector, *hidden, classes])
        draw_weights(self, seed, "head")
        vectors = sum(widths) // vector
        self.weights = nn.Parameter(torch.full((vectors,), 1 / vectors))

    def forward(self, embeddings: Tensor) -> Tensor:
        vectors = embeddings.reshape(len(embeddings), len(self.weights), -1)  # (B, vectors, p)
        return self.layers(self.weights @ vectors)


def build_head(kind: Kind, widths: Sequence[int], classes: int, hidden: Sequence[int], seed: int, vector: int | None = None) -> Head:
    """Build the server's net.

    Args:
        kind: "sum" of the embeddings and a bias, layers on their concatenation, or layers on their "weighted" sum.
        widths: p_m of each client.
        classes: K.
        hidden: widths of the layers; a sum has none.
        seed: seed of the weights.
        vector: entries of the vectors of a weighted sum; None takes a client's embedding as one.

    Raises:
        ValueError: if embeddings or hidden widths do not fit the kind.
    """
    if kind == "sum" and hidden:
        raise ValueError(f"a head that sums the embeddings has no hidden widths, but {list(hidden)} were given: leave them out, or choose concat")
    if kind == "sum":
        return SumHead(widths, classes)
    if kind == "concat":
        return ConcatHead(widths, classes, hidden, seed)
    return WeightedHead(widths, min(widths) if vector is None else vector, classes, hidden, seed)


def _connected(sizes: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [nn.Linear(inner, outer), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
