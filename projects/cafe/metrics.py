"""How well an attack recovers records, beside trivial guesses, and how much a defence gains for what it costs.

report = picture_report(recovered, truth, data.blocks)    # of an attack that keeps the order of the records
report = picture_report(recovered[match(recovered, truth)], truth, data.blocks)    # of one that does not, such as DLG

Attackers never see what is measured here: `truth` is the private data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from shared import metrics
from shared.metrics import SSIM_WINDOW
from shared.seeding import generator

CAP = 100.0
"""Largest PSNR that is given, in dB; an exact copy has it."""

RECOVERED = 30.0
"""PSNR in dB above which an image counts as recovered."""


def mse(recovered: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each record, (N, ...) and (N, ...) -> (N,) float64.

    Raises:
        ValueError: if shapes differ, there are no records, or a value is not finite.
    """
    recovered, truth = _pair(recovered, truth)
    return (recovered - truth).square().flatten(1).mean(1)


def psnr(recovered: Tensor, truth: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each image, 10 log10(1 / MSE); average it over images, not the errors before it.

    Args:
        recovered: (N, C, H, W), clamped to [0, 1] first.
        truth: (N, C, H, W) in [0, 1].

    Returns:
        (N,) float64 in dB, at most `CAP`.

    Raises:
        ValueError: if shapes differ, there are no images, or a value is not finite.
    """
    return _decibels(mse(recovered.clamp(0, 1), truth))


def party_psnr(recovered: Sequence[Tensor], truth: Sequence[Tensor]) -> float:
    """Mean PSNR over images and the parties' blocks, as the reference prints it: the "quarter mean".

    It is above that of whole images where a block is blank and exact. The reference takes only the current batch; this takes what it is given.

    Args:
        recovered: (N, C, h, w) of each party.
        truth: the same.

    Returns:
        dB, each block's at most `CAP`.

    Raises:
        ValueError: see `psnr`, or if the numbers of parties differ.
    """
    return float(torch.stack([psnr(*blocks).mean() for blocks in zip(recovered, truth, strict=True)]).mean())


def ssim(recovered: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each image, see `shared.metrics.ssim`.

    Args:
        recovered: (N, C, H, W), clamped to [0, 1] first; sides of at least 11 pixels.
        truth: (N, C, H, W) in [0, 1].

    Returns:
        (N,) float64, at most 1.

    Raises:
        ValueError: if shapes differ, there are no images, they are smaller than the window, or a value is not finite.
    """
    recovered, truth = _pair(recovered.clamp(0, 1), truth)
    return metrics.ssim(recovered.float(), truth.float()).double()


def match(recovered: Tensor, truth: Tensor) -> Tensor:
    """Assign recovered records to true ones so that the sum of their MSE is least (Hungarian), for attacks that do not keep the order.

    Args:
        recovered: (N, C, H, W), clamped to [0, 1] first, or rows of a table, (N, D).
        truth: of the same shape; images in [0, 1].

    Returns:
        (N,) int64 `order`, such that `recovered[order]` lies beside `truth`.

    Raises:
        ValueError: if shapes differ, there are no images, or a value is not finite.
    """
    from scipy.optimize import linear_sum_assignment

    order_of = recovered.device
    recovered, truth = (some.flatten(1) for some in _pair(recovered.clamp(0, 1) if truth.ndim == 4 else recovered, truth))
    errors = torch.cdist(truth, recovered).square()
    return torch.from_numpy(linear_sum_assignment(errors.cpu().numpy())[1]).to(order_of)


def baselines(truth: Tensor, seed: int, mean: Tensor | None = None) -> dict[str, Tensor]:
    """Guess without any attack; every table of results shows what these get.

    Args:
        truth: (N, C, H, W) in [0, 1].
        seed: seed of the noise.
        mean: (C, H, W), the mean image; None is that of `truth`.

    Returns:
        Guesses of the shape of `truth`: the "mean" of the true images, which is more than an attacker knows, "zeros", and "noise", uniform in [0, 1).
    """
    noise = torch.rand(truth.shape, generator=generator(seed, "cafe", "noise baseline"))
    return {"mean": mean_guess(truth, mean), "zeros": torch.zeros_like(truth), "noise": noise.to(truth)}


def mean_guess(truth: Tensor, mean: Tensor | None = None) -> Tensor:
    """Return the mean record, (...), that of the true ones unless it is given, in the shape of `truth`, (N, ...)."""
    return (truth.mean(0) if mean is None else mean.to(truth)).expand_as(truth)


def psnr_summary(values: Tensor) -> dict[str, float]:
    """Return mean, median (of an even number: the mean of the middle two) and min of PSNR, (N,), and the fraction above `RECOVERED`."""
    above = (values > RECOVERED).double().mean()
    summary = {"psnr": values.mean(), "psnr_median": values.quantile(0.5), "psnr_min": values.min(), "above_30_db": above}
    return {name: float(value) for name, value in summary.items()}


def picture_report(
    recovered: Tensor, truth: Tensor, blocks: Callable[[Tensor], Sequence[Tensor]], seed: int = 0, mean: Tensor | None = None
) -> dict[str, float]:
    """Measure recovered images, all of them, beside the trivial baselines.

    Args:
        recovered: (N, C, H, W) in the order of `truth`; those of unordered attacks go through `match` first.
        truth: (N, C, H, W) in [0, 1].
        blocks: splits images into the blocks of the parties.
        seed: seed of the noise baseline.
        mean: see `baselines`.

    Returns:
        `psnr_summary`, `party_psnr`, mean `mse` and `ssim` (where images are large enough), and the mean PSNR of each baseline as `baseline_<name>`.

    Raises:
        ValueError: see `psnr`.
    """
    recovered = recovered.clamp(0, 1)
    report = psnr_summary(psnr(recovered, truth))
    report |= {"party_psnr": party_psnr(blocks(recovered), blocks(truth)), "mse": float(mse(recovered, truth).mean())}
    if min(truth.shape[2:]) >= SSIM_WINDOW:
        report["ssim"] = float(ssim(recovered, truth).mean())
    return report | {f"baseline_{name}": float(psnr(guess, truth).mean()) for name, guess in baselines(truth, seed, mean).items()}


def table_report(recovered: Tensor, truth: Tensor, mean: Tensor | None = None) -> dict[str, float]:
    """Measure recovered rows of a table in standard deviations of its columns.

    Args:
        recovered: (N, D) standardised by the training records.
        truth: the same.
        mean: (D,), the mean row; None is that of `truth`.

    Returns:
        `rmse` over all values, `rmse_median` and `rmse_max` over records, and `baseline_mean`, the RMSE of the mean row.

    Raises:
        ValueError: if shapes differ, there are no records, or a value is not finite.
    """
    rows = rmse(recovered, truth)
    guess = rmse(mean_guess(truth, mean), truth)
    named = {"rmse": _quadratic_mean(rows), "rmse_median": rows.quantile(0.5), "rmse_max": rows.max(), "baseline_mean": _quadratic_mean(guess)}
    return {name: float(value) for name, value in named.items()}


def rmse(recovered: Tensor, truth: Tensor, deviation: Tensor | None = None) -> Tensor:
    """Root mean squared error of each row of a table, in standard deviations.

    Args:
        recovered: (N, D).
        truth: (N, D).
        deviation: (D,) standard deviation of each column; None for tables that are standardised.

    Returns:
        (N,) float64.

    Raises:
        ValueError: if shapes differ, there are no records, or a value is not finite.
    """
    recovered, truth = _pair(recovered, truth)
    scale = 1.0 if deviation is None else deviation.to(truth)
    return mse(recovered / scale, truth / scale).sqrt()


def relative_error(estimate: Tensor, truth: Tensor) -> float:
    """Error of an estimate of V or H, ||estimate - truth|| / ||truth|| in the Frobenius norm; needs the ground truth, so for tests only.

    Returns:
        0 for an exact estimate, 1 for zeros; infinite, or NaN, where the truth is zero.

    Raises:
        ValueError: if shapes differ, there are no records, or a value is not finite.
    """
    estimate, truth = _pair(estimate, truth)
    return float((estimate - truth).norm() / truth.norm())


def label_accuracy(scores: Tensor, labels: Tensor) -> float:
    """Part of the records whose largest score, of (N, K) logits or probabilities, is that of their label, (N,).

    Raises:
        ValueError: if shapes do not fit or there are no records.
    """
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or len(labels) == 0:
        raise ValueError(f"expected scores (N, K) and labels (N,), got {tuple(scores.shape)} and {tuple(labels.shape)}")
    return float((scores.argmax(1) == labels.to(scores.device)).double().mean())


def attack_performance(recovered: Tensor, truth: Tensor, mean: Tensor | None = None) -> float:
    """Bring an attack on pictures or tables to [0, 1], for `defence_score`: the part of the mean record's squared error that it takes away.

    Args:
        recovered: (N, ...); pictures in [0, 1].
        truth: (N, ...).
        mean: (...), the mean record; None is that of `truth`.

    Returns:
        max(0, 1 - MSE / MSE of the mean record): 1 for exact recovery, 0 for an attack that is no better than the mean record.

    Raises:
        ValueError: if shapes differ, there are no records, a value is not finite, or all records are equal to the mean.
    """
    trivial = float(mse(mean_guess(truth, mean), truth).mean())
    if trivial == 0:
        raise ValueError("all records are equal to their mean, which is exact, so that no attack can be judged: take several records")
    return max(0.0, 1 - float(mse(recovered, truth).mean()) / trivial)


def defence_score(attack: float, main: float, ideal_main: float, ideal_attack: float = 0.0, beta: float = 0.5) -> float:
    """VFLAIR's defence capability score, DCS = 1 / (1 + sqrt((1 - b) (AP - AP*)^2 + b (MP - MP*)^2)).

    Args:
        attack: AP, performance of the attack under the defence, in [0, 1].
        main: MP, test accuracy of the main task under the defence, in [0, 1].
        ideal_main: MP*, that of the undefended model.
        ideal_attack: AP*, that of an attack which gains nothing.
        beta: b, weight of the main task, in [0, 1].

    Returns:
        In (0, 1]; 1 for a defence that stops the attack and costs nothing.

    Raises:
        ValueError: if an argument is outside [0, 1].
    """
    given: Mapping[str, float] = {"attack": attack, "main": main, "ideal_main": ideal_main, "ideal_attack": ideal_attack, "beta": beta}
    for name, value in given.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}: bring it there by a stated map, such as attack_performance")
    return 1 / (1 + math.sqrt((1 - beta) * (attack - ideal_attack) ** 2 + beta * (main - ideal_main) ** 2))


def _decibels(errors: Tensor) -> Tensor:
    return -10 * errors.clamp_min(10 ** (-CAP / 10)).log10()


def _quadratic_mean(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


def _pair(recovered: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Check two sets of records, and give them as float64 on the device of the truth."""
    if recovered.shape != truth.shape or truth.ndim < 2 or len(truth) == 0:
        raise ValueError(f"expected recovered and true records of one shape, got {tuple(recovered.shape)} and {tuple(truth.shape)}")
    recovered, truth = recovered.detach().to(truth.device, torch.float64), truth.detach().double()
    for name, values in (("recovered", recovered), ("true", truth)):
        if count := int((~values.isfinite()).flatten(1).any(1).sum()):
            raise ValueError(f"{count} of {len(values)} {name} records hold values that are not finite: the attack diverged, or the data are damaged")
    return recovered, truth
