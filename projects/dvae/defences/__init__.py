"""Defences to set the D-VAE beside, by name: `parse_defence("jpeg:10")`."""

from __future__ import annotations

from projects.dvae.defences.adversarial import AdversarialTraining
from projects.dvae.defences.base import Budget, Defence
from projects.dvae.defences.compression import JPEG, BitDepth, Blur, Grey
from projects.dvae.defences.mixing import Cutout, Mixing
from projects.dvae.defences.projection import OrthogonalProjection
from projects.dvae.defences.reconstruction import VAE, Autoencoder
from projects.dvae.defences.ueraser import UEraser
from shared.choices import Choice, choose

__all__ = ["DEFENCES", "Budget", "Defence", "parse_defence"]


DEFENCES: dict[str, Choice[Defence]] = {
    "none": Choice("train on the set as it is", Defence),
    "grey": Choice("grey images", Grey),
    "jpeg": Choice("JPEG compression", JPEG, "quality, 1 to 100; 10"),
    "bdr": Choice("reduced depth", BitDepth, "bits, 1 to 7; 2"),
    "blur": Choice("Gaussian blur, 3 x 3", Blur, "sigma in pixels; 0.1"),
    "cutout": Choice("a black square in every training image", Cutout),
    "mixup": Choice("training on blends of images", lambda: Mixing("mixup")),
    "cutmix": Choice("training on images with a box of another one", lambda: Mixing("cutmix")),
    "at": Choice("adversarial training", AdversarialTraining, "radius in pixels of 255; 8"),
    "ueraser": Choice("training on the worst of five strong augmentations", UEraser, "share of the epochs with all five; 0.25"),
    "op": Choice("orthogonal projection: without what a linear classifier reads", OrthogonalProjection),
    "ae": Choice("reconstruction by an autoencoder trained on the set", Autoencoder, "channels of the bottleneck, 1 to 512; 8"),
    "vae": Choice("reconstruction by a rate-constrained VAE trained on the set", VAE, "rate in nats a latent position; 1"),
}
"""The defences by name."""
TRAINED = ("ae", "vae")
"""Those that train a network on the set, and take a budget."""


def parse_defence(text: str, budget: Budget | None = None) -> Defence:
    """Make a defence from its name and, after a colon, its parameter: "none", "jpeg", "jpeg:10", "vae:1.0".

    Args:
        text: the name, with or without a parameter.
        budget: how ae and vae are trained; None as published.

    Raises:
        ValueError: for an unknown name (the message lists the known ones), or a parameter that the defence does not take.
    """
    name, given = choose(text, DEFENCES, "defence")
    options = {"budget": budget} if name in TRAINED else {}
    return DEFENCES[name].build(*given, **options)
