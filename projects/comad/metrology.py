"""Metrology: area, colour and number of each component, and the extensions position, grid, shape and pair."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from projects.comad.cielab import hue_ratio
from projects.comad.components import CERTAIN, CONTRAST, CROP, FilterName, find_components, histograms, thresholds, to_levels
from projects.comad.measures import Column, Group, Measures, pack
from projects.comad.pieces import NOISE, Pieces, find_pieces, size_classes, vote

OFFSETS = (1.0, 1.1, 1.2, 1.3, 1.4)
"""Multipliers of Otsu's threshold among which the steadiest is chosen."""
EXTENSIONS = ("position", "grid", "shape", "pair")
EPSILON = 1e-7
FLOOR = 0.01
"""Least deviation that an extension is measured in: a hundredth of the picture's side, of a share, of an elongation, or of an area."""
PIXELS = 800_000
"""Pixels of the pictures that are measured at once, which bounds memory."""


@dataclass(frozen=True)
class MetrologySettings:
    """How pictures are measured.

    Attributes:
        filter: which clusters are components: `first` asks the first training picture, `vote` twenty.
        extensions: of position, grid, shape, pair; they are measured beside area, colour and number, and change none of these.
        seed: of the pictures that vote.
        certainty: that a component must have somewhere; the reference's 0.5 needs maps that are sharp (CRF or hard).
        crop: margin that thresholds are blind to, by the side.
        contrast: least contrast of a heat map.
        least_area: that a piece must exceed, by the picture's area.
        reach: neighbourhood of an area among areas, by their mean.
        least_pieces: in that neighbourhood, for a size class.
        windows: of the grid, along each side; they overlap by half.
        split: part pieces that touch, by a watershed.
    """

    filter: FilterName = "first"
    extensions: tuple[str, ...] = EXTENSIONS
    seed: int = 0
    certainty: float = 0.5
    crop: float = CROP
    contrast: float = CONTRAST
    least_area: float = 50 / 224**2
    reach: float = 0.1
    least_pieces: int = 10
    windows: int = 3
    split: bool = False

    def __post_init__(self) -> None:
        if unknown := set(self.extensions) - set(EXTENSIONS):
            raise ValueError(f"extensions {', '.join(sorted(unknown))} are not known: use some of {', '.join(EXTENSIONS)}")

    def state(self) -> dict[str, Any]:
        """Return plain values that `from_state` takes."""
        return asdict(self) | {"extensions": list(self.extensions)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> MetrologySettings:
        """Restore what `state` returned."""
        return cls(**(state | {"extensions": tuple(state["extensions"])}))


class _Observed(NamedTuple):
    """Raw measures of B pictures by group, (B, D) each, the pieces of each of B * M masks, and the packed masks."""

    raw: dict[str, Tensor]
    pieces: Pieces
    masks: Tensor


class Metrology:
    """Learns from good pictures how components are measured, and measures pictures.

    Args:
        settings: how.

    Attributes:
        keep: (K,) bool, clusters that are components.
        components: M numbers of these.
        offsets: (M,) multiplier of the threshold.
        sizes: M of (P,) areas of training pieces, ascending.
        classes: M of (P,) their size classes, -1 for noise.
        norms: by group (2, D), what is taken from a raw value and what it is divided by.
        means: by group (D,) training means, which stand for what is undefined.
    """

    keep: Tensor
    offsets: Tensor

    def __init__(self, settings: MetrologySettings | None = None) -> None:
        self.settings = settings or MetrologySettings()
        self.components: tuple[int, ...] = ()
        self.sizes: list[Tensor] = []
        self.classes: list[Tensor] = []
        self.norms: dict[str, Tensor] = {}
        self.means: dict[str, Tensor] = {}

    def fit(self, heat: Sequence[Tensor] | Tensor, images: Sequence[Tensor] | Tensor, keep: Tensor | None = None) -> Measures:
        """Fit everything to good pictures, which are gone through three times; only measures, and a bit a pixel and component, are held.

        Args:
            heat: N maps (K, H, W) in [0, 1] or uint8 levels, such as a tensor of them, or a sequence that reads them.
            images: N pictures (3, H, W), uint8 RGB.
            keep: (K,) bool, clusters that are components; found by the filter if None.

        Returns:
            The measures of these pictures.

        Raises:
            ValueError: if there is no picture, sizes differ, no cluster is a component, or one is nowhere to be seen.
        """
        if not len(heat):
            raise ValueError("no pictures to measure: give at least one")
        s = self.settings
        self.keep = (find_components(heat, s.filter, s.seed, s.certainty, s.crop, s.contrast) if keep is None else keep).cpu()
        self.components = tuple(self.keep.nonzero()[:, 0].tolist())
        if not self.components:
            advice = f"{'take filter vote, ' if s.filter == 'first' else ''}another k, or a smaller certainty"
            reasons = "all are without contrast, nowhere certain, or reach into three corners"
            raise ValueError(f"none of {len(self.keep)} clusters is a component: {reasons}; {advice}")
        self.offsets = self._best_offsets(heat)
        observed = list(self._observe(heat, images))
        self._fit_classes(observed)
        self._fit_norms({name: torch.cat([part.raw[name] for part in observed]) for name in observed[0].raw})
        return self._compared(observed, heat[0].shape[1:])

    def measure(self, heat: Tensor, images: Tensor) -> Measures:
        """Measure pictures.

        Args:
            heat: (B, K, H, W) maps in [0, 1] or uint8 levels, or (K, H, W) of one picture.
            images: (B, 3, H, W) uint8 RGB, or (3, H, W).

        Raises:
            ValueError: if shapes or the number of clusters differ, or nothing was fitted.
        """
        if not self.components:
            raise ValueError("metrology knows no components yet: call fit with good pictures first")
        heat, images = (one if one.ndim == 4 else one[None] for one in (heat, images))
        if heat.shape[1] != len(self.keep):
            there = f"expected heat maps of {len(self.keep)} clusters, got {heat.shape[1]}"
            raise ValueError(f"{there}: use the vocabulary that metrology was fitted with")
        return self._compared(list(self._observe(heat, images)), heat.shape[2:])

    def masks(self, heat: Tensor) -> Tensor:
        """Binarise (B, K, H, W) heat maps as they are measured: (B, M, H, W) bool."""
        return self._masks(to_levels(heat)[:, list(self.components)])

    def _masks(self, levels: Tensor) -> Tensor:
        cuts = thresholds(levels, self.settings.crop, self.settings.contrast)
        return levels > _multiplied(cuts, self.offsets)[..., None, None]

    def _best_offsets(self, heat: Sequence[Tensor] | Tensor) -> Tensor:
        """Return the (M,) multipliers for which areas vary least, by their mean; of equals the smallest."""
        areas = []
        for part in _chunks(heat):
            chosen = to_levels(_stacked(heat, part))[:, list(self.components)]
            above = chosen.shape[2] * chosen.shape[3] - histograms(chosen).cumsum(-1)  # pixels above each level
            cuts = thresholds(chosen, self.settings.crop, self.settings.contrast)
            areas.append(torch.stack([above.gather(-1, _multiplied(cuts, m)[..., None])[..., 0] for m in OFFSETS]))
        pooled = torch.cat(areas, dim=1).double().cpu()  # (offsets, N, M)
        mean = pooled.mean(1)
        variation = torch.where(mean > 0, pooled.std(1, correction=0) / mean.clamp_min(EPSILON), torch.inf)
        if unseen := [k for k, least in zip(self.components, variation.amin(0).tolist(), strict=True) if least == torch.inf]:
            raise ValueError(f"clusters {unseen} are in no training picture, so they cannot be components: leave them out of keep")
        return torch.tensor(OFFSETS, dtype=torch.float64)[variation.argmin(0)]

    def _observe(self, heat: Sequence[Tensor] | Tensor, images: Sequence[Tensor] | Tensor) -> Iterator[_Observed]:
        for part in _chunks(heat):
            levels, pictures = _stacked(heat, part), _stacked(images, part)
            if len(heat) != len(images) or levels.shape[2:] != pictures.shape[2:] or pictures.shape[1] != 3 or pictures.dtype != torch.uint8:
                shapes = f"{len(heat)} heat maps {tuple(levels.shape[1:])} and {len(images)} {pictures.dtype} pictures {tuple(pictures.shape[1:])}"
                raise ValueError(f"{shapes} do not belong together: give as many (K, H, W) as (3, H, W) uint8 of one size")
            masks = self._masks(to_levels(levels)[:, list(self.components)])
            pieces = find_pieces(masks.flatten(0, 1), self.settings.least_area * masks[0, 0].numel(), self.settings.split)
            yield _Observed(self._raw(masks, pictures.to(masks.device), pieces), pieces, pack(masks))

    def _raw(self, masks: Tensor, images: Tensor, pieces: Pieces) -> dict[str, Tensor]:
        """Return raw measures of (B, M, H, W) masks by group, (B, D) on the CPU."""
        flat = masks.flatten(2).double()
        area, hue = flat.sum(-1), (flat @ hue_ratio(images).flatten(1)[..., None])[..., 0]
        per_pixel = torch.where(area > 0, 1 / area.clamp_min(1), torch.nan)
        shares = (flat @ _places(masks.shape[2], masks.shape[3], self.settings.windows).to(flat)) * per_pixel[..., None]
        area, colour, shares = area.cpu(), (hue * per_pixel).cpu(), shares.cpu()
        x, y = shares[..., 0], shares[..., 1]
        raw = {"global": torch.cat([area, colour], dim=1)}
        for name in self.settings.extensions:
            if name == "position":
                raw[name] = torch.cat([x, y], dim=1)
            elif name == "grid":
                raw[name] = shares[..., 2:].flatten(1)
            elif name == "shape":
                raw[name] = _mean_elongation(pieces, area.numel()).view(area.shape)
            else:
                logarithm = torch.where(area > 0, area.clamp_min(1).log(), torch.nan)
                related = [value[:, i] - value[:, j] for i, j in self._pairs() for value in (logarithm, x, y)]
                raw[name] = torch.stack(related, 1) if related else area[:, :0]  # a single component has no relations
        return raw

    def _pairs(self) -> list[tuple[int, int]]:
        return list(itertools.combinations(range(len(self.components)), 2))

    def columns(self, group: str) -> tuple[Column, ...]:
        """Name the measures of a group."""
        if group == "pair":
            related = [(self.components[i], self.components[j]) for i, j in self._pairs()]
            return tuple(Column(name, pair) for pair in related for name in ("log area ratio", "x difference", "y difference"))
        if group == "grid":
            names = [f"share {row}.{column}" for row in range(self.settings.windows) for column in range(self.settings.windows)]
            return tuple(Column(name, (k,)) for k in self.components for name in names)
        names = {"global": ["area", "colour"], "position": ["x", "y"], "shape": ["elongation"]}[group]
        return tuple(Column(name, (k,)) for name in names for k in self.components)

    def _fit_classes(self, observed: list[_Observed]) -> None:
        count = len(self.components)
        self.sizes, self.classes = [], []
        for index in range(count):
            areas = torch.cat([part.pieces.area[part.pieces.owner % count == index] for part in observed]).sort().values
            reach = self.settings.reach * float(areas.double().mean()) if len(areas) else 0.0
            self.sizes.append(areas)
            classes = size_classes(areas, reach, self.settings.least_pieces)
            self.classes.append(classes if bool((classes != NOISE).any()) else torch.zeros_like(classes))  # all sizes are one class

    def _fit_norms(self, raw: dict[str, Tensor]) -> None:
        for name, values in raw.items():
            mean = values.nanmean(0).nan_to_num()
            deviation = ((values - mean) ** 2).nanmean(0).nan_to_num().sqrt()
            is_global = name == "global"
            tiny = torch.tensor([EPSILON * (column.measure == "colour") for column in self.columns(name)], dtype=torch.float64)
            scale = mean + tiny if is_global else deviation.clamp_min(FLOOR)
            self.means[name], self.norms[name] = mean, torch.stack([torch.zeros_like(mean) if is_global else mean, scale])

    def _compared(self, observed: list[_Observed], size: torch.Size) -> Measures:
        groups = {}
        for name in observed[0].raw:
            raw = torch.cat([part.raw[name] for part in observed])
            shift, scale = self.norms[name]
            groups[name] = Group(self.columns(name), raw, (torch.where(raw.isnan(), self.means[name], raw) - shift) / scale)
        counts = [self._histograms(part) for part in observed]
        pooled = tuple(torch.cat(parts) for parts in zip(*counts, strict=True))
        return Measures(self.components, groups, pooled, torch.cat([part.masks for part in observed]), (size[0], size[1]))

    def _histograms(self, part: _Observed) -> list[Tensor]:
        """Count the pieces of each size class; M of (B, C_k)."""
        count, pictures = len(self.components), len(part.masks)
        counted = []
        for index, (sizes, classes) in enumerate(zip(self.sizes, self.classes, strict=True)):
            bins = count_classes(classes)
            own = part.pieces.owner % count == index
            voted = vote(part.pieces.area[own], sizes, classes)
            cells = (part.pieces.owner[own] // count)[voted != NOISE] * bins + voted[voted != NOISE]
            counted.append(torch.bincount(cells, minlength=pictures * bins).view(pictures, bins))
        return counted

    def report(self) -> list[dict[str, Any]]:
        """Say what was learnt of each component: threshold, mean area and colour, size classes, and the part of the pieces that fit none.

        Pieces that touch make blobs, which look like a further class or like noise: see `noise`, and the classes' ranges in pixels.
        """
        rows: list[dict[str, Any]] = []
        area, colour = self.means["global"].view(2, -1).tolist()
        for index, k in enumerate(self.components):
            sizes, classes = self.sizes[index], self.classes[index]
            members = [sizes[classes == c] for c in range(count_classes(classes)) if bool((classes == c).any())]
            ranges = [{"pieces": len(found), "from": int(found[0]), "to": int(found[-1])} for found in members]
            noise = float((classes == NOISE).double().mean()) if len(classes) else 0.0
            row = {"component": k, "offset": float(self.offsets[index]), "area": area[index], "colour": colour[index]}
            rows.append(row | {"classes": ranges, "pieces": len(sizes), "noise": noise})
        return rows

    def state(self) -> dict[str, Any]:
        """Return tensors and plain values that `from_state` takes."""
        settings = self.settings.state()
        state: dict[str, Any] = {"settings": settings, "keep": self.keep, "offsets": self.offsets}
        for index, (sizes, classes) in enumerate(zip(self.sizes, self.classes, strict=True)):
            state |= {f"sizes/{index}": sizes, f"classes/{index}": classes}
        for name in self.norms:
            state |= {f"norms/{name}": self.norms[name], f"means/{name}": self.means[name]}
        return state

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Metrology:
        """Restore what `state` returned."""
        self = cls(MetrologySettings.from_state(state["settings"]))
        self.keep, self.offsets = state["keep"], state["offsets"]
        self.components = tuple(self.keep.nonzero()[:, 0].tolist())
        for index in range(len(self.components)):
            self.sizes.append(state[f"sizes/{index}"])
            self.classes.append(state[f"classes/{index}"])
        for name in ("global", *self.settings.extensions):
            self.norms[name], self.means[name] = state[f"norms/{name}"], state[f"means/{name}"]
        return self


def count_classes(classes: Tensor) -> int:
    """Return the number of size classes, C; 1 where there is only noise."""
    return max(1, int(classes.max()) + 1) if len(classes) else 1


def _multiplied(cuts: Tensor, offsets: Tensor | float) -> Tensor:
    """Return int(m t) of thresholds, no more than the level of certainty."""
    by = offsets.to(cuts.device) if isinstance(offsets, Tensor) else offsets
    return (cuts.double() * by).long().clamp(max=CERTAIN)


def _places(height: int, width: int, windows: int) -> Tensor:
    """Return (H W, 2 + windows^2): x and y of each pixel's middle, in parts of the picture, and in which windows it lies."""
    y, x = (torch.arange(height, dtype=torch.float64) + 0.5) / height, (torch.arange(width, dtype=torch.float64) + 0.5) / width
    start = torch.arange(windows, dtype=torch.float64)[:, None] / (windows + 1)
    rows, columns = (((line >= start) & (line < start + 2 / (windows + 1))).double() for line in (y, x))
    inside = torch.einsum("ih,jw->ijhw", rows, columns).flatten(2).flatten(0, 1)
    return torch.cat([x.repeat(height)[None], y.repeat_interleave(width)[None], inside]).T


def _mean_elongation(pieces: Pieces, masks: int) -> Tensor:
    """Return the (masks,) mean elongation of the pieces of each mask; NaN where there is none."""
    count = torch.bincount(pieces.owner, minlength=masks)
    return torch.bincount(pieces.owner, pieces.elongation, minlength=masks) / torch.where(count > 0, count.double(), torch.nan)


def _chunks(heat: Sequence[Tensor] | Tensor) -> Iterator[range]:
    """Yield the numbers of as many pictures as are measured at once."""
    step = max(1, PIXELS // heat[0][0].numel())
    return (range(start, min(start + step, len(heat))) for start in range(0, len(heat), step))


def _stacked(pictures: Sequence[Tensor] | Tensor, part: range) -> Tensor:
    """Return some pictures as one tensor."""
    if isinstance(pictures, Tensor):
        return pictures[part.start : part.stop]
    return torch.stack([pictures[number] for number in part if number < len(pictures)])
