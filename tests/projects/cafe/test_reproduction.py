"""The tables of `reproduce`: that their jobs run, and that what is expected of them can fail."""

import copy

import pytest

from projects.cafe.reproduction import TABLES, attacks, conditions, defences, modes, sizes, steps, tolerance
from projects.cafe.reproduction.setting import ERROR, build, measure, readable
from shared.results import summarise

GOOD = {
    "attacks": {"CAFE": {"psnr": 40}, "DLG, K = 1": {"psnr": 40}, "DLG, K = 8": {"psnr": 12}, "mean image": {"psnr": 14}},
    "conditions": {
        "1.2 N rounds": {"psnr": 40},
        "fewer rounds than records": {"recovered": 0, "rank": 120},
        "batches of all records": {"recovered": 0},
        "half as wide (h twice the pixels)": {"psnr": 19},
    },
    "steps": {
        "closed form, 300 steps": {"psnr": 50},
        "descent in nested loops, representation": {ERROR: -2},
        "closed form, step III of the reference": {"psnr": 19, "label_accuracy": 1},
        "the same without alpha (gradients)": {"psnr": 19, "label_accuracy": 0.1},
        "the same without gamma (representation)": {"psnr": 9},
    },
    "tolerance": {
        "static model": {"psnr": 40, "mean_record": 14},
        "trained by Adam at 1e-06": {"psnr": 37},
        "trained by Adam at 0.0001": {"psnr": 14},
        "trained by Adam at 0.001": {"psnr": 5},
        tolerance.LAST: {"psnr": 30},
        "noise of 1e-05 on uploads": {"psnr": 35},
    },
    "defences": {"none": {"CAFE": 38}, "fake:mode=clip": {"points": -50}},
    "modes": {
        "table, 150 rounds": {"recovered": 0},
        "table, 260 rounds": {"rmse": 1e-7},
        "horizontal, 4 workers of 40 records": {"psnr": 38},
        "horizontal, secure sum of the 4": {"recovered": 0},
        "coloured patches, widths 32, 64": {"psnr": 16, "mean_record": 10},
        "coloured patches, widths 32, 160": {"psnr": 23},
        "coloured patches, widths 32, 160, 1000 steps": {"psnr": 30},
    },
    "sizes": {(800, 100): {"psnr": 40, "seconds": 50}},
}
USUAL = {"psnr": 10, "rank": 200, "recovered": 200, ERROR: -7, "label_accuracy": 1, "mean_record": 14, "rmse": None, "seconds": 9}
USUAL |= {"points": 0, "CAFE": 8, "knowing": 12, "mean image": 14}


def means(name):
    """Return means of all lines of a table, as they should be."""
    lines = {"defences": defences.LINES, "attacks": [*attacks.LINES, attacks.MEAN], "sizes": sizes.LINES, "steps": steps.LINES, "modes": modes.LINES}
    lines |= {"conditions": conditions.LINES, "tolerance": [job.arguments[0] for job in tolerance.jobs(None, [0], False)]}
    by = {"sizes": ("N", "K"), "attacks": ("attack",), "defences": ("defence",), "steps": ("steps",), "modes": ("mode",)}
    by |= {"conditions": ("setting",), "tolerance": ("while recorded",)}
    rows = []
    for line in lines[name]:
        names = dict(zip(by[name], line if isinstance(line, tuple) else (line,), strict=True))
        rows.append(names | {"seed": 0} | USUAL | GOOD[name].get(line, {}))
    return summarise(rows, by=by[name])


@pytest.mark.parametrize("name", list(TABLES))
def test_what_is_expected_holds_where_it_should_and_fails_where_not(name):
    expectations, good = TABLES[name].expectations, means(name)
    assert all(expectations(good).values()), expectations(good)
    can_fail = set()
    for place, row in enumerate(good):
        for column in (name for name, value in row.items() if isinstance(value, dict)):
            for value in (-1e3, 1e3):
                bad = copy.deepcopy(good)
                bad[place][column]["mean"] = value
                can_fail |= {claim for claim, holds in expectations(bad).items() if not holds}
    assert can_fail == set(expectations(good))


@pytest.mark.parametrize("name", list(TABLES))
@pytest.mark.parametrize("is_quick", [True, False], ids=["quick", "full"])
def test_jobs_have_names_of_their_own(name, is_quick):
    jobs = TABLES[name].jobs(None, [0, 1], is_quick)
    names = [str(job) for job in jobs]
    assert len(set(names)) == len(names)
    assert all("/" not in job.name for job in jobs)


def test_a_measurement_has_the_figures_of_the_attack_and_of_its_middle():
    module, data = build(0, {"widths": [8, 16], "first": 16, "rectified": False}, count=10, batch_size=3)
    campaign = conditions.Campaign(watch=conditions.Watch(rounds=30), cafe=modes.Cafe(steps=2))
    row = measure(campaign, module, data)
    assert (row["records"], row["recovered"], row["rank"]) == (10, 10, 10)
    assert row["error_h"] < 1e-5
    assert row["mean_record"] == row["baseline_mean"]
    refused = measure(conditions.Campaign(watch=conditions.Watch(rounds=4)), module, data)
    assert refused == {"records": 10, "rank": 4, "recovered": 0}
    [shown] = readable([{"a": 1, "error_h": 1e-3, "b": 2}])
    assert shown == {"a": 1, ERROR: pytest.approx(-3), "b": 2}
    assert list(shown) == ["a", ERROR, "b"]


def test_points_and_scores_are_those_of_a_seed():
    rows = [{"defence": d, "seed": s, "accuracy": a, "CAFE": 1.0, "knowing": 1.0, "mean image": 1.0, "attack": 0.0, "epsilon": None}
            for d, s, a in (("none", 0, 0.9), ("none", 1, 0.8), ("fake", 0, 0.9), ("fake", 1, 0.7))]  # fmt: skip
    scored = defences.scored(rows)
    assert [row["points"] for row in scored] == pytest.approx([0, 0, 0, -10])
    assert scored[2]["DCS"] == 1.0 > scored[3]["DCS"]
