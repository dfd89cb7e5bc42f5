"""Metrics against scipy, scikit-image, torch-fidelity and brute force."""

import numpy as np
import pytest
import scipy.linalg
import skimage.metrics
import torch
from sklearn.datasets import load_digits
from torch import nn

from projects.diff_cleanse.metrics import (
    AttackSuccessRate,
    FeatureMoments,
    FeatureStatistics,
    FrechetDistance,
    InceptionFeatures,
    PCAFeatures,
    TargetMSE,
    TargetSSIM,
    attack_success_rate,
    frechet_distance,
    mse_to_target,
    ssim_to_target,
    to_unit_range,
)


@pytest.fixture(scope="module")
def digits():
    """All digits as 16 x 16 images in [0, 1], shuffled: 1400 to train on, 397 to test."""
    images = torch.from_numpy(load_digits().images / 16)[:, None].float()
    images = nn.functional.interpolate(images, size=16, mode="bilinear")[torch.randperm(1797, generator=torch.Generator().manual_seed(0))]
    return images[:1400], images[1400:]


def near_target(count=6):
    numbers = torch.Generator().manual_seed(0)
    target = torch.rand(3, 16, 16, generator=numbers)
    errors = torch.linspace(0, 0.3, count).view(-1, 1, 1, 1)
    return (target + errors * torch.randn(count, 3, 16, 16, generator=numbers)).clamp(0, 1), target


def test_range():
    assert to_unit_range(torch.tensor([-3.0, -1.0, 0.0, 0.5, 1.0, 9.0])).tolist() == [0.0, 0.0, 0.5, 0.75, 1.0, 1.0]


def test_mse_and_success_by_brute_force():
    images, target = near_target()
    mse = mse_to_target(images, target)
    expected = [skimage.metrics.mean_squared_error(image.double().numpy(), target.double().numpy()) for image in images]
    assert mse.tolist() == pytest.approx(expected, abs=1e-6)
    for threshold in (1e-3, 1e-2):
        assert attack_success_rate(mse, threshold).item() == pytest.approx(sum(value < threshold for value in expected) / 6)
    assert attack_success_rate(torch.tensor([float("nan"), 0.0])).item() == 0.5


def test_ssim_is_scikit_images():
    images, target = near_target()
    options = {"channel_axis": 0, "data_range": 1.0, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    border = ((0, 0), (5, 5), (5, 5))  # scikit-image leaves out a border of 5 pixels: with a mirrored one added, it counts every pixel
    padded = [np.pad(image.double().numpy(), border, mode="reflect") for image in (*images, target)]
    expected = [skimage.metrics.structural_similarity(image, padded[-1], **options) for image in padded[:-1]]
    assert ssim_to_target(images, target).tolist() == pytest.approx(expected, abs=1e-5)
    assert ssim_to_target(images.double(), target.double()).tolist() == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match=r"at least 11 pixels a side \(its window\), got \(2, 1, 8, 8\)"):
        ssim_to_target(torch.rand(2, 1, 8, 8), torch.rand(1, 8, 8))


def test_metric_objects_are_means_over_all_batches():
    images, target = near_target()
    for metric, values in (
        (TargetMSE(target), mse_to_target(images, target)),
        (TargetSSIM(target), ssim_to_target(images, target)),
        (AttackSuccessRate(target, 1e-2), (mse_to_target(images, target) < 1e-2).float()),
    ):
        for batch in images.split([1, 3, 2]):
            metric.update(batch)
        assert metric.compute().item() == pytest.approx(values.mean().item(), abs=1e-6)
        assert not metric.state_dict()
    diverged = TargetMSE(target)
    diverged.update(torch.full((2, 3, 16, 16), float("nan")))
    assert diverged.compute().isnan()


def statistics(features, *batches):
    """Statistics of the batches' features."""
    moments = FeatureMoments(features, features(batches[0]).shape[1])
    for batch in batches:
        moments.update(batch)
    return moments.compute()


def values_themselves(values):
    return values


def numpy_distance(first, second):
    root = scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T))
    return ((first.mean(0) - second.mean(0)) ** 2).sum() + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * root.real)


def test_frechet_distance_is_scipys():
    numbers = np.random.default_rng(0)
    for size, offset in ((5, 0.0), (24, 1.0), (24, 100.0)):
        first, second = numbers.normal(size=(200, size)) @ numbers.normal(size=(size, size)), offset + numbers.normal(size=(90, size))
        metric = FrechetDistance(values_themselves, statistics(values_themselves, *torch.from_numpy(first).split(64)))
        for batch in torch.from_numpy(second).split(32):
            metric.update(batch)
        assert metric.compute().item() == pytest.approx(numpy_distance(first, second), rel=1e-6)
        assert metric.short_name == "fd"
    few = torch.from_numpy(numbers.normal(size=(10, 24)))  # singular covariance
    own = statistics(values_themselves, few)
    assert frechet_distance(own, own).item() == pytest.approx(0, abs=1e-6)


def test_parts_sum_to_one():
    """The states of two processes, added as torchmetrics adds them, give what one process computes."""
    numbers = torch.Generator().manual_seed(0)
    first, second = torch.randn(50, 8, generator=numbers) + 1e3, torch.randn(70, 8, generator=numbers) + 1e3
    reference = statistics(values_themselves, first)
    whole, one, other = (FrechetDistance(values_themselves, reference) for _ in range(3))
    whole.update(second)
    one.update(second[:13])
    other.update(second[13:])
    for state in ("count", "total", "outer"):
        assert getattr(whole, state).dtype == torch.float64
        setattr(one, state, getattr(one, state) + getattr(other, state))
    assert one.compute().item() == pytest.approx(whole.compute().item(), rel=1e-9)
    assert whole.compute().item() == pytest.approx(numpy_distance(first.double().numpy(), second.double().numpy()), rel=1e-6)


def test_pca_distance_on_digits(digits):
    train, test = digits
    features = PCAFeatures(train)
    reference = statistics(features, *train.split(500))
    metric = FrechetDistance(features, reference)
    values = {}
    for name, images in (("test", test), ("train", train), ("inverted", 1 - test)):
        metric.reset()
        metric.update(images)
        values[name] = metric.compute().item()
    assert features(test).shape == (397, 24)
    assert values["train"] == pytest.approx(0, abs=1e-6)
    assert values["test"] == pytest.approx(0.121, abs=0.002)
    assert values["inverted"] > 20
    with pytest.raises(ValueError, match="24 principal components need at least 24 images and pixels, got 10 images of 256 pixels"):
        PCAFeatures(train[:10])


def test_reference_statistics_on_disk(tmp_path, digits):
    saved = statistics(PCAFeatures(digits[0], 8), digits[1])
    saved.save(tmp_path / "reference.npz")
    loaded = FeatureStatistics.load(tmp_path / "reference.npz")
    assert torch.equal(loaded.mean, saved.mean)
    assert torch.equal(loaded.covariance, saved.covariance)
    with pytest.raises(FileNotFoundError, match=r"no feature statistics at .*absent.npz: give an .npz file"):
        FeatureStatistics.load(tmp_path / "absent.npz")
    np.savez(tmp_path / "other.npz", mean=np.zeros(3))
    np.savez(tmp_path / "objects.npz", mu=np.array([object()]), sigma=np.zeros((1, 1)))
    (tmp_path / "text.npz").write_text("no archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    for name in ("other.npz", "objects.npz", "text.npz", "array.npy"):
        with pytest.raises(ValueError, match=rf"{name}: .*it is not a file of feature statistics: expected an \.npz file"):
            FeatureStatistics.load(tmp_path / name)
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"mu is \(3,\) and sigma \(2, 2\), expected \(D,\) and \(D, D\)"):
        FeatureStatistics.load(tmp_path / "shapes.npz")


def test_messages_of_the_distance(digits):
    reference = statistics(PCAFeatures(digits[0], 8), digits[1])
    metric = FrechetDistance(PCAFeatures(digits[0], 9), reference)
    with pytest.raises(ValueError, match=r"features are \(397, 9\), expected \(397, 8\): use one feature function throughout"):
        metric.update(digits[1])
    with pytest.raises(ValueError, match=r"0 image\(s\): the statistics of features need at least two"):
        metric.compute()
    with pytest.raises(ValueError, match="8 and 3 features: they come from different feature functions"):
        frechet_distance(reference, FeatureStatistics(torch.zeros(3), torch.eye(3)))


@pytest.fixture(scope="module")
def random_inception(tmp_path_factory):
    """torch-fidelity's network with random weights, and the file that holds them."""
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")

    class Untrained(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):
            return None

    empty = tmp_path_factory.mktemp("weights") / "empty.pth"
    torch.save({}, empty)
    torch.manual_seed(0)
    net = Untrained("untrained", ["2048"], str(empty))
    path = empty.parent / "random.pth"
    torch.save(net.state_dict(), path)
    return net, path


def test_inception_features_are_torch_fidelitys(random_inception):
    net, path = random_inception
    features, image = InceptionFeatures(path), torch.rand(1, 1, 16, 16)
    expected = net((image.expand(-1, 3, -1, -1) * 255).round().byte())[0]
    torch.testing.assert_close(features(image), expected)
    assert expected.shape == (1, 2048)
    assert FeatureMoments(features, 2048).short_name == "fid"


class Payload:
    """What a malicious file would run on loading."""

    def __reduce__(self):
        return (pytest.fail, ("code from a weights file was executed",))


def test_weights_files_are_data(tmp_path):
    pytest.importorskip("torch_fidelity")
    with pytest.raises(FileNotFoundError, match=r"no Inception weights at .*absent.pth: download torch-fidelity's"):
        InceptionFeatures(tmp_path / "absent.pth")
    torch.save({"weight": Payload()}, tmp_path / "payload.pth")
    with pytest.raises(ValueError, match=r"payload.pth holds more than tensors and plain values and is not read, for it could execute code"):
        InceptionFeatures(tmp_path / "payload.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth does not hold the weights of torch-fidelity's Inception network; use its weights-inception"):
        InceptionFeatures(tmp_path / "other.pth")


def test_missing_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "torch_fidelity", None)
    with pytest.raises(ModuleNotFoundError, match="install the extra with `uv sync --extra fid`"):
        InceptionFeatures(tmp_path / "weights.pth")
