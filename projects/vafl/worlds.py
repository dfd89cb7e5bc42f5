"""Offline worlds, each a function of its seed: handwriting, silhouettes of solids from twelve sides, and series of a hospital's kind."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from shared.seeding import generator
from shared.vertical.records import Records

SOLIDS = ("ball", "cube", "coin", "cone", "bar", "plate", "ring", "cross")
"""What `silhouettes` shows, in the order of the labels."""

VIEWS = 12
"""Cameras around an object, 30 degrees apart, as in the views of ModelNet40."""

SERIES_GROUPS = ((0, 1, 2, 3, 4, 5), (6, 7, 8, 9, 10), (11, 12, 13, 14), (15, 16))
"""Variables of each of the four parties of `vital_signs`."""

_ELEVATION = math.radians(30)  # of the cameras
_REACH = 1.3  # half the width that a picture shows, an object's radius being 0.6 to 1
_GRID = 16  # points a side of the cube that solids are cut from
_STEPS = 24


def handwriting() -> Records:
    """Scikit-learn's 1797 handwritten digits as they are, undivided: pictures (1797, 1, 8, 8) in [0, 1]; ids are the rows of scikit-learn's table."""
    from sklearn.datasets import load_digits

    data = load_digits()
    pictures = torch.from_numpy(data.images).float()[:, None] / 16  # values are 0 to 16
    ids = tuple(f"digit {row}" for row in range(len(pictures)))
    return Records(pictures, torch.from_numpy(data.target).long(), tuple("0123456789"), ids=ids)


# ---- silhouettes of solids


def silhouettes(objects: int = 800, seed: int = 0, size: int = 16, noise: float = 0.3) -> Records:
    """Silhouettes of solids in random pose, proportions and size, each seen by `VIEWS` cameras, every view partly hidden and noisy.

    A view alone is ambiguous: a plate from its edge is a bar, a coin from above a ball, and about a quarter of each picture is black.

    Args:
        objects: N, number of objects, as many of each solid.
        seed: seed of everything.
        size: height and width of a view, in pixels.
        noise: standard deviation of what is added to each pixel.

    Returns:
        (N, 12, 1, size, size) float32, about 0 for nothing and 1 for the solid; the label is the place in `SOLIDS`.

    Raises:
        ValueError: if there are fewer objects than solids.
    """
    if objects < len(SOLIDS):
        raise ValueError(f"there must be at least one object of each of the {len(SOLIDS)} solids, got {objects} objects")
    draws = generator(seed, "vafl", "views")
    labels = torch.arange(objects) % len(SOLIDS)
    poses = _poses(objects, draws)
    views = torch.empty(objects, VIEWS, size, size)
    for label, name in enumerate(SOLIDS):
        some = labels == label
        views[some] = _seen(_points(name), poses[some], size)
    kept = _half_planes(objects * VIEWS, size, draws).reshape(views.shape)
    views = views * kept + noise * torch.randn(views.shape, generator=draws)
    return Records(views[:, :, None], labels, SOLIDS, ids=tuple(f"object {number} of {seed}" for number in range(objects)))


def _points(name: str) -> Tensor:
    """Return the points of a solid that fits into the unit ball, (P, 3)."""
    side = torch.linspace(-1, 1, _GRID)
    x, y, z = grid = torch.stack(torch.meshgrid(side, side, side, indexing="ij")).flatten(1)
    across = (x**2 + y**2).sqrt()
    arms = grid.abs().sort(0).values  # a point's three distances from the axes' planes, the smallest first
    inside = {
        "ball": x**2 + y**2 + z**2 <= 1,
        "cube": arms[2] <= 1,
        "coin": (across <= 1) & (z.abs() <= 0.25),
        "cone": across <= (1 - z) / 2,
        "bar": (x.abs() <= 0.25) & (y.abs() <= 0.25),
        "plate": z.abs() <= 0.25,
        "ring": (across <= 1) & (across >= 0.6) & (z.abs() <= 0.25),
        "cross": arms[1] <= 0.25,
    }[name]
    points = grid[:, inside].T
    return points / points.norm(dim=1).max()


def _poses(objects: int, draws: torch.Generator) -> Tensor:
    """Draw for each object a map of its points, (N, 3, 3): axes stretched by 0.75 to 1, a size of 0.7 to 1, and any rotation."""
    rotations, triangle = torch.linalg.qr(torch.randn(objects, 3, 3, generator=draws))
    rotations = rotations * triangle.diagonal(dim1=1, dim2=2).sign()[:, None]  # uniform over rotations and reflections
    stretch = 0.75 + 0.25 * torch.rand(objects, 1, 3, generator=draws)
    return rotations * stretch * (0.7 + 0.3 * torch.rand(objects, 1, 1, generator=draws))


def _seen(points: Tensor, poses: Tensor, size: int) -> Tensor:
    """Return which pixels of each camera the points of each object fall on, (P, 3) and (N, 3, 3) -> (N, 12, size, size)."""
    cameras = torch.stack([_camera(2 * math.pi * view / VIEWS) for view in range(VIEWS)])  # (12, 2, 3)
    places = (cameras[None] @ poses[:, None]) @ points.T  # (N, 12, 2, P)
    pixels = ((places / _REACH + 1) / 2 * size).long().clamp_(0, size - 1)
    flat = pixels[:, :, 0] * size + pixels[:, :, 1]
    return torch.zeros(*flat.shape[:2], size * size).scatter_(2, flat, 1.0).unflatten(2, (size, size))


def _camera(angle: float) -> Tensor:
    """Return the downward and rightward axis of a camera's picture, (2, 3); it looks at the middle from an angle about the z axis."""
    right = [-math.sin(angle), math.cos(angle), 0.0]
    down = [math.sin(_ELEVATION) * math.cos(angle), math.sin(_ELEVATION) * math.sin(angle), -math.cos(_ELEVATION)]
    return torch.tensor([down, right])


def _half_planes(count: int, size: int, draws: torch.Generator) -> Tensor:
    """Draw half planes that hold the middle of a picture and a fifth of its side beyond, (count, size, size) of 0 and 1."""
    middle = torch.arange(size) - (size - 1) / 2
    angles = 2 * math.pi * torch.rand(count, 1, 1, generator=draws)
    return (middle[:, None] * angles.sin() + middle * angles.cos() > -0.2 * size).float()


# ---- series


def vital_signs(stays: int = 1600, seed: int = 0, missing: float = 0.6, share: float = 0.15) -> Records:
    """Series of 17 variables over 24 hours, of which few are measured each hour; some patients, about 15 %, die.

    Each party's variables follow one organ, whose drift over the day is the party's part of the risk: the sum of the four drifts decides, so that
    a party alone knows little. Values that were not measured are carried forward; before the first one they are 0.

    Args:
        stays: N, number of series.
        seed: seed of everything.
        missing: mean part of the values that are not measured; it differs from variable to variable.
        share: part of the patients who die.

    Returns:
        (N, 24, 17) float32; the label is 0 for those who live, 1 for the others.

    Raises:
        ValueError: if `share` is not in (0, 1).
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be in (0, 1), got {share}")
    draws = generator(seed, "vafl", "series")
    drifts = torch.randn(stays, len(SERIES_GROUPS), generator=draws)
    risk = drifts.sum(1) / 2 + 0.3 * torch.randn(stays, generator=draws)
    labels = (risk > risk.quantile(1 - share)).long()
    hours = torch.linspace(-1, 1, _STEPS)
    organs = drifts[:, None] * hours[:, None] + 0.5 * _wander(stays, len(SERIES_GROUPS), draws)  # (N, T, 4)
    owner = torch.tensor([party for party, group in enumerate(SERIES_GROUPS) for _ in group])
    loading = (0.5 + torch.rand(len(owner), generator=draws)) * torch.randn(len(owner), generator=draws).sign()
    values = organs[:, :, owner] * loading + _wander(stays, len(owner), draws)
    rates = (missing + 0.6 * (torch.rand(len(owner), generator=draws) - 0.5)).clamp(0, 0.95)
    carried = carried_forward(values, torch.rand(values.shape, generator=draws) >= rates)
    return Records(carried, labels, ("lived", "died"), ids=tuple(f"stay {number} of {seed}" for number in range(stays)))


def carried_forward(values: Tensor, measured: Tensor) -> Tensor:
    """Replace values that were not measured by the last one that was, (N, T, F) each; before the first one by 0."""
    steps = torch.arange(values.shape[1])[:, None].expand(values.shape)
    last = torch.where(measured, steps, -1).cummax(1).values
    return torch.where(last >= 0, values.gather(1, last.clamp_min(0)), 0.0)


def _wander(stays: int, variables: int, draws: torch.Generator) -> Tensor:
    """Draw autoregressive noise of variance 1, (N, 24, variables)."""
    shocks = torch.randn(stays, _STEPS, variables, generator=draws)
    for step in range(1, _STEPS):
        shocks[:, step] = 0.7 * shocks[:, step - 1] + math.sqrt(1 - 0.7**2) * shocks[:, step]
    return shocks
