"""CAFE beside the attacks that came before it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from projects.cafe.campaign import Campaign
from projects.cafe.metrics import baselines, psnr, psnr_summary
from projects.cafe.reproduction.setting import FEW, build, measure, shown
from projects.cafe.watching import Watch
from shared.tables import Job, Rows, Table

LINES: dict[str, tuple[int, int, Campaign]] = {
    "CAFE": (200, 40, Campaign()),
    "CAFE, malicious batches": (200, 40, Campaign(watch=Watch("malicious"))),
    "CAFE without steps I, II": (200, 40, Campaign("aligned")),
    "DLG, K = 1": (200, 1, Campaign("dlg")),
    "DLG, K = 8": (200, 8, Campaign("dlg")),
    "DLG": (200, 40, Campaign("dlg")),
    "DLG, known labels": (200, 40, Campaign("dlg", Watch(known_labels=True))),
    "iDLG": (200, 40, Campaign("idlg")),
    "SAPAG": (200, 40, Campaign("sapag")),
    "cosine + TV": (200, 40, Campaign("inverting_gradients")),
    "cosine + TV + batch norm": (200, 40, Campaign("batch_norm")),
    "cosine + TV, group of 3": (200, 40, Campaign("group")),
}
"""Records, batch, and attack; the batch is 40 unless it is named. One round is attacked but by CAFE and its ablation."""
MEAN = "mean image"
QUICK = ("CAFE", "DLG, K = 1")
_COLUMNS = ("psnr", "psnr_median", "psnr_min", "above_30_db", "label_accuracy", "seconds")


def rows(line: str, is_quick: bool, seed: int) -> Rows:
    """Return the row of an attack."""
    count, batch, campaign = LINES[line]
    data: dict[str, Any] = FEW if is_quick else {"count": count, "batch_size": batch}
    module, records = build(seed, {"batch_norm": campaign.method == "batch_norm"}, **data)
    row = measure(campaign, module, records)
    return [{"attack": line, "seed": seed, "records": row["records"]} | shown(row, _COLUMNS)]


def mean_rows(is_quick: bool, seed: int) -> Rows:
    """Return the row of the mean image, which is more than an attacker knows."""
    _, records = build(seed, **(FEW if is_quick else {"count": 200}))
    truth = records.attacked.values()
    row = psnr_summary(psnr(baselines(truth, seed)["mean"], truth))
    return [{"attack": MEAN, "seed": seed, "records": len(truth)} | shown(row, _COLUMNS)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job an attack and seed, the longest first."""
    lines = QUICK if is_quick else sorted(LINES, key=lambda name: "group" not in name)
    attacks = [Job(line.replace(" ", "-"), seed, rows, (line, is_quick)) for line in lines for seed in seeds]
    return [*attacks, *(Job("mean", seed, mean_rows, (is_quick,)) for seed in seeds)]


def in_order(found: Rows) -> Rows:
    """Sort rows as `LINES` has them, the mean image last."""
    order = [*LINES, MEAN]
    return sorted(found, key=lambda row: (order.index(row["attack"]), row["seed"]))


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the expected row holds."""
    mean = {row["attack"]: row["psnr"]["mean"] for row in means}
    rivals = [name for name, (_, batch, campaign) in LINES.items() if batch == 40 and campaign.method != "cafe"]
    return {
        "CAFE recovers 200 records from batches of 40 with 30 dB or more": mean["CAFE"] >= 30,
        "DLG at K = 40 is 20 dB or more below CAFE": mean["CAFE"] - mean["DLG"] >= 20,
        "DLG at K = 40 is below, or within 2 dB of, the mean image": mean["DLG"] <= mean[MEAN] + 2,
        "every rival at K = 40 is 20 dB or more below CAFE": all(mean["CAFE"] - mean[name] >= 20 for name in rivals),
        "DLG recovers a single record (30 dB), and not batches of 8": mean["DLG, K = 1"] >= 30 > mean["DLG, K = 8"],
    }


TABLE = Table(
    "Attacks on 200 digits in batches of 40",
    "CAFE recovers all records from gradients of large batches, where earlier attacks fail",
    ("attack", "records"),
    jobs,
    expectations,
    tabulate=in_order,
)
