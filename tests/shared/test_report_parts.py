import numpy as np
import pytest

from shared.report.curves import POINTS, draw, families, smooth, thin
from shared.report.reading import Series, read_metrics
from shared.report.values import duration, moment, number, text


def test_metrics_are_read_by_step_and_the_later_value_stays(tmp_path):
    file = tmp_path / "metrics.csv"
    file.write_text('step,epoch,a,"b,c"\n10,0,1.5,\n20,0,,7\n5,0,3,\n10,1,2.5,8\n')
    notes = []
    found = read_metrics(file, notes)
    assert (found["a"].steps, found["a"].values) == ([5, 10], [3, 2.5])
    assert (found["b,c"].steps, found["b,c"].values) == ([10, 20], [8, 7])
    assert notes == []


def test_families_share_what_follows_the_slash():
    names = ["train/loss_step", "train/loss_epoch", "val/loss", "val/auroc", "test/a/b", "lr-Adam"]
    grouped = families(Series(name, [0.0], [0.0]) for name in names)
    assert {title: [series.name for series in group] for title, group in grouped.items()} == {
        "loss": ["train/loss_step", "train/loss_epoch", "val/loss"],
        "auroc": ["val/auroc"],
        "a/b": ["test/a/b"],
        "lr-Adam": ["lr-Adam"],
    }


@pytest.mark.parametrize(("values", "is_logarithmic"), [([1, 99], False), ([1, 101], True), ([0, 1000], False), ([-1, 1000], False)])
def test_axis_is_logarithmic_beyond_two_decades(values, is_logarithmic):
    assert draw("loss", {"loss": Series("loss", [0, 1], values)}).is_logarithmic == is_logarithmic


def test_curve_that_cannot_be_drawn_is_none_and_last_value_is_the_last():
    assert draw("a", {"a": Series("a", [0, 1], [1.0, float("nan")])}) is None
    assert draw("a", {"a": Series("a", [0, 1, 2], [1.0, 2.0, float("nan")]), "b": Series("b", [], [])}).lines[0].last == "nan"


@pytest.mark.parametrize("values", [[0.0, 0.0], [1e300, -1e300], [1e-320, 5.0], [1e-100, 1e100], [1e12, 1e12 + 1]])
def test_extreme_values_can_be_drawn(values):
    assert draw("a", {"a": Series("a", [0, 10**9], values)}).svg.startswith("<svg")


def test_smoothing_is_the_mean_of_the_neighbours():
    values = np.random.default_rng(0).normal(size=57)
    expected = [values[max(0, i - 3) : i + 4].mean() for i in range(57)]
    np.testing.assert_allclose(smooth(values, 7), expected, rtol=1e-12, atol=1e-14)


def test_thinning_keeps_spikes_and_order():
    values = np.random.default_rng(0).normal(size=100_003)
    values[[777, 55_555]] = 40, -40
    steps, kept = thin(np.arange(100_003.0), values)
    assert len(kept) <= POINTS
    assert (kept.max(), kept.min()) == (40, -40)
    assert (np.diff(steps) >= 0).all()
    np.testing.assert_array_equal(values[steps.astype(int)], kept)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1.0812345, "1.081"),
        (0.5, "0.5"),
        (400.0, "400"),
        (12345.6, "12346"),
        (0.00001234567, "1.235e-5"),
        (1.5e12, "1.5e12"),
        (-0.0, "0"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers_have_four_significant_digits(value, shown):
    assert number(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (True, "yes"),
        (35746307, "35746307"),
        ("1.10", "1.10"),
        ("0.123456", "0.1235"),
        ("007", "007"),
        ("2.15.0", "2.15.0"),
        ([1, "a"], '[1, "a"]'),
    ],
)
def test_values_are_written_for_a_reader(value, shown):
    assert text(value) == shown


def test_durations_and_moments():
    assert [duration(seconds) for seconds in (None, 0.1234, 59.6, 60, 3599.7, 7620)] == [
        "",
        "0.123 s",
        "59.6 s",
        "1 min 00 s",
        "1 h 00 min",
        "2 h 07 min",
    ]
    assert moment("2026-11-22T05:46:00+01:00") == "22 November 2026, 04:46 UTC"
    assert moment("yesterday") == "yesterday"


def test_means_and_spreads_are_written_for_people():
    assert text({"mean": 0.9514, "std": 0.0213, "n": 3}) == "0.95 ± 0.02"
    assert text({"mean": 12.0, "std": 0.0, "n": 1}) == "12.00"
