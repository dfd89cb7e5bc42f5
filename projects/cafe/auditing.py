"""The verb `audit`: whether the records of a deployment leak, after how many rounds, which ones, and what decides it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from projects.cafe.attacking import START, load_state
from projects.cafe.data import FederatedRecords
from projects.cafe.leaks import Leaks, pass_length, schedule_leaks, settled_share
from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import DELTA, Protection
from projects.cafe.rows import Alone, alone_after
from projects.cafe.schedule_files import make_schedule
from projects.cafe.threat import threat_lines, threat_model
from projects.cafe.trials import MOVING, MOVING_UNDONE, STANDING, UNDEFENDED, UNDONE, Effort, Trial, try_deployment
from projects.cafe.verdicts import known
from projects.cafe.watching import Watch
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.runs import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

Verdict = Literal["no leak", "undecided", "leaks"]
EXIT_CODES: dict[Verdict, int] = {"no leak": 0, "leaks": 3, "undecided": 4}
"""Errors have 1 and 2."""
_ORDER: tuple[Verdict, ...] = ("no leak", "undecided", "leaks")
PASSES = 60
"""Passes that the figure marks at most."""
UNDECIDED = "the rounds settle it, but no trial of the deployment brought it back"
SAID = 3
"""Reasons that are printed at most."""


@dataclass(frozen=True)
class Deployment:
    """What is audited beside the nets, their defence and the records.

    Args:
        schedule: see `make_schedule`.
        rounds: see `make_schedule`.
        batch: K, where no file tells it.
        lr: learning rate of Adam; 0 lets the model stand still.
        state: see `load_state`.
        effort: what is spent on step III.
        seed: of the batches.

    Raises:
        ValueError: if `lr` is out of its range.
    """

    schedule: str = "uniform"
    rounds: int | None = None
    batch: int = 40
    lr: float = 1e-3
    state: str = START
    effort: Effort = field(default_factory=Effort)
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.lr < math.inf:
            raise ValueError(f"lr must be 0 (a model that stands still) or more, got {self.lr}")


@dataclass(frozen=True)
class Audited:
    """What `audit` returns: a row a record, the verdict and what decides it, the process's exit code, and what heads the run's page."""

    rows: list[dict[str, Any]]
    verdict: Verdict
    decided_by: str
    exit_code: int
    summary: dict[str, Any]


def audit(trainer: ProjectTrainer, model: FederatedClassifier, data: FederatedRecords, deployment: Deployment) -> Audited:
    """Audit a deployment, and write and print what came of it.

    Args:
        trainer: the trainer, with its run and device.
        model: the parties' nets with their defence; it is brought to the deployment's state.
        data: the records, or stand-ins for them.
        deployment: the rest.

    Raises:
        FileNotFoundError: see `load_state` and `make_schedule`.
        ValueError: see `load_state`, `make_schedule` and `try_deployment`.
    """
    data.setup()
    words = load_state(trainer, model, data, deployment.state)
    watch = Watch(deployment.schedule, deployment.rounds, deployment.batch, deployment.lr, seed=deployment.seed)
    threat = dict(threat_model(watch, model, model.protection, words)) | {"labels": "not used"}
    print(f"an audit of what CAFE can make of a deployment\n{threat_lines(list(threat.items()))}", flush=True)
    leaks = schedule_leaks(make_schedule(deployment.schedule, len(data.attacked), deployment.batch, deployment.rounds, deployment.seed))
    print("\n".join(schedule_lines(leaks)), flush=True)
    federation = model.to(trainer.strategy.root_device).federation
    alone = alone_after(federation, data, leaks.schedule, model.protection, deployment.lr)
    print("\n".join(alone_lines(alone)), flush=True)
    trials = try_deployment(federation, data, leaks, model.protection, deployment.lr, deployment.effort) if leaks.first else []
    verdicts = judge_records(leaks, trials, alone)
    verdict = max(verdicts, key=_ORDER.index)
    said = decided_by(verdict, leaks, trials, alone)
    summary = {"verdict": verdict, "decided by": said, "leaking records": verdicts.count("leaks")} | schedule_facts(leaks) | _errors(trials)
    summary["records alone in a row"] = int((alone.after > 0).sum())
    audited = Audited(record_rows(leaks, trials, verdicts, alone, data.attacked.ids), verdict, said, EXIT_CODES[verdict], summary)
    about = {"verdict": verdict, "exit_code": audited.exit_code, "decided_by": said, "threat_model": threat, "state": words}
    about |= {"deployment": asdict(deployment), "model": dict(model.hparams), "data": dict(data.hparams), "schedule": schedule_facts(leaks)}
    _write(trainer, audited, about, leaks, trials, promise(model.protection, leaks, len(federation.bottoms)))
    return audited


# ---- judgement


def judge_records(leaks: Leaks, trials: Sequence[Trial], alone: Alone) -> list[Verdict]:
    """Return a verdict a record.

    It leaks if it did so in a trial of the deployment as it is, or if its h stands alone in a round (`rows`) and h is known to give data away: since
    it is the record itself, or a trial has shown so. It does not leak if h never stands alone and no rounds settle it, or no party's h of it can be
    read while the model stands still. All else is undecided: that the trials failed is no proof.
    """
    by_cafe = _judge_trials(leaks, trials)
    gives_data = any(bool(trial.leaked.any()) for trial in trials)
    verdicts: list[Verdict] = []
    for verdict, after, is_record in zip(by_cafe, alone.after.tolist(), alone.is_record.tolist(), strict=True):
        single: Verdict = "no leak" if not after else "leaks" if is_record or gives_data else "undecided"
        verdicts.append(max(verdict, single, key=_ORDER.index))
    return verdicts


def _judge_trials(leaks: Leaks, trials: Sequence[Trial]) -> list[Verdict]:
    if not trials:
        return ["no leak"] * len(leaks.after)
    leaked = [any(flags) for flags in zip(*[trial.leaked.tolist() for trial in deployed(trials)], strict=True)]
    readable = [any(flags) for flags in zip(*[trial.found.tolist() for trial in trials], strict=True)]
    return ["leaks" if did else "undecided" if can else "no leak" for did, can in zip(leaked, readable, strict=True)]


def deployed(trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials of the deployment as it is: with its defence, undone or not, and moving if it moves."""
    moving = [trial for trial in trials if trial.row["trial"].startswith(MOVING)]
    return moving or [trial for trial in trials if trial.row["trial"] != UNDEFENDED]


def decided_by(verdict: Verdict, leaks: Leaks, trials: Sequence[Trial], alone: Alone) -> str:
    """Say in a sentence what the verdict rests on."""
    of = {trial.row["trial"]: trial for trial in trials}
    if verdict != "no leak" and alone.after.any() and not any(bool(trial.leaked.any()) for trial in deployed(trials)):
        many = int((alone.after > 0).sum())
        return f"a single round: h of {many} of {len(alone.after)} records stands alone in a row of its batch's gradient, whatever the schedule"
    if not trials:
        return f"the schedule: {leaks.rounds} rounds of rank {leaks.rank} settle none of the {len(leaks.after)} records"
    if verdict == "no leak":
        return f"the nets: {most_frequent(trials)}"
    last = trials[-1].row
    if verdict == "leaks":
        kept = "nets, defence and motion of the model do not keep back" if UNDEFENDED in of else "nets and motion of the model do not keep back"
        return f"the schedule, whose {leaks.rounds} rounds settle {int(leaks.settled.sum())} records: {kept} {_most(trials)} sampled ones"
    still = max((of[name].row for name in (STANDING, UNDONE) if name in of), key=lambda row: row["leaked"])
    if still["leaked"]:
        return f"the motion of the model: {still['trial']}, {still['leaked']} of {last['sampled']} sampled records leak"
    if UNDEFENDED in of and of[UNDEFENDED].leaked.any():
        return f"the defence: without it, {of[UNDEFENDED].row['leaked']} of {last['sampled']} sampled records leak"
    return "the nets: h is recovered, but step III does not bring records back from it; more steps may"


def _most(trials: Sequence[Trial]) -> str:
    """Return how many sampled records leaked in the deployment's most successful trial, of how many."""
    row = max((trial.row for trial in deployed(trials)), key=lambda row: row["leaked"])
    return f"{row['leaked']} of {row['sampled']}"


def most_frequent(trials: Sequence[Trial]) -> str:
    """Return the most frequent reason, whichever party it is at, why h was not recovered."""
    reasons = Counter(reason.partition(": ")[2] for trial in trials for reason in trial.reasons.values())
    return reasons.most_common(1)[0][0]


def promise(protection: Protection, leaks: Leaks, parties: int) -> dict[str, Any] | None:
    """Return what private gradients promise to the record that takes part most often, see `Protection.guarantee`; None for all else."""
    guarantee = protection.guarantee(leaks.schedule, parties)
    return None if guarantee is None else {name: known(value) for name, value in asdict(guarantee).items()}


# ---- tables


def record_rows(
    leaks: Leaks, trials: Sequence[Trial], verdicts: Sequence[Verdict], alone: Alone, origins: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return a row a record: rounds that settle it or show its h alone, amplification of noise, verdict, reason, and the error of each trial.

    `origins` are the names of the records in the user's files, or none.
    """
    reasons = {record: reason for trial in reversed(trials) for record, reason in trial.reasons.items()} | leaks.reasons
    seen, amplification = leaks.schedule.sum(0).tolist(), leaks.amplification.tolist()
    rows = []
    for record, (after, verdict) in enumerate(zip(leaks.after.tolist(), verdicts, strict=True)):
        row: dict[str, Any] = {"record": record} | ({"origin": origins[record]} if origins else {})
        row |= {"settled_after_round": after or None, "alone_in_round": int(alone.after[record]) or None}
        row |= {"rounds": seen[record], "verdict": verdict, "amplification": known(round(amplification[record], 4))}
        row["reason"] = reasons.get(record, "").partition(";")[0] or (_undecided(record, trials) if verdict == "undecided" else "")
        rows.append(row | {f"{_unit(trial)}, {trial.row['trial']}": known(round(float(trial.errors[record]), 4)) for trial in trials})
    return rows


def _undecided(record: int, trials: Sequence[Trial]) -> str:
    is_tried = any(bool(trial.errors[record].isfinite()) for trial in trials)
    return UNDECIDED if is_tried else "the rounds settle it or its h stands alone; it is not among the records that were tried (--sample)"


def schedule_facts(leaks: Leaks) -> dict[str, Any]:
    """Return the figures of a schedule."""
    sizes = sorted({int(size) for size in leaks.schedule.sum(1)})
    facts = {"records": len(leaks.after), "rounds": leaks.rounds, "batch": f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"}
    facts |= {"rank": leaks.rank, "condition": known(leaks.condition), "settled": int(leaks.settled.sum())}
    return facts | {"first after rounds": leaks.first, "last after rounds": leaks.last, "rounds of a pass": pass_length(leaks.schedule)}


def _unit(trial: Trial) -> str:
    return "psnr" if "psnr" in trial.row else "rmse"


def _errors(trials: Sequence[Trial]) -> dict[str, Any]:
    found = {f"{_unit(trial)}, {trial.row['trial']}": round(trial.row[_unit(trial)], 4) for trial in trials}
    return found | ({"mean record": round(trials[0].row["mean_record"], 4)} if trials else {})


# ---- what is written and said


def _write(
    trainer: ProjectTrainer, audited: Audited, about: dict[str, Any], leaks: Leaks, trials: Sequence[Trial], promised: dict[str, Any] | None
) -> None:
    still = next((trial.parties for trial in trials if trial.row["trial"] == STANDING), [])
    tables = {"records": audited.rows, "parties": still, "trials": [trial.row for trial in trials]}
    for name, table in tables.items():
        if table:
            log_table(trainer, name, table)
    write_json(artefact_folder(trainer) / "audit.json", about | {"guarantee": promised} | tables)
    log_figure(trainer, "leaks", draw_leaks(leaks))
    for line in [*party_lines(still), *trial_lines(trials), *promise_lines(promised), *help_lines(leaks, trials)]:
        print(line)
    print(f"{audited.verdict.upper()} (exit code {audited.exit_code}). What decides it is {audited.decided_by}.")
    print(f"audit.json, tables and the figure lie in {shown_path(artefact_folder(trainer))}")


def schedule_lines(leaks: Leaks) -> list[str]:
    """Say what the schedule gives away, if the model stands still and uploads are exact."""
    facts, passes = schedule_facts(leaks), pass_length(leaks.schedule)
    told = f"schedule: {leaks.rounds} rounds of {facts['batch']} of {facts['records']} records have rank {leaks.rank}"
    if leaks.first is None:
        return [f"{told}, which settles no record; to settle all takes {len(leaks.after) - leaks.rank} more at least"]
    many = "all" if leaks.settled.all() else f"{facts['settled']} of"
    first = f"after {leaks.first} the first is" if leaks.first != leaks.last else "before that none is"
    lines = [f"{told}: after {leaks.last} rounds {many} {facts['records']} records are settled, {first}"]
    if passes:
        lines.append(f"  a pass has {passes} rounds: each but the first adds {passes - 1} to the rank at most")
    lines.append(f"  noise on the uploads comes back in v_n {float(leaks.amplification[leaks.settled].median()):.2g} times as large (median)")
    return [*lines, *(f"  {count} records: {reason}" for reason, count in Counter(leaks.reasons.values()).most_common(SAID))]


def alone_lines(alone: Alone) -> list[str]:
    """Say of how many records one round is enough."""
    many, records = int((alone.after > 0).sum()), len(alone.after)
    if not many:
        return ["single rounds: no record's h stands alone in a row of a batch's gradient"]
    first = int(alone.after[alone.after > 0].min())
    told = f"single rounds: h of {many} of {records} records stands alone at some party in a row of a batch's gradient, the first in round {first}"
    return [f"{told};", "  a unit that no other member of the batch moves gives it away, to a server that need not know who is in the batch"]


def party_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say what each party's net gives away, while it stands still."""
    lines = []
    for row in rows:
        unit = "dB" if "psnr" in row else "standard deviations"
        what = (
            "h is the record itself" if row["h_is_record"] else f"h has {row['d1_per_entry']:.3g} numbers for each of the {row['entries']} of a block"
        )
        dead = f", {row['dead']} records have no gradient of their own" if row["dead"] else ""
        error = "not recovered" if row["h_error"] is None else f"recovered with a relative error of {row['h_error']:.1e}"
        quality = f"the blocks with {_shown(row)} {unit} (mean block {row['mean_record']:.3g})"
        lines.append(f"party {row['party']}: {what}; it is {error}{dead}; {quality}")
    if rows and not rows[0]["h_is_record"]:
        lines.append("  (h with 4 numbers for each of a block gave about 39 dB on digits, with 2 about 20 dB)")
    return lines


def trial_lines(trials: Sequence[Trial]) -> list[str]:
    """Say how much CAFE recovered in each trial."""
    lines = []
    for trial in trials:
        row = trial.row
        unit = "dB" if "psnr" in row else "standard deviations"
        quality = f"{_shown(row)} {unit} (mean record {row['mean_record']:.3g})"
        lines.append(f"{row['trial']}, {row['rounds']} rounds: {row['leaked']} of {row['sampled']} sampled records leak; {quality}")
    return lines


def help_lines(leaks: Leaks, trials: Sequence[Trial]) -> list[str]:
    """Say what the figures of this audit show to help, or not to, the certain first; nothing that it did not measure."""
    if not trials:
        return []
    rows = {trial.row["trial"]: trial.row for trial in trials}
    steps = [
        ("the defence", UNDEFENDED, STANDING),
        ("to undo it by ranks", STANDING, UNDONE),
        ("the motion of the model, which promises nothing,", STANDING, MOVING),
        ("the motion, where the defence is undone,", UNDONE, MOVING_UNDONE),
    ]
    helps = [f"against CAFE, fewer than {leaks.first} rounds of the same records, which settle none"] if leaks.first and leaks.first > 1 else []
    for what, before, after in steps:
        if before in rows and after in rows:
            one, other = rows[before], rows[after]
            unit = "dB" if "psnr" in one else "standard deviations"
            helps.append(f"{what} takes {_shown(one)} {unit} to {_shown(other)}, and leaks from {one['leaked']} to {other['leaked']} of the sample")
    if not helps:
        return []
    return ["what helps, and what does not, by these figures:", *(f"  {number}. {each}" for number, each in enumerate(helps, 1))]


def _shown(row: dict[str, Any]) -> str:
    return f"{row['psnr']:.1f}" if "psnr" in row else f"{row['rmse']:.2g}"


def promise_lines(promised: dict[str, Any] | None) -> list[str]:
    """Say what private gradients promise."""
    if promised is None:
        return []
    epsilon = "no finite epsilon" if promised["epsilon"] is None else f"epsilon {promised['epsilon']:.3g}"
    counted = f"{promised['rounds']} rounds with {promised['uploads']} uploads, each known to the server (q = 1)"
    return [f"private gradients promise {epsilon} at delta {DELTA:g} to the record that takes part most often: {counted}"]


def draw_leaks(leaks: Leaks) -> Figure:
    """Draw the part of the records that are settled over the rounds, with as many rounds as records, and passes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis, records = figure.subplots(), len(leaks.after)
    axis.step(
        range(leaks.rounds + 1), settled_share(leaks.after, leaks.rounds).numpy() * 100, where="post", color="tab:blue", label="settled records"
    )
    axis.axvline(records, color="tab:red", linestyle="--", linewidth=1.2, label=f"as many rounds as records, {records}")
    passes = pass_length(leaks.schedule)
    if passes and leaks.rounds <= PASSES * passes:
        for start in range(passes, leaks.rounds + 1, passes):
            axis.axvline(start, color="grey", linewidth=0.5, alpha=0.4, label="end of a pass" if start == passes else None)
    axis.set(xlabel="rounds", ylabel="settled records in %", ylim=(-3, 103), xlim=(0, 1.03 * max(leaks.rounds, records)))
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize="small")
    return figure
