"""Was a training set poisoned? Scores of a suspect set, beside those of a clean one (the published code only hints at them)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from projects.dvae.defences import Defence
from projects.dvae.fitting import Settings, fit_purifier, purify_set, subset
from projects.dvae.losses import on_grid
from projects.dvae.purification import sample_noise
from projects.dvae.sets import ImageSet
from projects.dvae.training import Recipe, train_victim
from shared.data.files import first_few
from shared.seeding import generator

THRESHOLD = 0.2
"""Separability above which a set counts as poisoned where no clean set is given: in the middle between clean sets of digits (at most 0.12) and
poisoned ones (at least 0.26), of 500 images and of seeds that no table reports. Photographs keep more of their classes in residuals: give a
reference there."""
FEWEST = 10
"""Images of a class among so many below which `THRESHOLD` says nothing: of 5 in a half no network learns a class."""
GAIN = 3.0
"""Factor by which residuals are enlarged, around grey, before they are stored in 8 bits."""


@dataclass(frozen=True)
class Detector:
    """How scores are made.

    Attributes:
        purifier: training of the D-VAE, of one stage.
        recipe: training of the networks on residuals and on amplified images.
        images: that are looked at of a larger set. Networks learn more from residuals the more there are: `THRESHOLD` is that of 500.
    """

    purifier: Settings = field(default_factory=lambda: Settings(rates=(4.0,), epochs=(20,), width=16, batch_size=32))
    recipe: Recipe = field(default_factory=Recipe.quick)
    images: int = 500


@dataclass(frozen=True)
class Scores:
    """What a set looks like to the two tests; accuracies are those on the half that was held out.

    Attributes:
        separability: how well labels are told from what a rate-limited reconstruction leaves of an image, the better of `linear` and `network`,
            scaled so that guessing is 0 and no error 1. No label enters the residual.
        linear: accuracy of a linear classifier on the residual x - x̂.
        network: accuracy of a convolutional network on it.
        picture: accuracy of the same network on the reconstruction x̂.
        plain: accuracy of a network trained on images as they are.
        amplified: accuracy, on images as they are, of a network trained on x + p̂.
        images: images that were held out.
        chance: share of the largest class among them.
    """

    separability: float
    linear: float
    network: float
    picture: float
    plain: float
    amplified: float
    images: int
    chance: float

    @property
    def amplify(self) -> float:
        """Drop of accuracy on held-out images when the perturbation is added once more to those trained on."""
        return self.plain - self.amplified


@dataclass(frozen=True)
class Verdict:
    """A verdict on a set.

    Attributes:
        is_poisoned: whether separability lies above the threshold.
        threshold: the threshold.
        scores: of the set.
        reference: of the clean set, where one was given.
    """

    is_poisoned: bool
    threshold: float
    scores: Scores
    reference: Scores | None = None

    def to_row(self) -> dict[str, Any]:
        """Return the verdict as a row of a table."""
        row = {"verdict": "poisoned" if self.is_poisoned else "clean", "threshold": self.threshold}
        return row | asdict(self.scores) | {"amplify": self.scores.amplify}


def score_set(images: ImageSet, detector: Detector, seed: int) -> Scores:
    """Score a labelled set: a D-VAE and two classifiers are trained on one half of it, and asked about the other.

    Args:
        images: the set.
        detector: settings.
        seed: of the halves and of all training.

    Raises:
        ValueError: if a class has no image in one of the halves.
    """
    halves = [subset(images, rows) for rows in draw_halves(images.labels, detector.images, seed)]
    known, held = halves
    if missing := _apart(images.labels, known.labels, held.labels):
        names = ", ".join(first_few((images.class_names[label] for label in missing), 5))
        raise ValueError(f"{names}: too few images to be in both halves of the set; give more, or leave those classes out")
    module = fit_purifier(known, detector.purifier, seed)
    residuals, pictures = zip(*(_residuals(module, half, seed) for half in halves), strict=True)
    perturbed = _amplified(module, known)
    classes = len(images.class_names)

    def network(train: Tensor, test: Tensor) -> float:
        return train_victim(train, known.labels, test, held.labels, classes, detector.recipe, Defence(), seed).last

    chance = float(held.labels.bincount().max()) / len(held)
    linear, accuracy = _linear(residuals[0], known.labels, residuals[1], held.labels), network(*residuals)
    return Scores(
        separability=(max(linear, accuracy) - chance) / (1 - chance),
        linear=linear,
        network=accuracy,
        picture=network(*pictures),
        plain=network(known.images, held.images),
        amplified=network(perturbed, held.images),
        images=len(held),
        chance=chance,
    )


def draw_halves(labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw at most `count` images in two halves: at random, or where that leaves a class out of one of them, as many of each class as it has.

    Args:
        labels: (N,) int64.
        count: most images of both halves together.
        seed: of the draw.

    Returns:
        Rows of the halves, the first as long as the other or one longer.
    """
    order = torch.randperm(len(labels), generator=generator(seed, "small set"))[:count] if len(labels) > count else torch.arange(len(labels))
    order = order[torch.randperm(len(order), generator=generator(seed, "halves"))]
    middle = (len(order) + 1) // 2
    first, second = order[:middle], order[middle:]
    if _apart(labels, labels[first], labels[second]):
        rows = torch.randperm(len(labels), generator=generator(seed, "halves by class"))
        rows, sizes = rows[labels[rows].argsort(stable=True)], labels.bincount()
        place = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[labels[rows]]  # of every image in its class
        chosen = rows[place.argsort(stable=True)[: len(order)].sort().values]
        first, second = chosen[::2], chosen[1::2]
    return first, second


def _apart(labels: Tensor, *halves: Tensor) -> list[int]:
    """Return the classes that are missing in one of the halves."""
    return sorted(set(labels.tolist()) - set.intersection(*(set(half.tolist()) for half in halves)))


def check_threshold(images: ImageSet, detector: Detector) -> None:
    """Refuse sets of too many classes, or of too few images, for `THRESHOLD`.

    Raises:
        ValueError: if of as many images as are looked at there are fewer than `FEWEST` of a class.
    """
    classes, fewest = len(images.class_names), FEWEST * len(images.class_names)
    if detector.images < fewest:
        raise ValueError(
            f"the threshold is that of {detector.images} images, which are too few for the set's {classes} classes (at least {FEWEST} of each): "
            "name clean images of the kind with --reference, beside which more are looked at"
        )
    if len(images) < fewest:
        raise ValueError(f"the set's {len(images)} images are too few for a verdict on its {classes} classes: give at least {FEWEST} of each")


@torch.no_grad()
def _residuals(module: Any, images: ImageSet, seed: int) -> tuple[Tensor, Tensor]:
    """Return what the reconstruction leaves of every image, enlarged around grey, and the reconstruction: (N, C, H, W) uint8 each."""
    net, parts = module.stages[0], []
    for start in range(0, len(images), 256):
        batch = images.__getitems__(list(range(start, min(start + 256, len(images)))))
        latent = net.encode(batch["image"])
        picture = net.decode(net.sample(latent, sample_noise(net, batch["image"], batch["index"], seed, "residual")))
        parts.append((on_grid(0.5 + GAIN * (batch["image"] - picture)), picture))
    return tuple((torch.cat(each) * 255).round().byte() for each in zip(*parts, strict=True))  # type: ignore[return-value]


def _amplified(module: Any, images: ImageSet) -> Tensor:
    return (images.images + 255 * purify_set(module, images)["p1"]).round().clamp(0, 255).byte()


def _linear(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Return the accuracy of a linear classifier on (N, C, H, W) images, fitted on one half and asked about the other."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    flat = [images.flatten(1).float().numpy() for images in (train, test)]
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200, tol=1e-2))
    return float(classifier.fit(flat[0], labels.numpy()).score(flat[1], test_labels.numpy()))


def judge(scores: Scores, reference: Scores | None = None) -> Verdict:
    """Judge a set by its separability, against that of a clean set of the same kind or against `THRESHOLD`.

    Beside a clean set, the threshold lies three standard errors of both accuracies above it: that is exceeded by chance once in 740 times.

    Args:
        scores: of the suspect set.
        reference: of the clean set.
    """
    if reference is None:
        return Verdict(scores.separability > THRESHOLD, THRESHOLD, scores)
    share = [s.separability * (1 - s.chance) + s.chance for s in (scores, reference)]
    error = sum(p * (1 - p) / s.images / (1 - s.chance) ** 2 for p, s in zip(share, (scores, reference), strict=True)) ** 0.5
    threshold = min(0.95, reference.separability + 3 * error)
    return Verdict(scores.separability > threshold, threshold, scores, reference)
