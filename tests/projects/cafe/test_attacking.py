"""The verbs attack and predict: what they write and say, how an attack goes on, and what is said when something is wrong."""

import csv
import json

import numpy as np
import pytest
import torch
from helpers.commands import failing

from projects.cafe import attacking, recovery
from projects.cafe.attacking import Keeper, settings
from projects.cafe.campaign import Campaign
from projects.cafe.cli import main
from projects.cafe.data import FederatedRecords
from projects.cafe.figures import draw_recovered
from projects.cafe.judging import judge
from projects.cafe.metrics import psnr
from projects.cafe.module import FederatedClassifier
from projects.cafe.recovery import REFERENCE, Cafe, Recovery
from projects.cafe.verdicts import percent, schedule_facts, verdict
from projects.cafe.watching import Watched
from shared.checkpoints import weights_digest

NETS = ["--model.widths=[4,8]", "--model.first=16"]
SMALL = [*NETS, "--data.count=12", "--data.batch_size=4"]
HORIZONTAL = ["--model.widths=[16,32]", "--model.first=16", "--data.parties=1", "--data.split=rows", "--data.count=12", "--data.batch_size=2"]
TABLE = ["--data.source=breast_cancer", "--data.count=12", "--data.batch_size=4", "--data.parties=2"]


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves figures out, which take most of a small attack's time."""
    monkeypatch.setattr(attacking, "log_figure", lambda *_: None)
    for name in ("draw_recovered", "draw_psnr"):
        monkeypatch.setattr(attacking, name, lambda *_: None)


def attacked(run_folder, *options, name="one"):
    """Attack in a run of that name, and return what the verb returned and its folder."""
    cli = main(["attack", "--run", name, *options])
    return cli, run_folder / "cafe" / name / "artefacts" / "attack"


fails = failing(main)


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- what an attack leaves


def test_pictures_are_written_beside_their_truth(run_folder, capsys):
    cli, folder = attacked(run_folder, *SMALL, "--model.widths=[16,32]", "--steps=80")
    assert {path.name for path in folder.iterdir()} == {
        *("report.json", "records.csv", "records.json", "attack.csv", "attack.json", "recovered.npz", "recovered.png", "psnr.png"),
        *("parties.csv", "parties.json"),
    }
    with np.load(folder / "recovered.npz", allow_pickle=False) as archive:
        pictures, numbers, scores = (torch.from_numpy(archive[name]) for name in ("pictures", "record", "label_scores"))
    truth = cli.datamodule.attacked
    assert numbers.tolist() == list(range(12))
    errors = psnr(pictures, truth.values())
    rows = json.loads((folder / "records.json").read_text())
    assert [row["psnr"] for row in rows] == pytest.approx(errors.tolist(), abs=1e-3)
    assert [row["label_found"] for row in rows] == scores.argmax(1).tolist() == truth.labels.tolist()
    report = json.loads((folder / "report.json").read_text())
    assert report["figures"]["psnr"] == pytest.approx(float(errors.mean()), abs=1e-6)
    mean = truth.values().mean(0, keepdim=True).expand_as(truth.values())
    assert report["baselines"]["mean image"]["psnr"] == pytest.approx(float(psnr(mean, truth.values()).mean()))
    assert cli.result.summary["attack/psnr"] == report["figures"]["psnr"]
    assert [row["attack"] for row in rows_of(folder / "attack.csv")] == ["cafe", "mean image", "zeros", "noise"]
    assert report["schedule"][0]["rank"] == 12
    assert set(report["seconds"]) == {"middle", "data", "labels"}
    said = capsys.readouterr().out
    assert "honest but curious" in said
    assert "CAFE recovered 12 of 12 records" in said
    assert "labels of 12 of 12 records: 100 % are right" in said
    parties = json.loads((folder / "parties.json").read_text())
    assert parties == report["parties"]
    blocks = [cli.datamodule.blocks(some) for some in (pictures, truth.values(), mean)]
    for row, recovered, true, trivial in zip(parties, *blocks, strict=True):
        assert (row["records"], row["recovered"]) == (12, 12)
        assert row["psnr"] == pytest.approx(float(psnr(recovered, true).mean()), abs=1e-4)
        assert row["psnr_of_mean_block"] == pytest.approx(float(psnr(trivial, true).mean()), abs=1e-4)


def test_a_table_is_recovered_in_its_own_units(run_folder, capsys):
    cli, folder = attacked(run_folder, *TABLE)
    assert {path.name for path in folder.glob("*.png")} == {"values.png", "rmse.png"}
    rows, data = rows_of(folder / "recovered.csv"), cli.datamodule
    names = data.attacked.feature_names
    assert [row["origin"] for row in rows] == list(data.attacked.ids)
    assert list(rows[0])[4:8] == [names[0], f"{names[0]} (recovered)", names[1], f"{names[1]} (recovered)"]
    own = data.scale.restore(data.attacked.values())
    for suffix in ("", " (recovered)"):
        table = torch.tensor([[float(row[name + suffix]) for name in names] for row in rows], dtype=torch.float64)
        torch.testing.assert_close(table, own, rtol=1e-3, atol=1e-3)
    assert float(rows_of(folder / "attack.csv")[0]["rmse"]) < 1e-3
    assert [row["attack"] for row in cli.result.rows] == ["cafe", "mean row"]
    assert "CAFE recovered 12 of 12 records: RMSE" in capsys.readouterr().out


def test_an_attack_on_one_round_records_one_and_says_that_order_is_unknown(run_folder, undrawn, capsys):
    _, folder = attacked(run_folder, *SMALL, "--method=dlg", "--steps=3")
    report = json.loads((folder / "report.json").read_text())
    assert report["schedule"][0]["rounds"] == 1
    assert report["figures"]["records"] == 4
    assert "label_accuracy" not in report["figures"]
    said = capsys.readouterr().out
    assert "dlg guessed 4 of 4 records of one round" in said
    assert "in no order" in said


def test_workers_of_horizontal_learning_are_attacked_one_by_one(run_folder, undrawn):
    """Each has its own kept step III: none may be taken for another's."""
    cli, folder = attacked(run_folder, *HORIZONTAL, "--workers=2", "--steps=30")
    report = json.loads((folder / "report.json").read_text())
    assert [fact["records"] for fact in report["schedule"]] == [6, 6]
    truth = cli.datamodule.attacked.values()
    with np.load(folder / "recovered.npz") as archive:
        found = torch.from_numpy(archive["pictures"])
    own, other = psnr(found, truth).mean(), psnr(found.roll(6, 0), truth).mean()
    assert own > other + 3


def test_records_that_a_log_of_batches_does_not_settle_are_told(run_folder, undrawn, tmp_path, capsys):
    rounds = [[n, (n + 1) % 5] for n in range(5)] + [[5, 6]] * 2
    (tmp_path / "log.json").write_text(json.dumps(rounds))
    _, folder = attacked(run_folder, *NETS, "--data.count=8", "--steps=3", f"--schedule={tmp_path / 'log.json'}")
    figures = json.loads((folder / "report.json").read_text())
    assert figures["figures"]["recovered"] == 5
    assert figures["schedule"][0] | {"condition": 0} == {
        **{"rounds": 7, "records": 8, "batch": [2], "rank": 6, "condition": 0, "told_apart": 5},
        **{"rounds_until_first": 5, "rounds_until_half": 5, "rounds_until_all": None},
    }
    assert figures["reasons"]["it is in no recorded round"] == 1
    said = capsys.readouterr().out
    assert "5 of 8 records are told apart" in said
    assert "1 of 8 records: it is in no recorded round" in said
    assert [row["psnr"] == "" for row in rows_of(folder / "records.csv")] == [False] * 5 + [True] * 3


def constant_table(path, records=40):
    """Write a table of three parties' two columns each, of which the first party's are constant, so that its net says the same of all records."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(records, 6))
    values[:, :2] = 3
    rows = ["a,b,c,d,e,f,label", *(",".join(map(str, [*row, n % 2])) for n, row in enumerate(values))]
    path.write_text("\n".join(rows))


def test_what_some_parties_give_up_is_written_where_no_record_is_whole(run_folder, tmp_path, capsys):
    constant_table(tmp_path / "table.csv")
    options = ["--data.source=table", f"--data.root={tmp_path / 'table.csv'}", "--data.count=12", "--data.batch_size=4", "--data.parties=3"]
    cli, folder = attacked(run_folder, *options, "--model.first=16")
    data = cli.datamodule
    first, *rest = rows_of(folder / "parties.csv")
    assert (first["party"], first["records"], first["recovered"], first["rmse"]) == ("0", "12", "0", "")
    for party, row in enumerate(rest, start=1):
        block = data.blocks(data.attacked.values())[party].double()
        assert (row["party"], row["recovered"]) == (str(party), "12")
        assert float(row["rmse"]) < 1e-3
        assert float(row["rmse_of_mean_block"]) == pytest.approx(float((block - block.mean(0)).square().mean().sqrt()), rel=1e-5)
    figures = json.loads((folder / "report.json").read_text())["figures"]
    assert (figures["recovered"], figures["recovered_in_part"], figures["rmse"], figures["rmse_max"]) == (0, 12, None, None)
    assert cli.result.rows[1]["rmse"] > 0.5
    table = rows_of(folder / "recovered.csv")
    assert {row["a (recovered)"] for row in table} == {""}
    truth = data.scale.restore(data.attacked.values())
    assert [float(row["c (recovered)"]) for row in table] == pytest.approx(truth[:, 2].tolist(), abs=1e-3)
    assert {path.name for path in folder.glob("*.png")} == {"values.png", "rmse.png"}
    said = capsys.readouterr().out
    assert "no record was recovered as a whole, but 12 in part: party 1 with RMSE " in said
    assert ", party 2 with RMSE " in said
    assert "party 0 with" not in said


def test_a_single_record_is_compared_with_the_mean_of_others(run_folder, undrawn):
    """Of a round of one record the mean would be the record itself."""
    options = [*NETS, "--data.count=12", "--data.batch_size=1", "--method=dlg", "--steps=2"]
    cli, folder = attacked(run_folder, *options)
    [row] = json.loads((folder / "records.json").read_text())
    values = cli.datamodule.attacked.values()
    true, mean = values[row["record"]][None], values.mean(0)[None]
    report = json.loads((folder / "report.json").read_text())
    assert report["baselines"]["mean image"]["psnr"] == pytest.approx(float(psnr(mean, true)), abs=1e-4)
    assert report["baselines"]["mean image"]["psnr"] < 30
    assert report["baselines"]["mean image"]["attack_performance"] == 0
    assert 0 <= report["figures"]["attack_performance"] <= 1


def an_outcome(count, scores=None):
    data = FederatedRecords(count=count, batch_size=2)
    data.setup()
    rows = torch.arange(count)
    view = Watched(None, rows)
    blocks = [block.clone() for block in data.blocks(data.attacked.values())]
    return judge([(view, Recovery(rows, blocks, scores, True))], data), data


def test_one_record_under_attack_is_compared_with_the_training_records():
    outcome, data = an_outcome(1)
    torch.testing.assert_close(outcome.mean, data.train_records.values().mean(0))
    report = outcome.report()
    assert (report["psnr"], report["attack_performance"]) == (100, 1)
    assert report["baseline_mean"] == pytest.approx(float(psnr(outcome.mean[None], outcome.truth)))


def test_baselines_are_of_all_records_under_attack_even_if_few_are_found():
    outcome, data = an_outcome(6)
    outcome.recovered[2:] = float("nan")
    mean = data.attacked.values().mean(0)[None]
    expected = float(psnr(mean.expand(2, -1, -1, -1), outcome.truth[:2]).mean())
    assert outcome.report()["baseline_mean"] == pytest.approx(expected)
    assert attacking.attack_rows(outcome, "cafe")[1]["psnr"] == pytest.approx(expected)


def test_quarters_of_pictures_are_told_where_no_picture_is_whole():
    outcome, data = an_outcome(6)
    outcome.recovered[:, :, :8, :8] = float("nan")
    outcome.recovered[1:, :, 8:] = float("nan")
    parties = outcome.parties()
    assert [(row["recovered"], row["psnr"]) for row in parties] == [(0, None), (6, 100), (1, 100), (1, 100)]
    mean = data.blocks(data.attacked.values().mean(0)[None])[2]
    assert parties[2]["psnr_of_mean_block"] == pytest.approx(float(psnr(mean, data.blocks(outcome.truth)[2][:1])))
    rows = attacking.attack_rows(outcome, "cafe")
    assert (rows[0]["psnr"], rows[0]["ssim"]) == (None, None)
    off = (outcome.truth - outcome.mean).double().square()
    left = off[:, :, :8, :8].sum() + off[1:, :, 8:].sum()
    assert rows[0]["attack_performance"] == pytest.approx(1 - float(left / off.sum()), abs=1e-5)
    [said] = verdict(Campaign(), outcome, rows)
    assert said.startswith("no record was recovered as a whole, but 6 in part: party 1 with 100 dB (its mean block: ")
    figure = draw_recovered(outcome.truth, outcome.recovered, outcome.errors(), outcome.places, outcome.reasons)
    assert [axis.get_title() for axis in figure.axes] == [f"record {place}: not recovered" for place in range(6)]


def test_labels_that_no_round_tells_are_none():
    scores = torch.eye(10)[torch.arange(6)]
    scores[[1, 4]] = float("nan")
    outcome, _ = an_outcome(6, scores)
    assert [row["label_found"] for row in outcome.rows()] == [0, None, 2, 3, None, 5]
    rows = attacking.attack_rows(outcome, "cafe")
    assert verdict(Campaign(), outcome, rows)[-1].startswith("labels of 4 of 6 records: ")
    right = (outcome.labels == torch.arange(6))[[0, 2, 3, 5]].double().mean()
    assert rows[0]["label_accuracy"] == float(right)


# ---- which model is attacked


def test_a_trained_model_is_attacked_as_its_checkpoint_has_it(run_folder, undrawn, capsys):
    main(["fit", *NETS, "--run=fitted", "--trainer.max_steps=2", "--trainer.enable_progress_bar=false"])
    cli = main(["attack", "--run=fitted", "--state=last", "--data.count=12", "--data.batch_size=4", "--steps=2"])
    saved = torch.load(run_folder / "cafe" / "fitted" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[name], value) for name, value in cli.model.state_dict().items())
    assert "(checkpoint last of this run)" in capsys.readouterr().out
    message = fails(["attack", "--run=fitted", "--state=last", "--model.first=8"], capsys)
    assert "does not fit the model" in message
    assert "no best checkpoint: fit keeps the last one, so take --state last" in fails(["attack", "--run=fitted", "--state=best"], capsys)
    main(["predict", "--run=fitted"])
    rows = rows_of(run_folder / "cafe" / "fitted" / "artefacts" / "predict" / "predictions.csv")
    assert len(rows) == len(cli.datamodule.test_records)
    assert [int(row["record"]) for row in rows] == list(range(len(rows)))
    assert [row["label"] for row in rows] == [str(label) for label in cli.datamodule.test_records.labels.tolist()]
    assert all(float(row["probability"]) == max(float(row[f"p({name})"]) for name in range(10)) for row in rows)
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert f"{right} of {len(rows)} test records" in capsys.readouterr().out


# ---- going on


def test_an_attack_that_was_stopped_goes_on(run_folder, undrawn, capsys, monkeypatch):
    options, made, real = [*SMALL, "--steps=5"], [], recovery.invert

    def invert(*given):
        made.append(given)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(recovery, "invert", invert)
    assert "--resume --run stopped" in fails(["attack", *options, "--run=stopped"], capsys, 130)
    folder = run_folder / "cafe" / "stopped" / "artefacts" / "attack"
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["1-party-0.npz"]
    main(["attack", *options, "--run=stopped", "--resume"])
    assert len(made) == 2 + 3
    assert "(party-0): kept by an attack that was interrupted" in capsys.readouterr().out
    assert not (folder / "kept").exists()
    _, whole = attacked(run_folder, *options, name="whole")
    with np.load(folder / "recovered.npz") as one, np.load(whole / "recovered.npz") as other:
        assert np.array_equal(one["pictures"], other["pictures"])


def test_what_is_kept_is_made_once(tmp_path, capsys):
    for _ in range(2):
        keeper = Keeper(tmp_path)
        found = [keeper("party-0", lambda value=value: {"blocks": torch.tensor(value)})["blocks"] for value in (1.0, 2.0)]
        assert [float(value) for value in found] == [1.0, 2.0]
    assert float(Keeper(tmp_path)("party-0", lambda: {"blocks": torch.tensor(3.0)})["blocks"]) == 1.0
    assert capsys.readouterr().out.count("kept by an attack") == 3


def test_what_is_kept_is_of_one_model_alone(tmp_path):
    """Weights of two models can be the same where what they do differs."""
    data = FederatedRecords(count=4, batch_size=2)
    data.setup()
    net = tmp_path / "net.py"
    layers = "nn.Flatten(), nn.Linear(64, 8), nn.{}(), nn.Linear(8, 10)"
    code = "import torch\nfrom torch import nn\n\ndef build(shape, seed):\n    torch.manual_seed(seed)\n    return nn.Sequential(" + layers + ")\n"

    def mark(activation="ReLU", comment="", **options):
        net.write_text(code.format(activation) + comment)
        model = FederatedClassifier([list(shape) for shape in data.shapes], data.classes, **{"bottom": f"{net}:build", "first": 8} | options)
        return weights_digest(model), attacking._fingerprint(model, data, Campaign())

    foreign = [mark(), mark("Tanh"), mark(comment="# another\n"), mark(reference_loss=True)]
    own = [mark(bottom=None, widths=[2, 2]), mark(bottom=None, widths=[2, 2], rectified=False)]
    for marks in (foreign, own):
        assert len({weights for weights, _ in marks}) == 1
        assert len({kept for _, kept in marks}) == len(marks)
    assert mark() == foreign[0]


# ---- settings


WATCH = {"schedule": "uniform", "rounds": None}
CAFE = {"solver": "closed_form", "data": "representation", "steps": None, "lr": None}


def test_the_representation_takes_the_usual_settings():
    data = FederatedRecords(seed=3, batch_size=7)
    campaign = settings(data, "cafe", WATCH, CAFE)
    assert campaign.cafe == Cafe(seed=3)
    assert (campaign.watch.batch, campaign.watch.seed, campaign.seed, campaign.watch.rounds) == (7, 3, 3, None)
    assert settings(data, "cafe", WATCH, CAFE | {"steps": 9, "lr": 0.1}).cafe == Cafe(steps=9, lr=0.1, seed=3)


@pytest.mark.parametrize("solver", ["closed_form", "sgd_adam_nested", "sgd_adam_single"])
def test_the_reference_takes_its_own_settings(solver):
    cafe = settings(FederatedRecords(size=28), "cafe", WATCH, CAFE | {"data": "reference", "solver": solver}).cafe
    assert (cafe.weights, cafe.lr, cafe.steps) == (REFERENCE.weights, 0.01, 20000)
    assert cafe.parity == (solver != "closed_form")
    assert settings(FederatedRecords(), "cafe", WATCH, CAFE | {"data": "reference", "steps": 5}).cafe.steps == 5


@pytest.mark.parametrize(
    ("options", "xi", "lr"),
    [
        ({"size": 16}, 25 * 64 / 196, 0.01),
        ({"parties": 1, "split": "rows", "size": 28}, 100, 0.01),
        ({"source": "patches", "size": 32}, 25 * 3 * 256 / 196, 0.02),
        ({"source": "breast_cancer"}, 25, 0.01),
    ],
    ids=["small", "whole", "colour", "table"],
)
def test_the_reference_goes_by_the_size_of_blocks_and_by_colour(options, xi, lr):
    data = FederatedRecords(**options)
    cafe = settings(data, "cafe", WATCH, CAFE | {"data": "reference"}).cafe
    assert (cafe.weights.xi, cafe.lr) == (pytest.approx(xi), lr)
    assert (cafe.weights.alpha, cafe.weights.beta, cafe.weights.gamma) == (1e-2, 1e-4, 1e-3)
    assert settings(data, "cafe", WATCH, CAFE | {"data": "reference", "lr": 0.3}).cafe.lr == 0.3


def test_one_round_is_enough_for_methods_that_take_one():
    data = FederatedRecords()
    assert settings(data, "dlg", WATCH, CAFE | {"steps": 4}, 2).watch.rounds == 1
    assert settings(data, "aligned", WATCH, CAFE).watch.rounds is None
    assert (settings(data, "dlg", WATCH, CAFE | {"steps": 4}, 2).steps, settings(data, "cafe", WATCH, CAFE | {"steps": 4}).steps) == (4, None)


@pytest.mark.parametrize(
    ("method", "changed", "restarts", "message"),
    [
        ("dlg", {"data": "reference"}, 1, "--inversion is for the method cafe, not for dlg"),
        ("aligned", {"solver": "sgd_adam_single", "lr": 0.1}, 1, "--solver, --step_size is for the method cafe, not for aligned"),
        ("cafe", {}, 2, "--restarts is for methods on one round, not for cafe"),
        ("dlg", {}, 0, "at least 1, got 0"),
        ("cafe", {"steps": 0}, 1, "at least 1"),
        ("prayer", {}, 1, "unknown attack 'prayer'"),
    ],
)
def test_options_of_another_method_are_refused(method, changed, restarts, message):
    with pytest.raises(ValueError, match=message):
        settings(FederatedRecords(), method, WATCH, CAFE | changed, restarts)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"rounds": 1}, "^--rounds is for methods over rounds, not for dlg: leave it out"),
        ({"lr": 1e-3, "window": 5}, "^--window, --lr is for methods over rounds, not for dlg"),
    ],
    ids=["rounds", "window and lr"],
)
def test_options_of_many_rounds_are_refused_for_one_round(changed, message):
    with pytest.raises(ValueError, match=message):
        settings(FederatedRecords(), "dlg", WATCH | changed, CAFE)
    assert settings(FederatedRecords(), "aligned", WATCH | changed, CAFE).watch.rounds == changed.get("rounds")
    assert settings(FederatedRecords(), "dlg", {**WATCH, "schedule": "epochs", "lr": 0.0, "window": None}, CAFE).watch.schedule == "epochs"


@pytest.mark.parametrize(
    ("changed", "adaptive", "message"),
    [
        ({"window": 3}, False, "^--window is not for the single loop"),
        ({"workers": 2}, False, "^--workers is not for the single loop"),
        ({}, True, "^--adaptive is not for the single loop"),
    ],
    ids=["window", "workers", "adaptive"],
)
def test_what_the_single_loop_has_not_is_refused_before_any_work(changed, adaptive, message):
    data, single = FederatedRecords(parties=1, split="rows"), CAFE | {"solver": "sgd_adam_single", "data": "reference"}
    with pytest.raises(ValueError, match=message):
        settings(data, "cafe", WATCH | changed, single, adaptive=adaptive)
    assert not hasattr(data, "attacked")
    settings(data, "cafe", WATCH | changed, single | {"solver": "closed_form"}, adaptive=adaptive)


def test_facts_of_a_malicious_schedule_are_those_of_few_rounds():
    ring = torch.eye(5, dtype=torch.bool) | torch.eye(5, dtype=torch.bool).roll(1, 0)
    facts = schedule_facts(ring)
    assert (facts["rank"], facts["rounds_until_first"], facts["rounds_until_all"], facts["told_apart"]) == (5, 5, 5, 5)
    assert facts["condition"] == pytest.approx(float(torch.linalg.cond(ring.double())))
    assert schedule_facts(ring[:4])["condition"] is None


def test_percentages_say_all_only_of_all():
    assert [percent(part) for part in (1, 0.9999, 0.925, 0)] == ["100 %", "99.9 %", "92.5 %", "0 %"]


# ---- what can go wrong


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--rounds=7"], 1, "rank 7 of 12"),
        (["--state=prayer"], 1, "no state 'prayer': give start, best, last, or a checkpoint's file"),
        (["--state=last"], 1, "has no last checkpoint: run fit first, or take --state start"),
        (["--schedule=prayer"], 1, "no schedule 'prayer'"),
        (["--method=prayer"], 2, "method"),
        (["--adaptive"], 1, "leave --adaptive out"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_left(run_folder, capsys, options, code, message):
    assert message in fails(["attack", "--run=bad", *SMALL, *options], capsys, code)
    assert not (run_folder / "cafe" / "bad").exists()


def test_a_damaged_checkpoint_is_named(run_folder, tmp_path, capsys):
    (tmp_path / "bad.ckpt").write_bytes(b"PK damaged")
    assert "bad.ckpt is damaged or no checkpoint" in fails(["attack", "--run=bad", *SMALL, f"--state={tmp_path / 'bad.ckpt'}"], capsys)


def test_nothing_of_any_record_is_told_with_the_reasons(run_folder, capsys, monkeypatch):
    judge = attacking.judge

    def nothing(*given):
        outcome = judge(*given)
        outcome.recovered[:] = float("nan")
        outcome.reasons.update(dict.fromkeys(range(12), "party 1: v_n is zero"))
        return outcome

    monkeypatch.setattr(attacking, "judge", nothing)
    message = fails(["attack", "--run=bad", *SMALL, "--steps=1"], capsys)
    assert "nothing was recovered of any record" in message
    assert "12 of 12 records: v_n is zero" in message
