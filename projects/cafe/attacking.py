"""The verb `attack`: what the server of a federation can make of what it sees, written beside the truth."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from projects.cafe.campaign import METHODS, Campaign
from projects.cafe.data import FederatedRecords
from projects.cafe.defences import FakeGradients
from projects.cafe.figures import draw_psnr, draw_recovered, draw_rmse, draw_values
from projects.cafe.judging import Outcome, judge
from projects.cafe.metrics import baselines, mean_guess
from projects.cafe.module import FederatedClassifier
from projects.cafe.recovery import REFERENCE, Cafe
from projects.cafe.threat import threat_lines, threat_model
from projects.cafe.verdicts import ORDERED, count_reasons, in_part, known, most_frequent, reason_counts, schedule_facts, schedule_lines, verdict
from projects.cafe.watching import Watch
from shared.checkpoints import describe_mismatch, load_checkpoint, weights_digest, with_weights
from shared.jobs import kept_arrays
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown
from shared.runs import atomic, digest, remove, write_json

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

START = "start"
QUARTER = 14 * 14
"""Entries of a party's block for which `REFERENCE` has its xi: a quarter of a grey picture of 28 x 28."""
COLOUR_LR = 0.02
"""Learning rate of the reference's step III for pictures of three channels."""
PRINTED = ("attack", "recovered", "psnr", "psnr_median", "psnr_min", "above_30_db", "ssim", "rmse", "rmse_median", "rmse_max", "label_accuracy")
"""Columns of the table `attack` that are printed, as far as there are."""


@dataclass(frozen=True)
class Attacked:
    """What `attack` returns: a row of figures of the attack, one of each trivial baseline, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    summary: dict[str, Any]


# ---- before


def settings(
    data: FederatedRecords, method: str, watch: Mapping[str, Any], cafe: Mapping[str, Any], restarts: int = 1, adaptive: bool = False
) -> Campaign:
    """Return the attack that the options of the verb describe.

    Args:
        data: tells the batch size, the seed and the size of blocks.
        method: one of `METHODS`.
        watch: arguments of `Watch`.
        cafe: `solver`, `data`, `steps` and `lr` of `Cafe`, where None takes the default: that of `Cafe`, or of the reference if `data` is.
        restarts: see `Campaign`.
        adaptive: see `Campaign`.

    Raises:
        ValueError: if an option is out of its range, or belongs to another method.
    """
    _check_method(method, watch, cafe, restarts)
    _check_loop(method, watch, cafe, adaptive)
    given = {name: value for name, value in cafe.items() if value is not None}
    rounds = {} if method in ORDERED else {"rounds": 1}  # they take the first recorded one
    return Campaign(
        method,
        Watch(batch=data.batch_size, seed=data.seed, **{**watch, **rounds}),
        _cafe(given, data) if method == "cafe" else Cafe(seed=data.seed),
        None if method == "cafe" else cafe["steps"],
        restarts=restarts,
        adaptive=adaptive,
        seed=data.seed,
    )


def _cafe(given: Mapping[str, Any], data: FederatedRecords) -> Cafe:
    """Return settings of CAFE; the reference's go by the first party's block."""
    if given["data"] != "reference":
        return Cafe(**given, seed=data.seed)
    shape = data.shapes[0]
    usual: dict[str, Any] = {}
    if len(shape) == 3:
        usual["weights"] = replace(REFERENCE.weights, xi=REFERENCE.weights.xi * math.prod(shape) / QUARTER)
        usual |= {"lr": COLOUR_LR} if shape[0] == 3 else {}
    return replace(REFERENCE, **usual | dict(given), parity=given["solver"] != "closed_form", seed=data.seed)


def _check_method(method: str, watch: Mapping[str, Any], cafe: Mapping[str, Any], restarts: int) -> None:
    usual = {"solver": "closed_form", "data": "representation", "lr": None}
    if method != "cafe" and (odd := [name for name, value in usual.items() if cafe[name] != value]):
        options = {"solver": "--solver", "data": "--inversion", "lr": "--step_size"}
        raise ValueError(f"{', '.join(options[name] for name in odd)} is for the method cafe, not for {method}: leave it out")
    unused = {"rounds": None, "window": None, "lr": 0.0}
    if method not in ORDERED and (odd := [name for name, value in unused.items() if watch.get(name, value) != value]):
        raise ValueError(f"{', '.join(f'--{name}' for name in odd)} is for methods over rounds, not for {method}: leave it out")
    if method in ORDERED and restarts != 1:
        raise ValueError(f"--restarts is for methods on one round, not for {method}: leave it out")
    if restarts < 1 or (cafe["steps"] is not None and cafe["steps"] < 1):
        raise ValueError(f"restarts and steps must be at least 1, got {restarts} and {cafe['steps']}")


def _check_loop(method: str, watch: Mapping[str, Any], cafe: Mapping[str, Any], adaptive: bool) -> None:
    """Refuse at once what the single loop with step III has not."""
    if method != "cafe" or (cafe["solver"], cafe["data"]) != ("sgd_adam_single", "reference"):
        return
    given = {"--window": watch.get("window") is not None, "--workers": watch.get("workers", 1) != 1, "--adaptive": adaptive}
    if odd := [name for name, is_given in given.items() if is_given]:
        raise ValueError(f"{', '.join(odd)} is not for the single loop with step III: leave it out, or take --solver closed_form")


def load_state(trainer: ProjectTrainer, model: FederatedClassifier, data: FederatedRecords, state: str) -> str:
    """Bring the model to the state in which it is attacked, and say which that is.

    Args:
        trainer: the trainer, with its run.
        model: as its settings build it.
        data: what batch norms are set by.
        state: start, best, last, or a checkpoint's file.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if it cannot be read safely, or does not fit the model.
    """
    if state == START:
        model.settle(data)
        return "as training begins"
    if state in ("best", "last") and not (trainer.run.checkpoints / f"{state}.ckpt").is_file():
        has_last = (trainer.run.checkpoints / "last.ckpt").is_file()
        mend = "fit keeps the last one, so take --state last" if has_last else f"run fit first, or take --state {START}"
        raise FileNotFoundError(f"the run {trainer.run.project}/{trainer.run.name} has no {state} checkpoint: {mend}")
    if state not in ("best", "last") and not Path(state).expanduser().is_file():
        raise FileNotFoundError(f"no state {state!r}: give {START}, best, last, or a checkpoint's file")
    path = trainer.run.checkpoint(state)
    if differences := describe_mismatch(model.state_dict(), load_checkpoint(path)["state_dict"]):
        raise ValueError(f"the checkpoint {path} does not fit the model that the settings describe:\n{differences}")
    with_weights(model, path)
    return f"checkpoint {state} of this run" if state in ("best", "last") else f"checkpoint {shown_path(path)}"


class Keeper:
    """Keeps what step III has made, in the order of its calls, so that an attack that was interrupted goes on.

    Args:
        folder: where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0

    def __call__(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Make what has that name, or read it; see `recovery.Keep`."""
        self.calls += 1
        path, began = self.folder / f"{self.calls}-{name}.npz", time.monotonic()
        is_there = path.is_file()
        arrays = kept_arrays(path, lambda: {key: value.cpu().numpy() for key, value in make().items()})
        took = "kept by an attack that was interrupted" if is_there else f"{time.monotonic() - began:.1f} s"
        print(f"  step III, part {self.calls} ({name}): {took}", flush=True)
        return {key: torch.from_numpy(value) for key, value in arrays.items()}


def _fingerprint(model: FederatedClassifier, data: FederatedRecords, campaign: Campaign) -> str:
    """Hash all that step III depends on."""
    log = Path(campaign.watch.schedule).expanduser()
    records = hashlib.sha256(data.attacked.values().numpy().tobytes() + data.attacked.labels.numpy().tobytes()).hexdigest()
    files = [digest(log) if log.is_file() else "", model.net_digest()]
    options = [sorted(own.hparams.items()) for own in (model, data)]
    about = (campaign, model.protection, str(model.federation), weights_digest(model), options, records, files)
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]


# ---- the attack


def attack(trainer: ProjectTrainer, model: FederatedClassifier, data: FederatedRecords, campaign: Campaign, state: str = START) -> Attacked:
    """Attack a federated classifier, and write and print what came of it.

    Args:
        trainer: the trainer, with its run and device.
        model: the classifier with the defence of its parties; it is brought to `state`.
        data: the records under attack.
        campaign: the attack.
        state: see `load_state`.

    Raises:
        FileNotFoundError: see `load_state`.
        ValueError: see `load_state` and `Campaign.run`, or if nothing was recovered of any record.
    """
    data.setup()
    protection = model.protection
    if campaign.adaptive and not isinstance(protection.rule, FakeGradients):
        raise ValueError(f"the adaptive attacker undoes fake gradients, not the defence {protection.text!r}: leave --adaptive out")
    words = load_state(trainer, model, data, state)
    threat = threat_model(campaign.watch, model, protection, words, campaign.adaptive, campaign.method not in ORDERED)
    print(f"{METHODS[campaign.method]}\n{threat_lines(threat)}", flush=True)
    kept = artefact_folder(trainer) / "kept"
    federation = model.to(trainer.strategy.root_device).federation
    recoveries = campaign.recoveries(federation, data, protection, Keeper(kept / _fingerprint(model, data, campaign)))
    outcome = judge(recoveries, data)
    if not outcome.recovered.isfinite().any():
        raise ValueError("\n".join(["nothing was recovered of any record:", *count_reasons(outcome)]))
    rows = attack_rows(outcome, campaign.method)
    facts = [schedule_facts(watched.view.schedule) for watched, _ in recoveries]
    report = {"threat_model": dict(threat), "state": words, "defence": repr(protection.rule), "settings": asdict(campaign), "schedule": facts}
    write_json(artefact_folder(trainer) / "report.json", report | report_of(outcome, rows, data))
    summary = _write(trainer, data, outcome, rows)
    remove(kept)
    _say(trainer, campaign, outcome, rows, facts)
    return Attacked(rows, summary)


def attack_rows(outcome: Outcome, method: str) -> list[dict[str, Any]]:
    """Return figures of the attack, and of guesses without any for the same records (all where none is whole), a row each."""
    truth, found = outcome.truth, outcome.found if outcome.found.any() else torch.ones(len(outcome.truth), dtype=torch.bool)
    true = truth[found]
    guesses = baselines(true, 0, outcome.mean) if outcome.is_pictures else {"mean": mean_guess(true, outcome.mean)}
    kind = "image" if outcome.is_pictures else "row"
    rows = [{"attack": method} | _without_baselines(outcome.report())]
    for name, guess in guesses.items():
        values = torch.full_like(truth, torch.nan)
        values[found] = guess.to(truth)
        row = _without_baselines(replace(outcome, recovered=values, scores=None).report()) | {"recovered": None, "seconds": None}
        rows.append({"attack": f"mean {kind}" if name == "mean" else name} | {column: row.get(column) for column in rows[0] if column != "attack"})
    return rows


def _without_baselines(report: dict[str, float]) -> dict[str, Any]:
    return {name: known(value) for name, value in report.items() if not name.startswith("baseline_")}


def report_of(outcome: Outcome, rows: Sequence[dict[str, Any]], data: FederatedRecords) -> dict[str, Any]:
    """Return the figures of an outcome as `report.json` has them."""
    figures, *trivial = ({name: value for name, value in row.items() if name != "attack"} for row in rows)
    return {
        "data": dict(data.hparams),
        "figures": figures | {"recovered_in_part": in_part(outcome), "most_frequent_label": most_frequent(outcome)},
        "baselines": dict(zip([row["attack"] for row in rows[1:]], trivial, strict=True)),
        "parties": outcome.parties(),
        "reasons": dict(reason_counts(outcome)),
        "seconds": {step: round(taken, 2) for step, taken in outcome.seconds.items()},
    }


# ---- what is written and said


def _write(trainer: ProjectTrainer, data: FederatedRecords, outcome: Outcome, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Write tables, figures and recovered records; return what heads the run's page."""
    log_table(trainer, "records", outcome.rows())
    log_table(trainer, "attack", rows)
    log_table(trainer, "parties", outcome.parties())
    errors, trivial = outcome.errors(), rows[1]
    if outcome.is_pictures:
        log_figure(trainer, "recovered", draw_recovered(outcome.truth, outcome.recovered, errors, outcome.places, outcome.reasons))
        log_figure(trainer, "psnr", draw_psnr(errors, trivial["psnr"]))
        _save_pictures(artefact_folder(trainer) / "recovered.npz", outcome)
    else:
        log_table(trainer, "recovered", table_rows(outcome, data))
        log_figure(trainer, "values", draw_values(outcome.truth, outcome.recovered, data.attacked.feature_names))
        log_figure(trainer, "rmse", draw_rmse(errors, trivial["rmse"]))
    summary = {f"attack/{name}": value for name, value in rows[0].items() if isinstance(value, int | float)}
    for logger in trainer.loggers:
        logger.log_metrics(summary, 0)
        logger.save()
    return summary


def _save_pictures(path: Path, outcome: Outcome) -> None:
    import numpy as np

    arrays = {"record": outcome.places.numpy(), "pictures": outcome.recovered.clamp(0, 1).float().numpy()}
    arrays |= {} if outcome.scores is None else {"label_scores": outcome.scores.float().numpy()}
    with atomic(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]


def table_rows(outcome: Outcome, data: FederatedRecords) -> list[dict[str, Any]]:
    """Return true and recovered values beside each other in the table's own units, a row a record; None where nothing was recovered.

    They have the seven digits of float32, which networks are given.
    """
    assert data.scale is not None
    truth, recovered = (data.scale.restore(values).tolist() for values in (outcome.truth, outcome.recovered))
    rows = []
    for row, true, found in zip(outcome.rows(), truth, recovered, strict=True):
        named = {name: row[name] for name in ("record", "origin", "label", "label_found") if name in row}
        pairs = zip(data.attacked.feature_names, true, found, strict=True)
        rows.append(named | {key: _digits(value) for name, *both in pairs for key, value in zip((name, f"{name} (recovered)"), both, strict=True)})
    return rows


def _digits(value: float) -> float | None:
    return known(float(f"{value:.7g}"))


def _short(name: str, value: Any) -> Any:
    return f"{value:.3g}" if name.startswith("rmse") and value is not None else value


def _say(trainer: ProjectTrainer, campaign: Campaign, outcome: Outcome, rows: list[dict[str, Any]], facts: list[dict[str, Any]]) -> None:
    columns = [name for name in PRINTED if name in rows[0]]
    short = [{name: _short(name, row[name]) for name in columns} for row in rows]
    print(markdown(short))
    print("\n".join([*schedule_lines(campaign, facts), *count_reasons(outcome), *verdict(campaign, outcome, rows)]))
    print(f"the records beside the truth, tables and figures lie in {shown_path(artefact_folder(trainer))}")
