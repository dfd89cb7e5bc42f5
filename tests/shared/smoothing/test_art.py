import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from shared.smoothing import Budget, SmoothedClassifier, Smoothing
from shared.smoothing.art import RandomizedSmoothing, images_of

KEY = 11


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


class Bright(nn.Module):
    """Class 1 where the mean of all elements is above one half, else 0; never 2."""

    def forward(self, x):
        mean = x.flatten(1).mean(1) - 0.5
        return torch.stack([-mean, mean, torch.full_like(mean, -9.0)], 1)


@pytest.fixture
def x():
    return np.random.default_rng(0).random((5, 3, 6, 6))


def test_certificates_are_the_engines(x):
    model = network()
    classes, radii = RandomizedSmoothing(model, 3, scale=0.3, alpha=0.01, key=KEY).certify(x, n=200, batch_size=64)
    engine = SmoothedClassifier(model, 3, Smoothing((0.3,), alpha=0.01), Budget(selection=32, draws=200), key=KEY)
    expected = [result.certificate for result in engine.certify(torch.from_numpy(x).float())]
    assert classes.tolist() == [certificate.predicted for certificate in expected]
    assert radii.tolist() == [certificate.radius for certificate in expected]
    assert (classes.dtype, radii.dtype, classes.shape, radii.shape) == (np.int64, np.float64, (5,), (5,))
    assert ((classes == -1) == (radii == 0)).all()
    again = RandomizedSmoothing(model, 3, scale=0.3, alpha=0.01, key=KEY).certify(x, n=200, batch_size=7)
    assert all((a == b).all() for a, b in zip((classes, radii), again, strict=True))
    assert model.training


def test_radii_do_not_exceed_the_true_ones():
    x = np.stack([np.full((3, 4, 4), level) for level in (0.4, 0.5, 0.56, 0.7)])
    classes, radii = RandomizedSmoothing(Bright(), 3, scale=0.25, alpha=0.001, sample_size=50).certify(x, n=1000)
    truth = np.abs(x.mean((1, 2, 3)) - 0.5) * np.sqrt(48)
    assert (radii <= truth + 1e-12).all()
    assert classes[[0, 3]].tolist() == [0, 1]
    assert radii[3] == pytest.approx(0.25 * stats.norm.ppf(0.001 ** (1 / 1000)), rel=1e-6)


def test_predictions_are_one_hot_or_zero():
    x = np.stack([np.full((3, 4, 4), level) for level in (0.3, 0.5, 0.7)]).astype(np.float32)
    smoothing = RandomizedSmoothing(Bright(), 3, scale=0.25, alpha=1e-6, sample_size=64, key=KEY)
    rows = smoothing.predict(x, verbose=True)
    assert rows.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert (smoothing.predict(x, batch_size=3) == rows).all()
    rows = smoothing.predict(x, is_abstain=False)
    assert rows.sum(1).tolist() == [1, 1, 1]
    with pytest.raises(TypeError, match="not training_mode"):
        smoothing.predict(x, training_mode=False)


def test_arguments_may_change_between_calls(x):
    smoothing = RandomizedSmoothing(Bright(), 3, scale=0.1)
    x = np.full((1, 3, 4, 4), 0.9)
    first = smoothing.certify(x, n=100)[1]
    smoothing.scale = 0.2
    assert smoothing.certify(x, n=100)[1] == pytest.approx(2 * first)


def test_noise_is_fresh_unless_a_key_is_given(x):
    fresh = RandomizedSmoothing(Bright(), 3, scale=1.0, sample_size=8)
    assert len({fresh.certify(np.full((1, 3, 4, 4), 0.6), n=2000)[1][0] for _ in range(4)}) > 1


def test_types_and_ranges(x):
    pixels = (x * 255).astype(np.uint8)
    expected = torch.from_numpy(pixels.astype(np.float32)) / 255
    assert torch.equal(images_of(pixels), expected)
    assert torch.equal(images_of(expected.numpy()), images_of(expected.double().numpy()))
    assert images_of(x.astype(np.float16)).dtype == torch.float32
    assert images_of(np.zeros((2, 7))).shape == (2, 7)
    assert images_of(np.zeros((0, 3, 4, 4))).shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x * 255, "divide by 255, or give uint8"),
        (lambda x: x - 0.5, "undo their normalisation"),
        (lambda x: np.where(x > 0.5, np.nan, x), "NaN or infinite"),
        (lambda x: x.transpose(0, 2, 3, 1), r"transpose\(0, 3, 1, 2\)"),
        (lambda x: (x * 255).astype(np.int64), "got int64"),
        (lambda x: x[0, 0, 0], r"x\[None\]"),
    ],
)
def test_what_holds_no_images_is_said(x, change, message):
    with pytest.raises(ValueError, match=message):
        RandomizedSmoothing(Bright(), 3).certify(change(x), n=10)


def test_calls_and_results_are_arts(x):
    pytest.importorskip("art", reason="the Adversarial Robustness Toolbox is not installed")
    pytest.importorskip("statsmodels", reason="ART bounds by statsmodels")
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    np.random.seed(0)
    settings = {"nb_classes": 3, "scale": 0.25, "alpha": 0.001, "sample_size": 100}
    images = np.stack([np.full((3, 4, 4), level) for level in (0.4, 0.5, 0.55, 0.8)]).astype(np.float32)
    theirs = PyTorchRandomizedSmoothing(Bright(), loss=nn.CrossEntropyLoss(), input_shape=(3, 4, 4), device_type="cpu", **settings)
    ours = RandomizedSmoothing(Bright(), **settings)
    for found, expected in zip(ours.certify(images, n=8000, batch_size=500), theirs.certify(images, n=8000, batch_size=500), strict=True):
        assert (found.shape, found.dtype.kind) == (np.asarray(expected).shape, np.asarray(expected).dtype.kind)
        np.testing.assert_allclose(found[[0, 3]], np.asarray(expected)[[0, 3]], rtol=0.1)
    found, expected = ours.predict(images), theirs.predict(images)
    assert found.shape == expected.shape
    assert (found[[0, 3]] == expected[[0, 3]]).all()
