"""Pictures with their depth and masks, read from files or drawn."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from projects.hodinet.augmentation import Layers
from projects.hodinet.depth import ARRAY, check_proportions, fitted, nearness, polarity, polarity_table, read_array, read_depth
from projects.hodinet.layouts import Inverted, Sample, by_set, is_inverted
from projects.hodinet.scenes import Variant, draw_scene
from shared.data.files import MASK_NOISE, BadFileError, first_few, image_size, read_levels, read_mask_levels
from shared.data.folders import OnBadFile
from shared.data.offline import Split
from shared.data.selection import evenly_spaced

_MARKED = 128  # of 255
_POLARITY = 50  # pictures of a set
_STRETCHED = (256, 256)  # height and width of DUT-RGBD's first depth maps, whose pictures have 400 x 600 pixels
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How depth is read.

    Attributes:
        inverted: the sets that have far = 1; pictures outside of sets have so only with all.
        normalise: see `projects.hodinet.depth.nearness`.
        thermal: what goes with the pictures is thermal.
    """

    inverted: Inverted = None
    normalise: bool = True
    thermal: bool = False

    def depth(self, sample: Sample, size: tuple[int, int]) -> Tensor:
        """Read the depth of a picture of a set, see `read`."""
        return self.read(sample.depth, is_inverted(sample, self.inverted, self.thermal), size, sample.dataset == "DUT-RGBD")

    def read(self, path: Path | None, invert: bool, size: tuple[int, int], may_be_stretched: bool = False) -> Tensor:
        """Read the depth of a picture.

        Args:
            path: its map, an image or `ARRAY`, whose numbers of any unit are stretched to [0, 1]; None is 0 everywhere.
            invert: the map has far = 1.
            size: height and width of the picture.
            may_be_stretched: the map may show the whole picture in a square of 256 pixels, whatever its proportions.

        Returns:
            (1, H, W) in [0, 1] with near = 1.

        Raises:
            BadFileError: if the map is damaged, shows depth in colours, or has other proportions than the picture.
            FileNotFoundError: if it is missing.
        """
        if path is None:
            return torch.zeros(1, *size)
        is_array = path.suffix.lower() == ARRAY
        depth = nearness(read_array(path), invert) if is_array else read_depth(path, invert, self.normalise, self.thermal)
        if not (may_be_stretched and tuple(depth.shape[1:]) == _STRETCHED):
            check_proportions((depth.shape[1], depth.shape[2]), size, path)
        return fitted(depth, size)


class SampleFiles:
    """Pictures in files, read when their turn comes."""

    def __init__(self, samples: Sequence[Sample], reading: Reading) -> None:
        self.samples, self.reading = list(samples), reading

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, index: int) -> Layers:
        """Return picture, depth and mask."""
        sample = self.samples[index]
        image = read_levels(sample.image)
        size = (image.shape[1], image.shape[2])
        return Layers(image, self.reading.depth(sample, size), read_mask(sample, size))


class DrawnScenes:
    """Scenes, drawn once and held in memory.

    Args:
        split: train, val and test hold different scenes.
        length: number of scenes.
        seed: seed of everything.
        size: side in pixels.
        variant: see `projects.hodinet.scenes.Variant`.
        invert: takes far and near for each other.
        normalise: see `projects.hodinet.depth.nearness`.
    """

    def __init__(self, split: Split, length: int, seed: int, size: int, variant: Variant, invert: bool = False, normalise: bool = True) -> None:
        drawn = [draw_scene(split, index, seed, size, variant) for index in range(length)]
        self.images = torch.stack([scene.image for scene in drawn])
        self.depths = torch.stack([nearness(scene.depth, invert, normalise) for scene in drawn])
        self.masks = torch.stack([scene.mask for scene in drawn]).byte()

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> Layers:
        """Return picture, depth and mask."""
        return Layers(self.images[index], self.depths[index], self.masks[index])


def read_mask(sample: Sample, size: tuple[int, int]) -> Tensor:
    """Read the mask of a picture; one that nobody made is empty.

    Args:
        sample: the picture.
        size: its height and width.

    Returns:
        (1, H, W) uint8: 1 above 128 of 255, as measures have it, or above half of the largest level in a file that has none above 128, such as one of
        0 and 1. In colours the strongest channel counts; transparent pixels are 0. It may mark nothing.

    Raises:
        BadFileError: if the mask is damaged, or of another size than the picture.
        FileNotFoundError: if it is missing.
    """
    if sample.mask is None:
        return torch.zeros(1, *size, dtype=torch.uint8)
    levels = read_mask_levels(sample.mask)[None]
    found = (levels.shape[1], levels.shape[2])
    if found != size:
        shapes = f"{found[0]} x {found[1]} pixels (height x width), its picture {sample.image} {size[0]} x {size[1]}"
        raise BadFileError(f"the mask {sample.mask} has {shapes}: take the files of one release")
    largest = int(levels.max())
    if largest <= 1:
        return levels
    return (levels > (_MARKED if largest > _MARKED else max(largest / 2, MASK_NOISE))).byte()


def check_samples(samples: Sequence[Sample], reading: Reading, on_bad_file: OnBadFile = "refuse") -> list[Sample]:
    """Decode every picture with its depth and mask once, and compare their sizes.

    Args:
        samples: the pictures.
        reading: how depth is read.
        on_bad_file: "refuse" raises one error that lists the bad ones; "skip" leaves them out with one warning.

    Returns:
        The good ones, in their order.

    Raises:
        BadFileError: if there are bad ones and `on_bad_file` is "refuse", or if all of them are bad.
    """
    with ThreadPoolExecutor() as pool:  # decoders run outside Python's lock
        complaints = list(pool.map(partial(_complaint, SampleFiles(samples, reading)), range(len(samples))))
    bad = [complaint for complaint in complaints if complaint]
    if bad and (on_bad_file == "refuse" or len(bad) == len(samples)):
        raise BadFileError(
            "\n  ".join(
                [
                    f"{len(bad)} of {len(samples)} pictures cannot be used:",
                    *first_few(bad),
                    "mend the files, or leave the pictures out with data.on_bad_file: skip",
                ]
            )
        )
    if bad:
        _log.warning("%d of %d pictures cannot be used and are left out, the first because: %s", len(bad), len(samples), bad[0])
    return [sample for sample, complaint in zip(samples, complaints, strict=True) if not complaint]


def _complaint(files: SampleFiles, index: int) -> str:
    """Say why a picture cannot be used; empty if it can."""
    try:
        files.read(index)
    except (BadFileError, FileNotFoundError) as error:
        return str(error)
    return ""


def warn_of_distances(samples: Sequence[Sample], reading: Reading) -> None:
    """Warn of sets whose depth has 16 bits and is read with near = 1, for sensors give distances, such as those of DES as its authors publish it."""
    for name, own in by_set(sample for sample in samples if sample.depth is not None).items():
        with Image.open(str(own[0].depth)) as picture:
            is_deep = picture.mode.startswith("I;16")
        if is_deep and not reading.thermal and not is_inverted(own[0], reading.inverted, reading.thermal):
            _log.warning("%s: its depth has 16 bits, as distances have, whose far is 1: look at it, and add the set to data.invert if so", name)


def polarity_report(samples: Sequence[Sample], reading: Reading, limit: int = _POLARITY) -> list[dict[str, Any]]:
    """Tell for each set whether what is salient is nearer, and warn where it is farther in most pictures.

    Args:
        samples: pictures with masks; test pictures would tell what is tested.
        reading: how depth is read.
        limit: pictures of a set that are looked at, at even distances.

    Returns:
        See `projects.hodinet.depth.polarity_table`.
    """
    sets = by_set(sample for sample in samples if sample.depth is not None and sample.mask is not None)
    few = {name: [own[place] for place in evenly_spaced(len(own), limit)] for name, own in sets.items()}
    with ThreadPoolExecutor() as pool:
        return polarity_table({name: list(pool.map(partial(_polarity, reading), own)) for name, own in few.items()})


def _polarity(reading: Reading, sample: Sample) -> float:
    size = image_size(sample.image)
    return polarity(reading.depth(sample, size), read_mask(sample, size))
