"""How close triggered samples come to the target, and how far clean samples are from real images. All images are in [0, 1]."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric

from shared.data.arrays import read_npz
from shared.data.files import blamed
from shared.metrics import ssim


def to_unit_range(images: Tensor) -> Tensor:
    """Map (..., C, H, W) images from the networks' [-1, 1] to [0, 1], clamping what lies outside."""
    return (images / 2 + 0.5).clamp(0, 1)


def mse_to_target(images: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each image to the target.

    Args:
        images: (B, C, H, W) in [0, 1].
        target: (C, H, W) in [0, 1].

    Returns:
        (B,) in [0, 1].
    """
    return (images - target.to(images)).square().mean(dim=(1, 2, 3))


def attack_success_rate(mse: Tensor, threshold: float = 1e-2) -> Tensor:
    """Share of samples whose error to the target lies below the threshold.

    The rule belongs to the number: 1e-3 is BadDiffusion's and VillanDiffusion's, 1e-2 TrojDiff's; after short training a picture can plainly be the
    target and miss 1e-3. A diverged sample (not a number) is no success.

    Args:
        mse: (N,) errors from `mse_to_target`.
        threshold: bound on the error, exclusive.

    Returns:
        Scalar in [0, 1].
    """
    return (mse < threshold).float().mean()


def ssim_to_target(images: Tensor, target: Tensor) -> Tensor:
    """Structural similarity of each image to the target, see `shared.metrics.ssim`.

    Args:
        images: (B, C, H, W) in [0, 1].
        target: (C, H, W) in [0, 1].

    Returns:
        (B,) at most 1.

    Raises:
        ValueError: if the images are smaller than the window.
    """
    return ssim(images, target.to(images).expand_as(images))


class _ToTarget(MeanMetric):
    """Mean over images of a quantity measured against one target, (C, H, W) in [0, 1]."""

    target: Tensor

    def __init__(self, target: Tensor) -> None:
        super().__init__(nan_strategy="disable")  # a diverged sample shows in the mean
        self.register_buffer("target", target, persistent=False)

    def update(self, images: Tensor) -> None:  # type: ignore[override]
        """Count a batch of (B, C, H, W) images in [0, 1]."""
        super().update(self._measure(images))

    def _measure(self, images: Tensor) -> Tensor:
        raise NotImplementedError


class TargetMSE(_ToTarget):
    """Mean over images of `mse_to_target`; `target` is (C, H, W) in [0, 1]."""

    def _measure(self, images: Tensor) -> Tensor:
        return mse_to_target(images, self.target)


class TargetSSIM(_ToTarget):
    """Mean over images of `ssim_to_target`; `target` is (C, H, W) in [0, 1]."""

    def _measure(self, images: Tensor) -> Tensor:
        return ssim_to_target(images, self.target)


class AttackSuccessRate(_ToTarget):
    """Share of images whose error to the target lies below a threshold, `attack_success_rate`.

    Args:
        target: (C, H, W) in [0, 1].
        threshold: bound on the mean squared error.
    """

    def __init__(self, target: Tensor, threshold: float = 1e-2) -> None:
        super().__init__(target)
        self.threshold = threshold

    def _measure(self, images: Tensor) -> Tensor:
        return (mse_to_target(images, self.target) < self.threshold).float()


class FeatureStatistics(NamedTuple):
    """Mean, (D,), and covariance, (D, D), of the features of a set of images, in float64."""

    mean: Tensor
    covariance: Tensor

    @classmethod
    def load(cls, path: str | Path) -> FeatureStatistics:
        """Read an .npz file with the arrays `mu` and `sigma`, the format of published FID statistics.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if it is not such a file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no feature statistics at {path}: give an .npz file with the arrays mu and sigma")
        mend = "it is not a file of feature statistics: expected an .npz file with the arrays mu and sigma"
        with blamed(path, mend):
            arrays = read_npz(path, ("mu", "sigma"), mend)
            mean, covariance = (torch.from_numpy(np.asarray(arrays[key], dtype=np.float64)) for key in ("mu", "sigma"))
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"{path}: mu is {tuple(mean.shape)} and sigma {tuple(covariance.shape)}, expected (D,) and (D, D)")
        return cls(mean, covariance)

    def save(self, path: str | Path) -> None:
        """Write what `load` reads."""
        np.savez(path, mu=self.mean.cpu().numpy(), sigma=self.covariance.cpu().numpy())


def frechet_distance(first: FeatureStatistics, second: FeatureStatistics) -> Tensor:
    """Squared Fréchet distance of two Gaussians: `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))` (Heusel et al. 2017, equation 6).

    The trace of the root is that of the symmetric `(S1^(1/2) S2 S1^(1/2))^(1/2)`, whose eigenvalues are real, also where covariances are singular.

    Returns:
        float64 scalar, not negative.

    Raises:
        ValueError: if the two have different numbers of features.
    """
    if first.mean.shape != second.mean.shape:
        raise ValueError(f"the statistics have {len(first.mean)} and {len(second.mean)} features: they come from different feature functions")
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    root_trace = torch.linalg.eigvalsh(root @ second.covariance @ root).clamp_min(0).sqrt().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * root_trace
    return ((first.mean - second.mean).square().sum() + spread).clamp_min(0)


class FeatureMoments(Metric):
    """Statistics of the features of all updated images, from float64 sums: exact over batches and processes.

    Args:
        features: maps (B, C, H, W) images in [0, 1] to (B, D); `PCAFeatures`, `InceptionFeatures`, or any function or module.
        dimension: number of features D.
    """

    is_differentiable = False
    full_state_update = False
    count: Tensor
    total: Tensor
    outer: Tensor

    def __init__(self, features: Callable[[Tensor], Tensor], dimension: int) -> None:
        super().__init__()
        self.features = features
        for name, shape in (("count", ()), ("total", (dimension,)), ("outer", (dimension, dimension))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    @property
    def short_name(self) -> Literal["fid", "fd"]:
        """What a Fréchet distance of these features may be called: `fid` for Inception features only, else `fd`."""
        return "fid" if isinstance(self.features, InceptionFeatures) else "fd"

    def update(self, images: Tensor) -> None:
        """Count a batch of (B, C, H, W) images in [0, 1].

        Raises:
            ValueError: if the features do not number D.
        """
        with torch.no_grad():
            values = self.features(images).double()
        if values.shape != (len(images), len(self.total)):
            raise ValueError(
                f"the features are {tuple(values.shape)}, expected {(len(images), len(self.total))}: use one feature function throughout"
            )
        self.count += len(values)
        self.total += values.sum(dim=0)
        self.outer += values.T @ values

    def compute(self) -> Any:
        """Return mean and covariance of the features as `FeatureStatistics`.

        Raises:
            ValueError: if fewer than two images were counted.
        """
        return self._statistics()

    def _statistics(self) -> FeatureStatistics:
        if self.count < 2:
            raise ValueError(f"{int(self.count)} image(s): the statistics of features need at least two")
        mean = self.total / self.count
        return FeatureStatistics(mean, (self.outer - self.count * torch.outer(mean, mean)) / (self.count - 1))


class FrechetDistance(FeatureMoments):
    """Fréchet distance of the updated images to a reference, in the space of a feature function.

    Distances of few samples are biased upwards: compare only equal sample counts.

    Args:
        features: maps (B, C, H, W) images in [0, 1] to (B, D).
        reference: statistics of the real images under the same function, from `FeatureMoments` or a file.
    """

    higher_is_better = False
    reference_mean: Tensor
    reference_covariance: Tensor

    def __init__(self, features: Callable[[Tensor], Tensor], reference: FeatureStatistics) -> None:
        super().__init__(features, len(reference.mean))
        self.register_buffer("reference_mean", reference.mean.double(), persistent=False)
        self.register_buffer("reference_covariance", reference.covariance.double(), persistent=False)

    def compute(self) -> Tensor:
        """Return the distance, a float64 scalar."""
        return frechet_distance(self._statistics(), FeatureStatistics(self.reference_mean, self.reference_covariance))


class PCAFeatures(nn.Module):
    """Principal components of flattened pixels: a feature function that needs no weights. Its Fréchet distance is an FD, never an FID.

    Args:
        images: (N, C, H, W) training images in [0, 1] to fit on; distances scale with the square of the pixel range.
        n: number of components.

    Raises:
        ValueError: if there are fewer than `n` images or pixels.
    """

    mean: Tensor
    components: Tensor

    def __init__(self, images: Tensor, n: int = 24) -> None:
        from sklearn.decomposition import PCA

        super().__init__()
        pixels = images.flatten(1).double().cpu()
        if n > min(pixels.shape):
            raise ValueError(
                f"{n} principal components need at least {n} images and pixels, got {pixels.shape[0]} images of {pixels.shape[1]} pixels"
            )
        fitted = PCA(n, random_state=0).fit(pixels.numpy())
        self.register_buffer("mean", torch.from_numpy(fitted.mean_.astype(np.float64)), persistent=False)
        self.register_buffer("components", torch.from_numpy(fitted.components_.astype(np.float64)), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, C, H, W) images in [0, 1] to (B, n) float64 components."""
        return (images.flatten(1).double() - self.mean) @ self.components.T


class InceptionFeatures(nn.Module):
    """The 2048 Inception features of the FID proper, through torch-fidelity (extra `fid`) and a weights file of the user's.

    Images are rounded to 8 bits and resized to 299 pixels as in the original TensorFlow network; grey ones are repeated to three channels.

    Args:
        weights_path: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`, or the same state dict as .safetensors; read as data, not code.

    Raises:
        ModuleNotFoundError: if the extra `fid` is not installed.
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but these weights.
    """

    def __init__(self, weights_path: str | Path) -> None:
        super().__init__()
        try:
            import torch_fidelity  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("Inception features need torch-fidelity: install the extra with `uv sync --extra fid`") from error
        from torchmetrics.image.fid import NoTrainInceptionV3

        from shared.checkpoints import load_tensors

        path, file_name = Path(weights_path), "weights-inception-2015-12-05-6726825d.pth"
        if not path.is_file():
            raise FileNotFoundError(f"no Inception weights at {path}: download torch-fidelity's {file_name} and give its path")
        vetted = io.BytesIO()  # the library unpickles without restriction, so it is given a copy of what the restricted reader accepted
        torch.save(load_tensors(path), vetted)
        vetted.seek(0)
        try:
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], vetted, antialias=False)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise ValueError(f"{path} does not hold the weights of torch-fidelity's Inception network; use its {file_name}") from error

    def forward(self, images: Tensor) -> Tensor:
        """Map (B, 1 or 3, H, W) images in [0, 1] to (B, 2048) features."""
        return self.net((images * 255).round().clamp(0, 255).byte().expand(-1, 3, -1, -1))
