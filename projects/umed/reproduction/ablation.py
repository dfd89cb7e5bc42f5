"""What each part, ratio and bound is good for, our two additions too, and what a partly protected set is worth (claim 3)."""

from __future__ import annotations

from pathlib import Path

from projects.umed.defences import mix_sets
from projects.umed.fitting import Settings
from projects.umed.reproduction import worlds
from projects.umed.workshop import UMED, Workshop
from shared.tables import Job, Rows, Table

VARIANTS: dict[str, Settings] = {
    "no exchange": worlds.varied(exchange=0.0),
    "no high pass": worlds.varied(high_pass=0),
    "contour alone": worlds.varied(interior=False),
    "interior alone": worlds.varied(contour=False),
    "plain convolutions": worlds.varied(convolution="plain"),
    "texture: code": worlds.varied(texture="code"),
    "texture: transitions": worlds.varied(texture="transitions"),
    "no texture clipping": worlds.varied(clip="fixed"),
    "steps 4:1": worlds.varied(gen_steps=4, sur_steps=1),
    "steps 1:4": worlds.varied(gen_steps=1, sur_steps=4),
}
EPSILONS = (2.0, 8.0)
SHARES = (0.2, 0.4, 0.6, 0.8)


def variant_rows(workshop: Workshop, name: str, method: str, seed: int) -> Rows:
    """Train the U-Net on what a variant publishes; scores in %, PSNR in dB."""
    return [_row(workshop, name, 1.0, method, seed)]


def share_rows(workshop: Workshop, share: float, seed: int) -> Rows:
    """Train the U-Net on a set of which a share is protected."""
    return [_row(workshop, UMED, share, UMED, seed)]


def _row(workshop: Workshop, name: str, share: float, method: str, seed: int) -> dict[str, object]:
    clean, protected = workshop.sets(seed)[0], workshop.protected(method, seed)
    images = None if share == 1 else mix_sets(protected, clean, 1 - share, seed)
    outcome = workshop.exploit(method, seed, images=images)
    quality = workshop.quality(method, seed, worlds.RADIUS) if share == 1 else {"psnr": None}
    row = {"variant": name, "protected share": f"{share:g}", "seed": seed, "psnr": quality["psnr"]}
    return row | {"U-Net": 100 * outcome.last, "best epoch": 100 * outcome.best, "training": 100 * outcome.train_dice}


def jobs(folder: Path, seeds: list[int], quick: bool) -> list[Job]:
    """Return a job for each variant, bound, share and seed."""
    workshop = worlds.ellipses(folder, quick, VARIANTS)
    if quick:
        return [Job("contour", seeds[0], variant_rows, (workshop, "contour alone", "contour alone"))]
    made = [Job(name.replace(":", ""), seed, variant_rows, (workshop, name, name)) for seed in seeds for name in (UMED, *VARIANTS)]
    others = {f"epsilon {epsilon:g}": worlds.ellipses(folder, quick, epsilon=epsilon) for epsilon in EPSILONS}
    made += [Job(name, seed, variant_rows, (other, name, UMED)) for seed in seeds for name, other in others.items()]
    return made + [Job(f"share{share:g}", seed, share_rows, (workshop, share)) for seed in seeds for share in SHARES]


def expectations(summary: Rows) -> dict[str, bool]:
    """Say what helps; lower similarity is better."""
    found = {row["variant"]: row["U-Net"]["mean"] for row in summary if row["protected share"] == "1"}
    ours = found[UMED]
    return {
        "both parts protect more than the contour alone": ours < found["contour alone"],
        "both parts protect more than the interior alone": ours < found["interior alone"],
        "central differences help": ours < found["plain convolutions"],
        "a larger bound protects more": found["epsilon 8"] < ours < found["epsilon 2"],
    }


TABLE = Table("ablation", "Contour and texture, central differences and the bound.", ("variant", "protected share"), jobs, expectations)
