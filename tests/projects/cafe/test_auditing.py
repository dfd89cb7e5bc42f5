"""That an audit says which records leak, after how many rounds, and why the others do not."""

import json
import textwrap

import pytest
import torch

from projects.cafe.auditing import EXIT_CODES, Deployment, decided_by, judge_records
from projects.cafe.cli import main
from projects.cafe.data import FederatedRecords
from projects.cafe.defences import GaussianNoise
from projects.cafe.federation import observe
from projects.cafe.leaks import schedule_leaks
from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import Protection
from projects.cafe.rows import Alone
from projects.cafe.schedules import malicious, uniform
from projects.cafe.trials import MOVING, MOVING_UNDONE, STANDING, UNDEFENDED, UNDONE, Effort, Trial, record_rounds
from shared.vertical.worlds import tumours

QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
SMALL = ["--data.count", "24", "--data.batch_size", "4", "--steps", "40", "--sample", "3", "--model.widths", "[16]", "--model.first", "16"]
TABLE = ["--data.source", "breast_cancer", "--data.count", "24", "--data.batch_size", "4", "--data.parties", "2", "--model.first", "16"]
NET = """
    from torch import nn
    from torch.nn import functional as F

    class Net(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.first, self.second = nn.Linear(width, 12), nn.Linear(12, 3)

        def forward(self, x):
            return self.second(F.dropout(F.relu(self.first(x)), 0.5, self.training))

    def net(shape):
        return Net(*shape)
"""


def audit(run_folder, *options):
    """The command line after an audit, and what it wrote."""
    cli = main(["audit", *options, *QUIET, "--run", "one"])
    return cli, json.loads((run_folder / "cafe" / "one" / "artefacts" / "audit" / "audit.json").read_text())


def table(report, trial):
    return next(row for row in report["trials"] if row["trial"] == trial)


def test_a_model_that_hardly_moves_leaks_all_records(run_folder, capsys):
    cli, report = audit(run_folder, *SMALL, "--lr", "1e-7", "--schedule", "malicious")
    rows = cli.result.rows
    assert (cli.exit_code, cli.result.verdict, report["verdict"]) == (3, "leaks", "leaks")
    assert [row["verdict"] for row in rows] == ["leaks"] * 24
    assert [row["settled_after_round"] for row in rows] == schedule_leaks(malicious(24, 4)).after.tolist()
    assert sum(row["psnr, moving"] is not None for row in rows) == 3
    assert table(report, "moving")["leaked"] == 3
    assert table(report, "moving")["psnr"] > table(report, "moving")["mean_record"] + 3
    assert [row["d1_per_entry"] for row in report["parties"]] == [4.0] * 4
    assert all(row["h_error"] < 1e-4 for row in report["parties"])
    said = capsys.readouterr().out
    assert "LEAKS (exit code 3)" in said
    assert "1. against CAFE, fewer than 5 rounds of the same records, which settle none" in said
    assert "does not use" in said
    folder = run_folder / "cafe" / "one" / "artefacts" / "audit"
    assert {file.name for file in folder.iterdir()} >= {"audit.json", "records.csv", "parties.csv", "trials.csv", "leaks.png"}


def test_a_model_that_trains_fast_holds_cafe_off_but_not_what_single_rounds_give_away(run_folder):
    cli, report = audit(run_folder, *SMALL, "--lr", "1e-2", "--rounds", "60")
    still, moving, last = (table(report, name) for name in ("standing still", "moving", "moving, last rounds"))
    assert (cli.exit_code, cli.result.verdict) == (3, "leaks")
    alone = [row["alone_in_round"] for row in cli.result.rows]
    assert [row["verdict"] for row in cli.result.rows] == ["leaks" if number else "undecided" for number in alone]
    assert still["leaked"] > 0 == moving["leaked"] == last["leaked"]
    assert still["psnr"] > still["mean_record"] + 3 > still["mean_record"] > max(moving["psnr"], last["psnr"])
    assert still["h_error"] < 1e-4 < 0.1 < moving["h_error"]
    assert last["rounds"] < 60
    assert f"a single round: h of {sum(map(bool, alone))} of 24 records stands alone" in cli.result.decided_by


def test_too_few_rounds_settle_no_record(run_folder):
    cli, report = audit(run_folder, *TABLE, "--rounds", "20", "--data.batch_size", "20")
    assert (cli.exit_code, cli.result.verdict, report["trials"]) == (0, "no leak", [])
    assert "20 rounds of rank 20 settle none of the 24 records" in cli.result.decided_by
    assert {row["settled_after_round"] for row in cli.result.rows} == {None}


def test_the_users_own_net_and_log_of_a_table_leak_but_for_the_records_that_the_log_hides(run_folder, tmp_path):
    (tmp_path / "nets.py").write_text(textwrap.dedent(NET))
    schedule = torch.cat([malicious(22, 4), torch.zeros(22, 2, dtype=torch.bool)], dim=1)  # 23 is in no round
    schedule = torch.cat([schedule, schedule[:1]])
    schedule[-1, 22] = True
    schedule[:, 22] |= schedule[:, 21]  # 22 is with 21, but for the last round
    log = "\n".join(",".join(map(str, row.nonzero().flatten().tolist())) for row in schedule[:-1])
    (tmp_path / "log.csv").write_text(log)
    options = ["--model.bottom", f"{tmp_path / 'nets.py'}:net", "--schedule", str(tmp_path / "log.csv"), "--lr", "0"]
    cli, report = audit(run_folder, *TABLE, *options)
    rows = cli.result.rows
    assert cli.exit_code == 3
    assert [row["verdict"] for row in rows[:21]] == ["leaks"] * 21
    assert [row["verdict"] for row in rows[21:]] == ["leaks" if row["alone_in_round"] else "no leak" for row in rows[21:]]
    assert rows[23]["verdict"] == "no leak"
    assert rows[21]["reason"] == "it is always in one batch with record 22"
    assert rows[23]["reason"] == "it is in no round"
    assert report["trials"][0]["rmse"] < 1e-4 < report["trials"][0]["mean_record"]
    assert all(row["h_is_record"] and row["d2"] == 12 for row in report["parties"])


def test_private_gradients_are_tried_beside_none_and_their_promise_is_given(run_folder, capsys):
    cli, report = audit(run_folder, *TABLE, "--lr", "0", "--model.defence", "private:clip=1,noise_multiplier=50")
    assert (cli.exit_code, [row["trial"] for row in report["trials"]]) == (4, ["standing still, without defence", "standing still"])
    assert [row["leaked"] > 0 for row in report["trials"]] == [True, False]
    assert "the defence" in cli.result.decided_by
    most = max(row["rounds"] for row in cli.result.rows)
    assert (report["guarantee"]["rounds"], report["guarantee"]["uploads"]) == (most, 2)
    assert report["guarantee"]["mu"] == pytest.approx((2 * most) ** 0.5 / 50)
    assert f"epsilon {report['guarantee']['epsilon']:.3g}" in capsys.readouterr().out


@pytest.mark.parametrize("defence", [None, GaussianNoise(1e-3)], ids=["none", "noise"])
def test_rounds_of_a_model_that_moves_are_those_of_the_simulator(defence):
    data = FederatedRecords(source="breast_cancer", count=12, parties=2)
    model = FederatedClassifier([list(shape) for shape in data.shapes], data.classes, first=8)
    before = [parameter.clone() for parameter in model.federation.parameters()]
    schedule = uniform(12, 3, 9, 0)
    view = record_rounds(model.federation, data, schedule, 1e-2, Protection("noise", defence))
    assert all(map(torch.equal, before, model.federation.parameters()))
    optimiser = torch.optim.Adam(model.federation.parameters(), lr=1e-2, eps=1e-7)
    expected = observe(model.federation, data.blocks(data.attacked.values()), data.attacked.labels, schedule, optimiser, defence)
    for party in range(2):
        torch.testing.assert_close(view.weight_gradients(party), expected.weight_gradients(party))
        torch.testing.assert_close(view.bias_gradients(party), expected.bias_gradients(party))
    for mine, theirs in zip(view.federation().parameters(), expected.federation().parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_verdicts_of_records_are_of_the_deployment_as_it_is():
    def trial(name, found, leaked):
        return Trial({"trial": name}, [], torch.full((3,), torch.nan), torch.tensor(found), torch.tensor(leaked), {})

    leaks = schedule_leaks(torch.eye(3, dtype=torch.bool))
    still, moving = trial("standing still", [True, True, False], [True, True, False]), trial("moving", [True] * 3, [True, False, False])
    none = Alone(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool))
    assert judge_records(leaks, [still, moving], none) == ["leaks", "undecided", "undecided"]
    assert judge_records(leaks, [still], none) == ["leaks", "leaks", "no leak"]
    assert judge_records(leaks, [trial("standing still, without defence", [True] * 3, [True] * 3), still], none) == ["leaks", "leaks", "undecided"]
    assert judge_records(leaks, [], none) == ["no leak"] * 3
    alone = Alone(torch.tensor([0, 4, 2]), torch.tensor([False, False, True]))
    assert judge_records(leaks, [], alone) == ["no leak", "undecided", "leaks"]
    assert judge_records(leaks, [moving], alone) == ["leaks", "leaks", "leaks"]
    assert set(EXIT_CODES.values()).isdisjoint({1, 2})


def test_fake_gradients_count_with_all_attackers_that_know_of_them_or_not():
    """Whoever does not undo them takes what a table gives away all the same; and where only motion holds both off, the defence does not decide."""

    def trial(name, *leaked):
        row, found = {"trial": name, "leaked": sum(leaked), "sampled": 2}, torch.ones(2, dtype=torch.bool)
        return Trial(row, [], torch.zeros(2), found, torch.tensor(leaked), {})

    leaks = schedule_leaks(torch.eye(2, dtype=torch.bool))
    none = Alone(torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.bool))
    without, still, undone = trial(UNDEFENDED, True, True), trial(STANDING, True, False), trial(UNDONE, False, True)
    assert judge_records(leaks, [without, still, undone], none) == ["leaks", "leaks"]
    held = [without, trial(STANDING, False, False), undone, trial(MOVING, False, False), trial(MOVING_UNDONE, False, False)]
    assert judge_records(leaks, held, none) == ["undecided", "undecided"]
    assert decided_by("undecided", leaks, held, none) == f"the motion of the model: {UNDONE}, 1 of 2 sampled records leak"


def test_fake_gradients_are_undone_while_the_model_moves_too(run_folder):
    cli, report = audit(run_folder, *TABLE, "--model.defence", "fake", "--lr", "1e-7", "--rounds", "60")
    trials = [row["trial"] for row in report["trials"]]
    assert trials == [UNDEFENDED, STANDING, UNDONE, MOVING, f"{MOVING}, last rounds", MOVING_UNDONE, f"{MOVING_UNDONE}, last rounds"]
    for still, moving in ((STANDING, MOVING), (UNDONE, MOVING_UNDONE)):  # it hardly moves
        assert table(report, moving)["rmse"] == pytest.approx(table(report, still)["rmse"], rel=0.02)
    records = cli.datamodule.attacked
    assert [row["origin"] for row in cli.result.rows] == list(records.ids)
    expected = tumours().take(torch.tensor([*map(int, records.ids)])).features
    torch.testing.assert_close(cli.datamodule.scale.restore(records.features), expected)


def test_numbers_out_of_range_are_named():
    with pytest.raises(ValueError, match=r"lr must be 0 .* or more, got -1"):
        Deployment(lr=-1)
    with pytest.raises(ValueError, match="steps and sample must be at least 1, got 0 and 40"):
        Effort(steps=0)
