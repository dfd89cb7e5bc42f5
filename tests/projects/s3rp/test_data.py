"""Drawn and read sequences for training, and that the truth is asked for by nobody who trains."""

import ast
import csv
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from projects.s3rp.cli import main
from projects.s3rp.data import PlumeData
from projects.s3rp.layouts import write_observations, write_truth
from projects.s3rp.worlds import World, draw_plumes
from shared.checkpoints import load_checkpoint
from shared.runs import REPOSITORY

PROJECT = REPOSITORY / "projects" / "s3rp"
WORLD = World(size=16, frames=4, diffusivity=0.01)
TRAINING = ("module", "hiding", "model", "losses", "stochastic", "layers", "observing", "physics", "sets", "calibration", "tasks", "outlook")
"""Files that training and forecasting are made of."""


def write(folder, world=WORLD, counts=None):
    """Write the splits as `simulate` does."""
    for split, count in (counts or {"train": 8, "val": 3, "test": 5}).items():
        plumes = draw_plumes(world, count, split)
        folder.mkdir(exist_ok=True)
        (folder / "truth").mkdir(exist_ok=True)
        write_observations(folder / f"{split}.npz", plumes.observations)
        write_truth(folder / "truth" / f"{split}.npz", plumes.truth)
    return folder


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "files")


# ---- what there is


def test_drawn_sequences_are_those_of_the_world_and_split():
    data = PlumeData(world=WORLD, train=8, val=3, test=5)
    for split, count in (("train", 8), ("val", 3), ("test", 5)):
        expected = draw_plumes(WORLD, count, split)
        assert torch.equal(data.observations(split).coarse, expected.observations.coarse)
        assert torch.equal(data.truth(split), expected.truth)
    assert data.factor == 4
    assert data.boundary == "periodic"


def test_drawing_that_takes_long_is_announced(monkeypatch, capsys):
    PlumeData(world=WORLD, val=2).observations("val")
    assert not capsys.readouterr().out
    monkeypatch.setattr("projects.s3rp.data.MANY", 2 * 4 * 16**2)
    PlumeData(world=WORLD, val=2).observations("val")
    assert "drawing 2 sequences (val)" in capsys.readouterr().out


def test_read_sequences_are_those_that_were_written(files):
    data = PlumeData("files", str(files))
    data.prepare_data()
    for split, count in (("train", 8), ("val", 3), ("test", 5)):
        expected = draw_plumes(WORLD, count, split)
        torch.testing.assert_close(data.observations(split).coarse, expected.observations.coarse)
        assert torch.equal(data.truth(split), expected.truth)
    assert data.factor == 4


def test_splits_share_neither_winds_nor_fields():
    splits = [draw_plumes(WORLD, 6, split).observations for split in ("train", "val", "test")]
    for one in range(3):
        for other in range(one):
            for part in ("coarse", "u"):
                first, second = (getattr(splits[k], part, splits[k].wind.u).flatten(1) for k in (one, other))
                assert float(torch.cdist(first, second).min()) > 0.1


def test_the_solver_takes_as_many_steps_as_the_winds_of_its_split_need():
    data = PlumeData(world=WORLD, train=8, val=3)
    for split in ("train", "val"):
        known = data.observations(split)
        assert known.physics.substeps == known.physics.stable_substeps(known.wind) > 1


def test_training_batches_are_dealt_in_a_new_order_each_epoch():
    data = PlumeData(world=WORLD, train=8, batch_size=4)
    loader = data.train_dataloader()
    orders = []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        batches = list(loader)
        assert [tuple(batch["coarse"].shape) for batch in batches] == [(4, 4, 4, 4)] * 2
        assert all(torch.equal(batch["coarse"], data.observations("train").coarse[batch["index"]]) for batch in batches)
        orders.append(torch.cat([batch["index"] for batch in batches]).tolist())
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(8))
    assert orders[0] != orders[1]


def test_evaluation_gives_every_sequence_once_in_order():
    data = PlumeData(world=WORLD, train=4, val=5, batch_size=2)
    assert torch.cat([batch["index"] for batch in data.val_dataloader()]).tolist() == [0, 1, 2, 3, 4]


# ---- what can go wrong


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_an_empty_split_is_refused(split):
    with pytest.raises(ValueError, match=f"data.{split} must be at least 1, got 0"):
        PlumeData(**{split: 0})


def test_splits_of_unlike_factors_are_refused(files):
    write(files, World(size=16, frames=4, factor=2, diffusivity=0.01), {"val": 2})
    data = PlumeData("files", str(files))
    data.observations("train")
    with pytest.raises(ValueError, match="the factor of val is 2, that of train is 4"):
        data.observations("val")


def test_an_absent_folder_or_split_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder: expected train.npz, val.npz and test.npz"):
        PlumeData("files", str(tmp_path / "nowhere")).prepare_data()
    with pytest.raises(FileNotFoundError, match="no sequences of the train split"):
        PlumeData("files", str(tmp_path)).observations("train")


# ---- the truth lies elsewhere


def learnt(folder):
    """The last and the best weights, and the steps that they are of."""
    last, best = (load_checkpoint(folder / "checkpoints" / f"{name}.ckpt") for name in ("last", "best"))
    return last["state_dict"], best["state_dict"], (best["global_step"], last["global_step"])


def same(one, other):
    for found, expected in zip(one[:2], other[:2], strict=True):
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert one[2] == other[2]


def validated(folder):
    """The rows of validation that were logged."""
    with (folder / "fit" / "metrics.csv").open() as file:
        return [{name: row[name] for name in row if name.startswith("val/")} for row in csv.DictReader(file) if row.get("val/loss")]


def test_training_asks_for_no_truth(run, run_folder, small, monkeypatch, capsys):
    """With a truth that cannot be had, training ends at the same bits, and only the test afterwards fails."""

    def refuse(self, split):
        raise ValueError(f"the truth of {split} was asked for")

    monkeypatch.setattr(PlumeData, "truth", refuse)
    with pytest.raises(SystemExit):
        main(["fit", *small, "--members=20", "--run=blind"])
    assert "the truth of test was asked for" in capsys.readouterr().err
    same(learnt(run_folder / "s3rp" / "blind"), learnt(run))
    assert validated(run_folder / "s3rp" / "blind") == validated(run)


def spoil(file, fate):
    if fate == "deleted":
        file.unlink()
    elif fate == "garbage":
        file.write_bytes(b"no numbers" * 100)
    else:
        np.savez(file, c_true=np.full_like(np.load(file)["c_true"], np.nan))


@pytest.mark.parametrize("fate", ["garbage", *(pytest.param(fate, marks=pytest.mark.slow) for fate in ("nan", "deleted"))])
def test_training_on_files_is_the_same_whatever_becomes_of_the_truth(tmp_path, run, run_folder, small, fate):
    """The files hold what the shared training drew: the weights are the same to the bit."""
    write(tmp_path, World(size=16, frames=4, sigma=0.01, missing=0.2, diffusivity=0.01))
    for split in ("train", "val", "test"):
        spoil(tmp_path / "truth" / f"{split}.npz", fate)
    with nullcontext() if fate == "deleted" else pytest.raises(SystemExit, match="1"):
        main(["fit", *small, "--data.source=files", f"--data.root={tmp_path}", "--members=0", "--run=blind"])
    same(learnt(run_folder / "s3rp" / "blind"), learnt(run))
    assert validated(run_folder / "s3rp" / "blind") == validated(run) != []


def words(tree):
    """Names, attributes, arguments and strings of a file, docstrings excepted."""
    documents = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        for part in ("id", "attr", "arg", "name"):
            if isinstance(found := getattr(node, part, None), str):
                yield found
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
            yield node.value


@pytest.mark.parametrize("name", TRAINING)
def test_what_trains_has_no_word_for_the_truth(name):
    tree = ast.parse((PROJECT / f"{name}.py").read_text(encoding="utf-8"))
    said = [word for word in words(tree) if "truth" in word.lower() or "c_true" in word]
    assert said == []


def test_the_network_and_its_losses_import_nothing_that_reads_or_draws_truth():
    """Of the imports at run time; those for types alone do not count."""
    seen, left = set(), ["module"]
    while left:
        name = left.pop()
        tree = ast.parse((PROJECT / f"{name}.py").read_text(encoding="utf-8"))
        typed = {
            id(part) for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test) for part in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in typed and (node.module or "").startswith("projects.s3rp."):
                other = node.module.rpartition(".")[2]
                left += [other] if other not in seen else []
                seen.add(other)
    assert seen == {"calibration", "hiding", "layers", "losses", "model", "observing", "options", "physics", "scaling", "sets", "stochastic"}
