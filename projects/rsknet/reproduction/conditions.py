"""Noise, rooms and short recordings, and what calibrated scores are worth there."""

from __future__ import annotations

from math import inf
from pathlib import Path

from projects.rsknet.judging import judge
from projects.rsknet.reproduction import worlds
from projects.rsknet.reproduction.worlds import LIGHT, RESNET, RSKNET, XVECTOR, World
from projects.rsknet.synthesis import Conditions
from shared.tables import Job, Rows, Table

COMPARED = (XVECTOR, RESNET, RSKNET, LIGHT)
TRAINED, LONG, MIDDLE, SHORT = "as in training, 2 s", "4 s", "2 s of these", "1 s of these"
HEARD: dict[str, tuple[Conditions, float, float | None]] = {
    TRAINED: (Conditions(), 2.0, None),
    LONG: (Conditions(), 4.0, None),
    MIDDLE: (Conditions(), 4.0, 2.0),
    SHORT: (Conditions(), 4.0, 1.0),
    "neither noise nor room": (Conditions(reverberation=0.0, snr=(inf, inf)), 2.0, None),
    **{f"noise at {snr} dB": (Conditions(reverberation=0.0, snr=(snr, snr)), 2.0, None) for snr in (20, 10, 5, 0)},
    **{f"room, T60 {t60} s": (Conditions(reverberation=1.0, t60=(t60, t60), snr=(inf, inf)), 2.0, None) for t60 in (0.3, 0.6, 1.0)},
}
"""How the test speakers are heard: conditions, seconds that they speak, and seconds from the middle that are embedded."""
CALIBRATED = (TRAINED, SHORT, "noise at 5 dB")


def measure(kept: Path, name: str, world: World, heard: tuple[str, ...], seed: int) -> Rows:
    """Return a row for each way in which the test speakers of a seed are heard by a network, scored by the cosine."""
    found = worlds.trained(kept, name, world, seed)
    rows = []
    for condition in heard:
        measures = judge(found.scorer, "cosine", found.heard(*HEARD[condition]), found.data.trials[0]).measures
        rows.append({"heard": condition, "net": name, "seed": seed, **measures})
    return rows


def tabulate(rows: Rows) -> Rows:
    """Set the networks' error rates side by side."""
    table: dict[tuple[str, int], dict] = {}
    for row in rows:
        table.setdefault((row["heard"], row["seed"]), {"heard": row["heard"], "seed": row["seed"]})[row["net"]] = 100 * row["eer"]
    return [table[condition, seed] for condition in HEARD for seed in dict.fromkeys(row["seed"] for row in rows) if (condition, seed) in table]


def calibration(rows: Rows) -> Rows:
    """Take what tells of calibration, in percent where it is a rate."""
    names = {"cllr_before": "Cllr before", "cllr": "Cllr", "min_cllr": "min Cllr", "far": "false accepts %", "miss": "misses %"}
    shown = [{"net": row["net"], "heard": row["heard"], "seed": row["seed"]} for row in rows]
    for own, row in zip(shown, rows, strict=True):
        own |= {title: (100 if "%" in title else 1) * row[name] if name in row else None for name, title in names.items()}
    return shown


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each network and seed."""
    if quick:
        return [Job(RSKNET, seeds[0], measure, (kept, RSKNET, worlds.QUICK, (TRAINED, SHORT)))]
    return [Job(name, seed, measure, (kept, name, worlds.FULL, tuple(HEARD))) for seed in seeds for name in COMPARED]


def calibration_jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each network and seed."""
    world, names = (worlds.QUICK, (RSKNET,)) if quick else (worlds.FULL, (XVECTOR, RSKNET, LIGHT))
    return [Job(name, seed, measure, (kept, name, world, CALIBRATED)) for seed in seeds for name in names]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether recordings that tell less are told apart less."""
    rate = {row["heard"]: row[RSKNET]["mean"] for row in summary}
    return {
        "shorter is harder: 1 s above 2 s above 4 s": rate[SHORT] > rate[MIDDLE] > rate[LONG],
        "noisier is harder: 0 dB above 10 dB above none": rate["noise at 0 dB"] > rate["noise at 10 dB"] > rate["neither noise nor room"],
        "a room of 1 s is harder than one of 0.3 s": rate["room, T60 1.0 s"] > rate["room, T60 0.3 s"],
        "RSKNet-MTSP is below the x-vector in each line": all(row[RSKNET]["mean"] < row[XVECTOR]["mean"] for row in summary),
    }


def calibration_expectations(summary: Rows) -> dict[str, bool]:
    """Say whether scores become ratios, also for short recordings, which carry less."""
    rows = [row for row in summary if row["heard"] in (TRAINED, SHORT)]
    return {
        "calibration lowers the cost in each line": all(row["Cllr"]["mean"] < row["Cllr before"]["mean"] for row in summary),
        "it is within 0.05 of the least cost at 2 s and at 1 s": all(row["Cllr"]["mean"] < row["min Cllr"]["mean"] + 0.05 for row in rows),
        "at 2 s and at 1 s the threshold for 1 % accepts 0.3 to 3 % of new impostors": all(
            0.3 <= row["false accepts %"]["mean"] <= 3 for row in rows
        ),
    }


TABLE = Table(
    "conditions",
    "How error rates grow with noise, with rooms and with shorter recordings; EER in percent.",
    ("heard",),
    jobs,
    expectations,
    seeds=5,
    tabulate=tabulate,
)
CALIBRATION = Table(
    "calibration",
    "Scores become log-likelihood ratios on speakers held out, and hold for new ones.",
    ("net", "heard"),
    calibration_jobs,
    calibration_expectations,
    seeds=5,
    tabulate=calibration,
)
