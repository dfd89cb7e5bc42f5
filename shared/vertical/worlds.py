"""Records of scikit-learn's that need no download."""

from __future__ import annotations

import torch

from shared.data.offline import digits
from shared.vertical.records import Records, Split, check_split


def digit_records(split: Split, seed: int = 0, size: int = 16) -> Records:
    """Scikit-learn's handwritten digits of 8 x 8 pixels, enlarged bilinearly: 1400 for training, 397 for test.

    Args:
        split: train or test.
        seed: seed of the split.
        size: height and width of the pictures, in pixels.

    Returns:
        Pictures (N, 1, size, size); the label is the digit.

    Raises:
        ValueError: if an argument is out of its range.
    """
    check_split(split)
    drawn = digits(split, size, 1, seed)
    return Records(drawn.images, drawn.labels, drawn.class_names)


def tumours() -> Records:
    """Scikit-learn's breast cancer table of 30 numbers of 569 tumours in their own units, undivided.

    Returns:
        Table (569, 30) float64; the label is 0 for malignant, 1 for benign; ids are the rows of scikit-learn's table.
    """
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    features, labels = torch.from_numpy(data.data), torch.from_numpy(data.target).long()
    names = tuple(str(name) for name in data.target_names), tuple(str(name) for name in data.feature_names)
    return Records(features, labels, *names, tuple(str(row) for row in range(len(labels))))
