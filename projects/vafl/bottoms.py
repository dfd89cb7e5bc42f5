"""The clients' nets h_m, which make the embeddings of a client's blocks.

A client recomputes its batch's embeddings with the noise of the upload and pulls the server's signal back through them: `Bottom.pullback`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.vafl.perturbed import SILENT, Draws, Noise, clip_rows
from shared.seeding import generator

Activation = Literal["relu", "tanh"]
Kind = Literal["auto", "linear", "mlp", "views", "series"]
Pull = Callable[[Tensor], list[Tensor]]

VIEW_WIDTHS = (32, 32, 64, 64, 128, 128)
"""Channels of the six convolutions of the net for views of solids; the paper does not give them."""


class Bottom(nn.Module):
    """A client's net: the last pre-activation, clipped and then perturbed, makes the embedding.

    Args:
        outputs: p_m, entries of an embedding.
        clip: C, bound on the L2 norm of a record's last pre-activation; None leaves it unbounded, and the privacy loss infinite.

    Raises:
        ValueError: if the clip is not positive and finite.
    """

    rectified = False
    """Whether a ReLU follows the last layer's noise; otherwise the activation is the identity."""
    maps_zero_to_zero = False
    """Whether a block of zeros has a last pre-activation of zero, whatever the weights: then zeroing a record moves it by C at most, not 2 C."""

    def __init__(self, outputs: int, clip: float | None = None) -> None:
        super().__init__()
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"the embeddings cannot be clipped to a norm of {clip}: give a finite positive number, or null for no clip")
        self.outputs = outputs
        self.clip = clip

    def pre_activation(self, block: Tensor, draws: Draws) -> Tensor:
        """Map a block, (B, ...), to the last layer's pre-activation, (B, p_m); the layers below the last take their noise from `draws`."""
        raise NotImplementedError

    def forward(self, block: Tensor, noise: Noise | None = None) -> Tensor:
        """Map a block, (B, ...), to its embeddings, (B, p_m); no noise where None."""
        draws = (noise or SILENT).draws()
        pre = self.pre_activation(block, draws)
        if self.clip is not None:
            pre = clip_rows(pre, self.clip)
        h = draws.last(pre)
        return h.relu() if self.rectified else h

    def pullback(self, block: Tensor, noise: Noise | None = None) -> tuple[Tensor, Pull]:
        """Compute embeddings and what brings a signal back to the weights, also where gradients are switched off.

        Args:
            block: (B, ...) features.
            noise: the draws of the upload.

        Returns:
            The embeddings, (B, p_m), without a graph; and a function to call once that takes the gradient for them, (B, p_m), and gives
            that for each parameter, in the order of `parameters()`.
        """
        with torch.inference_mode(False), torch.enable_grad():
            h = self(plain(block), noise)

        def pull(signal: Tensor) -> list[Tensor]:
            return list(torch.autograd.grad(h, list(self.parameters()), signal))

        return h.detach(), pull


class LinearBottom(Bottom):
    """A single linear layer without a bias, h = clip(x W^T) + Z: the part of a client in a logistic regression.

    Its pullback needs no autograd.

    Args:
        features: entries of a record's block, which is flattened.
        outputs: p_m.
        seed: seed of the weights; None starts from zeros, which suits the convex problem.
        clip: see `Bottom`.
    """

    maps_zero_to_zero = True

    def __init__(self, features: int, outputs: int, seed: int | None = None, clip: float | None = None) -> None:
        super().__init__(outputs, clip)
        self.weight = nn.Parameter(torch.zeros(outputs, features))
        if seed is not None:
            nn.init.uniform_(self.weight, -(features**-0.5), features**-0.5, generator=generator(seed, "bottom"))

    def pre_activation(self, block: Tensor, draws: Draws) -> Tensor:
        return F.linear(block.flatten(1), self.weight)

    @torch.no_grad()
    def pullback(self, block: Tensor, noise: Noise | None = None) -> tuple[Tensor, Pull]:
        """See `Bottom.pullback`; the Jacobian of the clip at a row r longer than C is C / |r| (I - r r^T / |r|^2)."""
        x, clip = block.flatten(1), self.clip
        h = F.linear(x, self.weight)
        if clip is None:
            return self._perturbed(h, noise), lambda signal: [signal.t() @ x]
        h = h.nan_to_num_()
        scales = torch.linalg.vector_norm(h, dim=1, keepdim=True).div_(clip).clamp_min_(1).reciprocal_()  # (B, 1)
        h = h.mul_(scales)
        radial = h * (scales < 1)  # r C / |r|, or zero within the bound

        def pull(signal: Tensor) -> list[Tensor]:
            along = (radial * signal).sum(1, keepdim=True)
            return [torch.addcmul(signal, radial, along, value=-(clip**-2)).mul_(scales).t() @ x]

        return self._perturbed(h, noise), pull

    @staticmethod
    def _perturbed(pre: Tensor, noise: Noise | None) -> Tensor:
        return pre if noise is None else noise.draws().last(pre)


class MlpBottom(Bottom):
    """Fully connected layers u_l = sigma(w_l u_{l-1} + b_l + Z_l); the last one's activation is the identity.

    Args:
        features: entries of a record's block, which is flattened.
        hidden: widths of the layers below the last.
        outputs: p_m.
        seed: seed of the weights; each client needs its own.
        activation: sigma of the layers below the last.
        clip: see `Bottom`.
    """

    def __init__(
        self, features: int, hidden: Sequence[int], outputs: int, seed: int, activation: Activation = "relu", clip: float | None = None
    ) -> None:
        super().__init__(outputs, clip)
        self.activation = torch.relu if activation == "relu" else torch.tanh
        with torch.device("meta"):
            self.layers = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in pairwise([features, *hidden, outputs]))
        draw_weights(self, seed, "bottom")

    def pre_activation(self, block: Tensor, draws: Draws) -> Tensor:
        u = block.flatten(1)
        for layer in self.layers[:-1]:
            u = self.activation(draws.hidden(layer(u)))
        return self.layers[-1](u)


class ViewBottom(Bottom):
    """The net for views of solids: 3 x 3 convolutions, each with a ReLU, then a fully connected layer with one; views share it.

    A 2 x 2 maximum follows every second convolution, or each where there are at most two. A record's embedding is its views' vectors side
    by side, and the clip bounds them together: one upload gives all of them away. Weights are He's for ReLUs and biases zero: torch's own
    starting point lets next to nothing through seven such layers, and plain gradient descent then learns nothing.

    Args:
        views: V, views in a client's block.
        channels: channels of a view.
        size: height and width of a view in pixels; one number for a square.
        widths: channels of the convolutions.
        outputs: entries of a view's vector; an embedding has V times as many.
        seed: seed of the weights; each client needs its own.
        clip: see `Bottom`.

    Raises:
        ValueError: if there is no convolution, or the views are too small for the pools.
    """

    rectified = True

    def __init__(
        self,
        views: int,
        channels: int,
        size: int | tuple[int, int],
        widths: Sequence[int] = VIEW_WIDTHS,
        outputs: int = 512,
        seed: int = 0,
        clip: float | None = None,
    ) -> None:
        super().__init__(views * outputs, clip)
        self.pooled = [len(widths) <= 2 or number % 2 == 0 for number in range(1, len(widths) + 1)]
        height, width = (size, size) if isinstance(size, int) else size
        side = 2 ** sum(self.pooled)
        if not widths or min(height, width) < side:
            raise ValueError(
                f"the {len(widths)} widths {list(widths)} do not fit views of {height} x {width}: give one at least, and at least {side} pixels"
            )
        with torch.device("meta"):
            self.convolutions = nn.ModuleList(nn.Conv2d(inner, outer, 3, padding=1) for inner, outer in pairwise([channels, *widths]))
            self.connected = nn.Linear(widths[-1] * (height // side) * (width // side), outputs)
        draw_weights(self, seed, "bottom", rectified=True)

    def pre_activation(self, block: Tensor, draws: Draws) -> Tensor:
        u = block.flatten(0, 1)  # (B V, C, H, W)
        for convolution, is_pooled in zip(self.convolutions, self.pooled, strict=True):
            u = draws.hidden(convolution(u)).relu()
            u = F.max_pool2d(u, 2) if is_pooled else u
        return self.connected(u.flatten(1)).view(len(block), self.outputs)


class SeriesBottom(Bottom):
    """The net for time series: an LSTM both ways, half of the units each, then an LSTM, whose last hidden state is the embedding.

    The noise is added to that state, and there is none inside. There is no dropout either, unlike in the public benchmark's net: the client
    must be able to replay a forward from its Noise alone. Entries of a hidden state are within (-1, 1), so its norm is below sqrt(units)
    without any clip.

    Args:
        features: variables at a time step.
        units: p_m, an even number.
        seed: seed of the weights; each client needs its own.
        clip: see `Bottom`.

    Raises:
        ValueError: if the number of units is odd.
    """

    def __init__(self, features: int, units: int = 16, seed: int = 0, clip: float | None = None) -> None:
        super().__init__(units, clip)
        if units % 2:
            raise ValueError(f"{units} units cannot be halved for the two ways through a series: give an even number of outputs")
        with torch.device("meta"):
            self.both = nn.LSTM(features, units // 2, batch_first=True, bidirectional=True)
            self.last = nn.LSTM(units, units, batch_first=True)
        draw_weights(self, seed, "bottom")

    def pre_activation(self, block: Tensor, draws: Draws) -> Tensor:
        states, _ = self.both(block)  # (B, T, units)
        _, (hidden, _) = self.last(states)
        return hidden[0]

    def train(self, mode: bool = True) -> SeriesBottom:
        """Leave the LSTMs in training mode, which changes nothing in them: cuDNN refuses their backward pass in the other."""
        super().train(mode)
        self.both.train()
        self.last.train()
        return self


def build_bottom(kind: Kind, shape: Sequence[int], outputs: int, hidden: Sequence[int], seed: int, clip: float | None = None) -> Bottom:
    """Build the net of one client.

    Args:
        kind: net; "auto" takes "series" for (T, F) blocks, "views" for (V, C, H, W) ones, and for (F,) ones "linear", or "mlp" where there
            are hidden widths.
        shape: shape of a record's block. Linear nets and MLPs flatten it.
        outputs: entries of an embedding; of a view's vector for "views".
        hidden: widths below the last layer of an MLP, or channels of the convolutions for "views" (none takes the paper's six).
        seed: seed of the weights; each client needs its own. Linear nets start from zeros.
        clip: see `Bottom`.

    Raises:
        ValueError: if shape or hidden widths do not fit the kind.
    """
    if kind == "auto":
        kind = kind_of(shape, hidden)
    _check_shape(kind, shape)
    if kind in ("linear", "series") and hidden:
        raise ValueError(f"a {kind} net has no hidden widths, but {list(hidden)} were given: leave them out, or choose mlp or views")
    if kind == "linear":
        return LinearBottom(math.prod(shape), outputs, clip=clip)
    if kind == "mlp":
        return MlpBottom(math.prod(shape), hidden, outputs, seed, clip=clip)
    if kind == "views":
        views, channels, height, width = shape
        return ViewBottom(views, channels, (height, width), hidden or VIEW_WIDTHS, outputs, seed, clip)
    return SeriesBottom(shape[1], outputs, seed, clip)


def kind_of(shape: Sequence[int], hidden: Sequence[int]) -> Kind:
    """Return what "auto" of `build_bottom` stands for."""
    kinds: dict[int, Kind] = {1: "mlp" if hidden else "linear", 2: "series", 4: "views"}
    if len(shape) not in kinds:
        raise ValueError(f"no net is made for blocks of shape {tuple(shape)}: name the kind linear or mlp, which flatten them")
    return kinds[len(shape)]


def _check_shape(kind: Kind, shape: Sequence[int]) -> None:
    wanted = {"views": (4, "(V, C, H, W)"), "series": (2, "(T, F)")}.get(kind)
    if wanted is not None and len(shape) != wanted[0]:
        raise ValueError(f"a {kind} net takes {wanted[1]} blocks, but these have the shape {tuple(shape)}: choose a kind that fits, or auto")


def draw_weights(net: nn.Module, seed: int, part: str, rectified: bool = False) -> None:
    """Draw the weights of a net on the meta device, without touching the global generator.

    Args:
        net: net of linear, convolutional and LSTM layers; it comes to the CPU.
        seed: seed of the weights.
        part: what the net is; nets of another part get other weights.
        rectified: whether weights are He's, which keep the size of what goes through ReLUs, and biases zero; otherwise both are uniform as
            torch draws them, within 1 / sqrt(fan in), or 1 / sqrt(units) in an LSTM.
    """
    net.to_empty(device="cpu")
    chance = generator(seed, part)
    for module in net.modules():
        if rectified and isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="relu", generator=chance)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.Linear, nn.LSTM)):
            fan = module.hidden_size if isinstance(module, nn.LSTM) else module.weight[0].numel()
            for parameter in module.parameters():
                nn.init.uniform_(parameter, -(fan**-0.5), fan**-0.5, generator=chance)


def plain(values: Tensor) -> Tensor:
    """Return values that autograd may keep: a copy of a tensor made in inference mode, any other as it is; to call outside of that mode."""
    return values.clone() if values.is_inference() else values
