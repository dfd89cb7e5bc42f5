"""Figures of an attack show what they say: the choice is even, marks are right, and what was not recovered is told."""

import pytest
import torch

from projects.cafe import figures
from projects.cafe.figures import choose, draw_psnr, draw_recovered, draw_rmse, draw_values, pair

NAN = float("nan")


def test_the_choice_is_even_from_best_to_worst():
    errors = torch.arange(200.0)[torch.randperm(200)]
    chosen = choose(errors, 40)
    shown = errors[[row for row, _ in chosen]]
    assert (shown.diff() < 0).all()
    assert -shown.diff().min() <= 2 * 199 / 39 + 1
    assert {mark: float(errors[row]) for row, mark in chosen if mark} == {"best": 199.0, "median": 99.0, "worst": 0.0}


@pytest.mark.parametrize("count", [1, 2, 3, 39, 40, 41, 57])
def test_all_three_marks_are_shown_as_far_as_there_are_records(count):
    chosen = choose(torch.rand(count))
    assert len(chosen) == min(count, 40) == len({row for row, _ in chosen})
    assert [mark for _, mark in chosen if mark] == {1: ["best"], 2: ["best", "worst"]}.get(count, ["best", "median", "worst"])


def test_records_without_recovery_are_last_and_not_marked():
    errors = torch.tensor([NAN, 20.0, NAN, 30.0, 10.0])
    assert choose(errors) == [(3, "best"), (1, "median"), (4, "worst"), (0, ""), (2, "")]
    many = torch.cat([torch.rand(150), torch.full((1,), NAN)])
    assert choose(many)[-1] == (150, "")
    assert [mark for _, mark in choose(many) if mark] == ["best", "median", "worst"]
    assert choose(torch.full((3,), NAN)) == [(0, ""), (1, ""), (2, "")]


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pair_is_the_truth_a_gap_and_what_was_recovered(channels):
    truth, recovered = torch.rand(channels, 6, 12), torch.rand(channels, 6, 12) * 2
    recovered[:, :3, :4] = NAN
    pixels = torch.from_numpy(pair(truth, recovered))
    assert pixels.shape == (6, 25, 3)
    torch.testing.assert_close(pixels[:, :12], truth.expand(3, -1, -1).permute(1, 2, 0))
    assert (pixels[:, 12] == 1).all()
    assert (pixels[:3, 13:17] == figures.GREY).all()
    torch.testing.assert_close(pixels[3:, 13:], recovered[:, 3:].clamp(0, 1).expand(3, -1, -1).permute(1, 2, 0))


@pytest.mark.parametrize("channels", [1, 3])
def test_titles_tell_psnr_and_what_is_wrong(channels):
    truth, recovered = torch.rand(2, 3, channels, 8, 8)
    recovered[1] = NAN
    errors = torch.tensor([31.25, NAN, 12.0])
    figure = draw_recovered(truth, recovered, errors, torch.tensor([7, 8, 9]), {8: "it is in no recorded round"})
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == ["record 7: 31.2 dB (best)", "record 9: 12.0 dB (worst)", "record 8: it is in no recorded\nround"]
    assert [len(axis.lines) for axis in figure.axes] == [0, 0, 2]  # the cross
    assert "3 of 3 records" in figure.get_suptitle()


def counted(figure):
    return sum(patch.get_height() for patch in figure.axes[0].patches)


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_the_histogram_of_psnr_counts_all_records_and_marks_the_baseline_and_the_level():
    figure = draw_psnr(torch.tensor([10.0, 20.0, 35.0, 100.0, NAN], dtype=torch.float64), 13.7)
    assert counted(figure) == 4
    assert legend(figure) == ["4 records, 1 not recovered", "mean image, 13.7 dB", "counts as recovered, 30 dB"]
    assert [line.get_xdata()[0] for line in figure.axes[0].lines] == [13.7, 30]


@pytest.mark.parametrize("errors", [[1e-7, 3e-7, 0.0], [2.0, 3.0], [0.5]], ids=["tiny", "large", "one"])
def test_the_histogram_of_rmse_is_logarithmic_and_counts_all_rows(errors):
    figure = draw_rmse(torch.tensor(errors, dtype=torch.float64), 0.98)
    assert counted(figure) == len(errors)
    assert figure.axes[0].get_xscale() == "log"
    assert "mean row, 0.98" in legend(figure)


def test_values_lie_beside_the_truth_and_the_worst_columns_are_named():
    truth = torch.randn(5, 3)
    recovered = truth + torch.tensor([0.0, 0.1, -0.01])
    recovered[4] = NAN
    figure = draw_values(truth, recovered, ["a", "b", "c"])
    points = torch.from_numpy(figure.axes[0].collections[0].get_offsets().data)
    torch.testing.assert_close(points, torch.stack([truth[:4].flatten(), recovered[:4].flatten()], 1).double())
    bars = {label.get_text(): bar.get_width() for label, bar in zip(figure.axes[1].get_yticklabels(), figure.axes[1].patches, strict=True)}
    assert list(bars) == ["a", "c", "b"]
    assert (bars["b"], bars["c"]) == pytest.approx((0.1, 0.01), rel=1e-4)


def test_histograms_without_any_whole_record_show_the_baseline():
    nothing = torch.full((5,), NAN, dtype=torch.float64)
    for draw, baseline, said in ((draw_psnr, 13.7, "mean image, 13.7 dB"), (draw_rmse, 0.98, "mean row, 0.98")):
        figure = draw(nothing, baseline)
        assert counted(figure) == 0
        assert legend(figure)[:2] == ["0 records, 5 not recovered", said]
        low, high = figure.axes[0].get_xlim()
        assert low < baseline < high


def test_columns_of_which_nothing_was_recovered_are_no_bars():
    truth = torch.randn(5, 3)
    recovered = truth + torch.tensor([0.0, 0.1, NAN])
    figure = draw_values(truth, recovered, ["a", "b", "c"])
    assert [label.get_text() for label in figure.axes[1].get_yticklabels()] == ["a", "b"]
