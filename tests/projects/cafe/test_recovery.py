"""CAFE from what is watched to an outcome, on few digits: recovery.py, watching.py, judging.py and campaign.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from projects.cafe.campaign import METHODS, Campaign
from projects.cafe.data import FederatedRecords
from projects.cafe.inversion import Weights
from projects.cafe.judging import judge
from projects.cafe.middle import batch_gradients, recover_middle
from projects.cafe.module import FederatedClassifier
from projects.cafe.protection import Protection
from projects.cafe.recovery import Cafe, h_is_record, recover, recover_labels
from projects.cafe.watching import FIRST, Watch, watch

COUNT, BATCH = 16, 4
SMALL = {"widths": [16, 32], "first": 24, "rectified": False}


def made(model=None, **data):
    records = FederatedRecords(count=data.pop("count", COUNT), batch_size=BATCH, **data)
    records.setup()
    module = FederatedClassifier([list(shape) for shape in records.shapes], records.classes, **(SMALL | (model or {})))
    return module, records


@pytest.fixture(scope="module")
def digits():
    return made()


WATCH = Watch(batch=BATCH)


def seen(digits, how=WATCH, names=FIRST, defence="none"):
    module, data = digits
    return watch(module.federation, data.attacked, data.blocks, how, Protection.parse(defence), names)


def true_h(digits):
    module, data = digits
    with torch.no_grad():
        return [bottom.middle(block)[0] for bottom, block in zip(module.federation.bottoms, data.blocks(data.attacked.values()), strict=True)]


def test_the_middle_is_exact_and_the_pictures_are_nearer_than_their_mean(digits):
    [watched] = seen(digits)
    recovery = recover(watched.view, Cafe(steps=60))
    for middle, truth in zip(recovery.middle, true_h(digits), strict=True):
        assert (middle.inputs - truth).norm() < 1e-5 * truth.norm()
    outcome = judge([(watched, recovery)], digits[1])
    report = outcome.report()
    assert report["recovered"] == report["records"] == COUNT
    assert report["psnr"] > report["baseline_mean"] + 1
    assert report["label_accuracy"] == 1.0
    assert 0 < report["attack_performance"] < 1


def test_labels_follow_from_the_gradient_of_the_servers_bias(digits):
    module, data = digits
    [watched] = seen(digits)
    found = recover_labels(watched.view)
    blocks = data.blocks(data.attacked.values())
    with torch.no_grad():
        expected = module.federation(blocks).softmax(1) - torch.nn.functional.one_hot(data.attacked.labels, 10)
    torch.testing.assert_close(-found * BATCH, expected.double(), rtol=1e-4, atol=1e-5)


def test_known_labels_are_not_recovered_again(digits):
    [watched] = seen(digits, replace(WATCH, known_labels=True))
    recovery = recover(watched.view, Cafe(steps=1))
    assert recovery.labels is None
    assert "label_accuracy" not in judge([(watched, recovery)], digits[1]).report()


def test_too_few_rounds_are_refused_with_the_rank(digits):
    [watched] = seen(digits, replace(WATCH, rounds=COUNT // 2))
    with pytest.raises(ValueError, match=f"none of the {COUNT} records is recoverable: the recorded rounds have rank 8 of {COUNT}.*at least 8 more"):
        recover(watched.view)


def test_a_record_without_gradient_is_left_out_and_the_others_stay_exact(digits):
    truth = true_h(digits)[0]
    [watched] = seen(digits)
    silent = recover(watched.view, Cafe(steps=1)).middle[0].outputs.clone()
    silent[3] = 0
    bias, weight = batch_gradients(truth.double(), silent, watched.view.schedule)
    [middle] = recover_middle([bias.float()], [weight.float()], watched.view.schedule, partial=True)
    assert middle.inputs[3].isnan().all()
    rest = torch.arange(COUNT) != 3
    assert (middle.inputs[rest] - truth[rest]).norm() < 1e-4 * truth[rest].norm()


def test_finished_parties_are_kept_and_read_again(digits):
    [watched] = seen(digits)
    made, store = [], {}

    def keep(name, make):
        if name not in store:
            made.append(name)
            store[name] = make()
        return store[name]

    first = recover(watched.view, Cafe(steps=5), keep)
    again = recover(watched.view, Cafe(steps=5), keep)
    assert made == ["party-0", "party-1", "party-2", "party-3"]
    assert all(torch.equal(one, other) for one, other in zip(first.blocks, again.blocks, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(first.blocks, recover(watched.view, Cafe(steps=5)).blocks, strict=True))


def test_step_three_of_the_reference_takes_the_middle_of_the_closed_form(digits):
    [watched] = seen(digits, names=None)
    reports = [
        judge([(watched, recover(watched.view, Cafe(data="reference", steps=steps, lr=0.05, weights=Weights())))], digits[1]).report()
        for steps in (1, 80)
    ]
    assert reports[1]["psnr"] > reports[0]["psnr"] + 1


def test_a_table_is_recovered_exactly_without_step_three():
    table = made(source="breast_cancer", model={"outputs": 10})
    assert all(h_is_record(bottom) for bottom in table[0].federation.bottoms)
    report = Campaign(watch=WATCH).run(table[0].federation, table[1]).report()
    assert report["rmse"] < 1e-3 < report["baseline_mean"]


def test_workers_of_horizontal_learning_are_attacked_one_by_one():
    module, data = made(parties=1, split="rows", model={"first": 32})
    watched = watch(module.federation, data.attacked, data.blocks, Watch(batch=3, workers=2))
    assert [one.places.tolist() for one in watched] == [list(range(8)), list(range(8, 16))]
    outcome = judge([(one, recover(one.view, Cafe(steps=40))) for one in watched], data)
    report = outcome.report()
    assert outcome.places.tolist() == list(range(COUNT))
    assert report["recovered"] == COUNT
    assert report["label_accuracy"] == 1.0


def test_a_secure_sum_of_fixed_batches_settles_no_record():
    module, data = made(parties=1, split="rows")
    [watched] = watch(module.federation, data.attacked, data.blocks, Watch(batch=3, workers=2, secure_sum=True))
    with pytest.raises(ValueError, match=f"rank {COUNT - 1} of {COUNT}"):
        recover(watched.view)


def test_a_model_that_moves_is_recorded_round_by_round_and_the_given_one_stays(digits):
    module = digits[0]
    before = [parameter.clone() for parameter in module.federation.parameters()]
    watch = replace(WATCH, lr=1e-3, rounds=30, window=20)
    [watched], [last] = seen(digits, watch, names=None), seen(digits, watch)
    assert len(watched.view.bottoms) == len(watched.view.schedule) == 20
    assert len(last.view.bottoms) == 1
    for one, other in zip(watched.view.federation().parameters(), last.view.federation().parameters(), strict=True):
        assert torch.equal(one, other)
    moved = list(watched.view.federation().parameters())
    assert not all(torch.equal(one, other) for one, other in zip(before, moved, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(before, module.federation.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds must be at least 1"),
        ({"lr": -1.0}, "learning rate while recording must be 0"),
        ({"secure_sum": True}, "a secure sum is of the workers"),
    ],
    ids=["rounds", "lr", "sum"],
)
def test_a_watch_refuses_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        Watch(**options)


def test_workers_need_whole_records(digits):
    with pytest.raises(ValueError, match=r"not 4 blocks each: set data.parties=1"):
        seen(digits, replace(WATCH, workers=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "lbfgs"}, "solver is one of closed_form"),
        ({"steps": 0}, "must be at least 1"),
        ({"weights": Weights(gamma=0)}, "needs gamma above 0"),
    ],
    ids=["solver", "steps", "gamma"],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Cafe(**options)


def test_rivals_are_compared_with_the_records_of_their_round_in_the_best_order(digits):
    module, data = digits
    outcome = Campaign("dlg", WATCH, steps=3).run(module.federation, data)
    [watched] = seen(digits, replace(WATCH, rounds=1))
    assert sorted(outcome.places.tolist()) == watched.view.schedule[0].nonzero().flatten().tolist()
    costs = (outcome.recovered[:, None] - outcome.truth[None]).square().flatten(2).sum(2).numpy()
    from scipy.optimize import linear_sum_assignment

    assert np.isclose(costs[linear_sum_assignment(costs)].sum(), costs.trace())


def test_the_ablation_finds_all_records_in_their_order(digits):
    outcome = Campaign("aligned", WATCH, steps=4).run(digits[0].federation, digits[1])
    assert outcome.places.tolist() == list(range(COUNT))
    assert outcome.report()["recovered"] == COUNT


@pytest.mark.slow
def test_an_attacker_who_knows_of_fake_gradients_does_better(digits):
    fake = Protection.parse("fake")
    naive, adaptive = (
        Campaign(watch=WATCH, cafe=Cafe(steps=40), adaptive=adaptive).run(digits[0].federation, digits[1], fake) for adaptive in (0, 1)
    )
    assert adaptive.report()["mse"] < naive.report()["mse"]


def test_the_adaptive_attacker_is_for_fake_gradients(digits):
    with pytest.raises(ValueError, match="undoes fake gradients, not the defence 'none'"):
        Campaign(watch=WATCH, adaptive=True).run(digits[0].federation, digits[1])


def test_attacks_have_known_names():
    assert set(METHODS) >= {"cafe", "aligned", "dlg", "idlg", "inverting_gradients", "sapag", "batch_norm", "group"}
    with pytest.raises(ValueError, match="unknown attack 'caffe': choose one of cafe"):
        Campaign("caffe")


def test_what_was_not_recovered_counts_as_the_mean_record(digits):
    data = digits[1]
    [watched] = seen(digits)
    recovery = recover(watched.view, Cafe(steps=80))
    recovery.blocks[0][:8] = torch.nan
    outcome = judge([(watched, recovery)], data)
    report = outcome.report()
    assert report["recovered"] == 8
    assert outcome.errors().isnan().sum() == 8
    truth, mean = outcome.truth.double(), outcome.truth.double().mean(0)
    missed = (truth - torch.where(outcome.recovered.isfinite(), outcome.recovered.double(), mean)).square().sum()
    assert report["attack_performance"] > 0.2
    assert report["attack_performance"] == pytest.approx(1 - float(missed / (truth - mean).square().sum()), abs=1e-5)
    rows = outcome.rows()
    assert rows[0]["psnr"] is None
    assert rows[8]["psnr"] == pytest.approx(float(outcome.errors()[8]), abs=1e-3)


def test_a_single_record_of_a_round_is_judged_by_the_mean_of_all_under_attack(digits):
    module, data = made(count=6)
    report = Campaign("dlg", replace(WATCH, batch=1), steps=2).run(module.federation, data).report()
    assert report["records"] == 1
    assert 5 < report["baseline_mean"] < 30


def test_a_worker_who_gives_nothing_away_does_not_hide_the_others():
    module, data = made(count=7, parties=1, split="rows")
    campaign = Campaign(watch=Watch(batch=3, workers=2), cafe=Cafe(steps=3))
    outcome = campaign.run(module.federation, data)
    assert outcome.found.tolist() == [True] * 4 + [False] * 3
    assert "batches must differ more" in outcome.reasons[6]
    with pytest.raises(ValueError, match="for vertical learning"):
        replace(campaign, adaptive=True)


def test_records_recovered_in_part_count_by_that_part(digits):
    data = digits[1]
    [watched] = seen(digits)
    recovery = recover(watched.view, Cafe(steps=1))
    for block, true in zip(recovery.blocks, data.blocks(data.attacked.values()), strict=True):
        block.copy_(true)
    recovery.blocks[0][:] = torch.nan
    outcome = judge([(watched, recovery)], data)
    off = (outcome.truth - outcome.truth.mean(0)).double().square()
    assert outcome.report()["recovered"] == 0
    expected = 1 - float(off[..., :8, :8].sum() / off.sum())
    assert 0.5 < outcome.report()["attack_performance"] == pytest.approx(expected, abs=1e-5)
