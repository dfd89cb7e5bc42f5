"""What a training leaves to be looked at: its curve, its clients, what it cost the records' privacy, and a picture of all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from projects.vafl.bottoms import LinearBottom
from projects.vafl.figures import draw_training
from projects.vafl.heads import SumHead
from projects.vafl.ledger import Ledger, statement
from projects.vafl.module import VerticalFederation
from projects.vafl.recording import Recorder
from projects.vafl.server import Server
from projects.vafl.theory import is_quickly_smooth, logistic_smoothness, observed_tail, theory_rows
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.results import markdown

if TYPE_CHECKING:
    from shared.cli import ProjectTrainer

LEVELS = (0.8, 0.9, 0.95)
"""Accuracies whose first time is told."""


def report(
    trainer: ProjectTrainer,
    module: VerticalFederation,
    recorder: Recorder,
    clients: list[dict[str, Any]],
    server: Server,
    ledgers: Sequence[Ledger],
    blocks: Sequence[Tensor] = (),
) -> dict[str, Any]:
    """Write and print what came of a training; returns the figures that head the run's page.

    Args:
        trainer: the trainer, with its run.
        module: the trained federation.
        recorder: the curve.
        clients: what `client_rows` returned.
        server: at the end.
        ledgers: releases of each client, which a row tells instead of what has come to the server.
        blocks: training records, where they are at hand: the theory's step sizes are told of them.
    """
    own = module.protection
    for row, ledger, bottom in zip(clients, ledgers, module.model.bottoms, strict=True):
        how = own.delta, own.adjacency, bottom.maps_zero_to_zero
        each = ledger.rows_of_upload(row["cycles"])
        stated = statement(ledger, own.clip, own.std, each, row["cycles"], *how, prv=False)  # type: ignore[arg-type]
        row |= {name: stated[name] for name in ("releases_max", "mu", "epsilon", "mu_theorem_6")} | {"releases_mean": round(ledger.mean, 1)}
    keep_curve(trainer, recorder)
    log_table(trainer, "clients", clients)
    log_figure(trainer, "training", draw_training(recorder.curve, recorder.events, server.ages, clients))
    last = recorder.curve[-1]
    shown = ("client", "cycles", "q", "utilisation", "age_at_end", "releases_max", "mu")
    print(markdown([{name: row[name] for name in shown} for row in clients]))
    print(_said(last, recorder, server))
    if theory := theory_of(module, server, clients, last["seconds"], blocks):
        log_table(trainer, "theory", theory)
        if "step_t1" in theory[-1]:
            print(f"{_allowed(theory[-1])}; this training began with {module.hparams.lr:g}")
    print(f"the curve, the clients and a picture: {shown_path(artefact_folder(trainer))}")
    return summary(recorder, server)


def keep_curve(trainer: ProjectTrainer, recorder: Recorder) -> None:
    """Write the curve so far."""
    for logger in trainer.loggers:
        logger.save()  # as Lightning's own loops do at their end
    log_table(trainer, "curve", recorder.curve)


def theory_of(
    module: VerticalFederation, server: Server, clients: Sequence[dict[str, Any]], seconds: float, blocks: Sequence[Tensor]
) -> list[dict[str, Any]]:
    """Return what the convergence theorems say of a training: the rows of `theory_rows`, none where nobody waited for anything.

    Steps are told of a logistic regression whose records are at hand and few. Its bias has no regulariser, so that Theorem 2 says nothing.

    Args:
        module: the federation.
        server: at the end.
        clients: what `client_rows` returned.
        seconds: of the training.
        blocks: training records, or none.
    """
    gaps = [row["mean_gap"] or seconds / max(1, row["cycles"]) for row in clients]
    if not server.ages.any() or not all(gaps):
        return []
    nets = [*module.model.bottoms]
    is_logistic = isinstance(module.model.head, SumHead) and all(isinstance(net, LinearBottom) and net.clip is None for net in nets)
    smooth = logistic_smoothness(blocks, module.hparams.l2) if is_logistic and blocks and is_quickly_smooth(blocks) else None
    rows = theory_rows(gaps, [observed_tail(server.ages, server.oldest)] * len(gaps), smooth, total=server.updates)
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _allowed(worst: dict[str, Any]) -> str:
    return f"the theory allows steps of {worst['step_t1']:.2g} (Theorem 1, D = {worst['oldest']:g}) and {worst['step_t3']:.2g} (Theorem 3)"


def summary(recorder: Recorder, server: Server) -> dict[str, Any]:
    """Return the figures that head a run's page."""
    last = recorder.curve[-1]
    found = {f"val/{name}": last[name] for name in ("accuracy", "auroc", "loss") if name in last}
    found |= {f"train/seconds_to_{level:g}": recorder.first_time("accuracy", level) for level in LEVELS}
    found |= {"train/seconds": last["seconds"], "train/updates": last["updates"], "train/mean_age": server.mean_age, "train/oldest": server.oldest}
    return {name: value for name, value in found.items() if value is not None}


def _said(last: dict[str, Any], recorder: Recorder, server: Server) -> str:
    quality = f"accuracy {last['accuracy']:.4f}" + (f", AUROC {last['auroc']:.4f}" if "auroc" in last else "")
    times = [f"{level:g} after {seconds:g} s" for level in LEVELS if (seconds := recorder.first_time("accuracy", level)) is not None]
    reached = f" (reached {', '.join(times)})" if times else ""
    sent = f"{last['bytes_up'] / 1e6:.3g} MB up, {last['bytes_down'] / 1e6:.3g} MB down"
    return (
        f"{quality}{reached} after {last['seconds']:g} seconds and {last['updates']} updates; {sent}; "
        f"embeddings were {server.mean_age:.1f} updates old on average, {server.oldest} at most, and a record was released {last['releases']} times"
    )
