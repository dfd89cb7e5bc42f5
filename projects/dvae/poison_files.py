"""Published poisons, in the five forms in which their authors share them, and perturbations that `purify` stored."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from projects.dvae.losses import on_grid
from projects.dvae.sets import MANIFEST, StoredPerturbations
from shared.data.arrays import read_npy
from shared.data.files import BadFileError, first_few, read_image
from shared.data.pickles import StoredArray, read_pickle

PoisonFormat = Literal["pictures", "torch", "pickle", "arrays", "stored"]
"""Forms of poisons.

- pictures: a folder of `0.png`, `1.png`, ..., named by the index in the training set: TAP, AR, ISS.
- torch: a tensor of floats, (N, C, H, W) or (K, C, H, W), perturbations in units of [0, 1] images: EM, the D-VAE's own.
- pickle: a pickled array of int8, (N, C, H, W), perturbations in pixels of 255: REM, SEM.
- arrays: images as .npy, (N, H, W, C), floats in [0, 1] (NTGA) or uint8 (OPS, LSP), with labels, (N,) or one-hot (N, K), in a second file.
- stored: a perturbation set of this project.
"""

Keying = Literal["auto", "sample", "class"]
"""What a perturbation is looked up by: the image's index, its label, or whichever of the two its length fits."""

_ADVICE = "fetch it anew, or name another with data.perturbation"


@dataclass(frozen=True)
class PoisonFile:
    """A poison from a file, ready to be put on images.

    Attributes:
        format: its form.
        is_class_wise: whether there is one perturbation for each class instead of one for each image.
        is_image: whether the file holds the poisoned images themselves, which take the place of the clean ones.
        largest: largest absolute perturbation in pixels of 255, NaN where the file holds images or is read as it is used.
        read: gives the rows of some indices or classes, (B, C, H, W) float32 in units of [0, 1] images.
    """

    format: PoisonFormat
    is_class_wise: bool
    is_image: bool
    largest: float
    read: Callable[[Sequence[int]], Tensor]

    @property
    def description(self) -> str:
        """What it is, in words."""
        what = "poisoned images" if self.is_image else f"perturbations, one for each {'class' if self.is_class_wise else 'image'}"
        return what if math.isnan(self.largest) else f"{what}, of up to {self.largest:.1f} of 255"

    def apply(self, images: Tensor, labels: Tensor, indices: Tensor) -> Tensor:
        """Poison images: clip(x + δ, 0, 1) on the 8-bit grid, with the perturbation's sign kept.

        The original EM code adds the positive half of the noise only, and its ImageNet version looks up noise for single images by their label;
        neither is done here.

        Args:
            images: (B, C, H, W) in [0, 1] on the 8-bit grid.
            labels: (B,) labels.
            indices: (B,) indices in the training set.

        Returns:
            (B, C, H, W) in [0, 1] on the 8-bit grid.
        """
        rows = self.read((labels if self.is_class_wise else indices).tolist()).to(images)
        return on_grid(rows if self.is_image else images + rows)


def read_poison(
    path: str | Path,
    count: int,
    classes: int,
    shape: Sequence[int],
    labels: Tensor,
    format: PoisonFormat | None = None,  # noqa: A002
    keying: Keying = "auto",
) -> PoisonFile:
    """Read a poison for a training set.

    Args:
        path: file or folder.
        count: images N of the training set.
        classes: classes K.
        shape: (C, H, W) of its images.
        labels: (N,) its labels, which those in the file must equal.
        format: form of the poison; None finds it out from what lies there.
        keying: sample or class where the length of a perturbation, being both N and K, does not tell.

    Raises:
        FileNotFoundError: if something is missing; says what.
        BadFileError: if a file is damaged, could run a program, or holds values or sizes that do not fit; says which.
        ValueError: if the labels differ, an option is unknown, or N equals K and `keying` does not decide.
    """
    path = Path(path).expanduser()
    if keying not in get_args(Keying):
        raise ValueError(f"data.perturbation_keying must be one of {', '.join(get_args(Keying))}, got {keying!r}")
    match format or detect_format(path):
        case "pictures":
            return _pictures(path, count, tuple(shape))
        case "torch":
            return _perturbations("torch", path, _torch_tensor(path), count, classes, tuple(shape), keying)
        case "pickle":
            return _perturbations("pickle", path, _int8_array(path), count, classes, tuple(shape), keying)
        case "arrays":
            return _images(path, tuple(shape), labels)
        case "stored":
            return _stored(path, count, tuple(shape), labels)
        case other:
            raise ValueError(f"poisons have one of the forms {', '.join(get_args(PoisonFormat))}, not {other!r}")


def detect_format(path: Path) -> PoisonFormat:
    """Tell a poison's form from what lies there.

    Raises:
        FileNotFoundError: if nothing does.
        BadFileError: if it is none of the forms.
    """
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return "stored"
        if any(path.glob("*.npy")):
            return "arrays"
        if any(path.glob("*.png")):
            return "pictures"
        raise BadFileError(f"{path} holds neither numbered .png files nor .npy files nor a stored set: {_ADVICE}")
    if not path.exists():
        raise FileNotFoundError(f"no poison {path}: correct data.perturbation")
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith(b"\x93NUMPY"):
        return "arrays"
    if start.startswith(b"PK\x03\x04") or start.startswith(_OLD_TORCH):
        return "torch"
    if start.startswith(b"\x80") or path.suffix in (".pkl", ".pickle"):
        return "pickle"
    raise BadFileError(f"{path} is no tensor of torch, no pickle and no .npy array: {_ADVICE}")


_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # the number by which torch before 1.6 begins its files


def _pictures(path: Path, count: int, shape: tuple[int, ...]) -> PoisonFile:
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder of pictures 0.png to {count - 1}.png: correct data.perturbation")
    numbered = {int(file.stem): file for file in path.glob("*.png") if file.stem.isdecimal()}
    missing = [f"{index}.png" for index in range(count) if index not in numbered]
    if missing or len(numbered) > count:
        reason = f"{len(missing)} are missing: {', '.join(first_few(missing, 5))}" if missing else "the training set is smaller"
        raise FileNotFoundError(f"{path} holds {len(numbered)} numbered pictures, expected 0.png to {count - 1}.png: {reason}; {_ADVICE}")

    def read(indices: Sequence[int]) -> Tensor:
        return torch.stack([_picture(numbered[index], shape) for index in indices])

    read([0])
    return PoisonFile("pictures", False, True, float("nan"), read)


def _picture(path: Path, shape: tuple[int, ...]) -> Tensor:
    image = read_image(path, "L" if shape[0] == 1 else "RGB")
    if tuple(image.shape) != shape:
        raise BadFileError(f"{path} has the shape {tuple(image.shape)}, the images of the set have {shape}; {_ADVICE}")
    return image


def _torch_tensor(path: Path) -> Tensor:
    """Load a tensor of floats in units of [0, 1] images."""
    try:
        tensor = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file raises almost anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadFileError(f"{path} is no plain tensor ({reason}), and nothing of it was run: {_ADVICE}") from error
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        what = f"a tensor of {tensor.dtype}" if isinstance(tensor, Tensor) else f"a {type(tensor).__name__}"
        raise BadFileError(f"{path} holds {what}, expected a tensor of floats, (N, C, H, W) or (K, C, H, W): {_ADVICE}")
    tensor = tensor.detach().float()
    if not tensor.isfinite().all():
        raise BadFileError(f"{path} holds values that are not finite: {_ADVICE}")
    if tensor.numel() and float(tensor.abs().max()) > 1:
        raise BadFileError(f"{path} holds perturbations up to {float(tensor.abs().max()):g}, expected units of [0, 1] images: divide it by 255")
    return tensor


def _int8_array(path: Path) -> Tensor:
    """Load a pickled array of int8, in pixels of 255."""
    content: Any = read_pickle(path, "published poison", _ADVICE)
    if not isinstance(content, StoredArray):
        raise BadFileError(f"{path} holds a {type(content).__name__}, expected an array of int8: {_ADVICE}")
    try:
        return torch.from_numpy(content.build(("i1",)).copy())
    except (ValueError, TypeError) as error:
        raise BadFileError(f"{path} holds no array of int8 ({error}): {_ADVICE}") from error


def _perturbations(
    format: PoisonFormat,  # noqa: A002
    path: Path,
    tensor: Tensor,
    count: int,
    classes: int,
    shape: tuple[int, ...],
    keying: Keying,
) -> PoisonFile:
    """Look perturbations up by index or by label."""
    lengths = {"sample": count, "class": classes}
    fitting = [name for name, length in lengths.items() if len(tensor) == length and keying in ("auto", name)] if tensor.ndim == 4 else []
    if not fitting or tuple(tensor.shape[1:]) != shape:
        expected = " or ".join(str((length, *shape)) for name, length in lengths.items() if keying in ("auto", name))
        raise BadFileError(f"{path} holds perturbations of shape {tuple(tensor.shape)}, expected {expected} for this training set: {_ADVICE}")
    if len(fitting) > 1:
        raise ValueError(f"{path} holds {count} perturbations, as many as images and as classes: set data.perturbation_keying to sample or class")
    scale = 255 if tensor.dtype == torch.int8 else 1

    def read(keys: Sequence[int]) -> Tensor:
        return tensor[torch.as_tensor(keys)].float() / scale

    largest = max(abs(float(tensor.min())), abs(float(tensor.max()))) * 255 / scale
    return PoisonFile(format, fitting == ["class"], False, largest, read)


def _images(path: Path, shape: tuple[int, ...], labels: Tensor) -> PoisonFile:
    """Take poisoned images from an array; they must be in the order of the training set, which their labels tell."""
    images, own_labels = read_arrays(path)
    if images.shape != (len(labels), *shape[1:], shape[0]):
        raise BadFileError(f"{path} holds images of shape {images.shape}, expected {(len(labels), *shape[1:], shape[0])} for this set: {_ADVICE}")
    differing = int((own_labels != labels.numpy()).sum())
    if differing:
        advice = "they are of another set or in another order: read them as a set of their own, with data.source arrays"
        raise ValueError(f"the labels beside {path} differ from the training set's for {differing} of {len(labels)} images; {advice}")
    return PoisonFile("arrays", False, True, float("nan"), lambda indices: as_pixels(images[np.asarray(indices)]).float() / 255)


def _stored(path: Path, count: int, shape: tuple[int, ...], labels: Tensor) -> PoisonFile:
    stored = StoredPerturbations(path)
    if len(stored.labels) != count or tuple(stored.read([0]).shape[1:]) != shape or not torch.equal(stored.labels, labels):
        raise BadFileError(f"{path} holds perturbations of another set: its number of images, its labels or its sizes differ; {_ADVICE}")
    return PoisonFile("stored", False, False, float("nan"), stored.read)


def read_arrays(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read images and labels from two .npy files that lie together.

    Args:
        path: the folder, or the file of the images in it.

    Returns:
        (N, H, W, C) uint8, or floats in [0, 1], mapped from the file; and (N,) int64 labels, which may lie there one-hot, (N, K).

    Raises:
        FileNotFoundError: if the folder has no array of images, or none of labels.
        BadFileError: if there are several, a file is damaged, or values are out of range.
    """
    path = Path(path).expanduser()
    folder = path if path.is_dir() else path.parent
    arrays = {file: _map(file) for file in sorted(folder.glob("*.npy"))}
    found = [file for file, array in arrays.items() if array.ndim == 4 and file in ((path,) if path.is_file() else arrays)]
    if not found:
        raise FileNotFoundError(f"no array of images, (N, H, W, C), in {path}: expected one .npy file of images and one of labels")
    if len(found) > 1:
        raise BadFileError(f"{folder} holds several arrays of images ({', '.join(file.name for file in found)}): name one of them")
    images = arrays[found[0]]
    if images.shape[3] not in (1, 3) or len(images) == 0 or not (images.dtype == np.uint8 or images.dtype.kind == "f"):
        raise BadFileError(f"{found[0]} holds {images.dtype} of shape {images.shape}, expected images (N, H, W, C) of uint8 or float with C 1 or 3")
    candidates = {file: label for file, array in arrays.items() if (label := _as_labels(array, len(images))) is not None}
    if len(candidates) != 1:
        names = f"several ({', '.join(file.name for file in candidates)})" if candidates else "none"
        raise FileNotFoundError(f"{folder} holds {names} of the arrays that could be the {len(images)} labels, (N,) or one-hot (N, K): leave one")
    if images.dtype != np.uint8:
        _check_range(found[0], images)
    return images, next(iter(candidates.values()))


def as_pixels(images: np.ndarray) -> Tensor:
    """Turn (B, H, W, C) uint8, or floats in [0, 1], into (B, C, H, W) uint8."""
    pixels = images if images.dtype == np.uint8 else np.round(images * 255).astype(np.uint8)
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2)


def _map(path: Path) -> np.ndarray:
    return read_npy(path, f"it is damaged, or holds Python objects: {_ADVICE}", "c")


def _as_labels(array: np.ndarray, count: int) -> np.ndarray | None:
    """Return (N,) whole numbers if an array holds them as they are or one-hot."""
    if array.shape == (count, 1):
        array = array[:, 0]
    if array.dtype.kind not in "iuf":
        return None
    if array.shape == (count,) and (array.astype(np.int64) == array).all():
        return array.astype(np.int64)
    if array.ndim == 2 and len(array) == count and array.shape[1] > 1 and np.isin(array, (0, 1)).all() and (array.sum(1) == 1).all():
        return array.argmax(1)
    return None


def _check_range(path: Path, images: np.ndarray) -> None:
    for first in range(0, len(images), 256):
        part = images[first : first + 256]
        bad = ~((part >= 0) & (part <= 1))  # true for NaN as well
        if bad.any():
            index = first + int(np.argwhere(bad)[0][0])
            raise BadFileError(f"{path}: image {index} holds {part[bad].flat[0]:g}, expected floats in [0, 1]: repair it, or divide all by 255")
