"""Distillation along a route as one writes it down: a loop over batches, anchors kept as whole networks, and losses by their first definitions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.rco.anchors import Route
from projects.rco.data import DistillationData
from projects.rco.objectives import Loss
from projects.rco.recipes import Recipe
from shared.data.crops import crop_and_flip


class KeptAnchors:
    """Anchors as the public re-implementation keeps them: every one a deep copy of the teacher, all of them in memory.

    Its faults are left out: the copies are frozen and in evaluation mode, and the last one teaches to the end.

    Args:
        net: the teacher's network.
        route: its states.
        anchors: teacher epochs, rising.
        epochs: of the student, dealt out to the anchors in equal parts.
    """

    def __init__(self, net: nn.Module, route: Route, anchors: Iterable[int], epochs: int) -> None:
        self.nets: list[nn.Module] = []
        for anchor in anchors:
            net.load_state_dict(route.tensors(anchor))
            self.nets.append(copy.deepcopy(net).eval().requires_grad_(False))
        self.epochs = epochs

    def __call__(self, epoch: int) -> nn.Module:
        """Return the network that teaches a student epoch, from 0."""
        return self.nets[((epoch + 1) * len(self.nets) - 1) // self.epochs]


def batches_of(data: DistillationData, epoch: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give the (B, ...) inputs, not yet normalised, and (B,) labels of an epoch that begins with a step: those that the Trainer is given."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    for number, batch in enumerate(loader, start=step):
        inputs = batch["input"]
        if data.is_augmented:
            inputs = crop_and_flip(inputs, data.shifts(len(inputs), number), 4)
        yield inputs, batch["label"]


def distil(
    student: nn.Module,
    teacher_of: Callable[[int], nn.Module],
    data: DistillationData,
    epochs: int,
    recipe: Recipe,
    loss: Loss,
    after: Callable[[int], None] = lambda epoch: None,
    device: str = "cpu",
    is_mixed: bool = False,
) -> None:
    """Train a student by labels and by its teacher's softened classes, at a constant learning rate.

    Args:
        student: on the device, in training mode.
        teacher_of: gives the teacher of a student epoch, from 0; on the device, in evaluation mode.
        data: set up.
        epochs: of the student.
        recipe: of SGD.
        loss: kind kd.
        after: is told the number of each epoch that has ended.
        device: `cpu`, or `cuda`, where images are laid out for tensor cores.
        is_mixed: whether to compute in bfloat16 where autocast does.
    """
    optimizer, tau, step = recipe.optimizer(student.parameters()), loss.temperature, 0
    for epoch in range(epochs):
        teacher = teacher_of(epoch)
        for inputs, labels in batches_of(data, epoch, step):
            inputs, labels = inputs.to(device), labels.to(device)
            inputs = data.normalise(inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs)
            if device == "cuda" and inputs.dim() == 4:
                inputs = inputs.contiguous(memory_format=torch.channels_last)
            with torch.autocast(device, torch.bfloat16) if is_mixed else nullcontext():
                with torch.no_grad():
                    taught = teacher(inputs)
                outputs = student(inputs)
            soft = F.kl_div(F.log_softmax(outputs.float() / tau, 1), F.softmax(taught.float() / tau, 1), reduction="batchmean")
            total = loss.ce_weight * F.cross_entropy(outputs.float(), labels) + loss.weight("kd") * tau**2 * soft
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            step += 1
        after(epoch)


def dkd_masked(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, tau: float = 4.0) -> Tensor:
    """Decoupled distillation with the target masked by -1000, as it was published; (B, K) logits and (B,) labels to a scalar."""
    target = F.one_hot(labels, student.shape[1]).bool()
    p_s, p_t = ((logits / tau).softmax(1) for logits in (student, teacher))
    b_s, b_t = (torch.stack([(p * target).sum(1), (p * ~target).sum(1)], 1) for p in (p_s, p_t))
    tckd = F.kl_div(b_s.log(), b_t, reduction="batchmean")
    r_s, r_t = (logits / tau - 1000.0 * target for logits in (student, teacher))
    return tau**2 * (alpha * tckd + beta * F.kl_div(r_s.log_softmax(1), r_t.softmax(1), reduction="batchmean"))


def dist_by_cosines(student: Tensor, teacher: Tensor, beta: float = 2.0, gamma: float = 2.0, tau: float = 4.0) -> Tensor:
    """DIST, where Pearson's correlation is the cosine of centred rows or columns; (B, K) logits to a scalar."""
    p_s, p_t = ((logits / tau).softmax(1) for logits in (student, teacher))

    def apart(ours: Tensor, theirs: Tensor) -> Tensor:
        return 1 - F.cosine_similarity(ours - ours.mean(1, keepdim=True), theirs - theirs.mean(1, keepdim=True), eps=1e-12).mean()

    return tau**2 * (beta * apart(p_s, p_t) + gamma * apart(p_s.T, p_t.T))


def contrast_by_loop(student: Tensor, teacher: Tensor, labels: Tensor, tau: float = 0.07) -> Tensor:
    """The contrastive loss sample by sample; (B, d) features and (B,) labels to a scalar."""
    ours, theirs = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    total = student.new_zeros(())
    for one, other in ((ours, theirs), (theirs, ours)):
        for place, anchor in enumerate(one):
            negatives = other[labels != labels[place]]
            scores = torch.cat([(anchor @ other[place])[None], negatives @ anchor]) / tau
            total = total - scores.log_softmax(0)[0]
    return total / (2 * len(labels))
