"""The table of parity through images."""

import pytest

from projects.rco.reproduction.tiles import EEI, FIVE, GREEDY, JUMP, LINES, SMALL, TABLE, TILES, expectations
from projects.rco.reproduction.worlds import KD, LABELS, PLAIN
from projects.rco.walking import Walk


def means(teacher=1.0, **accuracies):
    found = dict.fromkeys(LINES, 1.0) | {LABELS: 0.5, PLAIN: 0.5} | accuracies
    return [{"line": name, "accuracy": {"mean": value}, "teacher": {"mean": teacher}} for name, value in found.items()]


def test_a_trial_makes_a_row_a_student(tmp_path):
    (job,) = TABLE.jobs(tmp_path, [0], True)
    rows = job.make(*job.arguments, job.seed)
    assert [row["line"] for row in rows] == [PLAIN, EEI, GREEDY]
    assert all(0 <= row["accuracy"] <= 1 and row["congruence"] >= 0 for row in rows)
    assert [row["anchors"] for row in rows[:2]] == [1, 3]
    assert len({row["updates"] for row in rows}) == 1, "all students train as long"
    assert set(TABLE.tabulate(rows)[0]) >= {"line", "seed", "teacher", "accuracy", "gain over KD", "congruence"}


def test_the_worlds_are_of_tiles():
    assert TILES.data["source"] == SMALL.data["source"] == "tiles"
    assert LINES[PLAIN].walk == KD
    assert LINES[FIVE].walk == Walk(anchors=5)
    assert set(range(5)) == {job.seed for job in TABLE.jobs(None, list(range(TABLE.seeds)), False)}


@pytest.mark.parametrize("line", [EEI, FIVE, JUMP, GREEDY])
def test_a_student_that_fails_breaks_an_expectation(line):
    assert all(expectations(means()).values())
    broken = [text for text, holds in expectations(means(**{line: 0.6})).items() if not holds]
    assert f"{line}: 0.90 or above" in broken


def test_a_gap_that_is_not_there_breaks_expectations():
    broken = [text for text, holds in expectations(means(**{PLAIN: 1.0})).items() if not holds]
    assert broken == ["KD by the converged teacher alone stays at 0.70 or below", "EEI-3 gains at least 0.25"]
    assert not expectations(means(teacher=0.8))["the teachers learn it: 0.95"]
