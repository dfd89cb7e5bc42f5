"""Pictures of one product: good ones to learn from and to set thresholds with, and test pictures with their defects."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from projects.comad.defects import Defect, DefectType
from projects.comad.layouts import Catalogue, Group, Picture, Split, cad_sd_folders, check_sizes, compare, read_folders, read_loco, read_visa
from projects.comad.traysim import LOGICAL, STRUCTURAL, Kind, Tray, draw_tray
from shared.data.base import DataModule
from shared.data.files import check_images, image_size, read_levels
from shared.data.folders import OnBadFile
from shared.seeding import generator


class PictureFiles(Dataset):
    """Pictures in files, read when their turn comes.

    Items are {"image": (3, H, W) uint8 at `size`, "label": 0 or 1 for anomalous, "kind": name, "index": place in this set}.

    Args:
        pictures: the files.
        size: height and width of the items, in pixels; proportions are not kept.
        types: what pixel values of masks mean; None if masks only say where.
    """

    def __init__(self, pictures: Sequence[Picture], size: tuple[int, int], types: dict[int, DefectType] | None = None) -> None:
        self.pictures, self.size, self.types = list(pictures), size, types

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        picture = self.pictures[index]
        image = resized(read_levels(picture.path), self.size)
        return {"image": image, "label": int(picture.group != "good"), "kind": picture.kind, "index": index}

    def defects(self, index: int) -> list[Defect]:
        """Return the defects of a picture, masks at its original size; none for a good one, or where nobody marked them.

        Raises:
            BadFileError: see `projects.comad.defects.read_defect`.
        """
        return self.pictures[index].defects(self.types)

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of a picture's file, which its anomaly map has to have."""
        return image_size(self.pictures[index].path)

    def name(self, index: int) -> str:
        """Return kind and name of a picture, such as `logical_anomalies/000`."""
        return self.pictures[index].name

    def group(self, index: int) -> Group:
        """Return the group of a picture."""
        return self.pictures[index].group


class DrawnTrays(Dataset):
    """Trays, drawn when their turn comes; items and methods are those of `PictureFiles`.

    Args:
        split: train, validation and test hold different trays.
        kinds: kinds of trays.
        length: number of trays of each kind.
        seed: seed of everything.
        size: side in pixels.
    """

    def __init__(self, split: Split, kinds: Sequence[Kind], length: int, seed: int, size: int) -> None:
        self.split, self.kinds, self.length, self.seed, self.size = split, list(kinds), length, seed, size

    def __len__(self) -> int:
        return len(self.kinds) * self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        tray = self.tray(index)
        return {"image": tray.image, "label": int(tray.kind != "good"), "kind": tray.kind, "index": index}

    def tray(self, index: int) -> Tray:
        """Return a tray with its components and defects.

        Raises:
            IndexError: if there are not as many.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"no tray {index}: there are {len(self)}")
        kind, number = divmod(index, self.length)
        return draw_tray(self.split, number, self.kinds[kind], self.seed, self.size)

    def defects(self, index: int) -> list[Defect]:
        """Return the defects of a tray."""
        return list(self.tray(index).defects)

    def original_size(self, index: int) -> tuple[int, int]:
        """Return height and width of a tray."""
        return self.size, self.size

    def name(self, index: int) -> str:
        """Return kind and number of a tray, such as `missing/000`."""
        return f"{self.kinds[index // self.length]}/{index % self.length:03}"

    def group(self, index: int) -> Group:
        """Return the group of a tray."""
        return tray_group(self.kinds[index // self.length])


Pictures = PictureFiles | DrawnTrays
"""A set of pictures, with their defects."""


class InspectionData(DataModule):
    """Good pictures of one product to learn from, others to set thresholds with, and test pictures; nothing is augmented or shuffled.

    Batches are {"image": (B, 3, H, W) uint8, "label": (B,) 1 for anomalous, "kind": B names, "index": (B,) places in their set}. Turned or flipped
    pictures would break the very rules that are to be learnt.

    Args:
        source: `traysim`, or a layout of files.
        root: folder of the files.
        batch_size: pictures of a batch over all processes together.
        num_workers: processes that read pictures.
        seed: seed of trays, and of what is held out.
        size: side in pixels that pictures are brought to, or height and width; null is 128 for trays and 224 for files.
        category: folder of one category in the root, with `loco` and `visa`; null takes the root itself, or with `loco` the only one in it.
        folders: with `folder` and `cad_sd`, the folders in the root of train, perhaps of validation, and of each kind of test pictures, such as
            good; null is train/good, validation/good and test/<kind>.
        groups: with `folder` and `cad_sd`, logical or structural for kinds whose names do not tell; others are `other`.
        val_fraction: part of the training pictures that is held out where there are none for validation, and again where there are bad test
            pictures but no good ones, in (0, 1).
        on_bad_file: refuse or skip training pictures that cannot be read; test pictures are never skipped.
        length: with `traysim`, number of training pictures.
        val_length: with `traysim`, number of pictures for validation.
        test_length: with `traysim`, number of test pictures of each kind.
        kinds: with `traysim`, kinds of anomalous test pictures; null takes all.

    Attributes:
        train_set: good pictures to learn from.
        val_set: good pictures to set thresholds and scales with.
        test_set: test pictures, good ones first with `traysim`.
        name: of the product.

    Raises:
        ValueError: if options do not fit.
    """

    sources: ClassVar[dict[str, str]] = {
        "traysim": "drawn on the spot: trays with fruit, pins, rings and grain",
        "loco": "MVTec LOCO AD: <category>/{train,validation,test,ground_truth}/ and defects_config.json",
        "cad_sd": "CAD-SD: train/good and test/{good,scratch,paint,over,lack}, numbered as in 1_scratch or not, or the folders of data.folders",
        "visa": "VisA as it is published: split_csv/1cls.csv and <category>/Data/{Images/{Normal,Anomaly},Masks/Anomaly}/",
        "folder": "train/good, perhaps validation/good and test/<kind>, with or without ground_truth/<kind>; or good, and perhaps bad",
    }

    train_set: Pictures
    val_set: Pictures
    test_set: Pictures
    name: str

    def __init__(
        self,
        source: str = "traysim",
        root: str | None = None,
        batch_size: int = 32,
        num_workers: int = 0,
        seed: int = 0,
        size: int | list[int] | None = None,
        category: str | None = None,
        folders: dict[str, str] | None = None,
        groups: dict[str, Group] | None = None,
        val_fraction: float = 0.15,
        on_bad_file: OnBadFile = "refuse",
        length: int = 120,
        val_length: int = 40,
        test_length: int = 40,
        kinds: list[Kind] | None = None,
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.options: Any = self.hparams
        self.size = _size(size, 128 if source == "traysim" else 224)
        self._check()

    def _check(self) -> None:
        options = self.options
        if self.source == "traysim" and self.size[0] != self.size[1]:
            raise ValueError(f"data.size must be one number with data.source traysim, whose trays are square, got {list(self.size)}")
        if given := [name for name in ("root", "category", "folders", "groups") if self.source == "traysim" and options[name] is not None]:
            raise ValueError(
                f"data.{given[0]} is not used with data.source traysim, which draws trays: add --data.source folder (or loco, cad_sd, visa)"
            )
        if not 0 < options.val_fraction < 1:
            raise ValueError(f"data.val_fraction must be in (0, 1), got {options.val_fraction}")
        if options.on_bad_file not in get_args(OnBadFile):
            raise ValueError(f"data.on_bad_file must be one of {', '.join(get_args(OnBadFile))}, got {options.on_bad_file!r}")
        for name in ("length", "val_length", "test_length"):
            if options[name] < 1:
                raise ValueError(f"data.{name} must be at least 1, got {options[name]}")
        known = (*LOGICAL, *STRUCTURAL)
        if unknown := [kind for kind in options.kinds or () if kind not in known]:
            raise ValueError(f"data.kinds must be some of {', '.join(known)}, got {unknown[0]!r}")

    def prepare_data(self) -> None:
        """Check, before any work is done, that files are there, can be read and go together."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "test_set"):
            return
        if self.source == "traysim":
            self._draw()
        else:
            self._read()

    # ---- the sources

    def _draw(self) -> None:
        options = self.options
        kinds = options.kinds if options.kinds is not None else (*LOGICAL, *STRUCTURAL)
        self.name, side = "traysim", self.size[0]
        self.train_set = DrawnTrays("train", ["good"], options.length, self.seed, side)
        self.val_set = DrawnTrays("validation", ["good"], options.val_length, self.seed, side)
        self.test_set = DrawnTrays("test", ["good", *kinds], options.test_length, self.seed, side)

    def _read(self) -> None:
        catalogue = self._catalogue()
        self.name = catalogue.name
        learnt, held_out, tested = (catalogue.of(split) for split in get_args(Split))
        learnt, held_out = (_readable(pictures, self.options.on_bad_file) for pictures in (learnt, held_out))
        _readable(tested, "refuse")
        check_sizes(tested, catalogue.types)
        if not held_out:
            learnt, held_out = divided(learnt, self.options.val_fraction, self.seed)
        if tested and all(picture.group != "good" for picture in tested):
            learnt, good = divided(learnt, self.options.val_fraction, self.seed, "test")
            tested = [*good, *tested]
        self.train_set, self.val_set = PictureFiles(learnt, self.size), PictureFiles(held_out, self.size)
        self.test_set = PictureFiles(tested, self.size, catalogue.types)

    def _catalogue(self) -> Catalogue:
        options = self.options
        if self.source == "loco":
            return read_loco(self.root, options.category)
        if self.source == "visa":
            return read_visa(self.root, options.category)
        if self.source == "folder":
            return read_folders(self.root, options.folders, options.groups)
        catalogue = read_folders(self.root, options.folders or cad_sd_folders(self.root), options.groups)
        compare("CAD-SD", "cad_sd", catalogue.pictures)
        return replace(catalogue, name="cad_sd")

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return a loader of every training picture once, in order: they are looked at, not trained on."""
        return self.evaluation_loader(self.train_set)

    def val_dataloader(self) -> DataLoader:
        """Return a loader of every picture of validation once, in order."""
        return self.evaluation_loader(self.val_set)

    def test_dataloader(self) -> DataLoader:
        """Return a loader of every test picture once, in order."""
        return self.evaluation_loader(self.test_set)


def resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a picture, (3, H, W) uint8, to a height and width: bilinear with anti-aliasing, proportions not kept."""
    if tuple(image.shape[1:]) == size:
        return image
    small = F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    return small.round().clamp(0, 255).byte()


def tray_group(kind: Kind) -> Group:
    """Return the group of a kind of trays."""
    return "logical" if kind in LOGICAL else "structural" if kind in STRUCTURAL else "good"


def divided(pictures: Sequence[Picture], fraction: float, seed: int, split: Split = "validation") -> tuple[list[Picture], list[Picture]]:
    """Hold a part of the training pictures out for another split, at least one of them; both parts keep their order.

    Raises:
        ValueError: if there is only one picture.
    """
    if len(pictures) < 2:
        raise ValueError(f"there is only one training picture, so that none can be held out for {split}: add pictures")
    count = min(max(1, round(fraction * len(pictures))), len(pictures) - 1)
    chosen = set(torch.randperm(len(pictures), generator=generator(seed, split))[:count].tolist())
    learnt = [picture for number, picture in enumerate(pictures) if number not in chosen]
    return learnt, [replace(pictures[number], split=split) for number in sorted(chosen)]


def _size(size: int | Sequence[int] | None, default: int) -> tuple[int, int]:
    sides = (default, default) if size is None else (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) != 2 or min(sides) < 32:
        raise ValueError(f"data.size must be a side of at least 32 pixels, or height and width, got {size}")
    return sides[0], sides[1]


def _readable(pictures: Sequence[Picture], on_bad_file: OnBadFile) -> list[Picture]:
    """Return the pictures that can be read."""
    if not pictures:
        return []
    readable = set(check_images([picture.path for picture in pictures], on_bad_file))
    return [picture for picture in pictures if picture.path in readable]
