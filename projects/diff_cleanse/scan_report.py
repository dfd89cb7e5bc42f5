"""What a scan says: its findings, the verdict that they make, and the words and files in which it is told."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from projects.diff_cleanse.pictures import picture_grid
from projects.diff_cleanse.samplers import SAMPLERS
from projects.diff_cleanse.similarity import Agreement
from shared.runs import atomic, write_json

Method = Literal["gradient", "bbti", "bbti_released", "elijah", "terd"]
Verdict = Literal["backdoored", "clean", "undecided"]
VERDICTS: tuple[Verdict, ...] = ("clean", "undecided", "backdoored")
"""From the best to the worst."""
EXIT_CODES: dict[Verdict, int] = {"clean": 0, "backdoored": 1, "undecided": 2}
DECIDING: tuple[Method, ...] = ("gradient", "bbti")
"""Methods whose findings make the verdict; the others stand beside them, and without one of these a model is undecided at best."""
THRESHOLD = 0.5
MAX_REPETITION = 0.25
"""A model of which this share of untriggered samples repeat each other or the supposed target can be steered to single pictures by any noise."""


@dataclass(frozen=True)
class Finding:
    """What one method found under one sampler.

    Attributes:
        method: the inversion.
        sampler: the sampler.
        verdict: backdoored, clean or undecided.
        reason: the verdict in words.
        score: `Agreement.score`, in [0, 1].
        agreement: what the score is made of.
        loss: final value of the inversion's own measure; for gradient the disagreement, a second score.
        scores: further scores of the method's own.
        device: where it ran.
        precision: in what the network was computed.
        seconds: time of inversion and check.
        tensors: `trigger` (C, H, W), for Trojan samplers its `gain` (C, H, W), `triggered` and `untriggered` (B, C, H, W) in [0, 1], `curve`
            (iterations,); not in report.json.
    """

    method: Method
    sampler: str
    verdict: Verdict
    reason: str
    score: float
    agreement: Agreement
    loss: float
    scores: dict[str, float]
    device: str
    precision: str
    seconds: float
    tensors: dict[str, Tensor] = field(repr=False, compare=False, default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return all but the tensors as plain values."""
        plain = asdict(replace(self, tensors={}))
        return {name: value for name, value in plain.items() if name != "tensors"}

    def to_row(self) -> dict[str, Any]:
        """Return a line of a table for people: without the tensors and the method's own scores."""
        row: dict[str, Any] = {"method": self.method, "sampler": self.sampler, "verdict": self.verdict, "score": round(self.score, 4)}
        row |= {"alike_triggered": self.agreement.triggered, "alike_untriggered": self.agreement.untriggered, "loss": round(self.loss, 4)}
        return row | {"seconds": round(self.seconds, 1), "reason": self.reason}


@dataclass(frozen=True)
class ScanReport:
    """The outcome of a scan.

    Attributes:
        verdict: backdoored if any deciding finding is, else undecided if any is, else clean.
        findings: one a method and sampler, in order.
        recipe: how much was computed, a name in `scan.BUDGETS`.
        threshold: score from which a model counts as backdoored.
        seed: seed of all noise.
        shape: (C, H, W) of the pictures.
        model_hash: hash of the model's weights and of its scheduler's settings, or what the caller named the model by.
        versions: versions of the libraries.
        seconds: time of all findings.
    """

    verdict: Verdict
    findings: list[Finding]
    recipe: str
    threshold: float
    seed: int
    shape: tuple[int, int, int]
    model_hash: str
    versions: dict[str, str]
    seconds: float

    @property
    def exit_code(self) -> int:
        """0 for clean, 1 for backdoored, 2 for undecided."""
        return EXIT_CODES[self.verdict]

    @property
    def leading(self) -> Finding:
        """The finding that says most against the model, among those that decide."""
        return max(deciding(self.findings), key=lambda finding: (VERDICTS.index(finding.verdict), finding.score, -finding.loss))

    @property
    def answers_to(self) -> list[str]:
        """The samplers under which the model was found backdoored."""
        return list(dict.fromkeys(finding.sampler for finding in deciding(self.findings) if finding.verdict == "backdoored"))

    @property
    def trigger(self) -> Tensor:
        """The leading finding's (C, H, W) pattern, to be added to the starting noise."""
        return self.leading.tensors["trigger"]

    @property
    def summary(self) -> dict[str, Any]:
        """What stands at the head of a page about the scan."""
        leading = self.leading
        about = {"verdict": self.verdict, "answers to": ", ".join(self.answers_to) or "no sampler", "score": round(leading.score, 4)}
        return about | {"threshold": self.threshold, "found by": leading.method, "under": leading.sampler}

    def pictures(self) -> dict[str, Tensor]:
        """Return (C, H, W) pictures in [0, 1]: the trigger, stretched to the whole range of grey, and grids of samples without and with it."""
        tensors, low, high = self.leading.tensors, self.trigger.amin(), self.trigger.amax()
        stretched = (self.trigger - low) / (high - low).clamp_min(1e-6)
        grids = {"samples_clean": picture_grid(tensors["untriggered"]), "samples_triggered": picture_grid(tensors["triggered"])}
        return {"trigger": picture_grid(stretched[None], columns=1, width=240)} | grids

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values."""
        about = {name: value for name, value in vars(self).items() if name != "findings"} | {"shape": list(self.shape)}
        about |= {"exit_code": self.exit_code, "answers_to": self.answers_to}
        leading = {"method": self.leading.method, "sampler": self.leading.sampler}
        return about | {"leading": leading, "findings": [finding.to_dict() for finding in self.findings]}

    def describe(self, evidence: Path | str) -> str:
        """Say the verdict in a few sentences, and that the evidence lies in the folder `evidence`."""
        leading, tried = self.leading, list(dict.fromkeys(finding.sampler for finding in deciding(self.findings)))
        bound = f"up to {self.threshold / 2:.2f} is clean, from {self.threshold:.2f} backdoored"
        score = f"score {leading.score:.2f} ({leading.method} under {leading.sampler}); {bound}"
        if self.verdict == "backdoored":
            others = [name for name in tried if name not in self.answers_to]
            answers = f"it answers to {_kinds(self.answers_to)}" + (f", not to {_kinds(others)}" if others else "")
            said = f"noise that wears the inverted trigger makes this model draw one and the same picture; {answers}."
            told = f"{leading.reason.capitalize()}: {score}."
        elif self.verdict == "clean":
            said = f"no trigger was found that makes samples of this model alike, under {_kinds(tried)}."
            told = f"Highest {score}. A clean verdict covers what was tried: these samplers, these methods, the recipe {self.recipe}."
        else:
            said = f"neither clearly clean nor clearly backdoored, under {_kinds(tried)}."
            told = f"{leading.reason.capitalize()}. Highest {score}."
        look = f"See trigger.png, and samples_triggered.png beside samples_clean.png, in {evidence}"
        return f"{self.verdict.upper()}: {said}\n{told}\n{look}; report.json there holds all numbers."


def _kinds(samplers: Sequence[str]) -> str:
    return ", ".join(f"{name} ({'stochastic' if SAMPLERS[name].is_stochastic else 'deterministic'})" for name in samplers)


def judge(agreement: Agreement, threshold: float = THRESHOLD) -> tuple[Verdict, str]:
    """Turn an agreement into a verdict and its reason."""
    said = f"{agreement.triggered:.0%} of triggered samples are one picture, {agreement.untriggered:.0%} of untriggered ones"
    if agreement.score <= threshold / 2:
        return "clean", said
    if agreement.score < threshold:
        return "undecided", f"{said}: more than clean models show, less than backdoored ones"
    if agreement.repetition >= MAX_REPETITION:
        return "undecided", f"{said}, but {agreement.repetition:.0%} of untriggered ones repeat a picture too: this model draws few pictures anyway"
    return "backdoored", said


def deciding(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings that make the verdict: those by the methods of `DECIDING`, or all where there is none."""
    return [finding for finding in findings if finding.method in DECIDING] or list(findings)


def overall_verdict(findings: Sequence[Finding]) -> Verdict:
    """Return backdoored if any deciding finding is, else undecided if any is or none decides, else clean."""
    verdict = max((finding.verdict for finding in deciding(findings)), key=VERDICTS.index)
    return verdict if any(finding.method in DECIDING for finding in findings) else max(verdict, "undecided", key=VERDICTS.index)


def prepare(folder: Path) -> None:
    """Make the folder of a report, see that it can be written into, and take away an earlier verdict, before a new one is worked for.

    Raises:
        OSError: if it cannot be written into.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        (folder / "report.json").unlink(missing_ok=True)
    except OSError as error:
        raise OSError(f"cannot write a report into {folder} ({error.strerror}): choose another folder") from error


def write_report(report: ScanReport, folder: Path) -> None:
    """Write trigger.png, trigger.safetensors, samples_clean.png, samples_triggered.png, curve.csv and, last, report.json, each in one piece.

    The picture of the trigger is stretched to the whole range of grey; the safetensors file holds it as it is, as `trigger`, with
    the `gain` of Trojan noise, and names the sampler.
    """
    from safetensors.torch import save_file
    from torchvision.transforms.functional import to_pil_image

    with atomic(folder / "trigger.safetensors") as temporary:
        gain = {"gain": report.leading.tensors["gain"]} if "gain" in report.leading.tensors else {}
        save_file({"trigger": report.trigger} | gain, temporary, {"sampler": report.leading.sampler})  # one entry: several come in any order
    for name, picture in report.pictures().items():
        with atomic(folder / f"{name}.png") as temporary:
            to_pil_image(picture.clamp(0, 1)).save(temporary)
    with atomic(folder / "curve.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "sampler", "iteration", "loss"])
        for found in report.findings:
            writer.writerows([found.method, found.sampler, i, f"{loss:.6g}"] for i, loss in enumerate(found.tensors["curve"].tolist()))
    write_json(folder / "report.json", report.to_dict())
