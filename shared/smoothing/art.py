"""Randomized smoothing with the calls of ART's `PyTorchRandomizedSmoothing` (Adversarial Robustness Toolbox): NumPy in, NumPy out; ART is not needed.

classifier = RandomizedSmoothing(network, nb_classes=10, scale=0.25, alpha=0.001, sample_size=100)
classes, radii = classifier.certify(x_test, n=100_000, batch_size=1000)    # -1 and 0.0 where it abstains
one_hot = classifier.predict(x_test)                                       # rows of zeros where it abstains

Other than there, memory does not grow with n, radii are rounded down and never up, and integers are not taken for pixels of [0, 1].
"""

from __future__ import annotations

import secrets
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shared.smoothing.budget import Budget
from shared.smoothing.certificates import Smoothing
from shared.smoothing.engine import SmoothedClassifier

_SLACK = 1e-4  # how far resized images may leave [0, 1]
_CHANNELS = (1, 3, 4)


class RandomizedSmoothing:
    """A classifier of NumPy arrays that is smoothed by Gaussian noise (Cohen et al. 2019); the arguments may be changed between calls, as in ART.

    Args:
        model: maps (B, ...) images in [0, 1] to (B, K) logits, its normalisation included; it is evaluated, never trained.
        nb_classes: K.
        scale: standard deviation of the noise, in units of [0, 1] images.
        alpha: failure probability of a certificate or a prediction.
        sample_size: draws that choose the class to certify, and all draws of a prediction.
        device: where to compute; None: where the model is.
        key: 64 bits that the noise follows from, so that results can be repeated; None draws fresh ones at every call, so that nobody can fit images
            to the noise.
    """

    def __init__(
        self,
        model: nn.Module,
        nb_classes: int,
        scale: float = 0.1,
        alpha: float = 0.001,
        sample_size: int = 32,
        device: torch.device | str | None = None,
        key: int | None = None,
    ) -> None:
        self.model, self.nb_classes, self.scale, self.alpha, self.sample_size = model, nb_classes, scale, alpha, sample_size
        self.device, self.key = device, key

    def certify(self, x: np.ndarray, n: int, batch_size: int = 32) -> tuple[np.ndarray, np.ndarray]:
        """Certify images.

        Args:
            x: (N, ...) images, as in `images_of`.
            n: draws of an image that are counted; at most alpha^(1/n) can be shown of a class's probability, so alpha = 0.001 needs n >= 10.
            batch_size: noised copies in a forward pass; results do not depend on it.

        Returns:
            (N,) int64 classes, -1 for abstentions, and (N,) float64 l2 radii, 0 for abstentions.

        Raises:
            ValueError: if the array does not hold images.
        """
        results = self._smoothed(n, batch_size).certify(images_of(x))
        certificates = [result.certificate for result in results]
        return np.array([found.predicted for found in certificates], dtype=np.int64), np.array([found.radius for found in certificates])

    def predict(self, x: np.ndarray, batch_size: int = 128, is_abstain: bool = True, **kwargs: Any) -> np.ndarray:
        """Predict the classes of images from `sample_size` draws each.

        Args:
            x: (N, ...) images, as in `images_of`.
            batch_size: noised copies in a forward pass.
            is_abstain: abstain where the top class does not beat the second at failure probability alpha; else the most frequent class is returned,
                with no guarantee.
            kwargs: `verbose`, which ART's callers pass on; there is nothing to show.

        Returns:
            (N, K) float32 one-hot rows; rows of zeros for abstentions.

        Raises:
            ValueError: if the array does not hold images.
            TypeError: if there are other arguments.
        """
        if unknown := set(kwargs) - {"verbose"}:
            raise TypeError(f"predict takes x, batch_size, is_abstain and verbose, not {', '.join(sorted(unknown))}")
        smoothed, images = self._smoothed(1, batch_size), images_of(x)
        classes = smoothed.predict(images, self.alpha if is_abstain else 1.0, self.sample_size, smoothed.key).classes.numpy()
        rows = np.zeros((len(classes), self.nb_classes), dtype=np.float32)
        given = classes >= 0
        rows[given, classes[given]] = 1
        return rows

    def _smoothed(self, draws: int, batch_size: int) -> SmoothedClassifier:
        first = next(self.model.parameters(), None)
        device = self.device or (torch.device("cpu") if first is None else first.device)
        budget = Budget(selection=self.sample_size, draws=draws)
        key = secrets.randbits(64) if self.key is None else self.key
        return SmoothedClassifier(
            self.model.to(device), self.nb_classes, Smoothing((self.scale,), alpha=self.alpha), budget, key, batch_size=batch_size, device=device
        )


def images_of(x: np.ndarray) -> Tensor:
    """Check an array of images.

    Args:
        x: (N, C, H, W), or (N, ...) of another number of axes: floating numbers in [0, 1], or uint8, which are divided by 255. Certificates are about
            the values in float32.

    Returns:
        (N, ...) float32 in [0, 1].

    Raises:
        ValueError: if the type, the range or the order of the axes is another, or values are missing; the message says what to do.
    """
    array = np.asarray(x)
    if array.ndim < 2:
        raise ValueError(f"expected a batch of images (N, C, H, W), got the shape {array.shape}: put a single one in as x[None]")
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"images are of type float32, float64 or uint8, got {array.dtype}: convert them, x.astype('float32')")
    if array.ndim == 4 and array.shape[1] not in _CHANNELS and array.shape[3] in _CHANNELS:
        raise ValueError(f"the shape {array.shape} looks like (N, H, W, C): bring the channels forward with x.transpose(0, 3, 1, 2)")
    if array.dtype == np.uint8:
        return torch.from_numpy(array.astype(np.float32)).div_(255)
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array)).sum())} values of the images are NaN or infinite")
    if array.size and (array.min() < -_SLACK or array.max() > 1 + _SLACK):
        found = f"values from {array.min():.4g} to {array.max():.4g}"
        mend = "divide by 255, or give uint8" if array.min() >= 0 else "undo their normalisation, and let the model's first layer do it"
        raise ValueError(f"images lie in [0, 1], in whose units the scale and the radii are; got {found}: {mend}")
    return torch.from_numpy(array.astype(np.float32))
