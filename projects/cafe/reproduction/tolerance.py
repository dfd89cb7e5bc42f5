"""What CAFE bears: a model that trains meanwhile, and noise on what is uploaded."""

from __future__ import annotations

from pathlib import Path

from projects.cafe.campaign import Campaign
from projects.cafe.reproduction.setting import FEW, build, measure, readable, shown
from projects.cafe.watching import Watch
from shared.tables import Job, Rows, Table

RATES = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
NOISE = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2)
LAST = "the last 60 of 600 rounds at 0.0001"
_COLUMNS = ("error_h", "psnr", "psnr_median", "above_30_db", "mean_record")


def rows(name: str, lr: float, noise: float, rounds: int, is_quick: bool, seed: int) -> Rows:
    """Return a row: what 60 recorded rounds of 40 records in batches of 8 give away, or the last 60 of more."""
    module, data = build(seed, **(FEW if is_quick else {"count": 40, "batch_size": 8}))
    watch = Watch(rounds=rounds, lr=lr, window=60 if rounds > 60 else None)
    row = measure(Campaign(watch=watch), module, data, f"noise:std={noise}" if noise else "none")
    return [{"while recorded": name, "seed": seed} | shown(row, _COLUMNS)]


def jobs(kept: Path, seeds: list[int], is_quick: bool) -> list[Job]:
    """Return a job a setting and seed."""
    settings = {("static model" if lr == 0 else f"trained by Adam at {lr:g}"): (lr, 0.0, 60) for lr in RATES}
    settings |= {LAST: (1e-4, 0.0, 600)} | {_noisy(std): (0.0, std, 60) for std in NOISE}
    if is_quick:
        settings = {name: (lr, noise, 30) for name, (lr, noise, _) in settings.items() if lr in (0, 1e-3) and noise in (0, 1e-3)}
    return [Job(name.replace(" ", "-"), seed, rows, (name, *values, is_quick)) for name, values in settings.items() for seed in seeds]


def expectations(means: Rows) -> dict[str, bool]:
    """Say whether the table goes the expected way."""
    mean = {line["while recorded"]: line["psnr"]["mean"] for line in means}
    guess = means[0]["mean_record"]["mean"]
    static, slow, faster, training = (mean[name] for name in ("static model", *(f"trained by Adam at {lr:g}" for lr in (1e-6, 1e-4, 1e-3))))
    return {
        "the reference's learning rate of 1e-6 costs the attack less than 6 dB": static - slow < 6,
        "a model that really trains (1e-3) is not recovered from: below the mean image": training < guess,
        "the faster the model moves, the worse": slow > faster > training,
        "a later window of a model that trains at 1e-4 helps by 5 dB or more": mean[LAST] - faster >= 5,
        "noise of 1e-3 brings the attack below the mean image, 1e-5 does not": mean[_noisy(1e-3)] < guess < mean[_noisy(1e-5)],
        "noise of 1e-2 does": mean[_noisy(1e-2)] < guess,
    }


def _noisy(std: float) -> str:
    return f"noise of {std:g} on uploads"


TABLE = Table(
    "What CAFE bears on 40 digits in batches of 8",
    "the attack works while the model trains, if it trains slowly",
    ("while recorded",),
    jobs,
    expectations,
    tabulate=readable,
)
