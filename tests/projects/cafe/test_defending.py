from __future__ import annotations

import csv
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from projects.cafe import defending
from projects.cafe.campaign import Campaign
from projects.cafe.cli import main
from projects.cafe.data import FederatedRecords
from projects.cafe.defending import DEFENCES, KNOWING, MORE, Weighing, attacked, measure
from projects.cafe.module import FederatedClassifier
from projects.cafe.privacy import account
from projects.cafe.protection import KINDS, NONE, Protection
from projects.cafe.recovery import Cafe
from projects.cafe.schedule_files import make_schedule
from projects.cafe.schedules import uniform
from projects.cafe.watching import Watch

QUIET = ("--wandb", "disabled", "--trainer.enable_progress_bar", "false")
SIZES = ("--data.count", "12", "--data.batch_size", "4", "--data.parties", "2", "--model.first", "16", "--rounds", "6")
TABLE = ("--data.source", "breast_cancer", *SIZES, *QUIET)
DIGITS = ("--data.count", "6", "--data.batch_size", "2", "--model.widths", "[2, 2]", "--model.first", "6", "--rounds", "2", "--steps", "2", *QUIET)


def weighed(*args: str, names: tuple[str, ...] = ()) -> Any:
    return main(["defend", *(part for name in names for part in ("--defences", name)), *args])


def artefacts(cli: Any) -> Path:
    return cli.run.artefacts("defend")


@pytest.fixture
def tumours() -> FederatedRecords:
    data = FederatedRecords("breast_cancer", count=12, batch_size=4, parties=2)
    data.setup()
    return data


def weighing(rounds: int = 2, recorded: int = 20) -> Weighing:
    return Weighing(Campaign(watch=Watch(rounds=recorded, batch=4)), rounds, 4, 1e-3, 1e-5, 0)


def test_defences_of_a_table_are_weighed_written_and_judged(capsys):
    cli = weighed(*TABLE, names=("noise:std=1e-6", "fake", "private:clip=1,noise_multiplier=1", "none"))
    rows = {row["defence"]: row for row in cli.result.rows}
    assert list(rows) == ["none", "noise:std=1e-6", "fake", "private:clip=1,noise_multiplier=1"]
    plain, noise, fake, private = rows.values()
    recorded = len(make_schedule("uniform", 12, 4))
    assert plain["naive_rmse"] < 1e-4
    assert plain["attack"] > 0.999
    assert plain["points"] == 0
    assert plain["adaptive_rmse"] == plain["naive_rmse"]
    assert plain["naive_rmse"] < noise["adaptive_rmse"] < noise["naive_rmse"] < 0.5  # three times as many rounds average noise out
    assert fake["naive_rmse"] > fake["adaptive_rmse"]
    assert fake["attack"] == fake["adaptive_attack"] > fake["naive_attack"]
    assert private["epsilon"] == account(1, 1.0, 1e-5, uploads=2).epsilon  # 6 rounds of 4 are less than a pass over the training records
    busiest = int(uniform(12, 4, MORE * recorded, 0).sum(0).max())
    assert private["epsilon_attacked"] == account(busiest, 1.0, 1e-5, uploads=2).epsilon
    assert all(row["epsilon"] is None for row in (plain, noise, fake))

    folder, printed = artefacts(cli), capsys.readouterr().out
    with (folder / "defences.csv").open() as file:
        assert [row["defence"] for row in csv.DictReader(file)] == list(rows)
    report = json.loads((folder / "defend.json").read_text())
    assert report["rows"] == cli.result.rows
    assert report["verdict"] == cli.result.verdict
    assert report["threat_model"]["knowing fake"] == KNOWING["fake"]
    assert report["settings"]["recorded_adaptive"] == 3 * report["settings"]["recorded"]
    assert (folder / "trade_off.png").stat().st_size > 10_000
    assert "| defence | accuracy | points | CAFE RMSE | knowing RMSE | attack | score | epsilon | note |" in printed
    assert "not held to it: noise:std=1e-6 (" in printed
    assert "all of this is one seed (0)" in printed
    assert cli.result.summary["defend/rmse"] == plain["naive_rmse"]
    assert cli.result.summary["defend/best_score"] == max(row["score"] for row in (noise, fake, private))


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["resume", "force"])
def test_an_interrupted_verb_goes_on_or_is_forced_to_begin_again_and_leaves_no_rows(force, capsys, monkeypatch):
    run, real, made = ("--run", "stopped", *TABLE, "--defences", "[prune:keep=0.5]"), defending.measure, []

    def stopping(federation, data, protection, *rest):
        made.append(protection.text)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(federation, data, protection, *rest)

    monkeypatch.setattr(defending, "measure", stopping)
    with pytest.raises(SystemExit) as caught:
        main(["defend", *run])
    assert caught.value.code == 130
    capsys.readouterr()
    cli = main(["defend", "--resume", *force, *run])
    assert made[2:] == (["none", "prune:keep=0.5"] if force else ["prune:keep=0.5"])
    assert ("none: kept by an earlier start" in capsys.readouterr().out) == (not force)
    assert len(cli.result.rows) == 2
    assert (artefacts(cli) / "defend.json").is_file()
    assert not (artefacts(cli) / "rows").exists()


def test_what_is_kept_is_of_one_file_of_nets(tumours, tmp_path):
    """Two activations have the same weights, here none."""
    net = tmp_path / "net.py"

    def mark(comment: str = "") -> str:
        net.write_text(f"from torch import nn\n\ndef build(shape):\n    return nn.Sequential(nn.Linear(shape[0], 4), nn.Linear(4, 3)){comment}\n")
        return defending._digest(FederatedClassifier(tumours.shapes, tumours.classes, bottom=f"{net}:build"), tumours)

    assert mark() == mark() != mark("  # edited")


def test_defences_of_pictures_are_measured_in_decibels_and_what_cannot_be_used_is_left_out_with_the_reason(capsys):
    cli = weighed(*DIGITS, "--model.batch_norm", "true", names=("private:clip=1,noise_multiplier=1", "prune:keep=0.5"))
    assert [row["defence"] for row in cli.result.rows] == ["none", "prune:keep=0.5"]
    printed = capsys.readouterr().out
    assert "CAFE dB" in printed
    assert "left out: private:clip=1,noise_multiplier=1: a record has no gradient of its own in a net with batch norm" in printed
    assert 5 < cli.result.summary["defend/mean_psnr"] < 30


def test_by_default_all_kinds_are_weighed_and_the_models_own_defence(monkeypatch):
    assert {text.partition(":")[0] for text in DEFENCES} == {NONE, *KINDS} == set(KNOWING)
    assert all(Protection.parse(text).text == text for text in DEFENCES)
    few = DEFENCES[:2]
    monkeypatch.setattr("projects.cafe.defending.DEFENCES", few)
    cli = weighed(*TABLE, "--model.defence", "noise:std=3")
    assert [row["defence"] for row in cli.result.rows] == [*few, "noise:std=3"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--defences", "blur"), "unknown defence 'blur': choose none, or one of fake"),
        (("--recorded", "5"), "without a defence CAFE finds nothing, so that defences cannot be weighed: none of the 12 records is recoverable"),
        (("--rounds", "0"), "rounds of training must be at least 1, got 0"),
        (("--delta", "1"), "delta must be in"),
        (("--data.batch_size", "13"), "batches of 13 cannot be drawn from 12 records"),
    ],
)
def test_what_cannot_be_weighed_is_refused_with_the_reason(args, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["defend", *TABLE, *args])
    assert caught.value.code == 1
    assert message in " ".join(capsys.readouterr().err.split())


def test_an_attack_that_finds_nothing_counts_as_the_mean_record_and_keeps_its_reason(tumours):
    federation = FederatedClassifier(tumours.shapes, tumours.classes, first=16).federation
    found = attacked(federation, tumours, Protection(), Campaign(watch=Watch(rounds=5, batch=4), cafe=Cafe()))
    truth = tumours.attacked.values().double()
    assert found["error"] == pytest.approx(float((truth - truth.mean(0)).square().mean().sqrt()))
    assert (found["attack"], found["recovered"]) == (0, 0)
    assert "the recorded rounds have rank 5 of 12" in found["note"]


@pytest.mark.parametrize(
    ("text", "times", "undoes"),
    [("none", 1, False), ("fake", 1, True), ("noise:std=1", 3, False), ("prune:keep=1", 3, False), ("private:clip=1,noise_multiplier=1", 3, False)],
)
def test_who_knows_the_defence_undoes_ranks_or_records_more(text, times, undoes):
    plain, found = weighing().campaign, weighing().knowing(Protection.parse(text))
    assert found == replace(plain, adaptive=undoes, watch=replace(plain.watch, rounds=times * plain.watch.rounds))


def test_measuring_leaves_the_model_as_it_is_and_stops_when_told(tumours):
    federation = FederatedClassifier(tumours.shapes, tumours.classes, first=16).federation
    before = {name: value.clone() for name, value in federation.state_dict().items()}
    found = measure(federation, tumours, Protection.parse("noise:std=0"), weighing())
    assert found["naive"]["recovered"] == 12
    assert found["epsilon"] is None
    assert all(torch.equal(value, before[name]) for name, value in federation.state_dict().items())
    stop = threading.Event()
    stop.set()
    with pytest.raises(RuntimeError, match="interrupted"):
        measure(federation, tumours, Protection(), weighing(), stop)


def test_what_is_recovered_in_part_counts_beside_the_mean_of_the_rest(tumours, monkeypatch):
    federation = FederatedClassifier(tumours.shapes, tumours.classes, first=16).federation
    outcome = Campaign(watch=Watch(rounds=20, batch=4)).run(federation, tumours)
    outcome.recovered[:, :3] = torch.nan
    monkeypatch.setattr(Campaign, "run", lambda *_: outcome)
    found = attacked(federation, tumours, Protection(), Campaign())
    off = (outcome.truth - outcome.truth.mean(0)).double().square()
    assert found["error"] == pytest.approx(float((off[:, :3].sum() / off.numel()).sqrt()), rel=1e-3)
    assert found["attack"] == pytest.approx(1 - float(off[:, :3].sum() / off.sum()), rel=1e-3)
    assert found["recovered"] == 0
    assert "note" not in found
