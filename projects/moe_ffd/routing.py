"""The gate of both mixtures: which expert a row goes to, and how evenly the rows are spread."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NOISE_FLOOR = 1e-2
"""Added to the standard deviation of the gate's noise."""
LEARNED = ("reference", "weighted", "soft")
"""Routers that have a gate to learn."""


@dataclass(frozen=True)
class Routing:
    """Where R rows go.

    Attributes:
        experts: (R, k) int64, the experts of each row; the first is the one with the largest logit.
        weights: (R, k) factors of their outputs, float32 (float64 for rows of float64); None where all are one.
        balance: scalar balance loss of this mixture; zero in evaluation and for routers without a gate.
    """

    experts: Tensor
    weights: Tensor | None
    balance: Tensor

    def dense(self, experts: int) -> Tensor:
        """Return the factors of all experts, (R, E), zero where a row does not go."""
        values = torch.ones_like(self.experts, dtype=self.balance.dtype) if self.weights is None else self.weights
        return values.new_zeros(values.shape[0], experts).scatter(1, self.experts, values)


def squared_variation(values: Tensor) -> Tensor:
    """Return CV2(v) = var(v) / (mean(v)^2 + 1e-10) of (E,) values, with the unbiased variance; 0 if E = 1."""
    if len(values) == 1:
        return torch.zeros_like(values[0])
    return values.var() / (values.mean().square() + 1e-10)


def load_probabilities(clean: Tensor, noisy: Tensor, sigma: Tensor, k: int) -> Tensor:
    """Return the probability that an expert is among the k best if its own noise were drawn again (P of Shazeer et al. 2017, eq. 9).

    Args:
        clean: (R, E) logits without noise.
        noisy: (R, E) logits with it.
        sigma: (R, E) standard deviations of the noise.
        k: experts of a row, less than E.

    Returns:
        (R, E) Phi((c_e - psi_e) / sigma_e), psi_e the k-th largest noisy logit among the others.
    """
    values, order = noisy.sort(dim=1, descending=True, stable=True)
    is_selected = torch.zeros_like(noisy, dtype=torch.bool).scatter(1, order[:, :k], True)
    threshold = torch.where(is_selected, values[:, k : k + 1], values[:, k - 1 : k])
    return torch.special.ndtr((clean - threshold) / sigma)


def parse_router(router: str, experts: int) -> int | None:
    """Return the expert of a router `fixed:E`, or None for the others.

    Raises:
        ValueError: if there is no such router or expert.
    """
    if router in (*LEARNED, "uniform"):
        return None
    kind, _, number = router.partition(":")
    if kind != "fixed" or not number.isdecimal():
        raise ValueError(f"no router {router!r}: choose {', '.join(LEARNED)}, uniform, or fixed:E with an expert's number E")
    if int(number) >= experts:
        raise ValueError(f"router {router!r}: the mixture has experts 0 to {experts - 1}")
    return int(number)


class Router(nn.Module):
    """Sends rows to experts, (R, D) -> `Routing`.

    Args:
        width: D.
        experts: number E of experts. A single expert gets every row, and there is no gate.
        kind: `reference`: noisy top-k, weighted by the softmax over the k chosen logits, so that with k = 1 the task loss does not reach the gate;
            `weighted`: the same choice, weighted by the softmax over all logits, through which it does;
            `soft`: all experts, weighted by the softmax over all (in training noisy) logits;
            `uniform`: all experts with weight 1 / E; `fixed:E`: expert number E alone.
        k: experts of a row, for `reference` and `weighted`.

    Raises:
        ValueError: if there is no such router, or `k` is not in 1 to E.
    """

    def __init__(self, width: int, experts: int, kind: str = "reference", k: int = 1) -> None:
        super().__init__()
        if not 1 <= k <= experts:
            raise ValueError(f"k experts of a row must be from 1 to the number of experts, {experts}, not {k}")
        self.fixed = parse_router(kind, experts)
        if experts == 1:
            self.fixed = 0
        self.experts, self.kind, self.k = experts, kind, k
        if self.fixed is None and kind in LEARNED:
            self.w_gate = nn.Parameter(torch.zeros(width, experts))
            self.w_noise = nn.Parameter(torch.zeros(width, experts))

    @property
    def is_dense(self) -> bool:
        """Whether every row goes to every expert."""
        return self.fixed is None and (self.kind in ("soft", "uniform") or self.k == self.experts)

    @property
    def is_constant(self) -> bool:
        """Whether every row goes the same way, whatever it is."""
        return self.fixed is not None or self.kind == "uniform"

    def forward(self, rows: Tensor, noise: Tensor | None = None) -> Routing:
        """Route rows.

        Args:
            rows: (R, D).
            noise: (R, E) standard normal values to use in training; drawn from the device's global generator if None. None is used in evaluation.
        """
        dtype = torch.promote_types(rows.dtype, torch.float32)
        if self.fixed is not None:
            return Routing(rows.new_full((rows.shape[0], 1), self.fixed, dtype=torch.int64), None, rows.new_zeros((), dtype=dtype))
        if self.kind == "uniform":
            everyone = torch.arange(self.experts, device=rows.device).expand(rows.shape[0], -1)
            return Routing(everyone, torch.full_like(everyone, 1 / self.experts, dtype=dtype), rows.new_zeros((), dtype=dtype))
        with torch.autocast(rows.device.type, enabled=False):  # gate and balance stay in float32
            return self._gate(rows.to(dtype), noise)

    def _gate(self, rows: Tensor, noise: Tensor | None) -> Routing:
        if not self.training:
            clean = rows @ self.w_gate.to(rows)
            return Routing(*self._choose(clean), clean.new_zeros(()))
        clean, spread = (rows @ torch.cat([self.w_gate, self.w_noise], dim=1).to(rows)).chunk(2, dim=1)
        sigma = F.softplus(spread) + NOISE_FLOOR
        noisy = clean + sigma * (torch.randn_like(clean) if noise is None else noise)
        routing = Routing(*self._choose(noisy), clean.new_zeros(()))
        gates = routing.dense(self.experts)
        load = (gates > 0).to(gates) if self.is_dense else load_probabilities(clean, noisy, sigma, self.k)
        balance = squared_variation(gates.sum(0)) + squared_variation(load.sum(0))
        return Routing(routing.experts, routing.weights, balance)

    def _choose(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the experts of each row, (R, k), and their weights; among equal logits the lowest number wins."""
        values, order = logits.sort(dim=1, descending=True, stable=True)
        chosen = self.experts if self.kind == "soft" else self.k
        if self.kind != "reference":
            return order[:, :chosen], values.softmax(dim=1)[:, :chosen]
        return order[:, :chosen], None if chosen == 1 else values[:, :chosen].softmax(dim=1)
