from __future__ import annotations

import math
import re
import time

import pytest

from projects.vafl.steps import Constant, Decay, Root, Stale, StepSizes


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("constant", Constant(0.5)),
        (" sqrt:total=10000 ", Root(0.5, 10000)),
        ("sqrt:total=400, cap=0.01", Root(0.5, 400, 0.01)),
        ("decay:offset=100", Decay(0.5, 100)),
        ("stale:power=0.5", Stale(0.5, 0.5)),
    ],
    ids=["constant", "sqrt", "sqrt with cap", "decay", "stale"],
)
def test_rules_are_read_from_their_text(text, rule):
    assert StepSizes.parse(text, 0.5) == rule


def test_each_rule_gives_the_step_of_its_formula():
    assert [StepSizes.parse("constant", 2.0).at(k, 7.0) for k in (0, 10**6)] == [2.0, 2.0]
    assert [StepSizes.parse("sqrt:total=400", 2.0).at(k, 7.0) for k in (0, 399)] == pytest.approx([0.1, 0.1])
    assert StepSizes.parse("sqrt:total=400,cap=0.03", 2.0).at(0, 0.0) == 0.03
    assert [StepSizes.parse("decay:offset=50", 2.0).at(k, 7.0) for k in (0, 50, 950)] == pytest.approx([2.0, 1.0, 0.1])
    assert [StepSizes.parse("stale:power=0.5", 2.0).at(9, age) for age in (0.0, 3.0, 99.0)] == pytest.approx([2.0, 1.0, 0.2])


def test_decay_is_summable_in_squares_and_not_itself():
    etas = [Decay(1.0, 10.0).at(k) for k in range(100_000)]
    assert sum(etas) == pytest.approx(10 * math.log(100_010 / 10), rel=0.01)
    assert sum(eta**2 for eta in etas) == pytest.approx(100 / 10, rel=0.1)


def test_a_step_size_takes_microseconds():
    rule = StepSizes.parse("stale:power=0.5", 1.0)
    begun = time.perf_counter()
    for k in range(10_000):
        rule.at(k, 3.5)
    assert time.perf_counter() - begun < 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosine", "choose one of constant, sqrt:total=...,cap=inf, decay:offset=..., stale:power=..."),
        ("decay", "lack offset: write decay:offset=..."),
        ("decay:offset", "'offset' is no setting of the step sizes"),
        ("constant:lr=1", "'lr=1' is no setting"),
        ("decay:offset=1,offset=2", "say offset twice"),
        ("stale:power=half", "power of the step sizes 'stale:power=half' must be a number, got 'half'"),
        ("decay:offset=0", "cannot be: offset must be positive"),
        ("decay:offset=nan", "cannot be: offset"),
        ("sqrt:total=0", "cannot be: total must be at least 1"),
        ("stale:power=-1", "cannot be: power must be 0 or more"),
    ],
    ids=["kind", "missing", "no value", "lr", "twice", "no number", "offset 0", "offset nan", "total 0", "power negative"],
)
def test_wrong_rules_are_named(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StepSizes.parse(text, 1.0)


def test_a_negative_step_size_is_refused():
    with pytest.raises(ValueError, match="lr must be 0 or more"):
        StepSizes.parse("constant", -1.0)
