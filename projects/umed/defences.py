"""What an exploiter may try against a protection, by name: `parse_defence("jpeg:50")`, or `"jpeg:50+test"` for test images as well.

A defence maps the stored images before training (jpeg, blur, median, bits, gamma, resize), augments the batches (affine), gives the loss (at), or
takes in images that are not protected (mix).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.umed.augmentation import blur, turn_and_scale
from projects.umed.losses import segmentation_loss
from projects.umed.sets import SegmentationSet
from shared.choices import Choice, choose
from shared.data.memory import chunks, through_jpeg, to_unit
from shared.poisons import ascend, to_levels
from shared.seeding import generator


class Defence:
    """No defence; others replace one of its methods.

    Attributes:
        name: the text that the defence was parsed from, such as "jpeg:50".
        maps_tests: whether test images can be mapped, too.
        defends_test: whether they are.
    """

    name = "none"
    maps_tests = False
    defends_test = False

    def transform_set(self, images: SegmentationSet, seed: int, clean: SegmentationSet | None = None) -> SegmentationSet:
        """Map the whole training set, once, before training.

        Args:
            images: the set as it was published.
            seed: seed of what is random.
            clean: the images behind the published ones, in the same order, for the defence that has some of them.
        """
        return images

    def transform_test(self, images: SegmentationSet) -> SegmentationSet:
        """Map test images, as an exploiter would who maps all images before prediction.

        Raises:
            ValueError: if this defence is for training only.
        """
        raise ValueError(f"the defence {self.name!r} is for training only; +test goes with jpeg, blur, median, bits, gamma and resize")

    def augment(self, images: Tensor, masks: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        """Change a batch of a training step.

        Args:
            images: (B, C, H, W) in [0, 1], on any device.
            masks: (B, H, W) int64.
            random: generator of this step, on the CPU.
        """
        return images, masks

    def loss(self, network: nn.Module, images: Tensor, masks: Tensor, random: torch.Generator) -> Tensor:
        """Return the scalar loss of a training batch; arguments as those of `augment`, and the network in training mode."""
        return segmentation_loss(network(images), masks)


class ImageMap(Defence):
    """A defence that maps image by image: it replaces `map`."""

    maps_tests = True

    def map(self, images: Tensor) -> Tensor:
        """Map some images, uint8 (B, C, H, W) -> the same."""
        raise NotImplementedError

    def transform_set(self, images: SegmentationSet, seed: int, clean: SegmentationSet | None = None) -> SegmentationSet:
        return self.transform_test(images)

    def transform_test(self, images: SegmentationSet) -> SegmentationSet:
        mapped = torch.empty_like(images.images)
        for part in chunks(images.images):
            mapped[part] = self.map(images.images[part])
        return images.with_images(mapped)


class JPEG(ImageMap):
    """JPEG compression and back.

    Args:
        quality: 1 to 100.

    Raises:
        ValueError: for a quality outside.
    """

    def __init__(self, quality: float = 50) -> None:
        if not 1 <= quality <= 100 or quality != int(quality):
            raise ValueError(f"the quality of jpeg must be a whole number from 1 to 100, got {quality:g}")
        self.quality = int(quality)
        self.name = f"jpeg:{self.quality}"

    def map(self, images: Tensor) -> Tensor:
        return through_jpeg(images, self.quality)


class Blur(ImageMap):
    """Gaussian blur, cut off at three standard deviations; the border is repeated outside.

    Args:
        sigma: standard deviation in pixels.

    Raises:
        ValueError: if it is not positive.
    """

    def __init__(self, sigma: float = 1.0) -> None:
        if not 0 < sigma <= 100:
            raise ValueError(f"the sigma of blur must lie in (0, 100], got {sigma:g}")
        self.sigma = sigma
        self.name = f"blur:{sigma:g}"

    def map(self, images: Tensor) -> Tensor:
        return to_levels(blur(to_unit(images), torch.full((len(images),), self.sigma)))


class Median(ImageMap):
    """Median of a square, each channel for itself; the border is repeated outside.

    Args:
        side: side of the square in pixels, odd.

    Raises:
        ValueError: if it is not an odd number from 3 to 31.
    """

    def __init__(self, side: float = 3) -> None:
        if side not in range(3, 32, 2):
            raise ValueError(f"the side of median must be an odd number from 3 to 31, got {side:g}")
        self.side = int(side)
        self.name = f"median:{self.side}"

    def map(self, images: Tensor) -> Tensor:
        reach = self.side // 2
        height, width = images.shape[2:]
        padded = F.pad(images.float(), [reach] * 4, mode="replicate").byte()  # padding is made for floats
        shifts = [(down, across) for down in range(self.side) for across in range(self.side)]
        views = torch.stack([padded[..., down : down + height, across : across + width] for down, across in shifts])
        return views.median(0).values


class BitDepth(ImageMap):
    """Fewer levels of brightness, evenly from black to white, each value going to the nearest one.

    Args:
        bits: 1 to 7.

    Raises:
        ValueError: for a number of bits outside.
    """

    def __init__(self, bits: float = 4) -> None:
        if bits not in range(1, 8):
            raise ValueError(f"the depth of bits must be a whole number from 1 to 7, got {bits:g}")
        self.bits = int(bits)
        self.name = f"bits:{self.bits}"

    def map(self, images: Tensor) -> Tensor:
        steps = 2**self.bits - 1
        return to_levels((to_unit(images) * steps).round() / steps)


class Gamma(ImageMap):
    """Other brightness, x to the power of gamma for x in [0, 1].

    Args:
        gamma: below 1 brightens, above 1 darkens.

    Raises:
        ValueError: if it is not in [0.1, 10].
    """

    def __init__(self, gamma: float = 1.5) -> None:
        if not 0.1 <= gamma <= 10:
            raise ValueError(f"gamma must lie in [0.1, 10], got {gamma:g}")
        self.gamma = gamma
        self.name = f"gamma:{gamma:g}"

    def map(self, images: Tensor) -> Tensor:
        return to_levels(to_unit(images) ** self.gamma)


class Resize(ImageMap):
    """Down to a part of the size and up again, bilinear and, downwards, without aliasing.

    Args:
        factor: part of the sides that is left.

    Raises:
        ValueError: if it is not between 0 and 1.
    """

    def __init__(self, factor: float = 0.5) -> None:
        if not 0 < factor < 1:
            raise ValueError(f"the factor of resize must lie between 0 and 1, got {factor:g}")
        self.factor = factor
        self.name = f"resize:{factor:g}"

    def map(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        smaller = [max(1, round(self.factor * side)) for side in (height, width)]
        small = F.interpolate(to_unit(images), smaller, mode="bilinear", antialias=True, align_corners=False)
        return to_levels(F.interpolate(small, (height, width), mode="bilinear", align_corners=False))


class AffineTraining(Defence):
    """Trains on images that are turned and scaled at random, anew in every step.

    Args:
        degrees: largest angle to either side; scales go from 0.85 to 1.25.

    Raises:
        ValueError: if the angle is not in [0, 180].
    """

    scales = (0.85, 1.25)

    def __init__(self, degrees: float = 15) -> None:
        if not 0 <= degrees <= 180:
            raise ValueError(f"the angle of affine must lie in [0, 180] degrees, got {degrees:g}")
        self.degrees = degrees
        self.name = f"affine:{degrees:g}"

    def augment(self, images: Tensor, masks: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
        angles, scales = torch.rand(2, len(images), generator=random)
        low, high = self.scales
        return turn_and_scale(images, masks, math.radians(self.degrees) * (2 * angles - 1), low + (high - low) * scales)


class AdversarialTraining(Defence):
    """Trains on images on which five steps of ascent within a radius, from a random start, made the loss high (Madry et al. 2018).

    Args:
        epsilon: radius in the l-infinity norm, in pixels of 255; steps are a quarter of it.

    Raises:
        ValueError: if it is not in (0, 255].
    """

    steps = 5

    def __init__(self, epsilon: float = 4) -> None:
        if not 0 < epsilon <= 255:
            raise ValueError(f"the radius of at must lie in (0, 255], got {epsilon:g}")
        self.epsilon = epsilon / 255
        self.name = f"at:{epsilon:g}"

    def loss(self, network: nn.Module, images: Tensor, masks: Tensor, random: torch.Generator) -> Tensor:
        network.eval()  # the search leaves running statistics alone
        found = ascend(images, lambda at: segmentation_loss(network(at), masks), self.epsilon, self.epsilon / 4, self.steps, random)
        network.train()
        return segmentation_loss(network(found), masks)


def mix_sets(protected: SegmentationSet, clean: SegmentationSet, share: float, seed: int) -> SegmentationSet:
    """Return a set in which a share of the images, chosen at random, is clean and the others are protected.

    Args:
        protected: the published set.
        clean: the images behind it, in the same order.
        share: part of clean images, in [0, 1]; their number is rounded.
        seed: seed of the choice; larger shares keep the images of smaller ones.

    Raises:
        ValueError: if the sets are not of one shape, or the share is out of range.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"the share of clean images must lie in [0, 1], got {share:g}")
    if protected.images.shape != clean.images.shape or not torch.equal(protected.mask_bytes, clean.mask_bytes):
        raise ValueError("the clean images must be those behind the protected ones, in the same order: their shapes or masks differ")
    count = len(protected)
    chosen = torch.randperm(count, generator=generator(seed, "clean share"))[: round(share * count)]
    images = protected.images.clone()
    images[chosen] = clean.images[chosen]
    return protected.with_images(images)


class CleanMixing(Defence):
    """Trains on a set in which some of the images are not protected.

    Args:
        share: part of the images that is clean.

    Raises:
        ValueError: if it is not in (0, 1].
    """

    def __init__(self, share: float = 0.2) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"the share of mix must lie in (0, 1], got {share:g}")
        self.share = share
        self.name = f"mix:{share:g}"

    def transform_set(self, images: SegmentationSet, seed: int, clean: SegmentationSet | None = None) -> SegmentationSet:
        if clean is None:
            raise ValueError("the defence 'mix' needs the clean images behind the protected ones: pass them as `clean`")
        return mix_sets(images, clean, self.share, seed)


DEFENCES: dict[str, Choice[Defence]] = {
    "none": Choice("train on the set as it is", Defence),
    "jpeg": Choice("JPEG compression", JPEG, "quality, 1 to 100; 50"),
    "blur": Choice("Gaussian blur", Blur, "sigma in pixels; 1"),
    "median": Choice("median filter", Median, "side in pixels, odd; 3"),
    "bits": Choice("fewer levels of brightness", BitDepth, "bits, 1 to 7; 4"),
    "gamma": Choice("other brightness", Gamma, "exponent, 0.1 to 10; 1.5"),
    "resize": Choice("down and up again", Resize, "part of the sides, below 1; 0.5"),
    "affine": Choice("training on turned and scaled images", AffineTraining, "largest angle in degrees; 15"),
    "at": Choice("adversarial training", AdversarialTraining, "radius in pixels of 255; 4"),
    "mix": Choice("training with some clean images among the protected ones", CleanMixing, "share of clean images; 0.2"),
}
"""The defences by name."""


def parse_defence(text: str) -> Defence:
    """Make a defence from its name and, after a colon, its parameter: "none", "jpeg", "jpeg:10", "mix:0.1".

    With "+test" at the end test images are mapped as well, as by an exploiter who maps all images before prediction: "blur:1+test".

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or a parameter or "+test" that the defence does not take.
    """
    which, plus, after = text.strip().partition("+")
    name, given = choose(which, DEFENCES, "defence")
    defence = DEFENCES[name].build(*given)
    if not plus:
        return defence
    if after != "test" or not defence.maps_tests:
        able = ", ".join(name for name, kind in DEFENCES.items() if isinstance(kind.build, type) and issubclass(kind.build, ImageMap))
        raise ValueError(f"{text!r}: what may follow a defence is +test, for {able}")
    defence.defends_test = True
    defence.name += "+test"
    return defence
