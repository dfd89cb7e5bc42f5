"""Defences to set the D-VAE beside (section 5), by name: `parse_defence("jpeg:10")`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from projects.dvae.defences.adversarial import AdversarialTraining
from projects.dvae.defences.base import Budget, Defence
from projects.dvae.defences.compression import JPEG, BitDepth, Blur, Grey
from projects.dvae.defences.mixing import Cutout, Mixing
from projects.dvae.defences.projection import OrthogonalProjection
from projects.dvae.defences.reconstruction import VAE, Autoencoder
from projects.dvae.defences.ueraser import UEraser

__all__ = ["DEFENCES", "Budget", "Defence", "Kind", "parse_defence"]


@dataclass(frozen=True)
class Kind:
    """A defence in the registry.

    Attributes:
        description: what it does, in a line.
        build: makes it from its parameter, where one is given.
        parameter: what may follow its name after a colon; None for nothing.
        is_trained: whether it takes a budget.
    """

    description: str
    build: Callable[..., Defence]
    parameter: str | None = None
    is_trained: bool = False


DEFENCES = {
    "none": Kind("train on the set as it is", Defence),
    "grey": Kind("grey images", Grey),
    "jpeg": Kind("JPEG compression", JPEG, "quality, 1 to 100; 10"),
    "bdr": Kind("reduced depth", BitDepth, "bits, 1 to 7; 2"),
    "blur": Kind("Gaussian blur, 3 x 3", Blur, "sigma in pixels; 0.1"),
    "cutout": Kind("a black square in every training image", Cutout),
    "mixup": Kind("training on blends of images", lambda: Mixing("mixup")),
    "cutmix": Kind("training on images with a box of another one", lambda: Mixing("cutmix")),
    "at": Kind("adversarial training", AdversarialTraining, "radius in pixels of 255; 8"),
    "ueraser": Kind("training on the worst of five strong augmentations", UEraser, "share of the epochs with all five; 0.25"),
    "op": Kind("orthogonal projection: without what a linear classifier reads", OrthogonalProjection),
    "ae": Kind("reconstruction by an autoencoder trained on the set", Autoencoder, "channels of the bottleneck, 1 to 512; 8", is_trained=True),
    "vae": Kind("reconstruction by a rate-constrained VAE trained on the set", VAE, "rate in nats a latent position; 1", is_trained=True),
}
"""The defences by name."""


def parse_defence(text: str, budget: Budget | None = None) -> Defence:
    """Make a defence from its name and, after a colon, its parameter: "none", "jpeg", "jpeg:10", "vae:1.0".

    Args:
        text: the name, with or without a parameter.
        budget: how ae and vae are trained; None as published.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or a parameter that the defence does not take.
    """
    name, colon, given = text.strip().partition(":")
    kind = DEFENCES.get(name)
    if kind is None:
        known = ", ".join(f"{key} ({each.parameter})" if each.parameter else key for key, each in DEFENCES.items())
        raise ValueError(f"no defence {name!r}; choose one of {known}")
    if colon and kind.parameter is None:
        raise ValueError(f"the defence {name!r} takes no parameter, got {text!r}")
    options: dict[str, Any] = {"budget": budget} if kind.is_trained else {}
    if not colon:
        return kind.build(**options)
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"the parameter of {name!r} ({kind.parameter}) must be a number, got {given!r}")
    return kind.build(value, **options)
