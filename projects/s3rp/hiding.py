"""What a network is not shown, so that it learns to fill gaps and to forecast, and is judged by what it has not seen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from projects.s3rp.sets import Batch
from shared.distributed import rank
from shared.seeding import generator


def shown_of(given: Any, batch: Batch, step: int | None) -> tuple[Tensor, Tensor]:
    """Hide pixels and last frames from a network.

    Args:
        given: the module's `forecast`, `lambda_forecast`, `hide` and `seed`.
        batch: see `Batch`.
        step: of the training, every other of which hides last frames if they have a weight; None for validation, which always does.

    Returns:
        (B, T, h, w) bool, what the network sees; and True in the frames that it has to forecast.
    """
    mask = batch["mask"]
    ahead = torch.zeros_like(mask)
    if given.forecast and mask.shape[1] > given.forecast + 1 and (step is None or (given.lambda_forecast and step % 2)):
        ahead[:, -given.forecast :] = True
    shown = mask & ~ahead
    return shown & (_draws(given.seed, batch, step) >= given.hide) if given.hide else shown, ahead & mask


def _draws(seed: int, batch: Batch, step: int | None) -> Tensor:
    """Draw (B, T, h, w) numbers in [0, 1): a function of the step and the process, in validation of each sequence's number."""
    mask = batch["mask"]
    if step is None:
        rngs = [generator(seed, "validation", number) for number in batch["index"].tolist()]
        return torch.stack([torch.rand(mask.shape[1:], generator=rng) for rng in rngs]).to(mask.device)
    return torch.rand(mask.shape, generator=generator(seed, "hidden", step, rank(), device=mask.device), device=mask.device)
