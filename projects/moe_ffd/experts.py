"""The two mixtures of experts of a transformer block: low-rank ones for queries, keys and values, convolutions beside the MLP (2.2, 2.3, 2.5).

A mixture adds to what a frozen module gives for the same tokens: `mixture(tokens, base)` returns base + sum_e G_e y_e. The reference combines
log(sum_e exp(y_e)), which for k = 1 is the same up to rounding and overflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.moe_ffd.convolutions import SUPPORT, begin_as_identity, check_kind, folding_matrix
from projects.moe_ffd.routing import Router, Routing

RANKS = (8, 16, 32, 48, 64, 96, 128)
"""Ranks of the reference's LoRA experts."""


class Mixture(nn.Module):
    """What both mixtures have: a router, and the routing of the last batch.

    Attributes:
        routing: where the rows of the last batch went; None before the first.
    """

    def __init__(self, width: int, experts: int, router: str, k: int) -> None:
        super().__init__()
        self.router = Router(width, experts, router, k)
        self.routing: Routing | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"routing": None}  # belongs to a batch: copies start without


class LoraMixture(Mixture):
    """Mixture of low-rank experts on a linear layer, routed token by token: expert e adds B_e A_e h, without a scale.

    Args:
        width: D of the tokens.
        outputs: features of the layer, 3 D for queries, keys and values together.
        ranks: rank of each expert.
        router: see `Router`.
        k: experts of a token.

    Raises:
        ValueError: if a rank is not positive, or the router does not fit.
    """

    def __init__(self, width: int, outputs: int, ranks: Sequence[int] = RANKS, router: str = "reference", k: int = 1) -> None:
        if min(ranks, default=0) < 1:
            raise ValueError(f"ranks of LoRA experts must be positive, got {list(ranks)}")
        super().__init__(width, len(ranks), router, k)
        self.ranks = list(ranks)
        self.down = nn.Parameter(torch.empty(sum(ranks), width))  # the experts' A, one below the other
        self.up = nn.Parameter(torch.zeros(sum(ranks), outputs))  # the experts' B, transposed
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        owners = torch.cat([torch.full((rank,), number) for number, rank in enumerate(ranks)])
        self.register_buffer("owners", owners, persistent=False)  # expert of each hidden feature

    def forward(self, tokens: Tensor, base: Tensor) -> Tensor:
        """Add the experts' outputs for (B, N, D) tokens to (B, N, O) `base`, which is changed in place."""
        rows, sums = tokens.flatten(0, 1), base.view(-1, base.shape[-1])
        self.routing = self.router(rows)
        if self.router.is_dense or rows.is_cuda or torch.compiler.is_exporting():  # sorting needs the counts on the host, where a GPU would wait
            return self._masked(rows, sums, self.routing).view_as(base)
        return self._sorted(rows, sums, self.routing).view_as(base)

    def delta(self) -> Tensor:
        """Return the (O, D) matrix that could be added to the layer's weight instead, where the router sends every token the same way.

        Raises:
            ValueError: if it does not.
        """
        if not self.router.is_constant:
            raise ValueError(f"experts of the router {self.router.kind} cannot be merged into a weight: they depend on the token")
        gates = self.router(self.down[:1]).dense(len(self.ranks)).to(self.up.dtype)[0, self.owners]
        return (self.up * gates[:, None]).T @ self.down

    def _masked(self, rows: Tensor, sums: Tensor, routing: Routing) -> Tensor:
        """Compute all experts at once and cut what a row does not need out of the hidden features."""
        assert isinstance(self.owners, Tensor)
        gates = routing.dense(len(self.ranks)).to(sums.dtype).index_select(1, self.owners)
        return sums.addmm_((F.linear(rows, self.down) * gates).to(sums.dtype), self.up.to(sums.dtype))

    def _sorted(self, rows: Tensor, sums: Tensor, routing: Routing) -> Tensor:
        """Bring the rows of an expert together and compute each expert on its own rows."""
        k = routing.experts.shape[1]
        chosen = routing.experts.flatten()
        order = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=len(self.ranks)).tolist()
        targets = order if k == 1 else order // k
        weights = None if routing.weights is None else routing.weights.flatten()[order, None]
        outputs = self._outputs(rows.index_select(0, targets), weights, counts)
        if torch.is_grad_enabled():  # at once: each change in place would cost a copy of the gradient
            return sums.index_add_(0, targets, torch.cat(list(outputs)).to(sums.dtype))
        for target, output in zip(targets.split(counts), outputs, strict=True):  # one by one: an expert's output stays in the cache
            sums.index_add_(0, target, output.to(sums.dtype))
        return sums

    def _outputs(self, rows: Tensor, weights: Tensor | None, counts: list[int]) -> Iterator[Tensor]:
        """Yield each expert's output for its own of the sorted rows."""
        start = 0
        for part, down, up in zip(rows.split(counts), self.down.split(self.ranks), self.up.split(self.ranks), strict=True):
            hidden = F.linear(part, down)
            if weights is not None:
                hidden = hidden * weights[start : start + len(part)].to(hidden.dtype)
            start += len(part)
            yield hidden @ up


class AdapterMixture(Mixture):
    """Mixture of convolution adapters beside an MLP, routed image by image: down, a difference convolution, up, without activation.

    Args:
        width: D of the tokens.
        prefix: tokens before those of the patches, such as CLS; the convolution sees each of them as an image of one pixel.
        kinds: convolution of each expert, see `projects.moe_ffd.convolutions`.
        bottleneck: features h between down and up.
        self_index: weight of the pixel itself in `rd` and `scd`: 0 as in the reference, 4 the centre.
        router: see `Router`; it reads the mean over all tokens.
        k: experts of an image.

    Attributes:
        grid: rows and columns of the patches; set it before tokens of another grid come.

    Raises:
        ValueError: if a kind is unknown, or the router does not fit.
    """

    def __init__(
        self,
        width: int,
        prefix: int = 1,
        kinds: Sequence[str] = tuple(SUPPORT),
        bottleneck: int = 8,
        self_index: int = 0,
        router: str = "reference",
        k: int = 1,
        grid: tuple[int, int] = (14, 14),
    ) -> None:
        for kind in kinds:
            check_kind(kind, self_index)
        super().__init__(width, len(kinds), router, k)
        self.prefix, self.grid, self.kinds = prefix, grid, list(kinds)
        experts, self.bottleneck = len(kinds), bottleneck
        self.down_weight = nn.Parameter(torch.empty(experts, bottleneck, width))
        self.down_bias = nn.Parameter(torch.zeros(experts, bottleneck))
        self.conv_weight = nn.Parameter(torch.empty(experts, bottleneck, bottleneck, 3, 3))
        self.conv_bias = nn.Parameter(torch.empty(experts, bottleneck))
        self.up_weight = nn.Parameter(torch.zeros(experts, width, bottleneck))
        self.up_bias = nn.Parameter(torch.zeros(experts, width))
        for weight in self.down_weight:
            nn.init.xavier_uniform_(weight)
        begin_as_identity(self.conv_weight)
        nn.init.uniform_(self.conv_bias, -1 / math.sqrt(9 * bottleneck), 1 / math.sqrt(9 * bottleneck))
        self.support = max(SUPPORT[kind] for kind in kinds)
        margin = (5 - self.support) // 2
        folding = torch.stack([folding_matrix(kind, self_index) for kind in kinds])[..., margin : 5 - margin, margin : 5 - margin]
        self.register_buffer("folding", folding.flatten(2), persistent=False)  # (E, 9, S * S)
        self._cached: tuple[tuple, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_cached": None}

    def train(self, mode: bool = True) -> AdapterMixture:
        self._cached = None
        return super().train(mode)

    def kernels(self) -> Tensor:
        """Return the experts' plain kernels, (E, h, h, S, S); in evaluation without gradients they are kept until the weights change.

        A change through `.data` goes unseen until `train` or `eval` is called.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return self._fold()
        weight = self.conv_weight
        key = (id(weight), weight.data_ptr(), 0 if weight.is_inference() else weight._version, weight.dtype, weight.device)
        if self._cached is None or self._cached[0] != key:
            self._cached = key, self._fold()
        return self._cached[1]

    def _fold(self) -> Tensor:
        assert isinstance(self.folding, Tensor)
        side = self.bottleneck, self.bottleneck, self.support, self.support
        return torch.matmul(self.conv_weight.flatten(3).flatten(1, 2), self.folding.to(self.conv_weight)).unflatten(1, side[:2]).view(-1, *side)

    def forward(self, tokens: Tensor, base: Tensor) -> Tensor:
        """Add the experts' outputs for (B, N, D) tokens to (B, N, D) `base`, which is changed in place.

        Raises:
            ValueError: if the tokens after the prefix are not those of the grid.
        """
        if tokens.shape[1] != self.prefix + math.prod(self.grid):
            raise ValueError(f"{tokens.shape[1]} tokens are not {self.prefix} and a grid of {self.grid[0]} x {self.grid[1]}: set `grid`")
        self.routing = self.router(tokens.mean(dim=1))
        if self.router.is_dense or torch.compiler.is_exporting():  # an exported graph has a fixed number of groups
            return self._masked(tokens, base, self.routing)
        return self._selected(tokens, base, self.routing)

    def _masked(self, tokens: Tensor, base: Tensor, routing: Routing) -> Tensor:
        """Compute all experts at once and cut what an image does not need out of the hidden features."""
        experts, middle = len(self.kinds), self.support // 2
        reduced = F.linear(tokens, self.down_weight.flatten(0, 1), self.down_bias.flatten()).transpose(1, 2)  # (B, E * h, N)
        kernels, bias = self.kernels(), self.conv_bias.flatten()
        images = reduced[..., self.prefix :].unflatten(2, self.grid)
        patches = F.conv2d(images, kernels.flatten(0, 1), bias, padding=middle, groups=experts).flatten(2)
        before = torch.matmul(kernels[..., middle, middle], reduced[..., : self.prefix].unflatten(1, (experts, -1))).flatten(1, 2) + bias[:, None]
        gates = routing.dense(experts).to(patches.dtype)
        hidden = torch.cat([before, patches], dim=2).transpose(1, 2) * gates.repeat_interleave(self.bottleneck, dim=1)[:, None]
        return base.add_(hidden @ self.up_weight.transpose(1, 2).flatten(0, 1)).add_((gates @ self.up_bias)[:, None])

    def _selected(self, tokens: Tensor, base: Tensor, routing: Routing) -> Tensor:
        """Compute for each image its own experts."""
        k = routing.experts.shape[1]
        chosen = routing.experts.flatten()  # (B * k,), image by image
        hidden = self._hidden(tokens if k == 1 else tokens.repeat_interleave(k, dim=0), chosen)
        up, bias = self.up_weight.index_select(0, chosen), self.up_bias.index_select(0, chosen)
        if routing.weights is not None:
            weights = routing.weights.flatten().to(hidden.dtype)
            hidden, bias = hidden * weights[:, None, None], bias * weights[:, None]
        # the k experts of an image side by side: one product sums them, and a column of ones carries the bias
        hidden = torch.cat([hidden, hidden.new_ones(*hidden.shape[:2], 1)], dim=2).unflatten(0, (-1, k)).transpose(1, 2).flatten(2)
        up = torch.cat([up, bias[:, :, None].to(up.dtype)], dim=2).unflatten(0, (-1, k)).transpose(2, 3).flatten(1, 2)
        return base.baddbmm_(hidden.to(base.dtype), up.to(base.dtype))

    def _hidden(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Reduce (R, N, D) tokens and convolve them, with the weights of expert `chosen[r]` for image r, (R, N, h)."""
        count, (height, width) = len(tokens), self.grid
        down = self.down_weight.index_select(0, chosen).transpose(1, 2)
        reduced = torch.bmm(tokens, down) + self.down_bias.index_select(0, chosen)[:, None]  # (R, N, h)
        kernels, bias = self.kernels().index_select(0, chosen), self.conv_bias.index_select(0, chosen)
        images = reduced[:, self.prefix :].transpose(1, 2).reshape(1, -1, height, width)
        convolved = F.conv2d(images, kernels.flatten(0, 1), bias.flatten(), padding=self.support // 2, groups=count)
        patches = convolved.view(count, self.bottleneck, -1).transpose(1, 2)
        centre = kernels[..., self.support // 2, self.support // 2].transpose(1, 2)
        before = torch.bmm(reduced[:, : self.prefix], centre) + bias[:, None]
        return torch.cat([before, patches.to(before.dtype)], dim=1)


class Beside(nn.Module):
    """A frozen module and a mixture that reads the same tokens and adds to its output."""

    def __init__(self, module: nn.Module, mixture: LoraMixture | AdapterMixture) -> None:
        super().__init__()
        self.module, self.mixture = module, mixture

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mixture(tokens, self.module(tokens))
