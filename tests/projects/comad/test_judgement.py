import json

import pytest

from projects.comad.judgement import Judgement
from projects.comad.naming import Rule


def test_each_change_sets_what_it_names():
    changes = [
        "component.3.weight=0",
        "component.2.name = nuts and bolts",
        "background.weight=0.5",
        "quantile=0.99",
        "fusion=max",
        "parts=logical, patches,position",
        "rule=3:number:2:2",
        "rule=1:area::1.2",
    ]
    changed = Judgement().changed(changes)
    assert changed == Judgement(
        parts=("logical", "patches", "position"),
        fusion="max",
        quantile=0.99,
        background=0.5,
        weights={3: 0.0},
        names={2: "nuts and bolts"},
        rules=(Rule(3, "number", 2, 2), Rule(1, "area", None, 1.2)),
        changes=tuple(changes),
    )


def test_changes_add_to_earlier_ones_and_leave_these_as_they_were():
    first = Judgement().changed(["component.3.weight=0"])
    second = first.changed(["component.4.weight=2", "component.3.weight=1"])
    assert (first.weights, second.weights) == ({3: 0.0}, {3: 1.0, 4: 2.0})
    assert second.changes == ("component.3.weight=0", "component.4.weight=2", "component.3.weight=1")
    assert Judgement().weights == {}


def test_a_measure_has_one_interval():
    rules = Judgement().changed(["rule=3:number:2:2", "rule=3:area:0.9:1.1", "rule=3:number:1:2"]).rules
    assert rules == (Rule(3, "area", 0.9, 1.1), Rule(3, "number", 1, 2))
    assert Judgement(rules=rules).changed(["rule=none"]).rules == ()


def test_a_judgement_survives_json():
    judgement = Judgement(parts=("logical",)).changed(["component.10.weight=0.25", "component.10.name=Mutter", "rule=3:number::2", "quantile=0.9"])
    assert Judgement.from_state(json.loads(json.dumps(judgement.state()))) == judgement


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("component.3.weight", "there is no '='"),
        ("component.3.weight=", "'' is no number"),
        ("component.3.weight=light", "'light' is no number"),
        ("component.3.weight=-1", "not negative"),
        ("component.3.weight=nan", "finite and not negative"),
        ("component.3.weight=inf", "finite and not negative"),
        ("component.3.name=", "a name of its own"),
        ("component.3.name=rings", "a name of its own"),
        ("component.three.weight=0", "there is no such setting"),
        ("component.3.colour=red", "there is no such setting"),
        ("weight=0", "there is no such setting"),
        ("background.weight=-0.1", "not negative"),
        ("quantile=95", r"quantile must be in \[0, 1\]"),
        ("quantile=nan", r"quantile must be in \[0, 1\]"),
        ("fusion=mean", "fusion must be one of sum, zscore"),
        ("parts=logical,logical", "a part is named twice"),
        ("rule=3:number:3:2", "no interval from 3.0 to 2.0"),
        ("rule=3:number::", "no interval"),
        ("rule=3:number:2", "write component:measure:low:high"),
        ("rule=nuts:number:2:2", "write component:measure:low:high"),
    ],
)
def test_a_change_that_does_not_fit_is_named_with_the_forms_that_there_are(change, message):
    with pytest.raises(ValueError, match=message) as error:
        Judgement(names={2: "rings"}).changed(["quantile=0.9", change])
    assert str(error.value).startswith(f"cannot set {change!r}: ")
    assert "Forms: component.3.weight=0, component.3.name=nuts" in str(error.value)
