"""The two offline sets that the claims are shown on, with the settings that suit them."""

from __future__ import annotations

from pathlib import Path

from projects.dvae.fitting import Settings
from projects.dvae.training import Recipe
from projects.dvae.workshop import Workshop

DIGITS = Settings(rates=(4.0, 20.0), epochs=(30, 30), width=24, batch_size=64, options={"energy_floor": 0.01})
"""Digits of 8 x 8 pixels have latents of 4 x 4 positions, sixteen times fewer than CIFAR's: the rate of each is larger. A
perturbation of one pixel in 64 has more energy than the published hinge allows for one in 1024."""


def digits(folder: Path, quick: bool) -> Workshop:
    """Return the workshop of faint coloured digits, 8 x 8 pixels."""
    radius = 12 / 255 * (3 * 64) ** 0.5  # a root mean square of 12 levels
    return Workshop(folder / "digits", {"source": "digits", "size": 8}, DIGITS, Recipe.quick(), {"lsp": radius, "ar": radius}, is_quick=quick)


def textures(folder: Path, quick: bool) -> Workshop:
    """Return the workshop of shapes on waves of colour, 32 x 32 pixels."""
    settings = Settings(rates=(1.0, 3.0), epochs=(30, 30), width=16, batch_size=64)
    return Workshop(
        folder / "textures", {"source": "textures", "size": 32, "length": 1200}, settings, Recipe.quick(), {"lsp": 2.6, "ar": 2.6}, is_quick=quick
    )


def detection(folder: Path, quick: bool) -> Workshop:
    """Return the workshop of the sets that are told apart: faint digits of 16 x 16 pixels, poisoned as hard as published sets are, pixel by pixel."""
    radii = {"lsp": 0.65, "ar": 1.0}
    return Workshop(folder / "detection", {"source": "digits", "size": 16}, DIGITS, Recipe.quick(), radii, is_quick=quick)
