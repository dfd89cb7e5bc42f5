"""Where half precision would not do."""

from __future__ import annotations

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """Return whole numbers, booleans and numbers of half precision as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
