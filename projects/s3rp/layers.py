"""Convolutions with the domain's border, and recurrent cells on maps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.s3rp.physics import Boundary

Cell = Literal["gru", "lstm"]


def conv(inputs: int, outputs: int, boundary: Boundary, kernel: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps the size; a periodic domain goes on at its other side, an open one by its border's values."""
    mode: Literal["circular", "replicate"] = "circular" if boundary == "periodic" else "replicate"
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, padding_mode=mode)


def zeroed(layer: nn.Conv2d) -> nn.Conv2d:
    """Set the weights of a layer to zero, so that training starts without it."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class ConvGRU(nn.Module):
    """z, r = sigmoid(W [e, h]); n = tanh(W [e, r h]); h <- (1 - z) h + z n, with 3 x 3 convolutions.

    Args:
        inputs: channels of e.
        channels: channels of h.
        boundary: of the domain.
    """

    def __init__(self, inputs: int, channels: int, boundary: Boundary) -> None:
        super().__init__()
        self.channels = channels
        self.gates = conv(inputs + channels, 2 * channels, boundary)
        self.candidate = conv(inputs + channels, channels, boundary)

    def start(self, like: Tensor) -> Tensor:
        """Return the state before the first frame for inputs (B, *, H, W)."""
        return like.new_zeros(len(like), self.channels, *like.shape[-2:])

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        update, reset = self.gates(torch.cat([inputs, state], 1)).sigmoid().chunk(2, 1)
        candidate = self.candidate(torch.cat([inputs, reset * state], 1)).tanh()
        return state + update * (candidate - state)

    def hidden(self, state: Tensor) -> Tensor:
        """Return h of a state, (B, channels, H, W)."""
        return state


class ConvLSTM(nn.Module):
    """The LSTM on maps; its state is h and the memory side by side.

    Args:
        inputs: channels of e.
        channels: channels of h.
        boundary: of the domain.
    """

    def __init__(self, inputs: int, channels: int, boundary: Boundary) -> None:
        super().__init__()
        self.channels = channels
        self.gates = conv(inputs + channels, 4 * channels, boundary)

    def start(self, like: Tensor) -> Tensor:
        """Return the state before the first frame for inputs (B, *, H, W)."""
        return like.new_zeros(len(like), 2 * self.channels, *like.shape[-2:])

    def forward(self, inputs: Tensor, state: Tensor) -> Tensor:
        hidden, memory = state.chunk(2, 1)
        enter, forget, show, new = self.gates(torch.cat([inputs, hidden], 1)).chunk(4, 1)
        memory = forget.add(1).sigmoid() * memory + enter.sigmoid() * new.tanh()  # the 1 lets a fresh network remember
        return torch.cat([show.sigmoid() * memory.tanh(), memory], 1)

    def hidden(self, state: Tensor) -> Tensor:
        """Return h of a state, (B, channels, H, W)."""
        return state[:, : self.channels]


class Propagator(nn.Module):
    """Carries fields to the next frame by kernels that it makes of the winds: linear in the field, as the equation is, and without a solver.

    Args:
        boundary: of the domain.
        channels: maps of the layers that make kernels.
        reach: cells that a kernel reaches to each side; a field that moves further in a step is lost.
        steps: kernels that are applied one after the other in a frame.
    """

    def __init__(self, boundary: Boundary, channels: int = 64, reach: int = 3, steps: int = 1) -> None:
        super().__init__()
        self.reach, self.steps = reach, steps
        self.mode = "circular" if boundary == "periodic" else "constant"  # what flows in is clean
        taps = (2 * reach + 1) ** 2
        last = zeroed(nn.Conv2d(channels, taps, 1))
        assert last.bias is not None
        nn.init.constant_(last.bias[taps // 2 : taps // 2 + 1], 1.0)  # nothing moves to begin with
        self.kernels = nn.Sequential(conv(2, channels, boundary), nn.SiLU(), nn.Conv2d(channels, channels, 1), nn.SiLU(), last)

    def forward(self, fields: Tensor, courant: Tensor, release: Tensor | None = None) -> Tensor:
        """Carry fields to the next frame.

        Args:
            fields: (B, T, H, W).
            courant: (B, T or 1, 2, H, W) winds in cells a frame.
            release: (B, T or 1, H, W) what known sources release in that time, one half at its beginning and one at its end; None for nothing.
        """
        fields = fields if release is None else fields + release / 2
        kernels = self.kernels(courant.flatten(0, 1) / self.steps).unflatten(0, courant.shape[:2])  # (B, T or 1, taps, H, W)
        for _ in range(self.steps):
            padded = F.pad(fields.flatten(0, 1)[:, None], [self.reach] * 4, mode=self.mode)
            around = F.unfold(padded, 2 * self.reach + 1).unflatten(2, fields.shape[2:]).unflatten(0, fields.shape[:2])  # (B, T, taps, H, W)
            fields = (kernels * around).sum(2)
        return fields if release is None else fields + release / 2


def build_cell(kind: Cell, inputs: int, channels: int, boundary: Boundary) -> ConvGRU | ConvLSTM:
    """Return a recurrent cell by name."""
    return (ConvGRU if kind == "gru" else ConvLSTM)(inputs, channels, boundary)
