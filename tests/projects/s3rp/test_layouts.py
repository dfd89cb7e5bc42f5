"""Files of the layout and of netCDF: what is read is what was written, and what is wrong is named."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.s3rp.arrays import check_room, read_arrays, write_arrays
from projects.s3rp.assembling import Reading, assemble, frame_time
from projects.s3rp.data import PlumeData
from projects.s3rp.layouts import find_truth, read_observations, read_placed, read_split, read_truth, write_observations, write_truth
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Wind, divergence, wind_from_stream
from projects.s3rp.winds import clean_wind, refined, resampled
from projects.s3rp.worlds import World, draw_plumes
from shared.data.files import BadFileError

WORLD = World(size=16, frames=4, missing=0.2, missing_frames=0.2, turning=1.0, sources=1, sigma=0.01)


@pytest.fixture(scope="module")
def plumes():
    return draw_plumes(WORLD, 2, "test")


@pytest.fixture
def arrays():
    y = np.ones((2, 3, 4, 4), np.float32)
    y[0, 1, 2, 3] = np.nan
    wind = np.zeros((2, 1, 16, 16), np.float32)
    return {"y": y, "u": wind + 1, "v": wind, "dt": np.array(0.05), "D": np.array(1e-3)}


# ---- our own layout


@pytest.mark.parametrize("ending", [".npz", ".h5", ".zarr"])
@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_what_is_written_is_read_again(tmp_path, ending, boundary):
    drawn = draw_plumes(replace(WORLD, boundary=boundary), 2, "test")
    file, truth = tmp_path / f"test{ending}", tmp_path / "truth" / f"test{ending}"
    write_observations(file, drawn.observations)
    write_truth(truth, drawn.truth, drawn.source)
    found = read_split(tmp_path, "test")
    for name in ("coarse", "mask", "source"):
        torch.testing.assert_close(getattr(found, name), getattr(drawn.observations, name), rtol=0, atol=0)
    torch.testing.assert_close(tuple(found.wind), tuple(drawn.observations.wind), rtol=0, atol=0)
    assert (found.physics, found.sigma, found.names) == (drawn.observations.physics, 0.01, drawn.observations.names)
    torch.testing.assert_close(find_truth(tmp_path, "test", found), drawn.truth, rtol=0, atol=0)
    torch.testing.assert_close(read_truth(truth).source, drawn.source, rtol=0, atol=0)


def test_the_truth_is_in_no_file_of_observations(tmp_path, plumes):
    write_observations(tmp_path / "test.npz", plumes.observations)
    with np.load(tmp_path / "test.npz") as content:
        assert "c_true" not in content.files
    assert find_truth(tmp_path, "test") is None
    write_truth(tmp_path / "truth.npz", plumes.truth)
    assert find_truth(tmp_path, "val") is None
    assert find_truth(tmp_path, "test", plumes.observations).shape == plumes.truth.shape
    with pytest.raises(BadFileError, match=r"c_true has the shape .* and the observations go with"):
        find_truth(tmp_path, "test", plumes.observations.select([0]))


def test_nan_is_missing_and_adds_to_the_mask(arrays):
    mask = np.ones((2, 3, 4, 4), bool)
    mask[1, 0] = False
    found = assemble(arrays | {"mask": mask}, Reading())
    expected = mask & ~np.isnan(arrays["y"])
    np.testing.assert_array_equal(found.mask.numpy(), expected)
    assert float(found.coarse[~found.mask].abs().max()) == 0


def test_one_sequence_and_one_wind_need_no_further_axes(arrays):
    whole = assemble({**arrays, "y": arrays["y"][:1]} | {name: arrays[name][:1] for name in "uv"}, Reading())
    short = assemble({**arrays, "y": arrays["y"][0]} | {name: arrays[name][0, 0] for name in "uv"}, Reading())
    torch.testing.assert_close(short.coarse, whole.coarse)
    torch.testing.assert_close(tuple(short.wind), tuple(whole.wind))


def test_irregular_stamps_are_snapped_and_absent_frames_are_missing_ones(arrays):
    speeds = np.broadcast_to(np.array([0.0, 1.0, 3.0], np.float32)[None, :, None, None], (2, 3, 16, 16))
    found = assemble(arrays | {"times": np.array([7.0, 7.0502, 7.1498]), "u": speeds}, Reading())
    assert found.frames == 4
    assert found.mask.flatten(2).any(2).tolist() == [[True, True, False, True]] * 2
    np.testing.assert_allclose(found.wind.u[0, :, 0, 0], [0, 1, 2, 3], rtol=1e-6)  # interpolated in time
    with pytest.raises(ValueError, match=r"times do not lie on a grid of dt = 0.05: frame 1 .* 0.40 of a frame"):
        assemble(arrays | {"times": np.array([0, 0.07, 0.1])}, Reading())


def test_the_time_of_a_frame_does_not_drift_with_jitter():
    regular = 0.5 * np.delete(np.arange(200.0), [3, 4, 70])
    assert frame_time(regular + 0.005 * np.random.default_rng(0).standard_normal(len(regular))) == pytest.approx(0.5, rel=1e-3)


def test_forecasts_take_winds_that_go_on_or_hold_the_last(arrays):
    speeds = np.broadcast_to(np.arange(4, dtype=np.float32)[None, :, None, None], (2, 4, 16, 16))
    found = assemble(arrays | {"u": speeds}, Reading(), horizon=3)
    assert found.wind.u[0, :, 0, 0].tolist() == [0, 1, 2, 3, 3, 3]
    assert not found.mask[:, 3:].any()
    assert assemble(arrays | {"u": speeds}, Reading()).wind.u.shape[1] == 3


WRONG = {
    "channels": ({"y": np.zeros((3, 4, 4, 1), np.float32)}, r"the shape \(3, 4, 4, 1\), of one cell a row: .* no axis of channels"),
    "no y": ({"y": None}, "no array y"),
    "words": ({"y": np.array(["a"])}, "y holds <U1"),
    "flat y": ({"y": np.ones((4, 4))}, "y has the shape"),
    "large fillers": ({"y": np.where(np.arange(4) == 2, 1e20, np.ones((2, 3, 4, 4)))}, r"1e\+20 24 times, which looks like a missing value"),
    "fillers": ({"y": np.where(np.arange(4) == 2, -9999, np.ones((2, 3, 4, 4)))}, r"-9999 24 times, which looks like a missing value .* write NaN"),
    "divergence": ({"u": 3 * np.random.default_rng(0).random((16, 16))}, "set --clean_wind true"),
    "infinite y": ({"y": np.full((2, 3, 4, 4), np.inf)}, "infinite"),
    "empty sequence": ({"y": np.full((2, 3, 4, 4), np.nan)}, "no observed value at all in sequence 0"),
    "mask": ({"mask": np.ones((2, 3, 4, 5), bool)}, "mask is bool of"),
    "no wind": ({"u": None}, "no array u or u_centre"),
    "nan wind": ({"v": np.full((2, 1, 16, 16), np.nan)}, r"v holds NaN or infinity, first at \[0, 0, 0, 0\]"),
    "wind frames": ({"u": np.ones((2, 1 + 0, 16, 16)), "v": np.ones((3, 1, 16, 16))}, "v has the shape"),
    "dims": ({"u": np.ones((2, 1, 15, 15)), "v": np.ones((2, 1, 15, 15))}, "no whole multiple"),
    "coarse wind": ({"u": np.ones((4, 4)), "v": np.ones((4, 4))}, "set the option factor"),
    "no dt": ({"dt": None}, "no dt: add it to the file, or set the option interval"),
    "negative D": ({"D": np.array(-1.0)}, "D is -1.0"),
    "many D": ({"D": np.ones(3)}, "D has the shape"),
    "bounds": ({"bounds": np.array([1, 0, 0, 1])}, "y0 < y1"),
    "boundary": ({"boundary": np.array("wall")}, "boundary is 'wall'"),
    "faces": ({"boundary": np.array("open")}, "name velocities at the cells' centres u_centre and v_centre"),
    "units": ({"u": np.full((16, 16), 1e6)}, "in the same units"),
    "source": ({"source": np.ones((2, 1, 8, 8))}, "the source holds rates"),
    "names": ({"names": np.array(["a"])}, "1 names for 2 sequences"),
    "stamps": ({"times": np.arange(5)}, "times has the shape"),
    "falling stamps": ({"times": np.array([0, 2, 1])}, "rise from frame to frame"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_its_file(tmp_path, arrays, case):
    changes, message = WRONG[case]
    content = {name: array for name, array in (arrays | changes).items() if array is not None}
    np.savez(tmp_path / "mine.npz", **content)
    with pytest.raises(BadFileError, match=f"cannot use .*mine.npz: .*{message}"):
        read_observations(tmp_path / "mine.npz")


def test_missing_and_doubled_files_are_told(tmp_path, arrays):
    with pytest.raises(FileNotFoundError, match=r"no sequences of the train split .*expected train.npz with y, u, v, dt and D"):
        read_split(tmp_path, "train")
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(BadFileError, match=r"no \.npz file, as numpy"):
        read_observations(tmp_path / "text.npz")
    with pytest.raises(FileNotFoundError, match="correct the path"):
        read_observations(tmp_path / "a.npz")
    for ending in (".npz", ".h5"):
        write_arrays(tmp_path / f"train{ending}", arrays)
    with pytest.raises(ValueError, match=r"several files for train: keep one of train.npz, train.h5"):
        read_split(tmp_path, "train")


def test_texts_are_of_characters_that_there_are(tmp_path, arrays):
    names = np.frombuffer(b"\x00\x00\x11\x00", "<U1")
    np.savez(tmp_path / "a.npz", **arrays, names=names)
    with pytest.raises(BadFileError, match=r"a\.npz: its texts have a character of code 0x110000"):
        read_arrays(tmp_path / "a.npz", ("names",))


def test_nothing_loaded_can_run(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays, names=np.array([{"an": "object"}], object))
    with pytest.raises(BadFileError, match="names holds Python objects: save it as numbers"):
        read_observations(tmp_path / "a.npz")
    write_arrays(tmp_path / "a.zarr", arrays)
    described = json.loads((tmp_path / "a.zarr" / "y" / ".zarray").read_text())
    (tmp_path / "a.zarr" / "y" / ".zarray").write_text(json.dumps(described | {"filters": [{"id": "pickle"}]}))
    with pytest.raises(BadFileError, match="the codec 'pickle'"):
        read_observations(tmp_path / "a.zarr")


def test_arrays_beyond_memory_are_refused_before_they_are_read():
    with pytest.raises(BadFileError, match="more than fits into memory"):
        check_room("y", (10**6, 10**6, 10**3), 4)


def _damaged(content: bytes, rng: np.random.Generator) -> bytes:
    """Cut a file, or flip bits: half the time in its first kilobyte, where headers are."""
    if rng.random() < 0.3:
        return content[: rng.integers(len(content))]
    flipped = bytearray(content)
    for _ in range(rng.integers(1, 12)):
        flipped[rng.integers(len(flipped) if rng.random() < 0.5 else min(1024, len(flipped)))] ^= 1 << rng.integers(8)
    return bytes(flipped)


@pytest.mark.parametrize("name", ["whole.npz", "whole.h5", "netcdf3.nc", "netcdf4.nc"])
def test_damaged_files_are_refused_in_words_or_read(tmp_path, arrays, name):
    whole, file = tmp_path / name, tmp_path / f"damaged{Path(name).suffix}"
    axes = {axis: ((axis,), np.arange(4.0), {"units": "m"}) for axis in ("time", "y", "x")}
    axes["time"][2]["units"] = "s"
    if name.endswith(".nc"):
        fields = {one: (("time", "y", "x"), np.full((4, 4, 4), 0.1), {}) for one in ("c", "u", "v")}
        (_write_netcdf3 if "3" in name else _write_netcdf4)(whole, axes | fields)
    else:
        write_arrays(whole, arrays)
    content, rng, refused = whole.read_bytes(), np.random.default_rng(5), 0
    read_observations(whole, Reading(factor=4, diffusivity=0.1))
    for _ in range(60):
        file.write_bytes(_damaged(content, rng))
        try:
            read_observations(file, Reading(factor=4, diffusivity=0.1))
        except BadFileError as error:
            refused += str(file) in str(error)
    assert refused > 10


# ---- winds


@pytest.mark.parametrize("boundary", ["periodic", "open"])
def test_cleaned_winds_are_the_nearest_without_divergence(boundary):
    rng, (dy, dx), further = np.random.default_rng(0), (0.5, 0.25), int(boundary == "open")
    noise = Wind(torch.from_numpy(rng.standard_normal((6, 8 + further))), torch.from_numpy(rng.standard_normal((6 + further, 8))))
    found = clean_wind(noise, (dy, dx), boundary)
    assert float(divergence(found, (dy, dx), boundary).abs().max()) < 1e-12
    constraint = (
        torch.stack(  # least squares over all faces, by the pseudo-inverse
            [
                divergence(
                    Wind(*(part.view_as(like) for part, like in zip(row.split([noise.u.numel(), noise.v.numel()]), noise, strict=True))),
                    (dy, dx),
                    boundary,
                )
                for row in torch.eye(noise.u.numel() + noise.v.numel(), dtype=torch.float64)
            ]
        )
        .flatten(1)
        .T
    )
    flat = torch.cat([part.flatten() for part in noise])
    expected = flat - torch.linalg.pinv(constraint) @ (constraint @ flat)
    torch.testing.assert_close(torch.cat([part.flatten() for part in found]), expected, rtol=0, atol=1e-10)


def test_divergence_is_remarked_on_and_mended(arrays, caplog):
    gust = {"u": arrays["u"] + np.random.default_rng(0).random(arrays["u"].shape).astype(np.float32)}
    with caplog.at_level(logging.WARNING):
        assemble(arrays | gust, Reading(), file="mine.npz")
    assert "mine.npz: the winds are not free of divergence" in caplog.text
    caplog.clear()
    found = assemble(arrays | gust, Reading(clean_wind=True))
    assert not caplog.text
    assert float(divergence(found.wind, found.physics.spacing).abs().max()) < 1e-4


def test_options_that_overrule_the_file_and_winds_of_another_grid_are_remarked_on(arrays, caplog):
    told = arrays | {"boundary": np.array("periodic"), "sigma": np.array(0.1)}
    with caplog.at_level(logging.WARNING):
        assemble(told, Reading(4, diffusivity=1e-3, sigma=0.1, boundary="periodic"))
    assert not caplog.messages
    narrow = {name: array for name, array in told.items() if name not in "uv"} | {"u_centre": told["u"], "v_centre": told["v"]}
    found = assemble(narrow | {"y": arrays["y"][..., :3]}, Reading(4, diffusivity=0.002, interval=0.05), file="a.npz")
    assert caplog.messages == [
        "a.npz: the file says D = 0.001; 0.002 of the option diffusivity is used in its place",
        "a.npz: winds of 16 x 16 cells brought to 16 x 12",
    ]
    assert found.physics.diffusivity == 0.002


def test_a_file_that_is_no_netcdf_is_told_so(tmp_path):
    for content in (b"CDF\x01 and nothing else", b"hello"):
        (tmp_path / "a.nc").write_bytes(content)
        with pytest.raises(BadFileError, match=r"a\.nc: it is damaged, or no netCDF file: write it again"):
            read_observations(tmp_path / "a.nc")


def test_resampling_is_linear_and_goes_around():
    values, places = np.random.default_rng(0).random((3, 5)), np.array([0.1, 0.3, 0.5, 0.7, 0.9])
    wanted = np.linspace(-1, 2, 40)
    expected = [np.interp(wanted, places, row) for row in values]
    np.testing.assert_allclose(resampled(values, 1, places, wanted), expected, atol=1e-12)
    around = [np.interp(wanted, places, row, period=1.0) for row in values]
    np.testing.assert_allclose(resampled(values, 1, places, wanted, 1.0), around, atol=1e-12)


def test_winds_of_the_coarse_grid_come_close_to_the_fine_ones():
    corners = torch.arange(64, dtype=torch.float64) / 64
    fine = wind_from_stream(torch.sin(2 * torch.pi * corners)[:, None] * torch.cos(2 * torch.pi * corners) / 6, (1 / 64, 1 / 64))
    coarse = [block_mean((part + part.roll(-1, axis)) / 2, 4).numpy()[None, None] for part, axis in ((fine.u, -1), (fine.v, -2))]
    found = refined(*coarse, (64, 64), (0, 1, 0, 1), "periodic")
    assert float((found.u[0, 0] - fine.u).norm() / fine.u.norm()) < 0.05
    assert float(divergence(found, (1 / 64, 1 / 64)).abs().max()) < 1e-9


# ---- netCDF


@pytest.mark.parametrize("kind", ["netcdf3", "netcdf4"])
def test_netcdf_is_read_after_the_conventions(tmp_path, kind):
    truth = np.random.default_rng(0).random((5, 6, 8)) * 10
    packed = np.rint(truth / 0.01 - 5).astype(np.int16)
    packed[1, 2, 3] = -999
    hours, latitudes, longitudes = np.array([0, 1, 2, 4, 5.0]), 50.25 - 0.5 * np.arange(6), (358 + 0.5 * np.arange(8)) % 360
    speeds = np.broadcast_to(np.array([0, 2, 4, 6.0])[:, None, None], (4, 9, 12))
    content = {
        "time": (("time",), hours, {"units": "hours since 2020-01-01 00:00:00"}),
        "lat": (("lat",), latitudes, {"units": "degrees_north"}),
        "lon": (("lon",), longitudes, {"units": "degrees_east"}),
        "wt": (("wt",), 1577836800 + 3600 * np.array([0, 2, 4, 6.0]), {"units": "seconds since 1970-01-01", "axis": "T"}),
        "wlat": (("wlat",), np.linspace(47, 51, 9), {"units": "degrees_north"}),
        "wlon": (("wlon",), np.linspace(-3, 2.5, 12), {"units": "degrees_east"}),
        "no2": (("time", "lat", "lon"), packed, {"_FillValue": np.int16(-999), "scale_factor": 0.01, "add_offset": 0.05, "units": "umol m-2"}),
        "east": (("wt", "wlat", "wlon"), speeds, {"units": "m s-1", "standard_name": "eastward_wind"}),
        "v10": (("wt", "wlat", "wlon"), 0 * speeds, {"units": "km/h"}),
    }
    (_write_netcdf3 if kind == "netcdf3" else _write_netcdf4)(tmp_path / "a.nc", content)
    found, places = read_placed(tmp_path / "a.nc", Reading(factor=4, diffusivity=100.0), horizon=1)
    expected, seen = truth[:, ::-1], [0, 1, 2, 4, 5]
    assert found.mask.flatten(2).any(2).tolist() == [[True, True, True, False, True, True, False]]
    assert int((~found.mask[0, seen]).sum()) == 1
    difference = (found.coarse[0, seen].numpy() - expected) * found.mask[0, seen].numpy()
    assert np.abs(difference).max() <= 0.005 + 1e-4
    degree = np.pi / 180 * 6_371_000
    np.testing.assert_allclose(found.physics.spacing, [degree / 8, degree / 8 * np.cos(np.deg2rad(49))], rtol=1e-6)
    assert (found.physics.interval, found.physics.boundary, found.unit) == (3600, "open", "umol m-2")
    np.testing.assert_allclose(found.wind.u.mean((0, 2, 3)), [0, 1, 2, 3, 4, 5, 6], atol=1e-5)
    assert float(divergence(found.wind, found.physics.spacing, "open").abs().max()) < 1e-9
    np.testing.assert_allclose(places.y[[0, -1]], [47.75 - 0.1875, 50.25 + 0.1875])
    np.testing.assert_allclose(places.time, np.arange(7))
    assert (places.names, places.scalar) == (("time", "lat", "lon"), "no2")
    with pytest.raises(BadFileError, match=r"expected one wind along x|no variable 'nox', which the option scalar names"):
        read_observations(tmp_path / "a.nc", Reading(factor=4, diffusivity=1.0, scalar="nox"))
    with pytest.raises(BadFileError, match="set the option diffusivity"):
        read_observations(tmp_path / "a.nc", Reading(factor=4))


def winds_that_rise(file, units="seconds since 2024-05-01 00:00:00", fill=None, **attributes):
    """Four frames ten minutes apart, and a wind of 1, 2, 3 and 4 m/s at the same times by a clock of its own."""
    steps = np.arange(4) / 6 if units.startswith("hours") else np.arange(4) * 600.0
    scalar = np.random.default_rng(0).random((4, 8, 8)).astype(np.float32)
    if fill is not None:
        scalar[:, :2, :3] = fill
    speeds = np.broadcast_to(np.arange(1.0, 5)[:, None, None], (4, 8, 8))
    content = {
        "time": (("time",), np.arange(4) * 600.0, {"units": "seconds since 2024-05-01 00:00:00"}),
        "wtime": (("wtime",), steps, {"units": units, "standard_name": "time"}),
        **{axis: ((axis,), np.arange(8) * 1000.0, {"units": "m"}) for axis in "yx"},
        "no2": (("time", "y", "x"), scalar, {"units": "1"} | attributes),
        **{name: (("wtime", "y", "x"), speeds, {"units": "m/s"}) for name in "uv"},
    }
    _write_netcdf4(file, content)
    return file


def test_what_netcdf_files_of_a_root_lack_is_given_by_options(tmp_path):
    winds_that_rise(tmp_path / "test.nc")
    data = PlumeData("files", str(tmp_path), reading=Reading(factor=4, diffusivity=1.0))
    assert (data.factor, data.truth("test")) == (4, None)


@pytest.mark.parametrize(
    "units",
    ["hours since 2024-5-1 0:0:0", "seconds since 2024-05-01T02:00:00+02:00", "seconds since 2024-05-01 00:00:0.0", "hours since 2024-05-01 UTC"],
)
def test_winds_are_taken_by_their_own_clock(tmp_path, units):
    found = read_observations(winds_that_rise(tmp_path / "a.nc", units), Reading(factor=2, diffusivity=1.0))
    np.testing.assert_allclose(found.wind.u[0, :, 5, 5], [1, 2, 3, 4], rtol=1e-5)


@pytest.mark.parametrize(
    ("units", "message"),
    [
        ("seconds since 2019-05-01 00:00:00", r"variable u ends .* hours before the scalar: take winds of the same times, or correct .* wtime"),
        ("hours since 2024-05-01 06:00:00", r"variable u begins 6 hours after the scalar"),
        ("seconds since the release", r"coordinates wtime and time have the units 'seconds since the release' and .*: write both as"),
    ],
)
def test_winds_of_other_times_are_refused(tmp_path, units, message):
    with pytest.raises(BadFileError, match=message):
        read_observations(winds_that_rise(tmp_path / "a.nc", units), Reading(factor=2, diffusivity=1.0))


@pytest.mark.parametrize(
    ("fill", "attributes"),
    [
        (-999.9, {"missing_value": np.float64(-999.9)}),
        (1e20, {"_FillValue": np.float64(1e20)}),
        (9.969209968386869e36, {}),
        (2.1, {"valid_max": np.float64(2.0)}),
    ],
)
def test_what_stands_for_missing_values_is_known_in_single_precision(tmp_path, fill, attributes):
    found = read_observations(winds_that_rise(tmp_path / "a.nc", fill=fill, **attributes), Reading(factor=2, diffusivity=1.0))
    assert int((~found.mask).sum()) == 4 * 2 * 3
    assert float(found.coarse.max()) < 1


def _write_netcdf3(file, content):
    from scipy.io import netcdf_file

    with netcdf_file(file, "w") as out:
        for name, (dims, values, attributes) in content.items():
            for dim, side in zip(dims, values.shape, strict=True):
                if dim not in out.dimensions:
                    out.createDimension(dim, side)
            one = out.createVariable(name, values.dtype, dims)
            one[:] = values
            for key, value in attributes.items():
                setattr(one, key, value)


def _write_netcdf4(file, content):
    import h5py

    with h5py.File(file, "w") as out:
        for name, (dims, values, attributes) in content.items():
            out[name] = values
            out[name].attrs.update(attributes)
            if dims == (name,):
                out[name].make_scale(name)
        for name, (dims, _, _) in content.items():
            for place, dim in enumerate(dims if dims != (name,) else ()):
                out[name].dims[place].attach_scale(out[dim])


def test_arrays_that_are_not_wanted_are_not_touched(tmp_path):
    np.savez(tmp_path / "a.npz", y=np.ones(2), other=np.array([object()]))
    assert list(read_arrays(tmp_path / "a.npz", ("y", "u"))) == ["y"]
