"""The advection-diffusion equation by finite volumes, batched and differentiable.

    dc/dt + div(w c) = D lap(c) + s

Fields are cell averages (..., H, W): rows are y, columns are x. Winds live on cell faces: `u` (..., H, W) on the left faces and `v` (..., H, W) on
the lower faces of a periodic domain; with open boundaries (..., H, W + 1) and (..., H + 1, W), the last faces being those of the border.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.nn import functional as F

Scheme = Literal["central", "upwind", "vanleer"]
"""Value of the field on a face: mean of both cells, the cell upstream, or that cell with van Leer's limited slope."""
Boundary = Literal["periodic", "open"]
"""Periodic, or open: what flows in is clean, what flows out leaves, and nothing diffuses through the border."""
RINGING = 30.0
"""Cell Peclet number |w| dx / D above which the central scheme rings so that it shows; from about 10 on there are traces."""
CACHED = 2**16
"""Cells that are carried at a time on a CPU, so that they stay in its cache."""


@overload
def at_frame(values: Tensor, frame: int) -> Tensor: ...
@overload
def at_frame(values: None, frame: int) -> None: ...
def at_frame(values: Tensor | None, frame: int) -> Tensor | None:
    """Return what belongs to a frame of (B, T, ...), or the only one of (B, 1, ...); None of nothing."""
    return None if values is None else values[:, min(frame, values.shape[1] - 1)]


def together(known: Tensor | None, found: Tensor | None) -> Tensor | None:
    """Return the rates of release of sources that are known and of those that were found."""
    return found if known is None else known if found is None else known + found


@overload
def of_frames(values: Tensor, begin: int, end: int) -> Tensor: ...
@overload
def of_frames(values: None, begin: int, end: int) -> None: ...
def of_frames(values: Tensor | None, begin: int, end: int) -> Tensor | None:
    """Return what belongs to frames `begin` to `end` (exclusive) of (B, T, ...); that of (B, 1, ...) stays one, and nothing is None."""
    return values if values is None or values.shape[1] == 1 else values[:, begin:end]


class Wind(NamedTuple):
    """Face velocities, in units of length by units of time.

    Attributes:
        u: along x, (..., H, W), or (..., H, W + 1) for open boundaries.
        v: along y, (..., H, W), or (..., H + 1, W) for open boundaries.
    """

    u: Tensor
    v: Tensor

    def at(self, frame: int) -> Wind:
        """Return the wind of a frame of (B, T, ...), or the only one of (B, 1, ...)."""
        return Wind(at_frame(self.u, frame), at_frame(self.v, frame))

    def frames(self, begin: int, end: int) -> Wind:
        """Return the winds of frames `begin` to `end` (exclusive) of (B, T, ...); those of (B, 1, ...) stay one."""
        return Wind(of_frames(self.u, begin, end), of_frames(self.v, begin, end))

    def select(self, rows: Any) -> Wind:
        """Return the winds of some sequences."""
        return Wind(self.u[rows], self.v[rows])

    def scaled(self, by_x: float, by_y: float) -> Wind:
        """Return the winds times a factor for each direction."""
        return Wind(self.u * by_x, self.v * by_y)

    def to(self, like: Tensor) -> Wind:
        """Return the winds with the device and type of a tensor."""
        return Wind(self.u.to(like), self.v.to(like))


def wind_from_stream(psi: Tensor, spacing: tuple[float, float], boundary: Boundary = "periodic") -> Wind:
    """Return face velocities that are free of divergence in every cell: u = d psi / dy, v = -d psi / dx.

    Args:
        psi: stream function at the cells' corners: (..., H, W) at the lower left corners of a periodic domain, (..., H + 1, W + 1) at all corners of
            an open one.
        spacing: (dy, dx) of the cells.
        boundary: of the domain.
    """
    dy, dx = spacing
    if boundary == "periodic":
        return Wind((psi.roll(-1, -2) - psi) / dy, (psi - psi.roll(-1, -1)) / dx)
    return Wind((psi[..., 1:, :] - psi[..., :-1, :]) / dy, (psi[..., :, :-1] - psi[..., :, 1:]) / dx)


def centred(wind: Wind, boundary: Boundary = "periodic") -> Tensor:
    """Return the velocities at the cells' centres, (..., 2, H, W): x first."""
    u, v = _all_faces(wind, boundary)
    return torch.stack([(u[..., :-1] + u[..., 1:]) / 2, (v[..., :-1, :] + v[..., 1:, :]) / 2], -3)


def faces(velocity: Tensor, boundary: Boundary = "periodic") -> Wind:
    """Return face velocities, the means of both cells, from velocities (..., 2, H, W) at the cells' centres; the border's are those of its cells."""
    u, v = velocity[..., 0, :, :], velocity[..., 1, :, :]
    if boundary == "periodic":
        return Wind((u + u.roll(1, -1)) / 2, (v + v.roll(1, -2)) / 2)
    inner_u, inner_v = (u[..., :-1] + u[..., 1:]) / 2, (v[..., :-1, :] + v[..., 1:, :]) / 2
    return Wind(torch.cat([u[..., :1], inner_u, u[..., -1:]], -1), torch.cat([v[..., :1, :], inner_v, v[..., -1:, :]], -2))


def divergence(wind: Wind, spacing: tuple[float, float], boundary: Boundary = "periodic") -> Tensor:
    """Return the net outflow of each cell by its area, (..., H, W)."""
    u, v = _all_faces(wind, boundary)
    return (u[..., 1:] - u[..., :-1]) / spacing[1] + (v[..., 1:, :] - v[..., :-1, :]) / spacing[0]


def _all_faces(wind: Wind, boundary: Boundary) -> Wind:
    """Return the velocities of all faces, (..., H, W + 1) and (..., H + 1, W)."""
    if boundary == "open":
        return wind
    return Wind(torch.cat([wind.u, wind.u[..., :1]], -1), torch.cat([wind.v, wind.v[..., :1, :]], -2))


class Stencil(NamedTuple):
    """A linear operator on fields, of five coefficients a cell, (..., H, W) each: what the cell and its neighbours give to its rate of change."""

    centre: Tensor
    west: Tensor
    east: Tensor
    south: Tensor
    north: Tensor

    def transposed(self) -> Stencil:
        """Return the transposed operator: what a cell gives to its neighbours. At open borders the ghost cells are zero, whatever the coefficient."""
        return Stencil(self.centre, self.east.roll(1, -1), self.west.roll(-1, -1), self.north.roll(1, -2), self.south.roll(-1, -2))

    def __call__(self, field: Tensor, boundary: Boundary) -> Tensor:
        """Apply it to (..., H, W)."""
        return self._around(self.centre * field, field, 1.0, boundary)

    def added(self, start: Tensor, field: Tensor, factor: float, boundary: Boundary) -> Tensor:
        """Return start + factor L field, in as few passes over memory as there are coefficients."""
        return self._around(torch.addcmul(start, self.centre, field, value=factor), field, factor, boundary)

    def _around(self, total: Tensor, field: Tensor, factor: float, boundary: Boundary) -> Tensor:
        """Add in place what the neighbours give."""
        padded = _padded(field, boundary)
        total.addcmul_(self.west, padded[..., 1:-1, :-2], value=factor).addcmul_(self.east, padded[..., 1:-1, 2:], value=factor)
        return total.addcmul_(self.south, padded[..., :-2, 1:-1], value=factor).addcmul_(self.north, padded[..., 2:, 1:-1], value=factor)

    def rows(self, part: slice) -> Stencil:
        """Return the coefficients of some of the fields (B, ..., H, W), or all of them where they are the same for all."""
        return self if len(self.centre) == 1 else Stencil(*(coefficients[part] for coefficients in self))


def _padded(field: Tensor, boundary: Boundary, width: int = 1) -> Tensor:
    if boundary == "open":
        return F.pad(field, [width] * 4)
    flat = field.reshape(-1, 1, *field.shape[-2:])
    return F.pad(flat, [width] * 4, mode="circular").view(*field.shape[:-2], *(side + 2 * width for side in field.shape[-2:]))


def stencil(wind: Wind, diffusivity: float | Tensor, spacing: tuple[float, float], scheme: Scheme, boundary: Boundary) -> Stencil:
    """Return the operator -div(w c) + D lap(c) of the central or upwind scheme.

    The flux through a face is a c_left + b c_right, with a = u/2 + D/dx and b = u/2 - D/dx for the central scheme; what leaves a cell enters its
    neighbour, so that mass is kept to round-off.
    """
    dy, dx = spacing
    u, v = _all_faces(wind, boundary)
    (west_x, east_x), (west_y, east_y) = _shares(u, diffusivity, dx, scheme), _shares(v, diffusivity, dy, scheme)
    if boundary == "open":  # clean air flows in; what flows out has the value of the border's cell; no diffusion through the border
        west_x, east_x, west_y, east_y = (part.clone() for part in (west_x, east_x, west_y, east_y))
        for speed, lower, upper, axis in ((u, west_x, east_x, -1), (v, west_y, east_y, -2)):
            upper.select(axis, 0).copy_(speed.select(axis, 0).clamp(max=0))
            lower.select(axis, -1).copy_(speed.select(axis, -1).clamp(min=0))
    west_x, east_x, west_y, east_y = west_x / dx, east_x / dx, west_y / dy, east_y / dy
    centre = east_x[..., :-1] - west_x[..., 1:] + east_y[..., :-1, :] - west_y[..., 1:, :]
    return Stencil(centre, west_x[..., :-1], -east_x[..., 1:], west_y[..., :-1, :], -east_y[..., 1:, :])


def _shares(speed: Tensor, diffusivity: float | Tensor, step: float, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return what the cells below and above a face give to the flux through it."""
    below, above = (speed / 2, speed / 2) if scheme == "central" else (speed.clamp(min=0), speed.clamp(max=0))
    return below + diffusivity / step, above - diffusivity / step


@dataclass(frozen=True)
class Physics:
    """What is known of a transported scalar, in any consistent units.

    Attributes:
        diffusivity: D.
        interval: Delta, the time between two frames.
        spacing: (dy, dx) of the fine cells.
        boundary: periodic or open.
        scheme: value of the field on a face.
        substeps: time steps between two frames; None takes as many as are stable.
    """

    diffusivity: float
    interval: float
    spacing: tuple[float, float]
    boundary: Boundary = "periodic"
    scheme: Scheme = "central"
    substeps: int | None = None

    def __post_init__(self) -> None:
        for name, value in {"diffusivity": self.diffusivity, "interval": self.interval, "dy": self.spacing[0], "dx": self.spacing[1]}.items():
            if not math.isfinite(value) or value < 0 or (value == 0 and name != "diffusivity"):
                raise ValueError(f"{name} must be a positive number, got {value}")

    def with_options(self, **options: Any) -> Physics:
        """Return it with other settings."""
        return replace(self, **options)

    def fixed(self, wind: Wind) -> Physics:
        """Return it with the time steps that the fastest of these winds needs, so that they need not be found anew, and do not depend on a batch."""
        return self.with_options(substeps=self.substeps or self.stable_substeps(wind))

    def stable_substeps(self, wind: Wind) -> int:
        """Return the fewest time steps a frame with max(|u|/dx + |v|/dy) h + 2 D h (1/dx^2 + 1/dy^2) <= 1.

        Van Leer's slopes keep their bounds at half that speed.

        Raises:
            ValueError: if no number of steps is enough.
        """
        dy, dx = self.spacing
        speed = float(wind.u.abs().amax()) / dx + float(wind.v.abs().amax()) / dy
        speed = 2 * speed if self.scheme == "vanleer" else speed
        steps = self.interval * (speed + 2 * self.diffusivity * (1 / dx / dx + 1 / dy / dy)) - 1e-6
        if not math.isfinite(steps):
            raise ValueError(f"cells of {dy:g} x {dx:g} are left at once: give dt, D, bounds, u and v in the same units")
        return max(1, math.ceil(steps))

    def peclet(self, wind: Wind) -> float:
        """Return the largest cell Peclet number |w| dx / D; the central scheme rings above about `RINGING`."""
        dy, dx = self.spacing
        largest = max(float(wind.u.abs().amax()) * dx, float(wind.v.abs().amax()) * dy)
        return largest / self.diffusivity if self.diffusivity else math.inf

    def advance(self, field: Tensor, wind: Wind, source: Tensor | None = None, diffusivity: Tensor | None = None) -> Tensor:
        """Carry fields from one frame to the next: S_Delta(c; w, D, s).

        Linear schemes take classical Runge-Kutta steps, and their gradients run through the transposed operator, without any stored stage.
        Van Leer's takes Heun steps, means of two Euler steps, which keep its bounds.

        Args:
            field: (..., H, W).
            wind: of the time until the next frame; shapes broadcast.
            source: (..., H, W) rate of release by area, or None.
            diffusivity: a tensor in the place of D, to learn it.

        Returns:
            (..., H, W).
        """
        substeps = self.substeps or self.stable_substeps(wind)
        step = self.interval / substeps
        known = self.diffusivity if diffusivity is None else diffusivity
        if self.scheme == "vanleer":
            for _ in range(substeps):
                once = self._euler(field, wind, known, source, step)
                field = (field + self._euler(once, wind, known, source, step)) / 2
            return field
        operator = stencil(wind, known, self.spacing, self.scheme, self.boundary)
        if isinstance(known, Tensor) and known.requires_grad:
            return _runge_kutta(field, operator, source, step, substeps, self.boundary)
        field = field.expand(torch.broadcast_shapes(field.shape, operator.centre.shape, field.shape if source is None else source.shape))
        least = min(field.dim(), operator.centre.dim(), field.dim() if source is None else source.dim())
        count = field.numel() // CACHED
        if field.device.type != "cpu" or count < 2 or least < 3 or operator.centre.dim() != field.dim():
            return _Advance.apply(field, source, operator, step, substeps, self.boundary)
        size = -(-len(field) // count)
        parts = [slice(start, start + size) for start in range(0, len(field), size)]
        some = [None if source is None else source if len(source) == 1 else source[part] for part in parts]
        pairs = zip(parts, some, strict=True)
        return torch.cat([_Advance.apply(field[part], own, operator.rows(part), step, substeps, self.boundary) for part, own in pairs])

    def _euler(self, field: Tensor, wind: Wind, diffusivity: float | Tensor, source: Tensor | None, step: float) -> Tensor:
        rate = _limited_rate(field, wind, diffusivity, self.spacing, self.boundary)
        return field + step * (rate if source is None else rate + source)


def _runge_kutta(field: Tensor, operator: Stencil, source: Tensor | None, step: float, substeps: int, boundary: Boundary) -> Tensor:
    """Take classical Runge-Kutta steps of dc/dt = L c + s, which for a linear L are c + h Q(hL)(L c + s), Q(z) = 1 + z/2 + z^2/6 + z^3/24."""
    for _ in range(substeps):
        rate = operator(field, boundary) if source is None else operator.added(source.expand_as(field), field, 1.0, boundary)
        field = torch.add(field, _horner(rate, operator, step, boundary), alpha=step)
    return field


def _horner(rate: Tensor, operator: Stencil, step: float, boundary: Boundary) -> Tensor:
    """Return Q(hL) of a rate."""
    total = rate
    for order in (4, 3, 2):
        total = operator.added(rate, total, step / order, boundary)
    return total


class _Advance(torch.autograd.Function):
    """Runge-Kutta steps whose gradient is computed by the transposed operator: from g, that of s is h Q(hL')g, and that of c is g + h L'Q(hL')g."""

    @staticmethod
    def forward(ctx: Any, field: Tensor, source: Tensor | None, operator: Stencil, step: float, substeps: int, boundary: Boundary) -> Tensor:
        ctx.operator, ctx.step, ctx.substeps, ctx.boundary = operator, step, substeps, boundary
        ctx.source_shape = None if source is None else source.shape
        return _runge_kutta(field, operator, source, step, substeps, boundary)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        adjoint, total = ctx.operator.transposed(), None
        for _ in range(ctx.substeps):
            impulse = ctx.step * _horner(gradient, adjoint, ctx.step, ctx.boundary)
            total = impulse if total is None else total + impulse
            gradient = adjoint.added(gradient, impulse, 1.0, ctx.boundary)
        of_source = None if ctx.source_shape is None or total is None else total.sum_to_size(ctx.source_shape)
        return gradient, of_source, None, None, None, None


def _limited_rate(field: Tensor, wind: Wind, diffusivity: float | Tensor, spacing: tuple[float, float], boundary: Boundary) -> Tensor:
    """Return -div(w c) + D lap(c) with van Leer's face values, which neither ring nor overshoot, of (..., H, W).

    nu is left out: it makes one Euler step of second order along one axis only, whereas Heun steps are so in the plane.
    """
    dy, dx = spacing
    u, v = _all_faces(wind, boundary)
    padded = _padded(field, boundary, 2)
    flux_x = _limited_flux(padded[..., 2:-2, :], u, diffusivity, dx, boundary)
    flux_y = _limited_flux(padded[..., :, 2:-2].mT, v.mT, diffusivity, dy, boundary).mT
    return (flux_x[..., :-1] - flux_x[..., 1:]) / dx + (flux_y[..., :-1, :] - flux_y[..., 1:, :]) / dy


def _limited_flux(padded: Tensor, speed: Tensor, diffusivity: float | Tensor, width: float, boundary: Boundary) -> Tensor:
    """Return the flux through the faces along the last axis: (..., W + 4) padded cells and (..., W + 1) speeds -> (..., W + 1)."""
    far_left, left, right, far_right = padded[..., :-3], padded[..., 1:-2], padded[..., 2:-1], padded[..., 3:]
    is_forward = speed >= 0
    upstream, difference = torch.where(is_forward, left, right), torch.where(is_forward, right - left, left - right)
    behind = torch.where(is_forward, left - far_left, right - far_right)
    product = behind * difference
    # phi(rho) times the difference downstream, rho their ratio, is twice the product by the sum where both have one sign, else nothing
    sloped = torch.where(product > 0, 2 * product / (behind + difference).where(product > 0, 1), 0)
    flux = speed * (upstream + 0.5 * sloped)
    diffusive = diffusivity / width * (right - left)
    if boundary == "open":
        border = torch.zeros_like(diffusive)
        border[..., 0], border[..., -1] = diffusive[..., 0], diffusive[..., -1]
        edge = torch.zeros_like(flux)
        edge[..., 0], edge[..., -1] = (speed * upstream - flux)[..., 0], (speed * upstream - flux)[..., -1]
        return flux + edge - (diffusive - border)
    return flux - diffusive
