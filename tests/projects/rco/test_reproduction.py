"""What `reproduce` says of its tables, and how its teachers and students are trained."""

import json

import pytest
import torch

from projects.rco.cli import main
from projects.rco.reproduction import TABLES, choices, pairings, parity, worlds
from projects.rco.reproduction.comparing import with_seeds
from projects.rco.reproduction.worlds import KD, LABELS, PLAIN, QUICK, Line, rows_of, teach
from projects.rco.walking import Walk


def spread(value):
    return {"mean": value, "std": 0.01, "n": 5}


def failing(found):
    return [number for number, holds in enumerate(found.values()) if not holds]


PARITY = {PLAIN: (0.7, 0.5), parity.EEI: (0.95, 0.1), parity.JUMP: (0.9, 0.1), parity.GREEDY: (0.9, 0.1), parity.BEFORE: (0.7, 0.5)} | {
    parity.REVERSED: (0.7, 0.5)
}


@pytest.mark.parametrize(
    ("changed", "fails"),
    [
        ({}, []),
        ({PLAIN: (0.71, 0.5)}, [0, 2]),
        ({parity.EEI: (0.89, 0.1)}, [1, 2]),
        ({parity.EEI: (0.95, 0.11)}, [3]),
        ({parity.JUMP: (0.89, 0.11)}, [4, 5]),
        ({parity.BEFORE: (0.71, 0.5)}, [6]),
        ({parity.REVERSED: (0.71, 0.5)}, [7]),
        ({parity.GREEDY: (0.89, 0.1)}, [9]),
    ],
    ids=["as-expected", "kd", "eei", "eei-congruence", "jump", "before", "reversed", "greedy"],
)
def test_expectations_of_parity_are_those_of_section_9(changed, fails):
    means = [
        {"line": name, "accuracy": spread(accuracy), "_median": spread(loss), "_least": spread(1.0)}
        for name, (accuracy, loss) in (PARITY | changed).items()
    ]
    assert failing(parity.expectations(means)) == fails


def test_a_greedy_walk_past_the_jump_for_one_seed_is_told():
    means = [{"line": name, "accuracy": spread(rate), "_median": spread(loss), "_least": spread(0.0)} for name, (rate, loss) in PARITY.items()]
    assert failing(parity.expectations(means)) == [8]


def test_a_route_that_gains_without_a_gap_is_told():
    early = dict.fromkeys(parity.SHOWN, 0.95) | {PLAIN: 0.6}
    control = dict.fromkeys(parity.SHOWN, 1.0) | {PLAIN: 0.94}
    means = [
        {"setting": setting, "line": name, "accuracy": spread(rate)}
        for setting, rates in ((parity.EARLY, early), (parity.CONTROL, control))
        for name, rate in rates.items()
    ]
    assert failing(parity.expectations_of_settings(means)) == [3, 4]


def test_expectations_of_choices_budgets_and_losses():
    rates = dict.fromkeys(choices.ANCHORS, 0.9) | {PLAIN: 0.7, "EEI-2": 0.66}
    numbers = {name: 20.0 - place for place, name in enumerate(choices.ANCHORS)}
    means = [{"line": name, "accuracy": spread(rate), "anchors": spread(numbers[name])} for name, rate in rates.items()]
    assert failing(choices._of_anchors(means)) == []
    means[1]["accuracy"], means[-1]["anchors"] = spread(0.6), spread(30.0)
    assert failing(choices._of_anchors(means)) == [0, 2]
    budgets = dict.fromkeys(choices.BUDGETS, 0.9) | {PLAIN: 0.6, choices.LONG_KD: 0.95}
    assert failing(choices._of_budgets([{"line": name, "accuracy": spread(rate)} for name, rate in budgets.items()])) == [1, 2]
    losses = {name: 0.9 if "EEI" in name else 0.5 for name in pairings.PAIRED} | {"DKD": 0.95, "hint": 0.9}
    assert failing(pairings._of_losses([{"line": name, "accuracy": spread(rate)} for name, rate in losses.items()])) == [1, 3, 5]


# ---- teachers and students


def test_a_seeds_lines_are_made_once_and_come_out_the_same(tmp_path):
    lines = {LABELS: Line(walk=None), PLAIN: Line(KD), "greedy": Line(Walk("greedy")), "half": Line(Walk(anchors=2), half=True)}
    lines |= {"assistant": Line(KD, assistant="mlp_16"), "longer": Line(KD, epochs=4)}
    first, again = (rows_of(QUICK, lines, tmp_path / part, 0) for part in ("one", "two"))
    timeless = [[{name: value for name, value in row.items() if name != "seconds"} for row in rows] for rows in (first, again)]
    assert timeless[0] == timeless[1]
    row = {row["line"]: row for row in first}
    assert row[PLAIN]["gain over KD"] is None
    assert row["greedy"]["gain over KD"] == pytest.approx(row["greedy"]["accuracy"] - row[PLAIN]["accuracy"])
    assert row[LABELS]["congruence"] is None
    assert row["longer"]["updates"] == 40
    assert row[PLAIN]["passes"] == 640, "the outputs of the one teacher are kept"
    assert row["half"]["MB"] < 2 * row[PLAIN]["MB"], "two states of half the size, and what names them"
    stored = teach(QUICK, tmp_path / "one", 0).route
    assert stored.epochs == [1, 2, 3]
    assert {path.name for path in (tmp_path / "one").iterdir()} == {
        stored.folder.name,
        f"{stored.folder.name}-half",
        f"assistant-mlp_16-{QUICK.key}-0",
    }


def test_all_students_of_a_seed_begin_with_the_same_weights(tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(worlds, "quiet_trainer", lambda *_, **options: worlds_trainer(begun, **options))
    taught = teach(QUICK, tmp_path, 0)
    begun.clear()
    for line in (Line(walk=None), Line(KD), Line(Walk(anchors=3))):
        with pytest.raises(StopIteration):
            worlds.row_of(QUICK, line, taught, tmp_path, 0)
    labels, kd, eei = begun
    assert torch.equal(labels, kd)
    assert torch.equal(kd, eei)


def worlds_trainer(begun, **options):
    import lightning as L

    from shared.quiet import quiet_trainer

    class Stopped(L.Callback):
        def on_train_start(self, trainer, module):
            net = getattr(module, "student", None) or module.net
            begun.append(torch.cat([parameter.detach().flatten() for parameter in net.parameters()]))
            if begun[-1].numel() < 300:  # a student, not the teacher
                raise StopIteration

    return quiet_trainer(3, **(options | {"callbacks": [*options.get("callbacks", []), Stopped()]}))


def test_seeds_go_along_with_the_lines():
    rows = [
        {"line": "a", "seed": seed, "accuracy": rate, "congruence": loss, "in the jump": inside}
        for seed, rate, loss, inside in ((0, 0.5, 3.0, 2), (1, 0.7, 1.0, 0), (2, 0.9, 2.0, 1))
    ]
    found = with_seeds(rows, ("line",))
    assert [(row["_median"], row["_least"]) for row in found] == [(2.0, 0)] * 3
    assert [row["_1"] for row in found] == [None, 0.7, None]


@pytest.mark.slow
def test_every_table_can_be_tried(run_folder, capsys):
    cli = main(["reproduce", "--quick"])
    for name in TABLES:
        results = json.loads((cli.run.path / f"results-{name}.json").read_text())
        assert results["seeds"] == [0]
        assert results["expectations"] == {}
