"""What the networks cost: parameters at three numbers of mel bins, multiply-adds and time (claim 4)."""

from __future__ import annotations

from pathlib import Path

from projects.rsknet.costs import costs
from projects.rsknet.model import build_net, parameters
from shared.tables import Job, Rows, Table

BINS = (40, 64, 80)
COUNTED: dict[str, tuple[str, dict, tuple[float, ...] | None]] = {
    "ResNet34": ("resnet34", {}, (5.98, 6.37, 6.63)),
    "RSKNet-MTSP": ("rsknet_mtsp", {}, (10.96, 12.54, 13.59)),
    "RSKNet-MTSP, rank 128": ("rsknet_mtsp", {"rank": 128}, (9.69, 10.47, 11.00)),
    "RSKNet-MTSP-L": ("rsknet_mtsp_l", {}, (2.55, 3.33, 3.86)),
    "x-vector": ("xvector", {}, None),
    "ECAPA-TDNN 512": ("ecapa512", {}, None),
    "ECAPA-TDNN 1024": ("ecapa1024", {}, None),
}
"""Networks: name, options, and millions of parameters at each of `BINS` as counted by hand."""
EIGHTY = {"x-vector": 4.61, "ECAPA-TDNN 512": 6.19, "ECAPA-TDNN 1024": 14.65}
"""Millions of parameters of the peers' networks at 80 bins."""


def measure(name: str, rounds: int, seed: int) -> Rows:
    """Return the row of a network."""
    net, options, _ = COUNTED[name]
    counts = {f"M at F = {bins}": parameters(build_net(net, bins, options)) / 1e6 for bins in BINS}
    found = costs(net, rounds=rounds) if not options else None
    spent = {"G multiply-adds": found and found.multiply_adds / 1e9, "real-time factor": found and found.real_time_factor}
    return [{"net": name, "seed": seed, **counts, **spent}]


def jobs(kept: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each network."""
    return [Job(name, seed, measure, (name, 1 if quick else 9)) for seed in seeds for name in (["RSKNet-MTSP-L"] if quick else COUNTED)]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say whether the counts are those expected, to the digits given."""
    rows = {row["net"]: row for row in summary}
    counted = {name: [rows[name][f"M at F = {bins}"]["mean"] for bins in BINS] for name in rows}
    ours = {name: wanted for name, (_, _, wanted) in COUNTED.items() if wanted is not None}
    return {
        "parameters are those counted beforehand": all(
            abs(count - want) < 0.01 for name, wanted in ours.items() for count, want in zip(counted[name], wanted, strict=True)
        ),
        "those of the peers' networks too": all(abs(counted[name][-1] - want) < 0.01 for name, want in EIGHTY.items()),
        "the light network has 17 to 44 % fewer parameters than ResNet34": 0.17 <= 1 - counted["RSKNet-MTSP-L"][-1] / counted["ResNet34"][-1] <= 0.44,
    }


TABLE = Table(
    "sizes",
    "The light network has 17 to 44 % fewer parameters than its baselines.",
    ("net",),
    jobs,
    expectations,
    seeds=1,
)
