"""The rivals by name, run on what the server of a federation recorded."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Literal, get_args

from torch.nn.modules.batchnorm import _BatchNorm

from projects.cafe.federation import AttackerView, Federation
from projects.cafe.rivals.aligned import match_rounds
from projects.cafe.rivals.attacks import best_of, dlg, group_inversion, idlg, sapag
from projects.cafe.rivals.dummies import Recovered
from projects.cafe.rivals.priors import Prior, batch_norm_statistics
from projects.cafe.rivals.views import attacked_at, observed_at
from shared.seeding import derive_seed

Rival = Literal["dlg", "idlg", "inverting_gradients", "sapag", "batch_norm", "group"]
"""Names of the attacks on one round."""

RIVALS: dict[str, str] = {
    "dlg": "Deep Leakage from Gradients: squared distance of gradients by L-BFGS (Zhu et al. 2019)",
    "idlg": "Improved DLG: labels from the last layer's gradient, then DLG (Zhao et al. 2020)",
    "inverting_gradients": "Inverting Gradients: direction of gradients and total variation by signed Adam (Geiping et al. 2020)",
    "sapag": "SAPAG: Gaussian kernel of the gradients' distance in each layer by L-BFGS (Wang et al. 2020)",
    "batch_norm": "Inverting Gradients with GradInversion's prior on batch-norm statistics (Yin et al. 2021)",
    "group": "Inverting Gradients from three seeds at once that are pulled to their mean, as in GradInversion (Yin et al. 2021)",
}
"""What each rival is, in a line."""

LBFGS_STEPS, ADAM_STEPS = 300, 1000
"""Steps of dlg, idlg and sapag, as DLG was published, and of the others, whose published 24000 take most of an hour for 40 digits on a core."""
STATISTICS = 0.1
"""Weight of the prior on batch-norm statistics."""
GROUP = 3
"""Members of a group."""


def rival(
    name: Rival,
    view: AttackerView,
    number: int = 0,
    steps: int | None = None,
    seed: int = 0,
    variation: float = 0.2,
    restarts: int = 1,
) -> Recovered:
    """Run a rival on one recorded round.

    If the view tells the labels, every rival takes those of the round's members as known, and iDLG is then DLG with known labels. Records that have
    a block which is no picture are neither smoothed nor kept within [0, 1], since columns are standardised.

    Args:
        name: which rival, see `RIVALS`.
        view: what the server saw.
        number: which of the recorded rounds, from 0.
        steps: iterations; None takes `LBFGS_STEPS` or `ADAM_STEPS`.
        seed: seed of all dummies.
        variation: weight of the total variation of pictures, with those rivals that use Adam.
        restarts: runs from different dummies; the one with the lowest objective is kept.

    Returns:
        The round's records, in no order but that of known labels.

    Raises:
        ValueError: if there is no such rival or round, no run, a gradient is not finite, or `batch_norm` meets nets without batch norms.
    """
    if name not in get_args(Rival):
        raise ValueError(f"unknown rival {name!r}: choose one of {', '.join(RIVALS)}")
    if not 0 <= number < len(view.gradients):
        raise ValueError(f"round {number} is not among the {len(view.gradients)} recorded ones: take 0 to {len(view.gradients) - 1}")
    if restarts < 1:
        raise ValueError(f"a rival runs at least once, got {restarts} restarts")
    return best_of(_attack(name, view, number, steps, variation), [derive_seed(seed, name, restart) for restart in range(restarts)])


def aligned(view: AttackerView, steps: int = 600, lr: float = 0.05, seed: int = 0) -> Recovered:
    """Match the gradients of all recorded rounds, whose members are known: the ablation of steps I and II.

    Args:
        view: what the server saw; labels that it tells are taken as known.
        steps: steps of Adam.
        lr: learning rate at the start.
        seed: seed of the dummies and of the order of rounds.

    Returns:
        All N records in the order of the schedule's columns, see `match_rounds`.

    Raises:
        ValueError: if a round has no member, or a gradient is not finite.
    """
    observed = [observed_at(view, number) for number in range(len(view.gradients))]
    at_round = cache(partial(attacked_at, view))
    return match_rounds(at_round, observed, view.schedule, view.shapes, steps, lr, seed, view.labels)


def _attack(name: Rival, view: AttackerView, number: int, steps: int | None, variation: float) -> Callable[[int], Recovered]:
    """Return a rival as a function of the seed."""
    members = view.schedule[number]
    labels = None if view.labels is None else view.labels[members.to(view.labels.device)]
    upload = attacked_at(view, number), observed_at(view, number), view.shapes, int(members.sum())
    lbfgs, adam = (LBFGS_STEPS, ADAM_STEPS) if steps is None else (steps, steps)
    are_pictures = all(len(shape) == 3 for shape in view.shapes)
    priors = [(STATISTICS, _statistics(view.federation(number)))] if name == "batch_norm" else []

    def by_lbfgs(seed: int) -> Recovered:
        if name == "idlg" and labels is None:
            return idlg(*upload, lbfgs, seed=seed)
        return (sapag if name == "sapag" else dlg)(*upload, lbfgs, seed=seed, labels=labels)

    def by_adam(seed: int) -> Recovered:
        seeds = [derive_seed(seed, member) for member in range(GROUP if name == "group" else 1)]
        weight = variation if are_pictures else 0.0
        return group_inversion(*upload, seeds, steps=adam, variation=weight, labels=labels, priors=priors, boxed=are_pictures)

    return by_lbfgs if name in ("dlg", "idlg", "sapag") else by_adam


def _statistics(federation: Federation) -> Prior:
    if not any(isinstance(module, _BatchNorm) for module in federation.modules()):
        raise ValueError("the rival batch_norm matches statistics of batch norms, but the nets have none: model.batch_norm=true gives pictures' some")
    return batch_norm_statistics(federation, federation.bottoms)
