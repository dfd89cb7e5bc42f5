"""The verb `predict`: fields that keep the observations, a spread, forecasts, tables and pictures, and messages for what does not fit."""

import csv
import json
import math
from dataclasses import replace

import lightning as L
import numpy as np
import pytest
import torch

from projects.s3rp.assembling import Reading
from projects.s3rp.fields import FieldPrior, fit_field
from projects.s3rp.layouts import write_observations, write_truth
from projects.s3rp.module import PlumeSuperResolution
from projects.s3rp.observing import block_mean
from projects.s3rp.outlook import CELLS, Outlook, cautions, draw_members, estimate, growth, look_out, prior_of
from projects.s3rp.prediction import Wish, find_sequences, predict, result_stems, sentence
from projects.s3rp.worlds import World, draw_plumes
from shared.data.files import BadFileError

WORLD = World(size=16, frames=4, missing=0.2, turning=1.0, sigma=0.02, diffusivity=4e-3)
PLAIN = Wish(members=0)


@pytest.fixture
def trainer(tmp_path):
    trainer = L.Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path / "run", enable_checkpointing=False, enable_progress_bar=False)
    trainer.verb, trainer.is_forced = "predict", False
    return trainer


@pytest.fixture(scope="module")
def module():
    return PlumeSuperResolution(channels=4)


@pytest.fixture
def file(tmp_path):
    write_observations(tmp_path / "in" / "mine.npz", draw_plumes(WORLD, 2, "test").observations)
    return tmp_path / "in" / "mine.npz"


@pytest.fixture
def unpictured(monkeypatch):
    monkeypatch.setattr("projects.s3rp.prediction._draw", lambda *arguments: None)


def _results(tmp_path):
    return tmp_path / "run" / "artefacts" / "predict"


def test_a_file_gets_fields_spread_members_pictures_and_a_table(tmp_path, trainer, module, file, capsys, monkeypatch):
    monkeypatch.setattr("projects.s3rp.prediction.PICTURED", 1)
    found = predict(trainer, module, str(file), Wish(horizon=2, members=20, keep_members=True))
    folder = _results(tmp_path)
    assert [row["sequence"] for row in found.rows] == ["mine/test-00000", "mine/test-00001"]
    with np.load(folder / "mine" / "test-00001.npz", allow_pickle=False) as content:
        assert content["mean"].shape == content["sd"].shape == (6, 16, 16)
        np.testing.assert_allclose(content["members"].std(0, ddof=1), content["sd"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(content["time"], 0.05 * np.arange(6))
        mean, coarse = torch.from_numpy(content["mean"]), torch.from_numpy(content["coarse"])
    seen = coarse.isfinite()
    assert not seen[4:].any()
    torch.testing.assert_close(block_mean(mean, 4)[seen], coarse[seen], rtol=0, atol=1e-5)
    for ending in ("png", "gif"):
        assert (folder / "mine" / f"test-00000.{ending}").stat().st_size > 1000
    rows = list(csv.DictReader((folder / "sequences.csv").open()))
    kept = json.loads((folder / "sequences.json").read_text())
    assert [float(row["peak"]) for row in rows] == [row["peak"] for row in kept]
    assert float(rows[1]["peak"]) == pytest.approx(float(mean.max()))
    assert float(rows[1]["mass_first"]) == pytest.approx(float(mean[0].double().mean()))
    assert (rows[0]["frames"], rows[0]["forecast"]) == ("6", "2")
    assert float(rows[0]["mean_sd"]) > 0
    assert "fields, pictures and the table" in capsys.readouterr().out


def test_the_stochastic_network_draws_its_own_members(tmp_path, trainer, file, unpictured, capsys):
    module = PlumeSuperResolution(net="s3rp_r", channels=4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    predict(trainer, module, str(file), Wish(members=3, calibrate=False, keep_members=True))
    with np.load(_results(tmp_path) / "mine" / "test-00000.npz") as content:
        np.testing.assert_allclose(content["members"].mean(0), content["mean"], atol=1e-5)
        assert content["sd"].max() > 0
    assert "single draw" not in capsys.readouterr().out
    predict(trainer, module, str(file), PLAIN)
    assert "each field is a single draw" in capsys.readouterr().out


def test_members_lie_around_the_networks_own_field_and_follow_the_diffusivity_that_it_learnt(trainer, unpictured):
    seen = draw_plumes(WORLD, 1, "test").observations
    known, learnt = PlumeSuperResolution(channels=4), PlumeSuperResolution(channels=4, learn_diffusivity=True)
    found = {}
    for name, module in (("known", known), ("learnt", learnt)):
        torch.nn.init.constant_(module.net.decoder[-1].bias, 0.3)
        fields, members = draw_members(trainer, module, seen, FieldPrior(0.0, 1.0, 0.1), 4, "key")
        torch.testing.assert_close(fields, module(seen.batch(), seen.physics))
        torch.testing.assert_close(members.mean(0), fields, rtol=0, atol=1e-5)
        found[name] = members
    torch.testing.assert_close(found["known"], found["learnt"], rtol=0, atol=1e-5)
    torch.nn.init.constant_(learnt.log_factor, math.log(3.0))
    assert learnt.learnt(seen.physics).diffusivity == pytest.approx(3 * seen.physics.diffusivity)
    _, members = draw_members(trainer, learnt, seen, FieldPrior(0.0, 1.0, 0.1), 4, "key")
    assert (members - found["known"])[:, :, -1].abs().max() > 0.01


def test_a_first_frame_before_the_release_does_not_make_fields_certain(module):
    seen = draw_plumes(WORLD, 2, "test").observations
    empty = replace(seen, coarse=seen.coarse * torch.tensor([0.0, 1, 1, 1])[:, None, None])
    assert prior_of(module, seen).deviation == fit_field(seen).deviation
    assert prior_of(module, empty).deviation > 0.3 * prior_of(module, seen).deviation


@pytest.mark.parametrize("ending", [".h5", ".zarr"])
def test_results_have_the_format_of_what_came_in(tmp_path, trainer, module, ending, unpictured):
    seen = draw_plumes(WORLD, 1, "test").observations
    write_observations(tmp_path / f"a{ending}", seen)
    row = predict(trainer, module, str(tmp_path / f"a{ending}"), PLAIN).rows[0]
    assert row["results"] == f"a{ending}"
    assert (_results(tmp_path) / f"a{ending}").exists()


def test_netcdf_comes_back_with_its_coordinates(tmp_path, trainer, unpictured):
    from scipy.io import netcdf_file

    with netcdf_file(tmp_path / "Süd.nc", "w") as out:
        for name, places, unit in (
            ("time", np.arange(3.0), "hours since 2020-01-01"),
            ("y", 10 * np.arange(4.0), "km"),
            ("x", 10 * np.arange(6.0), "km"),
        ):
            out.createDimension(name, len(places))
            one = out.createVariable(name, "f8", (name,))
            one[:], one.units = places, unit
        for name, value, unit in (("u", 1.0, "m s-1"), ("v", 0.5, "m s-1"), ("no2", 3.0, "µg m-2")):
            one = out.createVariable(name, "f4", ("time", "y", "x"))
            one[:], one.units = value, unit.encode()
    module = PlumeSuperResolution(channels=4, boundary="open")
    row = predict(trainer, module, str(tmp_path / "Süd.nc"), Wish(members=0, horizon=1), Reading(diffusivity=1000.0)).rows[0]
    with netcdf_file(_results(tmp_path) / "Süd.nc", mmap=False) as found:
        assert found.variables["mean"].dimensions == ("time", "y", "x")
        assert found.variables["mean"].units.decode() == "µg m-2"
        assert found.title.decode() == "super-resolved from Süd.nc"
        np.testing.assert_allclose(found.variables["mean"].data.shape, (4, 16, 24))
        np.testing.assert_allclose(found.variables["x"].data[:2], [-3.75, -1.25])
        np.testing.assert_allclose(found.variables["time"].data, [0, 1, 2, 3])
    assert row["unit"] == "µg m-2"


def test_what_was_made_is_not_made_again(tmp_path, trainer, module, file, unpictured, capsys, monkeypatch):
    first = predict(trainer, module, str(file), PLAIN)
    (_results(tmp_path) / "mine" / "test-00001.npz").unlink()  # as if it had been interrupted there
    counted = []
    monkeypatch.setattr("projects.s3rp.prediction.look_out", lambda *given: counted.append(1) or look_out(*given))
    assert predict(trainer, module, str(file), PLAIN).rows == first.rows
    assert len(counted) == 1
    assert "1 of 2 sequences of mine.npz were made already" in capsys.readouterr().out
    predict(trainer, module, str(file), Wish(members=0, horizon=1))
    predict(trainer, module, str(file), PLAIN)  # other settings have written over these results
    assert len(counted) == 5


def test_a_background_is_taken_off_before_and_added_after(tmp_path, trainer, unpictured, capsys):
    seen = draw_plumes(replace(WORLD, boundary="open"), 1, "test").observations
    raised = replace(seen, coarse=(seen.coarse + 10) * seen.mask)
    write_observations(tmp_path / "clean" / "a.npz", seen)
    write_observations(tmp_path / "raised" / "a.npz", raised)
    module = PlumeSuperResolution(channels=4, boundary="open")
    clean = predict(trainer, module, str(tmp_path / "clean" / "a.npz"), Wish(members=3)).rows[0]
    with np.load(_results(tmp_path) / "a.npz") as content:
        expected = {name: content[name] for name in ("mean", "sd", "coarse")}
    assert "spreads are as drawn" in capsys.readouterr().out
    found = predict(trainer, module, str(tmp_path / "raised" / "a.npz"), Wish(members=3, background=10.0)).rows[0]
    with np.load(_results(tmp_path) / "a.npz") as content:
        np.testing.assert_allclose(content["mean"], expected["mean"] + 10, rtol=0, atol=1e-4)
        np.testing.assert_allclose(content["coarse"], expected["coarse"] + 10, rtol=0, atol=1e-5)
    assert found["peak"] == pytest.approx(clean["peak"] + 10, abs=1e-4)
    assert found["physics_residual"] == pytest.approx(clean["physics_residual"], rel=1e-2)
    assert "say --background" not in found["remarks"] + clean["remarks"]
    lowest = float(raised.coarse[raised.mask].min())
    told = predict(trainer, module, str(tmp_path / "raised" / "a.npz"), PLAIN).rows[0]["remarks"]
    assert f"what flows in counts as clean, 0; say --background {lowest:.4g}" in told


def test_bad_files_among_others_are_told_at_the_end(tmp_path, trainer, module, file, unpictured, capsys):
    (file.parent / "bad.npz").write_text("hello")
    write_observations(file.parent / "c.npz", draw_plumes(WORLD, 1, "test").observations)
    with pytest.raises(BadFileError, match=r"2 of 3 files were used; cannot use .*bad\.npz: it is cut off"):
        predict(trainer, module, str(file.parent), PLAIN)
    assert len(list(csv.DictReader((_results(tmp_path) / "sequences.csv").open()))) == 3
    assert capsys.readouterr().out.count("bad.npz") == 1


def test_forecasts_held_winds_and_growth_are_remarked_on(trainer, module, file, unpictured):
    row = predict(trainer, module, str(file), Wish(members=0, horizon=3)).rows[0]
    assert "has not learnt to forecast (model.forecast)" in row["remarks"]
    assert "the last wind is held for 2 frames more" in row["remarks"]
    assert (row["forecast"], row["filled"]) == (3, 0)
    assert sentence(row).startswith(f"{row['sequence']}: 7 frames (4 observed, 3 forecast) of 16 x 16, peak")
    assert sentence(row | {"frames": 1, "forecast": 0}).startswith(f"{row['sequence']}: 1 frame of")
    seen = draw_plumes(WORLD, 1, "test").observations
    assert not cautions(module, seen, 0.0)
    ahead = (seen.mask & (torch.arange(4) < 3)[:, None, None]).contiguous()
    fast = replace(seen, mask=ahead, wind=seen.wind.scaled(20.0, 20.0), physics=seen.physics.with_options(diffusivity=1.0))
    assert "cells a frame, forecasts reach 3: train with model.propagation" in cautions(PlumeSuperResolution(channels=4, forecast=1), fast, 0.0)[-1]
    assert not cautions(PlumeSuperResolution(channels=4, forecast=1), replace(fast, mask=seen.mask), 0.0)
    fields = torch.zeros(1, 4, 16, 16)
    fields[0, 1, 2, 3] = 3.1 * seen.coarse.max()
    assert growth(seen, Outlook(fields)) == ["values grow beyond what was observed: not to be trusted"]
    assert not growth(seen, Outlook(fields / 2))


def test_what_a_spread_needs_is_told_with_the_file_and_the_mend(trainer, module, file, unpictured):
    seen = draw_plumes(WORLD, 1, "test").observations
    mask = torch.zeros_like(seen.mask)
    mask[:, 0, 0, :2] = True
    write_observations(file, replace(seen, mask=mask, coarse=seen.coarse * mask))
    with pytest.raises(BadFileError, match=r"mine\.npz: 2 values are observed .* --members 0"):
        predict(trainer, module, str(file), Wish(members=2))


def test_sources_that_were_found_are_written(tmp_path, trainer, file, unpictured):
    row = predict(trainer, PlumeSuperResolution(channels=4, find_source=True), str(file), PLAIN).rows[0]
    with np.load(_results(tmp_path) / row["results"]) as content:
        assert content["source"].shape == (16, 16)
        assert content["source"].min() >= 0
        assert row["released"] == pytest.approx(content["source"].mean(), rel=1e-5)


def test_chunks_do_not_change_the_fields(trainer, module, monkeypatch):
    seen = draw_plumes(WORLD, 3, "test").observations
    whole = estimate(trainer, module, seen)
    monkeypatch.setattr("projects.s3rp.outlook.CELLS", 1)
    torch.testing.assert_close(estimate(trainer, module, seen), whole, rtol=0, atol=1e-6)
    assert CELLS > 1


def test_files_are_found_and_truths_left_out(tmp_path):
    drawn = draw_plumes(WORLD, 1, "test")
    for name in ("test.npz", "test.h5", "store.zarr"):
        write_observations(tmp_path / name, drawn.observations)
    write_truth(tmp_path / "truth" / "test.npz", drawn.truth)
    write_truth(tmp_path / "truth.npz", drawn.truth)
    names = [given.name for given in find_sequences(str(tmp_path))]
    assert names == ["test.h5", "test.npz", "store.zarr"]
    assert result_stems(names) == ["test.h5", "test.npz", "store"]
    assert [given.name for given in find_sequences(str(tmp_path / "store.zarr"))] == ["store.zarr"]
    with pytest.raises(FileNotFoundError, match="files of truths alone"):
        find_sequences(str(tmp_path / "truth.npz"))


def test_what_does_not_go_with_the_network_is_refused(tmp_path, trainer, module, file, unpictured):
    with pytest.raises(BadFileError, match=r"mine\.npz: the winds lie on a grid 4 times finer .* use a network of factor 4"):
        predict(trainer, PlumeSuperResolution(channels=4, factor=2), str(file), PLAIN)
    with pytest.raises(BadFileError, match="its boundary is periodic, the network's open"):
        predict(trainer, PlumeSuperResolution(channels=4, boundary="open"), str(file), PLAIN)
    with np.load(file) as content:
        np.savez(file, **{**content, "u": np.full_like(content["u"], np.nan)})
    with pytest.raises(BadFileError, match="u holds NaN or infinity"):
        predict(trainer, module, str(file), PLAIN)
    with pytest.raises(FileNotFoundError, match=r"nothing\.npz"):
        predict(trainer, module, str(tmp_path / "nothing.npz"), PLAIN)
    broken = PlumeSuperResolution(channels=4)
    torch.nn.init.constant_(next(broken.net.parameters()), float("nan"))
    write_observations(file, draw_plumes(WORLD, 1, "test").observations)
    with pytest.raises(ValueError, match="not finite"):
        predict(trainer, broken, str(file), PLAIN)


def test_ringing_is_remarked_on(trainer, module, tmp_path, unpictured):
    write_observations(tmp_path / "a.npz", draw_plumes(World(size=16, frames=3, diffusivity=1e-4), 1, "test").observations)
    assert "cell Peclet number" in predict(trainer, module, str(tmp_path / "a.npz"), PLAIN).rows[0]["remarks"]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"horizon": -1}, "horizon counts frames"), ({"members": 1}, "2 and more"), ({"members": 0, "keep_members": True}, "no members to keep")],
    ids=["horizon", "members", "keep"],
)
def test_wishes_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Wish(**options)
