"""The single loop over rounds as they are played: online.py."""

import json
from dataclasses import replace

import pytest
import torch

from projects.cafe.campaign import Campaign
from projects.cafe.closed import solve_outputs
from projects.cafe.data import FederatedRecords
from projects.cafe.federation import observe
from projects.cafe.inversion import Weights
from projects.cafe.module import FederatedClassifier
from projects.cafe.online import SingleLoop, follow
from projects.cafe.recovery import REFERENCE, recover
from projects.cafe.schedules import uniform
from projects.cafe.watching import Watch

COUNT, BATCH = 10, 3
CAFE = replace(REFERENCE, lr_outputs=None, steps=30)
QUICK = replace(CAFE, weights=Weights(alpha=0))  # nothing of step III goes back into steps I and II
WATCH = Watch(batch=BATCH)


@pytest.fixture(scope="module")
def digits():
    data = FederatedRecords(count=COUNT, batch_size=BATCH)
    data.setup()
    module = FederatedClassifier([list(shape) for shape in data.shapes], data.classes, widths=[4, 8], first=12, rectified=False)
    return module.federation, data


def followed(digits, cafe=CAFE, watch=WATCH, keep=lambda name, make: make()):
    federation, data = digits
    return follow(federation, data.attacked, data.blocks, watch, cafe, keep=keep)


def test_each_round_takes_the_three_steps_under_the_model_of_that_round(digits):
    federation, data = digits
    watch = replace(WATCH, lr=1e-3)
    _, found = followed(digits, watch=watch)
    schedule, blocks = uniform(COUNT, BATCH, CAFE.steps, 0), data.blocks(data.attacked.values())
    trained = FederatedClassifier([list(shape) for shape in data.shapes], data.classes, widths=[4, 8], first=12, rectified=False).federation
    optimiser = torch.optim.Adam(trained.parameters(), lr=1e-3, eps=1e-7)
    view = observe(trained, blocks, data.attacked.labels, schedule, optimiser)
    loop = SingleLoop(list(federation.bottoms), 10, data.shapes, COUNT, BATCH, CAFE)
    for t, row in enumerate(schedule):
        loop.step(view.federation(t), row.nonzero().flatten(), view.gradients[t])
    for mine, expected in zip(found.blocks, loop.data.blocks, strict=True):
        torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(found.middle[2].inputs, loop.middles[2].inputs)


def test_step_one_fits_the_gradients_of_the_bias(digits):
    federation, data = digits
    schedule, blocks = uniform(COUNT, BATCH, 40, 1), data.blocks(data.attacked.values())
    observed = observe(federation, blocks, data.attacked.labels, schedule).bias_gradients(0)
    middles = [followed(digits, replace(QUICK, steps=steps))[1].middle[0] for steps in (1, 150)]
    errors = [(schedule.float() @ middle.outputs - observed).norm() / observed.norm() for middle in middles]
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize("lr", [0.0, 1e-3])
def test_an_interrupted_loop_goes_on_to_the_same_end(digits, lr, monkeypatch):
    monkeypatch.setattr("projects.cafe.online.LEAST", 8)
    watch, store, made = replace(WATCH, lr=lr), {}, []

    def keep(name, make):
        if name not in store:
            made.append(name)
            store[name] = {key: value.clone() for key, value in make().items()}
            if len(made) == 2:
                raise KeyboardInterrupt
        return store[name]

    with pytest.raises(KeyboardInterrupt):
        followed(digits, watch=watch, keep=keep)
    _, resumed = followed(digits, watch=watch, keep=keep)
    _, whole = followed(digits, watch=watch)
    assert made == ["rounds-8", "rounds-16", "rounds-24", "rounds-30"]
    for one, other in zip([*resumed.blocks, resumed.labels], [*whole.blocks, whole.labels], strict=True):
        assert torch.equal(one, other)


def test_a_short_schedule_is_played_again_and_again(digits):
    watched, _ = followed(digits, watch=replace(WATCH, rounds=12))
    assert len(watched.view.schedule) == 12


def test_the_campaign_follows_the_rounds_and_judges(digits):
    federation, data = digits
    report = Campaign(watch=WATCH, cafe=CAFE).run(federation, data).report()
    assert report["recovered"] == COUNT
    assert 0 <= report["label_accuracy"] <= 1


def test_what_the_loop_has_not_is_refused(digits):
    with pytest.raises(ValueError, match="leave workers and window out"):
        followed(digits, watch=replace(WATCH, window=5))
    federation, data = digits
    view = observe(federation, data.blocks(data.attacked.values()), data.attacked.labels, uniform(COUNT, BATCH, 12, 0))
    with pytest.raises(ValueError, match="follows the rounds as they are played"):
        recover(view, CAFE)


def test_batches_of_unequal_sizes_are_brought_to_one_size(digits, tmp_path):
    draw = torch.Generator().manual_seed(0)
    sizes = [2, 3, 6] * 12
    rounds = [torch.randperm(COUNT, generator=draw)[:size].tolist() for size in sizes]
    file = tmp_path / "log.json"
    file.write_text(json.dumps(rounds))
    watched, found = followed(digits, replace(QUICK, steps=700), replace(WATCH, schedule=str(file)))
    assert len(watched.view.schedule) == len(sizes)
    federation, data = digits
    view = observe(federation, data.blocks(data.attacked.values()), data.attacked.labels, watched.view.schedule)
    true = solve_outputs(view.bias_gradients(0), view.schedule).values
    assert (found.middle[0].outputs - true).norm() < 0.05 * true.norm()


def test_records_in_no_round_are_not_recovered(digits, tmp_path):
    file = tmp_path / "log.csv"
    file.write_text("0,1,2\n1,2,3\n0,3,2\n0,1,3\n")
    _, found = followed(digits, replace(CAFE, steps=8), replace(WATCH, schedule=str(file)))
    assert found.blocks[0].isfinite().flatten(1).all(1).tolist() == [True] * 4 + [False] * 6
    assert found.labels.isfinite().all(1).tolist() == [True] * 4 + [False] * 6
    assert found.reasons[7] == "it is in no recorded round"


def test_a_table_needs_no_picture_for_the_reference():
    data = FederatedRecords("breast_cancer", count=COUNT, batch_size=BATCH)
    data.setup()
    module = FederatedClassifier([list(shape) for shape in data.shapes], data.classes)
    assert Campaign(watch=WATCH, cafe=CAFE).run(module.federation, data).report()["recovered"] == COUNT
    nested = replace(CAFE, solver="closed_form")
    assert Campaign(watch=WATCH, cafe=nested).run(module.federation, data).report()["rmse"] < 1e-3
