"""When CAFE works: rounds, batches and widths."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from projects.cafe.campaign import Campaign
from projects.cafe.reproduction.setting import ERROR, build, measure, readable, shown
from projects.cafe.watching import Watch
from shared.tables import Job, Rows, Table


class Line(NamedTuple):
    """N, K, T and options of the model."""

    records: int
    batch: int
    rounds: int
    model: dict[str, Any]


LINES = {
    "1.2 N rounds": Line(200, 40, 240, {}),
    "N rounds": Line(200, 40, 200, {}),
    "fewer rounds than records": Line(200, 40, 120, {}),
    "few records, small batches": Line(40, 8, 60, {}),
    "batches of all records": Line(40, 40, 60, {}),
    "more records than d2": Line(400, 100, 480, {}),
    "half as wide (h twice the pixels)": Line(200, 40, 240, {"widths": [16, 32]}),
}
QUICK = {"few records": Line(24, 4, 30, {}), "fewer rounds than records": Line(24, 4, 12, {})}
_COLUMNS = ("recovered", "error_h", "psnr", "psnr_min", "above_30_db", "seconds")


def rows(name: str, line: Line, seed: int) -> Rows:
    """Return the row of a setting."""
    module, data = build(seed, line.model, count=line.records, batch_size=line.batch)
    row = measure(Campaign(watch=Watch(rounds=line.rounds)), module, data)
    setting = {"setting": name, "N": line.records, "K": line.batch, "T": line.rounds}
    return [setting | {"seed": seed, "rank": float(row["rank"])} | shown(row, _COLUMNS)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a setting and seed."""
    lines = QUICK if is_quick else LINES
    return [Job(name.replace(" ", "-"), seed, rows, (name, line)) for name, line in lines.items() for seed in seeds]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the paper's conditions are those that decide."""
    row = {line["setting"]: line for line in means}
    short = row["fewer rounds than records"]
    wide, narrow = row["1.2 N rounds"]["psnr"]["mean"], row["half as wide (h twice the pixels)"]["psnr"]["mean"]
    return {
        "with fewer rounds than records nothing is recovered, and the rank says why": short["recovered"]["mean"] == 0 and short["rank"]["mean"] < 200,
        "batches of all records give nothing away": row["batches of all records"]["recovered"]["mean"] == 0,
        "d2 < N does not matter: h is exact (1e-4)": row["more records than d2"][ERROR]["mean"] < -4,
        "a narrow net, whose h has fewer entries, protects pixels (by 10 dB) though h is exact": wide - narrow >= 10,
    }


TABLE = Table(
    "When CAFE works",
    "recovery needs as many rounds as records, and a wide enough net",
    ("setting", "N", "K", "T"),
    jobs,
    expectations,
    tabulate=readable,
)
