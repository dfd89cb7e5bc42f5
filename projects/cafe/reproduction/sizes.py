"""More records (and the paper's largest setting: 800 records in batches of 100)."""

from __future__ import annotations

from pathlib import Path

from projects.cafe.campaign import Campaign
from projects.cafe.reproduction.setting import build, measure, readable, shown
from shared.tables import Job, Rows, Table

LINES = [(200, 40), (400, 100), (800, 40), (800, 100)]
_COLUMNS = ("recovered", "error_h", "psnr", "psnr_median", "psnr_min", "above_30_db", "label_accuracy", "seconds")


def rows(count: int, batch: int, seed: int) -> Rows:
    """Return the row of a number of records and a batch."""
    module, data = build(seed, count=count, batch_size=batch)
    return [{"N": count, "K": batch, "seed": seed} | shown(measure(Campaign(), module, data), _COLUMNS)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a size and seed, the largest first."""
    lines = [(24, 4)] if is_quick else sorted(LINES, reverse=True)
    return [Job(f"{count}-{batch}", seed, rows, (count, batch)) for count, batch in lines for seed in seeds]


def in_order(found: Rows) -> Rows:
    """Sort rows by size."""
    return readable(sorted(found, key=lambda row: (row["N"], row["K"], row["seed"])))


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the paper's largest setting is reached."""
    largest = next(row for row in means if (row["N"], row["K"]) == (800, 100))
    return {
        "800 records from batches of 100 are recovered with 30 dB or more": largest["psnr"]["mean"] >= 30,
        "in less than 5 minutes of one core": largest["seconds"]["mean"] < 300,
    }


TABLE = Table("From 200 to 800 digits", "800 records and batches of 100 are no limit", ("N", "K"), jobs, expectations, tabulate=in_order)
