"""What a network is judged by: its answers to a whole set, and how far they are from the converged teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy

from projects.rco.losses import kl_divergence, squared_distance
from shared.distributed import gather_rows

if TYPE_CHECKING:
    from projects.rco.faces import FaceProtocol

MANY = 10
"""Classes from which on the top five count too."""


class Answers(NamedTuple):
    """Answers to samples of a set, in its order: (N,) labels, (N, K) logits or (N, d) embeddings, and (N,) the samples' places in the set."""

    labels: Tensor
    outputs: Tensor
    places: Tensor | slice = slice(None)


class Collected:
    """Answers of this process, batch by batch.

    Args:
        width: numbers of an answer.
    """

    def __init__(self, width: int) -> None:
        self._parts = [(torch.empty(0, dtype=torch.long), torch.empty(0, dtype=torch.long), torch.empty(0, width))]

    def add(self, batch: Mapping[str, Tensor], outputs: Tensor) -> None:
        """Keep the answers to a batch."""
        self._parts.append((batch["index"], batch["label"], outputs.detach().float()))

    def gathered(self, device: torch.device) -> Answers:
        """Join the answers of all processes, in the order of the set; all processes get them."""
        index, labels, outputs = (gather_rows(torch.cat([part.to(device) for part in parts])) for parts in zip(*self._parts, strict=True))
        order = index.argsort()
        return Answers(labels[order], outputs[order], index[order])


def measures(answers: Answers, protocol: FaceProtocol | None = None) -> dict[str, float]:
    """Return the accuracy of logits, with that of the top five where there are ten classes, or what a protocol says of embeddings."""
    labels, outputs, _ = answers
    if protocol is not None:
        return protocol.judge(outputs.cpu())
    classes = outputs.shape[1]
    found = {"accuracy": float(multiclass_accuracy(outputs, labels, classes, average="micro"))}
    if classes >= MANY:
        found["top5"] = float(multiclass_accuracy(outputs, labels, classes, top_k=5, average="micro"))
    return found


def distances(outputs: Tensor, teacher: Tensor, embeds: bool, normalise: bool = False) -> Tensor:
    """Return the (B,) congruence losses: KL(teacher || student) in nats at temperature 1, or the squared distance of embeddings.

    Embeddings are brought to unit length first if `normalise` is set, as their loss has it.

    Not the soft cross-entropy, which the paper leaves open: it is ln K for a student at chance, however far the teacher is, and that state of
    a student is where a search for states that it can learn from begins.
    """
    return squared_distance(outputs, teacher, normalise) if embeds else kl_divergence(outputs, teacher, 1.0)


def congruence(answers: Answers, teacher: Tensor, embeds: bool, normalise: bool = False) -> dict[str, float]:
    """Compare answers with the converged teacher's to the whole set, (M, ...); see `distances`.

    Returns:
        `congruence`, the mean congruence loss; and for classifiers `agreement`, the share of samples that both put into one class, and
        `teacher_accuracy`.
    """
    labels, outputs, places = answers
    teacher = teacher[places]
    found = {"congruence": float(distances(outputs, teacher, embeds, normalise).mean())}
    if embeds:
        return found
    said = teacher.argmax(1)
    return found | {
        "agreement": float((outputs.argmax(1) == said).float().mean()),
        "teacher_accuracy": float((said == labels).float().mean()),
    }
