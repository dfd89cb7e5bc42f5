"""The verb `defend`: what defences cost and gain, against CAFE and an attacker who knows them.

What the second attacker does depends on the defence, see `KNOWING`. These are attackers that are known, not the best there could be: a defence that
stops them is not thereby safe, and only private gradients come with a promise.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.cafe.campaign import Campaign
from projects.cafe.data import FederatedRecords
from projects.cafe.defences import FakeGradients
from projects.cafe.federation import Federation
from projects.cafe.judging import mean_record
from projects.cafe.metrics import attack_performance, psnr, rmse
from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import NONE, Protection
from projects.cafe.recovery import Cafe
from projects.cafe.schedule_files import make_schedule
from projects.cafe.threat import Threat, threat_lines, threat_model
from projects.cafe.trading import draw_trade_off, tabulate, trained_accuracy, training_batches, verdict
from projects.cafe.verdicts import known
from projects.cafe.watching import Watch
from shared.checkpoints import weights_digest
from shared.jobs import in_threads, kept
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.runs import remove, write_json

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

DEFENCES = (
    NONE,
    "noise:std=1e-4",
    "noise:std=1e-3",
    "prune:keep=0.1",
    "fake",
    "fake:mode=absclip",
    "fake:mode=clip",
    "fake:scope=tensor",
    "private:clip=1,noise_multiplier=1",
)
"""What is weighed by default."""
MORE = 3
"""Times as many rounds as CAFE that an attacker records who knows of noise."""
ROWS = "rows"
"""Folder of what was measured, kept until the report is written, so that an interrupted verb goes on."""
KNOWING: Mapping[str, str] = MappingProxyType(
    {
        "none": "there is nothing to know",
        "fake": "undoes fake gradients by their ranks, with gradients of records of its own, over the same rounds",
        "noise": f"records {MORE} times as many rounds, over which noise averages out",
        "prune": f"records {MORE} times as many rounds; nothing better is tried",
        "private": f"records {MORE} times as many rounds, over which noise averages out; clipping alone does not change what CAFE finds",
    }
)
"""What the attacker does who knows the defence, by its kind."""


@dataclass(frozen=True)
class Weighing:
    """How defences are weighed.

    Args:
        campaign: CAFE as published; its rounds are given.
        rounds: R, of training.
        batch: K, records of a round of training.
        lr: learning rate of Adam.
        delta: see `Protection.guarantee`.
        seed: of the training's batches.

    Raises:
        ValueError: if a number is out of its range.
    """

    campaign: Campaign
    rounds: int
    batch: int
    lr: float
    delta: float
    seed: int

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds of training must be at least 1, got {self.rounds}")
        if not 0 < self.delta < 1:
            raise ValueError(f"delta must be in (0, 1), got {self.delta}")

    def knowing(self, protection: Protection) -> Campaign:
        """Return the attack of an attacker who knows the defence, see `KNOWING`."""
        if protection.rule is None:
            return self.campaign
        if isinstance(protection.rule, FakeGradients):
            return replace(self.campaign, adaptive=True)
        watch = self.campaign.watch
        return replace(self.campaign, watch=replace(watch, rounds=MORE * (watch.rounds or 1)))


@dataclass(frozen=True)
class Defended:
    """What `defend` returns: a row a defence, what they come to in words, and the figures that head the run's page.

    Attributes:
        rows: `accuracy`, and `points` lost or gained beside no defence; what `naive` CAFE and the `adaptive` attacker recover, as `_psnr` in dB (or
            `_rmse`), `_attack`, the attack performance, and `_recovered`, the records; `attack`, the better of the two performances, and the DCS
            `score` of it; `epsilon` and `epsilon_attacked`, what private gradients promise over the training and over the rounds that the adaptive
            attacker records; `seconds`; `note`, why an attack found nothing.
        verdict: sentences.
        summary: figures by name.
    """

    rows: list[dict[str, Any]]
    verdict: list[str]
    summary: dict[str, Any]


def defend(
    trainer: ProjectTrainer,
    model: FederatedClassifier,
    data: FederatedRecords,
    defences: Sequence[str] | None = None,
    rounds: int = 300,
    recorded: int | None = None,
    steps: int = 150,
    delta: float = 1e-5,
) -> Defended:
    """Weigh defences on a model as training begins, with one seed; write and print the table.

    Args:
        trainer: the trainer, with its run and device.
        model: the classifier; with `defences` None its own defence is weighed too.
        data: the records.
        defences: as `Protection.parse` reads them; None is `DEFENCES`. No defence is always the first.
        rounds: of training.
        recorded: rounds that CAFE records; None is the number of `make_schedule`.
        steps: of CAFE's step III.
        delta: probability that a private defence's epsilon may be exceeded.

    Raises:
        ValueError: if a setting will not do, or CAFE finds nothing even without a defence.
    """
    data.setup()
    model.settle(data)
    texts = [*(defences if defences is not None else (*DEFENCES, model.protection.text))]
    protections = [Protection.parse(text, model.hparams.seed) for text in dict.fromkeys([NONE, *(text.strip() for text in texts)])]
    schedule = make_schedule("uniform", len(data.attacked), data.batch_size, recorded, data.seed)
    training_batches(len(data.train_records), data.batch_size, 1, data.seed)  # before any work: a batch must fit
    watch = Watch(rounds=len(schedule), batch=data.batch_size, seed=data.seed)
    campaign = Campaign(watch=watch, cafe=Cafe(steps=steps, seed=data.seed), seed=data.seed)
    weighing = Weighing(campaign, rounds, data.batch_size, model.hparams.lr, delta, data.seed)
    threat = _threat(watch, model)
    print(threat_lines(threat), flush=True)
    model.to(trainer.strategy.root_device)
    measured, refused = _measure_all(trainer, model, data, protections, weighing)
    rows = tabulate(measured, _unit(data))
    return _report(trainer, data, weighing, rows, refused, threat, measured[0]["baseline"])


def _unit(data: FederatedRecords) -> str:
    return "psnr" if data.attacked.is_pictures else "rmse"


def _threat(watch: Watch, model: FederatedClassifier) -> Threat:
    answers = dict(threat_model(watch, model, Protection(), "as training begins"))
    answers["defence"] = "those of the table, each by itself; all parties take the same"
    return [*answers.items(), *((f"knowing {kind}", what) for kind, what in KNOWING.items() if kind != NONE)]


# ---- measuring


def _measure_all(
    trainer: ProjectTrainer, model: FederatedClassifier, data: FederatedRecords, protections: Sequence[Protection], weighing: Weighing
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Measure all defences, side by side in threads; returns what was measured, and why a defence could not be used, by its name."""
    folder, stop, device = artefact_folder(trainer) / ROWS, threading.Event(), trainer.strategy.root_device
    if trainer.is_forced:
        remove(folder)
    about = _digest(model, data)

    def one(protection: Protection) -> dict[str, Any]:
        path = folder / f"{hashlib.sha256(repr((about, protection, weighing)).encode()).hexdigest()[:16]}.json"
        is_there = path.is_file()
        made = kept(path, lambda: measure(model.federation, data, protection, weighing, stop))
        print(f"  {protection.text}: " + ("kept by an earlier start" if is_there else f"{made.seconds:.0f} s"), flush=True)
        return {"defence": protection.text, **made.value, "seconds": made.seconds}

    first = one(protections[0])
    if "refused" in first:
        raise ValueError(first["refused"])
    if note := first["naive"].get("note"):
        raise ValueError(f"without a defence CAFE finds nothing, so that defences cannot be weighed: {note}")
    found = [first, *in_threads(one, protections[1:], device, stop)]
    refused = {row["defence"]: row["refused"] for row in found if "refused" in row}
    return [row for row in found if "refused" not in row], refused


def _digest(model: FederatedClassifier, data: FederatedRecords) -> str:
    """Hash the model and the records, which all that is measured depends on."""
    records = hashlib.sha256()
    for part in (data.train_records, data.attacked, data.test_records):
        records.update(part.features.contiguous().numpy().tobytes() + part.labels.numpy().tobytes())
    nets, options = (weights_digest(model), str(model.federation), model.net_digest()), [sorted(own.hparams.items()) for own in (model, data)]
    about = (nets, options, records.hexdigest())
    return hashlib.sha256(repr(about).encode()).hexdigest()


def measure(
    federation: Federation, data: FederatedRecords, protection: Protection, weighing: Weighing, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Train under a defence and attack it twice.

    Args:
        federation: model as training begins; it is not changed.
        data: the records.
        protection: the defence.
        weighing: how.
        stop: is asked before each of them.

    Returns:
        `accuracy`, `naive` and `adaptive` as `attacked` returns them, `epsilon`, `epsilon_attacked`, and `baseline`, the error of the mean record; or
        `refused` alone, why the parties' gradients cannot be made so.
    """
    _go_on(stop)
    try:
        accuracy = trained_accuracy(federation, data, protection, weighing.rounds, weighing.batch, weighing.lr, weighing.seed)
    except ValueError as error:
        return {"refused": str(error)}
    _go_on(stop)
    naive, knowing = attacked(federation, data, protection, weighing.campaign, stop), weighing.knowing(protection)
    _go_on(stop)
    adaptive = naive if knowing == weighing.campaign else attacked(federation, data, protection, knowing, stop)
    truth = data.attacked.values()
    baseline = _error(mean_record(data).expand_as(truth), truth)
    return {"accuracy": accuracy, "naive": naive, "adaptive": adaptive, "baseline": baseline} | _promises(data, protection, weighing)


def attacked(
    federation: Federation, data: FederatedRecords, protection: Protection, campaign: Campaign, stop: threading.Event | None = None
) -> dict[str, Any]:
    """Attack, and return its `error`, PSNR or RMSE over all records, its performance `attack`, and the number `recovered` as a whole.

    What was not recovered counts as the mean record; a `note` says why if nothing was. `stop` is asked before each party's step III.
    """

    def make_on(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        _go_on(stop)
        return make()

    truth, mean = data.attacked.values(), mean_record(data)
    guess, recovered, note = mean.expand_as(truth), 0, ""
    try:
        outcome = campaign.run(federation, data, protection, make_on)
    except ValueError as error:
        note = str(error)
    else:
        guess, truth, recovered = outcome.completed, outcome.truth, int(outcome.found.sum())
        if not outcome.recovered.isfinite().any():
            note = "; ".join(dict.fromkeys(outcome.reasons.values())) or "nothing was recovered of any record"
    found = {"error": _error(guess, truth), "attack": attack_performance(guess, truth, mean), "recovered": recovered}
    return found | ({"note": note} if note else {})


def _error(guess: Tensor, truth: Tensor) -> float:
    """Return the mean PSNR of pictures, or the RMSE over all values of a table."""
    return float(psnr(guess, truth).mean()) if truth.ndim == 4 else float(rmse(guess, truth).square().mean().sqrt())


def _promises(data: FederatedRecords, protection: Protection, weighing: Weighing) -> dict[str, float | None]:
    """Return epsilon over the training, and over the rounds that the adaptive attacker records; None where nothing is promised."""
    if protection.local is None:
        return {"epsilon": None, "epsilon_attacked": None}
    members = training_batches(len(data.train_records), weighing.batch, weighing.rounds, weighing.seed)
    trained = torch.zeros(len(members), len(data.train_records), dtype=torch.bool).scatter_(1, members, True)
    watch = weighing.knowing(protection).watch
    recorded = make_schedule(watch.schedule, len(data.attacked), watch.batch, watch.rounds, watch.seed)
    found = [protection.guarantee(schedule, data.parties, weighing.delta) for schedule in (trained, recorded)]
    return {name: known(one.epsilon) if one else None for name, one in zip(("epsilon", "epsilon_attacked"), found, strict=True)}


def _go_on(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise RuntimeError("another defence could not be measured, or the verb was interrupted")


# ---- what is written and said


def _report(
    trainer: ProjectTrainer,
    data: FederatedRecords,
    weighing: Weighing,
    rows: list[dict[str, Any]],
    refused: dict[str, str],
    threat: Threat,
    baseline: float,
) -> Defended:
    unit, recorded = _unit(data), weighing.campaign.watch.rounds or 1
    said = verdict(rows, baseline, len(data.test_records), weighing.seed, unit)
    log_table(trainer, "defences", rows)
    log_figure(trainer, "trade_off", draw_trade_off(rows, baseline, unit == "psnr"))
    settings: dict[str, Any] = {"rounds": weighing.rounds, "recorded": recorded, "recorded_adaptive": MORE * recorded, "seed": weighing.seed}
    settings |= {"steps": weighing.campaign.cafe.steps, "delta": weighing.delta, "attacker_who_knows": dict(KNOWING)}
    report = {"threat_model": dict(threat), "settings": settings, "data": dict(data.hparams), f"mean_{unit}": baseline, "refused": refused}
    write_json(artefact_folder(trainer) / "defend.json", report | {"rows": rows, "verdict": said})
    remove(artefact_folder(trainer) / ROWS)
    print(markdown([_short(row, unit) for row in rows]))
    counted = f"all {data.parties} parties' uploads in {weighing.rounds} rounds of training, each round fully (q = 1)"
    print(f"epsilon counts, at delta {weighing.delta:g}, {counted}, by the PRV accountant; it does not cover the server's own gradient")
    print("\n".join([*(f"left out: {name}: {reason}" for name, reason in refused.items()), *said]))
    print(f"table, figure and defend.json lie in {shown_path(artefact_folder(trainer))}")
    best = max(rows[1:], key=lambda row: row["score"], default=rows[0])
    summary = {"defend/accuracy": rows[0]["accuracy"], f"defend/{unit}": rows[0][f"naive_{unit}"], f"defend/mean_{unit}": baseline}
    summary |= {"defend/best_score": best["score"], "defend/best_points": best["points"], "defend/best_attack": best["attack"]}
    for logger in trainer.loggers:
        logger.log_metrics(summary, 0)
        logger.save()
    return Defended(rows, said, summary)


def _short(row: Mapping[str, Any], unit: str) -> dict[str, Any]:
    """Return the columns that are printed."""
    name = "dB" if unit == "psnr" else "RMSE"
    shown = {"defence": row["defence"], "accuracy": f"{row['accuracy']:.3f}", "points": f"{row['points']:+.1f}"}
    shown |= {f"CAFE {name}": f"{row[f'naive_{unit}']:.3g}", f"knowing {name}": f"{row[f'adaptive_{unit}']:.3g}"}
    shown |= {
        "attack": f"{row['attack']:.2f}",
        "score": f"{row['score']:.3f}",
        "epsilon": None if row["epsilon"] is None else f"{row['epsilon']:.3g}",
    }
    return shown | {"note": "nothing recovered" if row["note"] else ""}
