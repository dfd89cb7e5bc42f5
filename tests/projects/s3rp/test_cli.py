"""The command line: configurations, help, and what is said when something is wrong."""

import inspect
import json
import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from helpers.commands import failing, slow

from projects.s3rp.cli import main
from projects.s3rp.data import PlumeData
from projects.s3rp.layouts import write_observations, write_truth
from projects.s3rp.module import PlumeSuperResolution
from projects.s3rp.worlds import World, draw_plumes
from shared.runs import REPOSITORY

PROJECT = REPOSITORY / "projects" / "s3rp"
CONFIGS = sorted(file.stem for file in (PROJECT / "configs").glob("*.yaml"))


fails = failing(main)


# ---- configurations


def settings(name):
    return yaml.safe_load((PROJECT / "configs" / f"{name}.yaml").read_text().replace("${seed_everything}", "0"))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_builds_its_network_and_names_known_options(name):
    given = settings(name)
    module = PlumeSuperResolution(**given["model"])
    expected = {"tiny": 21569 + 9 * 16 + 8561, "paper": 344_242}
    assert sum(parameter.numel() for parameter in module.parameters()) == expected[name]
    world = World(**given["data"].pop("world"))
    PlumeData(world=world, **given["data"])
    assert given["trainer"].keys() <= {"max_epochs", "devices", "log_every_n_steps", "gradient_clip_val"}


def test_the_papers_network_takes_a_step_on_a_miniature(run_folder):
    """The full network, of fewer, shorter and smaller sequences."""
    world = ["--data.world.size=16", "--data.world.frames=6", "--data.train=1", "--data.val=1", "--data.test=1", "--data.batch_size=1"]
    cli = main(["fit", "--config=paper", *world, "--trainer.max_epochs=1", "--members=0", "--trainer.accelerator=cpu"])
    assert cli.trainer.global_step == 1
    assert sum(parameter.numel() for parameter in cli.model.parameters()) == 344_242
    assert cli.model.factor == 4
    assert cli.model.hparams.checkpointing


# ---- help


@pytest.mark.parametrize("verb", ["fit", *(slow(verb) for verb in ("test", "simulate", "predict", "reproduce"))])
def test_help_explains_every_option(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    assert stop.value.code == 0
    text = re.sub(r"\s+", " ", capsys.readouterr().out)
    for section, made in (("model", PlumeSuperResolution), ("data", PlumeData)):
        for name in inspect.signature(made.__init__).parameters:
            if name in ("self", "factor", "boundary"):
                continue
            says = re.search(rf"^    {name}: (.*)$", inspect.getdoc(made), re.MULTILINE)
            assert says, f"{name} is not explained"
            assert re.search(rf"--{section}\.{name} ", text), f"{section}.{name} is not listed"
            assert " ".join(says[1].split()[:3]) in text
    for name in inspect.signature(World).parameters:
        assert re.search(rf"--data\.world\.{name} ", text), f"data.world.{name} is not listed"


# ---- what can go wrong


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """Folders of files in which something is wrong, in the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    world = World(size=16, frames=3, diffusivity=0.01)
    for name in ("good", "frames", "infinite", "winds", "damaged", "factors", "truth"):
        (tmp_path / name / "truth").mkdir(parents=True)
        for split in ("train", "val", "test"):
            drawn = draw_plumes(World(size=16, frames=3, factor=2) if (name, split) == ("factors", "val") else world, 4, split)
            write_observations(tmp_path / name / f"{split}.npz", drawn.observations)
        write_truth(tmp_path / name / "truth" / "test.npz", drawn.truth[:2] if name == "truth" else drawn.truth)
    for name, array, value in (("frames", "u", np.nan), ("infinite", "y", np.inf), ("winds", "u", 1e9)):
        arrays = dict(np.load(tmp_path / name / "train.npz"))
        arrays[array][0, 0, 1, 1] = value
        np.savez(tmp_path / name / "train.npz", **arrays)
    (tmp_path / "damaged" / "train.npz").write_bytes(b"not a file of arrays")


FILES = "--data.source=files"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--model.prayer=1"], 2, "prayer"),
        slow(["--data.prayer=1"], 2, "prayer"),
        slow(["--data.world.prayer=1"], 2, "prayer"),
        slow(["--model.net=unet"], 2, "model.net"),
        slow(["--data.world.boundary=wall"], 2, "boundary"),
        (["--config=prayer"], 1, "no configuration 'prayer': give a YAML file, or one of the project's own"),
        (["--model.lr=-1"], 1, "model.lr must be positive, got -1"),
        (["--data.source=prayer"], 1, "data.source 'prayer' is not known"),
        (["--data.world.factor=3"], 1, "a grid of 16 cells has no blocks of 3: choose a factor that divides it"),
        slow(["--data.world.diffusivity=-1"], 1, "diffusivity must be a positive number, got -1"),
        slow(["--data.world.missing=1"], 1, "missing is a part"),
        (["--data.train=0"], 1, "data.train must be at least 1, got 0"),
        (["--data.batch_size=400"], 1, "data.batch_size 400 is larger than the training set of 8 samples"),
        (["--trainer.max_epochs=-1"], 1, "set trainer.max_epochs or trainer.max_steps"),
        (["--model.net=s3rp_r", "--model.forecast=0", "--model.hide=0.2", "--model.members=1"], 1, "members"),
        ([FILES], 1, "say where they lie with --data.root FOLDER"),
        ([FILES, "--data.root=nowhere"], 1, "nowhere"),
        ([FILES, "--data.root=empty"], 1, "no sequences of the train split in empty: expected train.npz"),
        ([FILES, "--data.root=frames"], 1, "u holds NaN or infinity, first at [0, 0, 1, 1]"),
        ([FILES, "--data.root=infinite"], 1, "infinit"),
        ([FILES, "--data.root=winds"], 1, "give dt, D, bounds, u and v in the same units"),
        ([FILES, "--data.root=damaged"], 1, "train.npz"),
        ([FILES, "--data.root=factors"], 1, "the factor of val is 2, that of train is 4"),
        ([FILES, "--data.root=good", "--data.batch_size=5"], 1, "data.batch_size 5 is larger than the training set of 4 samples"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_named_before_any_training(wrong, run_folder, small, capsys, options, code, message):
    assert message in fails(["fit", "--run=bad", *small, "--members=0", *options], capsys, code)
    assert not (run_folder / "s3rp" / "bad" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--members=-1"],
        ["--members=1"],
        slow(["--model.recurrent=false", "--model.bidirectional=true"]),
        slow(["--model.find_source=true", "--model.lambda_physics=0"]),
        slow(["--model.learn_diffusivity=true", "--model.lambda_physics=0"]),
    ],
    ids=" ".join,
)
def test_settings_that_make_no_sense_are_named_before_any_training(run_folder, small, capsys, options):
    fails(["fit", "--run=bad", *small, "--members=0", *options], capsys)
    assert not (run_folder / "s3rp" / "bad" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["test", "--run=prayer"], "prayer"),
        (["test", "--ckpt_path=/nowhere.ckpt"], "/nowhere.ckpt"),
        (["test", "--model.channels=5"], "does not fit the model that the settings describe"),
        (["test", "--model.net=s3rp_r", "--model.forecast=0"], "does not fit the model that the settings describe"),
        (["test", "--data.world.factor=2"], "were trained for the factor 4"),
        (["test", "--data.world.boundary=open"], "were trained for the boundary periodic"),
        (["test", FILES, "--data.root=truth"], "c_true has the shape"),
        (["fit", "--resume", "--model.channels=5"], "does not fit the model"),
        (["predict", "nowhere.npz"], "nowhere.npz"),
        (["predict", "good/test.npz", "--members=1"], "members must be 0, for no spread, or 2 and more, got 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_suit_a_run_is_named(wrong, run, capsys, arguments, message):
    assert message in fails(arguments, capsys)


def test_a_verb_without_a_run_says_so(run_folder, capsys):
    assert "fit" in fails(["test"], capsys)


def test_simulate_draws_what_it_is_asked_for_and_not_what_the_latest_run_has(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("projects.s3rp.simulation._picture", lambda folder, drawn: None)
    (run / "checkpoints" / "last.ckpt").unlink()
    main(["simulate", str(tmp_path / "two words"), "--train=1", "--val=1", "--test=1", "--data.world.frames=2"])
    drawn = json.loads((tmp_path / "two words" / "world.json").read_text())["world"]
    assert (drawn["size"], drawn["frames"], drawn["missing"]) == (32, 2, 0.0)
    assert f"--data.root '{tmp_path / 'two words'}'" in capsys.readouterr().out


def test_a_checkpoint_that_is_no_checkpoint_is_named(run, capsys):
    shutil.copy(PROJECT / "cli.py", run / "checkpoints" / "best.ckpt")
    assert "best.ckpt" in fails(["test", "--members=0"], capsys)


def test_sequences_without_any_structure_are_tested(run, tmp_path):
    """Constant fields, and empty ones, have nothing to find: nothing breaks."""
    seen = draw_plumes(World(size=16, frames=3, diffusivity=0.01), 4, "test").observations
    seen.coarse[:2], seen.coarse[2:] = 0.0, 1.0
    for split in ("train", "val", "test"):
        write_observations(tmp_path / f"{split}.npz", seen)
    write_truth(tmp_path / "truth.npz", torch.ones(4, 3, 16, 16))
    cli = main(["test", "--members=0", FILES, f"--data.root={tmp_path}"])
    assert np.isfinite([row["relative_l2"] for row in cli.result.rows if row["method"] != "bicubic"]).all()
