"""What the pictures of fields, ensembles and errors show."""

import math

import numpy as np
import pytest
import torch

from projects.s3rp.figures import chosen_frames, colours, draw_by_frame, draw_calibration, draw_fields, draw_members, draw_spectra
from projects.s3rp.physics import Wind
from projects.s3rp.worlds import World, draw_plumes


@pytest.fixture(scope="module")
def plumes():
    return draw_plumes(World(size=8, factor=2, frames=3, missing=0.2, seed=1), 1)


def panels(figure):
    return [axis for axis in figure.axes if axis.images and axis.get_label() != "<colorbar>"]


def test_a_sheet_has_a_row_for_everything_known_and_one_scale_for_values(plumes):
    observed, truth = plumes.observations, plumes.truth[0]
    fields, deviation = {"bicubic": truth * 0.5, "ours": truth - 0.25}, torch.full_like(truth, 0.1)
    wind = Wind(observed.wind.u[0], observed.wind.v[0])
    figure = draw_fields(observed.coarse[0], fields, truth, deviation, observed.mask[0], wind, "ppb", "plume")
    shown = panels(figure)
    names = [axis.get_ylabel() for axis in shown[::3]]
    assert names == ["truth", "observed", "bicubic", "ours", "error of\nours", "deviation of\nours"]
    assert {axis.images[0].get_clim() for axis in shown[:12]} == {(0.0, float(truth.max()))}
    np.testing.assert_allclose(shown[12].images[0].get_array(), -0.25, atol=1e-6)
    missing = np.ma.getmaskarray(np.ma.masked_invalid(shown[4].images[0].get_array()))
    assert (missing == ~observed.mask[0, 1].numpy()).all()
    assert all(axis.images[0].origin == "lower" for axis in shown), "y points upward, as v does"
    assert {axis.get_ylabel() for axis in figure.axes} >= {"value [ppb]", "error [ppb]", "deviation [ppb]"}
    assert [axis.get_title() for axis in shown[:3]] == ["frame 1", "frame 2", "frame 3"]
    figure.canvas.draw()


def test_without_a_truth_there_is_no_error(plumes):
    shown = panels(draw_fields(plumes.observations.coarse[0], {"ours": plumes.truth[0]}))
    assert [axis.get_ylabel() for axis in shown[::3]] == ["observed", "ours"]


def test_signed_fields_and_fields_of_nothing_have_a_scale(plumes):
    coarse, signed = plumes.observations.coarse[0], plumes.truth[0] - 0.5
    low, high = panels(draw_fields(coarse, {"ours": signed}))[-1].images[0].get_clim()
    assert low == -high == -float(signed.abs().max())
    empty = draw_fields(coarse * 0, {"ours": signed * 0}, signed * 0, signed * 0)
    assert panels(empty)[0].images[0].get_clim() == (0.0, 1.0)
    empty.canvas.draw()


def test_frames_without_observations_are_marked_and_times_shown(plumes):
    mask = torch.tensor([True, False, True, False])[:, None, None].expand(4, 4, 4)
    shown = panels(draw_fields(torch.ones(4, 4, 4), {"ours": torch.ones(4, 8, 8)}, mask=mask, times=["0 h", "1 h", "2 h", "3 h"]))
    assert [axis.get_title() for axis in shown[:4]] == ["frame 1\n0 h", "frame 2 (gap)\n1 h", "frame 3\n2 h", "frame 4 (forecast)\n3 h"]


def test_values_far_above_zero_have_colours_of_their_own():
    assert [colours(*ends)["vmin"] for ends in ((6.0, 10.0), (4.0, 10.0), (10.0, 10.0), (-0.5, 10.0), (-2.0, 10.0))] == [6.0, 0.0, 0.0, 0.0, -10.0]


def test_arrows_are_the_winds_at_the_cells(plumes):
    wind = Wind(torch.ones(1, 8, 8), torch.full((1, 8, 8), -0.5))
    axis = panels(draw_fields(plumes.observations.coarse[0], {"ours": plumes.truth[0]}, wind=wind))[0]
    (arrows,) = axis.collections
    assert np.unique(arrows.U) == [1.0]
    assert np.unique(arrows.V) == [-0.5]
    assert arrows.get_offsets()[0].tolist() == [1 / 16, 1 / 16]
    opened = Wind(torch.ones(1, 8, 9), torch.zeros(1, 9, 8))
    draw_fields(plumes.observations.coarse[0], {"ours": plumes.truth[0]}, wind=opened).canvas.draw()


def test_long_sequences_show_some_frames_from_the_first_to_the_last():
    assert chosen_frames(3) == [0, 1, 2]
    assert chosen_frames(1) == [0]
    assert chosen_frames(29) == [0, 4, 8, 12, 16, 20, 24, 28]


@pytest.mark.parametrize("known", [False, True])
def test_members_stand_beside_their_mean_and_deviation(known):
    members = torch.rand(12, 6, 6, generator=torch.Generator().manual_seed(0))
    shown = panels(draw_members(members, members[0] if known else None, count=4))
    titles = [axis.get_title() for axis in shown]
    assert titles == ["truth"] * known + ["mean", "standard deviation", *(f"member {number}" for number in range(1, 5))]
    np.testing.assert_allclose(shown[known].images[0].get_array(), members.mean(0), rtol=1e-6)
    np.testing.assert_allclose(shown[1 + known].images[0].get_array(), members.std(0), rtol=1e-6)


def test_methods_are_drawn_by_frame_with_forecasts_in_a_shade():
    figure = draw_by_frame({"bicubic": [0.3, 0.2, 0.2], "ours": torch.tensor([math.nan, 0.1, 0.1])}, observed=2)
    (axis,) = figure.axes
    assert axis.lines[0].get_xydata().tolist() == [[1, 0.3], [2, 0.2], [3, 0.2]]
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["bicubic", "ours"]
    assert axis.patches[0].get_x() == 2.5
    assert not draw_by_frame({"ours": [0.1, 0.2]}, observed=2).axes[0].patches
    figure.canvas.draw()


def test_spectra_are_compared_where_the_truth_has_power():
    truth = torch.tensor([1.0, 1.0, 0.1, 1e-9, 0.0])
    figure = draw_spectra({"truth": truth, "ours": truth / 2}, 4)
    left, right = figure.axes
    assert left.lines[0].get_xdata().tolist() == [1, 2, 3, 4]
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.5, 0.5, np.nan, np.nan])
    figure.canvas.draw()


def test_flat_ranks_lie_at_one_and_on_the_diagonal():
    figure = draw_calibration({"raw": torch.tensor([9, 1, 1, 1, 9]), "calibrated": torch.full((5,), 7)})
    raw, flat, reliability = figure.axes
    assert [bar.get_height() for bar in flat.patches] == [1.0] * 5
    assert raw.patches[0].get_height() == pytest.approx(45 / 21)
    np.testing.assert_allclose(reliability.lines[1].get_xdata(), reliability.lines[1].get_ydata())
    assert (reliability.lines[0].get_ydata() < reliability.lines[0].get_xdata()).all()
    figure.canvas.draw()
