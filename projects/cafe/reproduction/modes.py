"""Tables, horizontal learning, coloured pictures and known labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from projects.cafe.campaign import Campaign
from projects.cafe.recovery import Cafe
from projects.cafe.reproduction.setting import build, measure, readable, shown
from projects.cafe.watching import Watch
from shared.tables import Job, Rows, Table

WORKERS = {"parties": 1, "split": "rows", "count": 160, "batch_size": 10}
PATCHES = {"source": "patches", "count": 40, "batch_size": 8}
TABLES = {"source": "breast_cancer", "count": 200, "batch_size": 40}


class Line(NamedTuple):
    """Options of the data and the model, and the attack."""

    data: dict[str, Any]
    model: dict[str, Any]
    campaign: Campaign


LINES = {
    "table, 150 rounds": Line(TABLES, {}, Campaign(watch=Watch(rounds=150))),
    "table, 200 rounds": Line(TABLES, {}, Campaign(watch=Watch(rounds=200))),
    "table, 260 rounds": Line(TABLES, {}, Campaign(watch=Watch(rounds=260))),
    "horizontal, 4 workers of 40 records": Line(WORKERS, {}, Campaign(watch=Watch(workers=4))),
    "horizontal, secure sum of the 4": Line(WORKERS, {}, Campaign(watch=Watch(workers=4, secure_sum=True))),
    "coloured patches, widths 32, 64": Line(PATCHES, {}, Campaign()),
    "coloured patches, widths 32, 160": Line(PATCHES, {"widths": [32, 160]}, Campaign()),
    "coloured patches, widths 32, 160, 1000 steps": Line(PATCHES, {"widths": [32, 160]}, Campaign(cafe=Cafe(steps=1000))),
    "digits in rows, 2 parties": Line({"split": "rows", "parties": 2, "count": 40, "batch_size": 8}, {}, Campaign()),
}
QUICK = {
    "table": Line(TABLES | {"count": 40, "batch_size": 8}, {}, Campaign(watch=Watch(rounds=50))),
    "horizontal": Line(WORKERS | {"count": 24, "batch_size": 3}, {}, Campaign(watch=Watch(workers=2), cafe=Cafe(steps=30))),
}
_COLUMNS = ("recovered", "error_h", "psnr", "rmse", "mean_record", "label_accuracy", "seconds")


def rows(name: str, line: Line, seed: int) -> Rows:
    """Return the row of a mode; errors of tables in standard deviations."""
    module, data = build(seed, line.model, **line.data)
    row = measure(line.campaign, module, data)
    return [{"mode": name, "seed": seed, "records": float(row["records"])} | shown(row, _COLUMNS)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a mode and seed."""
    lines = QUICK if is_quick else LINES
    return [Job(name.replace(" ", "-"), seed, rows, (name, line)) for name, line in lines.items() for seed in seeds]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether every mode leaks as expected."""
    row = {line["mode"]: line for line in means}
    patches = [row[f"coloured patches, widths {widths}"]["psnr"]["mean"] for widths in ("32, 64", "32, 160", "32, 160, 1000 steps")]
    guess = row["coloured patches, widths 32, 64"]["mean_record"]["mean"]
    return {
        "tables leak exactly once rounds exceed records (RMSE below 1e-3)": row["table, 260 rounds"]["rmse"]["mean"] < 1e-3,
        "not with fewer rounds": row["table, 150 rounds"]["recovered"]["mean"] == 0,
        "workers of horizontal learning leak one by one (30 dB)": row["horizontal, 4 workers of 40 records"]["psnr"]["mean"] >= 30,
        "the secure sum of batches of fixed sizes gives no record": row["horizontal, secure sum of the 4"]["recovered"]["mean"] == 0,
        "coloured pictures leak above the mean image, and better with width and steps": guess < patches[0] < patches[1] < patches[2],
    }


TABLE = Table("Other data, other splits", "the attack is not about digits or quarters", ("mode",), jobs, expectations, tabulate=readable)
