import math

import pytest
import torch
from torch import nn

from projects.rco.recipes import Recipe


def test_steps_fall_at_the_beginning_of_their_milestones():
    recipe = Recipe(schedule="steps", milestones=[150, 180, 210])
    assert [recipe.factor(epoch, 240) for epoch in (0, 149, 150, 179, 180, 209, 210, 239, 240)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001, 0.001], rel=1e-12
    )


def test_a_cosine_falls_from_all_to_nothing():
    recipe = Recipe(schedule="cosine", milestones=[3])
    assert [recipe.factor(epoch, 12) for epoch in range(13)] == pytest.approx([math.cos(math.pi * epoch / 24) ** 2 for epoch in range(13)], abs=1e-12)
    assert recipe.factor(20, 12) == pytest.approx(0, abs=1e-12), "beyond its end"


@pytest.mark.parametrize(("schedule", "rest"), [("constant", lambda epoch: 1.0), ("cosine", lambda epoch: (1 + math.cos(math.pi * epoch / 10)) / 2)])
def test_warmup_rises_in_equal_parts(schedule, rest):
    recipe = Recipe(schedule=schedule, warmup=4, milestones=[2])
    assert [recipe.factor(epoch, 10) for epoch in range(10)] == pytest.approx(
        [min(1, (epoch + 1) / 4) * rest(epoch) for epoch in range(10)], rel=1e-12
    )


def test_the_schedule_is_that_of_pytorch():
    weight = nn.Parameter(torch.zeros(1))
    for recipe, peer in (
        (Recipe(lr=0.3, milestones=[2, 5], gamma=0.2), lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 5], 0.2)),
        (Recipe(lr=0.3, schedule="cosine"), lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)),
    ):
        optimizer = torch.optim.SGD([weight], 0.3)
        schedule = peer(optimizer)
        for epoch in range(8):
            assert 0.3 * recipe.factor(epoch, 8) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            schedule.step()


def test_the_optimiser_is_as_asked():
    parameters = [nn.Parameter(torch.ones(2))]
    sgd = Recipe(lr=0.2, momentum=0.5, nesterov=True, weight_decay=1e-3).optimizer(parameters)
    assert type(sgd) is torch.optim.SGD
    assert {name: sgd.defaults[name] for name in ("lr", "momentum", "nesterov", "weight_decay")} == {
        "lr": 0.2,
        "momentum": 0.5,
        "nesterov": True,
        "weight_decay": 1e-3,
    }
    adamw = Recipe("adamw", lr=0.2, weight_decay=0.1).optimizer(parameters)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.2, 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimiser": "prayer"}, "optimiser must be sgd or adamw, got 'prayer'"),
        ({"schedule": "prayer"}, "schedule must be one of constant, steps, cosine, got 'prayer'"),
        ({"lr": 0.0}, "lr is positive"),
        ({"lr": math.inf}, "lr is positive"),
        ({"lr": math.nan}, "lr is positive"),
        ({"momentum": 1.0}, r"momentum in \[0, 1\)"),
        ({"weight_decay": -1e-4}, "weight_decay 0 or more"),
        ({"gamma": 0.0}, r"gamma in \(0, 1\]"),
        ({"warmup": -1}, "warmup 0 or more"),
        ({"milestones": [3, 2]}, r"milestones are rising epochs from 1 on, got \[3, 2\]"),
        ({"milestones": [2, 2]}, "milestones are rising"),
        ({"milestones": [0, 2]}, "milestones are rising"),
        ({"nesterov": True, "momentum": 0.0}, "(?i)nesterov"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**options).optimizer([nn.Parameter(torch.ones(1))])
