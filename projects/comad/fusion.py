"""Adds the scores of several detectors whose scales differ, which validation pictures tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

How = Literal["sum", "zscore", "trimmed-z", "max", "rank"]
"""How a detector's scores are normalised before they are added, see `Fusion`."""

TRIMMED = (0.2, 0.8)
"""Quantiles between which validation scores count for `trimmed-z`."""


class Fusion:
    """Sum of normalised scores, one term a detector; larger is more anomalous.

    Normalisers come from good validation pictures alone: what else is scored together with a picture does not matter. By `how`, a score becomes

    - `sum`: itself.
    - `zscore`: (s - mean) / std of the validation scores, in the manner of a population; a std of 0 only subtracts.
    - `trimmed-z`: the same with mean and std of those between the 20th and the 80th percentile, ends included. One outlier does not stretch it.
    - `max`: s / the largest validation score (PSAD: the largest leave-one-out training score); itself if that is not above 0.
    - `rank`: the part of the validation scores below it, in [0, 1], equal ones counting one half. All scores beyond the validation's are alike.

    Args:
        how: see above.

    Raises:
        ValueError: if there is no such `how`.
    """

    def __init__(self, how: How = "trimmed-z") -> None:
        if how not in get_args(How):
            raise ValueError(f"how must be one of {', '.join(get_args(How))}, got {how!r}")
        self.how: How = how
        self.references: dict[str, Tensor] = {}
        """Sorted validation scores by detector, float64."""

    def fit(self, validation: Mapping[str, Tensor]) -> Self:
        """Learn the normalisers.

        Args:
            validation: (N,) scores of good validation pictures by detector; N may differ.

        Raises:
            ValueError: if there is no detector, or one has no scores or some that are not finite.
        """
        if not validation:
            raise ValueError("there are no scores to fuse: give those of at least one detector")
        self.references = {name: _checked(name, scores).sort().values for name, scores in validation.items()}
        return self

    def normalised(self, scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the terms of the sum.

        Args:
            scores: (N,) by detector, of the detectors that were fitted.

        Returns:
            (N,) float64 by detector.

        Raises:
            ValueError: if nothing was fitted, the detectors are not the fitted ones, their N differ, or a score is not finite.
        """
        if not self.references:
            raise ValueError("the fusion was not fitted: call fit with the scores of validation pictures")
        if set(scores) != set(self.references):
            raise ValueError(f"scores of {_names(scores)}, but the fusion was fitted on {_names(self.references)}: give the same detectors")
        if len({len(values) for values in scores.values()}) > 1:
            raise ValueError(f"detectors scored {', '.join(f'{len(scores[name])} ({name})' for name in scores)} pictures: score the same ones")
        return {name: self._normalise(_checked(name, scores[name]), reference.to(scores[name].device)) for name, reference in self.references.items()}

    def __call__(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Return the (N,) float64 sum of `normalised`."""
        return torch.stack(list(self.normalised(scores).values())).sum(0)

    def scales(self) -> dict[str, float]:
        """Return what each detector's scores, and so its anomaly maps, are divided by; 1 for `sum`, and with `rank` what it is for `trimmed-z`."""
        return {name: _scale(reference, self.how) for name, reference in self.references.items()}

    def _normalise(self, scores: Tensor, reference: Tensor) -> Tensor:
        if self.how == "sum":
            return scores
        if self.how == "max":
            return scores / _scale(reference, self.how)
        if self.how == "rank":
            below, not_above = (torch.searchsorted(reference, scores, right=right) for right in (False, True))
            return (below + not_above).double() / (2 * len(reference))
        return (scores - _kept(reference, self.how).mean()) / _scale(reference, self.how)

    def state(self) -> dict[str, Any]:
        """Return what `from_state` needs, as tensors and plain values."""
        return {"how": self.how, "references": dict(self.references)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild the fusion that `state` was taken of."""
        fusion = cls(state["how"])
        return fusion.fit(state["references"]) if state["references"] else fusion


def fuse(scores: Mapping[str, Tensor], validation_scores: Mapping[str, Tensor], how: How = "trimmed-z") -> Tensor:
    """Fit a `Fusion` and return its (N,) scores; arguments as there."""
    return Fusion(how).fit(validation_scores)(scores)


def _kept(reference: Tensor, how: How) -> Tensor:
    """Return the sorted validation scores that means and deviations are taken of: those between two quantiles, but all for `zscore`."""
    if how == "zscore":
        return reference
    low, high = torch.quantile(reference, reference.new_tensor(TRIMMED))
    kept = reference[(reference >= low) & (reference <= high)]
    return kept if len(kept) else reference  # two scores lie outside their own percentiles


def _scale(reference: Tensor, how: How) -> float:
    if how == "sum":
        return 1.0
    if how == "max":
        return float(reference[-1]) if reference[-1] > 0 else 1.0
    kept = _kept(reference, how)
    return 1.0 if kept[0] == kept[-1] else float(kept.std(correction=0))  # the deviation of equal numbers may round to one above 0


def _checked(name: str, scores: Tensor) -> Tensor:
    scores = scores.detach().double()
    if scores.ndim != 1 or len(scores) == 0:
        raise ValueError(f"scores of {name} must be (N,) and not empty, got {tuple(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise ValueError(f"{int((~scores.isfinite()).sum())} of {len(scores)} scores of {name} are NaN or infinite")
    return scores


def _names(scores: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted(scores)) or "none"
