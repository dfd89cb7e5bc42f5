import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from helpers.jobs import rows_of

from shared.runs import Run
from shared.tables import Job, Table, make_table


def jobs_of(folder, seeds, quick):
    return [Job(setting, seed, rows_of, (folder, setting)) for seed in seeds for setting in ("ab" if not quick else "a")]


TABLE = Table("letters", "b is more than a.", ("setting",), jobs_of, lambda rows: {"b is more": rows[1]["value"]["mean"] > rows[0]["value"]["mean"]})


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_table_over_seeds(tmp_path, jobs):
    run = Run(tmp_path / "letters" / "one")
    results, figures = make_table(run, "ab", TABLE, tmp_path, jobs=jobs)
    assert [row["setting"] for row in results["rows"]] == ["a", "b"]
    assert results["rows"][1]["value"] == {"mean": 11.0, "std": 1.0, "n": 3}
    assert results["expectations"] == {"b is more": True}
    assert json.loads((run.path / "results-ab.json").read_text())["rows"] == results["rows"]
    assert figures == {}
    assert len((tmp_path / "calls").read_text().split()) == 6
    make_table(run, "ab", TABLE, tmp_path, seeds=4, jobs=jobs)
    assert len((tmp_path / "calls").read_text().split()) == 8, "only the rows of the new seed are made"


def test_a_quick_table_expects_nothing_and_its_rows_are_no_part_of_a_full_one(tmp_path):
    run = Run(tmp_path / "letters" / "quick")
    results, _ = make_table(run, "ab", TABLE, tmp_path, quick=True)
    assert results["expectations"] == {}
    assert [row["setting"] for row in results["rows"]] == ["a"]
    make_table(run, "ab", TABLE, tmp_path, seeds=1, jobs=1)
    assert len((tmp_path / "calls").read_text().split()) == 3, "a once quickly, and a and b"


def test_tables_take_at_least_one_seed(tmp_path):
    with pytest.raises(ValueError, match="from 1"):
        make_table(Run(tmp_path / "letters" / "one"), "ab", TABLE, tmp_path, seeds=0)


@dataclass(frozen=True)
class Workshop:
    folder: Path
    data: dict
    epochs: int


def test_rows_of_other_settings_are_not_taken_for_ones_own(tmp_path):
    table = replace(TABLE, jobs=lambda workshop, seeds, quick: jobs_of(workshop.folder, seeds, quick))
    run, workshop = Run(tmp_path / "letters" / "one"), Workshop(tmp_path, {"root": Path("here"), "size": (3, 4)}, 2)
    make_table(run, "ab", table, workshop, seeds=1, jobs=1)
    make_table(run, "ab", table, replace(workshop, data=dict(workshop.data)), seeds=2, jobs=1)
    for other, named in (({"epochs": 3}, "epochs"), ({"epochs": 3, "data": {"size": (3, 5)}}, "data, epochs")):
        with pytest.raises(ValueError, match=f"was made with another {named}: go on with the options of the first call"):
            make_table(run, "ab", table, replace(workshop, **other), seeds=2, jobs=1)
    assert len((tmp_path / "calls").read_text().split()) == 4
