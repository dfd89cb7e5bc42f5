import json

import pytest

from projects.drs.cli import main
from projects.drs.reproduction import TABLES, halves, matched, rules, stopping


def spread(value):
    return {"mean": value, "std": 0.0, "n": 1}


@pytest.mark.slow  # what CI's smoke run does, and once more
def test_a_quick_run_makes_every_table(run_folder, capsys):
    main(["reproduce", "--quick", "--run", "quick"])
    folder = run_folder / "drs" / "quick"
    for name in TABLES:
        results = json.loads((folder / f"results-{name}.json").read_text())
        assert results["rows"]
        assert results["seeds"] == [0]
    found = json.loads((folder / "results-rules.json").read_text())["rows"]
    assert all(row["false_flawed"]["mean"] > rules.ALPHA for row in found)
    capsys.readouterr()
    main(["reproduce", "--quick", "--run", "quick", "--resume", "--force"])
    assert "done" in capsys.readouterr().out, "what was made is not made again"


@pytest.mark.parametrize("case", rules.CASES, ids=lambda case: case.rule)
def test_flawed_rules_fail_and_ours_does_not(case):
    runs = 120
    flawed, ours = case.rates(1, runs)
    assert flawed > 1.5 * rules.ALPHA
    assert ours <= rules.ALPHA + 3 * (rules.ALPHA * (1 - rules.ALPHA) / runs) ** 0.5


def test_the_sequence_errs_rarely_however_often_one_looks():
    assert stopping.type_one(0, is_quick=False) <= stopping.TYPE_ONE_ALPHA


def test_expectations_read_the_means():
    columns = [f"r={r:g}" for r in matched.RADII]
    lines = [(variant.name, rule) for variant in matched.VARIANTS for rule in ("Cohen", "main", "pooled", "joint", "selected")]
    ceilings = {"main": 1.2, "pooled": 1.35, "joint": 1.3, "selected": 1.35, "Cohen": 1.23}
    acr = {"main": 0.61, "joint": 0.62}
    summary = [
        {"model": model, "certificate": rule, "acr": spread(acr.get(rule, 0.6)), "ceiling": spread(ceilings[rule])}
        | dict.fromkeys(columns, spread(0.5))
        for model, rule in lines
    ]
    summary = [row | {"ceiling": spread(1.394 * 1.23)} if row["model"] == "DRS at RS's sigma" else row for row in summary]
    found = matched.expectations(summary)
    assert all(found.values())
    assert matched.plot(summary).axes[0].get_xlabel() == "l2 radius (images in [0, 1])"
    acr = {"whole": 0.5, "block": 0.3} | dict.fromkeys(("checkerboard", "column", "row", "random", "phases"), 0.4)
    assert list(halves.expectations([{"split": name, "acr": spread(value)} for name, value in acr.items()]).values()) == [True, False]
