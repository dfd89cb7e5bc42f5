"""Files of PDEBench and The Well: what is read is what lies there, and what will not do is named."""

import numpy as np
import pytest
import torch

from projects.s3rp.assembling import Reading
from projects.s3rp.benchmarks import read_benchmark
from projects.s3rp.data import PlumeData
from projects.s3rp.layouts import read_observations, read_split, read_truth
from projects.s3rp.observing import block_mean
from projects.s3rp.physics import Wind
from shared.data.files import BadFileError


def _hdf5(file, content, attributes=()):
    import h5py

    with h5py.File(file, "w") as out:
        for name, array in content.items():
            out[name] = array
        out.attrs.update(dict(attributes))
    return file


CENTRES = (np.arange(8) + 0.5) / 8


def test_pdebench_flow_that_carries_particles_is_read(tmp_path):
    rng = np.random.default_rng(0)
    field, velocity = rng.random((2, 3, 8, 8, 1)), 0.01 * rng.random((2, 3, 8, 8, 2))
    file = _hdf5(tmp_path / "ns_incom_inhom_2d_512-0.h5", {"particles": field, "velocity": velocity, "t": np.tile([0, 0.1, 0.2], (2, 1))})
    found, truth = read_benchmark(file, Reading(diffusivity=1e-3))
    np.testing.assert_allclose(truth, field[..., 0].swapaxes(-1, -2), rtol=1e-6)
    torch.testing.assert_close(found.coarse, block_mean(truth, 4))
    np.testing.assert_allclose(found.wind.u[0, 0, :, 1:-1], (velocity[0, 0, :-1, :, 0] + velocity[0, 0, 1:, :, 0]).T / 2, rtol=1e-5)
    assert (found.physics.diffusivity, round(found.physics.interval, 6), found.physics.boundary) == (1e-3, 0.1, "open")
    assert len(read_benchmark(file, Reading(diffusivity=1e-3, sequences=1, frames=2))[1][0]) == 2
    torch.testing.assert_close(read_truth(file, found).field, truth)
    ahead = read_observations(file, Reading(diffusivity=1e-3), horizon=2)
    assert ahead.mask.flatten(2).any(2)[0].tolist() == [True, True, True, False, False]


def test_what_files_of_a_root_lack_is_given_by_options_and_they_are_their_own_truth(tmp_path):
    rng = np.random.default_rng(0)
    content = {"particles": rng.random((2, 3, 8, 8, 1)), "velocity": 0.01 * rng.random((2, 3, 8, 8, 2)), "t": np.tile([0, 0.1, 0.2], (2, 1))}
    _hdf5(tmp_path / "test.h5", content)
    data = PlumeData("files", str(tmp_path), reading=Reading(factor=2, diffusivity=1e-3))
    assert (data.factor, data.observations("test").physics.diffusivity) == (2, 1e-3)
    torch.testing.assert_close(block_mean(data.truth("test"), 2), data.observations("test").coarse)


def test_pdebench_compressible_density_is_read(tmp_path):
    fields = {name: 0.01 * np.random.default_rng(place).random((1, 3, 8, 8)) for place, name in enumerate(("density", "Vx", "Vy", "pressure"))}
    grid = {"x-coordinate": CENTRES, "y-coordinate": CENTRES, "t-coordinate": np.arange(4) * 0.1}
    found = read_observations(_hdf5(tmp_path / "2D_CFD.hdf5", fields | grid))
    np.testing.assert_allclose(found.coarse, block_mean(torch.from_numpy(fields["density"]), 4).mT, rtol=1e-6)


def test_pdebench_diffusion_reaction_groups_are_read(tmp_path):
    data = {f"{number:04d}/data": np.random.default_rng(number).random((3, 8, 8, 2)) for number in range(2)}
    grids = {f"{number:04d}/grid/{axis}": CENTRES if axis != "t" else np.arange(3) * 0.05 for number in range(2) for axis in "xyt"}
    found, truth = read_benchmark(_hdf5(tmp_path / "2D_diff-react_NA_NA.h5", data | grids), Reading(factor=2))
    np.testing.assert_allclose(truth[1], data["0001/data"][..., 0].swapaxes(-1, -2), rtol=1e-6)
    assert (found.factor, found.physics.diffusivity, float(found.wind.u.abs().max())) == (2, 1e-3, 0)


def test_pdebench_advection_of_one_dimension_is_one_coarse_row(tmp_path):
    places, times = (np.arange(16) + 0.5) / 16, np.arange(6) * 0.01
    line = np.sin(2 * np.pi * (places - 0.4 * times[:5, None]))[None]
    file = _hdf5(tmp_path / "1D_Advection_Sols_beta0.4.hdf5", {"tensor": line, "x-coordinate": places, "t-coordinate": times})
    found, truth = read_benchmark(file, Reading())
    assert (tuple(found.coarse.shape), tuple(truth.shape)) == ((1, 5, 1, 4), (1, 5, 4, 16))
    carried = found.physics.advance(truth[:, 0].double(), Wind(found.wind.u[:, 0].double(), found.wind.v[:, 0].double()))
    assert float((carried - truth[:, 1]).abs().max()) < 2e-3  # the wind is beta, in the direction that the data move


@pytest.mark.parametrize("beta", [0.1, 0.4, 7.0])
def test_advection_of_pdebenchs_first_release_which_moves_twice_as_fast_is_refused(tmp_path, beta):
    places, times = (np.arange(64) + 0.5) / 64, np.arange(6) * 0.01
    for speed in (1, 2):
        line = np.stack([np.sin(2 * np.pi * wave * (places - speed * beta * times[:5, None])) for wave in (1, 3)])
        content = {"tensor": line.astype(np.float32), "x-coordinate": places, "t-coordinate": times}
        file = _hdf5(tmp_path / f"1D_Advection_Sols_beta{beta}.hdf5", content)
        if speed == 1:
            assert read_observations(file).frames == 5
    with pytest.raises(BadFileError, match=f"move twice as fast as the wind {beta} of its name, .* download the file anew"):
        read_observations(file)


def test_the_well_is_read_with_its_own_diffusivity(tmp_path):
    rng = np.random.default_rng(0)
    tracer, velocity = rng.random((2, 3, 8, 8)), 0.01 * rng.random((2, 3, 8, 8, 2))
    grid = {"dimensions/time": np.arange(3) * 0.1, "dimensions/x": CENTRES, "dimensions/y": 2 * CENTRES}
    content = {"t0_fields/tracer": tracer, "t0_fields/pressure": 0 * tracer, "t1_fields/velocity": velocity} | grid
    file = _hdf5(tmp_path / "shear_flow.hdf5", content, {"Reynolds": 1e4, "Schmidt": 0.1})
    found, truth = read_benchmark(file, Reading())
    np.testing.assert_allclose(truth, tracer.swapaxes(-1, -2), rtol=1e-6)
    assert found.physics.diffusivity == pytest.approx(1e-3)
    np.testing.assert_allclose(found.physics.spacing, [0.25, 0.125])
    assert found.physics.boundary == "periodic"


def test_the_wells_folders_of_splits_are_read_where_each_holds_one_file(tmp_path):
    rng = np.random.default_rng(0)
    grid = {"dimensions/time": np.arange(3) * 0.1, "dimensions/x": CENTRES, "dimensions/y": 2 * CENTRES}
    for count, split in enumerate(("train", "valid", "test"), start=1):
        content = {"t0_fields/tracer": rng.random((count, 3, 8, 8)), "t1_fields/velocity": 0.01 * rng.random((count, 3, 8, 8, 2))} | grid
        (tmp_path / split).mkdir()
        file = _hdf5(tmp_path / split / "shear_flow_Reynolds_1e4_Schmidt_1e-1.hdf5", content, {"Reynolds": 1e4, "Schmidt": 0.1})
    data = PlumeData("files", str(tmp_path))
    data.prepare_data()
    assert [len(data.observations(split)) for split in ("train", "val", "test")] == [1, 2, 3]
    torch.testing.assert_close(block_mean(data.truth("test"), 4), data.observations("test").coarse)
    assert next(iter(data.test_dataloader()))["coarse"].shape[1:] == (3, 2, 2)
    file.with_name("shear_flow_Reynolds_1e5_Schmidt_1e-1.hdf5").write_bytes(file.read_bytes())
    with pytest.raises(
        ValueError, match=r"test has several files, .*1e4.*1e5.*: a network learns from one; keep it alone, or link it as .*test\.hdf5"
    ):
        read_split(tmp_path, "test")
    (tmp_path / "test.hdf5").symlink_to(file)
    assert len(read_split(tmp_path, "test")) == 3


def test_shallow_water_of_pdebench_is_no_diffusion_reaction(tmp_path):
    grids = {f"0000/grid/{axis}": CENTRES for axis in "xyt"}
    file = _hdf5(tmp_path / "2D_rdb_NA_NA.h5", {"0000/data": np.ones((3, 8, 8, 1))} | grids)
    with pytest.raises(BadFileError, match=r"data has the shape \(3, 8, 8, 1\): .* diffusion-reaction \(T, X, Y, 2\) alone is read"):
        read_observations(file)
