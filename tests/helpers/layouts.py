"""Writers of miniature data sets in the layouts that users have, byte for byte where a reader depends on it.

Each writer takes the folder to write into, makes what the real archive would unpack to, and returns the folder or file that a user would
name. Pictures and labels are a function of `seed`.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def picture(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Draw a smooth coloured pattern, (H, W, 3) or (H, W) uint8; smooth, so that JPEG keeps it."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0 : 1 : 1j * height, 0 : 1 : 1j * width]
    waves = [np.sin(2 * np.pi * (a * rows + b * columns + c)) for a, b, c in random.uniform(0, 1.5, (channels, 3))]
    image = np.round(127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)
    return image if channels == 3 else image[..., 0]


def save_picture(path: Path, height: int, width: int, channels: int = 3, seed: int = 0) -> Path:
    """Save a `picture`, making its folder; JPEG at quality 95."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(height, width, channels, seed)).save(path, quality=95)
    return path


def write_image_folder(root: Path, count: int = 6, height: int = 20, width: int = 16) -> Path:
    """Write images of several formats, in the folder and two levels below: `0000.png, part/0001.JPG, part/deep/0002.bmp, ...`."""
    for number in range(count):
        folder = (root, root / "part", root / "part" / "deep")[number % 3]
        save_picture(folder / f"{number:04d}{('.png', '.JPG', '.bmp')[number % 3]}", height, width, seed=number)
    return root


def write_class_folder(root: Path, classes: Sequence[str] = ("cat", "dog"), per_class: int = 3, height: int = 20, width: int = 16) -> Path:
    """Write `<class>/<number>.png`, the layout of torchvision's `ImageFolder`."""
    for label, name in enumerate(classes):
        for number in range(per_class):
            save_picture(root / name / f"{number}.png", height, width, seed=100 * label + number)
    return root


def write_pair_folder(root: Path, folders: Sequence[str] = ("images", "masks"), count: int = 4, height: int = 20, width: int = 16) -> Path:
    """Write `<folder>/<number>`: JPEG in the first folder, black-and-white PNG masks in the others."""
    for number in range(count):
        save_picture(root / folders[0] / f"{number:04d}.jpg", height, width, seed=number)
        for place, folder in enumerate(folders[1:], start=1):
            (root / folder).mkdir(parents=True, exist_ok=True)
            mask = picture(height, width, channels=1, seed=100 * place + number) > 127
            Image.fromarray(mask.astype(np.uint8) * 255).save(root / folder / f"{number:04d}.png")
    return root


def write_npz(path: Path, count: int = 5, size: int = 8, key: str | None = None, is_compressed: bool = False) -> Path:
    """Write (N, H, W, 3) uint8 images and (N,) int64 labels; without `key` as positional arrays, `arr_0` and `arr_1`, as samplers leave them."""
    images = np.stack([picture(size, size, seed=number) for number in range(count)])
    labels = np.arange(count) % 10
    save = np.savez_compressed if is_compressed else np.savez
    if key is None:
        save(path, images, labels)
    else:
        save(path, allow_pickle=False, **{key: images, "labels": labels})
    return path


def write_celeba_hq(root: Path, count: int = 4) -> Path:
    """Write `celeba_hq_256/<number>.jpg`, 256 x 256 pixels."""
    folder = root / "celeba_hq_256"
    for number in range(count):
        save_picture(folder / f"{number:05d}.jpg", 256, 256, seed=number)
    return folder


def write_celeba(root: Path, count: int = 4) -> Path:
    """Write `img_align_celeba/<number>.jpg`, 218 rows of 178 pixels, counted from 1, and `list_eval_partition.txt` beside the folder."""
    folder = root / "img_align_celeba"
    names = [f"{number:06d}.jpg" for number in range(1, count + 1)]
    for number, name in enumerate(names):
        save_picture(folder / name, 218, 178, seed=number)
    (root / "list_eval_partition.txt").write_text("".join(f"{name} {number % 3}\n" for number, name in enumerate(names)))
    return folder


def write_cifar10(root: Path, per_batch: int = 4, seed: int = 0) -> Path:
    """Write `cifar-10-batches-py/` as its archive holds it: five training files and one test file, `per_batch` images each, and `batches.meta`."""
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    names = [(f"data_batch_{number}", f"training batch {number} of 5") for number in range(1, 6)] + [("test_batch", "testing batch 1 of 1")]
    for place, (name, title) in enumerate(names):
        pixels, labels = cifar_images(per_batch, 10, seed + place)
        files = [f"{CIFAR10_CLASSES[label]}_s_{number:06d}.png" for number, label in enumerate(labels)]
        write_python2_pickle(folder / name, {"batch_label": title, "labels": labels, "data": pixels, "filenames": files})
    write_python2_pickle(folder / "batches.meta", {"num_cases_per_batch": 10000, "label_names": list(CIFAR10_CLASSES), "num_vis": 3072})
    return folder


def write_cifar100(root: Path, num_train: int = 8, num_test: int = 4, seed: int = 0) -> Path:
    """Write `cifar-100-python/` as its archive holds it: `train`, `test` and `meta`, with fine and coarse labels."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for place, (name, title, count) in enumerate([("train", "training batch 1 of 1", num_train), ("test", "testing batch 1 of 1", num_test)]):
        pixels, labels = cifar_images(count, 100, seed + place)
        files = [f"class_{label}_s_{number:06d}.png" for number, label in enumerate(labels)]
        coarse = [label % 20 for label in labels]
        content = {"filenames": files, "batch_label": title, "fine_labels": labels, "coarse_labels": coarse, "data": pixels}
        write_python2_pickle(folder / name, content)
    names = {"fine_label_names": [f"class_{number}" for number in range(100)], "coarse_label_names": [f"group_{number}" for number in range(20)]}
    write_python2_pickle(folder / "meta", names)
    return folder


def cifar_images(count: int, classes: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Draw the content of one CIFAR file: (N, 3072) uint8 in planes of red, green and blue, and N labels."""
    images = np.stack([picture(32, 32, seed=1000 * seed + number) for number in range(count)])
    return images.transpose(0, 3, 1, 2).reshape(count, 3072), np.random.default_rng(seed).integers(0, classes, count).tolist()


def write_python2_pickle(path: Path, content: Mapping[str, Any]) -> Path:
    """Write a dictionary as Python 2 and numpy 1 did with protocol 2: text as byte strings, arrays through `numpy.core.multiarray`."""
    path.write_bytes(b"\x80\x02" + _python2(content) + b".")
    return path


def _python2(value: Any) -> bytes:
    """Give the opcodes that build `value` on the pickle machine's stack."""
    if isinstance(value, str | bytes):
        text = value.encode() if isinstance(value, str) else value
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else b"T" + struct.pack("<i", len(text)) + text
    if isinstance(value, bool):
        return b"\x88" if value else b"\x89"
    if isinstance(value, int):
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)
    if isinstance(value, list):
        return b"](" + b"".join(map(_python2, value)) + b"e"
    if isinstance(value, tuple):
        return b"(" + b"".join(map(_python2, value)) + b"t"
    if isinstance(value, Mapping):
        return b"}(" + b"".join(_python2(part) for pair in value.items() for part in pair) + b"u"
    if isinstance(value, np.ndarray):
        dtype = (
            b"cnumpy\ndtype\n" + _python2(("u1", 0, 1)) + b"R" + b"(" + _python2(3) + _python2("|") + b"NNN" + _python2(-1) * 2 + _python2(0) + b"tb"
        )
        empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + _python2("b") + b"tR"
        return empty + b"(" + _python2(1) + _python2(value.shape) + dtype + _python2(False) + _python2(value.tobytes()) + b"tb"
    raise TypeError(f"no Python 2 pickle of {type(value)}")


def write_imagenet(root: Path, classes: int = 102, per_class: int = 1, height: int = 40, width: int = 56) -> Path:
    """Write `train/<wnid>/<wnid>_<number>.JPEG` and `val/<wnid>/ILSVRC2012_val_<number>.JPEG` beside files that the archives leave lying there."""
    for label in range(classes):
        wnid = f"n{1440764 + 13 * (classes - label):08d}"  # written in falling order
        for number in range(per_class):
            save_picture(root / "train" / wnid / f"{wnid}_{number}.JPEG", height, width + 4 * number, channels=1 if label == 0 else 3, seed=label)
        save_picture(root / "val" / wnid / f"ILSVRC2012_val_{label:08d}.JPEG", width, height, seed=1000 + label)
    (root / "train" / "n01440764.tar").write_bytes(b"left over")
    (root / "train" / "no_class").mkdir()
    (root / "val" / "valprep.sh").write_text("#!/bin/sh\n")
    return root


def write_odd_class_folder(root: Path, size: int = 12) -> Path:
    """Write two classes of square pictures as users have them: colour, grey, 16-bit, palette, transparent and turned by EXIF, below each other."""
    save_picture(root / "cat" / "colour.png", size, size, seed=1)
    save_picture(root / "cat" / "old" / "grey.png", size, size, channels=1, seed=2)
    deep = picture(size, size, channels=1, seed=3).astype(np.uint16) * 257
    Image.fromarray(deep).save(root / "cat" / "deep.png")
    colour = Image.fromarray(picture(size, size, seed=4))
    (root / "dog").mkdir()
    colour.quantize(16).save(root / "dog" / "palette.png")
    colour.convert("RGBA").save(root / "dog" / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    colour.save(root / "dog" / "turned.jpg", exif=exif, quality=95)
    (root / "read_me.txt").write_text("not a picture")
    return root


def write_poison_pictures(folder: Path, images: np.ndarray) -> Path:
    """Write (N, H, W, C) uint8 poisoned images as `0.png`, `1.png`, ..., as TAP, AR and ISS are shared."""
    folder.mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image if image.shape[2] == 3 else image[..., 0]).save(folder / f"{number}.png")
    return folder


def write_poison_pickle(path: Path, perturbations: np.ndarray, protocol: int = 4) -> Path:
    """Write (N, C, H, W) int8 perturbations in pixels of 255, as REM and SEM are shared."""
    path.write_bytes(pickle.dumps(perturbations.astype(np.int8), protocol))
    return path


def write_ntga(folder: Path, images: np.ndarray, labels: np.ndarray, classes: int) -> Path:
    """Write (N, H, W, C) images as floats in [0, 1] and their labels one-hot, as NTGA is shared."""
    folder.mkdir(parents=True)
    np.save(folder / "x_train_cifar10_ntga_cnn_best.npy", (images / 255).astype(np.float32))
    np.save(folder / "y_train_cifar10.npy", np.eye(classes)[labels])
    return folder


def write_poison_arrays(folder: Path, images: np.ndarray, labels: np.ndarray) -> Path:
    """Write (N, H, W, C) uint8 images and (N,) labels, as OPS and LSP are shared."""
    folder.mkdir(parents=True)
    np.save(folder / "ops_images.npy", images)
    np.save(folder / "ops_labels.npy", labels)
    return folder
