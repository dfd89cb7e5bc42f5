"""Gradient matching on one batch: DLG, iDLG, Inverting Gradients, SAPAG and several runs as a group.

What all of these attacks take (some have further arguments):

- attacked: the model whose gradient was observed.
- observed: gradients of the batch's mean loss, as `attacked.parameters`.
- shapes: shape of one record's block, a party.
- batch: K, the number of records.
- steps, lr: iterations of the optimiser, and its learning rate at the start.
- seed: seed of the dummies.
- labels: (K,) known labels or (K, C) probabilities; None finds soft labels with the records.

All raise a ValueError if the observed gradients are not of the model's parameters or not finite, or the labels not of the batch.
"""

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
    """Deep Leakage from Gradients: match the gradient by L-BFGS, jointly over records and soft labels (Zhu et al. 2019).

    `distance` is what is lowered; the paper's is the squared one.
    """
    dummies = _draw(attacked, observed, shapes, batch, seed, labels)
    return descend_lbfgs(dummies, _objective(attacked, observed, dummies, distance), steps, lr)


def infer_labels(attacked: Attacked, observed: Sequence[Tensor], shapes: Shapes, batch: int, seed: int = 0) -> Tensor:
    """Infer a batch's labels from the gradient of the last layer's bias, see `label_counts`; records of random pixels stand for p̄.

    Returns:
        (K,) int64 labels in rising order: how often each occurs, not whose it is.
    """
    dummies = _draw(attacked, observed, shapes, max(batch, 32), seed)
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
    boxed: bool = True,
) -> Recovered:
    """Inverting Gradients: match the gradient's direction under total variation by signed Adam within [0, 1] (Geiping et al. 2020).

    It is a `group_inversion` of a single member, which explains the further arguments.
    """
    return group_inversion(attacked, observed, shapes, batch, [seed], 0.0, steps, lr, variation, labels, priors, boxed)


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
    boxed: bool = True,
) -> Recovered:
    """Run `inverting_gradients` from several seeds at once, each pulled to their mean (group consistency, Yin et al. 2021).

    The learning rate falls to a tenth at 3/8, 5/8 and 7/8 of the steps. Beside what all attacks take:

    - seeds: a seed for each member of the group.
    - consistency: weight of the group's disagreement, see `group_consistency`.
    - variation: weight of the total variation of each member; 0 for blocks that are not images.
    - priors: further priors of each member and their weights, such as batch-norm statistics at 0.1.
    - boxed: whether records are kept within [0, 1]; not for standardised columns of a table.

    Returns:
        The member whose own objective was lowest when the group's was.

    Raises:
        ValueError: as all attacks, or if a varied block is no image.
    """
    weighted = [*priors, (variation, total_variation)] if variation else list(priors)
    group = [_draw(attacked, observed, shapes, batch, seed, labels) for seed in seeds]
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
    within = [block for dummies in group for block in dummies.blocks] if boxed else []
    descend_adam(variables, objective, steps, lr, step_decay, signed=True, boxed=within)
    return min(best.kept, key=lambda recovered: recovered.loss)


def best_of(attack: Callable[[int], Recovered], seeds: Sequence[int]) -> Recovered:
    """Run an attack from several seeds and keep the run with the lowest objective, which the attacker can see."""
    return min((attack(seed) for seed in seeds), key=lambda recovered: recovered.loss)


def _draw(attacked: Attacked, observed: Sequence[Tensor], shapes: Shapes, batch: int, seed: int, labels: Tensor | None = None) -> Dummies:
    """Check what was observed, and draw dummies of as many classes as the last bias has entries."""
    attacked.check(observed)
    return Dummies.draw(shapes, batch, len(attacked.parameters[-1]), observed[-1], seed, labels)


def _objective(attacked: Attacked, observed: Sequence[Tensor], dummies: Dummies, distance: Distance, priors: Weighted = ()) -> Callable[[], Tensor]:
    def objective() -> Tensor:
        gradients = attacked.gradients(dummies.blocks, dummies.targets(), differentiable=True)
        return distance(gradients, observed) + sum(weight * prior(dummies.blocks) for weight, prior in priors)

    return objective
