"""What makes forward passes cheaper: folded normalisation layers, and the largest batch that fits."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from shared.smoothing.engine import SmoothedClassifier
from shared.smoothing.stream import SELECTION
from shared.smoothing.votes import Work, evaluating

CPU_BATCH = 256
"""Images of a batch on a CPU: more do not make it faster, and leave its cache."""


def folded(network: nn.Module) -> nn.Module:
    """Return a copy in evaluation mode whose convolutions hold the batch normalisations that follow them, where torch.fx can trace the network.

    The copy's logits differ by rounding: it is another classifier, so certify and deploy the same one.

    Args:
        network: any network; one that cannot be traced comes back as a plain copy.
    """
    duplicate = copy.deepcopy(network).eval()
    try:
        fused: nn.Module = fuse(duplicate)
    except Exception:  # torch.fx executes the network's code with symbols: there is no end to what that may raise
        return duplicate
    return fused.eval()


def find_batch_size(classifier: SmoothedClassifier, image: Tensor, limit: int = 1 << 14) -> int:
    """Double the number of copies in a batch until the device's memory does not hold them; on a CPU return a number that is good there.

    Args:
        classifier: the smoothed classifier, whose `batch_size` stays as it is.
        image: (...) one of the images.
        limit: the most copies to try.

    Returns:
        The largest number that worked, for `SmoothedClassifier(batch_size=...)`.

    Raises:
        torch.OutOfMemoryError: if a single copy is too much.
    """
    if classifier.device.type == "cpu":
        return CPU_BATCH

    def run(size: int) -> None:
        counter = classifier.counter(slots=1, stages=1, batch_size=size)
        with evaluating(classifier.branches):
            counter.load(0, image)
            counter.count([Work(0, 0, SELECTION, 0, size)])
        torch.cuda.synchronize(classifier.device)

    return largest(run, limit)


def largest(run: Callable[[int], object], limit: int) -> int:
    """Return the largest power of two up to `limit` that `run` can bear: the last before torch.OutOfMemoryError.

    Raises:
        torch.OutOfMemoryError: if one is too many.
    """
    run(1)
    size = 1
    while 2 * size <= limit:
        try:
            run(2 * size)
        except torch.OutOfMemoryError:
            break
        size *= 2
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # what the attempt that failed had reserved
    return size
