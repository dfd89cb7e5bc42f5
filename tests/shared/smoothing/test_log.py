import json
import random

import pytest

from shared.smoothing.log import CertificationLog, Row, read_rows

SETTINGS = {"sigma": 0.25, "draws": 1000, "alpha": 0.001, "seed": 0}
ROWS = [Row(20 * i, i % 3, (i % 3 if i % 4 else -1), 0.1234567890123456 * (i % 4), 15.344139 + i, {"counts": [i, 1000 - i]}) for i in range(30)]


def test_columns_are_cohens_and_radii_are_cut():
    assert Row(40, 3, 3, 0.95288, 15.344139).line() == "40\t3\t3\t0.952\t1\t0:00:15.344139"
    assert Row(40, 3, 3, 0.95288, 15.344139).line(rounding=True) == "40\t3\t3\t0.953\t1\t0:00:15.344139"
    assert Row(40, 3, -1, 0.0, 90_000).line() == "40\t3\t-1\t0.0\t0\t1 day, 1:00:00"


def test_rows_come_back_with_full_radii(tmp_path):
    with CertificationLog(tmp_path, SETTINGS) as log:
        for row in random.Random(0).sample(ROWS, len(ROWS)):
            log.append(row)
        path = log.merge()
    settings, rows = read_rows(tmp_path / "certify.jsonl")
    assert (settings, rows) == (SETTINGS, ROWS)
    lines = path.read_text().split("\n")
    assert lines[0] == "idx\tlabel\tpredict\tradius\tcorrect\ttime"
    assert [int(line.split("\t")[0]) for line in lines[1:-1]] == [row.index for row in ROWS]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_torn_last_line_is_dropped_and_done_again(tmp_path, cut):
    with CertificationLog(tmp_path / "whole", SETTINGS) as log:
        for row in ROWS:
            log.append(row)
        whole = log.merge().read_bytes()
    with CertificationLog(tmp_path / "killed", SETTINGS) as log:
        for row in ROWS[:11]:
            log.append(row)
    part = tmp_path / "killed" / "part-0000.jsonl"
    part.write_bytes(part.read_bytes()[:-cut])
    logs = [CertificationLog(tmp_path / "killed", SETTINGS, rank) for rank in range(3)]  # another number of processes
    assert logs[0].done == {row.index for row in ROWS[:10]}
    for number, row in enumerate(ROWS[10:]):
        logs[number % 3].append(row)
    for log in logs:
        log.close()
    assert logs[0].merge().read_bytes() == whole
    assert all(json.loads(line) for line in part.read_text().splitlines())


def test_a_header_torn_by_a_kill_is_written_again(tmp_path):
    (tmp_path / "part-0000.jsonl").write_text('{"version": 1, "ha')
    with CertificationLog(tmp_path, SETTINGS) as log:
        log.append(ROWS[0])
    assert CertificationLog(tmp_path, SETTINGS).done == {0}


def test_other_settings_and_repeated_images_are_refused(tmp_path):
    with CertificationLog(tmp_path, SETTINGS) as log:
        log.append(ROWS[0])
        with pytest.raises(ValueError, match="image 0 is in"):
            log.append(ROWS[0])
    with pytest.raises(ValueError, match=r"other settings \(alpha 0.001 != 0.01\)"):
        CertificationLog(tmp_path, SETTINGS | {"alpha": 0.01})
    assert CertificationLog(tmp_path, dict(reversed(SETTINGS.items()))).done == {0}
