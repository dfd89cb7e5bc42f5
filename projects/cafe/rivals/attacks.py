"""Gradient matching on one batch: DLG, iDLG, Inverting Gradients, SAPAG and several runs as a group (section 2.12)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from projects.cafe.rivals.dummies import Best, Dummies, Recovered, descend_adam, descend_lbfgs, step_decay
from projects.cafe.rivals.labels import as_labels, label_counts
from projects.cafe.rivals.matching import Attacked, Distance, cosine_distance, kernel_distance, squared_distance
from projects.cafe.rivals.priors import Prior, group_consistency, total_variation

Shapes = Sequence[Sequence[int]]
"""Shape of one record's block, a party."""
Weighted = Sequence[tuple[float, Prior]]
"""Priors with their weights in the objective."""


def dlg(
    attacked: Attacked,
    observed: Sequence[Tensor],
    shapes: Shapes,
    batch: int,
    steps: int = 300,
    lr: float = 1.0,
    seed: int = 0,
    labels: Tensor | None = None,
    distance: Distance = squared_distance,
) -> Recovered:
    """Deep Leakage from Gradients: match the gradient in squared distance by L-BFGS, jointly over records and soft labels (Zhu et al. 2019).

    Args:
        attacked: the model whose gradient was observed.
        observed: gradients of the batch's mean loss, as `attacked.parameters`.
        shapes: shape of one record's block, a party.
        batch: K, the number of records.
        steps: L-BFGS iterations.
        lr: length of the quasi-Newton step.
        seed: seed of the dummies.
        labels: (K,) known labels or (K, C) probabilities; None finds soft labels with the records.
        distance: what is lowered.

    Raises:
        ValueError: if the observed gradients are not of the model's parameters, or the labels not of the batch.
    """
    attacked.check(observed)
    dummies = Dummies.draw(shapes, batch, _classes(attacked), observed[-1], seed, labels)
    return descend_lbfgs(dummies, _objective(attacked, observed, dummies, distance), steps, lr)


def infer_labels(attacked: Attacked, observed: Sequence[Tensor], shapes: Shapes, batch: int, seed: int = 0) -> Tensor:
    """Infer a batch's labels from the gradient of the last layer's bias, see `label_counts`; records of random pixels stand for p̄.

    Returns:
        (K,) int64 labels in rising order: how often each occurs, not whose it is.
    """
    attacked.check(observed)
    dummies = Dummies.draw(shapes, max(batch, 32), _classes(attacked), observed[-1], seed)
    with torch.no_grad():
        probabilities = attacked.model(dummies.blocks).softmax(1).mean(0)
    return as_labels(label_counts(observed[-1], batch, probabilities))


def idlg(attacked: Attacked, observed: Sequence[Tensor], shapes: Shapes, batch: int, steps: int = 300, lr: float = 1.0, seed: int = 0) -> Recovered:
    """Improved DLG: infer the labels first, then match the gradient over the records alone (Zhao et al. 2020); see `infer_labels` and `dlg`."""
    return dlg(attacked, observed, shapes, batch, steps, lr, seed, infer_labels(attacked, observed, shapes, batch, seed))


def sapag(
    attacked: Attacked,
    observed: Sequence[Tensor],
    shapes: Shapes,
    batch: int,
    steps: int = 300,
    lr: float = 1.0,
    seed: int = 0,
    labels: Tensor | None = None,
) -> Recovered:
    """SAPAG: as `dlg`, with a Gaussian kernel a layer instead of the squared distance (Wang et al. 2020); see `kernel_distance`."""
    return dlg(attacked, observed, shapes, batch, steps, lr, seed, labels, kernel_distance)


def inverting_gradients(
    attacked: Attacked,
    observed: Sequence[Tensor],
    shapes: Shapes,
    batch: int,
    steps: int = 24000,
    lr: float = 0.1,
    variation: float = 0.2,
    seed: int = 0,
    labels: Tensor | None = None,
    priors: Weighted = (),
) -> Recovered:
    """Inverting Gradients: match the gradient's direction under total variation by signed Adam within [0, 1] (Geiping et al. 2020).

    Args:
        attacked: the model whose gradient was observed.
        observed: gradients of the batch's mean loss, as `attacked.parameters`.
        shapes: shape of one record's block, a party.
        batch: K, the number of records.
        steps: steps of Adam, whose learning rate falls to a tenth at 3/8, 5/8 and 7/8 of them.
        lr: learning rate of Adam.
        variation: weight of the total variation; 0 for blocks that are not images.
        seed: seed of the dummies.
        labels: (K,) known labels or (K, C) probabilities; None finds soft labels with the records.
        priors: further priors and their weights, such as batch-norm statistics at 0.1.

    Raises:
        ValueError: if the observed gradients are not of the model's parameters, the labels not of the batch, or a varied block no image.
    """
    return group_inversion(attacked, observed, shapes, batch, [seed], 0.0, steps, lr, variation, labels, priors)


def group_inversion(
    attacked: Attacked,
    observed: Sequence[Tensor],
    shapes: Shapes,
    batch: int,
    seeds: Sequence[int],
    consistency: float = 0.01,
    steps: int = 24000,
    lr: float = 0.1,
    variation: float = 0.2,
    labels: Tensor | None = None,
    priors: Weighted = (),
) -> Recovered:
    """Run `inverting_gradients` from several seeds at once, each pulled to their mean (group consistency, Yin et al. 2021).

    Args:
        attacked: the model whose gradient was observed.
        observed: gradients of the batch's mean loss, as `attacked.parameters`.
        shapes: shape of one record's block, a party.
        batch: K, the number of records.
        seeds: a seed for each member of the group.
        consistency: weight of the group's disagreement, see `group_consistency`.
        steps: steps of Adam, as for `inverting_gradients`.
        lr: learning rate of Adam.
        variation: weight of the total variation of each member; 0 for blocks that are not images.
        labels: (K,) known labels or (K, C) probabilities; None finds soft labels with the records.
        priors: further priors of each member and their weights.

    Returns:
        The member whose own objective was lowest when the group's was.

    Raises:
        ValueError: as `inverting_gradients`.
    """
    attacked.check(observed)
    weighted = [*priors, (variation, total_variation)] if variation else list(priors)
    group = [Dummies.draw(shapes, batch, _classes(attacked), observed[-1], seed, labels) for seed in seeds]
    objectives = [_objective(attacked, observed, dummies, cosine_distance, weighted) for dummies in group]
    classes = None if labels is None or labels.is_floating_point() else labels
    best = Best(group)

    def objective() -> Tensor:
        losses = torch.stack([each() for each in objectives])
        total = losses.sum()
        if len(group) > 1:
            total = total + consistency * group_consistency([dummies.blocks for dummies in group], classes)
        best.offer(float(total.detach()), losses.tolist())
        return total

    variables = [variable for dummies in group for variable in dummies.variables]
    boxed = [block for dummies in group for block in dummies.blocks]
    descend_adam(variables, objective, steps, lr, step_decay, signed=True, boxed=boxed)
    return min(best.kept, key=lambda recovered: recovered.loss)


def best_of(attack: Callable[[int], Recovered], seeds: Sequence[int]) -> Recovered:
    """Run an attack from several seeds and keep the run with the lowest objective, which the attacker can see."""
    return min((attack(seed) for seed in seeds), key=lambda recovered: recovered.loss)


def _classes(attacked: Attacked) -> int:
    return len(attacked.parameters[-1])


def _objective(attacked: Attacked, observed: Sequence[Tensor], dummies: Dummies, distance: Distance, priors: Weighted = ()) -> Callable[[], Tensor]:
    def objective() -> Tensor:
        gradients = attacked.gradients(dummies.blocks, dummies.targets(), differentiable=True)
        return distance(gradients, observed) + sum(weight * prior(dummies.blocks) for weight, prior in priors)

    return objective
