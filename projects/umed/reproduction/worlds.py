"""The offline set that the claims are shown on, with the settings that suit it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from projects.umed.exploiting import Recipe
from projects.umed.fitting import Settings
from projects.umed.workshop import Workshop

SIZE = 48
"""Side of the images in pixels."""

SETTINGS = Settings(
    40,
    16,
    {
        "generator_widths": [8, 16, 32],
        "surrogate_widths": [8, 16, 32],
        "gen_steps": 1,
        "sur_steps": 1,
        "lr_generator": 2e-3,
        "lr_surrogate": 2e-3,
        "exchange": 1.0,
        "high_pass": 3,
    },
)
"""Those of configs/tiny.yaml: 600 steps of the small networks on 240 images. The published objective has neither `exchange` nor `high_pass`."""

RADIUS = 1
"""Reach of the contour's band in images of that size, in pixels."""


def varied(epochs: int = SETTINGS.epochs, **options: Any) -> Settings:
    """Return the settings with other epochs and options of the generators."""
    return replace(SETTINGS, epochs=epochs, options=SETTINGS.options | options)


def ellipses(folder: Path, quick: bool, variants: dict[str, Settings] | None = None, epsilon: float = 4.0) -> Workshop:
    """Return the workshop of dark ellipses in speckle."""
    data = {"source": "ellipses", "size": SIZE}
    return Workshop(folder / f"ellipses-{epsilon:g}{'-quick' * quick}", data, SETTINGS, Recipe(), epsilon, variants or {}, is_quick=quick)
