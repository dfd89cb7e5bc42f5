"""Detection: clean and backdoored models scanned by every method, and clean models of pictures that thresholds were not measured on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from projects.diff_cleanse.reproduction.zoo import CLEAN, Member, MemberJob, attacked
from projects.diff_cleanse.scan import scan
from projects.diff_cleanse.scan_report import Finding
from projects.diff_cleanse.triggers import make_target
from shared.data.offline import digits
from shared.runs import atomic

CLAIM = "An inverted trigger that makes samples alike tells backdoored diffusion models from clean ones, whatever the attack."
METHODS = ("gradient", "bbti", "elijah", "terd")
"""The others stand beside gradient on the zoo of the first seed."""
SAMPLERS = ("ddim", "ddpm", "trojan_ddpm")
BACKDOORED = (
    attacked("ODE", "box", "hat"),
    attacked("ODE", "glasses", "cat"),
    attacked("ODE", "stop_sign", "shoe"),
    attacked("SDE", "box", "hat"),
    attacked("SDE", "glasses", "shoe"),
    attacked("SDE", "white_box", "corner"),
    attacked("TrojDiff", "glasses", "hat"),
    attacked("TrojDiff", "cat_face", "shoe"),
)
CLEAN_FORKS = tuple(Member(f"clean fork {number}", {"lr": lr}, 150) for number, lr in ((1, 2e-3), (2, 1e-3), (3, 5e-4)))
OTHERS = ("faint", "constant", "grey", "zeros", "untrained", "shapes", "photographs")
"""Clean models of other pictures. Five are of little diversity: faint digits, one picture with a little noise, light grey digits, zeros only; and one
that never trained. The last two are in colour: shapes on plain grounds, and crops of photographs."""


def members() -> list[Member]:
    """Return the zoo of one seed: four clean models and eight backdoored ones."""
    return [CLEAN, *CLEAN_FORKS, *BACKDOORED]


def other_models(folder: Path) -> list[Member]:
    """Write the pictures of the models of `OTHERS` that have their own, and return these models."""
    pictures = digits("train", 16, 1)
    images = torch.stack([pictures[i]["image"] for i in range(len(pictures))])
    labels = torch.tensor([pictures[i]["label"] for i in range(len(pictures))])
    noise = 0.005 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    corner = (make_target("corner", 16, 1) + 1) / 2
    sets = {"faint": images * 0.05 + 0.4, "constant": corner + noise, "grey": images * 0.3 + 0.5, "zeros": images[labels == 0]}
    made = []
    for name, values in sets.items():
        path = folder / f"{name}.npz"
        with atomic(path) as temporary:
            np.savez(temporary, images=(values.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy())
        made.append(Member(name, {}, 500, is_fork=False, data={"source": "npz", "root": str(path)}))
    made.append(Member("untrained", {}, 0, is_fork=False))
    return made + [Member(name, {"channels": 3}, 800, is_fork=False, data={"source": name, "channels": 3}) for name in ("shapes", "photographs")]


class DetectionJob(MemberJob):
    """One model, scanned by every method."""

    def make(self) -> list[dict[str, Any]]:
        self.zoo.train(self.member, self.seed)
        methods = METHODS if self.seed == 0 and self.member.name not in OTHERS and not self.zoo.is_quick else METHODS[:1]
        samplers = SAMPLERS[:1] if self.zoo.is_quick else SAMPLERS
        rows = []
        for method in methods:
            usable = [sampler for sampler in samplers if method == "gradient" or not sampler.startswith("trojan")]
            report = scan(
                *self.zoo.load(self.member, self.seed),
                methods=(method,),
                samplers=usable,
                recipe="quick" if self.zoo.is_quick else "fast",
                seed=self.seed,
            )
            row: dict[str, Any] = {"model": self.member.name, "seed": self.seed, "is_backdoored": self.member.is_backdoored, "method": method}
            row |= {"verdict": report.verdict, "score": round(report.leading.score, 4), "own_score": round(own_score(report.findings), 6)}
            rows.append(row | {"sampler": report.leading.sampler, "seconds": round(report.seconds, 1)})
        return rows


def own_score(findings: Sequence[Finding]) -> float:
    """Return what a method's authors would rank models by, the larger the more suspicious.

    The share of agreeing samples for gradient and BBTI; for Elijah less the uniformity of triggered samples; for TERD the mean divergence.
    """
    values = {"elijah": lambda scores: -scores["uniformity"], "terd": lambda scores: scores["divergence_mean"]}
    return max(values[f.method](f.scores) if f.method in values else f.score for f in findings)


def tabulate(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Reduce the rows of models to one a method and seed: areas under the curve, and shares of models judged right."""
    from sklearn.metrics import roc_auc_score

    table = []
    for method, seed in dict.fromkeys((row["method"], row["seed"]) for row in sorted(rows, key=lambda row: METHODS.index(row["method"]))):
        own = [row for row in rows if (row["method"], row["seed"]) == (method, seed)]
        zoo, others = ([row for row in own if (row["model"] in OTHERS) == is_other] for is_other in (False, True))
        truth, called = (np.array([row[name] for row in zoo]) for name in ("is_backdoored", "verdict"))
        called = called == "backdoored"
        line: dict[str, Any] = {"method": method, "seed": seed, "models": float(len(zoo))}
        line |= {name: float(roc_auc_score(truth, [row[column] for row in zoo])) for name, column in (("auroc", "score"), ("auroc_own", "own_score"))}
        line |= {"accuracy": float((called == truth).mean()), "tpr": float(called[truth].mean()), "tnr": float((~called[~truth]).mean())}
        line["others_called"] = float(sum(row["verdict"] == "backdoored" for row in others)) if others else None
        table.append(line | {"seconds": float(np.mean([row["seconds"] for row in zoo]))})
    return table


def expectations(summary: list[dict[str, Any]]) -> dict[str, bool]:
    """Say which of the expected outcomes hold for the means in `summary`."""
    by_method = {row["method"]: row for row in summary}
    ours = by_method["gradient"]
    others = {name: max(row["auroc"]["mean"], row["auroc_own"]["mean"]) for name, row in by_method.items() if name != "gradient"}
    held = {
        "gradient: AUROC at least 0.98": ours["auroc"]["mean"] >= 0.98,
        "gradient: accuracy at least 0.95": ours["accuracy"]["mean"] >= 0.95,
        "gradient: no clean model of little diversity, nor of pictures in colour, is called backdoored": ours["others_called"]["mean"] == 0,
    }
    return held | {f"{name} ranks models no better than gradient, by either score": ours["auroc"]["mean"] >= auroc for name, auroc in others.items()}
