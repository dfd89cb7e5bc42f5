"""Which clues find which traces: streams alone and together (claims 1 and 2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from projects.tripinet.baseline import as_probability, local_variance, variance_map
from projects.tripinet.reproduction import worlds
from projects.tripinet.reproduction.worlds import ALL, IN_PLACE
from shared.tables import Job, Rows, Table

NOISE, FREQUENCY = ("srm", "bayar"), ("dct_corner", "haar", "block_dct")
STREAMS: dict[str, dict[str, Any]] = {
    **{names: {"streams": names.split(" + ")} for names in ("rgb", *NOISE, *FREQUENCY, "rgb + srm", "rgb + dct_corner", ALL)},
    **{f"{names}, alpha 0.3": {"streams": names.split(" + "), "alpha": 0.3} for names in ("dct_corner", ALL)},
}
"""Options of the networks; alpha is 0.1 where it is not said."""
UNLEARNT: dict[str, Callable[[Tensor], Tensor]] = {
    "none: unusual variance of the K1 residual": lambda images: as_probability(variance_map(images)),
    "none: low variance of the K1 residual": lambda images: 1 / (1 + local_variance(images)),
}
"""What needs no learning."""


def baseline(seed: int) -> Rows:
    """Judge what needs no learning."""
    made = []
    for name, score in UNLEARNT.items():
        tests = {kind: worlds.tested(kind, seed, worlds.TESTED) for kind in worlds.TESTS}
        auc = {kind: worlds.measure(score(pictures.images), pictures)["pixel_auc"] for kind, pictures in tests.items()}
        made.append({"streams": name, "seed": seed, "k parameters": 0.0, **worlds.columns({}, auc)})
    return made


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each set of streams and seed."""
    if quick:
        return [Job(name, seeds[0], worlds.compare, (kept, "streams", name, STREAMS[name], *worlds.QUICK)) for name in ("rgb", ALL)]
    each = STREAMS.items()
    learnt = [Job(name, seed, worlds.compare, (kept, "streams", name, options, *worlds.FULL)) for seed in seeds for name, options in each]
    return learnt + [Job("none", seed, baseline) for seed in seeds]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say which of the claims hold."""
    found: dict[str, dict[str, float]] = {row["streams"]: {name: _mean(row[name]) for name in row if name != "streams"} for row in summary}
    noise, frequency, everything, colours = (found[name] for name in ("srm", "dct_corner", ALL, "rgb"))
    held = {
        "all three streams beat rgb by at least .10 in F1": everything["F1"] >= colours["F1"] + 0.10,
        "and by at least .05 in AUC": everything["AUC"] >= colours["AUC"] + 0.05,
        "all three streams beat each stream alone in F1": all(everything["F1"] > found[name]["F1"] for name in ("rgb", *NOISE, *FREQUENCY)),
        "srm finds noise better than dct_corner": noise["F1 noise"] > frequency["F1 noise"],
    }
    held |= {f"dct_corner finds {kind} better than srm": frequency[f"F1 {kind}"] > noise[f"F1 {kind}"] for kind in IN_PLACE[1:]}
    within = all(abs(row["AUC control"] - 0.5) <= 0.1 for row in found.values())
    return held | {"no network finds the masks of untouched pictures: AUC .4 to .6": within}


def _mean(cell: Any) -> float:
    return cell["mean"] if cell else float("nan")


TABLE = Table("streams", "Noise and frequency traces find what cannot be seen, and each finds other traces.", ("streams",), jobs, expectations)
