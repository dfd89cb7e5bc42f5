"""Pictures to learn from and to judge by: forged on the spot, published sets under their protocols, or lists of the user's own."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from projects.tripinet.augmentation import Augmentation, augment
from projects.tripinet.forensics import BLOCK
from projects.tripinet.forging import FORGERIES, IN_PLACE, forge, kind_at
from projects.tripinet.leaks import guard, leaks
from projects.tripinet.lists import read_lists
from projects.tripinet.mixture import MixtureSampler
from projects.tripinet.pairs import AUTHENTIC, KINDS, Picture, check_pairs, read_pair
from projects.tripinet.sets import SETS, read_set
from projects.tripinet.splits import check_manipulated, clips, divided
from shared.data.base import DataModule
from shared.data.folders import OnBadFile
from shared.data.offline import Split
from shared.data.selection import OnLeak
from shared.forgery.confounds import confounds
from shared.seeding import generator

Sets = dict[str, list[Picture]]
"""Pictures of each set by its name."""

FineTuned = Literal["coverage", "casia", "nist16"]
"""Sets that networks pre-trained on synthetic forgeries are tuned to; Columbia and IMD2020 never are."""

_PROTOCOLS: dict[str, tuple[list[str], list[str]]] = {
    "mvss": (["casia_v2"], ["casia_v1", "columbia", "coverage", "nist16", "imd2020", "defacto"]),
    "cat": (["casia_v2", "fantastic_reality", "imd2020", "tampcoco", "compraise"], ["casia_v1", "columbia", "coverage", "nist16"]),
}
_CAT_PICTURES = 1869
_HELD_OUT: dict[str, float] = {"coverage": 25 / 100, "nist16": 160 / 564}
_VAL_FRACTION = 1 / 8
_log = logging.getLogger(__name__)


class PictureFiles:
    """Pictures in files, read when their turn comes."""

    def __init__(self, pictures: Sequence[Picture], mask_fix: bool = False) -> None:
        self.pictures, self.mask_fix = list(pictures), mask_fix

    def __len__(self) -> int:
        return len(self.pictures)

    def read(self, index: int) -> tuple[Tensor, Tensor, str]:
        """Return (3, H, W) uint8, the mask (1, H, W) uint8 and the kind."""
        return *read_pair(self.pictures[index], self.mask_fix), self.pictures[index].kind

    def format_of(self, index: int) -> str:
        """Return the ending of the picture's file, in lower case."""
        return self.pictures[index].image.suffix.lower().lstrip(".")


class ForgedPictures:
    """Pictures of `forge`, made once and held in memory.

    Args:
        split: whose photographs are used.
        length: number of pictures.
        kinds: kinds of forgeries, which come equally often.
        authentic: part of authentic pictures, in [0, 1).
        size: height and width, in pixels.
        seed: seed of everything.
    """

    def __init__(self, split: Split, length: int, kinds: Sequence[str], authentic: float, size: int, seed: int) -> None:
        self.kinds = [kind_at(index, kinds, authentic) for index in range(length)]
        made = [forge(split, index, seed, size, kind) for index, kind in enumerate(self.kinds)]
        self.images = torch.stack([one.image for one in made])
        self.masks = torch.stack([one.mask for one in made]).byte()

    def __len__(self) -> int:
        return len(self.kinds)

    def read(self, index: int) -> tuple[Tensor, Tensor, str]:
        """Return (3, S, S) uint8, the mask (1, S, S) uint8 and the kind."""
        return self.images[index], self.masks[index], self.kinds[index]

    def format_of(self, index: int) -> str:
        """Return what pictures that lie in no file count as."""
        return "memory"


class WholePictures(Dataset):
    """Pictures as they are.

    Items are `image` (3, H, W) uint8, `mask` (1, H, W) uint8 of 0 and 1, `label`, `kind` (place in `KINDS`), `index`, and the file's `format`.
    """

    def __init__(self, pictures: PictureFiles | ForgedPictures) -> None:
        self.pictures = pictures

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _item(*self.pictures.read(index), index) | {"format": self.pictures.format_of(index)}


class TrainingPictures(Dataset):
    """Squares of augmented pictures, with the items of `WholePictures` but `format`; a square that holds no manipulated pixel is authentic.

    An index i stands for picture i modulo N in epoch i // N (integer division), N being `len()`: see `MixtureSampler`.

    Args:
        pictures: the pictures.
        size: side of the squares, in pixels.
        augmentation: what pictures go through first.
        resize: resizes whole pictures instead of cutting squares out, which wears traces away.
        align: cuts along the grid of 8 x 8 pixels that JPEG counts from the top left.
        seed: seed of everything.
    """

    def __init__(
        self,
        pictures: PictureFiles | ForgedPictures,
        size: int,
        augmentation: Augmentation = "none",
        resize: bool = False,
        align: bool = False,
        seed: int = 0,
    ) -> None:
        self.pictures, self.size, self.augmentation = pictures, size, augmentation
        self.resize, self.align, self.seed = resize, align, seed

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, place = divmod(index, len(self))
        chance = generator(self.seed, "augmentation", epoch, place)
        image, mask, kind = self.pictures.read(place)
        if self.align:
            image, mask = in_blocks(image), in_blocks(mask)
        image, mask, forged = augment(image, mask, self.augmentation, chance)
        image, mask = resized(image, mask, self.size) if self.resize else cut(image, mask, self.size, chance, BLOCK if self.align else 1)
        return _item(image, mask, forged if kind == AUTHENTIC and forged else kind, place)


def _item(image: Tensor, mask: Tensor, kind: str, index: int) -> dict[str, Any]:
    label = int(mask.any())
    return {"image": image, "mask": mask, "label": label, "kind": KINDS.index(kind) if label else 0, "index": index}


def in_blocks(layer: Tensor) -> Tensor:
    """Leave the incomplete 8 x 8 blocks at the right and the bottom of (C, H, W) out: when it is turned, JPEG's grid begins at its corner again."""
    height, width = (side - side % BLOCK or side for side in layer.shape[1:])
    return layer[:, :height, :width]


def cut(image: Tensor, mask: Tensor, size: int, chance: torch.Generator, grid: int = 1) -> tuple[Tensor, Tensor]:
    """Cut a square out anywhere; smaller pictures are first mirrored to the right and downwards, their masks with them.

    Args:
        image: (3, H, W).
        mask: (1, H, W).
        size: side of the square, in pixels.
        chance: where the place comes from.
        grid: the place is a multiple of so many pixels.
    """
    short = [(0, 0), *((0, max(0, size - side)) for side in image.shape[1:])]
    if any(after for _, after in short):
        image, mask = (torch.from_numpy(np.pad(layer.numpy(), short, "symmetric")) for layer in (image, mask))
    top, left = (grid * int(torch.randint((side - size) // grid + 1, (), generator=chance)) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size], mask[:, top : top + size, left : left + size]


def resized(image: Tensor, mask: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Resize picture and mask to a square; the mask is cut at a half again."""
    square = (size, size)
    image = F.interpolate(image[None], size=square, mode="bilinear", align_corners=False, antialias=True)[0]
    share = F.interpolate(mask[None].float(), size=square, mode="bilinear", align_corners=False, antialias=True)[0]
    return image, (share > 0.5).byte()


def _plain(name: str) -> str:
    """Return the name of a set, which may be a path, as the names of measures and files have it."""
    return re.sub(r"[^\w.-]+", "_", name).strip("._") or "set"


class ManipulationData(DataModule):
    """Training batches of squares, and whole pictures, one by one, for validation and tests.

    Batches are {"image": (B, 3, S, S) uint8, "mask": (B, 1, S, S) uint8 of 0 and 1, "label": (B,), "kind": (B,) places in `KINDS`, "index": (B,)}.

    Args:
        source: `procedural`, a protocol, or `lists`.
        root: folder of published sets, each in a folder of its name; lists are relative to it.
        batch_size: pictures of one training step over all processes together.
        num_workers: processes that read data for each training process.
        seed: seed of every random choice in the data.
        size: side of training squares, in pixels; null is 96 for forged pictures and 512 for files.
        train: with `lists`, a folder of Tp and Gt, a JSON or text list, a mixture, or named sets.
        val: the same for validation; null takes an eighth of each training set, but about per_set pictures at most, divided by sources.
        test_sets: names of published sets, or lists; with `procedural`, kinds of forgeries and control. Null is what the protocol has.
        finetune: with `pscc_ft`, the set that is learnt and tested: coverage (75 and 25 scenes), casia (v2 and v1) or nist16 (404 and 160 pictures).
        per_set: pictures of each training set an epoch; null takes all, and 1869 with `cat`.
        kinds: with `procedural`, forgeries to learn; null is noise, jpeg and resample inside the mask.
        authentic: with `procedural`, part of authentic pictures, in [0, 1).
        length: with `procedural`, number of training pictures.
        test_length: with `procedural`, number of pictures of validation and of each test set.
        augmentation: none, flips, or benco with all that IMDL-BenCo does.
        resize: resizes training pictures instead of cutting squares out, which wears traces away.
        align: cuts squares along JPEG's grid of 8 x 8 pixels.
        mask_fix: resizes masks of another size than their picture instead of refusing them.
        on_bad_file: refuse or skip pictures whose mask does not belong to them.
        on_leak: remove, refuse or keep training pictures that share a name or source with test pictures.
        leak_distance: bits of 63 in which pictures that look alike differ at most; null compares CASIA v1's with v2's only, by 4; a number reads
            every picture.

    Attributes:
        train_set: the training pictures.
        val_set: those of validation.
        test_names: names of the test sets.

    Raises:
        ValueError: if options do not fit.
    """

    sources: ClassVar[dict[str, str]] = {
        "procedural": "photographs that need no download, forged on the spot",
        "mvss": "learns CASIA v2, tests on other sets",
        "cat": "learns equally many pictures of five sets an epoch, tests on others",
        "pscc_ft": "tunes to one set, whose other part it tests on",
        "lists": "folders or lists of your own",
    }

    train_set: TrainingPictures
    val_set: WholePictures
    test_pictures: list[WholePictures]

    def __init__(
        self,
        source: str = "procedural",
        root: str | None = None,
        batch_size: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        size: int | None = None,
        train: str | None = None,
        val: str | None = None,
        test_sets: list[str] | None = None,
        finetune: FineTuned = "coverage",
        per_set: int | None = None,
        kinds: list[str] | None = None,
        authentic: float = 0.2,
        length: int = 400,
        test_length: int = 120,
        augmentation: Augmentation = "none",
        resize: bool = False,
        align: bool = False,
        mask_fix: bool = False,
        on_bad_file: OnBadFile = "refuse",
        on_leak: OnLeak = "remove",
        leak_distance: int | None = None,
    ) -> None:
        super().__init__(source, root, batch_size, num_workers, seed)
        self.save_hyperparameters(logger=False)
        self.options: Any = self.hparams
        self.size = size if size is not None else 96 if source == "procedural" else 512
        self.per_set = _CAT_PICTURES if per_set is None and source == "cat" else per_set
        self.kinds = list(IN_PLACE) if kinds is None else kinds
        self._check()

    def _check(self) -> None:
        options = self.options
        if self.source == "lists" and not (options.train and options.test_sets):
            raise ValueError("data.source lists needs the pictures to learn in data.train, and those to judge by in data.test_sets")
        if self.source != "lists" and (options.train or options.val):
            raise ValueError(f"data.train and data.val are for data.source lists; {self.source} has its own")
        if unknown := sorted(set(self.kinds) - set(FORGERIES)):
            raise ValueError(f"data.kinds holds {', '.join(unknown)}; choose of {', '.join(FORGERIES)}")
        if not self.kinds or not 0 <= options.authentic < 1:
            raise ValueError(f"data.kinds must name forgeries, and data.authentic be in [0, 1), got {self.kinds} and {options.authentic}")
        for name, known in (("augmentation", Augmentation), ("on_leak", OnLeak), ("finetune", FineTuned), ("on_bad_file", OnBadFile)):
            if options[name] not in get_args(known):
                raise ValueError(f"data.{name} must be one of {', '.join(get_args(known))}, got {options[name]!r}")
        if self.size < 32 or self.size % (BLOCK if options.align else 1):
            raise ValueError(f"data.size must be at least 32, and a multiple of 8 with data.align, got {self.size}")
        if min(options.length, options.test_length) < 1:
            raise ValueError(f"data.length and data.test_length must be at least 1, got {options.length} and {options.test_length}")

    def prepare_data(self) -> None:
        """Check that files are there and masks belong to them, before any work is done."""
        self.setup()

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "test_pictures"):
            return
        train, val, tests = self._forged() if self.source == "procedural" else self._files()
        options = self.options
        self.train_set = TrainingPictures(train, self.size, options.augmentation, options.resize, options.align, self.seed)
        self.val_set, self.test_names = WholePictures(val), list(tests)
        self.test_pictures = [WholePictures(pictures) for pictures in tests.values()]

    # ---- the sources

    def _forged(self) -> tuple[ForgedPictures, ForgedPictures, dict[str, ForgedPictures]]:
        options = self.options
        rest = (options.authentic, self.size, self.seed)
        self._sizes = [options.length]
        names = options.test_sets or [*FORGERIES, "control"]
        return (
            ForgedPictures("train", options.length, self.kinds, *rest),
            ForgedPictures("val", options.test_length, self.kinds, *rest),
            {name: ForgedPictures("test", options.test_length, [name], *rest) for name in names},
        )

    def _files(self) -> tuple[PictureFiles, PictureFiles, dict[str, PictureFiles]]:
        options = self.options
        train, val, tests = self._split()
        tested = [picture for pictures in tests.values() for picture in pictures]
        if options.val is None:
            val = guard(val, tested, options.on_leak, options.leak_distance, "validation")
        elif shared := leaks(val, tested, options.leak_distance):
            advice = "the best epoch and the threshold are then chosen on what is tested: divide them otherwise"
            _log.warning("%d of %d pictures of data.val share something with test pictures; %s", len(shared), len(val), advice)
        train = {name: guard(pictures, [*tested, *val], options.on_leak, options.leak_distance) for name, pictures in train.items()}
        check_manipulated("validation", val, "by them the best epoch and the threshold are chosen: set data.val, or another data.seed")
        check_manipulated("training", [picture for pictures in train.values() for picture in pictures], "add some to data.train")
        for name, pictures in train.items():
            if differences := confounds(clips(pictures)):
                _log.warning("%s: %s. A network can learn this instead of traces: look at results by format", name, "; ".join(differences))
        self._sizes = [len(pictures) for pictures in train.values()]
        learnt = [picture for pictures in train.values() for picture in pictures]
        fix = options.mask_fix
        return PictureFiles(learnt, fix), PictureFiles(val, fix), {name: PictureFiles(pictures, fix) for name, pictures in tests.items()}

    def _split(self) -> tuple[Sets, list[Picture], Sets]:
        """Return the sets to learn, the pictures of validation and the sets to test on."""
        options = self.options
        if self.source == "pscc_ft" and options.finetune in _HELD_OUT:
            name = options.finetune
            learnt, tested = divided(self._open([name])[name], _HELD_OUT[name], self.seed)
            train, tests = {name: learnt}, {name: tested} | self._open(options.test_sets or [])
        else:
            names, tested_names = _PROTOCOLS.get(self.source, (["casia_v2"], ["casia_v1"]))
            train = self._open([options.train] if options.train else names)
            tests = self._open(options.test_sets or tested_names)
        if options.val:
            return train, [picture for pictures in self._open([options.val]).values() for picture in pictures], tests
        share = lambda count: min(_VAL_FRACTION, self.per_set / count) if self.per_set else _VAL_FRACTION  # noqa: E731
        parts = {name: divided(pictures, share(len(pictures)), self.seed) for name, pictures in train.items()}
        return {name: part[0] for name, part in parts.items()}, [picture for part in parts.values() for picture in part[1]], tests

    def _open(self, names: Sequence[str]) -> Sets:
        sets: Sets = {}
        for name in names:
            found = {name: read_set(name, self.root)} if name in SETS else read_lists(self.root / Path(name).expanduser())
            for label, pictures in found.items():
                if _plain(label) in sets:
                    raise ValueError(f"two of the sets {', '.join(names)} are called {_plain(label)}: rename one, for results go by these names")
                sets[_plain(label)] = pictures
        fix = self.options.mask_fix
        return {name: check_pairs(pictures, self.options.on_bad_file, fix) for name, pictures in sets.items()}

    # ---- the loaders

    def train_dataloader(self) -> DataLoader:
        """Return the shuffled loader, whose sets are mixed anew in every epoch.

        Raises:
            ValueError: if an epoch has fewer pictures than a batch, or see `DataModule.training_loader`.
        """
        sampler = MixtureSampler(self._sizes, self.per_set, self.seed)
        if sum(sampler.counts) < self.batch_size:
            raise ValueError(
                f"data.batch_size {self.batch_size} is larger than an epoch of {sum(sampler.counts)} pictures: lower it, or add pictures"
            )
        return self.training_loader(self.train_set, sampler=sampler)

    def val_dataloader(self) -> DataLoader:
        """Return a loader of every validation picture once, in order."""
        return self._whole(self.val_set)

    def test_dataloader(self) -> list[DataLoader]:
        """Return one loader for each of `test_names`, of every picture once, in order."""
        return [self._whole(pictures) for pictures in self.test_pictures]

    def _whole(self, pictures: WholePictures) -> DataLoader:
        """Return a loader of whole pictures: one by one, unless all have one size."""
        return self.evaluation_loader(pictures, batch_size=None if isinstance(pictures.pictures, ForgedPictures) else 1)
