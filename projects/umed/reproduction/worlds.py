"""The offline set that the claims are shown on, with the settings that suit it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from projects.umed.exploiting import Recipe
from projects.umed.fitting import Settings
from projects.umed.workshop import Workshop

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
    },
)
"""The published objective: 600 steps of the small networks on 240 images of 32 x 32 pixels."""

RADIUS = 1
"""Reach of the contour's band in images of that size, in pixels."""


def varied(**options: Any) -> Settings:
    """Return the settings with other options of the generators."""
    return replace(SETTINGS, options=SETTINGS.options | options)


def ellipses(folder: Path, quick: bool, variants: dict[str, Settings] | None = None, epsilon: float = 4.0) -> Workshop:
    """Return the workshop of dark ellipses in speckle, 32 x 32 pixels."""
    return Workshop(folder / f"ellipses-{epsilon:g}", {"source": "ellipses"}, SETTINGS, Recipe(), epsilon, variants or {}, is_quick=quick)
