"""Steps I to III: the closed form beside the authors' descent, and what each term of step III buys."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from projects.cafe.campaign import Campaign
from projects.cafe.inversion import Weights
from projects.cafe.recovery import REFERENCE, Cafe
from projects.cafe.reproduction.setting import ERROR, FEW, build, measure, readable, shown
from projects.cafe.watching import Watch
from shared.tables import Job, Rows, Table

ROUNDS = 900
BY_ROUNDS = Cafe(data="reference", steps=ROUNDS, lr=0.01, weights=Weights())
LINES = {
    "closed form, representation of all records (ours)": Cafe(),
    "closed form, 300 steps": Cafe(steps=300),
    "descent in nested loops, representation": Cafe("sgd_adam_nested", rounds=4000, lr_inputs=1e-3),
    "closed form, step III of the reference": BY_ROUNDS,
    "the same without alpha (gradients)": replace(BY_ROUNDS, weights=Weights(alpha=0)),
    "the same without gamma (representation)": replace(BY_ROUNDS, weights=Weights(gamma=0)),
    "the same without beta (total variation)": replace(BY_ROUNDS, weights=Weights(beta=0)),
    "single loop of the reference": replace(REFERENCE, steps=ROUNDS),
    "single loop of the reference, 9000 rounds": replace(REFERENCE, steps=10 * ROUNDS),
}
"""The lines; the reference's take a batch a step, 900 of them, where ours takes all records."""
QUICK = {"closed form": Cafe(), "single loop of the reference": replace(REFERENCE, steps=20)}
LABELS = "label_accuracy"
_COLUMNS = ("error_h", "psnr", "psnr_min", "above_30_db", LABELS, "seconds")


def rows(name: str, cafe: Cafe, is_quick: bool, seed: int) -> Rows:
    """Return the row of a way to take the steps. With the reference's step III the labels are its own, else those of the closed form."""
    module, data = build(seed, **(FEW if is_quick else {"count": 40, "batch_size": 8}))
    row = measure(Campaign(watch=Watch(rounds=30 if is_quick else 60), cafe=cafe), module, data)
    return [{"steps": name, "seed": seed} | shown(row, _COLUMNS)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a line and seed, the longest first."""
    lines = QUICK if is_quick else dict(sorted(LINES.items(), key=lambda line: "9000" not in line[0]))
    return [Job(f"{list(lines).index(name)}", seed, rows, (name, cafe, is_quick)) for name, cafe in lines.items() for seed in seeds]


def in_order(found: Rows) -> Rows:
    """Sort rows as `LINES` has them."""
    order = [*LINES, *QUICK]
    return readable(sorted(found, key=lambda row: (order.index(row["steps"]), row["seed"])))


def expectations(means: Rows) -> dict[str, bool]:
    """Say which term buys what."""
    row = {line["steps"]: line for line in means}
    whole, chance = row["closed form, step III of the reference"], 0.3
    without = {term: row[f"the same without {term}"] for term in ("alpha (gradients)", "gamma (representation)")}
    return {
        "gamma buys the pixels: without it 5 dB or more are lost": whole["psnr"]["mean"] - without["gamma (representation)"]["psnr"]["mean"] >= 5,
        "alpha buys the labels: without it they are near chance": without["alpha (gradients)"][LABELS]["mean"] < chance < whole[LABELS]["mean"],
        "alpha does not buy pixels (1 dB)": abs(whole["psnr"]["mean"] - without["alpha (gradients)"]["psnr"]["mean"]) < 1,
        "the closed form's h is 1000 times as exact as that of descent": row["descent in nested loops, representation"][ERROR]["mean"]
        > 3 + row["closed form, 300 steps"][ERROR]["mean"],
    }


TABLE = Table(
    "Steps of CAFE on 40 digits in batches of 8, 60 recorded rounds",
    "alignment of the representation buys the pixels, that of gradients the labels; the closed form takes the place of thousands of rounds",
    ("steps",),
    jobs,
    expectations,
    tabulate=in_order,
)
