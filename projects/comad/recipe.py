"""What an inspector is fitted with, and which scores that gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from projects.comad.metrology import MetrologySettings
from projects.comad.vocabulary import Metric, Rating

PATCHES = "patches"
CANDIDATES = range(3, 13)
"""Numbers of clusters among which one is chosen."""
LOGICAL_PARTS = ("global", "number", "logical")


@dataclass(frozen=True)
class Recipe:
    """What an inspector is fitted with.

    Attributes:
        k: clusters of the vocabulary.
        fraction: part of each picture's tokens that the vocabulary is fitted to.
        restarts: beginnings of its k-means.
        metric: how tokens are compared; None takes what suits the features.
        choose: rating by which k is chosen among 3 to 12 when the vocabulary is fitted; None leaves it as it is.
        crf: sharpens maps by the dense CRF; without it each pixel belongs to one cluster.
        structural: fits a patch memory beside.
        seed: of all choices.
        metrology: see there.
        patches: options of `PatchMemory`, but for its seed.
    """

    k: int = 5
    fraction: float = 0.01
    restarts: int = 10
    metric: Metric | None = None
    choose: Rating | None = None
    crf: bool = True
    structural: bool = True
    seed: int = 0
    metrology: MetrologySettings = field(default_factory=MetrologySettings)
    patches: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be in (0, 1], got {self.fraction}")
        if self.k < 2 or self.restarts < 1:
            raise ValueError(f"a vocabulary has at least 2 clusters and 1 beginning, got k {self.k} and restarts {self.restarts}")

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the scores that there are."""
        return (*LOGICAL_PARTS, *self.metrology.extensions, *((PATCHES,) if self.structural else ()))

    def state(self) -> dict[str, Any]:
        """Return plain values that `from_state` takes."""
        return asdict(self) | {"metrology": self.metrology.state(), "patches": dict(self.patches)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Recipe:
        """Restore what `state` returned."""
        return cls(**(state | {"metrology": MetrologySettings.from_state(state["metrology"])}))
