"""The released test's AUC, to be set beside that of the pooled frames."""

from __future__ import annotations

import torch

from shared.forgery.metrics import Scored, auroc, roc
from shared.seeding import generator


def batch_auroc(scored: Scored, batch_size: int = 24, seed: int = 0) -> float:
    """Average the AUC of batches of shuffled frames, weighted by their size, as the released test does.

    It is no AUC of the set: scores of frames in different batches are never compared. The released test fails at a batch of one class; here such
    batches are left out.

    Args:
        scored: N frames.
        batch_size: frames of a batch; the last one may have fewer.
        seed: seed of the order.

    Returns:
        The average; NaN if no batch has both classes.
    """
    order = torch.randperm(len(scored), generator=generator(seed, "forgery_nas batches"))
    curves = [(len(part), roc(scored.scores[part], scored.labels[part])) for part in order.split(batch_size)]
    found = torch.tensor([(count, auroc(curve)) for count, curve in curves if curve.has_both], dtype=torch.float64).view(-1, 2)
    return float((found[:, 0] * found[:, 1]).sum() / found[:, 0].sum())
