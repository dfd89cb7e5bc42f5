"""S3RP-D, the recurrent network from coarse frames and winds to fine fields, and one of single frames."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from projects.s3rp.layers import Cell, Propagator, build_cell, conv, zeroed
from projects.s3rp.observing import block_mean, filled, interpolate, project, repeat
from projects.s3rp.physics import Boundary, at_frame

Grid = Literal["fine", "coarse"]
"""Where the network computes: on the fine grid, or on the coarse one with r x r cells as channels, which is cheaper for large factors."""
Carry = Callable[[Tensor, int], Tensor]
"""S_Delta: carries fields (B, H, W) of a frame to the next one."""


class Seen(NamedTuple):
    """What a network sees, in units without dimension.

    Attributes:
        coarse: (B, T, h, w) frames, of order 1; 0 where missing.
        mask: (B, T, h, w) bool, True where observed.
        courant: (B, T or 1, 2, H, W) velocities at the cells' centres, in cells a frame, x first.
        release: (B, T or 1, H, W) what known sources release in a frame's time, by area; None for nothing.
    """

    coarse: Tensor
    mask: Tensor
    courant: Tensor
    release: Tensor | None = None

    @property
    def frames(self) -> int:
        """T."""
        return self.coarse.shape[1]

    def arriving(self, frame: int) -> Tensor:
        """Return the velocities that carried the field to a frame, those of the frame before, (B, 2, H, W); of the first, its own."""
        return at_frame(self.courant, max(frame - 1, 0))


class Fields(NamedTuple):
    """What a network makes.

    Attributes:
        fields: (B, T, H, W).
        source: (B, 1, H, W) rate of release by area in a frame's time; None where it looks for none.
    """

    fields: Tensor
    source: Tensor | None = None


class FineNet(nn.Module):
    """Encoder, recurrent cell and decoder, frame after frame: c_t = b_t + g(h_t), whose last layer starts at zero.

    b_t is the bicubic frame; in its gaps, the field of the frame before. A frame without any observation has that field carried on, if there is a
    propagator or a solver. Then the frames after the last observation are such forecasts, and nothing else; what forecasts are trained by leaves the
    frames before them alone.

    Args:
        factor: r.
        channels: C of the cell and of all layers.
        cell: gru or lstm.
        boundary: of the domain.
        grid: fine or coarse.
        mask_channel: shows the network where there are observations.
        hybrid: corrects the solver's forecast from the frame before, in the place of b_t, which is shown too.
        bidirectional: a second cell runs through the frames backwards first, and shows the first one what comes.
        recurrent: False makes every frame by itself, without winds: a control.
        gain: of the projection onto the observations; 1 for noise-free ones, 0 for none.
        source: looks for sources: a map of releases, the same in all frames.
        checkpointing: computes activations again in the backward pass, instead of keeping those of all frames.
        propagation: kernels that carry a field over a frame where there are no observations; 0 for no propagator.
    """

    def __init__(
        self,
        factor: int = 4,
        channels: int = 16,
        cell: Cell = "gru",
        boundary: Boundary = "periodic",
        grid: Grid = "fine",
        mask_channel: bool = True,
        hybrid: bool = False,
        bidirectional: bool = False,
        recurrent: bool = True,
        gain: float = 1.0,
        source: bool = False,
        checkpointing: bool = False,
        propagation: int = 0,
    ) -> None:
        super().__init__()
        self.factor, self.boundary, self.gain, self.checkpointing = factor, boundary, gain, checkpointing
        self.recurrent, self.hybrid, self.mask_channel = recurrent, hybrid, mask_channel
        self.block = factor if grid == "coarse" else 1
        maps = self.block**2
        shown = (4 + hybrid + mask_channel) * maps + channels * bidirectional
        self.encoder = nn.Sequential(conv(shown, channels, boundary), nn.SiLU(), conv(channels, channels, boundary), nn.SiLU())
        self.cell = build_cell(cell, channels, channels, boundary)
        self.decoder = build_decoder(channels, maps, boundary)
        self.backward_encoder = nn.Sequential(conv((3 + mask_channel) * maps, channels, boundary), nn.SiLU()) if bidirectional else None
        self.backward_cell = build_cell(cell, channels, channels, boundary) if bidirectional else None
        self.release = _release(channels, maps, boundary) if source else None
        self.propagator = Propagator(boundary, steps=propagation) if propagation else None

    def forward(self, seen: Seen, carry: Carry | None = None) -> Fields:
        """Super-resolve sequences, and forecast frames without observations.

        Args:
            seen: the coarse frames and winds.
            carry: the solver's step, for a hybrid network.
        """
        is_complete = bool(seen.mask.all())
        upsampled = interpolate(seen.coarse, self.factor, "bicubic", self.boundary) if is_complete else None
        field = first_guess(seen, self.factor, self.boundary)
        coming = self._backwards(seen, upsampled) if self.backward_cell is not None else [None] * seen.frames
        state, fields, hidden = None, [], []
        is_ahead = seen.mask.flatten(2).any(2).int().flip(1).cumsum(1).flip(1) == 0  # (B, T): no observation then or later
        for frame in range(seen.frames):
            carried = self._carried(field, seen, frame, is_ahead[:, frame], None if is_complete else self.propagator, carry) if frame else field
            base = base_of(seen, frame, carried, self.factor, self.boundary) if upsampled is None else upsampled[:, frame]
            start = carried if self.hybrid and carry is not None and frame else base
            arguments = (base, field if self.recurrent else base, start, seen, frame, coming[frame], state)
            made, state = checkpoint(self._frame, *arguments, use_reentrant=False) if self.checkpointing else self._frame(*arguments)
            if frame and not is_complete and (self.propagator is not None or self.hybrid):
                made = torch.where(is_ahead[:, frame, None, None], carried, made)
            field = made
            fields.append(field)
            if self.release is not None:
                hidden.append(self.cell.hidden(state))  # of long sequences far more than the fields themselves
            state = state if self.recurrent else None
        source = None if self.release is None else self.release(torch.stack(hidden).mean(0))
        return Fields(torch.stack(fields, 1), source)

    def _frame(
        self, base: Tensor, field: Tensor, start: Tensor, seen: Seen, frame: int, coming: Tensor | None, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return the field of a frame, (B, H, W), and the cell's state; `start` is what is corrected, the base itself but in a hybrid network."""
        wind = seen.arriving(frame)
        wind = wind if self.recurrent else torch.zeros_like(wind)
        shown = [base[:, None], field[:, None], wind.expand(len(base), -1, -1, -1)]
        shown += [start[:, None]] if self.hybrid else []
        shown += [repeat(seen.mask[:, frame, None].to(base.dtype), self.factor)] if self.mask_channel else []
        maps = self._to_grid(torch.cat(shown, 1))
        encoded = self.encoder(maps if coming is None else torch.cat([maps, coming], 1))
        state = self.cell(encoded, self.cell.start(encoded) if state is None else state)
        made = start + self._from_grid(self.decoder(self.cell.hidden(state)))
        return (project(made, seen.coarse[:, frame], seen.mask[:, frame], self.gain) if self.gain else made), state

    def _carried(self, field: Tensor, seen: Seen, frame: int, is_ahead: Tensor, propagator: Propagator | None, carry: Carry | None) -> Tensor:
        """Return the field before: carried on by the solver, or by the propagator to a frame without observations, else as it is.

        Gaps are not filled by the propagator: networks that were trained so learnt to fill, and not to super-resolve. Forecasts teach an observed
        field nothing.
        """
        if self.hybrid and carry is not None:
            return carry(field, frame - 1)
        is_seen = seen.mask[:, frame].flatten(1).any(1)
        if propagator is None or bool(is_seen.all()):
            return field
        was_seen = seen.mask[:, frame - 1].flatten(1).any(1) & is_ahead
        release = None if seen.release is None else at_frame(seen.release, frame - 1)[:, None]
        known = torch.where(was_seen[:, None, None], field.detach(), field)
        return torch.where(is_seen[:, None, None], field, propagator(known[:, None], seen.arriving(frame)[:, None], release)[:, 0])

    def _backwards(self, seen: Seen, upsampled: Tensor | None) -> list[Tensor | None]:
        """Return what a cell says of each frame that has seen those behind it, (B, C, H, W) each."""
        assert self.backward_cell is not None
        assert self.backward_encoder is not None
        state, found = None, list[Tensor | None]()
        later = interpolate(filled(seen.coarse, seen.mask, self.boundary), self.factor, "bicubic", self.boundary) if upsampled is None else upsampled
        for frame in reversed(range(seen.frames)):
            leaving = -at_frame(seen.courant, frame)
            shown = [later[:, frame, None], leaving.expand(len(later), -1, -1, -1)]
            shown += [repeat(seen.mask[:, frame, None].to(later.dtype), self.factor)] if self.mask_channel else []
            encoded = self.backward_encoder(self._to_grid(torch.cat(shown, 1)))
            state = self.backward_cell(encoded, self.backward_cell.start(encoded) if state is None else state)
            found.append(self.backward_cell.hidden(state))
        return found[::-1]

    def _to_grid(self, maps: Tensor) -> Tensor:
        return F.pixel_unshuffle(maps, self.block) if self.block > 1 else maps

    def _from_grid(self, maps: Tensor) -> Tensor:
        return (F.pixel_shuffle(maps, self.block) if self.block > 1 else maps)[:, 0]


def build_decoder(channels: int, maps: int, boundary: Boundary) -> nn.Sequential:
    """Return three convolutions from the cell's maps to a correction of the field, the last of them zero to begin with."""
    hidden = [layer for _ in range(2) for layer in (conv(channels, channels, boundary), nn.SiLU())]
    return nn.Sequential(*hidden, zeroed(conv(channels, maps, boundary)))


def _release(channels: int, maps: int, boundary: Boundary) -> nn.Sequential:
    last = conv(channels, maps, boundary)
    assert last.bias is not None
    nn.init.constant_(last.bias, -5.0)  # no release to begin with, after the softplus
    shuffle = nn.PixelShuffle(round(maps**0.5)) if maps > 1 else nn.Identity()
    return nn.Sequential(conv(channels, channels, boundary), nn.SiLU(), last, nn.Softplus(), shuffle)


def first_guess(seen: Seen, factor: int, boundary: Boundary) -> Tensor:
    """Return the field before the first frame, (B, H, W): the first frame with observations, its gaps filled by their neighbours, bicubic."""
    is_seen = seen.mask.flatten(2).any(2)  # (B, T)
    first = is_seen.int().argmax(1)
    rows = torch.arange(len(first), device=first.device)
    coarse = filled(seen.coarse[rows, first], seen.mask[rows, first], boundary)
    return interpolate(coarse, factor, "bicubic", boundary)


def base_of(seen: Seen, frame: int, field: Tensor, factor: int, boundary: Boundary) -> Tensor:
    """Return b_t, (B, H, W): bicubic of the frame with its gaps filled by the field before, and that field itself in the gaps."""
    mask = seen.mask[:, frame]
    coarse = torch.where(mask, seen.coarse[:, frame], block_mean(field, factor))
    return torch.where(repeat(mask, factor), interpolate(coarse, factor, "bicubic", boundary), field)


class SRCNN(nn.Module):
    """PISR's network: bicubic frames, then convolutions of 9, 5 and 5 cells with 64 and 32 channels, each frame by itself.

    Args:
        factor: r.
        boundary: of the domain.
        gain: of the projection onto the observations; PISR has none.
    """

    def __init__(self, factor: int = 4, boundary: Boundary = "periodic", gain: float = 0.0) -> None:
        super().__init__()
        self.factor, self.boundary, self.gain = factor, boundary, gain
        first, second = conv(1, 64, boundary, 9), conv(64, 32, boundary, 5)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), zeroed(conv(32, 1, boundary, 5)))

    def forward(self, seen: Seen, carry: Carry | None = None) -> Fields:
        """Super-resolve every frame by itself; of one without observations comes what the network makes of an empty frame."""
        coarse = filled(seen.coarse, seen.mask, self.boundary)
        base = interpolate(coarse, self.factor, "bicubic", self.boundary)
        fields = base + self.layers(base.flatten(0, 1)[:, None])[:, 0].view_as(base)
        return Fields(project(fields, seen.coarse, seen.mask, self.gain) if self.gain else fields)
