"""Noise as a pure function of (run key, index in the data set, stage, branch, draw, element).

So votes do not depend on batch size, order, packing, number of processes or restarts. The generator is Philox-4x32-10 (Salmon et al. 2011) with

    key      64 bits of (run key, index, stage, branch), different for different (index, stage, branch)
    counter  words 0: block of four random words within the draw, 1: draw, 2 and 3: zero

No counter is a flattened draw · d + element, which would overflow 32 bits. torch's stateless generator gives these very words; where it is missing
they are computed here, and on CUDA in `triton_kernels.py`.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from torch import Tensor

from shared.smoothing.alpha import RADIUS_BITS, tail_mass
from shared.smoothing.placement import Placement

Law = Literal["gaussian", "uniform", "grid"]
LEVELS = 255
_MASK = 0xFFFFFFFF
_CHUNK = 1 << 17  # elements that are made at once on a CPU: few calls, and still in its cache


@functools.lru_cache(maxsize=1 << 14)
def stream_key(run_key: int, index: int, stage: int, branch: int) -> int:
    """Return the Philox key of one image's draws: Philox-2x32-10 applied to (index, stage and branch), once with each half of the run key.

    Args:
        run_key: 64 bits.
        index: index in the data set, in [0, 2^32).
        stage: selection, estimation, ...: in [0, 16).
        branch: in [0, 16).

    Returns:
        64 bits as a signed integer; for one run key different for different arguments, as Philox is a bijection.

    Raises:
        ValueError: if an argument is out of range.
    """
    if not (0 <= run_key < 1 << 64 and 0 <= index < 1 << 32 and 0 <= stage < 16 and 0 <= branch < 16):
        raise ValueError(f"no noise for key {run_key}, index {index}, stage {stage}, branch {branch}: they have 64, 32, 4 and 4 bits")
    left, right = index, stage << 4 | branch
    for half in (run_key & _MASK, run_key >> 32):
        for turn in range(10):
            product = 0xD256D193 * left
            left, right = (product >> 32) ^ (half + turn * 0x9E3779B9 & _MASK) ^ right, product & _MASK
    bits = left << 32 | right
    return bits - (1 << 64) if bits >> 63 else bits


def random_words(keys: Tensor, draws: Tensor, out: Tensor) -> Tensor:
    """Fill `out` with the random words of some draws.

    Args:
        keys: (B,) int64 from `stream_key`.
        draws: (B,) int64 numbers of the draws, in [0, 2^31).
        out: (B, N) int32; row i gets words 0 to N - 1 of draw i, four a block.

    Returns:
        `out`.
    """
    if has_stateless(out.device.type):
        from torch.func import _random

        state = torch.stack([keys, draws << 32], dim=-1).view(torch.uint64)  # the offset counts blocks: its high half is counter word 1
        return _random.randint_(state[:, None], out, low=None, high=None)
    return out.copy_(philox_words(keys, draws, out.shape[1]))


@functools.cache
def has_stateless(device: str) -> bool:
    """Say whether this torch has the stateless generator, and it gives the words of `philox_words` on this kind of device."""
    try:
        from torch.func import _random

        keys, draws = (torch.tensor(values, device=device) for values in ([-3, 1 << 40], [5, (1 << 31) - 1]))
        state = torch.stack([keys, draws << 32], dim=-1).view(torch.uint64)
        found = _random.randint_(state[:, None], torch.empty(2, 6, dtype=torch.int32, device=device), low=None, high=None)
    except (ImportError, AttributeError, RuntimeError, TypeError):
        return False
    return torch.equal(found, philox_words(keys, draws, 6))


def philox_words(keys: Tensor, draws: Tensor, count: int) -> Tensor:
    """Compute the words of `random_words` with 64-bit integers, (B,) and (B,) -> (B, count) int32."""
    blocks = torch.arange(-(-count // 4), device=keys.device).expand(len(keys), -1)
    first, second = keys[:, None] & _MASK, keys[:, None] >> 32 & _MASK
    c0, c1, c2, c3 = blocks, draws[:, None].expand_as(blocks), torch.zeros_like(blocks), torch.zeros_like(blocks)
    for turn in range(10):
        k0, k1 = first + turn * 0x9E3779B9 & _MASK, second + turn * 0xBB67AE85 & _MASK
        (high0, low0), (high2, low2) = _multiply(c0, 0xD2511F53), _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high2 ^ c1 ^ k0, low2, high0 ^ c3 ^ k1, low0
    words = torch.stack([c0, c1, c2, c3], dim=-1).flatten(1)[:, :count]
    return torch.where(words < 1 << 31, words, words - (1 << 32)).to(torch.int32)


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """Return the high and the low 32 bits of a product of 32-bit numbers; int64 products wrap around, and shifts keep their sign."""
    product = word * factor
    return product >> 32 & _MASK, product & _MASK


def half_length(elements: int) -> int:
    """Return how many words give the radii, and as many the angles, of `elements` normals: half of them, in whole blocks of four."""
    return -(-elements // 8) * 4


def box_muller(words: Tensor, out: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Turn words into normals.

    The radius word and the lowest 8 bits of the angle word make a uniform number of 39 bits, so that normals reach 7.4; the highest 24 bits of the
    angle word, all that float32 holds, make the angle.

    Args:
        words: (B, 2 h) int32, first the radii's words, then the angles'; they are lost.
        out: (B, d) float32, d <= 2 h; elements 0 to h - 1 are r cos, the others r sin.
        scratch: (2, B, h) float32 to compute in; None makes it.

    Returns:
        `out`.
    """
    half = words.shape[1] // 2
    radius, angle = torch.empty(2, len(words), half, device=words.device) if scratch is None else scratch
    low, angles = words[:, :half], words[:, half:]
    radius.copy_(low.bitwise_and_(0x7FFFFFFF))
    angle.copy_(torch.bitwise_and(angles, 0xFF, out=low)).add_(0.5)
    radius.add_(angle, alpha=2.0**-8).mul_(2.0**-31).log_().mul_(-2.0).sqrt_()
    angle.copy_(angles.bitwise_right_shift_(8)).add_(0.5).mul_(math.pi * 2.0**-23)
    first, rest = out[:, :half], out[:, half:]
    torch.cos(angle[:, : first.shape[1]], out=first).mul_(radius[:, : first.shape[1]])
    torch.sin(angle[:, : rest.shape[1]], out=rest).mul_(radius[:, : rest.shape[1]])
    return out


class Sampler:
    """Adds noise to images, each copy with noise of its own, into a buffer that is made once.

    Args:
        law: "gaussian"; "uniform" on [-sigma, sigma] for l1 certificates; "grid": the Gaussian rounded to multiples of 1/255, with which the
            certificate of a classifier of such images holds in floating point, too (Voracek & Hein 2023).
        sigma: standard deviation of the Gaussian, or half-width of the uniform noise.
        elements: values of one image, d.
        device: where images lie.
        theta: (d,) standard deviations of single elements in units of `sigma`, for the Gaussian; None: 1.

    Attributes:
        tail: by how much a vote's probability may differ from that under the ideal law; see `alpha.tail_mass`.
    """

    def __init__(self, law: Law, sigma: float, elements: int, device: torch.device | str = "cpu", theta: Tensor | None = None) -> None:
        self.law, self.elements, self.theta = law, elements, theta
        self.sigma = float32_above(sigma)
        count = {"gaussian": 2 * half_length(elements), "uniform": elements, "grid": 2 * elements}[law]
        self._rows = max(1, _CHUNK // elements) if torch.device(device).type == "cpu" else max(1, (1 << 26) // elements)
        self._words = torch.empty(self._rows, count, dtype=torch.int32, device=device)
        self._noise = torch.empty(self._rows, elements, device=device)
        self._clean = torch.empty(self._rows, elements, device=device)
        self.tail = 0.0
        if law == "gaussian":
            self._scratch = torch.empty(2, self._rows, count // 2, device=device)
            self.tail = tail_mass(elements)
        if law == "grid":
            self._thresholds = rounded_gaussian_thresholds(sigma).to(device)
            self.tail = elements * len(self._thresholds) * 2.0**-52

    def perturb(self, images: Tensor, slots: Tensor, keys: Tensor, draws: Tensor, out: Tensor, placement: Placement | None = None) -> Tensor:
        """Write image `slots[i]` under noise `draws[i]` to row i.

        Args:
            images: (M, ...) float32; for law "grid" multiples of 1/255.
            slots: (B,) int64 rows of `images`.
            keys: (B,) int64 from `stream_key`.
            draws: (B,) int64 numbers of the draws.
            out: (B, ...) of any floating type and memory format.
            placement: what lays noised images out in `out` and normalises them, in float32; None: they stay as they are.

        Returns:
            `out`.
        """
        if out.is_cuda and self.law == "gaussian" and self.theta is None:
            from shared.smoothing.fused import perturb

            if placement is None:
                return perturb(images, slots, keys, draws, self.sigma, out)
            is_dense = placement.is_identity and placement.needed == self.elements
            return perturb(images, slots, keys, draws, self.sigma, out, None if is_dense else placement.source, placement.mean, placement.std)
        for start in range(0, len(out), self._rows):
            part = slice(start, start + self._rows)
            noise = self.noise(keys[part], draws[part])
            if self.theta is not None:
                noise.mul_(self.theta)
            noise = noise.view(-1, *images.shape[1:])
            clean = torch.index_select(images.flatten(1), 0, slots[part], out=self._clean[: len(noise)]).view_as(noise)
            target = out[part] if placement is None else clean
            if self.law == "grid":
                torch.div(clean.mul_(LEVELS).round_().add_(noise), LEVELS, out=target)
            else:
                torch.add(clean, noise, alpha=self.sigma, out=target)
            if placement is not None:
                out[part] = placement(target)
        return out

    def noise(self, keys: Tensor, draws: Tensor) -> Tensor:
        """Return (B, d) float32 noise of standard deviation 1 (half-width 1; for law "grid" integers, steps of 1/255), valid until the next call."""
        words, out = random_words(keys, draws, self._words[: len(keys)]), self._noise[: len(keys)]
        if self.law == "gaussian":
            return box_muller(words, out, self._scratch[:, : len(keys)])
        if self.law == "uniform":
            return out.copy_(words).add_(0.5).mul_(2.0**-31)
        high, low = words[:, : self.elements].long() & 0x7FFFFFFF, words[:, self.elements :].long() & _MASK
        steps = torch.searchsorted(self._thresholds, high << 32 | low, right=True)
        return out.copy_(steps).sub_(len(self._thresholds) // 2)


def float32_above(sigma: float) -> float:
    """Return the least float32 that is not below `sigma`: noise is never weaker than what radii are computed with."""
    nearest = torch.tensor(sigma, dtype=torch.float32)
    return float(nearest if float(nearest) >= sigma else torch.nextafter(nearest, torch.tensor(math.inf)))


def rounded_gaussian_thresholds(sigma: float) -> Tensor:
    """Return 2^63 P(255 e < j + 1/2), e ~ N(0, sigma^2), for the integers j from -J to J - 1, J = 8.3 · 255 sigma: (2 J,) int64, ascending."""
    reach = math.ceil(8.3 * LEVELS * sigma)
    edges = (torch.arange(-reach, reach, dtype=torch.float64) + 0.5) / (LEVELS * sigma)
    below = torch.special.ndtr(edges) * 2.0**63
    return below.clamp(max=2.0**63 - 2048).to(torch.int64)


def check_grid(images: Tensor) -> None:
    """Check that images are multiples of 1/255.

    Raises:
        ValueError: if a value is none; with noise on a grid the certificate would not hold.
    """
    levels = images * LEVELS
    if bool(((levels - levels.round()).abs() > 1e-3).any()):
        raise ValueError("noise on the grid needs images of 8 bits (multiples of 1/255): leave out resizing, or round after it")


assert RADIUS_BITS == 31 + 8, "box_muller and tail_mass speak of the same number of bits"
