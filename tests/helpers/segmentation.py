"""Writers of miniature segmentation sets in the layouts that users have, with the odd cases that each layout is known for.

Each writer takes the folder to write into and returns the folder that a user would name. Pictures are a function of `seed`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def disc(height: int, width: int, seed: int = 0, share: float = 0.3) -> np.ndarray:
    """Draw a disc, (H, W) bool, somewhere inside."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    centre = (height * random.uniform(0.4, 0.6), width * random.uniform(0.4, 0.6))
    return (rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < (share * min(height, width)) ** 2


def textured(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Draw coarse random blocks, so that images of two seeds look nothing alike."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (8, 8, channels), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse if channels == 3 else coarse[..., 0]).resize((width, height), Image.Resampling.BICUBIC))
    return image.copy()


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) * 255 if array.dtype == bool else array).save(path, **options)  # type: ignore[arg-type]
    return path


def write_busi(root: Path, benign: int = 8, malignant: int = 5, normal: int = 2) -> Path:
    """BUSI: sizes differ, `benign (2)` has two further lesions, `malignant (1)` is `benign (1)` stored again, normal masks are empty."""
    folder = root / "Dataset_BUSI_with_GT"
    for kind, count in (("benign", benign), ("malignant", malignant), ("normal", normal)):
        for number in range(1, count + 1):
            height, width = 48 + 4 * number, 60 + 2 * number
            seed = {"benign": 0, "malignant": 100, "normal": 200}[kind] + number
            save(folder / kind / f"{kind} ({number}).png", textured(height, width, 3, seed))
            save(folder / kind / f"{kind} ({number})_mask.png", disc(height, width, seed) if kind != "normal" else np.zeros((height, width), bool))
    first = Image.open(folder / "benign" / "benign (1).png")
    again = first.resize((70, 56), Image.Resampling.BICUBIC)
    save(folder / "malignant" / "malignant (1).png", np.asarray(again))
    save(folder / "malignant" / "malignant (1)_mask.png", disc(56, 70, 1))
    height, width = 56, 64
    corner, edge = np.zeros((height, width), bool), np.zeros((height, width), bool)
    corner[:5, :5], edge[-4:, :] = True, True
    save(folder / "benign" / "benign (2)_mask_1.png", corner)
    save(folder / "benign" / "benign (2)_mask_2.png", edge)
    return root


def write_kvasir(root: Path, count: int = 10) -> Path:
    """Kvasir-SEG: JPEG masks, which have grey pixels around the edge, and a file of boxes."""
    folder = root / "Kvasir-SEG"
    for number in range(count):
        height, width = 40 + number, 50
        save(folder / "images" / f"cju{number}.jpg", textured(height, width, 3, number), quality=95)
        save(folder / "masks" / f"cju{number}.jpg", np.repeat(disc(height, width, number)[..., None], 3, 2), quality=60)
    (folder / "kavsir_bboxes.json").write_text("{}")
    return root


def write_isic(root: Path, counts: tuple[int, int, int] = (6, 2, 3)) -> Path:
    """ISIC-2018 task 1: masks of 0 and 255, licences and superpixels among the images."""
    for name, count in zip(("Training", "Validation", "Test"), counts, strict=True):
        images, masks = root / f"ISIC2018_Task1-2_{name}_Input", root / f"ISIC2018_Task1_{name}_GroundTruth"
        for number in range(count):
            seed = number + 1000 * len(name)
            save(images / f"ISIC_{seed:07d}.jpg", textured(36, 44, 3, seed), quality=95)
            save(images / f"ISIC_{seed:07d}_superpixels.png", textured(36, 44, 3, seed))
            save(masks / f"ISIC_{seed:07d}_segmentation.png", disc(36, 44, seed))
        for stray in ("ATTRIBUTION.txt", "LICENSE.txt"):
            (images / stray).write_text("CC-0")
    return root


def write_covid(root: Path, count: int = 3) -> Path:
    """COVID-QU-Ex: its folder repeated, infection masks empty but for COVID-19."""
    folder = root / "Infection Segmentation Data" / "Infection Segmentation Data"
    for split in ("Train", "Val", "Test"):
        for kind in ("COVID-19", "Non-COVID", "Normal"):
            for number in range(count):
                seed, name = hash_of(split, kind, number), f"{kind.lower()}_{number}.png"
                save(folder / split / kind / "images" / name, textured(32, 32, 1, seed))
                save(folder / split / kind / "lung masks" / name, disc(32, 32, seed, 0.45))
                infection = disc(32, 32, seed, 0.2) if kind == "COVID-19" else np.zeros((32, 32), bool)
                save(folder / split / kind / "infection masks" / name, infection)
    return root


def hash_of(*parts: object) -> int:
    return sum(ord(letter) * (place + 1) for place, letter in enumerate(str(parts)))


def write_glas(root: Path, counts: tuple[int, int, int] = (8, 3, 2)) -> Path:
    """GlaS: bitmaps, annotations that number the glands, two images a patient."""
    folder = root / "Warwick QU Dataset (Released 2016_07_08)"
    lines = ["name, patient ID, grade (GlaS), grade (Sirinukunwattana et al. 2015)"]
    for split, count in zip(("train", "testA", "testB"), counts, strict=True):
        for number in range(1, count + 1):
            seed = hash_of(split, number)
            save(folder / f"{split}_{number}.bmp", textured(40, 48, 3, seed))
            glands = disc(40, 48, seed).astype(np.uint8)
            glands[:6, :6] = 2
            save(folder / f"{split}_{number}_anno.bmp", glands)
            lines.append(f"{split}_{number}, {(number + 1) // 2 + (100 if split != 'train' else 0)}, benign, adenomatous")
    (folder / "Grade.csv").write_text("\n".join(lines) + "\n")
    return root


def write_acdc(root: Path, training: int = 4, testing: int = 0, depth: int = 4, dtype: type = np.int16) -> Path:
    """ACDC: two frames a patient, the whole film beside them, no label in the first slice, another one in each of the others."""
    import nibabel

    for folder, patients in (("training", training), ("testing", testing)):
        for patient in range(1, patients + 1):
            number = patient + (100 if folder == "testing" else 0)
            here = root / "database" / folder / f"patient{number:03d}"
            here.mkdir(parents=True)
            (here / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: DCM\n")
            for frame in (1, 12):
                random = np.random.default_rng(100 * number + frame)
                volume = np.asarray(random.integers(0, 900, (24, 20, depth)), dtype)
                volume[0, 0, 0] = 4000  # far above the 99th percentile
                labels = np.zeros(volume.shape, np.uint8)
                for place in range(1, depth):
                    labels[..., place][disc(24, 20, place)] = (place - 1) % 3 + 1
                nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), here / f"patient{number:03d}_frame{frame:02d}.nii.gz")
                nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), here / f"patient{number:03d}_frame{frame:02d}_gt.nii.gz")
            nibabel.save(nibabel.Nifti1Image(np.zeros((24, 20, depth, 2), np.int16), np.eye(4)), here / f"patient{number:03d}_4d.nii.gz")
    return root


def write_masked_folder(root: Path, count: int = 10, channels: int = 1, height: int = 32, width: int = 40, ending: str = ".png") -> Path:
    """`images/` and `masks/`, half of them in a sub-folder."""
    for number in range(count):
        name = f"{'a/' if number % 2 else ''}{number:03d}"
        save(root / "images" / f"{name}{ending}", textured(height, width, channels, number))
        save(root / "masks" / f"{name}.png", disc(height, width, number))
    return root
