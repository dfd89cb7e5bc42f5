"""What a test measures: errors against the truth, spread against hidden observations, and what can be told without a truth."""

import json

import numpy as np
import pytest

from projects.s3rp.classical import METHODS
from projects.s3rp.cli import main
from projects.s3rp.layouts import write_observations
from projects.s3rp.module import PlumeSuperResolution
from projects.s3rp.worlds import World, draw_plumes

WORLD = World(size=16, frames=4, sigma=0.01, missing=0.2, diffusivity=0.01)


def table(folder, verb, name):
    return json.loads((folder / "artefacts" / verb / f"{name}.json").read_text())


def relative(fields, truth):
    """Mean over sequences and frames of ||c_hat - c|| / ||c||."""
    difference, size = ((part.double() ** 2).sum((-1, -2)).sqrt() for part in (fields - truth, truth))
    return float((difference / size).mean())


def network(run):
    return PlumeSuperResolution.load_from_checkpoint(run / "checkpoints" / "best.ckpt", weights_only=True, map_location="cpu").eval()


def test_the_tables_errors_are_those_of_the_fields(run):
    rows = {row["method"]: row for row in table(run, "fit", "methods")}
    plumes = draw_plumes(WORLD, 5, "test")
    fields = {name: METHODS[name](plumes.observations) for name in rows if name != "network"}
    fields["network"] = network(run)(plumes.observations.batch(), plumes.observations.physics)
    assert list(rows) == ["nearest", "bicubic", "spline", "bicubic+projection", "network"]
    for name, made in fields.items():
        assert rows[name]["relative_l2"] == pytest.approx(relative(made, plumes.truth), abs=2e-5)
        assert rows[name]["rmse"] == pytest.approx(float((made - plumes.truth).square().mean((1, 2, 3)).sqrt().mean()), rel=0.1)
        assert rows[name]["first_frame"] == pytest.approx(relative(made[:, :1], plumes.truth[:, :1]), abs=2e-5)
        assert rows[name]["last_frame"] == pytest.approx(relative(made[:, -1:], plumes.truth[:, -1:]), abs=2e-5)
        # the gain divides the sums, or the means, of the errors
        assert rows[name]["gain"] == pytest.approx(rows["bicubic"]["relative_l2"] / rows[name]["relative_l2"], rel=1e-3)


def test_ensembles_are_judged_as_drawn_and_as_calibrated(run):
    rows = {row["ensemble"]: row for row in table(run, "fit", "ensembles")}
    assert set(rows) == {"as drawn", "calibrated"}
    for row in rows.values():
        assert 0 < row["plume_coverage_90"] <= 1
        assert 0 < row["crps"] < row["mae"]
    plumes = draw_plumes(WORLD, 5, "test")
    own = network(run)(plumes.observations.batch(), plumes.observations.physics)
    for row in rows.values():  # members lie around the field that `predict` writes, so that its error is what the spread has to tell
        assert row["mae"] == pytest.approx(float((own - plumes.truth).abs().mean()), abs=1e-5)


def test_test_repeats_what_fit_found(run):
    cli = main(["test", "--members=0"])
    assert table(run, "test", "methods") == table(run, "fit", "methods")
    assert cli.result.ensembles == []
    assert cli.result.summary["test/gain_over_projection"] > 0.9


def test_forecasts_are_set_beside_persistence_and_a_solver(run, tmp_path):
    plumes = draw_plumes(WORLD, 3, "test")
    seen = plumes.observations
    seen.mask[:, 2:] = False
    seen.coarse[:, 2:] = 0
    write_observations(tmp_path / "test.npz", seen)  # the other splits are not needed
    np.savez(tmp_path / "truth.npz", c_true=plumes.truth.numpy())
    main(["test", "--members=20", "--data.source=files", f"--data.root={tmp_path}"])
    rows = {row["method"]: row for row in table(run, "test", "methods")}
    assert {"persistence", "fine solver from bicubic+projection"} <= set(rows)
    assert rows["fine solver from bicubic+projection"]["last_frame"] < rows["persistence"]["last_frame"]


def test_without_a_truth_agreement_and_physics_are_told(run, tmp_path, capsys):
    for split in ("train", "val", "test"):
        write_observations(tmp_path / f"{split}.npz", draw_plumes(WORLD, 4, split).observations)
    cli = main(["test", "--data.source=files", f"--data.root={tmp_path}"])
    assert "the test split has no truth" in capsys.readouterr().out
    rows = {row["method"]: row for row in table(run, "test", "methods")}
    assert set(rows["network"]) == {"method", "inconsistency", "residual"}
    assert rows["network"]["inconsistency"] < 1e-4 < rows["bicubic"]["inconsistency"]
    assert set(cli.result.summary) == {"test/inconsistency", "test/residual"}
