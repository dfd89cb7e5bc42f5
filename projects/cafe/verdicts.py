"""What an attack's figures mean, in words: what the rounds gave away, what is wrong with records, and how much was recovered."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from projects.cafe.campaign import Campaign
from projects.cafe.judging import Outcome
from projects.cafe.metrics import RECOVERED
from projects.cafe.schedules import condition, rounds_until_known

ORDERED = frozenset({"cafe", "aligned"})
"""Attacks that know who is in each batch, and so find all records, in order."""


def schedule_facts(schedule: Tensor) -> dict[str, Any]:
    """Return what the recorded rounds of a view give away, whatever the nets; see `condition` and `rounds_until_known`.

    Args:
        schedule: (T, N) bool.

    Returns:
        Numbers of rounds and records, sizes of batches, rank, condition number (None where it is infinite), how many records are told apart, and
        after how many rounds the first, half and all of them are (None where never).
    """
    judged, settled = condition(schedule), rounds_until_known(schedule)
    rounds, records = schedule.shape
    order = settled[settled > 0].sort().values.tolist()
    facts: dict[str, Any] = {"rounds": rounds, "records": records, "batch": sorted({int(size) for size in schedule.sum(1)})}
    facts |= {"rank": judged.rank, "condition": known(judged.condition), "told_apart": int(judged.recoverable.sum())}
    half = (records + 1) // 2
    return facts | {f"rounds_until_{name}": order[n - 1] if len(order) >= n else None for name, n in (("first", 1), ("half", half), ("all", records))}


def in_part(outcome: Outcome) -> int:
    """Count the records of which some parties' blocks were recovered, but not all."""
    values = outcome.recovered.flatten(1).isfinite()
    return int((values.any(1) & ~values.all(1)).sum())


def most_frequent(outcome: Outcome) -> float:
    """Return the part of records with the most frequent label: what a guess of labels without any attack gets."""
    return float(outcome.labels.bincount().max()) / len(outcome.labels)


def reason_counts(outcome: Outcome) -> list[tuple[str, int]]:
    """Count what is wrong with records, whichever party it is at, the most frequent first."""
    general = (re.sub(r"^party \d+: |(?<=stale: )\S+ of ", "", reason) for reason in outcome.reasons.values())
    return Counter(general).most_common()


def count_reasons(outcome: Outcome) -> list[str]:
    """Write `reason_counts` as lines."""
    return [f"  {count} of {len(outcome.truth)} records: {reason}" for reason, count in reason_counts(outcome)]


def schedule_lines(campaign: Campaign, facts: Sequence[dict[str, Any]]) -> list[str]:
    """Say what the recorded rounds give away; nothing of attacks on one round."""
    lines = []
    for number, fact in enumerate(facts if campaign.method in ORDERED else []):
        whose = f"worker {number}: " if len(facts) > 1 else ""
        told = f"{whose}the {fact['rounds']} recorded rounds have rank {fact['rank']} of {fact['records']}"
        until = fact["rounds_until_all"]
        apart = f"all records are told apart after {until}" if until else f"{fact['told_apart']} of {fact['records']} records are told apart"
        first = fact["rounds_until_first"]
        lines.append(f"{told}: {apart}" + (f", the first after {first}" if first not in (None, until) else ""))
    return lines


def verdict(campaign: Campaign, outcome: Outcome, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Say in a line or two what the figures mean."""
    own, trivial = rows[:2]
    return [*(_of_whole(campaign, outcome, own, trivial) if own["recovered"] else _of_parties(outcome)), *_of_labels(campaign, outcome, own)]


def _of_whole(campaign: Campaign, outcome: Outcome, own: dict[str, Any], trivial: dict[str, Any]) -> list[str]:
    if outcome.is_pictures:
        above, mean = percent(own["above_30_db"]), f"mean {own['psnr']:.1f} dB; the mean image gives {trivial['psnr']:.1f} dB"
        quality, is_useless = f"{above} above {RECOVERED:g} dB ({mean})", own["psnr"] <= trivial["psnr"]
    else:
        quality = f"RMSE {own['rmse']:.2g} standard deviations (the mean row gives {trivial['rmse']:.3g})"
        is_useless = own["rmse"] >= trivial["rmse"]
    name = "CAFE" if campaign.method == "cafe" else campaign.method
    whose = f"{own['recovered']} of {own['records']} records{'' if campaign.method in ORDERED else ' of one round'}"
    did = f"{name} {'guessed' if is_useless else 'recovered'} {whose}"
    part = f", and {in_part(outcome)} in part" if in_part(outcome) else ""
    return [f"{did}{part}: {quality}" + (f", no better than the {trivial['attack']}" if is_useless else "")]


def _of_parties(outcome: Outcome) -> list[str]:
    """Say what was recovered where no record was as a whole."""
    before, after = ("", " dB") if outcome.is_pictures else ("RMSE ", "")
    said = []
    for row in outcome.parties():
        if row["recovered"]:
            error, mean = (f"{before}{row[name]:.3g}{after}" for name in (outcome.unit, f"{outcome.unit}_of_mean_block"))
            said.append(f"party {row['party']} with {error} (its mean block: {mean})")
    return [f"no record was recovered as a whole, but {in_part(outcome)} in part: {', '.join(said)}"]


def _of_labels(campaign: Campaign, outcome: Outcome, own: dict[str, Any]) -> list[str]:
    if own.get("label_accuracy") is not None:
        whose = f"labels of {int(outcome.labelled.sum())} of {own['records']} records"
        return [f"{whose}: {percent(own['label_accuracy'])} are right (the most frequent one for all: {percent(most_frequent(outcome))})"]
    if campaign.method in ORDERED:
        return []
    return ["records of one round are in no order: each stands beside the true one that makes the errors least, and labels are not judged"]


def percent(part: float) -> str:
    """Write a part of one for people; 100 % only where it is all."""
    return f"{min(round(100 * part, 1), 100 if part == 1 else 99.9):g} %"


def known(value: Any) -> Any:
    """Return a value for JSON and tables: None for numbers that are not finite."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
