import pytest
import torch

from shared.smoothing.log import Row, table
from shared.smoothing.tables import last_digit, parse_time, read_table

VARIANTS = {
    "cohen": "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.95\t1\t0:00:15.344139\n20\t8\t-1\t0.0\t0\t1 day, 0:00:01\n",
    "old": "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.95\t1\t15.344139\n20\t8\t-1\t0.0\t0\t86401",
    "windows": "idx\tlabel\tpredict\tradius\tcorrect\ttime\r\n0\t3\t3\t0.95\t1\t0:00:15.344139\r\n20\t8\t-1\t0.0\t0\t1 day, 0:00:01\r\n",
    "marked": "\ufeffidx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.95\t1\t0:00:15.344139\n20\t8\t-1\t0.0\t0\t1 day, 0:00:01\n",
    "cut": "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.95\t1\t0:00:15.344139\n20\t8\t-1\t0.0\t0\t1 day, 0:00:01\n40\t3\t0.9",
    "ancer": "idx\tlabel\tpredict\tradius\tradius_proxy\tcorrect\tmin_sigma\ttime\n"
    "0\t3\t3\t0.95\t1.2\t1\t.2\t15.344139\n20\t8\t-1\t0.0\t0.0\t0\t.2\t86401\n",
    "iss": "idx\tlabel\tpredict\tpA\tsamplesize\tradius\tcorrect\ttime_forward\n"
    "0\t3\t3\t.9\t500\t0.950\t1\t15.344139\n20\t8\t-1\t.4\t9\t0.000\t0\t86401\nACR: .5\n",
    "ensembles": "idx\tlabel\tpredict\tradius proved\tcorrect\tlevels_needed\testimated_pr\ttime\n"
    "0\t3\t3\t0.95\t1\t2\t.9\t15.344139\n20\t8\t-1\t0.0\t0\t1\t.4\t86401\n",
}


@pytest.mark.parametrize("name", VARIANTS)
def test_published_variants_are_read(tmp_path, name):
    (tmp_path / "log").write_bytes(VARIANTS[name].encode())
    found = read_table(tmp_path / "log")
    assert [found.index.tolist(), found.label.tolist(), found.predicted.tolist()] == [[0, 20], [3, 8], [3, -1]]
    assert found.radius.tolist() == [0.95, 0.0]
    assert found.stated_correct.tolist() == [1, 0]
    assert found.seconds.tolist() == [15.344139, 86401]
    assert len(found.notes) == (name in ("cut", "iss"))


def test_predictions_have_no_radius(tmp_path):
    (tmp_path / "log").write_text("idx\tlabel\tpredict\tcorrect\ttime\n0\t3\t3\t1\t0:00:01\n")
    assert read_table(tmp_path / "log").radius.isnan().all()


def test_our_own_table_is_read(tmp_path):
    rows = [Row(i, i % 2, i % 2, 0.37 * i, i / 7) for i in range(9)]
    (tmp_path / "log").write_text(table(rows))
    found = read_table(tmp_path / "log")
    exact = torch.tensor([row.radius for row in rows], dtype=torch.float64)
    assert (found.radius <= exact).all()
    assert (found.radius > exact - found.digits - 1e-12).all()
    torch.testing.assert_close(found.seconds, torch.tensor([row.seconds for row in rows], dtype=torch.float64), rtol=0, atol=1e-6)


def test_times_and_digits():
    assert [parse_time(text) for text in ("0:00:15", "2 days, 10:00:00.5", "3.25")] == [15, 208_800.5, 3.25]
    assert [last_digit(text) for text in ("1.9", "0.95", "0.0123", "12.3", "0.950", "0.0", "0.0004")] == pytest.approx(
        [0.01, 0.001, 0.0001, 0.1, 0.001, 0, 1e-6]
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "lacks idx, label, predict"),
        ("", "no certification table"),
        ("idx\tlabel\tpredict\n", "no row that can be read$"),
        ("idx\tlabel\tpredict\n\n0\tcat\tdog\n", r"no row that can be read: line 3 is no row: '0\\tcat\\tdog'"),
    ],
)
def test_what_is_no_table_is_said(tmp_path, text, message):
    (tmp_path / "log").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "log")
