from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from projects.cafe.cli import main
from projects.cafe.data import FederatedRecords
from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import Protection
from projects.cafe.trading import accuracy, draw_trade_off, tabulate, trained_accuracy, training_batches, verdict

QUIET = ("--wandb", "disabled", "--trainer.enable_progress_bar", "false", "--trainer.logger", "false")


@pytest.fixture(scope="module")
def tumours() -> FederatedRecords:
    data = FederatedRecords("breast_cancer", count=40, batch_size=50)
    data.setup()
    return data


def classifier(data: FederatedRecords, **options: Any) -> FederatedClassifier:
    return FederatedClassifier(data.shapes, data.classes, first=16, **options)


@pytest.mark.parametrize("defence", ["none", "noise:std=0.05"])
def test_training_under_a_defence_is_that_of_fit(tumours, defence):
    args = ["--data.source", "breast_cancer", "--data.batch_size", "50", "--data.count", "40", "--model.first", "16", "--model.defence", defence]
    fitted = main(["fit", "--trainer.max_epochs", "2", "--model.lr", "0.01", *args, *QUIET])
    rounds = 2 * (len(tumours.train_records) // 50)
    assert fitted.trainer.global_step == rounds
    mine = trained_accuracy(classifier(tumours).federation, tumours, Protection.parse(defence), rounds, 50, 0.01, 0)
    assert mine == pytest.approx(float(fitted.trainer.callback_metrics["val/accuracy"]), abs=1e-6)
    assert mine > 0.6


def test_training_leaves_the_start_as_it_is_and_learns(tumours):
    federation = classifier(tumours).federation
    before = [parameter.clone() for parameter in federation.parameters()]
    untrained = accuracy(federation, tumours)
    assert trained_accuracy(federation, tumours, Protection(), 40, 50, 0.01, 0) > max(untrained, 0.9)
    assert all(torch.equal(*pair) for pair in zip(before, federation.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in federation.parameters())


def test_the_accuracy_counts_every_test_record_once(tumours, monkeypatch):
    federation = classifier(tumours).federation
    records = tumours.test_records
    right = (federation(tumours.blocks(records.values())).argmax(1) == records.labels).double().mean()
    monkeypatch.setattr("projects.cafe.trading.AT_ONCE", 7)
    assert accuracy(federation, tumours) == pytest.approx(float(right))


def test_batches_are_shuffled_passes_in_whole_batches():
    members = training_batches(11, 4, 5, seed=0)
    assert members.shape == (5, 4)
    passes = [members[start : start + 2].flatten().tolist() for start in (0, 2)]
    assert all(len(set(one)) == 8 for one in passes)
    assert passes[0] != passes[1]
    assert torch.equal(members[:3], training_batches(11, 4, 3, seed=0))
    assert not torch.equal(members, training_batches(11, 4, 5, seed=1))


@pytest.mark.parametrize(("batch", "rounds"), [(12, 1), (0, 1), (4, 0)])
def test_batches_that_cannot_be_are_refused(batch, rounds):
    with pytest.raises(ValueError, match=f"{rounds} rounds of {batch} of 11 records: there must be at least one round, and a batch of 1 to 11"):
        training_batches(11, batch, rounds, 0)


def part(error: float, attack: float, **more: Any) -> dict[str, Any]:
    return {"error": error, "attack": attack, "recovered": 9, **more}


def measured() -> list[dict[str, Any]]:
    """What might have been measured of four defences, the mean record getting 14 dB."""
    promise = {"epsilon": None, "epsilon_attacked": None, "seconds": 1.0}
    plain, weak, fake = part(38.0, 0.99), part(25.0, 0.9), part(4.0, 0.0)
    return [
        {"defence": "none", "accuracy": 0.95, "naive": plain, "adaptive": plain, **promise},
        {"defence": "weak", "accuracy": 0.95, "naive": weak, "adaptive": part(30.0, 0.95), **promise},
        {"defence": "fake", "accuracy": 0.94, "naive": fake, "adaptive": part(20.0, 0.7), **promise},
        {
            "defence": "private",
            "accuracy": 0.2,
            "naive": part(14.0, 0.0, note="of no rank"),
            "adaptive": part(5.0, 0.0),
            **promise,
            "epsilon": 9.0,
            "epsilon_attacked": 12.0,
        },
    ]


def test_a_row_takes_the_better_attack_and_scores_it_beside_the_undefended_accuracy():
    rows = tabulate(measured())
    assert [row["attack"] for row in rows] == [0.99, 0.95, 0.7, 0.0]
    assert [row["points"] for row in rows] == pytest.approx([0, 0, -1, -75])
    for row in rows:
        assert row["score"] == pytest.approx(1 / (1 + math.sqrt(0.5 * row["attack"] ** 2 + 0.5 * (0.95 - row["accuracy"]) ** 2)))
    assert rows[3]["note"] == "CAFE: of no rank"
    assert rows[2]["naive_psnr"] == 4.0
    assert rows[2]["adaptive_psnr"] == 20.0
    assert {tuple(row) for row in rows} == {tuple(rows[0])}


def test_the_verdict_says_who_is_held_to_the_mean_record_and_what_it_costs():
    said = verdict(tabulate(measured()), baseline=14.0, tests=400, seed=3)
    assert said[0] == "without a defence CAFE gets 38 dB, and the mean record 14"
    assert said[1].endswith("also against the attacker who knows the defence: private (-75.0 points)")
    assert said[2].endswith("only while the attacker does not know the defence: fake (-1.0 points)")
    assert said[3] == "not held to it: weak (+0.0 points)"
    assert said[4] == "a formal promise is made by: private (epsilon 9)"
    assert said[5] == f"all of this is one seed (3): an accuracy on 400 test records is sure to about {196 * math.sqrt(0.95 * 0.05 / 400):.1f} points"


def test_of_tables_less_error_leaks_more_and_an_attacker_who_gets_less_is_named():
    parts = {"none": (1e-7, 1e-7), "noise": (0.5, 3.0), "fake": (9.0, 0.1)}
    rows = [{"defence": name, "accuracy": 0.9, "points": 0.0, "naive_rmse": a, "adaptive_rmse": b, "epsilon": None} for name, (a, b) in parts.items()]
    said = verdict(rows, baseline=1.0, tests=100, seed=0, unit="rmse")
    assert said[0] == "without a defence CAFE gets 1e-07 standard deviations, and the mean record 1"
    assert said[1].endswith(": none")
    assert said[2].endswith(": fake (+0.0 points)")
    assert said[3] == "not held to it: none; nor, though the attacker who knows them gets less: noise (+0.0 points)"


@pytest.mark.parametrize(("unit", "plain"), [("psnr", 0.5), ("rmse", 1.5), ("psnr", 1.0)])
def test_where_the_plain_attack_is_no_better_than_the_mean_record_nothing_is_said_of_defences(unit, plain):
    errors = {f"naive_{unit}": plain, f"adaptive_{unit}": plain}
    rows = [{"defence": name, "accuracy": 0.9, "points": 0.0, "epsilon": None, **errors} for name in ("none", "fake")]
    said = verdict(rows, baseline=1.0, tests=100, seed=0, unit=unit)
    assert said[1] == (
        "CAFE without a defence is no better than the mean record, so nothing is shown of the defences: "
        "take more --steps, a wider net, or more rounds"
    )
    assert said[2] == "a formal promise is made by: none"
    assert not any("held to" in line or "fake" in line for line in said)


@pytest.mark.parametrize("unit", ["psnr", "rmse"])
def test_the_picture_numbers_every_defence_without_one_number_on_another(unit):
    rows = [{"defence": f"defence {n}", "accuracy": 0.9, f"naive_{unit}": 5.0, f"adaptive_{unit}": 5.0} for n in range(6)]
    rows += [{"defence": "none", "accuracy": 0.95, f"naive_{unit}": 0.0, f"adaptive_{unit}": 0.0}]
    figure = draw_trade_off(rows, 14.0, unit == "psnr")
    figure.draw_without_rendering()
    [axis] = figure.axes
    boxes = [text.get_window_extent() for text in axis.texts if text.get_text()]
    assert sorted(text.get_text() for text in axis.texts if text.get_text()) == [str(n) for n in range(7)]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names[:2] == ["0  defence 0", "1  defence 1"]
    assert "mean record, no attack" in names
    assert axis.xaxis_inverted() == (unit == "rmse")
