"""A small certification that tests run in processes of their own, and kill."""

import os
import signal

import torch
from torch import nn

from shared.smoothing import Branch, Budget, CertificationLog, SmoothedClassifier, Smoothing, certify_dataset

EARLY = Budget(selection=50, draws=3000, radii=(0.2, 0.4, 0.6))
FIXED = Budget(selection=50, draws=1500)


def networks():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3)) for _ in range(2)]


def items():
    images = torch.rand(7, 2, 6, 8, generator=torch.Generator().manual_seed(3))
    return [(10 * number, image, number % 3) for number, image in enumerate(images)]


def smoothed(budget, batch_size=64, before=None):
    """Return a classifier of two halves; `before` is called before each forward pass."""

    def classifier(network):
        def classify(parts):
            if before is not None:
                before()
            return network(parts)

        return classify

    left, right = (classifier(network) for network in networks())
    branches = [Branch(left, lambda x: x[..., ::2]), Branch(right, lambda x: x[..., 1::2])]
    return SmoothedClassifier(branches, 3, Smoothing((0.5, 0.5), "joint", 0.01), budget, key=2**63 + 5, batch_size=batch_size)


def certify(folder, budget, rank=0, world_size=1, batch_size=64, before=None, partial_seconds=0.0):
    classifier = smoothed(budget, batch_size, before)
    with CertificationLog(folder, classifier.settings, rank, partial_seconds) as log:
        certify_dataset(classifier, items(), log, rank, world_size)


def certify_as_process(*arguments, **settings):
    torch.set_num_threads(1)
    certify(*arguments, **settings)


def certify_until_killed(folder, budget, batches):
    """Certify until so many batches were classified; then the process is killed without warning."""
    left = iter(range(batches))
    certify_as_process(folder, budget, batch_size=16, before=lambda: next(left, None) is None and os.kill(os.getpid(), signal.SIGKILL))
