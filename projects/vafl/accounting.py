"""The verb `privacy`: what a training's uploads have cost the records, and the noise that a promise takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from projects.vafl.data import VerticalRecords
from projects.vafl.ledger import THEOREM_6, Ledger, mu_of, noise_for, releases_within, sensitivity, statement, subject_mu
from projects.vafl.module import VerticalFederation
from projects.vafl.settings import Protection
from shared.checkpoints import load_checkpoint
from shared.loggers import artefact_folder, log_figure, log_table
from shared.messages import shown_path
from shared.privacy import gaussian_epsilon, gaussian_epsilons
from shared.results import markdown
from shared.runs import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from shared.cli import ProjectTrainer

SHOWN = ("client", "releases_max", "sensitivity", "std", "mu", "epsilon", "mu_with_weights", "mu_theorem_6")
"""Columns of the table that is printed."""
LIMITS = (
    "What this leaves out: labels leak through the gradients that the server answers, and nothing here protects them. Test records whose "
    "embeddings a deployment sends are released too, and count on top. Parts of one subject at several clients compose: see the row all. mu is of "
    "a record's own uploads; its client also trains on it unprotected, and mu_with_weights bounds what later uploads of others then tell of it."
)


@dataclass(frozen=True)
class Released:
    """What a training has released.

    Attributes:
        counts: (M, N) int64 releases of each record by each client.
        queries: cycles of each client.
        batch: records of a client's batch.
        maps_zero_to_zero: of each client's net, see `ledger.sensitivity`.
        protection: that it was trained with.
    """

    counts: Tensor
    queries: list[int]
    batch: int
    maps_zero_to_zero: list[bool]
    protection: Protection


@dataclass(frozen=True)
class Accounted:
    """What the verb returns: the rows of its table, its plan where one was asked for, and the figures that head the run's page."""

    rows: list[dict[str, Any]]
    plan: dict[str, Any]
    summary: dict[str, Any]


def account(trainer: ProjectTrainer, module: VerticalFederation, data: VerticalRecords, epsilon: float | None, releases: int | None) -> Accounted:
    """Account for the run's training, plan noise, or both; see the verb.

    Raises:
        FileNotFoundError: if there is neither a training nor a whole plan.
        ValueError: if a target is out of its range, or nothing bounds an embedding.
    """
    _check(module.protection, epsilon, releases)
    released = read_released(trainer, module)
    if released is None and releases is None:
        raise FileNotFoundError(
            f"no federation has been trained in {shown_path(trainer.run.path)}, so there is nothing to account for: run fit, launch or serve first, "
            "or plan without a training, with --releases (of a record) and, for the noise of a target, --epsilon"
        )
    rows: list[dict[str, Any]] = []
    if released is not None:
        own = trained_with(released, module.protection)
        rows = ledger_rows(own, released)
        log_table(trainer, "ledger", rows)
        log_figure(trainer, "privacy", draw_privacy(rows, released.counts, own.delta))
        print(markdown([{name: row[name] for name in SHOWN} for row in rows]))
        print(verdict(own, rows))
    plan = planned(module, released, epsilon, releases) if (epsilon, releases) != (None, None) else {}
    if plan:
        write_json(artefact_folder(trainer) / "plan.json", plan)
        print(_told(plan))
    print(f"{LIMITS}\nthe figures: {shown_path(artefact_folder(trainer))}")
    return Accounted(rows, plan, _summary(rows, plan))


def read_released(trainer: ProjectTrainer, module: VerticalFederation) -> Released | None:
    """Return what the run's training has released, all of it by its checkpoint; None where none has been, or where it was centralised.

    Args:
        trainer: with the run.
        module: the federation, of as many clients.
    """
    file = trainer.run.checkpoints / "last.ckpt"
    kept = load_checkpoint(file).get("federation", {}) if file.is_file() else {}
    if not {"releases", "protection"} <= kept.keys():
        return None
    if len(kept["releases"]) != len(module.model.bottoms):
        raise ValueError(
            f"{file} is of {len(kept['releases'])} clients, but the settings have {len(module.model.bottoms)}: account with the run's own"
        )
    queries = [int(count) for count in kept["queries"]]
    return Released(kept["releases"], queries, kept["batch"], kept["maps_zero_to_zero"], Protection(**kept["protection"]))


def trained_with(released: Released, present: Protection) -> Protection:
    """Return the protection of a training, which other settings of a plan do not change, with the present delta and adjacency, which only ask."""
    return replace(released.protection, delta=present.delta, adjacency=present.adjacency)


def ledger_rows(own: Protection, released: Released) -> list[dict[str, Any]]:
    """Return a row a client, see `ledger.statement`, and one for whole subjects, whose parts at all clients change together.

    Args:
        own: what it was trained with.
        released: by its training.
    """
    rows: list[dict[str, Any]] = []
    for number, (maps, counts, queries) in enumerate(zip(released.maps_zero_to_zero, released.counts, released.queries, strict=True)):
        ledger = Ledger(len(counts))
        ledger.load(counts)
        stated = statement(ledger, own.clip, own.std, ledger.rows_of_upload(queries), queries, own.delta, own.adjacency, maps)
        rows.append({"client": number} | stated)
    return [*rows, _whole(rows, released.counts, own)]


def _whole(rows: Sequence[dict[str, Any]], counts: Tensor, own: Protection) -> dict[str, Any]:
    """Return the row of whole subjects: squares of mu add up."""
    mu = subject_mu(counts, [row["sensitivity"] for row in rows], [own.std] * len(rows))
    paper, weights = (math.hypot(*(row[name] for row in rows)) for name in ("mu_theorem_6", "mu_with_weights"))
    return rows[0] | {
        "client": "all",
        "releases_max": int(counts.sum(0).max()),
        "releases_mean": counts.sum(0).double().mean().item(),
        "sensitivity": max(row["sensitivity"] for row in rows),
        "mu": mu,
        "epsilon": gaussian_epsilon(mu, own.delta),
        "epsilon_prv": gaussian_epsilons(mu, own.delta).prv,
        "mu_theorem_6": paper,
        "epsilon_theorem_6": gaussian_epsilon(paper, own.delta),
        "mu_with_weights": weights,
    }


def verdict(own: Protection, rows: Sequence[dict[str, Any]]) -> str:
    """Say in plain words what the rows promise."""
    if own.clip is None:
        return "no promise: protection.clip is null, so that an embedding may tell anything, whatever the noise"
    if own.std == 0:
        return "no promise: protection.std is 0, so that embeddings are sent as they are"
    worst = max(rows[:-1], key=lambda row: row["mu"])
    said = (
        f"the worst off record of client {worst['client']} was released {worst['releases_max']} times: mu {worst['mu']:.3g}, "
        f"epsilon {worst['epsilon']:.3g} at delta {own.delta:g} (opacus: {worst['epsilon_prv']:.3g}); "
        f"{THEOREM_6} would claim mu {worst['mu_theorem_6']:.3g}"
    )
    if own.epsilon is None:
        return said
    return f"{said}; the budget of epsilon {own.epsilon:g} allows {releases_within(own.epsilon, own.delta, worst['sensitivity'], own.std)} releases"


# ---- a plan


def planned(module: VerticalFederation, released: Released | None, epsilon: float | None, releases: int | None) -> dict[str, Any]:
    """Return what so many releases cost with the present noise, and the noise that a target takes.

    Args:
        module: the federation; the client with the largest sensitivity decides.
        released: by the training, if there is one.
        epsilon: target at protection.delta; None asks for no noise.
        releases: of the most released record; None takes those of the training.

    Returns:
        releases, clip, adjacency, sensitivity, delta, std, mu and epsilon_at_std; with a target also epsilon, std_needed and releases_within (that
        the present noise allows); and with a training, releases_batch_only, those of the same cycles without any embeddings beside the batch's
        (in proportion, where `releases` is given), and std_needed_batch_only.
    """
    own = module.protection
    bound = max(sensitivity(own.clip, own.adjacency, bottom.maps_zero_to_zero) for bottom in module.model.bottoms)  # type: ignore[arg-type]
    count = releases or int(released.counts.max())  # type: ignore[union-attr]
    mu = mu_of(count, bound, own.std)
    plan = {"releases": count, "clip": own.clip, "adjacency": own.adjacency, "sensitivity": bound, "delta": own.delta, "std": own.std}
    plan |= {"mu": mu, "epsilon_at_std": gaussian_epsilon(mu, own.delta)}
    fewer = batch_only(released, module.protocol.fills_table) if released else None
    if released and fewer:
        fewer = min(count, math.ceil(fewer * count / int(released.counts.max())))
        plan["releases_batch_only"] = fewer
    if epsilon is None:
        return plan
    plan |= {"epsilon": epsilon, "std_needed": noise_for(epsilon, own.delta, count, bound)}
    plan["releases_within"] = releases_within(epsilon, own.delta, bound, own.std)
    return plan | ({"std_needed_batch_only": noise_for(epsilon, own.delta, fewer, bound)} if fewer else {})


def batch_only(released: Released, is_filled: bool) -> int:
    """Return the releases of the most released record in the same cycles and the one begun last, had clients uploaded their batches alone.

    Batches make shuffled passes over all records; what is left over at the end of a pass is dropped.

    Args:
        released: by the training.
        is_filled: whether each record is uploaded once before the first cycle.
    """
    passes = max(math.ceil((queries + 1) / (released.counts.shape[1] // released.batch)) for queries in released.queries)
    return passes + is_filled


def _told(plan: dict[str, Any]) -> str:
    said = f"{plan['releases']} releases of a record with noise of std {plan['std']:g}: mu {plan['mu']:.3g}, epsilon {plan['epsilon_at_std']:.3g}"
    if "epsilon" not in plan:
        return said
    said += (
        f"\nepsilon {plan['epsilon']:g} at delta {plan['delta']:g} with clip {plan['clip']:g} "
        f"({plan['adjacency']}, sensitivity {plan['sensitivity']:g}) takes noise of std {plan['std_needed']:.4g}; "
        f"the present noise allows {plan['releases_within']} releases"
    )
    if "std_needed_batch_only" in plan:
        said += (
            f"\nwith protocol.uploads=batch the same cycles are {plan['releases_batch_only']} releases, and take noise of std "
            f"{plan['std_needed_batch_only']:.4g}; that learns more slowly"
        )
    return said


def _check(own: Protection, epsilon: float | None, releases: int | None) -> None:
    if epsilon is not None and not 0 < epsilon < math.inf:
        raise ValueError(f"epsilon must be positive and finite, got {epsilon}")
    if releases is not None and releases < 1:
        raise ValueError(f"releases must be at least 1, got {releases}")
    if epsilon is not None and own.clip is None:
        raise ValueError("no noise keeps an epsilon where embeddings have no bound: set model.protection.clip, as in --model.protection.clip 5")


def _summary(rows: Sequence[dict[str, Any]], plan: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if rows:
        worst = max(rows[:-1], key=lambda row: (row["mu"], row["releases_max"]))
        found = {f"privacy/{name}": worst[name] for name in ("releases_max", "mu", "epsilon")}
        found |= {"privacy/mu_all": rows[-1]["mu"], "privacy/epsilon_all": rows[-1]["epsilon"]}
    return found | {f"privacy/{name}": plan[name] for name in ("std_needed", "std_needed_batch_only") if name in plan}


# ---- the picture


def draw_privacy(rows: Sequence[dict[str, Any]], counts: Tensor, delta: float) -> Figure:
    """Draw how often records were released, and epsilon against releases under the run's noise with the clients' places on it.

    Args:
        rows: what `ledger_rows` returned.
        counts: (M, N) int64 releases.
        delta: of epsilon.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    spread, costs = figure.subplots(1, 2)
    for row, own in zip(rows[:-1], counts, strict=True):
        amounts, records = torch.unique(own, return_counts=True)
        shares = records.flip(0).cumsum(0).flip(0) / len(own)
        spread.step([0, *amounts, amounts[-1]], [1, *shares, 0], where="pre", label=str(row["client"]), linewidth=1.2)
    spread.set(xlabel="releases", ylabel="part of the records", title="Records released at least so often", ylim=(0, 1.02))
    spread.legend(frameon=False, title="client", loc="upper left", bbox_to_anchor=(1, 1))
    worst = max(rows[:-1], key=lambda row: (row["mu"], row["releases_max"]))
    if worst["releases_max"] and math.isfinite(worst["mu"]):
        _draw_costs(costs, rows, worst, delta)
    else:
        costs.text(0.5, 0.5, "no promise: protection.clip is null\nor protection.std is 0", ha="center", va="center", transform=costs.transAxes)
        costs.set_axis_off()
    return figure


def _draw_costs(axis: Axes, rows: Sequence[dict[str, Any]], worst: dict[str, Any], delta: float) -> None:
    most = worst["releases_max"]
    releases = np.unique(np.geomspace(1, 4 * most, 60).round())
    for name, label, style in (("mu", "of this noise", "-"), ("mu_theorem_6", THEOREM_6, "--")):
        each = [gaussian_epsilon(worst[name] * math.sqrt(count / most), delta) for count in releases]
        axis.plot(releases, each, style, label=label, color="tab:blue" if name == "mu" else "grey")
    axis.scatter([row["releases_max"] for row in rows[:-1]], [row["epsilon"] for row in rows[:-1]], color="tab:blue", zorder=3, label="the clients")
    places: dict[tuple[int, float], list[str]] = {}
    for row in rows[:-1]:
        places.setdefault((row["releases_max"], row["epsilon"]), []).append(str(row["client"]))
    for place, clients in places.items():
        axis.annotate(", ".join(clients), place, xytext=(4, -9), textcoords="offset points", fontsize=8)
    axis.set(xscale="log", yscale="log", xlabel="releases of the most released record", ylabel=f"epsilon at delta {delta:g}", title="What they cost")
    axis.legend(frameon=False)
