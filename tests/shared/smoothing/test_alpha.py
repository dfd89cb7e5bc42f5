import math

import pytest
import torch

from shared.smoothing.alpha import AlphaPlan, corrected_lower, corrected_upper, tail_mass


def test_parts_add_up_to_the_total():
    for plan in (AlphaPlan.whole(0.001), AlphaPlan.equal(0.001, ["left", "right"]), AlphaPlan.with_runner_ups(0.05, 2, 10)):
        assert math.fsum(plan.parts.values()) == pytest.approx(plan.total, rel=1e-12)
    assert AlphaPlan.equal(0.001, ["left", "right"]).parts["left"] == 0.0005
    sidak = AlphaPlan.equal(0.001, ["left", "right"], independent=True)
    assert sidak.parts["left"] == pytest.approx(1 - math.sqrt(0.999))


@pytest.mark.parametrize(
    ("total", "parts", "message"),
    [
        (0.001, {"left": 0.001, "right": 0.001}, "spend 0.002"),
        (0.001, {"left": 0.0005}, "spend 0.0005"),
        (1.2, {"a": 1.2}, "must lie in"),
        (0.1, {}, "positive"),
    ],
)
def test_a_plan_that_does_not_add_up_is_refused(total, parts, message):
    with pytest.raises(ValueError, match=message):
        AlphaPlan(total, parts)


def test_the_tail_of_the_sampler_is_charged_to_the_probability():
    assert tail_mass(150_528) == pytest.approx(75_264 * 2.0**-39)
    assert corrected_lower(torch.tensor([0.9, 1e-9]), 1e-8).tolist() == pytest.approx([0.9 - 1e-8, 0.0], abs=1e-7)
    assert corrected_upper(torch.tensor([1.0]), 1e-8).item() == 1.0
