"""Faces for distillation by mimicking: folders of people, pairs of LFW, distractors, and a painted world.

root/train/<person>/*.jpg              who is learned from, at least two people
root/lfw/<Name>/<Name>_0001.jpg        verification; pairs.txt (or pairsDevTest.txt) lies in root or root/lfw
root/probes/<person>/*.jpg             identification: people with two images or more ...
root/distractors/**/*.jpg              ... to be found among other people, in folders of any depth

LFW, or probes with distractors, may be absent, but not both. Faces should be aligned and cropped alike in all folders, customarily to 112 x 112.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from projects.rco.face_protocols import FOLDS, FaceProtocol, Identification, Verification, read_pairs
from shared.data.files import EXTENSIONS, check_images, first_few, list_images, read_image
from shared.data.folders import NO_LABEL, OnBadFile, fit_square
from shared.forgery.blending import add_camera_noise
from shared.forgery.painting import CANVAS, POSE, TEXTURE, TRAITS, People, Poses, paint_faces
from shared.seeding import generator

_PAIRS = ("pairs.txt", "pairsDevTest.txt")
_TREE = (
    "root/train/<person>/*.jpg, and to test on root/lfw/<Name>/<Name>_0001.jpg with pairs.txt, or root/probes/<person>/*.jpg with root/distractors"
)
_SHOTS = 6  # images of each drawn person tested on
_SHOWN = 0.75  # part of the canvas that is cut out in the end, so that the face fills the image
_BATCH = 256
_log = logging.getLogger(__name__)


class FaceSets(NamedTuple):
    """Faces to learn from and to be judged on.

    Attributes:
        train: items {"input", "label", "index"}; the label is the place of the person in `class_names`.
        test: the same, in the order that `protocol` counts in; nobody in it is learned from, so that every label is `NO_LABEL`.
        class_names: the people learned from, sorted.
        protocol: judges the embeddings of `test`.
    """

    train: Dataset
    test: Dataset
    class_names: list[str]
    protocol: FaceProtocol


class FaceFiles(Dataset):
    """Image files of faces; items are {"input": (3, size, size) float32 RGB in [0, 1], "label": int, "index": int}.

    Args:
        paths: the N files.
        labels: (N,) int64.
        size: side of the square that images are brought to, in pixels; of an oblong image, the centre is taken.
    """

    def __init__(self, paths: Sequence[Path], labels: Tensor, size: int) -> None:
        self.paths, self.labels, self.size = list(paths), labels, size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": fit_square(read_image(self.paths[index]), self.size), "label": int(self.labels[index]), "index": index}


class FacesInMemory(Dataset):
    """Faces held as bytes; whole batches are {"input": (B, 3, H, W) uint8, "label": (B,), "index": (B,)}.

    Args:
        images: (N, 3, H, W) uint8.
        labels: (N,) int64.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"input": self.images[index], "label": int(self.labels[index]), "index": index}

    def __getitems__(self, indices: Sequence[int]) -> dict[str, Tensor]:
        where = torch.as_tensor(indices)
        return {"input": self.images[where], "label": self.labels[where], "index": where}


# ---- files


def training_people(root: str | Path) -> list[str]:
    """Return the people that `read_faces` learns from, without a look at images.

    Raises:
        FileNotFoundError, ValueError: see `read_faces`.
    """
    return _people(Path(root).expanduser())[0]


def read_faces(root: str | Path, size: int = 112, on_bad_file: OnBadFile | None = "refuse") -> FaceSets:
    """Read folders of faces as this module's beginning shows them.

    People that are tested on, in pairs or as probes, are not learned from: their folders in train are left out with a warning [ours]. Names are
    compared without regard to capital letters, spaces and hyphens.

    Args:
        root: the folder.
        size: side of the square that images are brought to, in pixels.
        on_bad_file: decodes all images at once; "refuse" lists the bad ones, "skip" leaves those to learn from out, but never those to test on.
            None reads images only when their turn comes, which spares minutes with millions of them.

    Raises:
        FileNotFoundError: if folders, pairs.txt or images that it names are missing, or there is nothing to test on.
        BadFileError: if pairs.txt is malformed, or an image cannot be read.
        ValueError: if fewer than two people are left to learn from, or nobody has two probes.
    """
    root = Path(root).expanduser()
    names, tested = _people(root)
    if tested:
        _log.warning("%d people in %s/train are tested on as well and not learned from: %s", len(tested), root, ", ".join(first_few(tested)))
    files = [(path, label) for label, name in enumerate(names) for path in list_images(root / "train" / name, _TREE)]
    pairs, verification = _read_lfw(root)
    faces, identification = _read_probes(root, len(pairs))
    if on_bad_file is not None:
        readable = set(check_images([path for path, _ in files], on_bad_file))
        files = [file for file in files if file[0] in readable]
        check_images(pairs + faces, "refuse")
    train = FaceFiles([path for path, _ in files], torch.tensor([label for _, label in files]), size)
    test = FaceFiles(pairs + faces, torch.full((len(pairs) + len(faces),), NO_LABEL), size)
    return FaceSets(train, test, names, FaceProtocol(len(test), verification, identification))


def _people(root: Path) -> tuple[list[str], list[str]]:
    """Return the folders in train of people not tested on, and those of people who are."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder: expected {_TREE}; correct the path")
    pairs = _pairs_file(root)
    tested = _folders(root / "probes") if (root / "probes").is_dir() else []
    if pairs is None and not tested:
        raise FileNotFoundError(f"{root} holds nothing to test on: expected {_TREE}")
    named = [name for pair in (read_pairs(pairs) if pairs else []) for name in (pair.first[0], pair.second[0])]
    known = {_plain(name) for name in (*tested, *named)}
    if not (root / "train").is_dir():
        raise FileNotFoundError(f"{root}/train does not exist: expected {_TREE}; correct the path, or put the folders there")
    everyone = _folders(root / "train")
    kept = [name for name in everyone if _plain(name) not in known]
    leaked = [name for name in everyone if _plain(name) in known]
    if len(kept) < 2:
        beside = (
            f" beside {len(leaked)} who are tested on ({', '.join(first_few(leaked, 3))}; rename the folders of different people)" if leaked else ""
        )
        raise ValueError(f"{root}/train holds {len(kept)} people to learn from{beside}: expected two or more, a folder each")
    return kept, leaked


def _folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _plain(name: str) -> str:
    return name.casefold().replace(" ", "_").replace("-", "_")


def _pairs_file(root: Path) -> Path | None:
    """Return the file of pairs, or None without LFW.

    Raises:
        FileNotFoundError: if there is only one of images and pairs.
    """
    places = [folder / name for name in _PAIRS for folder in (root, root / "lfw")]
    found = next((place for place in places if place.is_file()), None)
    if (found is None) == (root / "lfw").is_dir():
        lacks = f"{root}/lfw, the images of {found}," if found else f"the pairs of {root}/lfw"
        wanted = f"{root}/lfw/<Name>/<Name>_0001.jpg, and pairs.txt in {root} or {root}/lfw"
        raise FileNotFoundError(f"{lacks} are missing: expected {wanted}; put them there")
    return found


def _read_lfw(root: Path) -> tuple[list[Path], Verification | None]:
    """Return the images that pairs name, each once, and the pairs in rows of them."""
    file = _pairs_file(root)
    if file is None:
        return [], None
    pairs = read_pairs(file)
    lines = {image: pair.line for pair in reversed(pairs) for image in (pair.first, pair.second)}
    found = {image: _image_file(root / "lfw", *image) for image in sorted(lines)}
    if missing := [f"{name}/{name}_{number:04d} (line {lines[name, number]})" for (name, number), path in found.items() if path is None]:
        what = f"{len(missing)} of {len(found)} images that {file} names are missing in {root}/lfw:"
        raise FileNotFoundError("\n  ".join([what, *first_few(missing), "put them there, or take their lines out of the file"]))
    row = {image: number for number, image in enumerate(found)}
    first, second = torch.tensor([[row[pair.first], row[pair.second]] for pair in pairs]).T
    same, folds = torch.tensor([pair.same for pair in pairs]), torch.tensor([pair.fold for pair in pairs])
    return [path for path in found.values() if path], Verification(first, second, same, folds)


def _image_file(folder: Path, name: str, number: int) -> Path | None:
    places = (folder / name / f"{name}_{number:04d}{ending}" for ending in (".jpg", *EXTENSIONS))
    return next((place for place in places if place.is_file()), None)


def _read_probes(root: Path, start: int) -> tuple[list[Path], Identification | None]:
    """Return images of probes, then distractors, and the protocol in rows of them, counted from `start`."""
    if not (root / "probes").is_dir():
        return [], None
    others = list_images(root / "distractors", f"images of other people than in {root}/probes, which these are found among")
    found = {name: list_images(root / "probes" / name, _TREE) for name in _folders(root / "probes")}
    if single := [name for name, paths in found.items() if len(paths) == 1]:
        _log.warning("%d people in %s/probes have one image, nothing to be found by it, and are left out: %s", len(single), root, first_few(single))
    people = [paths for paths in found.values() if len(paths) > 1]
    if not people:
        raise ValueError(f"nobody in {root}/probes has two images or more: expected {root}/probes/<person>/*.jpg, to find one by another")
    probes = [path for paths in people for path in paths]
    who = torch.arange(len(people)).repeat_interleave(torch.tensor([len(paths) for paths in people]))
    rows = start + torch.arange(len(probes) + len(others))
    return probes + others, Identification(rows[: len(probes)], who, rows[len(probes) :])


# ---- painted


def drawn_faces(seed: int, size: int = 32, people: int = 64, shots: int = 16, tested: int = 40, distractors: int = 400) -> FaceSets:
    """Paint people in many poses, lights and expressions; nobody is in two of training, pairs and probes, and distractors.

    Everyone tested on has 6 images. All pairs of one person are judged, with as many of two people; a person is in one of the ten folds, as on LFW.
    The same images are the probes; a distractor has one image.

    Args:
        seed: seed of everything; what is tested on does not depend on who is learned from.
        size: height and width in pixels, at least 16.
        people: people to learn from, at least 2.
        shots: images of each of them.
        tested: people to test on, at least 20.
        distractors: number of further people.

    Returns:
        Sets in memory, see `FacesInMemory`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    if size < 16 or people < 2 or shots < 1 or tested < 2 * FOLDS or distractors < 1:
        got = f"{size}, {people}, {shots}, {tested} and {distractors}"
        raise ValueError(f"drawn faces need size 16, 2 people, 1 shot, {2 * FOLDS} tested and 1 distractor or more, got {got}")
    names = [f"person {number:04d}" for number in range(people)]
    train = FacesInMemory(_paint(seed, "train", people, shots, size), torch.arange(people).repeat_interleave(shots))
    images = torch.cat([_paint(seed, "test", tested, _SHOTS, size), _paint(seed, "distractors", distractors, 1, size)])
    who, rows = torch.arange(tested).repeat_interleave(_SHOTS), torch.arange(len(images))
    probes = Identification(rows[: len(who)], who, rows[len(who) :])
    protocol = FaceProtocol(len(images), _drawn_pairs(who, seed), probes)
    return FaceSets(train, FacesInMemory(images, torch.full((len(images),), NO_LABEL)), names, protocol)


def _drawn_pairs(who: Tensor, seed: int) -> Verification:
    """Pair all images of a person, and as many of two people in the same fold, from the (N,) person of each image."""
    parts: list[Tensor] = []
    for fold in range(FOLDS):
        pairs = torch.combinations((who % FOLDS == fold).nonzero()[:, 0])
        same = who[pairs[:, 0]] == who[pairs[:, 1]]
        others = pairs[~same][torch.randperm(int((~same).sum()), generator=generator(seed, "drawn pairs", fold))]
        chosen = torch.cat([pairs[same], others[: int(same.sum())]])
        parts.append(torch.cat([chosen, torch.full((len(chosen), 1), fold)], 1))
    first, second, folds = torch.cat(parts).T
    return Verification(first, second, who[first] == who[second], folds)


def _traits(seed: int, role: str, people: int) -> tuple[Tensor, Tensor]:
    """Draw what people look like, (people, 28) in [0, 1), and their skins' texture, (people, 1, 8, 8)."""
    random = generator(seed, "drawn people", role)
    return torch.rand(people, TRAITS, generator=random), torch.randn(people, 1, TEXTURE, TEXTURE, generator=random)


def _paint(seed: int, role: str, people: int, shots: int, size: int) -> Tensor:
    """Paint `shots` images of each person one after the other, (people x shots, 3, size, size) uint8."""
    canvas = round(size / _SHOWN)
    unit, edge = canvas / CANVAS, (canvas - size) // 2
    looks, textures = _traits(seed, role, people)
    random = generator(seed, "drawn shots", role)
    parts: list[Tensor] = []
    for some in torch.arange(people).repeat_interleave(shots).split(_BATCH):
        poses = Poses(torch.rand(len(some), POSE, generator=random), unit)
        noise = torch.randn(len(some), 3, canvas + 2, canvas + 2, generator=random)
        painted = add_camera_noise(paint_faces(People(looks[some], textures[some], unit), poses, canvas), noise)
        parts.append((painted[:, :, edge : edge + size, edge : edge + size] * 255).round().byte())
    return torch.cat(parts)
