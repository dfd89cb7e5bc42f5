"""The verb `simulate`: files of the layout that are what the world draws, kept where they lie, and never over something else."""

import json
from types import SimpleNamespace

import pytest
import torch

from projects.s3rp.layouts import find_truth, read_split
from projects.s3rp.simulation import MARK, simulate
from projects.s3rp.worlds import World, draw_plumes

WORLD = World(size=16, frames=3, missing=0.2)


def _data(**options):
    return SimpleNamespace(source="plumes", world=WORLD, counts={"train": 2, "val": 1, "test": 1}) if not options else SimpleNamespace(**options)


def _simulate(path, data=None, **options):
    return simulate(SimpleNamespace(), None, data or _data(), str(path), **options)


def test_files_hold_what_the_world_draws_and_example_pictures(tmp_path, capsys):
    found = _simulate(tmp_path / "world", train=3)
    drawn = draw_plumes(WORLD, 3, "train")
    seen = read_split(tmp_path / "world", "train")
    torch.testing.assert_close(seen.coarse, drawn.observations.coarse, rtol=0, atol=0)
    torch.testing.assert_close(find_truth(tmp_path / "world", "train", seen), drawn.truth, rtol=0, atol=0)
    assert found.summary["simulate/sequences"] == 5
    assert {path.name for path in found.folder.iterdir()} == {"train.npz", "val.npz", "test.npz", "truth", MARK, "example.png", "example.gif"}
    assert "fit --data.source files --data.root" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("projects.s3rp.simulation._picture", lambda folder, drawn: None)
    _simulate(tmp_path)
    before = (tmp_path / "train.npz").stat().st_mtime_ns
    (tmp_path / "truth" / "val.npz").unlink()
    capsys.readouterr()
    _simulate(tmp_path)
    said = capsys.readouterr().out
    assert "train.npz is there already" in said
    assert "val.npz: drawing 1 sequences" in said
    assert (tmp_path / "train.npz").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (SimpleNamespace(source="files"), {}, "data.source is files"),
        (None, {"format": "csv"}, "no format 'csv': choose among npz, h5, zarr"),
        (None, {"val": 0}, "val must be at least 1"),
    ],
    ids=["files", "format", "count"],
)
def test_wrong_options_are_told_before_any_work(tmp_path, data, options, message):
    with pytest.raises(ValueError, match=message):
        _simulate(tmp_path / "new", data, **options)
    assert not (tmp_path / "new").exists()


def test_other_folders_are_not_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and no earlier result"):
        _simulate(tmp_path)
    (tmp_path / MARK).write_text(json.dumps({"world": {}}))
    with pytest.raises(ValueError, match="holds sequences of other settings"):
        _simulate(tmp_path)
