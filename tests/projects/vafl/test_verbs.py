"""The verbs one after another, as users call them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from helpers.party_sets import write_parties

from projects.vafl import cli
from projects.vafl.cli import main
from projects.vafl.module import VerticalFederation
from projects.vafl.recording import client_rows
from projects.vafl.reporting import theory_of
from projects.vafl.simulator import Simulator
from shared.dashboards import validate

QUIET = ["--trainer.enable_model_summary", "false"]
SMALL = ["--data.source", "breast_cancer"]
SHORT = ["--model.seconds", "3", "--model.every", "1.5", *QUIET]
PRIVATE = ["--model.protection.clip", "5", "--model.protection.std", "10"]


def table(done, verb, name):
    return json.loads((done.run.artefacts(verb) / f"{name}.json").read_text())


def failed(capsys, *args):
    with pytest.raises(SystemExit) as stop:
        main([*args, *QUIET])
    said = " ".join(capsys.readouterr().err.split())
    assert "Traceback" not in said
    return stop.value.code, said


def test_fit_test_predict_and_privacy_work_one_after_another(run_folder, capsys):
    fit = main(["fit", "--run", "one", *SMALL, *SHORT, *PRIVATE])
    curve, clients = table(fit, "fit", "curve"), table(fit, "fit", "clients")
    assert "releases_max" in capsys.readouterr().out
    assert [row["client"] for row in table(fit, "fit", "theory")] == [0, 1, 2, "all"]

    tested = main(["test", *QUIET])
    said = capsys.readouterr().out
    assert tested.trainer.callback_metrics["test/accuracy"] == pytest.approx(curve[-1]["accuracy"], abs=1e-6)
    assert f"all clients: accuracy {curve[-1]['accuracy']:.4f}, AUROC {curve[-1]['auroc']:.4f}" in said
    assert "with the noise of protection" in said
    assert "DataLoader 0" not in said
    missing = table(tested, "test", "missing")
    assert list(missing[0]) == ["client", "accuracy", "accuracy_lost", "auroc", "auroc_lost"]
    assert all(row["accuracy"] + row["accuracy_lost"] == pytest.approx(curve[-1]["accuracy"], abs=1e-5) for row in missing)

    rows = table(main(["predict", *QUIET]), "predict", "predictions")
    assert sum(row["label"] == row["predicted"] for row in rows) / len(rows) == pytest.approx(curve[-1]["accuracy"], abs=1e-6)
    assert len({row["record"] for row in rows}) == len(rows)

    accounted = main(["privacy", "--epsilon", "8", *QUIET])
    said = capsys.readouterr().out
    ledger = table(accounted, "privacy", "ledger")
    assert [row["mu"] for row in ledger[:-1]] == [row["mu"] for row in clients]
    assert [row["releases_max"] for row in ledger[:-1]] == [row["releases_max"] for row in clients]
    plan = json.loads((accounted.run.artefacts("privacy") / "plan.json").read_text())
    assert plan["std_needed_batch_only"] < plan["std_needed"]
    assert plan["releases"] == max(row["releases_max"] for row in clients)
    assert "theorem 6 (needs secret sampling)" in said
    assert "labels leak" in said
    assert accounted.result.summary["privacy/std_needed"] == plan["std_needed"]

    assert validate(Path(cli.__file__).parent / "dashboard.yaml").metrics <= logged(fit.run, "fit", "test", "privacy")
    other = main(["fit", "--run", "other", *SMALL, *SHORT, *PRIVATE])
    for file in ("curve.csv", "clients.csv", "theory.csv", "trace.csv"):
        one, again = ((done.run.artefacts("fit") / file).read_text() for done in (fit, other))
        assert one == again, file


def logged(run, *verbs):
    """Return the names of metrics, tables and pictures that verbs have written."""
    names = set()
    for verb in verbs:
        names |= {path.stem for path in run.artefacts(verb).iterdir()}
        for file in (run.path / verb).glob("metrics.csv"):
            names |= set(file.read_text().splitlines()[0].split(","))
    return names


def test_the_theory_tells_the_steps_of_a_logistic_regression(run_folder):
    module = VerticalFederation([[5], [4]], 2, lr=0.1, l2=0.01)
    blocks = [torch.randn(30, width, generator=torch.Generator().manual_seed(0)) for width in (5, 4)]
    simulator = Simulator(module.model, blocks, torch.arange(30) % 2, module.setting(5))
    simulator.run(updates=40)
    clients = client_rows(simulator.server, [20, 20], [1.0, 1.0], 4.0, [0.1, 0.3])
    rows = theory_of(module, simulator.server, clients, 4.0, blocks)
    features = torch.cat([*blocks, torch.ones(30, 1)], 1).double()
    smooth = float(torch.linalg.eigvalsh(features.T @ features / 60)[-1]) + 0.01
    assert [row["q"] for row in rows] == pytest.approx([0.75, 0.25, 0.25])
    assert rows[-1]["step_t1"] == pytest.approx(1 / (4 * (1 + simulator.server.oldest) * smooth))
    assert "step_t2" not in rows[-1]
    assert "step_t1" not in theory_of(module, simulator.server, clients, 4.0, [])[-1]


def test_noise_is_planned_before_any_training(run_folder, capsys):
    planned = main(["privacy", "--config", "tiny", "--epsilon", "4", "--releases", "100", "--model.protection.clip", "5", *QUIET])
    assert planned.result.plan["std_needed"] == pytest.approx(54.06, abs=0.01)
    assert "epsilon 4 at delta 1e-05" in capsys.readouterr().out
    assert not planned.result.rows


def test_real_parties_records_keep_their_ids_and_a_plan_does_not_clip_them_afterwards(run_folder, tmp_path, capsys):
    _, labels = write_parties(tmp_path / "parties")
    fit = main(["fit", "--data.source", "parties", "--data.root", str(tmp_path / "parties"), "--data.batch_size", "4", *SHORT])
    main(["predict", *QUIET])
    with (fit.run.artefacts("predict") / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows
    assert all(labels[row["record"]] == row["label"] for row in rows)
    capsys.readouterr()
    accounted = main(["privacy", "--epsilon", "8", *PRIVATE, *QUIET])
    said = capsys.readouterr().out
    assert "no promise: protection.clip is null" in said
    assert table(accounted, "privacy", "ledger")[0]["mu"] == math.inf
    assert "epsilon 8 at delta 1e-05 with clip 5" in said


def test_a_centralised_training_can_be_tested_with_a_client_missing(run_folder, capsys):
    main(["fit", *SMALL, "--model.protocol.algorithm", "centralised", "--trainer.max_epochs", "1", *QUIET])
    tested = main(["test", *QUIET])
    assert tested.model.absent.abs().sum() > 0
    code, said = failed(capsys, "privacy")
    assert code == 1
    assert "no federation has been trained" in said


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["test"], "vafl has no run"),
        (["predict"], "vafl has no run"),
        (["privacy"], "run fit, launch or serve first"),
        (["privacy", "--epsilon", "4", "--model.protection.clip", "5"], "or plan without a training, with --releases"),
        (["privacy", "--epsilon", "4", "--releases", "10"], "set model.protection.clip"),
        (["privacy", "--epsilon", "0", "--releases", "10"], "epsilon must be positive and finite, got 0"),
        (["privacy", "--releases", "0"], "releases must be at least 1, got 0"),
    ],
    ids=["test", "predict", "no training", "no releases", "no clip", "epsilon", "releases"],
)
def test_what_cannot_be_done_is_told_with_the_mend(args, message, run_folder, capsys):
    code, said = failed(capsys, *args)
    assert (code, message in said) == (1, True), said
