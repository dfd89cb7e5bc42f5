import numpy as np
import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.linear_model import RidgeClassifier

from shared.poisons import patch_colours, patch_grid, scale_to_l2, scale_to_linf, separable_patches
from shared.seeding import derive_seed

LABELS = torch.arange(500) % 10


@pytest.fixture(scope="module")
def fields():
    return scale_to_l2(separable_patches(LABELS, 10, 3, (32, 32)), 1.0)


def test_norms(fields):
    torch.testing.assert_close(fields.flatten(1).norm(dim=1), torch.ones(500))
    torch.testing.assert_close(scale_to_linf(fields, 4 / 255).flatten(1).abs().amax(1), torch.full((500,), 4 / 255))
    assert not scale_to_l2(torch.zeros(1, 3, 4, 4), 1.0).any()


def test_patches_are_flat_and_cut_at_the_border():
    whole, cut = (separable_patches(LABELS[:4], 10, 3, size) for size in ((24, 40), (19, 33)))
    blocks = whole.reshape(4, 3, 3, 8, 5, 8)
    assert (blocks == blocks[:, :, :, :1, :, :1]).all()
    assert torch.equal(cut, whole[:, :, :19, :33])


def test_points_are_those_of_scikit_learn():
    """Each class gets its own cluster's points, in the order of its labels, whatever the order of classes."""
    labels = torch.tensor([2, 0, 2, 1, 2, 0])
    points, classes = make_classification(
        9, 12, n_informative=12, n_redundant=0, n_classes=3, n_clusters_per_class=1, class_sep=10, flip_y=0, shuffle=False,
        random_state=derive_seed(4, "separable patches") % 2**32,
    )  # fmt: skip
    seen = [0, 0, 0]
    for label, colours in zip(labels.tolist(), patch_colours(labels, 3, 3, (2, 2), seed=4), strict=True):
        np.testing.assert_allclose(colours.flatten(), points[classes == label][seen[label]], rtol=1e-6)
        seen[label] += 1


def test_fields_are_linearly_separable(fields):
    pixels = fields[:, :, ::8, ::8].flatten(1).numpy()
    assert RidgeClassifier().fit(pixels[:300], LABELS[:300]).score(pixels[300:], LABELS[300:]) > 0.99


def test_a_field_is_close_to_its_class_mean(fields):
    """A prototype measured a cosine of 0.92; the clusters' geometry gives 10 / sqrt(10² + 48 / 3) = 0.93."""
    means = torch.stack([fields[label == LABELS].mean(0) for label in range(10)])
    cosines = torch.nn.functional.cosine_similarity(fields.flatten(1), means[LABELS].flatten(1))
    assert 0.89 < float(cosines.mean()) < 0.96


def test_seeds():
    first, again, other = (separable_patches(LABELS[:20], 10, 1, (16, 16), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="1 patch colours cannot separate 10 classes: take smaller patches"):
        separable_patches(LABELS, 10, 1, (8, 8))
    with pytest.raises(ValueError, match=r"labels must lie in \[0, 5\), got 0 to 9"):
        separable_patches(LABELS, 5, 3, (32, 32))
    with pytest.raises(ValueError, match="patch must be between 1 and the shorter side of the image, 16 pixels, got 17"):
        patch_grid((16, 32), 17)
